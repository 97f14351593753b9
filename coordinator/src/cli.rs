//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use service::logging::LogFormat;
use service::typed_path;
use std::path::PathBuf;

/// Seconds that anything can be waited for: a year, which clocks can add to any time.
const LONGEST: u64 = 366 * 24 * 3600;

/// Starts, watches and steers training runs.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version)]
pub struct Cli {
    /// How progress and logs are written: `text` or `json`.
    #[arg(long, global = true, default_value_t)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the coordinator can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Brings a run up and follows it to its end.
    Up(UpArgs),
    /// Goes on with a run that was stopped or killed, from its own config.
    Resume(ResumeArgs),
    /// Shows how a run is doing.
    Status {
        /// Directory of the run, or its name below `runs/`.
        run: String,
    },
    /// Sets the number of rollout workers of a living run.
    Scale {
        /// Directory of the run, or its name below `runs/`.
        run: String,
        /// How many there should be.
        #[arg(long)]
        workers: u32,
    },
    /// Lets a living run finish what is in flight, then stops it; `resume` goes on from there.
    Down {
        /// Directory of the run, or its name below `runs/`.
        run: String,
    },
    /// Prints the logs of all processes of a run, merged by time.
    Logs {
        /// Directory of the run, or its name below `runs/`.
        run: String,
        /// Go on printing as they grow.
        #[arg(long, short)]
        follow: bool,
        /// Only the last N lines of them all.
        #[arg(long, short = 'n', value_name = "N")]
        tail: Option<usize>,
    },
    /// Writes a commented run config: a preset, or one that branches off a run.
    Init {
        /// Which one to start from.
        #[arg(long, default_value = config::preset_names()[0], conflicts_with = "from")]
        preset: String,
        /// A run to branch off, by its directory or its name below `runs/`: its settings, and what it has trained.
        #[arg(long, value_name = "RUN", conflicts_with = "list")]
        from: Option<String>,
        /// The checkpoint to branch off, by its iteration; the newest if not given.
        #[arg(long, value_name = "N", requires = "from")]
        checkpoint: Option<u32>,
        /// A key that the branch has otherwise, as in `--set run.seed=7`; may be given often.
        #[arg(long = "set", value_name = "SECTION.KEY=VALUE", requires = "from")]
        settings: Vec<String>,
        /// Only list the presets: name, model, algorithm, reward and where the numbers come from.
        #[arg(long)]
        list: bool,
        /// Where to write it.
        #[arg(required_unless_present = "list", value_parser = typed_path())]
        file: Option<PathBuf>,
    },
    /// Makes a run config of a Flow-Factory YAML and reports what became of every key.
    Import {
        /// The YAML.
        #[arg(value_parser = typed_path())]
        yaml: PathBuf,
        /// Where to write the run config.
        #[arg(value_parser = typed_path())]
        file: PathBuf,
    },
    /// Checks a run config and all that it names: files, model, prompts, rewards and their servers, device.
    Validate(ConfigArgs),
    /// Shows what a run will cost.
    Plan(PlanArgs),
    /// Copies what was trained: the adapter, as PEFT folder and diffusers LoRA file, or the whole transformer.
    Export {
        /// Directory of the run, or its name below `runs/`.
        run: String,
        /// Where to.
        #[arg(long, value_parser = typed_path())]
        to: PathBuf,
    },
}

/// Which run config.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// The run config.
    #[arg(value_parser = typed_path())]
    pub file: PathBuf,
    /// A key on top of the file, as in `--set run.seed=7`; may be given often.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
}

/// What to plan.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// Which run.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Guided network evaluations per second of one worker, as `rollout-worker sample` tells them. Without it, time is
    /// that of the run itself so far, where it has begun.
    #[arg(long, value_name = "RATE", value_parser = positive)]
    pub rate: Option<f64>,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err("must be above 0".to_owned()) }
}

/// How to bring a run up.
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Which run.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Go on with a run that was stopped, with the settings of this file.
    #[arg(long)]
    pub resume: bool,
    /// Goes on with prompts or model files other than those that the run began with, or that nothing is left to compare
    /// with; noted in its `inputs.json`.
    #[arg(long, requires = "resume")]
    pub accept_changed_data: bool,
    /// How.
    #[command(flatten)]
    pub options: UpOptions,
    /// Where the command was typed, if that directory has been left since.
    #[arg(skip)]
    pub typed_in: Option<std::path::PathBuf>,
}

/// How to go on with a run.
#[derive(Clone, Debug, Args)]
pub struct ResumeArgs {
    /// Directory of the run, or its name below `runs/`.
    pub run: String,
    /// A key on top of the run's own config, as in `--set run.iterations=300`; may be given often.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Goes on with prompts or model files other than those that the run began with, or that nothing is left to compare
    /// with; noted in its `inputs.json`.
    #[arg(long)]
    pub accept_changed_data: bool,
    /// How.
    #[command(flatten)]
    pub options: UpOptions,
}

/// Seconds without progress after which a worker counts as hung.
pub const TASK_DEADLINE: u64 = 600;
/// Seconds that members get to finish what is in flight.
pub const DRAIN_GRACE: u64 = 120;

/// How a run is brought up, for the first time or again.
#[derive(Clone, Debug, Args)]
pub struct UpOptions {
    /// Number of rollout workers, in place of `resources.workers`.
    #[arg(long)]
    pub workers: Option<u32>,
    /// Where the processes run.
    #[arg(long, value_enum, default_value_t = Place::Local)]
    pub on: Place,
    /// Only print the processes that would be started.
    #[arg(long)]
    pub dry_run: bool,
    /// Return as soon as the run has started, or failed to; it goes on without this terminal.
    #[arg(long, conflicts_with = "dry_run")]
    pub detach: bool,
    /// What `--detach` starts: the same in a session of its own.
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub detached: bool,
    /// Port that members reach the coordinator at; without it any free one, or the one before when resuming.
    #[arg(long)]
    pub port: Option<u16>,
    /// Seconds without progress after which a worker counts as hung and is replaced.
    #[arg(long, default_value_t = TASK_DEADLINE, value_parser = clap::value_parser!(u64).range(1..=LONGEST))]
    pub task_deadline: u64,
    /// Seconds that members get to finish what is in flight when the run is stopped.
    #[arg(long, default_value_t = DRAIN_GRACE, value_parser = clap::value_parser!(u64).range(..=LONGEST))]
    pub drain_grace: u64,
}

/// Where the processes of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Place {
    /// On this machine.
    Local,
    /// As Slurm jobs.
    Slurm,
    /// As Kubernetes pods.
    Kubernetes,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn paths_in_quotes_are_expanded() {
        let home = service::expand_path("~".as_ref());
        for line in [
            &["validate", "~/a.toml"][..],
            &["export", "a", "--to", "$HOME/a.toml"],
            &["init", "${HOME}/a.toml"],
            &["import", "~/a.yaml", "~/a.toml"],
            &["up", "~/a.toml"],
        ] {
            let parsed = Cli::try_parse_from(["coordinator"].iter().chain(line)).expect("valid");
            let path = match parsed.command {
                Command::Validate(args) => args.file,
                Command::Up(args) => args.config.file,
                Command::Export { to, .. } => to,
                Command::Init { file, .. } => file.expect("given"),
                Command::Import { yaml, file } => {
                    assert_eq!(yaml, home.join("a.yaml"));
                    file
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(path, home.join("a.toml"), "{line:?}");
        }
    }
}
