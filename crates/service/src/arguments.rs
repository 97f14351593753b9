//! What every member of a run is told on its command line.

use crate::logging::LogFormat;
use std::time::Duration;

/// How a process finds the coordinator and logs; to be flattened into the arguments of its `serve` command.
#[derive(Clone, Debug, clap::Args)]
pub struct MemberArguments {
    /// Address of the coordinator, `http://host:port`.
    #[arg(long, env)]
    pub coordinator: String,
    /// Seconds that an absent coordinator is waited for.
    #[arg(long, env, default_value = "60", value_parser = parse_seconds)]
    pub coordinator_grace: Duration,
    /// `text` or `json`.
    #[arg(long, env, default_value_t)]
    pub log_format: LogFormat,
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
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        member: MemberArguments,
    }

    fn parse(arguments: &[&str]) -> Result<MemberArguments, String> {
        let words = ["program", "--coordinator", "http://here:1"].iter().chain(arguments);
        Program::try_parse_from(words).map(|program| program.member).map_err(|error| error.to_string())
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
