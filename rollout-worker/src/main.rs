//! Command line of the rollout worker.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, Subcommand};
use config::{
    Algorithm, BranchSteps, ComputeDevice, Dtype, RatioNormalization, RewardInquiry, StepRule, StepWeight,
};
use models::lora::LoraConfig;
use models::reference_case::{ParityOptions, TOLERANCE, parse_tolerance};
use models::weights::WeightOptions;
use rewards::RunIdentity;
use rollout_worker::bad_input::BadInput;
use rollout_worker::commands::argument_parsers::{finite, step_rule, tokens};
use rollout_worker::commands::inspect::{self, InspectOptions};
use rollout_worker::commands::sample::{self, arguments::SampleArguments};
use rollout_worker::commands::score::{self, ScoreOptions};
use rollout_worker::commands::serve_reward::{self, ServeEnd, ServeRewardOptions};
use rollout_worker::commands::{inspect_rewards, parity};
use rollout_worker::sampling::guided_model::GuidanceSettings;
use rollout_worker::scoring::reward_resources::reward_resources;
use rollout_worker::serve::{self, ServeOptions};
use run_setup::StepSettings;
use service::logging::LogFormat;
use service::network::ListenAddress;
use service::output::{self, StandardOutput};
use service::trust::plain_text_rewards;
use service::{
    ComputeArguments, Hub, MemberArguments, OperatorArguments, PeerRole, RewardServerArguments, ServiceError,
    cuda, exit_code, logging, model_folder, parse_seconds, path_argument, shutdown, trust_by,
};

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
    Sample(Box<SampleArguments>),
    /// Scores image files.
    Score(ScoreArgs),
    /// Says what a model is, and what is wrong with its folder, without reading its weights.
    Inspect(Box<InspectArgs>),
    /// Reads rewards as JSON from its standard input, as the coordinator writes them, and says whether they could be built here.
    InspectRewards,
    /// Says whether a device is here.
    InspectDevice {
        /// `cpu`, `cuda` or `cuda:N`.
        device: ComputeDevice,
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
    /// `cpu`, `cuda` or `cuda:N`; the run config's device if not given.
    #[arg(long, env = "FLOW_RL_DEVICE")]
    device: Option<ComputeDevice>,
    /// Where this process listens for other workers, which fetch weights from it: an address, interface or subnet of this host, and a
    /// port or range of ports, as in `eth0:7200-7299`; by default at the address by which it speaks to the coordinator, at a port
    /// of the run's range or any. Not at all where the run has `network.weights_relay = false`.
    #[arg(long, env = "FLOW_RL_LISTEN", value_name = "HOST:PORT")]
    listen: Option<ListenAddress>,
    /// What other workers are told to reach it by: an address, host name, interface or subnet; follows `--listen` if not given.
    #[arg(long, env = "FLOW_RL_ADVERTISE", default_value = "", value_name = "HOST")]
    advertise: String,
    /// Seconds between the signal that asks this process to end (SIGTERM, SIGINT or SIGUSR1) and its being killed, where a
    /// scheduler preempts it. A task that takes longer than is left is given back at once for others to run; without a notice
    /// it is drawn to its end.
    #[arg(long, env = "FLOW_RL_NOTICE", value_name = "SECONDS", value_parser = parse_seconds)]
    notice: Option<Duration>,
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
    #[command(flatten)]
    compute: ComputeArguments,
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
    #[arg(long, default_value = "float32")]
    dtype: Dtype,
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
    #[arg(long, value_parser = path_argument())]
    images: PathBuf,
    /// Prompts: `.txt`, `.jsonl`, `.ndjson`, `.json`, `.csv` or `.tsv`.
    #[arg(long, value_parser = path_argument())]
    prompts: PathBuf,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
    /// `cpu`, `cuda` or `cuda:N`.
    #[arg(long, env = "FLOW_RL_DEVICE", default_value = "cpu")]
    device: ComputeDevice,
    /// CPU threads of tensor operations.
    #[arg(long, env = "FLOW_RL_THREADS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    #[command(flatten)]
    operator: OperatorArguments,
}

/// Which steps are trained, and how, in the words of a run config.
#[derive(clap::Args)]
struct StepArgs {
    /// Denoising steps, to be told the weights of the trained ones in the policy loss.
    #[arg(long)]
    steps: Option<usize>,
    /// `flow-sde` or `cps`.
    #[arg(long, requires = "steps", default_value = "flow-sde", value_parser = step_rule)]
    step_rule: StepRule,
    /// Noise level of a random step.
    #[arg(long, requires = "steps", default_value_t = 0.7, value_parser = finite)]
    noise_level: f64,
    /// Which steps are trained.
    #[arg(long, requires = "steps", default_value = "all", value_parser = BranchSteps::from_str)]
    branch_steps: BranchSteps,
    /// Weight of a step [default: that of a run config of TempFlow-GRPO with this step rule].
    #[arg(long, requires = "steps", value_parser = StepWeight::from_str)]
    step_weight: Option<StepWeight>,
}

#[derive(clap::Args)]
struct InspectArgs {
    /// Pipeline folder in the diffusers layout, or `org/name` or `org/name@revision` in the Hugging Face cache.
    model: PathBuf,
    #[command(flatten)]
    weights: ModelArgs,
    /// Height in pixels; the model's own if not given.
    #[arg(long, allow_negative_numbers = true)]
    height: Option<i64>,
    /// Width in pixels; the model's own if not given.
    #[arg(long, allow_negative_numbers = true)]
    width: Option<i64>,
    /// Strength of guidance.
    #[arg(long, allow_negative_numbers = true, default_value_t = 4.5, value_parser = finite)]
    guidance: f64,
    /// Strength of guidance of held-out images; as the other if not given.
    #[arg(long, value_parser = finite)]
    evaluation_guidance: Option<f64>,
    /// Tokens of the long part of a prompt.
    #[arg(long, default_value_t = 128, value_parser = tokens)]
    max_sequence_length: usize,
    /// Denoising steps that the model must have a schedule of; may be given often.
    #[arg(long)]
    schedule_steps: Vec<usize>,
    #[command(flatten)]
    steps: StepArgs,
    /// Rank of an adapter.
    #[arg(long, allow_negative_numbers = true, requires = "target")]
    rank: Option<i64>,
    /// Alpha of the adapter; as its rank if not given.
    #[arg(long, requires = "rank", value_parser = finite)]
    alpha: Option<f64>,
    /// A module that gets an adapter, by its name or the end of its path; may be given often.
    #[arg(long, requires = "rank")]
    target: Vec<String>,
    /// The adapter that training goes on from: a PEFT folder, or a LoRA file as diffusers writes it.
    #[arg(long, requires = "rank", value_parser = path_argument())]
    start_from: Option<PathBuf>,
    /// Side in pixels of the tiles that images are decoded in; whole if not given.
    #[arg(long)]
    vae_tile: Option<i64>,
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
    /// Where to listen: a number, interface or subnet of this host and a port or several, as in `127.0.0.1:17200` or
    /// `eth0:17200-17299`; port 0 takes a free one. The line on standard output tells which.
    #[arg(long, env = "FLOW_RL_LISTEN")]
    listen: ListenAddress,
    /// What callers reach it by, for that line: an address, host name, interface or subnet; follows `--listen` if not given.
    #[arg(long, env = "FLOW_RL_ADVERTISE", default_value = "")]
    advertise: String,
    /// `cpu`, `cuda` or `cuda:N`.
    #[arg(long, env = "FLOW_RL_DEVICE", default_value = "cpu")]
    device: ComputeDevice,
    /// Batches of each scorer that may wait; more are refused for the time being.
    #[arg(long, env = "FLOW_RL_MAX_QUEUE", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    max_queue: u16,
    /// CPU threads of each scorer's tensor operations.
    #[arg(long, env = "FLOW_RL_THREADS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    #[command(flatten)]
    security: RewardServerArguments,
    /// `text` or `json`.
    #[arg(long, env = "FLOW_RL_LOG_FORMAT", default_value_t)]
    log_format: LogFormat,
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

fn run(args: Args) -> anyhow::Result<u8> {
    cuda::load_where_wanted(args.command.device()?).map_err(BadInput::from_error)?;
    // Once per process, before the first tensor.
    tch::set_num_interop_threads(1);
    match args.command {
        Command::Serve(args) => run_serve(args),
        Command::Parity(args) => run_parity(&args),
        Command::Sample(args) => run_sample(*args),
        Command::Score(args) => run_score(args),
        Command::Inspect(args) => run_inspect(*args),
        Command::InspectRewards => run_inspect_rewards(),
        Command::InspectDevice { device } => {
            run_setup::open_device(device).map_err(cuda::explained).map_err(BadInput::from_error)?;
            Ok(exit_code::DONE)
        }
        Command::ServeReward(args) => run_serve_reward(args),
    }
}

impl Command {
    /// The device asked for; `None` where the run will name it.
    fn device(&self) -> anyhow::Result<Option<ComputeDevice>> {
        Ok(match self {
            Self::Serve(args) => args.device,
            Self::Sample(args) => Some(args.device()?),
            Self::Score(args) => Some(args.device),
            Self::ServeReward(args) => Some(args.device),
            Self::InspectDevice { device } => Some(*device),
            Self::Parity(args) => Some(args.compute.device),
            Self::Inspect(_) | Self::InspectRewards => Some(ComputeDevice::Cpu),
        })
    }
}

/// The models of this machine.
fn hub() -> Hub {
    Hub::from_environment(|name| std::env::var_os(name))
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
    error.downcast_ref::<ServiceError>().map_or(exit_code::FAILED, ServiceError::exit_code)
}

fn run_serve(args: ServeArgs) -> anyhow::Result<u8> {
    let log = logging::init(args.member.log_format, "info")?;
    let credentials = args.member.credentials()?;
    let MemberArguments { coordinator, coordinator_grace: grace, metrics_listen, .. } = args.member;
    // Sockets and scores need little; the device thread has the cores.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // Before anything that takes long, so that a signal finds its handler.
    let shutdown = runtime.block_on(async { shutdown::on_signals() })?;
    if let Some(device) = args.device {
        run_setup::open_device(device).map_err(cuda::explained).map_err(BadInput::from_error)?;
    }
    let ServeArgs { member_id, device, listen, advertise, notice, .. } = args;
    let options = ServeOptions {
        coordinator,
        credentials,
        member_id,
        device,
        listen,
        advertise,
        metrics_listen,
        grace,
        notice,
        log,
        hub: hub(),
    };
    let outcome = runtime.block_on(serve::run(options, shutdown));
    // What is still computed or waited for is of no use to anybody.
    runtime.shutdown_background();
    outcome?;
    Ok(exit_code::DONE)
}

fn run_parity(args: &ParityArgs) -> anyhow::Result<u8> {
    let model = model_folder(&args.model_dir, &hub()).map_err(BadInput::from_error)?;
    let ComputeArguments { device, dtype } = args.compute;
    let device = run_setup::open_device(device).map_err(cuda::explained).map_err(BadInput::from_error)?;
    let weights = WeightOptions::new(run_setup::element_type(dtype), device);
    let options = ParityOptions { model: &model, cases: args.cases.as_deref(), rtol: args.rtol, weights };
    let outcome = parity::run(&options, &mut StandardOutput).map_err(BadInput::from_error)?;
    Ok(if outcome.failed == 0 { exit_code::DONE } else { exit_code::FAILED })
}

fn run_sample(args: SampleArguments) -> anyhow::Result<u8> {
    let options = args.resolve(&hub())?;
    tch::set_num_threads(options.threads as i32);
    say_stand_ins(&options.model, options.weights.source.is_without_files())?;
    let report = sample::run(&options)?;
    let seconds = report.duration.as_secs_f64();
    output::print_line(format_args!(
        "{} images in {} ({:.2} images/s, {:.1} network evaluations/s)",
        report.images,
        options.out.display(),
        report.images as f64 / seconds,
        report.network_evaluations as f64 / seconds
    ));
    for part in report.left_out {
        output::print_error_line(format_args!(
            "warning: {part} in the adapter's file are left out; only the transformer is adapted here"
        ));
    }
    if let Some(trained) = options.trained {
        output::print_line(format_args!("drawn with {}", trained.display()));
    }
    if let Some(truncated) = report.truncated {
        output::print_error_line(format_args!("warning: {truncated}"));
    }
    if report.other_images > 0 {
        let (n_others, out) = (report.other_images, options.out.display());
        output::print_error_line(format_args!(
            "warning: {out} holds {n_others} other images, which `score` takes as well"
        ));
    }
    Ok(exit_code::DONE)
}

fn run_inspect(args: InspectArgs) -> anyhow::Result<u8> {
    let model = model_folder(&args.model, &hub()).map_err(BadInput::from_error)?;
    say_stand_ins(&model, args.weights.random_weights)?;
    let (alpha, targets) = (args.alpha, args.target.into());
    let lora = |rank: i64| LoraConfig { rank, alpha: alpha.unwrap_or(rank as f64), targets };
    let options = InspectOptions {
        model,
        variant: args.weights.variant,
        random_weights: args.weights.random_weights,
        dtype: args.weights.dtype,
        height: args.height,
        width: args.width,
        guidance: GuidanceSettings { scale: args.guidance, max_sequence_length: args.max_sequence_length },
        evaluation_guidance_scale: args.evaluation_guidance.unwrap_or(args.guidance),
        tile: args.vae_tile,
        schedule_steps: args.schedule_steps,
        steps: trained_steps(args.steps),
        adapter: args.rank.map(lora),
        start_from: args.start_from,
    };
    let inspection = inspect::run(&options).map_err(BadInput::from_error)?;
    let left_out = inspection.adapter.iter().flat_map(|adapter| &adapter.left_out);
    left_out.for_each(|part| {
        output::print_error_line(format_args!(
            "warning: {part} are left out; only the transformer is trained"
        ));
    });
    match args.json {
        true => output::print_line(serde_json::to_string(&inspection)?),
        false => output::print_text(inspection),
    }
    Ok(exit_code::DONE)
}

fn trained_steps(args: StepArgs) -> Option<(usize, StepSettings)> {
    let StepArgs { steps, step_rule, noise_level, branch_steps, step_weight } = args;
    let usual = config::default_step_weight(Algorithm::TempflowGrpo, step_rule, RatioNormalization::None);
    let step_weight = step_weight.unwrap_or(usual);
    steps.map(|steps| (steps, StepSettings { step_rule, noise_level, branch_steps, step_weight }))
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
    let opened = run_setup::open_device(args.device).map_err(cuda::explained);
    let device = opened.map_err(BadInput::from_error)?;
    let mut reward =
        config::reward_from_settings(&args.reward, &args.options).map_err(BadInput::from_error)?;
    reward.expand_paths(service::expand_path);
    if let Some(exposed) = plain_text_rewards([&reward]) {
        tracing::warn!("{exposed}");
    }
    // Its certificate is renewed for as long as this lives.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let run = runtime.block_on(operator_identity(&args.operator))?;
    let resources = reward_resources(device, hub(), run);
    let options =
        ScoreOptions { reward, images: args.images, prompts: args.prompts, json: args.json, resources };
    score::run(&options, &mut StandardOutput)?;
    Ok(exit_code::DONE)
}

/// What an operator shows to reward servers of the run whose coordinator is named, if one is.
async fn operator_identity(operator: &OperatorArguments) -> Result<RunIdentity, ServiceError> {
    let Some((_, security)) = operator.credentials()? else { return Ok(RunIdentity::None) };
    Ok(RunIdentity::from(&trust_by(security, PeerRole::Admin, Duration::ZERO).await?))
}

fn run_serve_reward(args: ServeRewardArgs) -> anyhow::Result<u8> {
    logging::init(args.log_format, "info")?;
    let mut rewards = serve_reward::choices(&args.rewards, &args.options).map_err(BadInput::from_error)?;
    rewards.iter_mut().for_each(|reward| reward.expand_paths(service::expand_path));
    let (credentials, grace) = (args.security.credentials()?, args.security.coordinator_grace);
    let options = ServeRewardOptions {
        credentials,
        grace,
        rewards,
        listen: args.listen,
        advertise: args.advertise,
        device: args.device,
        n_threads: args.threads.into(),
        max_queue: args.max_queue.into(),
        hub: hub(),
    };
    let names = args.rewards.join(", ");
    // Who asked for a free port reads which one it is; whoever did not may have gone, and is served all the same.
    let ready = |url: &str| {
        let _ = writeln!(std::io::stdout(), "serving {names} at {url}");
    };
    // Sockets need little; the scorers' threads have the cores.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let serve = async { serve_reward::run(options, shutdown::on_signals()?, ready).await };
    Ok(match runtime.block_on(serve)? {
        ServeEnd::Drained => exit_code::DONE,
        ServeEnd::CutOff => exit_code::RETRY,
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
