//! The line to the coordinator that all clones of a membership share: one identity, one heartbeat, one loss.

use super::work_in_hand::WorkClocks;
use super::{JoinDetails, Standing};
use crate::{ServiceError, backoff, request};
use proto::coordinator_client::CoordinatorClient;
use proto::{Caller, HeartbeatRequest, JoinReply, JoinRequest, Process, TaskId, order};
use protocol::{AfterCall, Backoff, CallEnd, JoinEnd, MemberLink, MembershipLoss};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(5);

pub(super) struct Link {
    pub(super) address: String,
    pub(super) client: CoordinatorClient<Channel>,
    pub(super) details: JoinDetails,
    pub(super) process: Process,
    pub(super) state: Mutex<State>,
    /// Held while joining, so that callers fenced together join once.
    pub(super) joining: tokio::sync::Mutex<()>,
    pub(super) standing: watch::Sender<Standing>,
    pub(super) lost: watch::Sender<Option<MembershipLoss>>,
}

pub(super) struct State {
    pub(super) member: MemberLink,
    pub(super) running: Vec<TaskId>,
    pub(super) work: WorkClocks,
    /// What is wrong while the member goes on, by its subject.
    pub(super) troubles: BTreeMap<String, String>,
    /// What it computes on; empty until that is known.
    pub(super) device: String,
    /// Empty where that is no card.
    pub(super) card: String,
}

impl Link {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn loss(&self, loss: MembershipLoss) -> ServiceError {
        let address = self.address.clone();
        match loss {
            MembershipLoss::Gone => ServiceError::CoordinatorGone { address, grace: self.details.grace },
            MembershipLoss::Refused(reason) => {
                ServiceError::Refused { address, member_id: self.details.member_id.clone(), reason }
            }
        }
    }

    /// What the machine decides, which everybody hears of if it is the end.
    fn decide<T>(
        &self,
        decide: impl FnOnce(&mut MemberLink) -> Result<T, MembershipLoss>,
    ) -> Result<T, ServiceError> {
        let decision = decide(&mut self.state().member);
        decision.map_err(|loss| {
            self.lost.send_replace(Some(loss.clone()));
            self.loss(loss)
        })
    }

    pub(super) async fn join(&self) -> Result<JoinReply, ServiceError> {
        let mut pauses = patience();
        loop {
            let message = self.join_request();
            let reply = self.client.clone().join(request(message, CALL_DEADLINE)).await;
            let reply = reply.map(tonic::Response::into_inner);
            let end = match &reply {
                Ok(reply) => JoinEnd::Joined(reply),
                Err(status) if is_outage(status) => JoinEnd::Outage,
                Err(status) => JoinEnd::Refused(status.message().to_owned()),
            };
            self.decide(|member| member.on_join(end, Instant::now()))?;
            match reply {
                Ok(reply) => {
                    self.joined(&reply);
                    return Ok(reply);
                }
                Err(_) => tokio::time::sleep(pauses.next_pause()).await,
            }
        }
    }

    fn join_request(&self) -> JoinRequest {
        let state = self.state();
        JoinRequest {
            role: self.details.role.into(),
            member_id: self.details.member_id.clone(),
            run_id: state.member.caller().run_id.clone(),
            process: Some(self.process.clone()),
            rank: 0,
            address: self.details.address.clone(),
            running: state.running.clone(),
        }
    }

    fn joined(&self, reply: &JoinReply) {
        tracing::info!(incarnation = self.state().member.caller().incarnation, "joined the run");
        let learner_addresses = reply.learner_addresses.clone();
        self.stand(Standing { learner_addresses, drain: None });
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
        let fenced = CallEnd::Fenced(refused.clone());
        if self.decide(|member| member.on_call(fenced, Instant::now()))? == AfterCall::JoinFirst {
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
            self.decide(|member| member.check_lost())?;
            let caller = self.state().member.caller().clone();
            // The outer deadline also covers a connection that neither answers nor breaks.
            let outcome =
                tokio::time::timeout(deadline * 2, attempt(self.client.clone(), caller.clone())).await;
            let outcome = outcome.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
            let end = match &outcome {
                Ok(_) => CallEnd::Answered,
                Err(status) if status.code() == Code::FailedPrecondition => CallEnd::Fenced(caller.clone()),
                Err(status) if is_outage(status) => CallEnd::Outage,
                Err(_) => CallEnd::Failed,
            };
            match self.decide(|member| member.on_call(end, Instant::now()))? {
                AfterCall::Return => {
                    return outcome.map(tonic::Response::into_inner).map_err(|status| self.failed(status));
                }
                AfterCall::JoinFirst => self.join_again(&caller).await?,
                AfterCall::CallLater => {}
            }
            tokio::time::sleep(pauses.next_pause()).await;
        }
    }

    fn failed(&self, status: Status) -> ServiceError {
        ServiceError::Call { address: self.address.clone(), source: Box::new(status) }
    }

    fn heartbeat_request(&self, caller: Caller) -> HeartbeatRequest {
        let state = self.state();
        let idle_seconds = state.work.idle(Instant::now()).as_secs_f64();
        let troubles = state.troubles.values().cloned().collect();
        let (device, card) = (state.device.clone(), state.card.clone());
        HeartbeatRequest { caller: Some(caller), idle_seconds, troubles, device, card }
    }

    async fn heartbeat(&self) -> Result<(), ServiceError> {
        let reply = self
            .call(CALL_DEADLINE, |mut client, caller| async move {
                let message = self.heartbeat_request(caller);
                client.heartbeat(request(message, CALL_DEADLINE)).await
            })
            .await?;
        let drain = reply.orders.iter().find_map(|order| order.order.map(|order::Order::Drain(drain)| drain));
        let drain = drain.map(|drain| Duration::try_from_secs_f64(drain.seconds).unwrap_or_default());
        self.stand(Standing { learner_addresses: reply.learner_addresses, drain });
        Ok(())
    }
}

pub(super) async fn heartbeats(link: Arc<Link>) {
    loop {
        let pause = link.state().member.heartbeat_pause();
        tokio::time::sleep(pause).await;
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
