//! Command line of the learner.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use config::ComputeDevice;
use learner::pretrain::{Folders, PretrainSettings};
use learner::run::export_checkpoint;
use learner::serve::{Exit, ServeError, ServeOptions, serve};
use learner::{parity, pretrain};
use models::Activations;
use models::reference_case::{TOLERANCE, parse_tolerance};
use service::logging::{self, LogFormat};
use service::output::{self, StandardOutput};
use service::{Hub, MemberArguments, cuda, exit_code, model_folder, path_argument, shutdown};

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
    Serve(ServeArgs),
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
}

#[derive(clap::Args)]
struct ServeArgs {
    #[command(flatten)]
    member: MemberArguments,
    /// Name among the members of the run, kept over restarts.
    #[arg(long, env = "FLOW_RL_MEMBER_ID", default_value = "learner")]
    member_id: String,
    /// Where workers reach this process; port 0 takes a free one.
    #[arg(long, env = "FLOW_RL_LISTEN", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
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
    // A run names its device after its processes have started.
    let device = if matches!(args.command, Command::Serve(_)) { None } else { Some(ComputeDevice::Cpu) };
    cuda::load_where_wanted(device).map_err(|error| BadInput(error.into()))?;
    match args.command {
        Command::Serve(args) => run_serve(args),
        Command::Parity(args) => run_parity(&args),
        Command::Pretrain(args) => run_pretrain(&args),
        Command::Export(args) => run_export(&args),
    }
}

fn run_parity(args: &ParityArgs) -> anyhow::Result<u8> {
    let activations = if args.gradient_checkpointing { Activations::Recomputed } else { Activations::Kept };
    let cases = args.cases.as_deref();
    let hub = Hub::from_environment(|name| std::env::var_os(name));
    let model = model_folder(&args.model_dir, &hub).map_err(|error| BadInput(error.into()))?;
    let outcome =
        parity::run(&model, cases, args.rtol, activations, &mut StandardOutput).map_err(BadInput)?;
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
    let MemberArguments { coordinator, coordinator_grace: grace, log_format } = args.member;
    logging::init(log_format, "info")?;
    let hub = Hub::from_environment(|name| std::env::var_os(name));
    let options = ServeOptions { coordinator, member_id: args.member_id, listen: args.listen, grace, hub };
    // Sockets need little; the training thread has the cores.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let exit = runtime.block_on(async {
        let shutdown = shutdown::on_signals()?;
        Ok::<_, anyhow::Error>(serve(options, shutdown).await?)
    })?;
    Ok(match exit {
        Exit::Done => exit_code::DONE,
        Exit::Retry => exit_code::RETRY,
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
