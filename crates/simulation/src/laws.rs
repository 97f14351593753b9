//! What must hold in a simulated world, whatever happens in it; the first violation is kept.

use crate::checkpoints::{self, Journal, Row};
use crate::disk::Disk;
use crate::process::ProcessId;
use crate::reference::{self, Outcome, Reference};
use crate::sizes::MOST_WORKERS;
use crate::sizes::OUTCOME_BYTES;
use crate::story::Story;
use config::{PromptLists, RunConfig, TaskKind, TaskSpec};
use coordinator::launch::MemberName;
use proto::Caller;
use proto::push_reply::Status as PushStatus;
use protocol::{HoldLimit, TaskName, TaskStanding};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What must hold, and what was seen of it.
#[derive(Debug)]
pub struct Laws {
    config: Arc<RunConfig>,
    lists: Arc<PromptLists>,
    reference: Reference,
    /// What happened.
    pub story: Story,
    violation: Option<String>,
    /// The process at work.
    pub own: ProcessId,
    /// Of the iteration that each learner trains: the tasks added so far.
    added: BTreeMap<ProcessId, Vec<TaskName>>,
    /// Version of the newest checkpoint that was acknowledged, less what damage took.
    acknowledged: Option<u32>,
    /// Version of the checkpoint that the disk has damaged.
    damaged: Option<u32>,
    /// Tasks that some learner said it held or did not want.
    answered: BTreeSet<TaskName>,
    incarnations: BTreeMap<String, u64>,
    living: BTreeMap<MemberName, u32>,
    /// When something last got on.
    progressed: Duration,
    furthest: (u32, usize),
    is_done: bool,
    is_calm: bool,
    longest_standstill: Duration,
    n_learners: u32,
    most_held: HoldLimit,
    /// Workers that have failed to give weights, by the search of who asked.
    failed_sources: BTreeSet<(ProcessId, u64, String)>,
    seen: BTreeMap<&'static str, u32>,
}

impl Laws {
    /// Nothing was seen yet.
    pub fn new(config: Arc<RunConfig>, lists: Arc<PromptLists>, story: Story) -> Self {
        Self {
            reference: Reference::of(&config, &lists),
            config,
            lists,
            story,
            violation: None,
            own: ProcessId(0),
            added: BTreeMap::new(),
            acknowledged: None,
            damaged: None,
            answered: BTreeSet::new(),
            incarnations: BTreeMap::new(),
            living: BTreeMap::new(),
            progressed: Duration::ZERO,
            furthest: (0, 0),
            is_done: false,
            is_calm: false,
            longest_standstill: Duration::ZERO,
            n_learners: 0,
            most_held: HoldLimit { outcomes: 0, bytes: 0 },
            failed_sources: BTreeSet::new(),
            seen: BTreeMap::new(),
        }
    }

    /// The first violation.
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// Whether the learner has trained and saved all.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Demands something.
    pub fn demand(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds && self.violation.is_none() {
            let violation = otherwise();
            self.story.tell(|| format!("VIOLATION: {violation}"));
            self.violation = Some(violation);
        }
    }

    fn policy(&self, version: u32) -> u64 {
        self.reference.policies.get(version as usize).copied().unwrap_or_default()
    }

    /// A learner begins: what an earlier one added to an unfinished iteration is gone.
    pub fn learner_begins(&mut self) {
        self.n_learners += 1;
        self.added.remove(&self.own);
    }

    /// A learner resumes from a checkpoint, or from nothing.
    pub fn resumes(&mut self, found: Option<(u32, u64)>) {
        let version = found.map(|(version, _)| version);
        self.story.tell(|| format!("the learner resumes from {version:?}"));
        self.saw(if found.is_some() { "learner resumed" } else { "learner began" });
        let acknowledged = self.acknowledged;
        let is_damaged = acknowledged.is_some() && acknowledged == self.damaged;
        self.demand(version >= acknowledged || is_damaged, || {
            format!("checkpoint {acknowledged:?} was acknowledged, and the learner resumes from {version:?}")
        });
        if let Some((version, policy)) = found {
            let expected = self.policy(version);
            self.demand(policy == expected, || format!("checkpoint {version} holds another policy"));
        }
        self.acknowledged = version;
    }

    /// The rows of evaluations that a learner finds at its opening.
    pub fn finds_rows(&mut self, rows: &[Row], version: u32) {
        let due: Vec<Row> =
            self.reference.evaluations.iter().filter(|row| row.0 < version).copied().collect();
        let found: Vec<Row> = rows.iter().filter(|row| row.0 < version).copied().collect();
        self.demand(found == due, || {
            format!("a learner at version {version} finds the evaluations {found:?} instead of {due:?}")
        });
    }

    /// A checkpoint was acknowledged.
    pub fn saves(&mut self, version: u32) {
        self.story.tell(|| format!("checkpoint {version} is written"));
        self.acknowledged = Some(version);
        self.gets_on(version, usize::MAX);
    }

    /// The disk damages a checkpoint.
    pub fn damages(&mut self, version: u32) {
        self.damaged = Some(version);
    }

    /// Whether a checkpoint was damaged.
    pub fn has_damage(&self) -> bool {
        self.damaged.is_some()
    }

    /// An outcome is added to the sum of its part.
    pub fn adds(&mut self, name: TaskName, spec: &TaskSpec, outcome: &Outcome) {
        let turn = TaskName { iteration: spec.iteration, kind: spec.kind, index: spec.index };
        self.demand(name == turn, || format!("{name} is added in the turn of {turn}"));
        let added = self.added.entry(self.own).or_default();
        let (is_new, next) = (!added.contains(&name), added.len() as u32);
        self.demand(is_new, || format!("{name} enters an update twice"));
        self.demand(name.index == next, || format!("{name} is added where task {next} is due"));
        let lagged = self.config.policy_version(name.iteration);
        self.demand(outcome.version == lagged, || {
            format!("{name} was sampled with version {} instead of {lagged}", outcome.version)
        });
        let expected = reference::expected_outcome(spec, &self.lists, &self.config, self.policy(lagged));
        self.demand(outcome.digest == expected, || format!("{name} has another outcome"));
        let added = self.added.entry(self.own).or_default();
        added.push(name);
        let n_added = added.len();
        self.gets_on(name.iteration, n_added);
    }

    fn n_added(&self) -> usize {
        self.added.get(&self.own).map_or(0, Vec::len)
    }

    /// An update is made.
    pub fn updates(&mut self, iteration: u32) {
        let n_added = self.n_added();
        self.story.tell(|| format!("iteration {iteration} is updated after {n_added} tasks"));
    }

    /// An iteration is finished.
    pub fn finishes(&mut self, iteration: u32, policy: u64) {
        let (n_added, n_tasks) = (self.n_added(), self.config.n_train_tasks());
        self.demand(n_added == n_tasks, || {
            format!("iteration {iteration} is finished with {n_added} of {n_tasks} tasks")
        });
        self.saw("iteration finished");
        let expected = self.policy(iteration + 1);
        self.demand(policy == expected, || {
            format!("version {} is not that of an undisturbed run", iteration + 1)
        });
        self.added.remove(&self.own);
        self.gets_on(iteration + 1, 0);
    }

    /// A worker did not give weights to who asked in that search.
    pub fn source_failed(&mut self, (asker, search): (ProcessId, u64), source: &str) {
        self.failed_sources.insert((asker, search, source.to_owned()));
    }

    /// A worker is to be asked for weights.
    pub fn asks_source(&mut self, (asker, search): (ProcessId, u64), source: &str) {
        let has_failed = self.failed_sources.contains(&(asker, search, source.to_owned()));
        self.demand(!has_failed, || format!("process {} asks {source} again, which has failed it", asker.0));
    }

    /// A version is published.
    pub fn publishes(&mut self, version: u32, policy: u64) {
        self.story.tell(|| format!("version {version} is published"));
        let expected = self.policy(version);
        self.demand(policy == expected, || format!("version {version} is published with another policy"));
    }

    /// A version was measured.
    pub fn measures(&mut self, kind: TaskKind, row: Row) {
        self.story.tell(|| format!("version {} is measured ({kind:?})", row.0));
        let due = if kind == TaskKind::Test { &self.reference.tests } else { &self.reference.evaluations };
        let is_due = due.contains(&row);
        self.demand(is_due, || format!("version {} is measured with another outcome", row.0));
        self.gets_on(row.0, usize::MAX - 1);
    }

    fn gets_on(&mut self, iteration: u32, n_tasks: usize) {
        if (iteration, n_tasks) > self.furthest {
            self.furthest = (iteration, n_tasks);
            self.progress();
        }
    }

    fn progress(&mut self) {
        if self.is_calm {
            let standstill = self.story.now.saturating_sub(self.progressed);
            self.longest_standstill = self.longest_standstill.max(standstill);
        }
        self.progressed = self.story.now;
    }

    /// When something last got on that had never got so far.
    pub fn progressed(&self) -> Duration {
        self.progressed
    }

    /// The learner answers a push.
    pub fn answers_push(&mut self, task: TaskName, status: PushStatus, is_held: bool) {
        self.answered.insert(task);
        self.demand(status != PushStatus::Held || is_held, || {
            format!("the learner says that it holds {task}, and does not")
        });
    }

    /// The learner holds so much, and has room for that. What an earlier one had opened may be brought to it besides.
    pub fn holds(&mut self, held: HoldLimit, limit: HoldLimit) {
        let n_opened_before = if self.n_learners > 1 { 2 * u64::from(MOST_WORKERS) } else { 0 };
        let outcomes = limit.outcomes.max(1).saturating_add(n_opened_before);
        let bytes = limit.bytes.max(OUTCOME_BYTES[0]).saturating_add(n_opened_before * OUTCOME_BYTES[0]);
        self.demand(held.outcomes <= outcomes && held.bytes <= bytes, || {
            format!("the learner holds {held:?} and has room for {limit:?}")
        });
        if limit != HoldLimit::NONE {
            self.most_held.outcomes = self.most_held.outcomes.max(held.outcomes);
            self.most_held.bytes = self.most_held.bytes.max(held.bytes);
        }
    }

    /// The most that a learner whose room is limited has held.
    pub fn most_held(&self) -> HoldLimit {
        self.most_held
    }

    /// A worker that finishes some tasks is granted one, which so many have then.
    pub fn grants(&mut self, task: TaskName, finishing: &[TaskName], n_runners: usize) {
        self.demand(!finishing.contains(&task), || format!("{task} is granted to who finishes it"));
        self.demand(n_runners <= 2, || format!("{n_runners} workers are granted {task}"));
        if n_runners == 2 {
            self.saw("task granted a second time");
        }
    }

    /// The learner answers a push that it has no use for.
    pub fn answers_unwanted(&mut self, task: TaskName, standing: &TaskStanding) {
        self.answered.insert(task);
        self.saw(if *standing == TaskStanding::Held {
            "outcome held already"
        } else {
            "outcome not wanted any more"
        });
    }

    /// Something happened that a world of faults must bring about now and then.
    pub fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// What was seen how often.
    pub fn seen(&self) -> &BTreeMap<&'static str, u32> {
        &self.seen
    }

    /// Longest time without progress since nothing goes wrong any more.
    pub fn longest_standstill(&self) -> Duration {
        self.longest_standstill
    }

    /// Nothing goes wrong any more.
    pub fn calm_down(&mut self) {
        (self.is_calm, self.progressed) = (true, self.story.now);
    }

    /// A worker is about to tell the coordinator that the learner holds a task or does not want it.
    pub fn tells_held(&mut self, task: Option<TaskName>) {
        if let Some(task) = task {
            let is_answered = self.answered.contains(&task);
            self.demand(is_answered, || {
                format!("a worker tells that {task} is held, and no learner said so")
            });
        }
    }

    /// The coordinator gave an identity.
    pub fn gives_identity(&mut self, caller: &Caller) {
        let newest = self.incarnations.insert(caller.member_id.clone(), caller.incarnation);
        self.demand(newest.is_none_or(|newest| newest < caller.incarnation), || {
            format!("{} gets incarnation {} after {newest:?}", caller.member_id, caller.incarnation)
        });
    }

    /// The coordinator took a call.
    pub fn admits(&mut self, caller: Option<&Caller>) {
        let Some(caller) = caller else { return };
        let newest = self.incarnations.get(&caller.member_id).copied();
        self.demand(newest == Some(caller.incarnation), || {
            let Caller { member_id, incarnation, .. } = caller;
            format!(
                "a call of {member_id} with incarnation {incarnation} is taken, and {newest:?} is the newest"
            )
        });
    }

    /// A process of a member begins.
    pub fn begins(&mut self, member: MemberName) {
        let living = self.living.entry(member).or_default();
        *living += 1;
        let n_living = *living;
        self.demand(n_living == 1, || format!("{n_living} processes of {member} live at a time"));
    }

    /// The learner changed what it may not.
    pub fn keeps_to_its_right(&mut self, forbidden: Option<String>) {
        let Self { own, .. } = *self;
        self.demand(forbidden.is_none(), || {
            let path = forbidden.unwrap_or_default();
            format!("learner {} changes {path}, and another one has its place or none", own.0)
        });
    }

    /// A process of a member has ended, or nobody who could start another knows of it.
    pub fn ends(&mut self, member: MemberName) {
        if let Some(living) = self.living.get_mut(&member) {
            *living -= 1;
        }
    }

    /// Whether sets of wanted tasks and publications are as many as lag and evaluations need.
    pub fn bounds(&mut self, n_sets: usize, n_publications: usize) {
        let most = self.config.run.lag as usize + 3;
        self.demand(n_sets <= most && n_publications <= 2 * most, || {
            format!("{n_sets} sets are wanted and {n_publications} versions published; {most} are needed")
        });
    }

    /// The learner says that all is trained and saved.
    pub fn done(&mut self, disk: &Disk) {
        self.is_done = true;
        self.story.tell(|| "the learner is done".to_owned());
        self.progress();
        self.check_outcome(disk);
    }

    /// Whether what is on the disk is what an undisturbed run leaves.
    pub fn check_outcome(&mut self, disk: &Disk) {
        let last = self.config.run.iterations;
        let is_there =
            checkpoints::versions(disk).last() == Some(&last) && checkpoints::is_intact(disk, last);
        self.demand(is_there || self.damaged == Some(last), || "the last checkpoint is not there".to_owned());
        let finished = self.reference.policies.iter().skip(1);
        let metrics = (0..).zip(finished.copied()).collect();
        for (path, due) in [
            ("run/evaluations.jsonl", self.reference.evaluations.clone()),
            ("run/tests.jsonl", self.reference.tests.clone()),
            ("run/metrics.jsonl", metrics),
        ] {
            let rows = Journal::on_disk(disk, path);
            let is_rising = rows.windows(2).all(|pair| pair[0].0 < pair[1].0);
            let is_part = is_rising && rows.iter().all(|row| due.contains(row));
            // Metrics that a full disk did not take may be lost with their process: no checkpoint holds a copy.
            let may_lack = path == "run/metrics.jsonl" && self.seen.contains_key("row not written");
            let is_right = if may_lack { is_part } else { rows == due };
            self.demand(is_right, || format!("the run is done with {path} {rows:?} instead of {due:?}"));
        }
    }
}
