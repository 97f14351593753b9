//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use service::logging::LogFormat;
use std::path::PathBuf;

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
    /// Lets a living run finish what is in flight, then stops it; `up --resume` goes on from there.
    Down {
        /// Directory of the run, or its name below `runs/`.
        run: String,
    },
    /// Prints the logs of all processes of a run.
    Logs {
        /// Directory of the run, or its name below `runs/`.
        run: String,
        /// Go on printing as they grow.
        #[arg(long, short)]
        follow: bool,
    },
    /// Writes a commented run config.
    Init {
        /// Which one to start from.
        #[arg(long, default_value = config::preset_names()[0])]
        preset: String,
        /// Only list the presets: name, model, algorithm, reward and where the numbers come from.
        #[arg(long)]
        list: bool,
        /// Where to write it.
        #[arg(required_unless_present = "list")]
        file: Option<PathBuf>,
    },
    /// Makes a run config of a Flow-Factory YAML and reports what became of every key.
    Import {
        /// The YAML.
        yaml: PathBuf,
        /// Where to write the run config.
        file: PathBuf,
    },
    /// Checks a run config and its files and names every error.
    Validate(ConfigArgs),
    /// Shows what a run will cost.
    Plan(ConfigArgs),
    /// Copies what was trained: the adapter, as PEFT folder and diffusers LoRA file, or the whole transformer.
    Export {
        /// Directory of the run, or its name below `runs/`.
        run: String,
        /// Where to.
        #[arg(long)]
        to: PathBuf,
    },
}

/// Which run config.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// The run config.
    pub file: PathBuf,
    /// A key on top of the file, as in `--set run.seed=7`; may be given often.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub settings: Vec<String>,
}

/// How to bring a run up.
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Which run.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Number of rollout workers, in place of `resources.workers`.
    #[arg(long)]
    pub workers: Option<u32>,
    /// Where the processes run.
    #[arg(long, value_enum, default_value_t = Place::Local)]
    pub on: Place,
    /// Only print the processes that would be started.
    #[arg(long)]
    pub dry_run: bool,
    /// Go on with a run that was stopped.
    #[arg(long)]
    pub resume: bool,
    /// Goes on with prompts or model files other than those that the run began with; noted in its `inputs.json`.
    #[arg(long, requires = "resume")]
    pub accept_changed_data: bool,
    /// Port that members reach the coordinator at; without it any free one, or the one before when resuming.
    #[arg(long)]
    pub port: Option<u16>,
    /// Seconds without progress after which a worker counts as hung and is replaced.
    #[arg(long, default_value_t = 600)]
    pub task_deadline: u64,
    /// Seconds that members get to finish what is in flight when the run is stopped.
    #[arg(long, default_value_t = 120)]
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
}
