//! A process's place in the run: join, heartbeat, and joining again when either side was away.
//!
//! Invariants: (1) one identity at a time: every call carries the newest incarnation; (2) only a coordinator that
//! refuses the old identity makes a member join again, an unreachable one is waited for; (3) after the grace without
//! a coordinator the membership is lost for good and every call says so.

mod halves;
mod link;
mod work_in_hand;

use crate::connect::Dial;
use crate::trust::{PeerRole, Trust};
use crate::{RecentLog, RunDirectory, ServiceError, coordinator_client, cuda, device_kind, request};
use config::ComputeDevice;
use link::{CALL_DEADLINE, Link, State, heartbeats};
use proto::{
    Blame, Caller, FailedSource, Fatal, FinishTaskRequest, JoinReply, LeaveRequest, NextTaskRequest, Process,
    Progress, RankGroup, ReportReply, ReportRequest, Role, SeekWeightsReply, SeekWeightsRequest, Summary,
    Task, TaskId, Wanted, WeightsStanding, Work,
};
use protocol::{InHand, MemberLink, MembershipLoss, NONCE_BYTES, TaskName, WeightsName};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use link::{call_end, join_end};
pub use work_in_hand::WorkInHand;

const LEAVE_DEADLINE: Duration = Duration::from_secs(2);

/// What a member says of itself when it joins.
#[derive(Clone, Debug)]
pub struct JoinDetails {
    /// Learner or rollout worker.
    pub role: Role,
    /// Chosen by the launcher, kept over restarts.
    pub member_id: String,
    /// Learner: its rank.
    pub rank: u32,
    /// Learner: where workers reach it, `host:port`; else empty.
    pub address: String,
    /// Where its metrics are shown, `host:port`; empty where they are not.
    pub metrics_address: String,
    /// How long an absent coordinator is waited for.
    pub grace: Duration,
    /// Learner: its half of the run, where it does not have the coordinator's directory.
    pub own_directory: Option<RunDirectory>,
}

/// What the coordinator last said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `host:port` of the learners by rank; empty while that one has not joined.
    pub learner_addresses: Vec<String>,
    /// Set where this member is to finish what is in flight and leave: how long delivering it may take.
    pub drain: Option<Duration>,
    /// Tasks in hand that nobody needs any more.
    pub not_needed: Vec<TaskName>,
    /// Learner: the group that all ranks are to form, once all are there.
    pub ranks: Option<RankGroup>,
    /// Learner: the question for what it has to show that the coordinator has last asked, if one is open.
    pub results_asked: Option<ResultsQuestion>,
}

/// A question of a coordinator. Another coordinator counts its questions anew, to another incarnation of the member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResultsQuestion {
    /// Who was asked.
    pub incarnation: u64,
    /// Among those of one coordinator.
    pub number: u64,
}

impl Standing {
    /// What a member knows that has just joined, of the learners that are there.
    fn joined(learner_addresses: Vec<String>) -> Self {
        Self { learner_addresses, drain: None, not_needed: Vec::new(), ranks: None, results_asked: None }
    }
}

/// A living membership; its heartbeat stops when the last clone is dropped.
#[derive(Clone)]
pub struct Membership {
    link: Arc<Link>,
    _heartbeat: Arc<DropGuard>,
}

impl Membership {
    /// Joins the run at `address`, as [`Address`](crate::Address) reads it, waiting for the coordinator for
    /// `details.grace` at most.
    ///
    /// # Errors
    /// If the address does not parse, nobody answers in time, or the coordinator refuses the member.
    pub async fn join(
        address: &str,
        trust: &Trust,
        details: JoinDetails,
    ) -> Result<(Self, JoinReply), ServiceError> {
        let dial = Dial::new(address.parse()?, PeerRole::Coordinator, trust)?;
        let client = coordinator_client(dial.channel());
        let state = State {
            member: MemberLink::new(&details.member_id, details.grace, Instant::now()),
            in_hand: InHand::default(),
            troubles: BTreeMap::new(),
            device: String::new(),
            card: String::new(),
            broken_ranks: 0,
            ranks_address: String::new(),
            weights: None,
            log: RecentLog::default(),
            told_log: 0,
        };
        let standing = Standing::joined(Vec::new());
        let process = Process { metrics_address: details.metrics_address.clone(), ..this_process() };
        let link = Arc::new(Link {
            address: address.to_owned(),
            client,
            trust: trust.clone(),
            details,
            process,
            state: Mutex::new(state),
            joining: tokio::sync::Mutex::new(()),
            standing: watch::Sender::new(standing),
            lost: watch::Sender::new(None),
            news: Notify::new(),
        });
        let reply = link.join().await?;
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(heartbeats(link.clone())));
        Ok((Self { link, _heartbeat: Arc::new(stop.drop_guard()) }, reply))
    }

    /// How other members are reached.
    pub fn trust(&self) -> &Trust {
        &self.link.trust
    }

    /// The newest identity; every rpc to the learner carries it.
    pub fn caller(&self) -> Caller {
        self.link.state().member.caller().clone()
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
        self.link.loss(loss.unwrap_or(MembershipLoss::Gone))
    }

    /// Begins something that must get on: from now until the end of what is returned, heartbeats tell how long it has
    /// stood still.
    pub fn begin_work(&self, work: Work) -> WorkInHand {
        WorkInHand::begin(self.link.clone(), work)
    }

    /// Lets the coordinator know, from the next heartbeat on, what this member computes on.
    pub fn computes_on(&self, device: ComputeDevice) {
        let mut state = self.link.state();
        (state.device, state.card) = (device.to_string(), cuda::card(device).unwrap_or_default());
    }

    /// Learner: lets the coordinator know, from the next heartbeat on, where other ranks reach this one.
    pub fn ranks_at(&self, address: String) {
        self.link.state().ranks_address = address;
    }

    /// Learner: lets the coordinator know, from the next heartbeat on, that the group of ranks of an epoch works no more.
    pub fn ranks_broke(&self, epoch: u64) {
        let mut state = self.link.state();
        state.broken_ranks = state.broken_ranks.max(epoch);
    }

    /// Lets the coordinator know, from the next heartbeat on, what is wrong with `subject` while this member goes on.
    pub fn troubled(&self, subject: &str, trouble: String) {
        self.link.state().troubles.insert(subject.to_owned(), trouble);
    }

    /// Shows the last lines of this log to who asks the coordinator for them.
    pub fn shows_log(&self, log: RecentLog) {
        self.link.state().log = log;
    }

    /// Nothing is wrong with `subject` any more.
    pub fn relieved(&self, subject: &str) {
        self.link.state().troubles.remove(subject);
    }

    /// Worker: lets the coordinator know what weights it can send to others and what it fetches; at once where that is news for
    /// who waits.
    pub fn has_weights(&self, weights: WeightsStanding) {
        let before = self.link.state().weights.replace(weights.clone());
        if before.is_none_or(|before| before.held != weights.held) {
            self.link.news.notify_one();
        }
    }

    /// Worker: asks from whom to fetch weights, waiting for a source that has room for `wait` at most. `None` where the
    /// coordinator does not answer, which is no reason to wait for it.
    pub async fn seek_weights(
        &self,
        name: WeightsName,
        failed: &[FailedSource],
        wait: Duration,
    ) -> Option<SeekWeightsReply> {
        let message = SeekWeightsRequest {
            caller: Some(self.caller()),
            weights: Some(name.into()),
            failed: failed.to_vec(),
            wait_seconds: wait.as_secs_f64(),
        };
        let (mut client, deadline) = (self.link.client.clone(), wait + CALL_DEADLINE);
        // The outer deadline also covers a connection that neither answers nor breaks.
        match tokio::time::timeout(deadline * 2, client.seek_weights(request(message, deadline))).await {
            Ok(Ok(reply)) => Some(reply.into_inner()),
            Ok(Err(status)) => {
                tracing::debug!("no source of weights is told: {}", status.message());
                None
            }
            Err(_) => None,
        }
    }

    /// Asks for a task beside those that are being finished, waiting for one for `wait` at most. The task counts as
    /// running until it is held or has failed.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn next_task(
        &self,
        finishing: &[TaskId],
        wait: Duration,
    ) -> Result<Option<Task>, ServiceError> {
        let link = &self.link;
        let task = link
            .call(wait + CALL_DEADLINE, |mut client, caller| async move {
                let wait_seconds = wait.as_secs_f64();
                let finishing = finishing.to_vec();
                let message = NextTaskRequest { caller: Some(caller), wait_seconds, finishing };
                client.next_task(request(message, wait + CALL_DEADLINE)).await
            })
            .await?
            .task;
        link.state().in_hand.answered(finishing, task.as_ref().and_then(|task| task.id));
        Ok(task)
    }

    /// Tells that the learner holds a task, or does not want it any more.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn task_held(&self, task: TaskId) -> Result<(), ServiceError> {
        self.finish(FinishTaskRequest { task: Some(task), ..FinishTaskRequest::default() }).await
    }

    /// Tells that a task failed, and whose fault it is.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn task_failed(&self, task: TaskId, failure: &str, blame: Blame) -> Result<(), ServiceError> {
        let failure = if failure.is_empty() { "unknown" } else { failure };
        self.finish(FinishTaskRequest {
            task: Some(task),
            failure: failure.to_owned(),
            blame: blame.into(),
            ..FinishTaskRequest::default()
        })
        .await
    }

    /// Tells that a task has no outcome here, by nobody's fault.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn task_given_back(&self, task: TaskId) -> Result<(), ServiceError> {
        let given_back = true;
        self.finish(FinishTaskRequest { task: Some(task), given_back, ..FinishTaskRequest::default() }).await
    }

    async fn finish(&self, message: FinishTaskRequest) -> Result<(), ServiceError> {
        self.link
            .call(CALL_DEADLINE, |mut client, caller| {
                let message = FinishTaskRequest { caller: Some(caller), ..message.clone() };
                async move { client.finish_task(request(message, CALL_DEADLINE)).await }
            })
            .await?;
        self.link.state().in_hand.told(message.task);
        Ok(())
    }

    /// Learner: tells what is wanted, how far it is, and everything that a user should hear of.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn report(
        &self,
        wanted: Vec<Wanted>,
        progress: Progress,
        notices: Vec<String>,
    ) -> Result<ReportReply, ServiceError> {
        let progress = Some(progress);
        self.send_report(ReportRequest { wanted, progress, notices, ..ReportRequest::default() }).await
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
    pub async fn report_fatal(&self, fatal: Fatal) -> Result<(), ServiceError> {
        let message = ReportRequest { fatal: Some(fatal), ..ReportRequest::default() };
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

/// What this process says of itself: the same whenever it joins, and unlike any other.
pub(crate) fn this_process() -> Process {
    static NONCE: LazyLock<[u8; NONCE_BYTES]> = LazyLock::new(|| {
        let mut nonce = [0; NONCE_BYTES];
        // Keys of a hash map are the one source of randomness in the standard library; nothing here need be secret.
        let halves = nonce.chunks_exact_mut(8);
        halves
            .for_each(|half| half.copy_from_slice(&RandomState::new().build_hasher().finish().to_le_bytes()));
        nonce
    });
    static KINDS: LazyLock<[String; 2]> = LazyLock::new(|| [device_kind::of_host(), device_kind::of_cards()]);
    let [host_kind, card_kind] = KINDS.clone();
    let process = protocol::process(*NONCE, &host_name(), std::process::id());
    Process { host_kind, card_kind, ..process }
}

/// The name of this host; empty where it has none.
pub fn host_name() -> String {
    nix::unistd::gethostname().map(|host| host.to_string_lossy().into_owned()).unwrap_or_default()
}
