//! How soon a run works again after a fault, read from its `events.jsonl`.

use std::path::Path;

use serde_json::Value;

use super::evidence::EventCounts;

/// Rows of a JSON-lines file; none if it is not there yet.
pub fn rows(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// How many whole lines a file has.
pub fn n_rows(file: &Path) -> usize {
    std::fs::read(file).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count()
}

/// How often each event was told.
pub fn counts(events: &[Value]) -> EventCounts {
    let mut counts = EventCounts::new();
    for row in events {
        let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        *counts.entry((word("event"), word("cause"))).or_default() += 1;
    }
    counts
}

/// Whether a process is a member of the coordinator that lives since then, by the last that was told of it.
pub fn is_member(events: &[Value], member: &str, since: f64) -> bool {
    let of_membership = ["member_joined", "member_left", "member_lost"];
    let last = events
        .iter()
        .rfind(|row| row["member"] == member && of_membership.iter().any(|event| row["event"] == *event));
    last.is_some_and(|row| row["event"] == "member_joined" && time(row) > since)
}

/// Seconds from `at`, when this member was killed, until a task that it had is another life's or member's; `None` if it had
/// none, or nobody got one.
pub fn task_elsewhere(events: &[Value], member: &str, at: f64) -> Option<f64> {
    let mut held: Vec<&str> = Vec::new();
    for row in events {
        let Some(task) = row["task"].as_str() else { continue };
        if time(row) <= at {
            held.retain(|known| *known != task || row["member"] != member);
            if row["event"] == "task_granted" && row["member"] == member {
                held.push(task);
            }
        } else if row["event"] == "task_granted" && held.contains(&task) {
            return Some(time(row) - at);
        }
    }
    None
}

/// Seconds from `at`, when the coordinator was killed, until any task is granted.
pub fn tickets_flow(events: &[Value], at: f64) -> Option<f64> {
    let granted = events.iter().find(|row| row["event"] == "task_granted" && time(row) > at);
    granted.map(|row| time(row) - at)
}

/// Seconds from each joining of a worker to its first task, for those that got one before they joined again.
pub fn first_tasks(events: &[Value]) -> Vec<f64> {
    let of_member = |(idx, joined): (usize, &Value)| {
        let mut later = events[idx + 1..].iter().filter(|row| row["member"] == joined["member"]);
        let next = later.find(|row| row["event"] == "task_granted" || row["event"] == "member_joined")?;
        (next["event"] == "task_granted").then(|| time(next) - time(joined))
    };
    events
        .iter()
        .enumerate()
        .filter(|(_, row)| row["event"] == "member_joined")
        .filter_map(of_member)
        .collect()
}

fn time(row: &Value) -> f64 {
    row["recorded_at"].as_f64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{counts, first_tasks, is_member, task_elsewhere, tickets_flow};

    fn events() -> Vec<Value> {
        let row = |at: f64, event: &str, member: &str, task: Option<&str>| json!({"recorded_at": at, "event": event, "member": member, "task": task});
        vec![
            row(1.0, "member_joined", "a", None),
            row(1.5, "task_granted", "a", Some("0")),
            row(2.0, "task_finished", "a", Some("0")),
            row(2.0, "task_granted", "a", Some("1")),
            row(4.0, "task_granted", "b", Some("0")),
            row(7.0, "task_granted", "b", Some("1")),
            row(8.0, "member_joined", "a", None),
            row(9.0, "member_joined", "a", None),
        ]
    }

    #[test]
    fn a_task_is_elsewhere_when_what_the_dead_had_is_granted_again() {
        assert_eq!(task_elsewhere(&events(), "a", 3.0), Some(4.0));
        assert_eq!(task_elsewhere(&events(), "b", 3.0), None);
        assert_eq!(task_elsewhere(&events(), "a", 7.5), None);
    }

    #[test]
    fn a_member_is_one_until_it_is_lost_or_its_coordinator_was() {
        let mut events = events();
        assert!(
            is_member(&events, "a", 0.0) && !is_member(&events, "a", 9.5) && !is_member(&events, "b", 0.0)
        );
        events.push(json!({"recorded_at": 9.2, "event": "member_lost", "member": "a", "cause": "silent"}));
        assert!(!is_member(&events, "a", 0.0));
        assert_eq!(counts(&events)[&("member_lost".to_owned(), "silent".to_owned())], 1);
    }

    #[test]
    fn tickets_flow_from_the_first_task_that_is_granted() {
        assert_eq!((tickets_flow(&events(), 2.5), tickets_flow(&events(), 7.0)), (Some(1.5), None));
    }

    #[test]
    fn a_member_that_joins_again_before_its_first_task_counts_once() {
        assert_eq!(first_tasks(&events()), [0.5]);
    }
}
