//! `coordinator status`: how a living run is doing, or how one ended.

use crate::account::{clock, ending_text, fields, totals_line};
use crate::catalog::from_wire;
use crate::run_record::{RunEnding, RunRecord};
use proto::{Member, StatusReply};
use serde_json::{Value, json};
use std::time::Duration;

/// What a living coordinator answered, for people.
pub fn living_text(reply: &StatusReply) -> String {
    let progress = reply.progress.clone().unwrap_or_default();
    let mut lines = vec![
        format!("run {} ({})", reply.run_name, reply.run_id),
        format!("{} · iteration {}/{}", progress.phase, progress.iteration, progress.iterations),
        totals_line(&progress),
        format!(
            "tasks: {} waiting, {} running · workers wanted: {}",
            reply.tasks_queued, reply.tasks_running, reply.workers_wanted
        ),
    ];
    lines.extend(reply.members.iter().map(member_text));
    lines.join("\n")
}

fn member_text(member: &Member) -> String {
    let tasks: String = running(member).iter().map(|task| format!(" · {task}")).collect();
    let troubles: String = member.troubles.iter().map(|trouble| format!("\n    {trouble}")).collect();
    format!(
        "  {:<12} {:<8} pid {:<8} heard {:.1} s ago · {} tasks · {:.0} % busy{tasks}{troubles}",
        member.member_id,
        member.state,
        member.pid,
        member.seconds_since_heartbeat,
        member.tasks_done,
        100.0 * member.busy,
    )
}

fn running(member: &Member) -> Vec<String> {
    member.running.iter().filter_map(from_wire).map(|task| task.to_string()).collect()
}

/// The same as JSON.
pub fn living_json(reply: &StatusReply) -> Value {
    let members = reply.members.iter().map(|member| {
        json!({
            "member_id": member.member_id,
            "state": member.state,
            "address": member.address,
            "pid": member.pid,
            "seconds_since_heartbeat": member.seconds_since_heartbeat,
            "tasks_done": member.tasks_done,
            "running": running(member),
            "busy": member.busy,
            "troubles": member.troubles,
        })
    });
    let mut status = fields(&reply.progress.clone().unwrap_or_default());
    let others = [
        ("run_id", json!(reply.run_id)),
        ("run_name", json!(reply.run_name)),
        ("tasks_waiting", json!(reply.tasks_queued)),
        ("tasks_running", json!(reply.tasks_running)),
        ("workers_wanted", json!(reply.workers_wanted)),
        ("members", members.collect()),
    ];
    status.extend(others.map(|(key, value)| (key.to_owned(), value)));
    Value::Object(status)
}

/// How a run ended, for people; `ago` is the time since.
pub fn ended_text(record: &RunRecord, ending: &RunEnding, ago: Duration) -> String {
    format!("run {}\nended {} ago: {}", record.run_id, clock(ago), ending_text(ending))
}

/// The same as JSON.
pub fn ended_json(record: &RunRecord, ending: &RunEnding) -> Value {
    json!({ "run_id": record.run_id, "ended": ending })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{HeldOut, Progress, Summary, TaskId, TaskKind};

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
        let text = living_text(&reply());
        assert!(text.contains("training task 4 of iteration 3 · training task 5 of iteration 3"), "{text}");
        assert!(!text.contains("reward"), "{text}");
        let record = living_json(&reply());
        assert_eq!(record["members"][0]["running"].as_array().expect("a list").len(), 2);
        assert_eq!((record["iteration"].as_u64(), record.get("reward")), (Some(3), None));
    }

    #[test]
    fn an_ended_run_says_how() {
        let record = RunRecord::new("demo");
        let after = Some(HeldOut { version: 9, reward: 0.75, standard_error: 0.5 });
        let summary = Box::new(Summary { after, ..Summary::default() });
        let endings = [
            (RunEnding::Done { summary }, "ended 1:05 ago: done\n", "0.7500 ± 0.5000"),
            (RunEnding::Failed { reason: "a NaN".to_owned(), summary: None }, "failed: a NaN", "demo-"),
            (
                RunEnding::Stopped { resume: "up --resume".to_owned() },
                "stopped; go on with `up --resume`",
                "",
            ),
        ];
        for (ending, first, second) in endings {
            let text = ended_text(&record, &ending, Duration::from_secs(65));
            assert!(text.contains(first) && text.contains(second), "{text}");
        }
        let failed = RunEnding::Failed { reason: "a NaN".to_owned(), summary: None };
        assert_eq!(ended_json(&record, &failed)["ended"], json!({ "how": "failed", "reason": "a NaN" }));
    }
}
