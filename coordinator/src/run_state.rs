//! The soft state of a run behind the coordinator's services: members, tasks, progress, and how it ends.
//!
//! Every method takes the time and answers at once; nothing here waits. What is lost with the process comes back when
//! the members join again.

use crate::catalog::Catalog;
use crate::membership::{Applicant, LEARNER_RANKS, Loss, Member, Members, Presence, Refusal};
use crate::results::{RunProgress, RunSummary};
use crate::tasks::{Asking, Failed, Grant, TaskBook, Verdict, WantedTasks};
use proto::{
    Caller, Drain, Fatal, FinishTaskRequest, HeartbeatReply, HeartbeatRequest, JoinReply, JoinRequest,
    NextTaskRequest, Order, ReportRequest, Role, TaskId, Wanted, order,
};
use protocol::{TaskName, kind_from_wire};
use service::shown;
use std::time::{Duration, Instant};

/// Characters of a failure or a notice that are kept; whatever else it says is of no help.
const LONGEST_TEXT: usize = 2000;
const MOST_NOTICES: usize = 1000;
/// Likewise of a trouble, and troubles of one member: `status` shows those of all.
const LONGEST_TROUBLE: usize = 300;
const MOST_TROUBLES: usize = 8;
/// Likewise of the name of a device or card.
const LONGEST_DEVICE: usize = 100;
/// Tasks in hand that a message may name; a worker has two.
const MOST_IN_HAND: usize = 8;

/// How a run ends.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// All iterations are trained and evaluated.
    Done(Box<RunSummary>),
    /// It cannot go on.
    Failed {
        /// Why.
        reason: String,
        /// Whether config, model or prompts are at fault.
        bad_input: bool,
        /// What it came to, where it ended itself in good order.
        summary: Option<Box<RunSummary>>,
    },
}

/// Everything the coordinator knows; rebuilt from what members say.
pub struct RunState {
    /// Who is there.
    pub members: Members,
    tasks: TaskBook,
    catalog: Catalog,
    run_directory: String,
    started: Instant,
    progress: RunProgress,
    has_progress: bool,
    /// What the learner wanted a user to hear of, each said once.
    notices: Vec<String>,
    workers_wanted: u32,
    /// What the workers did that are forgotten by now.
    forgotten: Worked,
    draining: bool,
    ending: Option<Ending>,
}

/// Time of workers.
#[derive(Clone, Copy, Debug, Default)]
struct Worked {
    /// With a task in hand.
    busy: Duration,
    /// As members.
    present: Duration,
}

impl RunState {
    /// The state before anybody has joined.
    pub fn new(members: Members, catalog: Catalog, run_directory: String, now: Instant) -> Self {
        let config = catalog.config();
        let progress = RunProgress {
            iterations: config.run.iterations,
            phase: "starting".to_owned(),
            ..RunProgress::default()
        };
        let workers_wanted = config.resources.workers as u32;
        let tasks = TaskBook::default();
        Self {
            members,
            tasks,
            catalog,
            run_directory,
            started: now,
            progress,
            has_progress: false,
            notices: Vec::new(),
            workers_wanted,
            forgotten: Worked::default(),
            draining: false,
            ending: None,
        }
    }

    /// Makes the sender a member and tells it what the run is.
    ///
    /// # Errors
    /// If it is refused.
    pub fn join(&mut self, request: &JoinRequest, now: Instant) -> Result<JoinReply, Refusal> {
        let role = request.role();
        let process = request.process.clone().ok_or(Refusal::Malformed("which process joins?"))?;
        let pid = process.pid;
        let applicant = Applicant {
            role,
            member_id: request.member_id.clone(),
            run_id: request.run_id.clone(),
            rank: request.rank,
            address: request.address.clone(),
            process,
        };
        let identity = self.members.join(applicant, now)?;
        tracing::info!(member = request.member_id, pid, incarnation = identity.incarnation, "joined");
        match role {
            Role::Learner => self.tasks.forget_learner(),
            _ => {
                self.tasks.claim(&request.member_id, &names(&request.running), now);
            }
        }
        Ok(JoinReply {
            identity: Some(identity),
            config: self.catalog.config().to_toml(),
            run_directory: self.run_directory.clone(),
            learner_addresses: self.learner_addresses(),
            lease_seconds: self.members.patience().lease.as_secs_f64(),
            prompt_digests: self.catalog.prompt_digests().clone(),
        })
    }

    /// Renews a lease and answers with the member's orders.
    ///
    /// # Errors
    /// If the sender is fenced.
    pub fn heartbeat(&mut self, request: HeartbeatRequest, now: Instant) -> Result<HeartbeatReply, Refusal> {
        let caller = request.caller.as_ref();
        let idle = Duration::try_from_secs_f64(request.idle_seconds).unwrap_or_default();
        let outcome =
            self.members.heartbeat(caller, idle, now).map(|member| (member.draining, member.applicant.role));
        if let (Err(Refusal::Fenced { member_id, .. }), Some(_)) = (&outcome, caller) {
            self.lose_stuck_tasks(&member_id.clone(), now);
        }
        let (draining, role) = outcome?;
        if let Some(caller) = caller {
            let [device, card] = [&request.device, &request.card].map(|name| shown(name, LONGEST_DEVICE));
            self.members.note_device(&caller.member_id, device, card);
            self.say_troubles(&caller.member_id, request.troubles);
        }
        let leaves = draining || if role == Role::Learner { self.learner_leaves() } else { self.is_ending() };
        // Once the run has ended nothing in hand is of use, and the learner that it would go to is gone.
        let patience = if self.ending.is_some() { Duration::ZERO } else { self.members.patience().drain };
        let drain = Drain { seconds: patience.as_secs_f64() };
        let drain = leaves.then_some(Order { order: Some(order::Order::Drain(drain)) });
        let orders = drain.into_iter().collect();
        Ok(HeartbeatReply { orders, learner_addresses: self.learner_addresses() })
    }

    fn say_troubles(&mut self, member_id: &str, troubles: Vec<String>) {
        let short = troubles.iter().take(MOST_TROUBLES).map(|trouble| shown(trouble, LONGEST_TROUBLE));
        let (new, over) = self.members.note_troubles(member_id, short.collect());
        new.iter().for_each(|trouble| tracing::warn!("{member_id}: {trouble}"));
        over.iter().for_each(|trouble| tracing::warn!("{member_id}: this is over: {trouble}"));
    }

    fn lose_stuck_tasks(&mut self, member_id: &str, now: Instant) {
        if self.members.get(member_id).is_some_and(|member| member.presence == Presence::Lost(Loss::Stuck)) {
            self.lost(member_id, now);
        }
    }

    /// Decides what a worker that waits does next; `None` is nothing for now. Waiting is no sign of life, so that a
    /// worker behind a cut line is lost in time.
    ///
    /// # Errors
    /// If the sender is fenced.
    pub fn next_task(
        &mut self,
        request: &NextTaskRequest,
        now: Instant,
    ) -> Result<Option<proto::Task>, Refusal> {
        let member = self.members.check(request.caller.as_ref())?;
        if member.applicant.role != Role::RolloutWorker {
            return Err(Refusal::Malformed("only rollout workers run tasks"));
        }
        let (member_id, draining) = (member.applicant.member_id.clone(), member.draining);
        if draining || self.is_ending() {
            return Ok(None);
        }
        let finishing = names(&request.finishing);
        let n_workers = self.members.n_taking_tasks();
        match self.tasks.grant(Asking { worker: &member_id, finishing: &finishing, n_workers }, now) {
            Grant::Task(name) => {
                tracing::debug!(member = member_id, task = %name, "granted");
                Ok(self.catalog.task(name).map(proto::Task::from))
            }
            Grant::Wait(reason) => {
                tracing::trace!(member = member_id, reason, "nothing granted");
                Ok(None)
            }
        }
    }

    /// Ends a worker's lease of a task, which the learner holds now or which failed.
    ///
    /// # Errors
    /// If the sender is fenced or names no task.
    pub fn finish_task(&mut self, request: &FinishTaskRequest, now: Instant) -> Result<(), Refusal> {
        let member_id = self.members.admit(request.caller.as_ref(), now)?.applicant.member_id.clone();
        let name =
            request.task.as_ref().and_then(name_of).ok_or(Refusal::Malformed("which task is finished?"))?;
        if request.failure.is_empty() {
            if self.tasks.finish(&member_id, name, now) {
                self.members.count_task(&member_id);
            }
            return Ok(());
        }
        let failure = shown(&request.failure, LONGEST_TEXT);
        tracing::warn!(member = member_id, task = %name, "task failed: {failure}");
        let (blame, n_workers) = (request.blame(), self.members.n_taking_tasks());
        let failed = Failed { worker: &member_id, task: name, blame, n_workers };
        if let Verdict::GiveUp { failures } = self.tasks.fail(failed, now) {
            let task = self.catalog.describe(name);
            let reason = format!("{task} failed {failures} times, last: {failure}");
            self.end(Ending::Failed { reason, bad_input: false, summary: None });
        }
        Ok(())
    }

    /// Takes the learner's account; the answer is whether it should stop at the next boundary.
    ///
    /// # Errors
    /// If the sender is fenced, is not the learner, or wants what the config does not have.
    pub fn report(&mut self, request: ReportRequest, now: Instant) -> Result<bool, Refusal> {
        let role = self.members.admit(request.caller.as_ref(), now)?.applicant.role;
        if role != Role::Learner {
            return Err(Refusal::Malformed("only the learner reports"));
        }
        let wanted: Vec<_> = request.wanted.iter().map(|set| self.wanted(set)).collect::<Result<_, _>>()?;
        self.tasks.report(&wanted, now);
        if let Some(progress) = request.progress {
            self.has_progress = true;
            let phase = shown(&progress.phase, LONGEST_TEXT);
            self.progress = RunProgress { phase, ..progress.into() };
        }
        request.notices.iter().for_each(|notice| self.note(notice));
        if let Some(Fatal { reason, bad_input, summary }) = request.fatal {
            let summary = summary.map(|summary| Box::new(self.completed(summary, now)));
            self.end(Ending::Failed { reason, bad_input, summary });
        } else if let Some(summary) = request.summary {
            self.end(Ending::Done(Box::new(self.completed(summary, now))));
        }
        Ok(self.learner_leaves())
    }

    /// Keeps something that a user should hear of, and says it once.
    pub fn note(&mut self, notice: &str) {
        let notice = shown(notice, LONGEST_TEXT);
        if self.notices.len() < MOST_NOTICES && !self.notices.contains(&notice) {
            tracing::warn!("{notice}");
            self.notices.push(notice);
        }
    }

    /// The learner's summary with what it cannot know.
    fn completed(&self, summary: proto::Summary, now: Instant) -> RunSummary {
        RunSummary {
            worker_busy: self.worker_busy(now),
            worker_busy_seconds: now.saturating_duration_since(self.started).as_secs_f64(),
            ..summary.into()
        }
    }

    fn wanted(&self, set: &Wanted) -> Result<WantedTasks, Refusal> {
        let kind = kind_from_wire(set.kind()).ok_or(Refusal::Malformed("tasks of which kind are wanted?"))?;
        if set.version != self.catalog.version(kind, set.iteration) {
            return Err(Refusal::Malformed(
                "the learner wants tasks with another version than the config says",
            ));
        }
        if set.rank >= LEARNER_RANKS {
            return Err(Refusal::Malformed("tasks are wanted for a rank of the learner that there is not"));
        }
        let n_tasks = self.catalog.n_tasks(kind);
        Ok(WantedTasks { iteration: set.iteration, kind, n_tasks, held: set.held.clone() })
    }

    /// Ends the membership of a sender that says goodbye.
    ///
    /// # Errors
    /// If the sender is fenced.
    pub fn leave(&mut self, caller: Option<&Caller>, now: Instant) -> Result<(), Refusal> {
        let member_id = self.members.leave(caller, now)?;
        tracing::info!(member = member_id, "left");
        self.lost(&member_id, now);
        Ok(())
    }

    /// Ends the leases of silent members, and forgets those that have been gone for long.
    pub fn expire(&mut self, now: Instant) {
        for member_id in self.members.expire(now) {
            tracing::warn!(member = member_id, "silent for a whole lease, lost");
            self.lost(&member_id, now);
        }
        for member in self.members.forget_the_long_gone(now) {
            if member.applicant.role == Role::RolloutWorker {
                let member_id = &member.applicant.member_id;
                self.forgotten.busy += self.tasks.busy(member_id, now);
                self.forgotten.present += member.present(now);
                self.tasks.forget_worker(member_id);
            }
        }
    }

    /// Notes that the launcher saw a member's process end.
    pub fn exited(&mut self, applicant: &Applicant, now: Instant) {
        if self.members.end(applicant, Presence::Lost(Loss::Exited)) {
            self.lost(&applicant.member_id, now);
        }
    }

    /// Puts back what a member that is gone had.
    fn lost(&mut self, member_id: &str, now: Instant) {
        let is_learner = |member: &Member| member.applicant.role == Role::Learner;
        if self.members.get(member_id).is_some_and(is_learner) {
            self.tasks.forget_learner();
        }
        // Nobody knows what it did since its last sign of life.
        let until = self.members.get(member_id).map_or(now, |member| member.last_heartbeat);
        self.tasks.release(member_id, until);
    }

    /// Lets every member finish what it has in hand and leave.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Sets the number of rollout workers there should be.
    pub fn scale(&mut self, workers: u32) {
        self.workers_wanted = workers;
    }

    /// Ends the run; the first ending stands.
    pub fn end(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
    }

    /// How the run ended, if it did.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Whether there is a task that some worker may be given; while there is none, nobody need ask.
    pub fn has_free_tasks(&self) -> bool {
        !self.is_ending() && self.tasks.has_free()
    }

    /// Whether members are asked to leave.
    pub fn is_ending(&self) -> bool {
        self.draining || self.ending.is_some()
    }

    /// Whether the learner is asked to leave: after the workers, which have yet to deliver what they have in hand.
    fn learner_leaves(&self) -> bool {
        self.ending.is_some() || self.draining && self.members.n_workers() == 0
    }

    /// Number of rollout workers there should be.
    pub fn workers_wanted(&self) -> u32 {
        self.workers_wanted
    }

    /// Most rollout workers that the config allows.
    pub fn most_workers(&self) -> u32 {
        self.catalog.config().resources.max_workers as u32
    }

    /// Whether the learner has reported how far the run is.
    pub fn has_progress(&self) -> bool {
        self.has_progress
    }

    /// What the learner last reported.
    pub fn progress(&self) -> &RunProgress {
        &self.progress
    }

    /// What the learner wanted a user to hear of.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The name of the run.
    pub fn run_name(&self) -> &str {
        &self.catalog.config().run.name
    }

    /// The tasks of the iterations at work.
    pub fn tasks(&self) -> &TaskBook {
        &self.tasks
    }

    /// Share of a member's time that it had something to do.
    pub fn busy(&self, member: &Member, now: Instant) -> f64 {
        match member.applicant.role {
            Role::Learner => self.progress.learner_busy,
            _ => share(self.tasks.busy(&member.applicant.member_id, now), member.present(now)),
        }
    }

    /// Share of all workers' time with a task in hand, those that are forgotten by now included.
    pub fn worker_busy(&self, now: Instant) -> f64 {
        let workers = self.members.iter().filter(|member| member.applicant.role == Role::RolloutWorker);
        let Worked { mut busy, mut present } = self.forgotten;
        for worker in workers {
            busy += self.tasks.busy(&worker.applicant.member_id, now);
            present += worker.present(now);
        }
        share(busy, present)
    }

    /// By rank.
    fn learner_addresses(&self) -> Vec<String> {
        self.members.learner().map(|member| member.applicant.address.clone()).into_iter().collect()
    }
}

/// Those tasks in hand that have a name here.
fn names(tasks: &[TaskId]) -> Vec<TaskName> {
    tasks.iter().take(MOST_IN_HAND).filter_map(name_of).collect()
}

fn name_of(id: &TaskId) -> Option<TaskName> {
    TaskName::try_from(id).ok()
}

fn share(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { (part.as_secs_f64() / whole.as_secs_f64()).min(1.0) }
}
