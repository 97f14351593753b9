//! What a seed came to, in a line for `docs/chaos.md`.

use std::time::Duration;

use super::evidence::EventCounts;
use super::schedule::Schedule;

/// What a disturbed run came to.
#[derive(Debug)]
pub struct Outcome {
    /// What was told.
    pub events: EventCounts,
    /// Seconds from each kill of a worker that had a task until that task was granted again.
    pub tasks_elsewhere: Vec<f64>,
    /// Seconds from each kill of the coordinator until a task was granted.
    pub tickets_flow: Vec<f64>,
    /// Seconds from each joining of a worker to its first task.
    pub first_tasks: Vec<f64>,
    /// How long the run took.
    pub took: Duration,
}

/// The head of a table of such lines.
pub const HEAD: &str = "\
| seed | lag, group, disk | faults | task elsewhere, s | tickets flow, s | first task, s | took, s |
|---|---|---|---|---|---|---|";

/// Seconds that recovery is to stay below: a task elsewhere, tickets flowing, a first task.
const AIMS: [f64; 3] = [6.0, 5.0, 5.0];

/// One seed's line: median and worst of what was measured, of how many, and whether the worst is below its aim.
pub fn line(seed: u64, schedule: &Schedule, outcome: &Outcome) -> String {
    let Schedule { lag, group, is_fuse, faults } = schedule;
    let disk = if *is_fuse { "FUSE" } else { "ext4" };
    let measured = [&outcome.tasks_elsewhere, &outcome.tickets_flow, &outcome.first_tasks];
    let cells = measured.into_iter().zip(AIMS).map(|(seconds, aim)| cell(seconds, aim)).collect::<Vec<_>>();
    let (met, took) = (faults.len(), outcome.took.as_secs_f64());
    format!("| {seed} | {lag}, {group}, {disk} | {met}, same bits | {} | {took:.0} |", cells.join(" | "))
}

fn cell(seconds: &[f64], aim: f64) -> String {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(worst) = sorted.last() else { return "none met".to_owned() };
    let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
    let verdict = if *worst < aim { "below" } else { "**not** below" };
    format!("{median:.2}, worst {worst:.2} of {}, {verdict} {aim:.0}", sorted.len())
}

#[cfg(test)]
mod tests {
    use super::super::schedule::FAULTS;
    use super::*;

    #[test]
    fn a_line_has_a_cell_for_each_of_its_head_and_names_what_misses_its_aim() {
        let schedule = Schedule { is_fuse: true, lag: 1, group: "batch", ..Schedule::of(7, 18, &FAULTS) };
        let outcome = Outcome {
            events: [].into(),
            tasks_elsewhere: vec![1.0, 6.5, 2.0, 3.0],
            tickets_flow: vec![2.0],
            first_tasks: vec![],
            took: Duration::from_millis(300_400),
        };
        let line = line(7, &schedule, &outcome);
        let cells = "| 7 | 1, batch, FUSE | 18, same bits | 2.50, worst 6.50 of 4, **not** below 6 | 2.00, worst 2.00 of 1, below 5 \
                     | none met | 300 |";
        assert_eq!(line, cells);
        let n_cells = |text: &str| text.lines().map(|line| line.matches('|').count()).collect::<Vec<_>>();
        assert_eq!(n_cells(HEAD), [n_cells(&line)[0]; 2]);
    }
}
