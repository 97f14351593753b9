//! Who belongs to the run: decisions only, without I/O and without a clock.
//!
//! Invariants:
//! 1. A member id has one living incarnation; messages of any other are refused as fenced.
//! 2. Incarnations grow, also over restarts of the coordinator.
//! 3. A member without heartbeat for a lease, or whose work has stood still for too long, is lost.
//! 4. Of two living processes with one name the first stays a member, until its lease has ended. What the launcher starts
//!    anew gets its place at once, and who was replaced by it cannot come back while it lives.
//! 5. A name belongs to one role, those that the launcher gives to its own.
//! 6. What members say of themselves is short and printable; who has been gone for long is forgotten. So whatever joins,
//!    and however often, memory and the answers of `status` are bounded.

mod names;
mod refusal;
mod tally;

pub(crate) use names::role_in_words;
use names::{LONGEST_MEMBER_ID, LONGEST_PLACE, check_address, check_build, check_words, role_named};
use proto::{Caller, Process, Role, Standstill, Work};
pub use refusal::Refusal;
use service::shown;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tally::Tally;

/// Room for that many joins between two starts of the coordinator.
const JOINS_PER_GENERATION: u64 = 1_000_000_000;
/// Members that may live at a time.
const MOST_LIVING: usize = 10_000;
/// Members that are gone and remembered, and for how long.
const MOST_GONE: usize = 1_000;
const REMEMBERED: Duration = Duration::from_secs(600);

/// How patient the coordinator is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A member that is silent for that long is lost.
    pub lease: Duration,
    /// A member whose work stands still for that long is lost; one that computes tasks sooner, once their times are known.
    pub task_deadline: Duration,
    /// Likewise a member that opens its model.
    pub opening_deadline: Duration,
    /// What a member that is told to leave may take to deliver what it has in hand.
    pub drain: Duration,
}

/// Work that has stood still for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hang {
    /// What kind of work.
    pub work: Work,
    /// How long it may stand still.
    pub deadline: Duration,
}

impl Patience {
    /// The work that hangs, if some does; tasks are computed with this deadline.
    pub fn hang(&self, standstills: &[Standstill], computing: Duration) -> Option<Hang> {
        let deadline = |work| match work {
            Work::Opening => self.opening_deadline,
            Work::Computing => computing,
            Work::Waiting | Work::Unspecified => self.task_deadline,
        };
        standstills.iter().find_map(|told| {
            let (work, stands) = (told.work(), Duration::try_from_secs_f64(told.seconds).unwrap_or_default());
            let deadline = deadline(work);
            (stands > deadline).then_some(Hang { work, deadline })
        })
    }
}

impl std::fmt::Display for Hang {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (work, why) = match self.work {
            Work::Opening => ("opened its model", "`--opening-deadline`"),
            Work::Computing => ("computed", "by the usual time of its tasks, or `--task-deadline`"),
            Work::Waiting => ("waited for the learner or a reward", "`--task-deadline`"),
            Work::Unspecified => ("worked", "`--task-deadline`"),
        };
        let seconds = self.deadline.as_secs_f64();
        write!(f, "it {work} and did not get on for {seconds:.0} s ({why}), so that it counts as hung")
    }
}

/// What a process says of itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applicant {
    /// Learner or rollout worker.
    pub role: Role,
    /// Chosen by its launcher.
    pub member_id: String,
    /// Empty at its first join.
    pub run_id: String,
    /// Learner: its rank.
    pub rank: u32,
    /// Learner: where workers reach it.
    pub address: String,
    /// Which process it is.
    pub process: Process,
}

/// Whether a member is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Renews its lease.
    Living,
    /// Said goodbye.
    Left,
    /// Gone without a word.
    Lost(Loss),
}

/// How a member was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// No heartbeat for a lease.
    Silent,
    /// Its work stood still for too long.
    Stuck,
    /// Its launcher saw it end.
    Exited,
}

impl Presence {
    /// One word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Living => "living",
            Self::Left => "left",
            Self::Lost(Loss::Silent) => "silent",
            Self::Lost(Loss::Stuck) => "stuck",
            Self::Lost(Loss::Exited) => "exited",
        }
    }
}

/// One member.
#[derive(Clone, Debug)]
pub struct Member {
    /// What it said when it joined.
    pub applicant: Applicant,
    /// Its newest incarnation.
    pub incarnation: u64,
    /// Whether it is there.
    pub presence: Presence,
    /// Last sign of life.
    pub last_heartbeat: Instant,
    /// Asked to finish what it has in hand and leave.
    pub draining: bool,
    /// Tasks finished by all its incarnations.
    pub tasks_done: u64,
    /// What is wrong while it goes on, in its words.
    pub troubles: Vec<String>,
    /// What it computes on, in its words; empty until it has said so.
    pub device: String,
    /// Its card as `CUDA_VISIBLE_DEVICES` names it; empty on the CPU.
    pub card: String,
    /// Learner: where other ranks reach it; empty until it has said so, and where it is the only one.
    pub ranks_address: String,
    /// Time of membership before the newest join.
    earlier: Duration,
    joined: Instant,
}

impl Member {
    /// Whether it is there.
    pub fn is_living(&self) -> bool {
        self.presence == Presence::Living
    }

    /// Time that it was a member.
    pub fn present(&self, now: Instant) -> Duration {
        let until = if self.is_living() { now } else { self.last_heartbeat };
        self.earlier + until.saturating_duration_since(self.joined)
    }
}

/// All members of the run.
#[derive(Clone, Debug)]
pub struct Members {
    run_id: String,
    patience: Patience,
    n_learners: u32,
    incarnation: u64,
    members: BTreeMap<String, Member>,
    /// Names that the launcher has started a process for that has not joined yet.
    awaited: BTreeSet<String>,
    tally: Tally,
}

impl Members {
    /// No members yet; `generation` counts the starts of the coordinator of this run.
    pub fn new(run_id: String, generation: u64, patience: Patience) -> Self {
        let incarnation = generation * JOINS_PER_GENERATION;
        let (members, awaited, tally) = (BTreeMap::new(), BTreeSet::new(), Tally::default());
        Self { run_id, patience, n_learners: 1, incarnation, members, awaited, tally }
    }

    /// The same, for a run whose learner has so many ranks.
    #[must_use]
    pub fn with_learners(self, n_learners: u32) -> Self {
        Self { n_learners, ..self }
    }

    /// Makes the applicant a member, in place of its earlier incarnation.
    ///
    /// # Errors
    /// If it is of another run or role, the place belongs to another living process, or there are too many members.
    pub fn join(&mut self, mut applicant: Applicant, now: Instant) -> Result<Caller, Refusal> {
        applicant.process.host = shown(&applicant.process.host, LONGEST_PLACE);
        check_words(&applicant)?;
        self.check_applicant(&applicant)?;
        self.incarnation += 1;
        let earlier = self.members.get(&applicant.member_id);
        let member = Member {
            incarnation: self.incarnation,
            presence: Presence::Living,
            last_heartbeat: now,
            draining: false,
            tasks_done: earlier.map_or(0, |member| member.tasks_done),
            troubles: Vec::new(),
            device: String::new(),
            card: String::new(),
            ranks_address: String::new(),
            earlier: earlier.map_or(Duration::ZERO, |member| member.present(now)),
            joined: now,
            applicant,
        };
        let member_id = member.applicant.member_id.clone();
        if let Some(earlier) = self.members.get(&member_id) {
            self.tally.remove(earlier);
        }
        self.tally.add(&member);
        self.members.insert(member_id.clone(), member);
        Ok(Caller { run_id: self.run_id.clone(), member_id, incarnation: self.incarnation })
    }

    fn check_applicant(&self, applicant: &Applicant) -> Result<(), Refusal> {
        check_build(applicant)?;
        if applicant.rank >= self.n_learners {
            let (member_id, rank) = (applicant.member_id.clone(), applicant.rank);
            return Err(Refusal::NoSuchRank { member_id, rank, n_learners: self.n_learners });
        }
        let rejoins = !applicant.run_id.is_empty();
        if rejoins && applicant.run_id != self.run_id {
            return Err(self.other_run(&applicant.run_id));
        }
        let known = self.members.get(&applicant.member_id);
        let owner = known.map(|member| member.applicant.role).or_else(|| role_named(&applicant.member_id));
        if let Some(theirs) = owner.filter(|role| *role != applicant.role) {
            let member_id = applicant.member_id.clone();
            return Err(Refusal::OtherRole { member_id, theirs: role_in_words(theirs) });
        }
        if known.is_none_or(|member| !member.is_living()) && self.tally.n_living >= MOST_LIVING {
            return Err(Refusal::Full);
        }
        let same_process = |other: &Applicant| other.process.nonce == applicant.process.nonce;
        let stuck =
            |other: &&Member| other.presence == Presence::Lost(Loss::Stuck) && same_process(&other.applicant);
        if self.members.get(&applicant.member_id).filter(stuck).is_some() {
            return Err(Refusal::Stuck {
                member_id: applicant.member_id.clone(),
                pid: applicant.process.pid,
            });
        }
        let same_place = |other: &Applicant| {
            other.member_id == applicant.member_id
                || (other.role, applicant.role) == (Role::Learner, Role::Learner)
                    && other.rank == applicant.rank
        };
        let rivals =
            self.members.values().filter(|member| member.is_living()).map(|member| &member.applicant);
        let rival = rivals.filter(|other| same_place(other)).find(|other| !same_process(other));
        let Some(Applicant { member_id, process, .. }) = rival else { return Ok(()) };
        let (pid, host, id) = (process.pid, process.host.clone(), member_id.clone());
        match *member_id == applicant.member_id {
            // The process that its launcher started gets its place, whoever has come meanwhile.
            true if !rejoins && self.awaited.contains(member_id) => Ok(()),
            true => Err(Refusal::Taken { member_id: id, pid, host }),
            false => Err(Refusal::OtherLearner { member_id: id, pid, host }),
        }
    }

    /// Notes that the launcher has started a process under a name: until [`Self::has_come`], whoever is new to the run gets
    /// that place, even if another process has it. One that an earlier coordinator started, and that nobody knows of, may
    /// come first, as itself or as new.
    pub fn await_process(&mut self, member_id: &str) {
        self.awaited.insert(member_id.to_owned());
    }

    /// Notes that the process that the launcher started under a name is a member.
    pub fn has_come(&mut self, member_id: &str) {
        self.awaited.remove(member_id);
    }

    /// Whether a process that the launcher started under a name is yet to come.
    pub fn is_awaited(&self, member_id: &str) -> bool {
        self.awaited.contains(member_id)
    }

    /// Admits a message of the newest incarnation of a living member only, and counts it as a sign of life.
    ///
    /// # Errors
    /// If the sender is fenced.
    pub fn admit(&mut self, caller: Option<&Caller>, now: Instant) -> Result<&mut Member, Refusal> {
        let member_id = self.check(caller)?.applicant.member_id.clone();
        let member = self.members.get_mut(&member_id).expect("it was just found; anything else is a bug");
        member.last_heartbeat = now;
        Ok(member)
    }

    /// Tells whether the sender is, still, a living member; no sign of life.
    ///
    /// # Errors
    /// If the sender is fenced.
    pub fn check(&self, caller: Option<&Caller>) -> Result<&Member, Refusal> {
        let caller = caller.ok_or(Refusal::Malformed("a message needs its caller"))?;
        if caller.run_id != self.run_id {
            return Err(self.other_run(&caller.run_id));
        }
        let newest = |member: &&Member| member.is_living() && member.incarnation == caller.incarnation;
        self.members.get(&caller.member_id).filter(newest).ok_or_else(|| Refusal::Fenced {
            member_id: shown(&caller.member_id, LONGEST_MEMBER_ID),
            incarnation: caller.incarnation,
        })
    }

    fn other_run(&self, theirs: &str) -> Refusal {
        Refusal::OtherRun { run_id: self.run_id.clone(), theirs: shown(theirs, LONGEST_MEMBER_ID) }
    }

    /// Changes what decides whether a member counts.
    fn change(&mut self, member_id: &str, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.members.get_mut(member_id) {
            self.tally.remove(member);
            change(member);
            self.tally.add(member);
        }
    }

    /// Takes a heartbeat of a member that is stuck or not.
    ///
    /// # Errors
    /// If the sender is fenced, also because it is stuck.
    pub fn heartbeat(
        &mut self,
        caller: Option<&Caller>,
        is_stuck: bool,
        now: Instant,
    ) -> Result<&mut Member, Refusal> {
        if !is_stuck {
            return self.admit(caller, now);
        }
        let member = self.admit(caller, now)?;
        let (member_id, incarnation) = (member.applicant.member_id.clone(), member.incarnation);
        self.change(&member_id, |member| member.presence = Presence::Lost(Loss::Stuck));
        Err(Refusal::Fenced { member_id, incarnation })
    }

    /// Ends the membership of a sender that says goodbye, and names it.
    ///
    /// # Errors
    /// If the sender is fenced.
    pub fn leave(&mut self, caller: Option<&Caller>, now: Instant) -> Result<String, Refusal> {
        let member_id = self.admit(caller, now)?.applicant.member_id.clone();
        self.change(&member_id, |member| member.presence = Presence::Left);
        Ok(member_id)
    }

    /// Takes what a member computes on, and which card that is.
    pub fn note_device(&mut self, member_id: &str, device: String, card: String) {
        if let Some(member) = self.members.get_mut(member_id) {
            (member.device, member.card) = (device, card);
        }
    }

    /// Takes where a rank of the learner is reached by others.
    ///
    /// # Errors
    /// If that is no address.
    pub fn note_ranks_address(&mut self, member_id: &str, address: &str) -> Result<(), Refusal> {
        check_address(address)?;
        if let Some(member) = self.members.get_mut(member_id) {
            address.clone_into(&mut member.ranks_address);
        }
        Ok(())
    }

    /// Takes what is wrong at a member, and returns what of it is new and what is over.
    pub fn note_troubles(&mut self, member_id: &str, troubles: Vec<String>) -> (Vec<String>, Vec<String>) {
        let Some(member) = self.members.get_mut(member_id) else { return (Vec::new(), Vec::new()) };
        let earlier = std::mem::replace(&mut member.troubles, troubles);
        let without = |all: &[String], others: &[String]| {
            all.iter().filter(|trouble| !others.contains(trouble)).cloned().collect()
        };
        (without(&member.troubles, &earlier), without(&earlier, &member.troubles))
    }

    /// Ends the leases of members that were silent for too long and names them.
    pub fn expire(&mut self, now: Instant) -> Vec<String> {
        let lease = self.patience.lease;
        let is_silent = |member: &&Member| {
            member.is_living() && now.saturating_duration_since(member.last_heartbeat) > lease
        };
        let silent = self.members.values().filter(is_silent);
        let lost: Vec<String> = silent.map(|member| member.applicant.member_id.clone()).collect();
        for member_id in &lost {
            self.change(member_id, |member| member.presence = Presence::Lost(Loss::Silent));
        }
        lost
    }

    /// Takes out the members that have been gone for long or, where too many are, for longest.
    pub fn forget_the_long_gone(&mut self, now: Instant) -> Vec<Member> {
        if self.members.len() == self.tally.n_living {
            return Vec::new();
        }
        let gone = self.members.values().filter(|member| !member.is_living());
        let mut gone: Vec<(Instant, String)> =
            gone.map(|member| (member.last_heartbeat, member.applicant.member_id.clone())).collect();
        gone.sort_unstable();
        let n_too_many = gone.len().saturating_sub(MOST_GONE);
        let is_long_gone = |last: &Instant| now.saturating_duration_since(*last) > REMEMBERED;
        let forgotten = gone.into_iter().enumerate();
        let forgotten =
            forgotten.filter(|(position, (last, _))| *position < n_too_many || is_long_gone(last));
        forgotten.filter_map(|(_, (_, member_id))| self.members.remove(&member_id)).collect()
    }

    /// Ends the membership of a process for a known reason; whether there was one to end.
    pub fn end(&mut self, applicant: &Applicant, presence: Presence) -> bool {
        let Applicant { member_id, process, .. } = applicant;
        let is_meant =
            |member: &&Member| member.is_living() && member.applicant.process.nonce == process.nonce;
        let is_there = self.members.get(member_id).filter(is_meant).is_some();
        if is_there {
            self.change(member_id, |member| member.presence = presence);
        }
        is_there
    }

    /// Counts a task that a member finished.
    pub fn count_task(&mut self, member_id: &str) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.tasks_done += 1;
        }
    }

    /// Asks one member to finish what it has in hand and leave.
    pub fn drain(&mut self, member_id: &str) {
        self.change(member_id, |member| member.draining = true);
    }

    /// A member by its id, living or not.
    pub fn get(&self, member_id: &str) -> Option<&Member> {
        self.members.get(member_id)
    }

    /// All members, those that have not been gone for long included, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The living learner of each rank, nothing where there is none.
    pub fn learners(&self) -> impl Iterator<Item = Option<&Member>> {
        (0..self.n_learners).map(|rank| self.members.get(self.tally.learners.get(&rank)?))
    }

    /// Number of rollout workers that may get tasks.
    pub fn n_taking_tasks(&self) -> usize {
        self.tally.n_taking_tasks
    }

    /// Number of living rollout workers.
    pub fn n_workers(&self) -> u32 {
        self.tally.n_workers
    }

    /// The run.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// How patient the coordinator is.
    pub fn patience(&self) -> Patience {
        self.patience
    }
}

#[cfg(test)]
mod tests;
