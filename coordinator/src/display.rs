//! What a person, or a program, sees of a living run: a live line on a terminal, plain lines elsewhere, or JSON.

use crate::error::CoordinatorError;
use crate::rates::Rates;
use crate::run_state::Snapshot;
use indicatif::{ProgressBar, ProgressStyle};
use proto::Summary;
use serde_json::{Value, json};
use service::logging::LogFormat;
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
    rates: Rates,
    log_file: Arc<OnceLock<File>>,
    shown_at: Option<Instant>,
    shown_evaluation: Option<f64>,
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
        Self {
            style,
            rates: Rates::default(),
            log_file: Arc::default(),
            shown_at: None,
            shown_evaluation: None,
        }
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
    pub fn update(&mut self, snapshot: &Snapshot, now: Instant) {
        self.rates.observe(snapshot, now);
        let evaluation = evaluation_line(snapshot).filter(|(key, _)| self.shown_evaluation != Some(*key));
        if let Some((key, line)) = evaluation {
            self.shown_evaluation = Some(key);
            match &self.style {
                Style::Live(bar) => bar.println(line),
                Style::Plain => print_line(&line),
                Style::Json => {}
            }
        }
        let due = self.shown_at.is_none_or(|then| now.duration_since(then) >= PLAIN_INTERVAL);
        match &self.style {
            Style::Live(bar) => {
                bar.set_message(terminal_line(snapshot, &self.rates));
                bar.tick();
            }
            Style::Plain if due => print_line(&status_line(snapshot, &self.rates)),
            Style::Json if due => print_line(&status_json(snapshot, &self.rates).to_string()),
            Style::Plain | Style::Json => return,
        }
        self.shown_at = Some(now);
    }

    /// Says something once.
    pub fn say(&self, line: &str) {
        match &self.style {
            Style::Live(bar) => bar.println(line),
            Style::Plain => print_line(line),
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
    pub fn summary(&self, summary: &Summary) {
        self.close();
        match self.style {
            Style::Json => print_line(&summary_json(summary).to_string()),
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

/// One line that says where the run stands.
pub fn status_line(snapshot: &Snapshot, rates: &Rates) -> String {
    let progress = &snapshot.progress;
    let phase = if progress.phase.is_empty() { "starting" } else { progress.phase.as_str() };
    let mut parts = vec![format!("{phase} · iteration {}/{}", progress.iteration, progress.iterations)];
    if progress.iteration > 0 {
        parts.push(format!("reward {:.4}", progress.reward));
    }
    if progress.held_out_standard_error > 0.0 {
        parts.push(format!("held-out {:.4}", progress.held_out_reward));
    }
    parts.push(format!("{:.1} images/s", rates.images_per_second()));
    parts.push(format!("{:.0} NFE/s", rates.network_evaluations_per_second()));
    parts.push(format!("{} of {} workers", snapshot.workers, snapshot.workers_wanted));
    if let Some(left) = rates.time_left(progress.iterations) {
        parts.push(format!("ETA {}", clock(left)));
    }
    parts.join(" · ")
}

/// The same, short enough for a terminal of 80 columns.
fn terminal_line(snapshot: &Snapshot, rates: &Rates) -> String {
    let progress = &snapshot.progress;
    if progress.phase.is_empty() {
        return format!("starting · {} of {} workers", snapshot.workers, snapshot.workers_wanted);
    }
    let mut parts = vec![format!("{} {}/{}", progress.phase, progress.iteration, progress.iterations)];
    if progress.iteration > 0 {
        parts.push(format!("reward {:.3}", progress.reward));
    }
    if progress.held_out_standard_error > 0.0 {
        parts.push(format!("test {:.3}", progress.held_out_reward));
    }
    parts.push(format!("{:.0} img/s", rates.images_per_second()));
    parts.push(format!("{} workers", snapshot.workers));
    if let Some(left) = rates.time_left(progress.iterations) {
        parts.push(format!("ETA {}", clock(left)));
    }
    parts.join(" · ")
}

/// A line for a held-out evaluation, with what tells it from the one before.
fn evaluation_line(snapshot: &Snapshot) -> Option<(f64, String)> {
    let progress = &snapshot.progress;
    if progress.held_out_standard_error <= 0.0 {
        return None;
    }
    let (mean, error) = (progress.held_out_reward, progress.held_out_standard_error);
    let line = format!("evaluated: held-out reward {mean:.4} ± {error:.4}");
    Some((progress.held_out_reward, line))
}

fn status_json(snapshot: &Snapshot, rates: &Rates) -> Value {
    let (progress, tasks) = (&snapshot.progress, snapshot.tasks);
    json!({
        "phase": progress.phase,
        "iteration": progress.iteration,
        "iterations": progress.iterations,
        "reward": progress.reward,
        "held_out_reward": progress.held_out_reward,
        "held_out_standard_error": progress.held_out_standard_error,
        "images": progress.images,
        "network_evaluations": progress.network_evaluations,
        "images_per_second": rates.images_per_second(),
        "network_evaluations_per_second": rates.network_evaluations_per_second(),
        "seconds": progress.seconds,
        "seconds_left": rates.time_left(progress.iterations).map(|left| left.as_secs_f64()),
        "learner_busy": progress.learner_busy,
        "worker_busy": snapshot.worker_busy,
        "workers": snapshot.workers,
        "workers_wanted": snapshot.workers_wanted,
        "tasks_waiting": tasks.waiting,
        "tasks_running": tasks.leased,
        "tasks_held": tasks.held,
    })
}

fn summary_json(summary: &Summary) -> Value {
    json!({ "summary": {
        "held_out_before": summary.held_out_before,
        "held_out_before_standard_error": summary.held_out_before_standard_error,
        "held_out_after": summary.held_out_after,
        "held_out_after_standard_error": summary.held_out_after_standard_error,
        "gain": summary.gain,
        "gain_standard_error": summary.gain_standard_error,
        "prompts": summary.prompts,
        "seconds": summary.seconds,
        "images": summary.images,
        "network_evaluations": summary.network_evaluations,
        "learner_busy": summary.learner_busy,
        "worker_busy": summary.worker_busy,
        "adapter": summary.adapter,
    }})
}

/// The table at the end of a run.
pub fn summary_table(summary: &Summary) -> String {
    let per_second = |count: u64| if summary.seconds > 0.0 { count as f64 / summary.seconds } else { 0.0 };
    let measured = |mean: f64, error: f64| format!("{mean:.4} ± {error:.4}");
    let held_out_after = measured(summary.held_out_after, summary.held_out_after_standard_error);
    let rows = [
        ("held-out reward before", measured(summary.held_out_before, summary.held_out_before_standard_error)),
        ("held-out reward after", held_out_after),
        (
            "gain, paired by prompt",
            format!("{} ({} prompts)", measured(summary.gain, summary.gain_standard_error), summary.prompts),
        ),
        ("time", clock(Duration::try_from_secs_f64(summary.seconds).unwrap_or_default())),
        ("images", format!("{} ({:.1}/s)", summary.images, per_second(summary.images))),
        (
            "network evaluations",
            format!("{} ({:.1}/s)", summary.network_evaluations, per_second(summary.network_evaluations)),
        ),
        ("learner busy", format!("{:.0} %", 100.0 * summary.learner_busy)),
        ("workers busy", format!("{:.0} %", 100.0 * summary.worker_busy)),
        ("adapter", summary.adapter.clone()),
    ];
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("  {name:width$}  {value}")).collect();
    lines.join("\n")
}

/// Hours, minutes and seconds.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
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
        if let Some(mut file) = self.file.get() {
            file.write_all(bytes)?;
        }
        let write = || io::stderr().lock().write_all(bytes);
        match &self.bar {
            Some(bar) if self.to_terminal => bar.suspend(write)?,
            None if self.to_terminal => write()?,
            _ => {}
        }
        Ok(bytes.len())
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

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Progress;

    fn snapshot() -> Snapshot {
        let progress = Progress {
            iteration: 3,
            iterations: 10,
            phase: "sampling".to_owned(),
            reward: 0.25,
            held_out_reward: 0.5,
            held_out_standard_error: 0.01,
            ..Progress::default()
        };
        Snapshot { progress, workers: 2, workers_wanted: 3, ..Snapshot::default() }
    }

    #[test]
    fn a_status_line_says_phase_iteration_rewards_rates_and_workers() {
        assert_eq!(
            status_line(&snapshot(), &Rates::default()),
            "sampling · iteration 3/10 · reward 0.2500 · held-out 0.5000 · 0.0 images/s · 0 NFE/s · 2 of 3 workers"
        );
    }

    #[test]
    fn the_live_line_fits_a_terminal_of_eighty_columns() {
        let mut snapshot = snapshot();
        snapshot.progress.phase = "evaluating".to_owned();
        snapshot.progress.iterations = 150;
        let line = terminal_line(&snapshot, &Rates::default());
        assert!(line.chars().count() + " · ETA 59:59".chars().count() <= 80, "{line}");
    }

    #[test]
    fn nothing_is_said_of_what_was_not_measured_yet() {
        let mut snapshot = snapshot();
        assert_eq!(
            evaluation_line(&snapshot).expect("measured").1,
            "evaluated: held-out reward 0.5000 ± 0.0100"
        );
        snapshot.progress.held_out_standard_error = 0.0;
        snapshot.progress.iteration = 0;
        assert!(evaluation_line(&snapshot).is_none());
        assert!(!status_line(&snapshot, &Rates::default()).contains("reward"));
    }

    #[test]
    fn the_table_shows_gain_rates_and_the_adapter() {
        let summary = Summary {
            held_out_before: 0.4,
            held_out_after: 0.6,
            gain: 0.2,
            gain_standard_error: 0.02,
            prompts: 200,
            seconds: 600.0,
            images: 6000,
            worker_busy: 0.875,
            adapter: "runs/demo/adapter".to_owned(),
            ..Summary::default()
        };
        let table = summary_table(&summary);
        for expected in
            ["0.2000 ± 0.0200 (200 prompts)", "10:00", "6000 (10.0/s)", "88 %", "runs/demo/adapter"]
        {
            assert!(table.contains(expected), "{expected} is not in\n{table}");
        }
    }

    #[test]
    fn clocks_show_hours_only_when_there_are_some() {
        assert_eq!(clock(Duration::from_secs(65)), "1:05");
        assert_eq!(clock(Duration::from_secs(3 * 3600 + 62)), "3:01:02");
    }
}
