use super::*;
use config::TaskKind;

/// A run with a value for everything that is shown.
pub(crate) fn living_run() -> LivingRun {
    let progress = RunProgress {
        iteration: 3,
        iterations: 10,
        phase: "sampling".to_owned(),
        reward: Some(0.25),
        held_out: Some(held_out(2, 0.5, 0.01)),
        images: 1200,
        network_evaluations: 48_000,
        seconds: 90.5,
        learner_busy: 0.375,
    };
    LivingRun {
        run_id: "demo-0123456789abcdef".to_owned(),
        run_name: "demo".to_owned(),
        determinism: "strict".to_owned(),
        overview: Overview {
            progress,
            images_per_second: 12.5,
            network_evaluations_per_second: 500.0,
            seconds_left: Some(65.5),
            tasks_waiting: 4,
            tasks_running: 2,
            tasks_held: 6,
            workers: 2,
            workers_wanted: 3,
            worker_busy: 0.625,
        },
        members: vec![learner(), worker()],
        notices: vec!["a damaged checkpoint was passed over".to_owned()],
        events: vec![event("member_lost", "silent", 2), event("task_granted", "", 40)],
        events_dropped: 1,
        metrics_address: "127.0.0.1:9400".to_owned(),
        memory_planned: vec![planned("learner", 2e9), planned("worker", 1e9)],
    }
}

fn event(event: &str, cause: &str, count: u64) -> EventCount {
    EventCount { event: event.to_owned(), cause: cause.to_owned(), count }
}

fn planned(role: &str, bytes: f64) -> PlannedMemory {
    PlannedMemory { role: role.to_owned(), place: "host".to_owned(), bytes }
}

fn learner() -> MemberView {
    MemberView {
        member_id: "learner".to_owned(),
        role: Role::Learner,
        state: "living".to_owned(),
        address: "127.0.0.1:4001".to_owned(),
        pid: 11,
        host: "here".to_owned(),
        device: "cuda".to_owned(),
        device_kind: "NVIDIA H200, libtorch 2.13.0".to_owned(),
        card: CardView::named("GPU-ab12".to_owned()),
        metrics_address: "127.0.0.1:4002".to_owned(),
        seconds_since_heartbeat: 0.25,
        tasks_done: 0,
        running: Vec::new(),
        busy: 0.375,
        speed: None,
        is_slow: false,
        troubles: Vec::new(),
    }
}

fn worker() -> MemberView {
    let task = |index| TaskName { iteration: 3, kind: TaskKind::Train, index };
    MemberView {
        member_id: "worker-0".to_owned(),
        role: Role::RolloutWorker,
        state: "silent".to_owned(),
        address: String::new(),
        pid: 12,
        host: "there".to_owned(),
        device: "cpu".to_owned(),
        device_kind: String::new(),
        card: None,
        metrics_address: String::new(),
        seconds_since_heartbeat: 6.5,
        tasks_done: 7,
        running: vec![task(4), task(5)],
        busy: 0.75,
        speed: Some(0.375),
        is_slow: true,
        troubles: vec!["the reward does not answer".to_owned()],
    }
}

/// A run that is done, 65 seconds ago.
pub(crate) fn ended_run() -> EndedRun {
    let record: RunRecord =
        serde_json::from_str(include_str!("../../tests/golden/run_record.json")).expect("readable");
    let ended = record.ended.expect("it ended");
    EndedRun { run_id: record.run_id, ended, ago: Duration::from_secs(65) }
}

pub(crate) fn held_out(version: u32, reward: f64, standard_error: f64) -> HeldOutReward {
    HeldOutReward { version, reward, standard_error }
}

/// With two evaluations in its files.
pub(crate) fn view(stage: Stage) -> RunView {
    let held_out_rewards = vec![held_out(0, 0.4, 0.02), held_out(2, 0.5, 0.01)];
    let files = RunFiles { directory: RunDirectory::new("/runs/demo"), half: None };
    RunView { stage, held_out_rewards, files }
}

fn is_golden(shown: &impl Serialize, golden: &str) {
    assert_eq!(format!("{:#}\n", to_json(shown)), golden);
}

#[test]
fn the_json_of_a_living_run_keeps_its_keys() {
    let run = living_run();
    is_golden(&run.overview, include_str!("../../tests/golden/progress.json"));
    let stage = Stage::Living(Box::new(run));
    is_golden(&view(stage), include_str!("../../tests/golden/living_run.json"));
}

#[test]
fn the_json_of_an_ended_run_keeps_its_keys() {
    is_golden(&view(Stage::Ended(ended_run())), include_str!("../../tests/golden/ended_run.json"));
    let failed = RunEnding::Failed { reason: "a NaN".to_owned(), bad_input: false, summary: None };
    assert_eq!(
        to_json(&failed),
        serde_json::json!({ "how": "failed", "reason": "a NaN", "bad_input": false })
    );
}

#[test]
fn what_is_known_of_cards_is_shown_of_members_on_the_same_host() {
    let memory = Some(CardMemory { free: 5 << 30, total: 80 << 30 });
    let card = Card { name: "NVIDIA H200".to_owned(), memory, ..Card::default() };
    let known = |name: &str| (name == "GPU-ab12").then_some(&card);
    let shown = |host| to_json(&living_run().with_cards(host, known).members[0].card);
    let memory_bytes = serde_json::json!({ "free": 5_368_709_120_u64, "total": 85_899_345_920_u64 });
    let expected =
        serde_json::json!({ "name": "GPU-ab12", "model": "NVIDIA H200", "memory_bytes": memory_bytes });
    assert_eq!(shown("here"), expected);
    assert_eq!(shown("there"), serde_json::json!({ "name": "GPU-ab12" }));
}

#[test]
fn on_a_cpu_all_memory_is_the_hosts() {
    let part = |bytes, place| config::MemoryPart { name: String::new(), bytes, place, is_estimate: false };
    let parts = vec![part(3.0, MemoryPlace::Device), part(4.0, MemoryPlace::Host)];
    let plan = MemoryPlan { learner: parts.clone(), worker: parts, embedding: Vec::new() };
    let shown = |device| {
        let planned = PlannedMemory::of(&plan, device).into_iter();
        planned.map(|planned| (planned.role, planned.place, planned.bytes)).collect::<Vec<_>>()
    };
    let of = |role: &str, place: &str, bytes| (role.to_owned(), place.to_owned(), bytes);
    assert_eq!(shown(ComputeDevice::Cpu), [of("learner", "host", 7.0), of("worker", "host", 7.0)]);
    assert_eq!(
        shown(ComputeDevice::Cuda),
        [
            of("learner", "host", 4.0),
            of("learner", "device", 3.0),
            of("worker", "host", 4.0),
            of("worker", "device", 3.0)
        ]
    );
}

#[test]
fn the_json_has_no_key_for_what_was_not_measured_yet() {
    let record = to_json(&Overview::default());
    for absent in ["reward", "held_out", "seconds_left"] {
        assert!(record.get(absent).is_none(), "{absent} is in {record}");
    }
}

#[test]
fn a_run_that_was_killed_has_no_end_to_show() {
    let home = tempfile::tempdir().expect("a directory");
    assert_eq!(EndedRun::of(RunRecord::new("demo"), &RunDirectory::new(home.path())), None);
}
