//! The coordinator's services over real connections, against members that die, repeat themselves and come back.

mod costs;
mod lab;
mod relay;

use crate::lab::{LEASE, LONG, Server, details, evaluate, process, train, until, wants, wants_training};
use coordinator::run_record::RunEnding;
use coordinator::view::{LivingRun, Overview};
use proto::{
    Fatal, FinishTaskRequest, HeartbeatRequest, JoinRequest, LeaveRequest, ReportRequest, Role, Summary,
    TaskId, Wanted,
};
use service::{Insecure, Membership, PeerRole, Trust};
use std::time::{Duration, Instant};
use tonic::{Code, Status};

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_granted_in_order_and_waited_for() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 1);
    let (mut learner, mut worker) = (server.learner().await, server.worker("a").await);
    let _alive = worker.keep_alive();
    let waiting = tokio::spawn({
        let mut worker = worker.clone();
        async move { worker.next(LONG).await }
    });
    let evaluation = wants(proto::TaskKind::Evaluate, 2, &[]);
    learner.report(vec![wants(proto::TaskKind::Train, 2, &[1]), evaluation]).await;
    let first = waiting.await.expect("no panic").expect("granted").expect("a task");
    assert_eq!(first, evaluate(2, 0), "the report woke the worker");
    let mut order = vec![first];
    worker.finish(first, "").await.expect("finished");
    while let Some(task) = worker.next(Duration::ZERO).await.expect("a member") {
        assert_eq!(worker.next(Duration::ZERO).await.expect("a member"), Some(task), "asked again");
        worker.finish(task, "").await.expect("finished");
        worker.finish(task, "").await.expect("twice does no harm");
        order.push(task);
    }
    assert_eq!(order[1..], [evaluate(2, 1), train(2, 0), train(2, 2), train(2, 3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_task_of_a_silent_worker_is_granted_anew_and_the_worker_fenced() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::with_lease(LEASE, home.path(), 0, 1);
    let (mut learner, mut dead) = (server.learner().await, server.worker("dead").await);
    let (not_yet_dead, learner_alive) = (dead.keep_alive(), learner.keep_alive());
    let mut living = server.worker("living").await;
    let _alive = (learner_alive, living.keep_alive());
    learner.report(wants_training(0, &[1, 2, 3])).await;
    assert_eq!(dead.next(LONG).await.expect("a member"), Some(train(0, 0)));
    drop(not_yet_dead);
    assert_eq!(living.next(LONG).await.expect("a member"), Some(train(0, 0)), "once the lease is over");
    let fenced = dead.finish(train(0, 0), "").await.expect_err("lost");
    assert_eq!(fenced.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_tasks_of_a_silent_worker_are_granted_anew() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::with_lease(LEASE, home.path(), 0, 1);
    let (mut learner, mut dead) = (server.learner().await, server.worker("dead").await);
    let (not_yet_dead, learner_alive) = (dead.keep_alive(), learner.keep_alive());
    let mut living = server.worker("living").await;
    let _alive = (learner_alive, living.keep_alive());
    learner.report(wants_training(0, &[2, 3])).await;
    let first = dead.next(LONG).await.expect("a member").expect("a task");
    let second = dead.next_beside(&[first], LONG).await.expect("a member").expect("another");
    assert_eq!([first, second], [train(0, 0), train(0, 1)]);
    drop(not_yet_dead);
    for expected in [first, second] {
        let task = living.next(LONG).await.expect("a member").expect("once the lease is over");
        assert_eq!(task, expected);
        living.finish(task, "").await.expect("finished");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_incarnation_is_fenced() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 1);
    let mut old = server.member(Role::RolloutWorker, "a", 1).await;
    let mut new = server.replacement(Role::RolloutWorker, "a", 2).await;
    assert_eq!(old.heartbeat().await.expect_err("replaced").code(), Code::FailedPrecondition);
    assert!(!new.heartbeat().await.expect("a member"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_with_the_name_of_a_living_one_is_told_to_take_another() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::with_lease(LEASE, home.path(), 0, 1);
    let mut first = server.worker("a").await;
    let _alive = first.keep_alive();
    let details = details(Role::RolloutWorker, "a", "");
    let refused = Membership::join(&server.address(), &Trust::Plain(Insecure::Loopback), details)
        .await
        .err()
        .expect("refused");
    assert_eq!(refused.exit_code(), service::exit_code::BAD_USAGE);
    assert!(refused.to_string().contains("give each its own `--member-id`"), "{refused}");
    assert!(!first.heartbeat().await.expect("undisturbed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_follows_a_dead_one_joins_once_its_lease_has_ended() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::with_lease(LEASE, home.path(), 0, 1);
    let dead = server.worker("a").await;
    let details = details(Role::RolloutWorker, "a", "");
    let (member, _) = Membership::join(&server.address(), &Trust::Plain(Insecure::Loopback), details)
        .await
        .expect("let in");
    let incarnation = dead.caller.expect("a member").incarnation;
    assert!(member.caller().incarnation > incarnation);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_learner_says_what_it_still_holds() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 1);
    let (mut learner, mut worker) = (server.learner().await, server.worker("a").await);
    let _alive = worker.keep_alive();
    learner.report(wants_training(0, &[])).await;
    for index in 0..2 {
        assert_eq!(worker.next(LONG).await.expect("a member"), Some(train(0, index)));
        worker.finish(train(0, index), "").await.expect("finished");
    }
    let mut reborn = server.replacement(Role::Learner, "learner", 2).await;
    assert_eq!(worker.next(Duration::ZERO).await.expect("a member"), None, "nobody says what is wanted");
    reborn.report(wants_training(0, &[1])).await;
    assert_eq!(
        worker.next(LONG).await.expect("a member"),
        Some(train(0, 0)),
        "the first learner took it along"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn members_find_a_restarted_coordinator_and_it_learns_their_tasks() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::with_lease(LEASE, home.path(), 0, 1);
    let details = |role, member_id: &str| details(role, member_id, "127.0.0.1:9");
    let join = |details| async {
        Membership::join(&server.address(), &Trust::Plain(Insecure::Loopback), details)
            .await
            .expect("joined")
            .0
    };
    let learner = join(details(Role::Learner, "learner")).await;
    let worker = join(details(Role::RolloutWorker, "a")).await;
    let progress = proto::Progress::default();
    learner.report(wants_training(0, &[3]), progress.clone(), Vec::new()).await.expect("reported");
    let finishing = worker.next_task(&[], LONG).await.expect("asked").expect("a task").id.expect("an id");
    assert_eq!(finishing, train(0, 0).into());
    let sampling = worker.next_task(&[finishing], LONG).await.expect("asked").expect("another").id;
    assert_eq!(sampling, Some(train(0, 1).into()));

    let before = worker.caller();
    let port = server.port;
    drop(server);
    let server = Server::with_lease(LEASE, home.path(), port, 2);
    learner.report(wants_training(0, &[3]), progress, Vec::new()).await.expect("reported after the outage");
    let mut standing = worker.standing();
    standing.wait_for(|standing| standing.learner_addresses == ["127.0.0.1:9"]).await.expect("heartbeat");
    until("it joins again", || worker.caller() != before).await;
    assert!(worker.caller().incarnation > before.incarnation);
    let mut other = server.worker("b").await;
    assert_eq!(
        other.next(LONG).await.expect("a member"),
        Some(train(0, 2)),
        "the first two are still with their worker"
    );
    worker.task_held(finishing).await.expect("finished");
    assert_eq!(server.plane.observe(Instant::now()).tasks_held, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_stops_grants_and_reaches_the_workers_before_the_learner() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 1);
    let (mut learner, mut worker) = (server.learner().await, server.worker("a").await);
    assert!(!learner.report(wants_training(0, &[])).await);
    let mut admin = coordinator::server::connect_admin(&server.address(), &Trust::Plain(Insecure::Loopback))
        .await
        .expect("connected");
    admin.down(proto::DownRequest {}).await.expect("asked");
    assert_eq!(server.plane.ending().await, None, "stopped, not ended");
    assert!(worker.heartbeat().await.expect("a member"));
    assert_eq!(worker.next(Duration::ZERO).await.expect("a member"), None);
    assert!(!learner.report(wants_training(0, &[])).await, "the worker may have something to deliver yet");
    assert!(!learner.heartbeat().await.expect("a member"));
    worker.client.leave(LeaveRequest { caller: worker.caller.clone() }).await.expect("heard");
    assert!(learner.report(wants_training(0, &[])).await);
    assert!(learner.heartbeat().await.expect("a member"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_resumed_is_not_as_fast_as_all_that_it_has_ever_done() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 2);
    let start = Instant::now();
    server.plane.observe(start);
    let mut learner = server.learner().await;
    let progress = |images| proto::Progress { images, iteration: 7, ..proto::Progress::default() };
    let mut report = async |images| {
        let (caller, progress) = (learner.caller.clone(), Some(progress(images)));
        let request = ReportRequest { caller, progress, ..ReportRequest::default() };
        learner.client.report(request).await.expect("reported");
    };
    report(100_000).await;
    assert_eq!(server.plane.observe(start + LONG).images_per_second, 0.0);
    report(100_200).await;
    let seen = server.plane.observe(start + LONG + Duration::from_secs(10));
    assert_eq!((seen.images_per_second, seen.progress.images), (20.0, 100_200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisonous_task_ends_the_run_and_is_named() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 1);
    let (mut learner, mut worker) = (server.learner().await, server.worker("a").await);
    learner.report(wants_training(0, &[])).await;
    for _ in 0..3 {
        let task = worker.next(LONG).await.expect("a member").expect("a task");
        worker.finish(task, "the reward is NaN").await.expect("told");
    }
    let Some(RunEnding::Failed { reason, bad_input: false, summary: None }) = server.plane.ending().await
    else {
        panic!("not failed")
    };
    let first = "training task 0 of iteration 0 failed 3 times, last: the reward is NaN (prompt ";
    assert!(reason.starts_with(first) && reason.ends_with("\", seeds 0..1)"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_summary_ends_the_run_with_the_measured_share_of_work() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 1);
    let (mut learner, mut worker) = (server.learner().await, server.worker("a").await);
    learner.report(wants_training(0, &[])).await;
    worker.next(LONG).await.expect("a member").expect("a task");
    tokio::time::sleep(Duration::from_millis(20)).await;
    let summary = Summary { gain: 0.25, ..Summary::default() };
    let request =
        ReportRequest { caller: learner.caller.clone(), summary: Some(summary), ..ReportRequest::default() };
    learner.client.report(request).await.expect("reported");
    let Some(RunEnding::Done { summary }) = server.plane.ending().await else { panic!("not done") };
    assert_eq!(summary.gain, 0.25);
    assert!(summary.worker_busy > 0.0 && summary.worker_busy <= 1.0, "{}", summary.worker_busy);
    assert!(summary.worker_busy_seconds >= 0.02, "since the coordinator was started");
    // The learner is gone, perhaps before it could say that it holds what the worker has in hand.
    assert_eq!(worker.seconds_to_deliver().await.expect("a member"), Some(0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fatal_report_says_whether_the_input_is_at_fault() {
    for bad_input in [false, true] {
        let home = tempfile::tempdir().expect("a directory");
        let server = Server::start(home.path(), 0, 1);
        let mut learner = server.learner().await;
        let fatal = Some(Fatal { reason: "the model is damaged".to_owned(), bad_input, summary: None });
        let request = ReportRequest { caller: learner.caller.clone(), fatal, ..ReportRequest::default() };
        learner.client.report(request).await.expect("reported");
        let expected =
            RunEnding::Failed { reason: "the model is damaged".to_owned(), bad_input, summary: None };
        assert_eq!(server.plane.ending().await, Some(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_itself_in_good_order_has_a_summary() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 1);
    let mut learner = server.learner().await;
    let summary = Some(Summary { gain: 0.25, ..Summary::default() });
    let fatal = Some(Fatal { reason: "reward hacking".to_owned(), bad_input: false, summary });
    let request = ReportRequest { caller: learner.caller.clone(), fatal, ..ReportRequest::default() };
    learner.client.report(request).await.expect("reported");
    let Some(RunEnding::Failed { summary: Some(summary), .. }) = server.plane.ending().await else {
        panic!("it ended so")
    };
    assert!(summary.gain == 0.25 && summary.worker_busy_seconds > 0.0, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn free_tasks_go_to_those_who_wait_longest_and_to_nobody_who_hung_up() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 1);
    let mut learner = server.learner().await;
    let mut waiting = Vec::new();
    for member_id in ["gone", "a", "b", "c"] {
        let mut worker = server.worker(member_id).await;
        let sign = || server.plane.read(|state| state.members.get(member_id).expect("joined").last_heartbeat);
        let (joined, same) = (sign(), worker.clone());
        let call = tokio::spawn(async move { (worker.next(LONG).await, worker) });
        waiting.push((call, same));
        // They come in this order: who was heard to ask waits.
        until("it waits", || sign() > joined).await;
    }
    let (gone, mut same) = waiting.remove(0);
    gone.abort();
    assert!(gone.await.is_err_and(|error| error.is_cancelled()));
    // That it hung up is heard before what comes later by the same connection, and then passed on to where the call is served.
    for _ in 0..10 {
        same.heartbeat().await.expect("a member");
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    learner.report(wants_training(0, &[2, 3])).await;
    let mut granted = Vec::new();
    for (call, _) in waiting.drain(..2) {
        let (task, worker) = call.await.expect("no panic");
        granted.push((task.expect("a member").expect("a task"), worker));
    }
    assert_eq!([granted[0].0, granted[1].0], [train(0, 0), train(0, 1)]);
    let (last, _) = waiting.remove(0);
    assert!(!last.is_finished(), "there is no task left");
    let caller = granted[0].1.caller.clone();
    granted[0].1.client.leave(LeaveRequest { caller }).await.expect("heard");
    let (task, _) = last.await.expect("no panic");
    assert_eq!(task.expect("a member"), Some(train(0, 0)), "at once, when its worker leaves");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_the_learners_name_and_status_stays_readable_whatever_members_say() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 1);
    let join = async |request: JoinRequest| {
        let channel = service::connect(
            &server.address(),
            PeerRole::Coordinator,
            &Trust::Plain(Insecure::Loopback),
            LONG,
        )
        .await
        .expect("connected");
        service::coordinator_client(channel).join(request).await.map(drop)
    };
    let role = Role::RolloutWorker.into();
    let request =
        JoinRequest { role, member_id: "learner".to_owned(), process: process(1), ..JoinRequest::default() };
    let refused = join(request.clone()).await.expect_err("it is the learner's");
    assert!(refused.message().contains("`learner` is that of a learner"), "{refused}");
    let mut learner = server.learner().await;
    join(request).await.expect_err("it is the learner's");
    assert!(!learner.heartbeat().await.expect("undisturbed"));

    let giant = "\u{1b}[2J".repeat(7 << 18);
    for member_id in [giant.clone(), giant[..4000].to_owned()] {
        let refused =
            join(JoinRequest { role, member_id, process: process(1), ..JoinRequest::default() }).await;
        assert!(refused.expect_err("no name").message().len() < 1000);
    }
    let mut worker = server.worker("a").await;
    let troubles = vec![giant[..100_000].to_owned(); 8];
    let caller = worker.caller.clone();
    let request = HeartbeatRequest {
        caller,
        troubles,
        standstills: vec![proto::Standstill { work: 77, seconds: f64::NAN }; 1000],
        running: vec![proto::TaskId { kind: 77, ..Default::default() }; 1000],
        device: giant[..900].to_owned(),
        card: giant[..900].to_owned(),
        ..HeartbeatRequest::default()
    };
    worker.client.heartbeat(request).await.expect("a member");
    learner.report(wants_training(0, &[])).await;
    let task = worker.next(LONG).await.expect("a member").expect("a task");
    worker.finish(task, &giant[..900_000]).await.expect("told");
    let mut admin = coordinator::server::connect_admin(&server.address(), &Trust::Plain(Insecure::Loopback))
        .await
        .expect("connected");
    let status = admin.status(proto::StatusRequest::default()).await.expect("sendable").into_inner();
    let n_bytes: usize = status.members.iter().flat_map(|member| &member.troubles).map(String::len).sum();
    assert!(n_bytes < 20_000 && n_bytes > 0, "{n_bytes}");
    assert!(!format!("{status:?}").contains('\u{1b}'));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_carries_what_members_said_and_have() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 1);
    let (mut learner, mut worker) = (server.learner().await, server.worker("a").await);
    let progress = proto::Progress { iterations: 4, learner_busy: 0.5, ..Default::default() };
    let report = ReportRequest {
        caller: learner.caller.clone(),
        wanted: wants_training(0, &[3]),
        progress: Some(progress),
        notices: vec!["a damaged checkpoint was passed over".to_owned()],
        ..ReportRequest::default()
    };
    learner.client.report(report).await.expect("reported");
    worker.next(LONG).await.expect("a member").expect("a task");
    let (caller, device) = (worker.caller.clone(), "cpu".to_owned());
    let troubles = vec!["the reward does not answer".to_owned()];
    let request = HeartbeatRequest { caller, device, troubles, ..HeartbeatRequest::default() };
    worker.client.heartbeat(request).await.expect("a member");

    let mut admin = coordinator::server::connect_admin(&server.address(), &Trust::Plain(Insecure::Loopback))
        .await
        .expect("connected");
    let run =
        LivingRun::from(admin.status(proto::StatusRequest::default()).await.expect("told").into_inner());
    assert_eq!((run.run_id.as_str(), run.run_name.as_str()), ("run-a", "tempflow-tiny"));
    assert_eq!(run.notices, ["a damaged checkpoint was passed over"]);
    let Overview { tasks_waiting, tasks_running, tasks_held, workers, .. } = run.overview;
    assert_eq!((tasks_waiting, tasks_running, tasks_held, workers), (2, 1, 1, 1));
    assert_eq!(run.overview.progress.iterations, 4);
    let [worker, learner] = run.members.as_slice() else { panic!("not two: {:?}", run.members) };
    assert_eq!((learner.role, learner.state.as_str(), learner.busy), (Role::Learner, "living", 0.5));
    assert_eq!((worker.role, worker.device.as_str(), worker.pid), (Role::RolloutWorker, "cpu", 1));
    assert_eq!((&worker.running[..], worker.troubles.len()), (&[train(0, 0)][..], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_may_say_is_refused() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 1);
    let (mut learner, mut worker) = (server.learner().await, server.worker("a").await);
    let code = |outcome: Result<(), Status>| outcome.expect_err("refused").code();
    assert_eq!(code(learner.next(Duration::ZERO).await.map(drop)), Code::InvalidArgument);
    let no_task = FinishTaskRequest { caller: worker.caller.clone(), ..FinishTaskRequest::default() };
    assert_eq!(code(worker.client.finish_task(no_task).await.map(drop)), Code::InvalidArgument);
    let unknown = FinishTaskRequest { task: Some(TaskId::default()), ..FinishTaskRequest::default() };
    assert_eq!(code(worker.client.finish_task(unknown).await.map(drop)), Code::InvalidArgument);
    let odd = Wanted { version: 5, ..wants(proto::TaskKind::Train, 9, &[]) };
    let report =
        ReportRequest { caller: learner.caller.clone(), wanted: vec![odd], ..ReportRequest::default() };
    assert_eq!(code(learner.client.report(report).await.map(drop)), Code::InvalidArgument);
}
