//! The line to the coordinator that all clones of a membership share: one identity, one heartbeat, one loss.

use super::{JoinDetails, ResultsQuestion, Standing};
use crate::connect::is_outage;
use crate::own_half::introduction;
use crate::trust::{Trust, trust_problem};
use crate::{RecentLog, ServiceError, ToldLog, backoff, request};
use proto::coordinator_client::CoordinatorClient;
use proto::{
    AskLog, AskResults, Caller, GiveBack, HeartbeatRequest, JoinReply, JoinRequest, Process, TellLogRequest,
    WeightsStanding, order,
};
use protocol::{
    AfterCall, Backoff, CallEnd, InHand, JoinEnd, JoinRefusal, MemberLink, MembershipLoss, TaskName,
};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;
use tonic::{Code, Status};

pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(5);

pub(super) struct Link {
    pub(super) address: String,
    pub(super) client: CoordinatorClient<Channel>,
    pub(super) trust: Trust,
    pub(super) details: JoinDetails,
    pub(super) process: Process,
    pub(super) state: Mutex<State>,
    /// Held while joining, so that callers fenced together join once.
    pub(super) joining: tokio::sync::Mutex<()>,
    pub(super) standing: watch::Sender<Standing>,
    pub(super) lost: watch::Sender<Option<MembershipLoss>>,
    /// There is something to tell that should not wait for the next heartbeat.
    pub(super) news: Notify,
}

pub(super) struct State {
    pub(super) member: MemberLink,
    pub(super) in_hand: InHand,
    /// What is wrong while the member goes on, by its subject.
    pub(super) troubles: BTreeMap<String, String>,
    /// What it computes on; empty until that is known.
    pub(super) device: String,
    /// Empty where that is no card.
    pub(super) card: String,
    /// Learner: the newest epoch whose group of ranks broke.
    pub(super) broken_ranks: u64,
    /// Learner: where other ranks reach it; empty where there are none.
    pub(super) ranks_address: String,
    /// Worker: the weights that it has, once it has said so.
    pub(super) weights: Option<WeightsStanding>,
    /// What is told of the log, and the newest question that was answered.
    pub(super) log: RecentLog,
    pub(super) told_log: u64,
}

impl Link {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn loss(&self, loss: MembershipLoss) -> ServiceError {
        let address = self.address.clone();
        match loss {
            MembershipLoss::Gone => ServiceError::CoordinatorGone { address, grace: self.details.grace },
            MembershipLoss::Refused(refusal) => {
                ServiceError::Refused { address, member_id: self.details.member_id.clone(), refusal }
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
        let mut is_told = false;
        loop {
            let message = self.join_request();
            let reply = self.client.clone().join(request(message, CALL_DEADLINE)).await;
            let reply = reply.map(tonic::Response::into_inner);
            self.decide(|member| member.on_join(join_end(reply.as_ref()), Instant::now()))?;
            match reply {
                Ok(reply) => {
                    self.joined(&reply);
                    return Ok(reply);
                }
                Err(status) => {
                    if status.code() == Code::AlreadyExists && !std::mem::replace(&mut is_told, true) {
                        tracing::warn!("waiting for the end of a lease: {}", status.message());
                    }
                    tokio::time::sleep(pauses.next_pause()).await;
                }
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
            rank: self.details.rank,
            address: self.details.address.clone(),
            running: state.in_hand.tasks().to_vec(),
            // Looked at anew: it may have begun since.
            own_directory: self.details.own_directory.as_ref().map(introduction),
        }
    }

    fn joined(&self, reply: &JoinReply) {
        {
            let mut state = self.state();
            // Another coordinator counts its questions anew.
            state.told_log = 0;
            tracing::info!(incarnation = state.member.caller().incarnation, "joined the run");
        }
        self.stand(Standing::joined(reply.learner_addresses.clone()));
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
            let end = call_end(outcome.as_ref().err(), &caller);
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

    pub(super) fn failed(&self, status: Status) -> ServiceError {
        ServiceError::Call { address: self.address.clone(), source: Box::new(status) }
    }

    fn heartbeat_request(&self, caller: Caller) -> HeartbeatRequest {
        let state = self.state();
        let standstills = state.in_hand.standstills(Instant::now());
        let running = state.in_hand.tasks().to_vec();
        let troubles = state.troubles.values().cloned().collect();
        let (device, card, weights) = (state.device.clone(), state.card.clone(), state.weights.clone());
        let (broken_ranks, ranks_address) = (state.broken_ranks, state.ranks_address.clone());
        HeartbeatRequest {
            caller: Some(caller),
            standstills,
            troubles,
            device,
            card,
            running,
            broken_ranks,
            ranks_address,
            weights,
        }
    }

    async fn heartbeat(self: &Arc<Self>) -> Result<(), ServiceError> {
        let reply = self
            .call(CALL_DEADLINE, |mut client, caller| async move {
                let message = self.heartbeat_request(caller);
                client.heartbeat(request(message, CALL_DEADLINE)).await
            })
            .await?;
        let mut standing = Standing { ranks: reply.ranks, ..Standing::joined(reply.learner_addresses) };
        let mut questions = Vec::new();
        for order in reply.orders.into_iter().filter_map(|order| order.order) {
            match order {
                order::Order::Drain(drain) => {
                    standing.drain = Some(Duration::try_from_secs_f64(drain.seconds).unwrap_or_default());
                }
                // What has no name here is none of its tasks.
                order::Order::GiveBack(GiveBack { tasks }) => {
                    standing.not_needed = tasks.iter().flat_map(TaskName::try_from).collect();
                }
                order::Order::AskLog(question) => questions.push(question),
                order::Order::AskResults(AskResults { number }) => {
                    let incarnation = self.state().member.caller().incarnation;
                    standing.results_asked = Some(ResultsQuestion { incarnation, number });
                }
            }
        }
        self.stand(standing);
        if !questions.is_empty() {
            // Beside the heartbeats, which must not wait for it.
            tokio::spawn(self.clone().tell_logs(questions));
        }
        Ok(())
    }
}

impl Link {
    /// Answers in the order of numbers, since none is answered below one that was.
    async fn tell_logs(self: Arc<Self>, mut questions: Vec<AskLog>) {
        questions.sort_unstable_by_key(|question| question.number);
        for question in questions {
            self.tell_log(question).await;
        }
    }

    /// Answers a question about the log once; one that was not heard is asked again.
    async fn tell_log(&self, AskLog { number, lines, from }: AskLog) {
        let (caller, told) = {
            let mut state = self.state();
            if number <= state.told_log {
                return;
            }
            state.told_log = number;
            let told =
                from.map_or_else(|| state.log.last_lines(lines as usize), |from| state.log.since(from));
            (state.member.caller().clone(), told)
        };
        let ToldLog { text, end, missed } = told;
        let message = TellLogRequest { caller: Some(caller), number, text: text.into(), end, missed };
        if let Err(status) = self.client.clone().tell_log(request(message, CALL_DEADLINE)).await {
            tracing::debug!("log not told: {}", status.message());
            self.state().told_log = number - 1;
        }
    }
}

pub(super) async fn heartbeats(link: Arc<Link>) {
    loop {
        let pause = link.state().member.heartbeat_pause();
        // Early, where there are news.
        let _ = tokio::time::timeout(pause, link.news.notified()).await;
        match link.heartbeat().await {
            Ok(()) => {}
            Err(ServiceError::Call { source, .. }) => {
                tracing::warn!("heartbeat not taken: {}", source.message());
            }
            Err(_) => return,
        }
    }
}

/// What the end of an attempt to join means.
pub fn join_end<'a>(outcome: Result<&'a JoinReply, &Status>) -> JoinEnd<'a> {
    let status = match outcome {
        Ok(reply) => return JoinEnd::Joined(reply),
        Err(status) => status,
    };
    match (trust_problem(status), status.code()) {
        _ if is_outage(status) => JoinEnd::Outage,
        (Some(problem), _) => JoinEnd::Refused(JoinRefusal { reason: problem.to_string(), is_final: true }),
        (None, Code::AlreadyExists) => JoinEnd::Taken(status.message().to_owned()),
        (None, code) => {
            let reason = status.message().to_owned();
            JoinEnd::Refused(JoinRefusal { reason, is_final: is_verdict(code) })
        }
    }
}

/// Whether a coordinator that answers so has looked at who asks, and would answer the same another time.
fn is_verdict(code: Code) -> bool {
    matches!(
        code,
        Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
    )
}

fn patience() -> Backoff {
    backoff(Duration::from_millis(50), Duration::from_secs(2))
}

/// What the status of a call to the coordinator means, none being a reply; it carried this identity.
pub fn call_end(status: Option<&Status>, caller: &Caller) -> CallEnd {
    match status {
        None => CallEnd::Answered,
        Some(status) if status.code() == Code::FailedPrecondition => CallEnd::Fenced(caller.clone()),
        Some(status) if is_outage(status) => CallEnd::Outage,
        Some(_) => CallEnd::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit_code;

    #[test]
    fn what_a_coordinator_answers_decides_whether_a_new_process_is_worth_a_try() {
        for (code, is_final) in [
            (Code::FailedPrecondition, true),
            (Code::InvalidArgument, true),
            (Code::PermissionDenied, true),
            (Code::Unauthenticated, true),
            (Code::Unimplemented, true),
            (Code::ResourceExhausted, false),
            (Code::Internal, false),
        ] {
            let refusal = JoinRefusal { reason: "no".to_owned(), is_final };
            let end = join_end(Err(&Status::new(code, "no")));
            assert_eq!(end, JoinEnd::Refused(refusal.clone()), "{code:?}");
            let expected = if is_final { exit_code::BAD_USAGE } else { exit_code::FAILED };
            assert_eq!(exit_code::of_refusal(&refusal), expected, "{code:?}");
        }
        assert_eq!(join_end(Err(&Status::unavailable("no"))), JoinEnd::Outage);
        assert_eq!(join_end(Err(&Status::already_exists("no"))), JoinEnd::Taken("no".to_owned()));
        assert_eq!(exit_code::of_loss(&MembershipLoss::Gone), exit_code::RETRY);
    }
}
