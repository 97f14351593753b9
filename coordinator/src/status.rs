//! `coordinator status`: how a living run is doing, or how one ended.

use crate::account::{clock, ending_text, fields, held_out_text, totals_line};
use crate::advice;
use crate::results::{HeldOutReward, RunProgress};
use crate::run_record::{RunEnding, RunRecord};
use proto::{Member, StatusReply};
use protocol::TaskName;
use serde_json::{Value, json};
use service::RunDirectory;
use std::time::Duration;

/// Held-out rewards that are shown of a long run: the first and the newest.
const SHOWN_HELD_OUT: usize = 10;

/// What a living coordinator answered and the run has recorded, for people.
pub fn living_text(reply: &StatusReply, held_out: &[HeldOutReward], run: &RunDirectory) -> String {
    let progress = RunProgress::from(reply.progress.clone().unwrap_or_default());
    let left = match reply.seconds_left.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(left) => format!("ETA {}", clock(left)),
        None => "ETA not known yet".to_owned(),
    };
    let mut lines = vec![
        format!("run {} ({})", reply.run_name, reply.run_id),
        format!("{} · iteration {}/{} · {left}", progress.phase, progress.iteration, progress.iterations),
        totals_line(&progress),
        format!(
            "{:.1} images/s · {:.0} NFE/s",
            reply.images_per_second, reply.network_evaluations_per_second
        ),
        format!(
            "tasks: {} waiting, {} running · workers wanted: {}",
            reply.tasks_queued, reply.tasks_running, reply.workers_wanted
        ),
    ];
    lines.extend(reply.members.iter().map(member_text));
    lines.extend(history_text(held_out));
    lines.push(places_text(run));
    lines.join("\n")
}

/// The held-out rewards so far, of a long run the first and the newest; nothing where there is none.
fn history_text(held_out: &[HeldOutReward]) -> Option<String> {
    let mut lines: Vec<String> = held_out
        .iter()
        .map(|evaluation| format!("  version {:<6} {}", evaluation.version, held_out_text(evaluation)))
        .collect();
    if lines.len() > SHOWN_HELD_OUT {
        let hidden = lines.len() - SHOWN_HELD_OUT;
        lines.splice(1..=hidden, [format!("  … {hidden} more …")]);
    }
    lines.insert(0, "held-out reward".to_owned());
    (!held_out.is_empty()).then(|| lines.join("\n"))
}

/// Where a run's files are, and what shows them.
fn places_text(run: &RunDirectory) -> String {
    let path = |path: std::path::PathBuf| path.display().to_string();
    let places = [
        ("directory", path(run.path().to_owned())),
        ("adapter", path(run.adapter())),
        ("checkpoints", path(run.checkpoints())),
        ("samples", path(run.samples())),
        ("logs", path(run.logs())),
        ("curves", advice::tensorboard(run)),
    ];
    let lines = places.iter().map(|(name, place)| format!("  {name:<12} {place}"));
    std::iter::once("files".to_owned()).chain(lines).collect::<Vec<_>>().join("\n")
}

fn places_json(run: &RunDirectory) -> Value {
    json!({
        "directory": run.path(),
        "adapter": run.adapter(),
        "checkpoints": run.checkpoints(),
        "samples": run.samples(),
        "logs": run.logs(),
        "tensorboard": run.tensorboard(),
    })
}

fn member_text(member: &Member) -> String {
    let tasks: String = running(member).iter().map(|task| format!(" · {task}")).collect();
    let troubles: String = member.troubles.iter().map(|trouble| format!("\n    {trouble}")).collect();
    format!(
        "  {:<12} {:<8} pid {:<8} {:<7} heard {:.1} s ago · {} tasks · {:.0} % busy{tasks}{troubles}",
        member.member_id,
        member.state,
        member.pid,
        member.device,
        member.seconds_since_heartbeat,
        member.tasks_done,
        100.0 * member.busy,
    )
}

fn running(member: &Member) -> Vec<String> {
    member.running.iter().flat_map(TaskName::try_from).map(|task| task.to_string()).collect()
}

/// The same as JSON.
pub fn living_json(reply: &StatusReply, held_out: &[HeldOutReward], run: &RunDirectory) -> Value {
    let members = reply.members.iter().map(|member| {
        json!({
            "member_id": member.member_id,
            "state": member.state,
            "address": member.address,
            "pid": member.pid,
            "host": member.host,
            "device": member.device,
            "metrics_address": member.metrics_address,
            "seconds_since_heartbeat": member.seconds_since_heartbeat,
            "tasks_done": member.tasks_done,
            "running": running(member),
            "busy": member.busy,
            "troubles": member.troubles,
        })
    });
    let mut status = fields(&RunProgress::from(reply.progress.clone().unwrap_or_default()));
    let left = reply.seconds_left.map(|seconds| ("seconds_left", json!(seconds)));
    let others = [
        ("images_per_second", json!(reply.images_per_second)),
        ("network_evaluations_per_second", json!(reply.network_evaluations_per_second)),
        ("held_out_rewards", json!(held_out)),
        ("files", places_json(run)),
        ("run_id", json!(reply.run_id)),
        ("run_name", json!(reply.run_name)),
        ("tasks_waiting", json!(reply.tasks_queued)),
        ("tasks_running", json!(reply.tasks_running)),
        ("workers_wanted", json!(reply.workers_wanted)),
        ("members", members.collect()),
    ];
    status.extend(others.into_iter().chain(left).map(|(key, value)| (key.to_owned(), value)));
    Value::Object(status)
}

/// How a run ended, for people; `ago` is the time since.
pub fn ended_text(
    record: &RunRecord,
    ending: &RunEnding,
    ago: Duration,
    held_out: &[HeldOutReward],
    run: &RunDirectory,
) -> String {
    let mut lines =
        vec![format!("run {}", record.run_id), format!("ended {} ago: {}", clock(ago), ending_text(ending))];
    lines.extend(history_text(held_out));
    lines.push(places_text(run));
    lines.join("\n")
}

/// The same as JSON.
pub fn ended_json(
    record: &RunRecord,
    ending: &RunEnding,
    held_out: &[HeldOutReward],
    run: &RunDirectory,
) -> Value {
    json!({ "run_id": record.run_id, "ended": ending, "held_out_rewards": held_out, "files": places_json(run) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::RunSummary;
    use proto::{Progress, TaskId, TaskKind};

    fn reply() -> StatusReply {
        let task = |index| TaskId { kind: TaskKind::Train.into(), iteration: 3, index };
        let member = Member {
            member_id: "worker-0".to_owned(),
            state: "living".to_owned(),
            running: vec![task(4), task(5)],
            ..Member::default()
        };
        let progress =
            Progress { phase: "sampling".to_owned(), iteration: 3, iterations: 9, ..Progress::default() };
        let run_name = "demo".to_owned();
        StatusReply { run_name, progress: Some(progress), members: vec![member], ..StatusReply::default() }
    }

    #[test]
    fn a_living_run_shows_both_tasks_of_a_worker_and_nothing_that_was_not_measured() {
        let text = living_text(&reply(), &[], &run());
        assert!(text.contains("training task 4 of iteration 3 · training task 5 of iteration 3"), "{text}");
        assert!(!text.contains("reward") && text.contains("ETA not known yet"), "{text}");
        let record = living_json(&reply(), &[], &run());
        assert_eq!(record["members"][0]["running"].as_array().expect("a list").len(), 2);
        assert_eq!((record["iteration"].as_u64(), record.get("reward")), (Some(3), None));
    }

    fn run() -> RunDirectory {
        RunDirectory::new("/runs/demo")
    }

    #[test]
    fn a_living_run_shows_when_it_will_be_done_how_it_has_gone_and_where_things_are() {
        let held_out = |n: u32| -> Vec<HeldOutReward> {
            let row = |version| HeldOutReward { version, reward: 0.25, standard_error: 0.5 };
            (0..n).map(row).collect()
        };
        let reply = StatusReply { seconds_left: Some(65.0), ..reply() };
        let text = living_text(&reply, &held_out(2), &run());
        for words in [
            "iteration 3/9 · ETA 1:05\n",
            "held-out reward\n  version 0      0.2500 ± 0.5000\n  version 1      ",
            "/runs/demo/adapter\n",
            "tensorboard --logdir /runs/demo/tensorboard",
        ] {
            assert!(text.contains(words), "{words} is not in\n{text}");
        }
        let text = living_text(&reply, &held_out(30), &run());
        assert!(text.contains("version 0 ") && text.contains("  … 20 more …\n  version 21 "), "{text}");
        assert!(text.contains("version 29 ") && !text.contains("version 20 "), "{text}");
        let record = living_json(&reply, &held_out(2), &run());
        assert_eq!(
            (record["seconds_left"].as_f64(), &record["files"]["logs"]),
            (Some(65.0), &json!("/runs/demo/logs"))
        );
        assert_eq!(record["held_out_rewards"][1]["version"], 1);
    }

    #[test]
    fn an_ended_run_says_how() {
        let record = RunRecord::new("demo");
        let after = Some(HeldOutReward { version: 9, reward: 0.75, standard_error: 0.5 });
        let summary = Box::new(RunSummary { after, ..RunSummary::default() });
        let endings = [
            (RunEnding::Done { summary }, "ended 1:05 ago: done\n", "0.7500 ± 0.5000"),
            (RunEnding::Failed { reason: "a NaN".to_owned(), summary: None }, "failed: a NaN", "demo-"),
            (
                RunEnding::Stopped { resume: "coordinator resume a".to_owned() },
                "stopped; go on with `coordinator resume a`",
                "",
            ),
        ];
        for (ending, first, second) in endings {
            let text = ended_text(&record, &ending, Duration::from_secs(65), &[], &run());
            assert!(text.contains(first) && text.contains(second), "{text}");
        }
        let failed = RunEnding::Failed { reason: "a NaN".to_owned(), summary: None };
        assert_eq!(
            ended_json(&record, &failed, &[], &run())["ended"],
            json!({ "how": "failed", "reason": "a NaN" })
        );
    }
}
