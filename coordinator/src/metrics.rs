//! What scrapers see of a run. It is made of the one view that `coordinator status` shows, so the two never differ.

use crate::server::ControlPlane;
use crate::view::{LivingRun, MemberView, Overview};
use proto::Role;
use serde_json::{Value, json};
use service::metrics::{Exposition, Page};
use std::collections::BTreeMap;

/// What a member is called by, in labels.
const MEMBER: [&str; 2] = ["member_id", "role"];

/// The page of a coordinator.
pub struct RunPage {
    plane: ControlPlane,
}

impl RunPage {
    /// A page about the run of a control plane.
    pub fn new(plane: ControlPlane) -> Self {
        Self { plane }
    }
}

impl Page for RunPage {
    fn role(&self) -> &'static str {
        "coordinator"
    }

    fn show(&self, exposition: &mut Exposition) {
        show_run(exposition, &self.plane.view());
    }

    /// It listens before it shows anything.
    fn unready(&self) -> Option<String> {
        None
    }

    fn targets(&self) -> Option<Value> {
        Some(targets(&self.plane.view()))
    }
}

/// Shows a run and its members.
pub fn show_run(exposition: &mut Exposition, run: &LivingRun) {
    let info = [run.run_id.clone(), run.run_name.clone(), run.determinism.clone()];
    let names = ["run_id", "run_name", "determinism"];
    exposition.gauges("tempflow_run_info", "1, with what the run is called", names, [(info, 1.0)]);
    show_progress(exposition, &run.overview);
    show_rewards(exposition, &run.overview);
    show_tasks_and_workers(exposition, &run.overview);
    show_members(exposition, &run.members);
    exposition.gauge(
        "tempflow_notices",
        "What the learner wanted a user to hear of",
        run.notices.len() as f64,
    );
    let events = run.events.iter().map(|count| ([count.event.clone(), count.cause.clone()], count.count));
    exposition.counters(
        "tempflow_events_total",
        "Decisions about members, tasks and processes, as in events.jsonl",
        ["event", "cause"],
        events,
    );
    exposition.counter(
        "tempflow_events_dropped_total",
        "Of them, those that are not in the file",
        run.events_dropped,
    );
    let planned = run.memory_planned.iter();
    exposition.gauges(
        "tempflow_memory_planned_bytes",
        "What one process is reckoned to hold at the fullest moment, by `coordinator plan`",
        ["role", "place"],
        planned.map(|part| ([part.role.clone(), part.place.clone()], part.bytes)),
    );
}

fn show_progress(exposition: &mut Exposition, overview: &Overview) {
    let progress = &overview.progress;
    exposition.gauge("tempflow_run_iteration", "The iteration at work, from 0", progress.iteration.into());
    exposition.gauge("tempflow_run_iterations", "Iterations of the whole run", progress.iterations.into());
    exposition.gauges(
        "tempflow_run_phase",
        "1, with what the learner does",
        ["phase"],
        [([progress.phase.clone()], 1.0)],
    );
    exposition.counter("tempflow_run_images_total", "Images scored by the whole run", progress.images);
    exposition.counter(
        "tempflow_run_network_evaluations_total",
        "Guided network evaluations of the whole run",
        progress.network_evaluations,
    );
    exposition.gauge("tempflow_run_elapsed_seconds", "Time of the whole run", progress.seconds);
    optional(
        exposition,
        ("tempflow_run_remaining_seconds", "Time to its end; absent while nobody can tell"),
        overview.seconds_left,
    );
}

fn show_rewards(exposition: &mut Exposition, overview: &Overview) {
    let (reward, held_out) = (overview.progress.reward, overview.progress.held_out);
    optional(exposition, ("tempflow_run_reward", "Mean training reward of the newest iteration"), reward);
    let of_newest = |value: fn(crate::results::HeldOutReward) -> f64| held_out.map(value);
    optional(
        exposition,
        ("tempflow_run_held_out_reward", "Mean reward of the newest evaluation"),
        of_newest(|newest| newest.reward),
    );
    optional(
        exposition,
        ("tempflow_run_held_out_standard_error", "Of that mean, with the prompt as the unit"),
        of_newest(|newest| newest.standard_error),
    );
    optional(
        exposition,
        ("tempflow_run_held_out_version", "The version that was evaluated"),
        of_newest(|newest| newest.version.into()),
    );
}

/// A number that there may not be yet.
fn optional(exposition: &mut Exposition, (name, meaning): (&str, &str), value: Option<f64>) {
    exposition.gauges(name, meaning, [], value.map(|value| ([], value)));
}

fn show_tasks_and_workers(exposition: &mut Exposition, overview: &Overview) {
    let tasks = [
        ("waiting", overview.tasks_waiting),
        ("running", overview.tasks_running),
        ("held", overview.tasks_held),
    ];
    exposition.gauges(
        "tempflow_tasks",
        "Tasks of the iterations at work: that wait, that workers have, that the learner holds",
        ["state"],
        tasks.map(|(state, count)| ([state.to_owned()], count.into())),
    );
    exposition.gauge("tempflow_workers", "Rollout workers that live", overview.workers.into());
    exposition.gauge(
        "tempflow_workers_wanted",
        "Rollout workers that there should be",
        overview.workers_wanted.into(),
    );
    exposition.gauge(
        "tempflow_workers_busy_ratio",
        "Share of all workers' time with a task in hand, since the coordinator was started",
        overview.worker_busy,
    );
    exposition.gauge(
        "tempflow_learner_busy_ratio",
        "Share of the run's time that the learner did not wait for workers",
        overview.progress.learner_busy,
    );
}

fn show_members(exposition: &mut Exposition, members: &[MemberView]) {
    let mut states: BTreeMap<[String; 2], f64> = BTreeMap::new();
    for member in members {
        *states.entry([role_of(member).to_owned(), member.state.clone()]).or_default() += 1.0;
    }
    let meaning = "Members, those that have not been gone for long included";
    exposition.gauges("tempflow_members", meaning, ["role", "state"], states);
    let living = || members.iter().filter(|member| member.is_living());
    let of_each =
        |value: fn(&MemberView) -> f64| living().map(move |member| (name_of(member), value(member)));
    exposition.gauges(
        "tempflow_member_heartbeat_age_seconds",
        "Time since a living member was heard of",
        MEMBER,
        of_each(|member| member.seconds_since_heartbeat),
    );
    exposition.gauges(
        "tempflow_member_busy_ratio",
        "Share of a living member's time that it had something to do",
        MEMBER,
        of_each(|member| member.busy),
    );
    exposition.gauges(
        "tempflow_member_troubles",
        "What is wrong at a living member while it goes on, such as a reward that does not answer",
        MEMBER,
        of_each(|member| member.troubles.len() as f64),
    );
    exposition.counters(
        "tempflow_member_tasks_total",
        "Tasks that a living worker finished",
        MEMBER,
        living().map(|member| (name_of(member), member.tasks_done)),
    );
}

fn name_of(member: &MemberView) -> [String; 2] {
    [member.member_id.clone(), role_of(member).to_owned()]
}

fn role_of(member: &MemberView) -> &'static str {
    if member.role == Role::Learner { "learner" } else { "worker" }
}

/// The coordinator and all living members that show metrics, as Prometheus discovers targets by HTTP.
pub fn targets(run: &LivingRun) -> Value {
    // Labels that no metric has of its own: a scraper would rename those.
    let target = |address: &str, process: &str| {
        let labels = json!({ "run": run.run_id, "process": process });
        json!({ "targets": [address], "labels": labels })
    };
    let own = (!run.metrics_address.is_empty()).then(|| target(&run.metrics_address, "coordinator"));
    let shown = run.members.iter().filter(|member| member.is_living() && !member.metrics_address.is_empty());
    let shown = shown.map(|member| target(&member.metrics_address, &member.member_id));
    own.into_iter().chain(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::living_run;

    #[test]
    fn numbers_are_those_of_the_view() {
        let mut exposition = Exposition::default();
        show_run(&mut exposition, &living_run());
        let text = exposition.text();
        for line in [
            "tempflow_run_iteration 3.0",
            "tempflow_run_phase{phase=\"sampling\"} 1.0",
            "tempflow_run_images_total 1200",
            "tempflow_run_reward 0.25",
            "tempflow_run_held_out_reward 0.5",
            "tempflow_tasks{state=\"waiting\"} 4.0",
            "tempflow_workers_wanted 3.0",
            "tempflow_members{role=\"worker\",state=\"silent\"} 1.0",
            "tempflow_member_busy_ratio{member_id=\"learner\",role=\"learner\"} 0.375",
            "tempflow_events_total{event=\"member_lost\",cause=\"silent\"} 2",
            "tempflow_events_dropped_total 1",
            "tempflow_memory_planned_bytes{role=\"worker\",place=\"host\"} 1000000000.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("member_id=\"worker-0\""), "it does not live");
    }

    #[test]
    fn nothing_is_shown_of_what_was_not_measured_yet() {
        let mut exposition = Exposition::default();
        show_run(&mut exposition, &LivingRun { overview: Overview::default(), ..living_run() });
        let text = exposition.text();
        assert!(!text.contains("tempflow_run_reward") && !text.contains("tempflow_run_remaining"), "{text}");
    }

    #[test]
    fn scrapers_are_told_of_the_coordinator_and_of_living_members_that_show_metrics() {
        let mut run = living_run();
        run.members[1].metrics_address = "127.0.0.1:9".to_owned();
        let found = targets(&run);
        assert_eq!(found.as_array().map(Vec::len), Some(2), "who is silent is not scraped: {found}");
        assert_eq!(found[1]["targets"][0], "127.0.0.1:4002");
        assert_eq!(found[1]["labels"], json!({ "run": run.run_id, "process": "learner" }));
        run.metrics_address.clear();
        assert_eq!(targets(&run).as_array().map(Vec::len), Some(1));
    }
}
