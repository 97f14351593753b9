//! What every member of a run is told on its command line.

use crate::environment::expand_path;
use crate::hub::{Hub, ModelNotFound};
use crate::logging::LogFormat;
use crate::output::end_unless_written;
use clap::Parser;
use clap::builder::{PathBufValueParser, TypedValueParser};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Parses the path of a file or folder on this machine and makes it absolute, so that whatever is said of it later says
/// where it was looked for. Expanded as a config's paths are: a shell leaves what is in quotes alone, as in
/// `--out="~/images"`.
pub fn path_argument() -> impl TypedValueParser<Value = PathBuf> {
    typed_path().try_map(std::path::absolute)
}

/// The same where a relative path stays one.
pub fn typed_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| expand_path(&path))
}

/// The arguments of this process. Ends it where they are wrong, and where help or version were asked for: as a failure if
/// they could not be written.
pub fn parse_arguments<P: Parser>() -> P {
    P::try_parse().unwrap_or_else(|answer| {
        let printed = answer.print().and_then(|()| std::io::stdout().flush());
        if !answer.use_stderr() {
            end_unless_written(printed);
        }
        std::process::exit(answer.exit_code())
    })
}

/// The folder of a model as a user names it, absolute; what [`Hub::resolve`] leaves alone is looked for from the working
/// directory.
///
/// # Errors
/// If it reads as a repository that the cache does not have.
pub fn model_folder(model: &Path, hub: &Hub) -> Result<PathBuf, ModelNotFound> {
    let folder = hub.resolve(&expand_path(model))?;
    Ok(std::path::absolute(&folder).unwrap_or(folder))
}

/// How a process finds the coordinator and logs; to be flattened into the arguments of its `serve` command.
#[derive(Clone, Debug, clap::Args)]
pub struct MemberArguments {
    /// Address of the coordinator, `http://host:port`.
    #[arg(long, env = "FLOW_RL_COORDINATOR")]
    pub coordinator: String,
    /// Seconds that an absent coordinator is waited for.
    #[arg(long, env = "FLOW_RL_COORDINATOR_GRACE", default_value = "60", value_parser = parse_seconds)]
    pub coordinator_grace: Duration,
    /// `text` or `json`.
    #[arg(long, env = "FLOW_RL_LOG_FORMAT", default_value_t)]
    pub log_format: LogFormat,
}

/// What every environment variable begins with that stands for an argument of one of the programs.
const VARIABLE_PREFIX: &str = "FLOW_RL_";

/// Arguments of a program and its commands whose environment variables could mean something to others: `DEVICE` or
/// `LISTEN` may be set for any program. For the tests of the programs, which expect none.
pub fn unprefixed_variables(command: &clap::Command) -> Vec<String> {
    let variables = command.get_arguments().filter_map(|argument| argument.get_env());
    let variables = variables.map(|variable| variable.to_string_lossy().into_owned());
    let own = variables.filter(|variable| !variable.starts_with(VARIABLE_PREFIX));
    own.chain(command.get_subcommands().flat_map(unprefixed_variables)).collect()
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    // Clocks can add a year to any time, but not any duration.
    match seconds <= 366.0 * 24.0 * 3600.0 {
        true => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        false => Err("must be at most a year".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        member: MemberArguments,
    }

    #[test]
    fn variables_have_a_prefix_and_one_without_is_found_in_any_command() {
        use clap::CommandFactory;
        assert_eq!(unprefixed_variables(&Program::command()), Vec::<String>::new());
        let generic = clap::Command::new("serve").arg(clap::Arg::new("device").long("device").env("DEVICE"));
        assert_eq!(unprefixed_variables(&Program::command().subcommand(generic)), ["DEVICE"]);
    }

    fn parse(arguments: &[&str]) -> Result<MemberArguments, String> {
        let words = ["program", "--coordinator", "http://here:1"].iter().chain(arguments);
        Program::try_parse_from(words).map(|program| program.member).map_err(|error| error.to_string())
    }

    #[test]
    fn paths_become_absolute_and_are_not_empty() {
        #[derive(Debug, Parser)]
        struct WithPath {
            #[arg(long, value_parser = path_argument())]
            out: PathBuf,
        }
        let out = |text: &str| WithPath::try_parse_from(["program", "--out", text]).map(|parsed| parsed.out);
        let here = std::env::current_dir().expect("a directory");
        assert_eq!(out("a/b").expect("a path"), here.join("a/b"));
        assert_eq!(out("/a/b").expect("a path"), PathBuf::from("/a/b"));
        assert!(out("").expect_err("refused").to_string().contains("--out"));
        let home = expand_path(Path::new("~"));
        assert_eq!(out("~/a").expect("a path"), home.join("a"));
        assert_eq!(out("$HOME/a").expect("a path"), home.join("a"));
    }

    #[test]
    fn a_model_that_is_not_there_says_from_where_it_was_looked_for() {
        let (here, hub) = (std::env::current_dir().expect("a directory"), Hub::at("/nowhere"));
        assert_eq!(model_folder(Path::new("./tiny"), &hub).expect("left alone"), here.join("./tiny"));
        assert_eq!(model_folder(Path::new("/tiny"), &hub).expect("left alone"), PathBuf::from("/tiny"));
        assert!(model_folder(Path::new("~/tiny"), &hub).expect("left alone").is_absolute());
        assert_eq!(model_folder(Path::new("~/tiny"), &hub).expect("found"), expand_path(Path::new("~/tiny")));
        let error = model_folder(Path::new("org/tiny"), &hub).expect_err("nowhere").to_string();
        assert!(error.contains(&here.display().to_string()), "{error}");
    }

    #[test]
    fn seconds_may_be_fractions_but_not_negative() {
        assert_eq!(parse(&[]).expect("valid").coordinator_grace, Duration::from_secs(60));
        let grace = parse(&["--coordinator-grace", "0.5"]).expect("valid").coordinator_grace;
        assert_eq!(grace, Duration::from_millis(500));
        for odd in ["--coordinator-grace=-1", "--coordinator-grace=inf", "--coordinator-grace=soon"] {
            let message = parse(&[odd]).expect_err("refused");
            assert!(message.contains("--coordinator-grace"), "{message}");
        }
    }
}
