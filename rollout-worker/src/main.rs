//! Command line of the rollout worker.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use config::{Dtype, RewardInquiry};
use models::lora::LoraConfig;
use rollout_worker::bad_input::BadInput;
use rollout_worker::guided_model::GuidanceSettings;
use rollout_worker::inspect::{self, InspectOptions};
use rollout_worker::sample::{self, SampleOptions};
use rollout_worker::score::{self, ScoreOptions};
use rollout_worker::serve::{self, ServeOptions};
use rollout_worker::serve_reward::{self, Ended, ServeRewardOptions};
use rollout_worker::{inspect_rewards, parity, settings};
use service::logging::LogFormat;
use service::output::{self, StandardOutput};
use service::{Hub, MemberArguments, ServiceError, cuda, exit_code, logging, shutdown};

/// Samples images: for a training run, or by itself.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Takes part in a run as one of its workers; started by `coordinator up`.
    Serve(ServeArgs),
    /// Compares a model's numbers with recorded ones.
    Parity(ParityArgs),
    /// Draws an image of every prompt of a file.
    Sample(SampleArgs),
    /// Scores image files.
    Score(ScoreArgs),
    /// Says what a model is, and what is wrong with its folder, without reading its weights.
    Inspect(InspectArgs),
    /// Reads rewards as JSON from its standard input, as the coordinator writes them, and says whether they could be built here.
    InspectRewards,
    /// Says whether a device is here.
    InspectDevice {
        /// `cpu` or `cuda`.
        device: String,
    },
    /// Hosts scorers for others over gRPC; the reward `grpc` of a run config is their client.
    ServeReward(ServeRewardArgs),
}

#[derive(clap::Args)]
struct ServeArgs {
    #[command(flatten)]
    member: MemberArguments,
    /// Name among the members of the run, kept over restarts.
    #[arg(long, env = "FLOW_RL_MEMBER_ID")]
    member_id: String,
    /// `cpu` or `cuda`; the run config's device if not given.
    #[arg(long, env = "FLOW_RL_DEVICE")]
    device: Option<String>,
}

#[derive(clap::Args)]
struct ParityArgs {
    /// Pipeline folder in the diffusers layout.
    model_dir: PathBuf,
    /// Folder of the case files; `MODEL_DIR/cases` if not given.
    #[arg(long)]
    cases: Option<PathBuf>,
    /// Largest relative error that passes.
    #[arg(long, default_value_t = 1e-4)]
    rtol: f64,
}

/// Which model, and where its weights come from.
#[derive(clap::Args)]
struct ModelArgs {
    /// Variant of the weight files, such as `fp16`; by default the plain files, or the only ones there are.
    #[arg(long)]
    variant: Option<String>,
    /// Random weights, by the model's config.json files alone: to measure speed and memory.
    #[arg(long)]
    random_weights: bool,
    /// Type of the base weights, `float32` or `bfloat16`.
    #[arg(long, default_value = "float32", value_parser = dtype)]
    dtype: Dtype,
}

#[derive(clap::Args)]
struct SampleArgs {
    /// Pipeline folder in the diffusers layout, or `org/name` or `org/name@revision` in the Hugging Face cache.
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    weights: ModelArgs,
    /// Adapter: a PEFT folder, or a LoRA file as diffusers writes it.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Prompts, `.txt` (one per line) or `.jsonl` (one object per line).
    #[arg(long)]
    prompts: PathBuf,
    /// Folder of the images, `PROMPT-IMAGE.png`.
    #[arg(long)]
    out: PathBuf,
    /// Denoising steps.
    #[arg(long, default_value_t = 28)]
    steps: usize,
    /// Strength of classifier-free guidance; none at 1 or less.
    #[arg(long, default_value_t = 4.5, value_parser = finite)]
    guidance: f64,
    /// Tokens of a prompt for the encoder of long texts: T5, or Qwen2.5-VL.
    #[arg(long, default_value_t = 128)]
    max_sequence_length: usize,
    /// Seed of all noises; with a run's seed, the noises of its evaluation.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Height in pixels; the model's own if not given.
    #[arg(long)]
    height: Option<i64>,
    /// Width in pixels; the model's own if not given.
    #[arg(long)]
    width: Option<i64>,
    /// Images of each prompt.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    images_per_prompt: u32,
    /// `cpu` or `cuda`.
    #[arg(long, env = "FLOW_RL_DEVICE", default_value = "cpu")]
    device: String,
    /// CPU threads of tensor operations.
    #[arg(long, env = "FLOW_RL_THREADS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
}

#[derive(clap::Args)]
struct ScoreArgs {
    /// Scorer, such as `pickscore` or `jpeg_compressibility`.
    #[arg(long)]
    reward: String,
    /// Option of the scorer, as in `batch_size=8`; may be given often.
    #[arg(long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// Folder of PNG files; a name begins with the number of its prompt, as in 00012-3.png.
    #[arg(long)]
    images: PathBuf,
    /// Prompts, `.txt` (one per line) or `.jsonl` (one object per line).
    #[arg(long)]
    prompts: PathBuf,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
    /// `cpu` or `cuda`.
    #[arg(long, env = "FLOW_RL_DEVICE", default_value = "cpu")]
    device: String,
    /// CPU threads of tensor operations.
    #[arg(long, env = "FLOW_RL_THREADS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
}

#[derive(clap::Args)]
struct InspectArgs {
    /// Pipeline folder in the diffusers layout, or `org/name` or `org/name@revision` in the Hugging Face cache.
    model: PathBuf,
    #[command(flatten)]
    weights: ModelArgs,
    /// Height in pixels; the model's own if not given.
    #[arg(long)]
    height: Option<i64>,
    /// Width in pixels; the model's own if not given.
    #[arg(long)]
    width: Option<i64>,
    /// Strength of guidance.
    #[arg(long, default_value_t = 4.5, value_parser = finite)]
    guidance: f64,
    /// Tokens of the long part of a prompt.
    #[arg(long, default_value_t = 128)]
    max_sequence_length: usize,
    /// Rank of an adapter.
    #[arg(long, requires = "target")]
    rank: Option<i64>,
    /// A module that gets an adapter, by its name or the end of its path; may be given often.
    #[arg(long, requires = "rank")]
    target: Vec<String>,
    /// One JSON object in place of a table.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct ServeRewardArgs {
    /// Scorer, such as `pickscore`; may be given often.
    #[arg(long = "reward", value_name = "NAME", required = true)]
    rewards: Vec<String>,
    /// Option of the scorer, as in `batch_size=8`, or `pickscore.batch_size=8` where several are hosted; may be given often.
    #[arg(long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// Where to listen, as in `127.0.0.1:17200`; port 0 takes a free one, which the line on standard output tells.
    #[arg(long, env = "FLOW_RL_LISTEN")]
    listen: SocketAddr,
    /// `cpu` or `cuda`.
    #[arg(long, env = "FLOW_RL_DEVICE", default_value = "cpu")]
    device: String,
    /// Batches of each scorer that may wait; more are refused for the time being.
    #[arg(long, env = "FLOW_RL_MAX_QUEUE", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    max_queue: u16,
    /// CPU threads of each scorer's tensor operations.
    #[arg(long, env = "FLOW_RL_THREADS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    /// `text` or `json`.
    #[arg(long, env = "FLOW_RL_LOG_FORMAT", default_value_t)]
    log_format: LogFormat,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code.into(),
        Err(error) => {
            output::print_error_line(format_args!("error: {error:#}"));
            exit_code_of(&error).into()
        }
    }
}

fn run(args: Args) -> anyhow::Result<u8> {
    cuda::load_where_wanted(args.command.device()).map_err(BadInput::from_error)?;
    // Once per process, before the first tensor.
    tch::set_num_interop_threads(1);
    match args.command {
        Command::Serve(args) => run_serve(args),
        Command::Parity(args) => run_parity(&args),
        Command::Sample(args) => run_sample(args),
        Command::Score(args) => run_score(args),
        Command::Inspect(args) => run_inspect(args),
        Command::InspectRewards => run_inspect_rewards(),
        Command::InspectDevice { device } => {
            settings::device(&device).map_err(BadInput::from_error)?;
            Ok(exit_code::DONE)
        }
        Command::ServeReward(args) => run_serve_reward(args),
    }
}

impl Command {
    /// The device asked for; `None` where the run will name it.
    fn device(&self) -> Option<&str> {
        match self {
            Self::Serve(args) => args.device.as_deref(),
            Self::Sample(args) => Some(&args.device),
            Self::Score(args) => Some(&args.device),
            Self::ServeReward(args) => Some(&args.device),
            Self::InspectDevice { device } => Some(device),
            Self::Parity(_) | Self::Inspect(_) | Self::InspectRewards => Some("cpu"),
        }
    }
}

/// The models of this machine.
fn hub() -> Hub {
    Hub::from_environment(|name| std::env::var_os(name))
}

fn dtype(name: &str) -> Result<Dtype, serde_json::Error> {
    serde_json::from_value(name.into())
}

fn finite(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number.is_finite() { Ok(number) } else { Err("must be finite".to_owned()) }
}

fn run_inspect_rewards() -> anyhow::Result<u8> {
    let inquiry: RewardInquiry = serde_json::from_reader(std::io::stdin().lock()).map_err(|error| {
        BadInput::from_error(anyhow::Error::new(error).context("reading rewards from standard input"))
    })?;
    output::print_line(serde_json::to_string(&inspect_rewards::run(&inquiry, &hub()))?);
    Ok(exit_code::DONE)
}

fn exit_code_of(error: &anyhow::Error) -> u8 {
    if error.is::<BadInput>() {
        return exit_code::BAD_USAGE;
    }
    match error.downcast_ref::<ServiceError>() {
        Some(ServiceError::Unreachable { .. } | ServiceError::CoordinatorGone { .. }) => exit_code::RETRY,
        Some(ServiceError::Address { .. }) => exit_code::BAD_USAGE,
        _ => exit_code::FAILED,
    }
}

fn run_serve(args: ServeArgs) -> anyhow::Result<u8> {
    let MemberArguments { coordinator, coordinator_grace: grace, log_format } = args.member;
    logging::init(log_format, "info")?;
    if let Some(device) = &args.device {
        settings::device(device).map_err(BadInput::from_error)?;
    }
    let options =
        ServeOptions { coordinator, member_id: args.member_id, device: args.device, grace, hub: hub() };
    // Sockets and scores need little; the device thread has the cores.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async { serve::run(options, shutdown::on_signals()?).await })?;
    Ok(exit_code::DONE)
}

fn run_parity(args: &ParityArgs) -> anyhow::Result<u8> {
    let model = hub().resolve(&args.model_dir).map_err(BadInput::from_error)?;
    let outcome = parity::run(&model, args.cases.as_deref(), args.rtol, &mut StandardOutput)
        .map_err(BadInput::from_error)?;
    Ok(if outcome.failed == 0 { exit_code::DONE } else { exit_code::FAILED })
}

fn run_sample(args: SampleArgs) -> anyhow::Result<u8> {
    tch::set_num_threads(i32::from(args.threads.max(1)));
    let device = settings::device(&args.device).map_err(BadInput::from_error)?;
    let model = hub().resolve(&args.model).map_err(BadInput::from_error)?;
    say_stand_ins(&model, args.weights.random_weights)?;
    let report = sample::run(&SampleOptions {
        model,
        variant: args.weights.variant,
        random_weights: args.weights.random_weights,
        dtype: args.weights.dtype,
        adapter: args.adapter,
        prompts: args.prompts,
        out: args.out.clone(),
        steps: args.steps,
        guidance: GuidanceSettings { scale: args.guidance, max_sequence_length: args.max_sequence_length },
        seed: args.seed,
        height: args.height,
        width: args.width,
        images_per_prompt: args.images_per_prompt,
        device,
    })?;
    let seconds = report.duration.as_secs_f64();
    output::print_line(format_args!(
        "{} images in {} ({:.2} images/s, {:.1} network evaluations/s)",
        report.images,
        args.out.display(),
        report.images as f64 / seconds,
        report.network_evaluations as f64 / seconds
    ));
    if let Some(truncated) = report.truncated {
        output::print_error_line(format_args!("warning: {truncated}"));
    }
    Ok(exit_code::DONE)
}

fn run_inspect(args: InspectArgs) -> anyhow::Result<u8> {
    let model = hub().resolve(&args.model).map_err(BadInput::from_error)?;
    say_stand_ins(&model, args.weights.random_weights)?;
    let options = InspectOptions {
        model,
        variant: args.weights.variant,
        random_weights: args.weights.random_weights,
        dtype: args.weights.dtype,
        height: args.height,
        width: args.width,
        guidance: GuidanceSettings { scale: args.guidance, max_sequence_length: args.max_sequence_length },
        adapter: args.rank.map(|rank| LoraConfig { rank, alpha: rank as f64, targets: args.target }),
    };
    let inspection = inspect::run(&options).map_err(BadInput::from_error)?;
    match args.json {
        true => output::print_line(serde_json::to_string(&inspection)?),
        false => output::print_text(inspection),
    }
    Ok(exit_code::DONE)
}

/// Random weights mean nothing, and what stands in for absent tokenizers neither.
fn say_stand_ins(model: &Path, random_weights: bool) -> anyhow::Result<()> {
    if random_weights {
        let lines = inspect::stand_ins(model).map_err(BadInput::from_error)?;
        lines.iter().for_each(|line| output::print_error_line(format_args!("warning: {line}")));
    }
    Ok(())
}

fn run_score(args: ScoreArgs) -> anyhow::Result<u8> {
    // What scorers warn of, such as a prompt that they can make nothing of.
    logging::init(LogFormat::Text, "warn")?;
    tch::set_num_threads(i32::from(args.threads));
    let device = settings::device(&args.device).map_err(BadInput::from_error)?;
    let resources = settings::reward_resources(device, hub());
    let reward = config::reward_from_settings(&args.reward, &args.options).map_err(BadInput::from_error)?;
    let options =
        ScoreOptions { reward, images: args.images, prompts: args.prompts, json: args.json, resources };
    score::run(&options, &mut StandardOutput)?;
    Ok(exit_code::DONE)
}

fn run_serve_reward(args: ServeRewardArgs) -> anyhow::Result<u8> {
    logging::init(args.log_format, "info")?;
    let options = ServeRewardOptions {
        rewards: serve_reward::choices(&args.rewards, &args.options).map_err(BadInput::from_error)?,
        listen: args.listen,
        device: args.device,
        n_threads: args.threads.into(),
        max_queue: args.max_queue.into(),
        hub: hub(),
    };
    let names = args.rewards.join(", ");
    let ready = |address| output::print_line(format_args!("serving {names} at http://{address}"));
    // Sockets need little; the scorers' threads have the cores.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let serve = async { serve_reward::run(options, shutdown::on_signals()?, ready).await };
    Ok(match runtime.block_on(serve)? {
        Ended::Drained => exit_code::DONE,
        Ended::CutOff => exit_code::RETRY,
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
