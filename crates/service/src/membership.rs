//! A process's place in the run: join, heartbeat, and joining again when either side was away.
//!
//! Invariants: (1) one identity at a time: every call carries the newest incarnation; (2) only a coordinator that
//! refuses the old identity makes a member join again, an unreachable one is waited for; (3) after the grace without
//! a coordinator the membership is lost for good and every call says so.

mod link;

use crate::connect::endpoint;
use crate::{ServiceError, coordinator_client, request};
use link::{CALL_DEADLINE, Link, Loss, State, heartbeats};
use proto::heartbeat_reply::Order;
use proto::{
    Caller, FinishTaskRequest, JoinReply, LeaveRequest, NextTaskRequest, Progress, ReportReply,
    ReportRequest, Role, Summary, Task, TaskId, Wanted,
};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

const LEAVE_DEADLINE: Duration = Duration::from_secs(2);

/// What a member says of itself when it joins.
#[derive(Clone, Debug)]
pub struct JoinDetails {
    /// Learner or rollout worker.
    pub role: Role,
    /// Chosen by the launcher, kept over restarts.
    pub member_id: String,
    /// Learner: where workers reach it, `host:port`; else empty.
    pub address: String,
    /// Worker: the task that is running already.
    pub running: Option<TaskId>,
    /// How long an absent coordinator is waited for.
    pub grace: Duration,
}

/// What the coordinator last said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `host:port` of the learner; empty while none has joined.
    pub learner_address: String,
    /// Go on, or finish what is in flight and leave.
    pub order: Order,
}

/// A living membership; its heartbeat stops when the last clone is dropped.
#[derive(Clone)]
pub struct Membership {
    link: Arc<Link>,
    _heartbeat: Arc<DropGuard>,
}

impl Membership {
    /// Joins the run at `address` (`http://host:port`), waiting for the coordinator for `details.grace` at most.
    ///
    /// # Errors
    /// If the address does not parse, nobody answers in time, or the coordinator refuses the member.
    pub async fn join(address: &str, details: JoinDetails) -> Result<(Self, JoinReply), ServiceError> {
        let client = coordinator_client(endpoint(address)?.connect_lazy());
        let now = Instant::now();
        let state = State {
            caller: Caller { member_id: details.member_id.clone(), ..Caller::default() },
            lease: Duration::from_secs(5),
            running: details.running,
            progressed: now,
            last_contact: now,
        };
        let standing = Standing { learner_address: String::new(), order: Order::Continue };
        let link = Arc::new(Link {
            address: address.to_owned(),
            client,
            details,
            state: Mutex::new(state),
            joining: tokio::sync::Mutex::new(()),
            standing: watch::Sender::new(standing),
            lost: watch::Sender::new(None),
        });
        let reply = link.join().await?;
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(heartbeats(link.clone())));
        Ok((Self { link, _heartbeat: Arc::new(stop.drop_guard()) }, reply))
    }

    /// The newest identity; every rpc to the learner carries it.
    pub fn caller(&self) -> Caller {
        self.link.state().caller.clone()
    }

    /// Follows what the coordinator says.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.link.standing.subscribe()
    }

    /// Waits until the membership is lost for good and says why; the process then exits with
    /// [`exit_code::RETRY`](crate::exit_code::RETRY).
    pub async fn lost(&self) -> ServiceError {
        let mut lost = self.link.lost.subscribe();
        // The sender lives in `link`, which `self` holds.
        let loss = lost.wait_for(Option::is_some).await.ok().and_then(|loss| loss.clone());
        self.link.loss(loss.unwrap_or(Loss::Gone))
    }

    /// Notes that the running task got somewhere; a worker that does not call this for long is taken for hung.
    pub fn progressed(&self) {
        self.link.state().progressed = Instant::now();
    }

    /// Asks for a task, waiting for one for `wait` at most. The task counts as running until it is finished.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn next_task(&self, wait: Duration) -> Result<Option<Task>, ServiceError> {
        let link = &self.link;
        let task = link
            .call(wait + CALL_DEADLINE, |mut client, caller| async move {
                let message = NextTaskRequest { caller: Some(caller), wait_seconds: wait.as_secs_f64() };
                client.next_task(request(message, wait + CALL_DEADLINE)).await
            })
            .await?
            .task;
        let mut state = link.state();
        state.running = task.as_ref().and_then(|task| task.id);
        state.progressed = Instant::now();
        drop(state);
        Ok(task)
    }

    /// Tells that the learner holds a task, or does not want it any more.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn task_held(&self, task: TaskId) -> Result<(), ServiceError> {
        self.finish(FinishTaskRequest { task: Some(task), ..FinishTaskRequest::default() }).await
    }

    /// Tells that a task failed; `poisonous` if the fault is the task's, not this worker's.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn task_failed(
        &self,
        task: TaskId,
        failure: &str,
        poisonous: bool,
    ) -> Result<(), ServiceError> {
        let failure = if failure.is_empty() { "unknown" } else { failure };
        self.finish(FinishTaskRequest {
            task: Some(task),
            failure: failure.to_owned(),
            poisonous,
            ..FinishTaskRequest::default()
        })
        .await
    }

    async fn finish(&self, message: FinishTaskRequest) -> Result<(), ServiceError> {
        self.link
            .call(CALL_DEADLINE, |mut client, caller| {
                let message = FinishTaskRequest { caller: Some(caller), ..message.clone() };
                async move { client.finish_task(request(message, CALL_DEADLINE)).await }
            })
            .await?;
        self.link.state().running.take_if(|running| Some(*running) == message.task);
        Ok(())
    }

    /// Learner: tells what is wanted and how far it is.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn report(&self, wanted: &[Wanted], progress: Progress) -> Result<ReportReply, ServiceError> {
        let message =
            ReportRequest { wanted: wanted.to_vec(), progress: Some(progress), ..ReportRequest::default() };
        self.send_report(message).await
    }

    /// Learner: tells that the run is done.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn report_done(&self, progress: Progress, summary: Summary) -> Result<(), ServiceError> {
        let message =
            ReportRequest { progress: Some(progress), summary: Some(summary), ..ReportRequest::default() };
        self.send_report(message).await.map(|_| ())
    }

    /// Learner: tells that the run cannot go on, and why.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn report_fatal(&self, reason: &str) -> Result<(), ServiceError> {
        let message = ReportRequest { fatal: reason.to_owned(), ..ReportRequest::default() };
        self.send_report(message).await.map(|_| ())
    }

    async fn send_report(&self, message: ReportRequest) -> Result<ReportReply, ServiceError> {
        self.link
            .call(CALL_DEADLINE, |mut client, caller| {
                let message = ReportRequest { caller: Some(caller), ..message.clone() };
                async move { client.report(request(message, CALL_DEADLINE)).await }
            })
            .await
    }

    /// Says goodbye; a coordinator that does not hear it lets the lease run out.
    pub async fn leave(self) {
        let message = LeaveRequest { caller: Some(self.caller()) };
        if let Err(status) = self.link.client.clone().leave(request(message, LEAVE_DEADLINE)).await {
            tracing::debug!("goodbye not heard: {}", status.message());
        }
    }
}
