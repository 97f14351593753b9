//! What a person, or a program, sees of a living run: a live line on a terminal, plain lines elsewhere, or JSON.

use crate::account::{Room, evaluation_line, progress_line, summary_table};
use crate::error::CoordinatorError;
use crate::results::{HeldOutReward, RunSummary};
use crate::view::{Overview, to_json};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use service::logging::LogFormat;
use service::visible;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// Time between two plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Where progress goes.
pub struct Display {
    style: Style,
    log_file: Arc<OnceLock<File>>,
    shown_at: Option<Instant>,
    /// Version of the newest evaluation that was shown.
    shown_evaluation: Option<u32>,
}

enum Style {
    Live(ProgressBar),
    Plain,
    Json,
}

impl Display {
    /// A live line if both standard streams are a terminal, unless JSON is asked for.
    pub fn new(format: LogFormat) -> Self {
        let is_terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        let style = match format {
            LogFormat::Json => Style::Json,
            LogFormat::Text if is_terminal => Style::Live(live_line()),
            LogFormat::Text => Style::Plain,
        };
        Self { style, log_file: Arc::default(), shown_at: None, shown_evaluation: None }
    }

    /// Where log lines go: to standard error, but only warnings where there is a live line, and to the log file.
    pub fn log_writer(&self) -> LogWriter {
        let bar = match &self.style {
            Style::Live(bar) => Some(bar.clone()),
            Style::Plain | Style::Json => None,
        };
        LogWriter { bar, file: self.log_file.clone(), to_terminal: true }
    }

    /// Appends log lines to a file from now on.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn log_to(&self, path: &Path) -> Result<(), CoordinatorError> {
        let file = File::options().create(true).append(true).open(path);
        let file =
            file.map_err(|source| CoordinatorError::File { action: "open", path: path.to_owned(), source })?;
        self.log_file.get_or_init(|| file);
        Ok(())
    }

    /// Shows how far the run is; cheap to call often.
    pub fn update(&mut self, overview: &Overview, now: Instant) {
        let is_new = |evaluation: &HeldOutReward| self.shown_evaluation != Some(evaluation.version);
        if let Some(evaluation) = overview.progress.held_out.filter(is_new) {
            self.shown_evaluation = Some(evaluation.version);
            match &self.style {
                Style::Live(bar) => bar.println(evaluation_line(&evaluation)),
                Style::Plain => print_line(&evaluation_line(&evaluation)),
                Style::Json => print_line(&json!({ "evaluation": evaluation }).to_string()),
            }
        }
        let due = self.shown_at.is_none_or(|then| now.duration_since(then) >= PLAIN_INTERVAL);
        match &self.style {
            Style::Live(bar) => {
                bar.set_message(progress_line(overview, Room::Narrow));
                bar.tick();
            }
            Style::Plain if due => print_line(&progress_line(overview, Room::Ample)),
            Style::Json if due => print_line(&to_json(overview).to_string()),
            Style::Plain | Style::Json => return,
        }
        self.shown_at = Some(now);
    }

    /// Says something once.
    pub fn say(&self, line: &str) {
        match &self.style {
            Style::Live(bar) => bar.println(visible(line)),
            Style::Plain => print_line(&visible(line)),
            Style::Json => print_line(&json!({ "message": line }).to_string()),
        }
    }

    /// Ends the live line.
    pub fn close(&self) {
        if let Style::Live(bar) = &self.style {
            bar.finish_and_clear();
        }
    }

    /// Shows how the run came out.
    pub fn summary(&self, summary: &RunSummary) {
        self.close();
        match self.style {
            Style::Json => print_line(&json!({ "summary": summary }).to_string()),
            Style::Live(_) | Style::Plain => print_line(&summary_table(summary)),
        }
    }
}

fn live_line() -> ProgressBar {
    let style =
        ProgressStyle::with_template("{wide_msg}").expect("the template is fixed; anything else is a bug");
    ProgressBar::new(0).with_style(style)
}

/// Standard output may be a closed pipe, which must not end a run.
fn print_line(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// Writes log lines to the log file, and to standard error above the live line if there is one.
#[derive(Clone)]
pub struct LogWriter {
    bar: Option<ProgressBar>,
    file: Arc<OnceLock<File>>,
    to_terminal: bool,
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let in_file = self.file.get().map_or(Ok(()), |mut file| file.write_all(bytes));
        // The terminal may be gone, which must not end a run either.
        let write = || drop(io::stderr().lock().write_all(bytes));
        match &self.bar {
            Some(bar) if self.to_terminal => bar.suspend(write),
            None if self.to_terminal => write(),
            _ => {}
        }
        in_file.map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }

    fn make_writer_for(&'a self, metadata: &tracing::Metadata<'_>) -> Self {
        let to_terminal = self.bar.is_none() || *metadata.level() <= tracing::Level::WARN;
        Self { to_terminal, ..self.clone() }
    }
}
