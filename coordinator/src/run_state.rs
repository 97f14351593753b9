//! The soft state of a run behind the coordinator's services: members, tasks, progress, and how it ends.
//!
//! Every method takes the time and answers at once; nothing here waits. What is lost with the process comes back when
//! the members join again.

mod halves;
mod kinds;
mod learners;
mod noting;
mod relaying;
mod telling;

use crate::catalog::Catalog;
use crate::device_kinds::DeviceKinds;
use crate::events::{Event, EventBook, GivenAs};
use crate::launch::capacity::Room;
use crate::learner_half::Halves;
use crate::membership::{Applicant, Hang, Loss, Member, Members, Presence, Refusal};
use crate::rank_groups::RankGroups;
use crate::results::{RunProgress, RunSummary};
use crate::run_record::{RunEnding, StopWish};
use crate::tasks::{Asking, Failed, Grant, TaskBook, Verdict};
use crate::weights_relay::WeightsRelay;
use noting::blame_in_a_word;
use proto::{
    Caller, Drain, Fatal, FinishTaskRequest, GiveBack, HeartbeatReply, HeartbeatRequest, JoinReply,
    JoinRequest, NextTaskRequest, Order, ReportRequest, Role, Standstill, TaskId, order,
};
use protocol::TaskName;
use service::{Holder, shown};
use std::time::{Duration, Instant};
use telling::config_for;

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

/// Everything the coordinator knows; rebuilt from what members say.
pub struct RunState {
    /// Who is there.
    pub members: Members,
    tasks: TaskBook,
    relay: WeightsRelay,
    catalog: Catalog,
    run_directory: String,
    started: Instant,
    progress: RunProgress,
    has_progress: bool,
    /// What the learner wanted a user to hear of, each said once.
    notices: Vec<String>,
    workers_wanted: u32,
    /// What bounds that, besides the config.
    pub room: Room,
    /// What the workers did that are forgotten by now.
    forgotten: Worked,
    /// The learner that may change the run directory.
    writing_learner: Option<Holder>,
    rank_groups: RankGroups,
    /// On what the run is computed, and what of that is recorded.
    kinds: DeviceKinds,
    recorded_kinds: DeviceKinds,
    /// Where the learner has its files.
    halves: Halves,
    draining: bool,
    stop_wish: Option<StopWish>,
    ending: Option<RunEnding>,
    events: EventBook,
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
        let tasks = TaskBook::new(catalog.rank_layout().clone());
        Self {
            members: members.with_learners(config.resources.learners as u32),
            tasks,
            relay: WeightsRelay::default(),
            catalog,
            run_directory,
            started: now,
            progress,
            has_progress: false,
            notices: Vec::new(),
            workers_wanted,
            room: Room::default(),
            forgotten: Worked::default(),
            writing_learner: None,
            rank_groups: RankGroups::default(),
            kinds: DeviceKinds::default(),
            recorded_kinds: DeviceKinds::default(),
            halves: Halves::default(),
            draining: false,
            stop_wish: None,
            ending: None,
            events: EventBook::default(),
        }
    }

    /// Makes the sender a member and tells it what the run is.
    ///
    /// # Errors
    /// If it is refused.
    pub fn join(&mut self, request: &JoinRequest, now: Instant) -> Result<JoinReply, Refusal> {
        let role = request.role();
        let process = request.process.clone().ok_or(Refusal::Malformed("which process joins?"))?;
        let (pid, holder) = (process.pid, Holder::of(&process));
        let applicant = Applicant {
            role,
            member_id: request.member_id.clone(),
            run_id: request.run_id.clone(),
            rank: request.rank,
            address: request.address.clone(),
            process,
        };
        let cause = self.cause_of_join(&applicant);
        let kind = self.kinds.standing(role, self.kind_of(&applicant.process));
        let host = applicant.process.host.clone();
        let checked = self.check_half(request).and_then(|()| self.check_kind(&applicant, &kind));
        let admitted = checked.and_then(|()| self.members.join(applicant, now));
        let identity = admitted.inspect_err(|refusal| {
            self.events.refused(&shown(&request.member_id, LONGEST_DEVICE), refusal);
        })?;
        self.count_kind(role, &request.member_id, kind);
        tracing::info!(member = request.member_id, pid, incarnation = identity.incarnation, "joined");
        self.note_join(&identity, cause);
        match role {
            Role::Learner => {
                self.tasks.forget_learner(request.rank);
                // The first rank alone writes.
                if request.rank == 0 {
                    self.writing_learner = Some(holder);
                    self.halves.joined(&shown(&host, LONGEST_DEVICE), request.own_directory.as_ref());
                }
            }
            _ => {
                self.relay.gone(&request.member_id);
                self.claim(&request.member_id, &names(&request.running), now);
            }
        }
        Ok(JoinReply {
            identity: Some(identity),
            config: config_for(role, self.catalog.config()),
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
        let hang = caller.and_then(|caller| self.hang(&caller.member_id, &request.standstills));
        let outcome = self
            .members
            .heartbeat(caller, hang.is_some(), now)
            .map(|member| (member.draining, member.applicant.role));
        if let (Err(Refusal::Fenced { member_id, .. }), Some(hang)) = (&outcome, hang) {
            self.lose_stuck(&member_id.clone(), hang, now);
        }
        let (draining, role) = outcome?;
        if let Some(caller) = caller {
            let [device, card] = [&request.device, &request.card].map(|name| shown(name, LONGEST_DEVICE));
            self.members.note_device(&caller.member_id, device, card);
            if role == Role::Learner {
                self.members.note_ranks_address(&caller.member_id, &request.ranks_address)?;
                self.rank_groups.note_broken(request.broken_ranks);
            }
            self.say_troubles(&caller.member_id, request.troubles);
            let weights = request.weights.filter(|_| role == Role::RolloutWorker);
            weights.iter().for_each(|weights| self.note_weights(&caller.member_id, weights, now));
        }
        let leaves = draining || if role == Role::Learner { self.learner_leaves() } else { self.is_ending() };
        // Once the run has ended nothing in hand is of use, and the learner that it would go to is gone.
        let patience = if self.ending.is_some() { Duration::ZERO } else { self.members.patience().drain };
        let drain = leaves.then_some(order::Order::Drain(Drain { seconds: patience.as_secs_f64() }));
        let not_needed = self.tasks.not_needed(&names(&request.running)).into_iter().map(TaskId::from);
        let give_back = GiveBack { tasks: not_needed.collect() };
        let give_back = (!give_back.tasks.is_empty()).then_some(order::Order::GiveBack(give_back));
        let is_first = caller.is_some_and(|caller| self.is_first_learner(&caller.member_id));
        let asked = self.halves.orders(caller.map_or("", |caller| &caller.member_id), is_first);
        let orders = drain.into_iter().chain(give_back).chain(asked);
        let orders = orders.map(|order| Order { order: Some(order) }).collect();
        let ranks = if role == Role::Learner { self.rank_group() } else { None };
        Ok(HeartbeatReply { orders, learner_addresses: self.learner_addresses(), ranks })
    }

    fn say_troubles(&mut self, member_id: &str, troubles: Vec<String>) {
        let short = troubles.iter().take(MOST_TROUBLES).map(|trouble| shown(trouble, LONGEST_TROUBLE));
        let (new, over) = self.members.note_troubles(member_id, short.collect());
        new.iter().for_each(|trouble| tracing::warn!("{member_id}: {trouble}"));
        over.iter().for_each(|trouble| tracing::warn!("{member_id}: this is over: {trouble}"));
    }

    /// The work of a member that hangs, if some does.
    fn hang(&self, member_id: &str, standstills: &[Standstill]) -> Option<Hang> {
        let patience = self.members.patience();
        let computing = self.standstill_deadline(member_id);
        patience.hang(standstills, computing)
    }

    /// How long a member may stand still while it computes, as far as is known of its tasks.
    pub fn standstill_deadline(&self, member_id: &str) -> Duration {
        self.tasks.standstill_deadline(member_id, self.members.patience().task_deadline)
    }

    fn lose_stuck(&mut self, member_id: &str, hang: Hang, now: Instant) {
        if self.members.get(member_id).is_some_and(|member| member.presence == Presence::Lost(Loss::Stuck)) {
            self.note(&format!("{member_id}: {hang}"));
            self.note_loss(member_id, Loss::Stuck, hang.to_string());
            self.lost(member_id, "member_lost", now);
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
        let before = self.tasks.leases_of(&member_id).to_vec();
        let grant = self.tasks.grant(Asking { worker: &member_id, finishing: &finishing, n_workers }, now);
        let change = (&before[..], self.tasks.leases_of(&member_id));
        self.events.tasks_changed(&member_id, change, GivenAs::Granted, "not_wanted");
        match grant {
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

    /// Ends a worker's lease of a task, which the learner holds now, which is given back, or which failed.
    ///
    /// # Errors
    /// If the sender is fenced or names no task.
    pub fn finish_task(&mut self, request: &FinishTaskRequest, now: Instant) -> Result<(), Refusal> {
        let member_id = self.members.admit(request.caller.as_ref(), now)?.applicant.member_id.clone();
        let name =
            request.task.as_ref().and_then(name_of).ok_or(Refusal::Malformed("which task is finished?"))?;
        if request.given_back {
            tracing::info!(member = member_id, task = %name, "given back");
            if self.tasks.leases_of(&member_id).contains(&name) {
                let member = member_id.clone();
                self.events.note(Event::TaskReturned { task: name, member, cause: "given_back" });
            }
            self.tasks.give_back(&member_id, name, now);
            return Ok(());
        }
        if request.failure.is_empty() {
            if self.tasks.finish(&member_id, name, now) {
                self.members.count_task(&member_id);
                self.events.note(Event::TaskFinished { task: name, member: member_id });
            }
            return Ok(());
        }
        let failure = shown(&request.failure, LONGEST_TEXT);
        tracing::warn!(member = member_id, task = %name, "task failed: {failure}");
        let (blame, n_workers) = (request.blame(), self.members.n_taking_tasks());
        let failed = Failed { worker: &member_id, task: name, blame, n_workers };
        let had_it = self.tasks.leases_of(&member_id).contains(&name);
        let verdict = self.tasks.fail(failed, now);
        if had_it {
            let (cause, is_given_up) = (blame_in_a_word(blame), verdict != Verdict::TryAgain);
            let (member, reason) = (member_id.clone(), failure.clone());
            self.events.note(Event::TaskFailed { task: name, member, cause, is_given_up, reason });
        }
        if let Verdict::GiveUp { failures } = verdict {
            // Prompts may be many; what happened is read first.
            let contents = self.catalog.contents(name);
            let reason = format!("{name} failed {failures} times, last: {failure} ({contents})");
            self.end(RunEnding::Failed { reason, bad_input: false, summary: None });
        }
        Ok(())
    }

    /// Takes the learner's account; the answer is whether it should stop at the next boundary.
    ///
    /// # Errors
    /// If the sender is fenced, is not the learner, or wants what the config does not have.
    pub fn report(&mut self, request: ReportRequest, now: Instant) -> Result<bool, Refusal> {
        let Applicant { role, rank, .. } = self.members.admit(request.caller.as_ref(), now)?.applicant;
        if role != Role::Learner {
            return Err(Refusal::Malformed("only the learner reports"));
        }
        let wanted = request.wanted.iter().map(|set| self.wanted(set, rank));
        self.tasks.report(rank, &wanted.collect::<Result<Vec<_>, _>>()?, now);
        // Of the run's progress the first rank tells.
        if let Some(progress) = request.progress.filter(|_| rank == 0) {
            self.has_progress = true;
            self.halves.trained(progress.iteration);
            let phase = shown(&progress.phase, LONGEST_TEXT);
            self.progress = RunProgress { phase, ..progress.into() };
        }
        request.notices.iter().for_each(|notice| self.note(notice));
        if let Some(Fatal { reason, bad_input, summary }) = request.fatal {
            let summary = summary.map(|summary| Box::new(self.completed(summary, now)));
            self.end(RunEnding::Failed { reason, bad_input, summary });
        } else if let Some(summary) = request.summary {
            self.end(RunEnding::Done { summary: Box::new(self.completed(summary, now)) });
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
        let summary = RunSummary::from(summary);
        RunSummary {
            worker_busy: self.worker_busy(now),
            worker_busy_seconds: now.saturating_duration_since(self.started).as_secs_f64(),
            adapter: self.halves.place_of(&summary.adapter),
            best_adapter: self.halves.place_of(&summary.best_adapter),
            ..summary
        }
    }

    /// Ends the membership of a sender that says goodbye.
    ///
    /// # Errors
    /// If the sender is fenced.
    pub fn leave(&mut self, caller: Option<&Caller>, now: Instant) -> Result<(), Refusal> {
        let member_id = self.members.leave(caller, now)?;
        tracing::info!(member = member_id, "left");
        self.events.note(Event::MemberLeft { member: member_id.clone() });
        self.lost(&member_id, "member_left", now);
        Ok(())
    }

    /// Ends the leases of silent members, forgets those that have been gone for long, and looks for tasks that are late.
    pub fn expire(&mut self, now: Instant) {
        for member_id in self.members.expire(now) {
            tracing::warn!(member = member_id, "silent for a whole lease, lost");
            let lease = self.members.patience().lease.as_secs_f64();
            self.note_loss(&member_id, Loss::Silent, format!("no sign of life for more than {lease} s"));
            self.lost(&member_id, "member_lost", now);
        }
        for member in self.members.forget_the_long_gone(now) {
            self.events.note(Event::MemberForgotten { member: member.applicant.member_id.clone() });
            if member.applicant.role == Role::RolloutWorker {
                let member_id = &member.applicant.member_id;
                self.forgotten.busy += self.tasks.busy(member_id, now);
                self.forgotten.present += member.present(now);
                self.tasks.forget_worker(member_id);
            }
        }
        self.relay.expire(self.members.patience().lease, now);
        self.tasks.look_for_late(now);
    }

    /// Notes that the launcher saw a member's process end.
    pub fn exited(&mut self, applicant: &Applicant, now: Instant) {
        if self.members.end(applicant, Presence::Lost(Loss::Exited)) {
            let reason = "its launcher saw the process end".to_owned();
            self.note_loss(&applicant.member_id, Loss::Exited, reason);
            self.lost(&applicant.member_id, "member_lost", now);
        }
    }

    /// Puts back what a member that is gone for a `cause` had.
    fn lost(&mut self, member_id: &str, cause: &'static str, now: Instant) {
        let is_learner = |member: &&Member| member.applicant.role == Role::Learner;
        if let Some(learner) = self.members.get(member_id).filter(is_learner) {
            let (lost, rank) = (Holder::of(&learner.applicant.process), learner.applicant.rank);
            self.writing_learner.take_if(|writing| *writing == lost);
            self.tasks.forget_learner(rank);
        }
        self.relay.gone(member_id);
        // Nobody knows what it did since its last sign of life.
        let until = self.members.get(member_id).map_or(now, |member| member.last_heartbeat);
        let before = self.tasks.leases_of(member_id).to_vec();
        self.tasks.release(member_id, until);
        self.events.tasks_changed(member_id, (&before[..], &[]), GivenAs::Granted, cause);
    }

    /// Lets every member finish what it has in hand and leave.
    pub fn drain(&mut self) {
        if !std::mem::replace(&mut self.draining, true) {
            self.events.note(Event::RunDrained {});
        }
    }

    /// The same, because somebody wishes that the run rests.
    pub fn stop(&mut self, wish: StopWish) {
        self.stop_wish.get_or_insert(wish);
        self.drain();
    }

    /// Whether somebody wishes that the run rests.
    pub fn stop_wish(&self) -> Option<StopWish> {
        self.stop_wish
    }

    /// Sets the number of rollout workers there should be.
    pub fn scale(&mut self, workers: u32) {
        let from = std::mem::replace(&mut self.workers_wanted, workers);
        if from != workers {
            self.events.note(Event::WorkersScaled { from, to: workers });
        }
    }

    /// Ends the run; the first ending stands.
    pub fn end(&mut self, ending: RunEnding) {
        if self.ending.is_none() {
            self.events.note(Event::ended(&ending));
            self.ending = Some(ending);
        }
    }

    /// How the run ended, if it did.
    pub fn ending(&self) -> Option<&RunEnding> {
        self.ending.as_ref()
    }

    /// Whether there is a task that some worker may be given; while there is none, nobody need ask.
    pub fn has_grantable_tasks(&self) -> bool {
        !self.is_ending() && self.tasks.has_grantable()
    }

    /// All workers that wait have been offered what there is.
    pub fn note_offered(&mut self) {
        self.tasks.note_offered();
    }

    /// Whether members are asked to leave.
    pub fn is_ending(&self) -> bool {
        self.draining || self.ending.is_some()
    }

    /// Whether the learner is asked to leave: after the workers, which have yet to deliver what they have in hand.
    fn learner_leaves(&self) -> bool {
        self.ending.is_some() || self.draining && self.members.n_workers() == 0
    }
}

/// Those tasks in hand that have a name here.
fn names(tasks: &[TaskId]) -> Vec<TaskName> {
    tasks.iter().take(MOST_IN_HAND).filter_map(name_of).collect()
}

fn name_of(id: &TaskId) -> Option<TaskName> {
    TaskName::try_from(id).ok()
}
