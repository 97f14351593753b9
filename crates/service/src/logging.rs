//! Logs go to standard error, as text or as one JSON object per line; `RUST_LOG` chooses what is shown.

use crate::recent_log::Keeping;
use crate::{RecentLog, ServiceError};
use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("unknown log format `{other}`; write `text` or `json`")),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Sets up logging for the whole process; shows `default_filter` (say, `info`) unless `RUST_LOG` is set. What is returned keeps
/// the last lines.
///
/// # Errors
/// If `RUST_LOG` does not parse or logging was set up before.
pub fn init(format: LogFormat, default_filter: &str) -> Result<RecentLog, ServiceError> {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let ansi = std::io::stderr().is_terminal() && !no_color;
    let recent = RecentLog::default();
    let writer = Keeping { recent: recent.clone(), output: std::io::stderr };
    start(format, default_filter, writer, ansi)?;
    Ok(recent)
}

/// As [`init`], but lines go to `writer`, uncoloured.
///
/// # Errors
/// As [`init`].
pub fn init_to<W>(format: LogFormat, default_filter: &str, writer: W) -> Result<(), ServiceError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    start(format, default_filter, writer, false)
}

fn start<W>(format: LogFormat, default_filter: &str, writer: W, ansi: bool) -> Result<(), ServiceError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let broken = |reason: String| ServiceError::Logging { reason };
    let directives = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(directives) if !directives.is_empty() => directives,
        _ => default_filter.to_owned(),
    };
    let filter = EnvFilter::try_new(directives).map_err(|error| broken(error.to_string()))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(ansi);
    // It would be told on standard error, by a macro that panics where that is closed, as with a terminal that is gone.
    let subscriber = subscriber.log_internal_errors(false);
    let outcome = match format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    outcome.map_err(|error| broken(error.to_string()))
}
