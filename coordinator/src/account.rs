//! What is said of a run in words: how far it is, what an evaluation came to, how it ended. Pure.

use crate::results::{HeldOutReward, RunProgress, RunSummary, ScoreChange};
use crate::run_record::RunEnding;
use crate::view::Overview;
use std::time::Duration;

/// The most that names in a table are padded to; longer ones stand as they are.
const WIDEST_NAME: usize = 60;

/// How much room a line has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// As much as it takes.
    Ample,
    /// A terminal of 80 columns.
    Narrow,
}

/// One line that says where a run stands.
pub fn progress_line(overview: &Overview, room: Room) -> String {
    let progress = &overview.progress;
    // Those that join by hand are nobody's to want.
    let workers = match overview.workers_wanted {
        0 => format!("{} workers", overview.workers),
        wanted => format!("{} of {wanted} workers", overview.workers),
    };
    if progress.phase.is_empty() {
        return format!("starting · {workers}");
    }
    let (digits, separator, held_out) = match room {
        Room::Ample => (4, " · iteration ", "held-out"),
        Room::Narrow => (3, " ", "eval"),
    };
    let mut parts =
        vec![format!("{}{separator}{}/{}", progress.phase, progress.iteration, progress.iterations)];
    parts.extend(progress.reward.map(|reward| format!("reward {reward:.digits$}")));
    parts.extend(progress.held_out.map(|newest| format!("{held_out} {:.digits$}", newest.reward)));
    match room {
        Room::Ample => parts.extend([
            format!("{:.1} images/s", overview.images_per_second),
            format!("{:.0} NFE/s", overview.network_evaluations_per_second),
            workers,
        ]),
        Room::Narrow => parts.extend([
            format!("{:.0} img/s", overview.images_per_second),
            format!("{} workers", overview.workers),
        ]),
    }
    parts.extend(overview.seconds_left.map(|left| format!("ETA {}", clock(seconds(left)))));
    parts.join(" · ")
}

/// The totals of a run on one line, without what was not measured yet.
pub fn totals_line(progress: &RunProgress) -> String {
    let mut parts = Vec::new();
    parts.extend(progress.reward.map(|reward| format!("reward {reward:.4}")));
    parts.extend(progress.held_out.map(|newest| format!("held-out {}", held_out_text(&newest))));
    parts.extend([
        format!("{} images", progress.images),
        format!("{} NFE", progress.network_evaluations),
        clock(seconds(progress.seconds)),
    ]);
    parts.join(" · ")
}

/// A line for a held-out evaluation.
pub fn evaluation_line(held_out: &HeldOutReward) -> String {
    format!("evaluated version {}: held-out reward {}", held_out.version, held_out_text(held_out))
}

/// The table at the end of a run.
pub fn summary_table(summary: &RunSummary) -> String {
    let per_second = |count: u64| if summary.seconds > 0.0 { count as f64 / summary.seconds } else { 0.0 };
    let held_out =
        |held_out: Option<HeldOutReward>| held_out.map_or("not measured".to_owned(), |h| held_out_text(&h));
    let gain = match (summary.before, summary.after) {
        (Some(_), Some(_)) => {
            format!("{:.4} ± {:.4} ({} prompts)", summary.gain, summary.gain_standard_error, summary.prompts)
        }
        _ => "not measured".to_owned(),
    };
    let (before, after, best) = match summary.is_of_test_prompts {
        true => ("test reward before", "test reward after", "best version, chosen by validation"),
        false => ("held-out reward before", "held-out reward after", "best version, chosen on these prompts"),
    };
    let mut rows = vec![
        (before, held_out(summary.before)),
        (after, held_out(summary.after)),
        ("gain, paired by prompt", gain),
    ];
    // A single one says nothing that the reward does not.
    if summary.scores.len() > 1 {
        rows.extend(summary.scores.iter().map(|score| (score.name.as_str(), score_change(score))));
    }
    if !summary.reward_hacking.is_empty() {
        rows.push(("reward hacking seen in", summary.reward_hacking.join(", ")));
    }
    let version = |row: HeldOutReward| format!("{}, {}", row.version, held_out_text(&row));
    rows.extend(summary.best.map(|row| (best, version(row))));
    rows.extend([
        ("time", clock(seconds(summary.seconds))),
        ("images", format!("{} ({:.1}/s)", summary.images, per_second(summary.images))),
        (
            "network evaluations",
            format!("{} ({:.1}/s)", summary.network_evaluations, per_second(summary.network_evaluations)),
        ),
        ("learner busy", format!("{:.0} %", 100.0 * summary.learner_busy)),
        ("workers busy", workers_busy(summary)),
        ("adapter", summary.adapter.clone()),
    ]);
    if !summary.best_adapter.is_empty() {
        rows.push(("adapter of the best version", summary.best_adapter.clone()));
    }
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).min(WIDEST_NAME);
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("  {name:width$}  {value}")).collect();
    lines.join("\n")
}

/// A raw score before and after.
fn score_change(score: &ScoreChange) -> String {
    format!(
        "{:.4} ± {:.4} → {:.4} ± {:.4}",
        score.before, score.before_standard_error, score.after, score.after_standard_error
    )
}

/// The coordinator counts workers' time since it was started, which after a resume is not the whole run.
fn workers_busy(summary: &RunSummary) -> String {
    let share = format!("{:.0} %", 100.0 * summary.worker_busy);
    match summary.worker_busy_seconds < summary.seconds {
        true => format!(
            "{share} of the last {}, since the run was resumed",
            clock(seconds(summary.worker_busy_seconds))
        ),
        false => share,
    }
}

/// How a run ended, for people.
pub fn ending_text(ending: &RunEnding) -> String {
    match ending {
        RunEnding::Done { summary } => format!("done\n{}", summary_table(summary)),
        RunEnding::Failed { reason, summary: None, .. } => format!("failed: {reason}"),
        RunEnding::Failed { reason, summary: Some(summary), .. } => {
            format!("failed: {reason}\n{}", summary_table(summary))
        }
        RunEnding::Stopped { resume } => format!("stopped; go on with `{resume}`"),
    }
}

/// A reward and its standard error.
pub fn held_out_text(held_out: &HeldOutReward) -> String {
    format!("{:.4} ± {:.4}", held_out.reward, held_out.standard_error)
}

/// A time given in seconds; none where it is no time.
pub fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// Hours, minutes and seconds.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_out(version: u32, reward: f64) -> Option<HeldOutReward> {
        Some(HeldOutReward { version, reward, standard_error: 0.01 })
    }

    fn overview() -> Overview {
        let progress = RunProgress {
            iteration: 3,
            iterations: 10,
            phase: "sampling".to_owned(),
            reward: Some(0.25),
            held_out: held_out(2, 0.5),
            ..RunProgress::default()
        };
        Overview { progress, workers: 2, workers_wanted: 3, ..Overview::default() }
    }

    fn summary() -> RunSummary {
        RunSummary {
            before: held_out(0, 0.4),
            after: held_out(150, 0.6),
            best: held_out(90, 0.65),
            gain: 0.2,
            gain_standard_error: 0.02,
            prompts: 200,
            seconds: 600.0,
            images: 6000,
            worker_busy: 0.875,
            worker_busy_seconds: 601.0,
            adapter: "runs/demo/adapter".to_owned(),
            best_adapter: "runs/demo/adapter/best".to_owned(),
            ..RunSummary::default()
        }
    }

    #[test]
    fn a_line_says_phase_iteration_rewards_rates_and_workers() {
        assert_eq!(
            progress_line(&overview(), Room::Ample),
            "sampling · iteration 3/10 · reward 0.2500 · held-out 0.5000 · 0.0 images/s · 0 NFE/s · 2 of 3 workers"
        );
        assert_eq!(
            progress_line(&overview(), Room::Narrow),
            "sampling 3/10 · reward 0.250 · eval 0.500 · 0 img/s · 2 workers"
        );
        assert_eq!(
            totals_line(&overview().progress),
            "reward 0.2500 · held-out 0.5000 ± 0.0100 · 0 images · 0 NFE · 0:00"
        );
    }

    #[test]
    fn the_narrow_line_fits_a_terminal_of_eighty_columns() {
        let mut overview = overview();
        overview.progress.phase = "evaluating".to_owned();
        overview.progress.iterations = 150;
        let line = progress_line(&overview, Room::Narrow);
        assert!(line.chars().count() + " · ETA 59:59".chars().count() <= 80, "{line}");
    }

    #[test]
    fn nothing_is_said_of_what_was_not_measured_yet() {
        let mut overview = overview();
        (overview.progress.reward, overview.progress.held_out) = (None, None);
        let line = progress_line(&overview, Room::Ample);
        assert!(!line.contains("reward") && !line.contains("held-out"), "{line}");
    }

    #[test]
    fn an_evaluation_has_a_line() {
        let newest = held_out(2, 0.5).expect("given");
        assert_eq!(evaluation_line(&newest), "evaluated version 2: held-out reward 0.5000 ± 0.0100");
    }

    #[test]
    fn the_table_shows_gain_rates_the_best_version_and_the_adapters() {
        let table = summary_table(&summary());
        for expected in [
            "0.2000 ± 0.0200 (200 prompts)",
            "10:00",
            "6000 (10.0/s)",
            "88 %\n",
            "90, 0.6500 ± 0.0100",
            "runs/demo/adapter\n",
            "runs/demo/adapter/best",
        ] {
            assert!(table.contains(expected), "{expected} is not in\n{table}");
        }
    }

    #[test]
    fn the_table_shows_every_reward_where_there_are_several_and_which_was_hacked() {
        let score = |name: &str, after: f64| ScoreChange {
            name: name.to_owned(),
            before: 0.5,
            before_standard_error: 0.01,
            after,
            after_standard_error: 0.02,
        };
        let mut summary = RunSummary { scores: vec![score("shapes", 0.75)], ..summary() };
        assert!(!summary_table(&summary).contains("shapes"), "it is the reward");
        summary.scores.push(score("pickscore", 0.25));
        summary.reward_hacking = vec!["pickscore".to_owned()];
        let ending = RunEnding::Failed {
            reason: "hacked".to_owned(),
            bad_input: false,
            summary: Some(Box::new(summary)),
        };
        let text = ending_text(&ending);
        for expected in [
            "failed: hacked\n",
            "0.5000 ± 0.0100 → 0.7500 ± 0.0200",
            "0.2500 ± 0.0200",
            "reward hacking seen in",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }

    /// More than a format may be wide.
    #[test]
    fn a_name_however_long_has_a_row() {
        let score = |name: &str| ScoreChange { name: name.to_owned(), ..ScoreChange::default() };
        let long = "x".repeat(70_000);
        let table = summary_table(&RunSummary { scores: vec![score(&long), score("b")], ..summary() });
        assert!(table.contains(&long) && table.len() < 80_000, "{} bytes", table.len());
    }

    #[test]
    fn the_table_says_what_the_workers_share_covers() {
        let table = summary_table(&RunSummary { worker_busy_seconds: 65.0, ..summary() });
        assert!(table.contains("88 % of the last 1:05, since the run was resumed"), "{table}");
    }

    #[test]
    fn clocks_show_hours_only_when_there_are_some() {
        assert_eq!(clock(Duration::from_secs(65)), "1:05");
        assert_eq!(clock(Duration::from_secs(3 * 3600 + 62)), "3:01:02");
    }
}
