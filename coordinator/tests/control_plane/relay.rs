//! Workers that look for a source of weights, over real connections.

use crate::lab::{LEASE, LONG, Member, Server};
use proto::seek_weights_reply::Source;
use proto::{
    FailedSource, HeartbeatRequest, LearnerSource, SeekWeightsRequest, WeightsId, WeightsRole,
    WeightsStanding, WorkerSource,
};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

fn weights() -> WeightsId {
    WeightsId { version: 3, role: WeightsRole::Policy.into() }
}

fn learner() -> Option<Source> {
    Some(Source::Learner(LearnerSource {}))
}

fn worker(member_id: &str) -> Option<Source> {
    let address = format!("10.0.0.1:{}", member_id.len());
    Some(Source::Worker(WorkerSource { member_id: member_id.to_owned(), address }))
}

async fn seek(member: &Member, failed: &[&str], wait: Duration) -> Result<Option<Source>, Status> {
    let failed = failed.iter().map(|source| FailedSource {
        member_id: (*source).to_owned(),
        reason: "the stream was cut".to_owned(),
    });
    let request = SeekWeightsRequest {
        caller: member.caller.clone(),
        weights: Some(weights()),
        failed: failed.collect(),
        wait_seconds: wait.as_secs_f64(),
    };
    member.client.clone().seek_weights(request).await.map(|reply| reply.into_inner().source)
}

async fn heartbeat(member: &Member, weights: WeightsStanding) -> Result<(), Status> {
    let (caller, weights) = (member.caller.clone(), Some(weights));
    let request = HeartbeatRequest { caller, weights, ..HeartbeatRequest::default() };
    member.client.clone().heartbeat(request).await.map(drop)
}

/// A heartbeat of a worker that has the weights and serves them at an address.
async fn tells(member: &Member, address: &str) {
    let standing = WeightsStanding { address: address.to_owned(), held: vec![weights()], fetching: None };
    heartbeat(member, standing).await.expect("a member");
}

/// Lives and fetches the weights until `stop`; once it has ended, nothing of that is on its way any more.
fn keep_fetching(member: &Member, stop: &CancellationToken) -> JoinHandle<()> {
    let (member, stop) = (member.clone(), stop.clone());
    tokio::spawn(async move {
        let standing = WeightsStanding { fetching: Some(weights()), ..WeightsStanding::default() };
        while heartbeat(&member, standing.clone()).await.is_ok() {
            if stop.run_until_cancelled(tokio::time::sleep(LEASE / 10)).await.is_none() {
                return;
            }
        }
    })
}

fn count(server: &Server, event: &str, cause: &str) -> u64 {
    let counts = server.plane.read(|state| state.events().counts());
    let found = counts.iter().find(|count| (&*count.event, &*count.cause) == (event, cause));
    found.expect("a known event").count
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_are_sent_to_each_other_and_who_waits_hears_at_once_of_room() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 1);
    let [a, b, c] = [server.worker("a").await, server.worker("bb").await, server.worker("ccc").await];
    let stop = CancellationToken::new();
    let fetching = [&a, &b].map(|member| keep_fetching(member, &stop));
    let _alive = [&a, &b, &c].map(Member::keep_alive);
    assert_eq!(seek(&a, &[], Duration::ZERO).await.expect("a member"), learner());
    assert_eq!(seek(&b, &[], Duration::ZERO).await.expect("a member"), learner());
    assert_eq!(seek(&c, &[], Duration::ZERO).await.expect("a member"), None, "the learner has two already");
    let waiting = tokio::spawn({
        let c = c.clone();
        async move { seek(&c, &[], LONG).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    stop.cancel();
    for fetches in fetching {
        fetches.await.expect("no panic");
    }
    tells(&a, "10.0.0.1:1").await;
    assert_eq!(waiting.await.expect("no panic").expect("a member"), worker("a"));
    assert_eq!(count(&server, "weights_fetched", "learner"), 1);
    for _ in 0..2 {
        let source = seek(&c, &["a"], Duration::ZERO).await.expect("a member");
        assert_eq!(source, learner(), "it has failed, and is passed over");
    }
    assert_eq!(count(&server, "weights_source_failed", ""), 1, "each failure is told once");
    tells(&b, "10.0.0.1:2").await;
    assert_eq!(seek(&c, &["a"], Duration::ZERO).await.expect("a member"), worker("bb"));
    tells(&c, "10.0.0.1:3").await;
    assert_eq!(count(&server, "weights_fetched", "worker"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_of_a_worker_that_is_lost_is_given_to_who_waits() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::with_lease(LEASE, home.path(), 0, 1);
    let dead = server.worker("dead").await;
    let not_yet_dead = dead.keep_alive();
    let b = server.worker("bb").await;
    let b_alive = b.keep_alive();
    let c = server.worker("ccc").await;
    let _alive = [b_alive, c.keep_alive()];
    for member in [&dead, &b] {
        assert_eq!(seek(member, &[], Duration::ZERO).await.expect("a member"), learner());
    }
    drop(not_yet_dead);
    assert_eq!(seek(&c, &[], LONG).await.expect("a member"), learner(), "once its lease has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_sent_where_he_would_find_himself_and_only_workers_ask() {
    let home = tempfile::tempdir().expect("a directory");
    let server = Server::start(home.path(), 0, 1);
    let [a, b, c] = [server.worker("a").await, server.worker("bb").await, server.worker("ccc").await];
    let _alive = [&a, &b, &c].map(Member::keep_alive);
    tells(&a, "0.0.0.0:7").await;
    assert_eq!(seek(&b, &[], Duration::ZERO).await.expect("a member"), learner());
    let learner = server.learner().await;
    assert_eq!(seek(&learner, &[], LONG).await.expect_err("no worker").code(), Code::InvalidArgument);
    let nobody = Member { caller: None, ..c };
    assert!(seek(&nobody, &[], LONG).await.is_err());
}
