//! Command line of the learner.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use config::ComputeDevice;
use learner::pretrain::{Folders, PretrainSettings};
use learner::run::export_checkpoint;
use learner::serve::{ServeEnd, ServeError, ServeOptions, serve};
use learner::{parity, pretrain};
use models::Activations;
use models::reference_case::{ParityOptions, TOLERANCE, parse_tolerance};
use models::weights::WeightOptions;
use service::logging::{self, LogFormat};
use service::network::ListenAddress;
use service::output::{self, StandardOutput};
use service::{
    ComputeArguments, Hub, MemberArguments, RunDirectory, cuda, exit_code, model_folder, path_argument,
    shutdown,
};

/// Trains the policy of a run.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Takes part in a run as its learner; started by `coordinator up`.
    Serve(Box<ServeArgs>),
    /// Compares gradients and updates with recorded ones, `lora*` and `rl_step*`, of a model.
    Parity(ParityArgs),
    /// Writes what a run has trained by one of its checkpoints, as PEFT folder and diffusers LoRA file.
    Export(ExportArgs),
    /// Makes a small SD3 pipeline from nothing: flow-matching training on drawn scenes.
    Pretrain(PretrainArgs),
}

#[derive(clap::Args)]
struct ExportArgs {
    /// Directory of the run.
    #[arg(value_parser = path_argument())]
    run: PathBuf,
    /// Iterations of the checkpoint; the newest if not given.
    #[arg(long)]
    checkpoint: Option<u32>,
    /// Folder to write; it must not exist.
    #[arg(long, value_parser = path_argument())]
    to: PathBuf,
}

#[derive(clap::Args)]
struct PretrainArgs {
    /// Sizes and training settings, such as deploy/configs/pretrain-tiny.toml.
    #[arg(value_parser = path_argument())]
    settings: PathBuf,
    /// Folder to write, in the diffusers layout; it must not exist.
    #[arg(long, value_parser = path_argument())]
    out: PathBuf,
    /// Folder for the pipeline as it was before the first wrong caption; it must not exist.
    #[arg(long, value_name = "FOLDER", value_parser = path_argument())]
    before_wrong_captions: Option<PathBuf>,
}

#[derive(clap::Args)]
struct ParityArgs {
    /// Pipeline folder in the diffusers layout.
    model_dir: PathBuf,
    /// Folder of the case files; `MODEL_DIR/cases` if not given.
    #[arg(long, value_parser = path_argument())]
    cases: Option<PathBuf>,
    /// Largest relative error that passes.
    #[arg(long, allow_negative_numbers = true, default_value_t = TOLERANCE, value_parser = parse_tolerance)]
    rtol: f64,
    /// Compute activations again in the backward pass, block by block, as `training.gradient_checkpointing` does.
    #[arg(long)]
    gradient_checkpointing: bool,
    #[command(flatten)]
    compute: ComputeArguments,
}

#[derive(clap::Args)]
struct ServeArgs {
    #[command(flatten)]
    member: MemberArguments,
    /// Name among the members of the run, kept over restarts; `learner` or, by rank, `learner-1` and so on if not given.
    #[arg(long, env = "FLOW_RL_MEMBER_ID")]
    member_id: Option<String>,
    /// Which of the learner's ranks this process is, from 0, where the run's `resources.learners` is more than one.
    #[arg(long, env = "FLOW_RL_RANK", default_value_t = 0)]
    rank: u32,
    /// Where this process listens for workers, and at the next free port for other ranks of the learner: an address, interface or subnet of this host, and a port or range of ports;
    /// port 0 takes a free one.
    #[arg(long, env = "FLOW_RL_LISTEN", default_value = "127.0.0.1:0")]
    listen: ListenAddress,
    /// What workers are told to reach it by: an address, host name, interface or subnet; without it, where it listens.
    #[arg(long, env = "FLOW_RL_ADVERTISE", default_value = "")]
    advertise: String,
    /// MiB of memory for outcomes that training has yet to take: workers sample no further ahead than there is room for. Half of
    /// the free memory if not given.
    #[arg(long, env = "FLOW_RL_OUTCOME_MEMORY", value_name = "MIB", value_parser = clap::value_parser!(u64).range(..=1 << 30))]
    outcome_memory: Option<u64>,
    /// Directory in which this learner keeps its half of the run, where it shares no file system with the coordinator; what it
    /// reads of the run comes there by the wire. Without it, the coordinator's directory of the run is used.
    #[arg(long, env = "FLOW_RL_RUN_DIRECTORY", value_name = "DIRECTORY", value_parser = path_argument())]
    run_directory: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(service::parse_arguments()) {
        Ok(code) => code.into(),
        Err(error) => {
            output::print_error_line(format_args!("error: {error:#}"));
            exit_code_of(&error).into()
        }
    }
}

/// What the user gave cannot be used; nothing was started.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
struct BadInput(anyhow::Error);

fn exit_code_of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ServeError>() {
        Some(error) => error.exit_code(),
        None if error.is::<BadInput>() => exit_code::BAD_USAGE,
        None => exit_code::FAILED,
    }
}

fn run(args: Args) -> anyhow::Result<u8> {
    let device = match &args.command {
        // A run names its device after its processes have started.
        Command::Serve(_) => None,
        Command::Parity(args) => Some(args.compute.device),
        Command::Export(_) | Command::Pretrain(_) => Some(ComputeDevice::Cpu),
    };
    cuda::load_where_wanted(device).map_err(|error| BadInput(error.into()))?;
    match args.command {
        Command::Serve(args) => run_serve(*args),
        Command::Parity(args) => run_parity(&args),
        Command::Pretrain(args) => run_pretrain(&args),
        Command::Export(args) => run_export(&args),
    }
}

fn run_parity(args: &ParityArgs) -> anyhow::Result<u8> {
    let activations = if args.gradient_checkpointing { Activations::Recomputed } else { Activations::Kept };
    let hub = Hub::from_environment(|name| std::env::var_os(name));
    let model = model_folder(&args.model_dir, &hub).map_err(|error| BadInput(error.into()))?;
    let ComputeArguments { device, dtype } = args.compute;
    let device =
        run_setup::open_device(device).map_err(cuda::explained).map_err(|error| BadInput(error.into()))?;
    let weights = WeightOptions::new(run_setup::element_type(dtype), device);
    let options = ParityOptions { model: &model, cases: args.cases.as_deref(), rtol: args.rtol, weights };
    let outcome = parity::run(&options, activations, &mut StandardOutput).map_err(BadInput)?;
    Ok(if outcome.failed == 0 { exit_code::DONE } else { exit_code::FAILED })
}

fn run_export(args: &ExportArgs) -> anyhow::Result<u8> {
    let hub = Hub::from_environment(|name| std::env::var_os(name));
    let version = export_checkpoint::run(&args.run, args.checkpoint, &args.to, &hub).map_err(BadInput)?;
    output::print_line(serde_json::json!({ "version": version }));
    Ok(exit_code::DONE)
}

fn run_pretrain(args: &PretrainArgs) -> anyhow::Result<u8> {
    logging::init(LogFormat::default(), "info")?;
    let settings = PretrainSettings::read(&args.settings).map_err(BadInput)?;
    let folders = Folders { out: &args.out, before_wrong_captions: args.before_wrong_captions.as_deref() };
    folders.check(&settings).map_err(BadInput)?;
    pretrain::run(settings, folders)?;
    Ok(exit_code::DONE)
}

fn run_serve(args: ServeArgs) -> anyhow::Result<u8> {
    let log = logging::init(args.member.log_format, "info")?;
    let credentials = args.member.credentials().map_err(ServeError::from)?;
    let MemberArguments { coordinator, coordinator_grace: grace, metrics_listen, .. } = args.member;
    let hub = Hub::from_environment(|name| std::env::var_os(name));
    let (listen, advertise) = (args.listen, args.advertise);
    let own_name = || match args.rank {
        0 => "learner".to_owned(),
        rank => format!("learner-{rank}"),
    };
    let member_id = args.member_id.unwrap_or_else(own_name);
    let outcome_memory = args.outcome_memory.map(|mebibytes| mebibytes << 20);
    let options = ServeOptions {
        coordinator,
        credentials,
        rank: args.rank,
        member_id,
        listen,
        advertise,
        metrics_listen,
        grace,
        outcome_memory,
        run_directory: args.run_directory.map(RunDirectory::new),
        log,
        hub,
    };
    // Sockets need little; the training thread has the cores.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let exit = runtime.block_on(async {
        let shutdown = shutdown::on_signals()?;
        Ok::<_, anyhow::Error>(serve(options, shutdown).await?)
    })?;
    Ok(match exit {
        ServeEnd::Done => exit_code::DONE,
        ServeEnd::Retry => exit_code::RETRY,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_its_variables_are_ours() {
        Args::command().debug_assert();
        assert_eq!(service::unprefixed_variables(&Args::command()), Vec::<String>::new());
    }
}
