//! What a message costs, by the number of workers.

use crate::lab::{LONG, config, process, wants_training};
use coordinator::catalog::Catalog;
use coordinator::membership::{Members, Patience};
use coordinator::run_state::RunState;
use coordinator::server::ControlPlane;
use proto::coordinator_server::Coordinator;
use proto::{
    Caller, FinishTaskRequest, HeartbeatRequest, JoinRequest, NextTaskRequest, ReportRequest, Role,
    SeekWeightsRequest, WeightsId, WeightsStanding,
};
use protocol::WeightsName;
use std::path::Path;
use std::time::Instant;
use tonic::Request;

/// Nanoseconds that this thread has run; those of the machine's other work do not count.
fn processor_time() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a Linux with schedstat");
    text.split(' ').next().and_then(|number| number.parse().ok()).expect("nanoseconds")
}

/// A plane with a learner and so many workers, each of which waits for a task; the learner wants none.
async fn crowd(home: &Path, n_workers: u32) -> (ControlPlane, Vec<Option<Caller>>) {
    let patience = Patience { lease: LONG, task_deadline: LONG, opening_deadline: LONG, drain: LONG };
    let members = Members::new("run-a".to_owned(), 1, patience);
    let mut config = config(home);
    config.sampling.prompts_per_iteration = 4 * n_workers as usize;
    let catalog = Catalog::open(config).expect("prompts");
    let plane = ControlPlane::new(RunState::new(members, catalog, String::new(), Instant::now()));
    let join = |role: Role, member_id: String| {
        let request =
            JoinRequest { role: role.into(), member_id, process: process(1), ..JoinRequest::default() };
        plane.update(|state, now| state.join(&request, now)).expect("joined").identity
    };
    let learner = join(Role::Learner, "learner".to_owned());
    let workers: Vec<_> =
        (0..n_workers).map(|number| join(Role::RolloutWorker, format!("worker-{number}"))).collect();
    let wanted = wants_training(0, &(0..4 * n_workers).collect::<Vec<_>>());
    let report = ReportRequest { caller: learner, wanted, ..ReportRequest::default() };
    plane.update(|state, now| state.report(report, now)).expect("taken");
    for caller in workers.clone() {
        let plane = plane.clone();
        let request = NextTaskRequest { caller, wait_seconds: 60.0, ..NextTaskRequest::default() };
        tokio::spawn(async move { Coordinator::next_task(&plane, Request::new(request)).await });
    }
    tokio::task::yield_now().await;
    (plane, workers)
}

/// Processor time of one heartbeat beside that many workers that wait, and of one task from its grant to its end.
async fn costs(n_workers: u32) -> [u64; 2] {
    // Enough for a clock that moves by tens of milliseconds.
    const REPEATED: u32 = 5_000;
    let home = tempfile::tempdir().expect("a directory");
    let (plane, workers) = crowd(home.path(), n_workers).await;
    let start = processor_time();
    for number in 0..REPEATED {
        let caller = workers[(number % n_workers) as usize].clone();
        let request = HeartbeatRequest { caller, ..HeartbeatRequest::default() };
        Coordinator::heartbeat(&plane, Request::new(request)).await.expect("a member");
        // Whoever was woken runs now.
        tokio::task::yield_now().await;
    }
    let heartbeat = (processor_time() - start) / u64::from(REPEATED);

    let home = tempfile::tempdir().expect("a directory");
    let (plane, workers) = crowd(home.path(), n_workers).await;
    let incarnation = plane.read(|state| state.members.get("learner").expect("joined").incarnation);
    let learner = Some(Caller { run_id: "run-a".to_owned(), member_id: "learner".to_owned(), incarnation });
    let report =
        ReportRequest { caller: learner, wanted: wants_training(0, &[]), ..ReportRequest::default() };
    plane.update(|state, now| state.report(report, now)).expect("taken");
    tokio::task::yield_now().await;
    let start = processor_time();
    for _ in 0..REPEATED / 2 {
        let caller = workers[0].clone();
        let next = NextTaskRequest { caller: caller.clone(), ..NextTaskRequest::default() };
        let task =
            Coordinator::next_task(&plane, Request::new(next)).await.expect("a member").into_inner().task;
        // A small crowd is done sooner, and asks in vain then.
        let Some(task) = task.and_then(|task| task.id) else { continue };
        let finish = FinishTaskRequest { caller, task: Some(task), ..FinishTaskRequest::default() };
        Coordinator::finish_task(&plane, Request::new(finish)).await.expect("a member");
        tokio::task::yield_now().await;
    }
    [heartbeat, (processor_time() - start) / u64::from(REPEATED / 2)]
}

#[tokio::test]
async fn what_a_heartbeat_and_a_task_cost_does_not_grow_with_the_workers() {
    let [few, many] = [costs(50).await, costs(1_000).await];
    for (what, few, many) in [("heartbeat", few[0], many[0]), ("task", few[1], many[1])] {
        // Twenty times the workers: caches and maps may make it a few times as much.
        assert!(many < 6 * few + 20_000, "a {what} takes {few} ns beside 50 workers, {many} ns beside 1000");
    }
}

/// Processor time of one search for a source of weights, where half of so many workers hold them and the others ask, again and again.
async fn cost_of_a_search(n_workers: u32) -> u64 {
    const REPEATED: u32 = 5_000;
    let home = tempfile::tempdir().expect("a directory");
    let (plane, workers) = crowd(home.path(), n_workers).await;
    let weights = WeightsId::from(WeightsName::policy(3));
    let (holders, askers) = workers.split_at(workers.len() / 2);
    for caller in holders {
        let address = "127.0.0.1:7102".to_owned();
        let weights = Some(WeightsStanding { address, held: vec![weights], fetching: None });
        let request = HeartbeatRequest { caller: caller.clone(), weights, ..HeartbeatRequest::default() };
        Coordinator::heartbeat(&plane, Request::new(request)).await.expect("a member");
    }
    let start = processor_time();
    for caller in askers.iter().cycle().take(REPEATED as usize) {
        let (caller, weights) = (caller.clone(), Some(weights));
        let request = SeekWeightsRequest { caller, weights, ..SeekWeightsRequest::default() };
        let found = plane.update(|state, now| state.seek_weights(&request, now)).expect("a member");
        assert!(found.is_some(), "there is room for all");
    }
    (processor_time() - start) / u64::from(REPEATED)
}

#[tokio::test]
async fn what_a_search_for_weights_costs_does_not_grow_with_the_workers() {
    let [few, many] = [cost_of_a_search(50).await, cost_of_a_search(1_000).await];
    assert!(many < 4 * few + 10_000, "a search takes {few} ns among 50 workers, {many} ns among 1000");
}
