//! The command line.

use crate::launch::ssh::session::SshCommand;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use service::logging::LogFormat;
use service::trust::TOKEN_ROLES;
use service::{Insecure, OperatorArguments, PeerRole, typed_path};
use std::ops::RangeInclusive;
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
    Status(RunArgs),
    /// Sets the number of rollout workers of a living run.
    Scale {
        /// Of which.
        #[command(flatten)]
        run: RunArgs,
        /// How many there should be.
        #[arg(long)]
        workers: u32,
    },
    /// Lets a living run finish what is in flight, then stops it; `resume` goes on from there.
    Down(RunArgs),
    /// Prints the logs of all processes of a run, merged by time.
    Logs {
        /// Of which.
        #[command(flatten)]
        run: RunArgs,
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
    /// Draws a new token for a role, by which members join from then on; the one before lets nobody in any more.
    Rotate {
        /// Directory of the run, or its name below `runs/`.
        run: String,
        /// `worker`, `learner`, `reward` or `admin`.
        #[arg(long, value_parser = token_role)]
        role: PeerRole,
    },
    /// Copies what was trained: the adapter, as PEFT folder and diffusers LoRA file, or the whole transformer.
    Export {
        /// Of which run.
        #[command(flatten)]
        run: RunArgs,
        /// Where to.
        #[arg(long, value_parser = typed_path())]
        to: PathBuf,
    },
}

/// By which a coordinator elsewhere is reached.
const OPERATOR_ARGUMENTS: [&str; 6] =
    ["coordinator", "token_file", "tls_ca", "tls_certificate", "tls_key", "insecure"];

/// Which run: by its directory, or by its coordinator from a host that has no such directory.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Directory of the run, or its name below `runs/`.
    // All are named: what only `requires` the coordinator is let pass beside an argument that excludes it.
    #[arg(required_unless_present = "coordinator", conflicts_with_all = OPERATOR_ARGUMENTS)]
    pub run: Option<String>,
    /// How the coordinator is found.
    #[command(flatten)]
    pub operator: OperatorArguments,
}

impl RunArgs {
    /// The run as it was typed; empty where its coordinator was.
    pub fn typed(&self) -> &str {
        self.run.as_deref().unwrap_or_default()
    }
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
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub rate: Option<f64>,
}

/// A role that processes join by a token as.
fn token_role(text: &str) -> Result<PeerRole, String> {
    let found = text.parse().ok().filter(|role| TOKEN_ROLES.contains(role));
    found.ok_or_else(|| {
        format!(
            "nobody joins as that by a token; it is one of {}",
            TOKEN_ROLES.map(PeerRole::name).join(", ")
        )
    })
}

/// No worker is slower or faster than that, and times that come of it can be read.
const RATES: RangeInclusive<f64> = 1e-6..=1e9;

fn rate(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if RATES.contains(&number) {
        Ok(number)
    } else {
        Err("must be above 0: 0.000001 to 1000000000".to_owned())
    }
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

/// Seconds without progress after which a member counts as hung.
pub const TASK_DEADLINE: u64 = 600;
/// Seconds without progress after which a member that opens its model counts as hung: the largest models, from a slow disk that
/// many read at a time.
pub const OPENING_DEADLINE: u64 = 1800;
/// Seconds that members get to finish what is in flight.
pub const DRAIN_GRACE: u64 = 120;
/// How hosts are reached.
pub const SSH: &str = "ssh";

/// How a run is brought up, for the first time or again.
#[derive(Clone, Debug, Args)]
pub struct UpOptions {
    /// Number of rollout workers, in place of `resources.workers`.
    #[arg(long)]
    pub workers: Option<u32>,
    /// Where the workers run; without it on this machine, or where they ran before when resuming.
    #[arg(long, value_enum)]
    pub on: Option<Place>,
    /// How `ssh` is called with `--on ssh`, as in `--ssh "ssh -F FILE"`.
    #[arg(long, env = "FLOW_RL_SSH", value_name = "COMMAND", default_value = SSH)]
    pub ssh: SshCommand,
    /// Only print the processes that would be started.
    #[arg(long)]
    pub dry_run: bool,
    /// Return as soon as the run has started, or failed to; it goes on without this terminal.
    #[arg(long, conflicts_with = "dry_run")]
    pub detach: bool,
    /// What `--detach` starts: the same in a session of its own.
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub detached: bool,
    /// Port that members reach the coordinator at, in place of `network.port`; without either any free one, or the one before
    /// when resuming.
    #[arg(long)]
    pub port: Option<u16>,
    /// Speak plain text: where only this host listens, or `=i-know` beyond it, too.
    #[arg(long, value_name = "i-know", num_args = 0..=1, require_equals = true, default_missing_value = "loopback")]
    pub insecure: Option<Insecure>,
    /// Seconds without progress after which a member counts as hung and is replaced. A worker that samples does sooner, once the
    /// times of its tasks are known.
    #[arg(long, default_value_t = TASK_DEADLINE, value_parser = clap::value_parser!(u64).range(1..=LONGEST))]
    pub task_deadline: u64,
    /// Seconds without progress after which a member that opens its model counts as hung and is replaced.
    #[arg(long, default_value_t = OPENING_DEADLINE, value_parser = clap::value_parser!(u64).range(1..=LONGEST))]
    pub opening_deadline: u64,
    /// Seconds that members get to finish what is in flight when the run is stopped.
    #[arg(long, default_value_t = DRAIN_GRACE, value_parser = clap::value_parser!(u64).range(..=LONGEST))]
    pub drain_grace: u64,
}

/// Where the workers of a run are started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// On this machine.
    #[default]
    Local,
    /// On the hosts that the config lists as `[[hosts]]`, by `ssh`; the learner is on this machine.
    Ssh,
    /// As Slurm jobs.
    Slurm,
    /// As Kubernetes pods.
    Kubernetes,
}

impl Place {
    /// Whether it is this machine.
    pub fn is_local(&self) -> bool {
        *self == Self::Local
    }
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
    fn a_run_is_named_by_its_directory_or_its_coordinator_and_never_by_both() {
        let parse = |words: &[&str]| Cli::try_parse_from(["coordinator"].iter().chain(words)).map(drop);
        for words in [
            &["status", "a"][..],
            &["status", "--coordinator", "http://127.0.0.1:1"],
            &["scale", "--workers", "2", "--coordinator", "https://a:1", "--token-file", "admin.token"],
            &[
                "logs",
                "-f",
                "-n",
                "5",
                "--coordinator",
                "https://a:1",
                "--tls-ca=c",
                "--tls-certificate=c",
                "--tls-key=k",
            ],
            &["export", "--to", "b", "--coordinator", "http://a:1", "--insecure=i-know"],
        ] {
            parse(words).expect("valid");
        }
        for (words, told) in [
            (&["status"][..], "RUN"),
            (&["down", "a", "--coordinator", "https://a:1"], "cannot be used with"),
            (&["down", "a", "--token-file", "admin.token"], "cannot be used with"),
            (&["logs", "--coordinator", "https://a:1", "--tls-ca=c"], "--tls-certificate"),
        ] {
            let error = parse(words).expect_err("refused").to_string();
            assert!(error.contains(told), "{words:?}: {error}");
        }
    }

    #[test]
    fn a_rate_is_one_that_a_worker_can_have() {
        let plan =
            |rate: &str| Cli::try_parse_from(["coordinator", "plan", "run.toml", &format!("--rate={rate}")]);
        assert!(plan("1e-6").is_ok() && plan("350.5").is_ok());
        for rate in ["0", "-1", "1e-300", "1e300", "inf", "NaN", "fast"] {
            let told = plan(rate).expect_err("refused").to_string();
            assert!(told.contains("--rate"), "{told}");
        }
    }

    #[test]
    fn tokens_are_rotated_of_roles_that_have_one() {
        let rotate = |role| Cli::try_parse_from(["coordinator", "rotate", "a", "--role", role]);
        for role in ["worker", "learner", "reward", "admin"] {
            assert!(rotate(role).is_ok(), "{role}");
        }
        for role in ["coordinator", "nobody", ""] {
            let told = rotate(role).expect_err("refused").to_string();
            assert!(told.contains("one of worker, learner, reward, admin"), "{told}");
        }
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
