//! The line to the coordinator that all clones of a membership share: one identity, one heartbeat, one loss.

use super::work_in_hand::WorkClocks;
use super::{JoinDetails, Standing};
use crate::{ServiceError, backoff, request};
use proto::coordinator_client::CoordinatorClient;
use proto::heartbeat_reply::Order;
use proto::{Caller, HeartbeatRequest, JoinReply, JoinRequest, TaskId};
use protocol::Backoff;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// Heartbeats that fit into one lease.
const HEARTBEATS_PER_LEASE: f64 = 5.0;

pub(super) struct Link {
    pub(super) address: String,
    pub(super) client: CoordinatorClient<Channel>,
    pub(super) details: JoinDetails,
    pub(super) state: Mutex<State>,
    /// Held while joining, so that callers fenced together join once.
    pub(super) joining: tokio::sync::Mutex<()>,
    pub(super) standing: watch::Sender<Standing>,
    pub(super) lost: watch::Sender<Option<Loss>>,
}

pub(super) struct State {
    pub(super) caller: Caller,
    pub(super) lease: Duration,
    pub(super) running: Vec<TaskId>,
    pub(super) work: WorkClocks,
    /// What is wrong while the member goes on, by its subject.
    pub(super) troubles: BTreeMap<String, String>,
    pub(super) last_contact: Instant,
}

/// Why a membership ended; the source of one [`ServiceError`] for each of the calls that it ends.
#[derive(Clone, Debug)]
pub(super) enum Loss {
    Gone,
    Refused(String),
}

impl Link {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn loss(&self, loss: Loss) -> ServiceError {
        let address = self.address.clone();
        match loss {
            Loss::Gone => ServiceError::CoordinatorGone { address, grace: self.details.grace },
            Loss::Refused(reason) => {
                ServiceError::Refused { address, member_id: self.details.member_id.clone(), reason }
            }
        }
    }

    fn lose(&self, loss: Loss) -> ServiceError {
        self.lost.send_replace(Some(loss.clone()));
        self.loss(loss)
    }

    fn check_lost(&self) -> Result<(), ServiceError> {
        match &*self.lost.borrow() {
            Some(loss) => Err(self.loss(loss.clone())),
            None => Ok(()),
        }
    }

    fn in_contact(&self) {
        self.state().last_contact = Instant::now();
    }

    /// Whether a failed call is worth repeating now; ends the membership once the grace is over.
    fn outlives_outage(&self) -> Result<(), ServiceError> {
        self.check_lost()?;
        let away = self.state().last_contact.elapsed();
        if away > self.details.grace { Err(self.lose(Loss::Gone)) } else { Ok(()) }
    }

    pub(super) async fn join(&self) -> Result<JoinReply, ServiceError> {
        let mut pauses = patience();
        loop {
            let message = self.join_request();
            match self.client.clone().join(request(message, CALL_DEADLINE)).await {
                Ok(reply) => {
                    let reply = reply.into_inner();
                    self.joined(&reply);
                    return Ok(reply);
                }
                Err(status) if is_outage(&status) => {
                    self.outlives_outage()?;
                    tokio::time::sleep(pauses.next_pause()).await;
                }
                Err(status) => return Err(self.lose(Loss::Refused(status.message().to_owned()))),
            }
        }
    }

    fn join_request(&self) -> JoinRequest {
        let state = self.state();
        JoinRequest {
            role: self.details.role.into(),
            member_id: self.details.member_id.clone(),
            run_id: state.caller.run_id.clone(),
            address: self.details.address.clone(),
            pid: std::process::id(),
            host: nix::unistd::gethostname()
                .map(|host| host.to_string_lossy().into_owned())
                .unwrap_or_default(),
            running: state.running.clone(),
        }
    }

    fn joined(&self, reply: &JoinReply) {
        let mut state = self.state();
        if let Some(identity) = &reply.identity {
            state.caller = identity.clone();
        }
        state.lease = Duration::try_from_secs_f64(reply.lease_seconds).unwrap_or(state.lease);
        state.last_contact = Instant::now();
        tracing::info!(incarnation = state.caller.incarnation, "joined the run");
        drop(state);
        self.stand(Standing { learner_address: reply.learner_address.clone(), order: Order::Continue });
    }

    fn stand(&self, standing: Standing) {
        self.standing.send_if_modified(|old| {
            let changed = *old != standing;
            *old = standing;
            changed
        });
    }

    /// Joins again unless somebody has done so since `refused` was the identity.
    async fn join_again(&self, refused: &Caller) -> Result<(), ServiceError> {
        let _joining = self.joining.lock().await;
        self.check_lost()?;
        if self.state().caller == *refused {
            tracing::warn!(incarnation = refused.incarnation, "fenced by the coordinator, joining again");
            self.join().await?;
        }
        Ok(())
    }

    /// Calls until the coordinator answers: waits through outages, joins again when fenced.
    pub(super) async fn call<T, F>(
        &self,
        deadline: Duration,
        attempt: impl Fn(CoordinatorClient<Channel>, Caller) -> F,
    ) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut pauses = patience();
        loop {
            self.check_lost()?;
            let caller = self.state().caller.clone();
            // The outer deadline also covers a connection that neither answers nor breaks.
            let outcome =
                tokio::time::timeout(deadline * 2, attempt(self.client.clone(), caller.clone())).await;
            match outcome.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))) {
                Ok(reply) => {
                    self.in_contact();
                    return Ok(reply.into_inner());
                }
                Err(status) if status.code() == Code::FailedPrecondition => {
                    self.in_contact();
                    self.join_again(&caller).await?;
                    tokio::time::sleep(pauses.next_pause()).await;
                }
                Err(status) if is_outage(&status) => {
                    self.outlives_outage()?;
                    tokio::time::sleep(pauses.next_pause()).await;
                }
                Err(status) => {
                    return Err(ServiceError::Call {
                        address: self.address.clone(),
                        source: Box::new(status),
                    });
                }
            }
        }
    }

    fn heartbeat_request(&self, caller: Caller) -> HeartbeatRequest {
        let state = self.state();
        let idle_seconds = state.work.idle(Instant::now()).as_secs_f64();
        let troubles = state.troubles.values().cloned().collect();
        HeartbeatRequest { caller: Some(caller), idle_seconds, troubles }
    }

    async fn heartbeat(&self) -> Result<(), ServiceError> {
        let reply = self
            .call(CALL_DEADLINE, |mut client, caller| async move {
                let message = self.heartbeat_request(caller);
                client.heartbeat(request(message, CALL_DEADLINE)).await
            })
            .await?;
        let order = if reply.order() == Order::Drain { Order::Drain } else { Order::Continue };
        self.stand(Standing { learner_address: reply.learner_address, order });
        Ok(())
    }
}

pub(super) async fn heartbeats(link: Arc<Link>) {
    loop {
        let lease = link.state().lease;
        tokio::time::sleep(lease.div_f64(HEARTBEATS_PER_LEASE)).await;
        match link.heartbeat().await {
            Ok(()) => {}
            Err(ServiceError::Call { source, .. }) => {
                tracing::warn!("heartbeat not taken: {}", source.message());
            }
            Err(_) => return,
        }
    }
}

fn patience() -> Backoff {
    backoff(Duration::from_millis(50), Duration::from_secs(2))
}

/// Failures of the way to the coordinator, or of one that is starting or stopping.
fn is_outage(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Aborted
    )
}
