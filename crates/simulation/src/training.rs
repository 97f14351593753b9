//! The learner's training thread: a model of `learner/src/run.rs`, `run/saving.rs` and `training/trainer.rs`, in which
//! tensors are digests and every step takes some time. The order of what is taken, added, recorded, saved and forgotten is
//! that of the product; [`Intake`] and the task lists of [`RunConfig`] are the product's own.

mod saving;

use crate::bug::Bug;
use crate::checkpoints::{self, Journal, Newest, Row, Saved};
use crate::disk::DiskFault;
use crate::reference::{self, Outcome};
use crate::sizes::OUTCOME_BYTES;
use crate::stage::Stage;
use config::{PromptLists, RunConfig, TaskKind, TaskSpec};
use protocol::{HoldLimit, Intake, Taken, TaskName, TaskSet, WeightsName, WeightsRole};
use service::exit_code;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What the thread does next.
#[derive(Clone, Debug)]
enum Step {
    Want(u32),
    Take(TaskSpec),
    Compute(TaskSpec),
    Update(u32),
    Record(TaskKind, u32),
    Finish(u32),
    Save,
    SaveAtLast,
    TestWhatIsReported,
    Done,
}

/// Where the thread is after it did what it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Busy for so long.
    Busy(Duration),
    /// It waits for an outcome.
    Waiting,
    /// All is trained, evaluated and saved.
    Done,
    /// It was told to leave, and has.
    Left,
    /// The run cannot go on.
    Failed,
    /// The process died in the middle of what it did to the disk.
    Died,
    /// It may not change the run, or not any more; the exit code that says so.
    Fenced(u8),
}

/// The thread and what it shares with the service of its process.
#[derive(Debug)]
pub struct Training {
    config: Arc<RunConfig>,
    lists: Arc<PromptLists>,
    /// Outcomes that wait for training.
    pub intake: Intake<Outcome>,
    /// Weights that can be fetched.
    pub publications: BTreeMap<WeightsName, u64>,
    /// Iterations finished.
    pub version: u32,
    /// Whether something is to be reported.
    pub has_news: bool,
    policy: u64,
    updates: u64,
    updates_at_boundary: u64,
    earlier: BTreeMap<u32, u64>,
    sum: u64,
    /// Of the iteration: what was taken.
    turns: BTreeSet<TaskName>,
    taken: VecDeque<(TaskName, Outcome)>,
    evaluations: Journal,
    tests: Journal,
    metrics: Journal,
    saved: Option<u32>,
    has_failed_to_save: bool,
    steps: VecDeque<Step>,
}

impl Training {
    /// Continues from the newest intact checkpoint, or starts where there is none.
    ///
    /// # Errors
    /// If the process died, or no checkpoint is intact.
    pub fn open(
        config: Arc<RunConfig>,
        lists: Arc<PromptLists>,
        limit: HoldLimit,
        stage: &mut Stage,
    ) -> Result<Self, Standing> {
        checkpoints::open(stage.disk, stage.bug).map_err(died)?;
        let found = match checkpoints::newest(stage.disk, stage.bug).map_err(died)? {
            Newest::Nothing => None,
            Newest::Whole(saved) => Some(*saved),
            Newest::NoneIntact => return Err(Standing::Failed),
        };
        stage.laws.resumes(found.as_ref().map(|saved| (saved.version, saved.policy)));
        let saved_version = found.as_ref().map(|saved| saved.version);
        let mut saved = found.unwrap_or(Saved { policy: reference::FIRST_POLICY, ..Saved::default() });
        if stage.has(Bug::SkipsAnIteration) && saved.version > 0 && saved.version < config.run.iterations {
            saved.version += 1;
        }
        let journals = open_journals(&saved, stage).map_err(died)?;
        stage.laws.finds_rows(&journals[0].rows, saved.version);
        if stage.has(Bug::ForgetsEarlierVersions) {
            saved.earlier.clear();
        }
        let mut training = Self::new((config, lists), saved, journals, saved_version);
        training.intake = Intake::new(limit);
        training.begin();
        training.settle(stage).map_err(died)?;
        Ok(training)
    }

    fn new(
        (config, lists): (Arc<RunConfig>, Arc<PromptLists>),
        state: Saved,
        [evaluations, tests, metrics]: [Journal; 3],
        saved: Option<u32>,
    ) -> Self {
        Self {
            config,
            lists,
            intake: Intake::default(),
            publications: BTreeMap::new(),
            version: state.version,
            has_news: true,
            policy: state.policy,
            updates: state.updates,
            updates_at_boundary: state.updates,
            earlier: state.earlier,
            sum: 0,
            turns: BTreeSet::new(),
            taken: VecDeque::new(),
            evaluations,
            tests,
            metrics,
            saved,
            has_failed_to_save: false,
            steps: VecDeque::new(),
        }
    }

    fn begin(&mut self) {
        self.remember_policy();
        if self.saved.is_none() {
            self.steps.push_back(Step::Save);
        }
        for (version, policy) in self.earlier.clone() {
            self.publish(WeightsName::policy(version), policy);
        }
    }

    fn publish(&mut self, name: WeightsName, policy: u64) {
        self.publications.entry(name).or_insert(reference::weights_digest(name, policy));
    }

    fn remember_policy(&mut self) {
        if self.config.run.lag == 0 && !self.config.recomputes_means() {
            return;
        }
        let oldest = self.config.policy_version(self.version);
        self.earlier.insert(self.version, self.policy);
        self.earlier.retain(|version, _| *version >= oldest);
    }

    fn n_prompts(&self, kind: TaskKind) -> usize {
        self.lists.of(self.config.data.split_of(kind)).len()
    }

    fn held_out_tasks(&self, kind: TaskKind, version: u32) -> Vec<TaskSpec> {
        self.config.evaluation_tasks(kind, self.n_prompts(kind), version)
    }

    /// Goes on until it has to wait, is busy for a while, or has ended.
    pub fn go_on(&mut self, stage: &mut Stage) -> Standing {
        loop {
            let step = match self.steps.pop_front() {
                Some(step) => step,
                None => {
                    self.plan(stage.bug);
                    continue;
                }
            };
            let before = stage.disk.n_operations();
            let standing = self.take_step(step, stage);
            let busy = stage.disk.pace * (stage.disk.n_operations() - before) as u32;
            match standing {
                Some(Standing::Busy(pause)) => return Standing::Busy(pause + busy),
                Some(standing) => return standing,
                None if !busy.is_zero() => return Standing::Busy(busy),
                None => {}
            }
        }
    }

    /// The steps of the next iteration, or of the end.
    fn plan(&mut self, bug: Option<Bug>) {
        let version = self.version;
        self.steps.push_back(Step::Want(version));
        if version >= self.config.run.iterations {
            self.plan_evaluations(version);
            self.steps.extend([Step::SaveAtLast, Step::TestWhatIsReported]);
            return;
        }
        let tasks = self.config.train_tasks(self.n_prompts(TaskKind::Train), version);
        let ends = reference::part_ends(tasks.len(), self.config.training.updates_per_iteration);
        for group in tasks.chunks(self.config.tasks_compared().max(1)) {
            self.steps.extend(group.iter().cloned().map(Step::Take));
            for task in group {
                let index = task.index as usize;
                let end = *ends.range(index + 1..).next().unwrap_or(&tasks.len());
                self.steps.push_back(Step::Compute(task.clone()));
                if index + 1 == end {
                    self.steps.push_back(Step::Update(version));
                }
            }
        }
        if bug == Some(Bug::RecordsAfterCheckpoint) {
            self.steps.push_back(Step::Finish(version));
            return self.plan_evaluations(version);
        }
        self.plan_evaluations(version);
        self.steps.push_back(Step::Finish(version));
    }

    fn plan_evaluations(&mut self, version: u32) {
        for kind in self.open_evaluations(version) {
            self.plan_taking(kind, version);
        }
    }

    fn plan_taking(&mut self, kind: TaskKind, version: u32) {
        let tasks = self.held_out_tasks(kind, version);
        self.steps.extend(tasks.into_iter().map(Step::Take));
        self.steps.push_back(Step::Record(kind, version));
    }

    fn open_evaluations(&self, version: u32) -> Vec<TaskKind> {
        let is_recorded = |journal: &Journal| journal.rows.iter().any(|(row, _)| *row == version);
        let is_open = self.config.evaluation_due(version) && !is_recorded(&self.evaluations);
        let is_first = version == 0 && self.config.data.has_validation() && !is_recorded(&self.tests);
        let open = [(TaskKind::Evaluate, is_open), (TaskKind::Test, is_first)];
        open.into_iter().filter(|(_, is_open)| *is_open).map(|(kind, _)| kind).collect()
    }

    fn take_step(&mut self, step: Step, stage: &mut Stage) -> Option<Standing> {
        match step {
            Step::Want(version) => {
                self.want(version, stage);
                None
            }
            Step::Take(spec) => self.take(spec, stage),
            Step::Compute(spec) => Some(self.compute(&spec, stage)),
            Step::Update(iteration) => {
                self.policy = reference::update(self.policy, self.sum);
                (self.sum, self.updates) = (0, self.updates + 1);
                stage.laws.updates(iteration);
                Some(Standing::Busy(stage.dice.millis(10, 100)))
            }
            Step::Record(kind, version) => self.record(kind, version, stage),
            Step::Finish(iteration) => self.finish(iteration, stage),
            Step::Save => self.save(stage),
            Step::SaveAtLast => self.save_at_last(stage),
            Step::TestWhatIsReported => {
                self.test_what_is_reported();
                None
            }
            Step::Done => Some(Standing::Done),
        }
    }

    fn want(&mut self, iteration: u32, stage: &mut Stage) {
        self.has_news = true;
        self.publish(WeightsName::policy(iteration), self.policy);
        stage.laws.publishes(iteration, self.policy);
        for kind in self.open_evaluations(iteration) {
            self.want_images(kind, iteration, self.policy);
        }
        let oldest = self.config.policy_version(iteration);
        let oldest = if stage.has(Bug::WithdrawsWeightsEarly) { iteration } else { oldest };
        self.publications.retain(|name, _| match name.role {
            WeightsRole::Average => name.version >= iteration,
            WeightsRole::Policy => name.version >= oldest,
        });
        let ahead = (iteration + self.config.run.lag + 1).min(self.config.run.iterations);
        for iteration in iteration..ahead {
            let tasks = self.config.train_tasks(self.n_prompts(TaskKind::Train), iteration);
            self.intake.want(
                TaskKind::Train,
                iteration,
                TaskSet { tasks, steps: Vec::new(), outcome_bytes: OUTCOME_BYTES[0] },
            );
        }
        stage.laws.bounds(self.intake.wanted().len(), self.publications.len());
    }

    fn want_images(&mut self, kind: TaskKind, version: u32, policy: u64) {
        self.publish(WeightsName::average(version), policy);
        let tasks = self.held_out_tasks(kind, version);
        self.intake.want(
            kind,
            version,
            TaskSet { tasks, steps: Vec::new(), outcome_bytes: OUTCOME_BYTES[1] },
        );
        self.has_news = true;
    }

    fn take(&mut self, spec: TaskSpec, stage: &mut Stage) -> Option<Standing> {
        let name = name_of(&spec);
        match self.take_from_intake(name, stage) {
            Taken::Here((name, outcome)) => {
                self.taken.push_back((name, outcome));
                // There is room for another.
                self.has_news |= self.intake.is_short_of_room();
                None
            }
            Taken::NotYet => {
                self.steps.push_front(Step::Take(spec));
                Some(Standing::Waiting)
            }
            Taken::Stopped => Some(self.leave(stage)),
        }
    }

    fn take_from_intake(&mut self, name: TaskName, stage: &Stage) -> Taken<(TaskName, Outcome)> {
        let is_in_order = !stage.has(Bug::AddsInOrderOfArrival) || name.kind != TaskKind::Train;
        let turn = if is_in_order { name } else { self.next_arrived(name) };
        match self.intake.take(turn) {
            Taken::Here(outcome) => {
                self.turns.insert(turn);
                Taken::Here((turn, outcome))
            }
            Taken::NotYet => Taken::NotYet,
            Taken::Stopped => Taken::Stopped,
        }
    }

    /// The last task of an iteration that is here and was not taken; only a deliberate bug asks.
    fn next_arrived(&self, name: TaskName) -> TaskName {
        let sets = self.intake.wanted();
        let is_it = |set: &&proto::Wanted| {
            set.iteration == name.iteration && protocol::kind_from_wire(set.kind()) == Some(name.kind)
        };
        let held = sets.iter().find(is_it).map_or(&[][..], |set| &set.held);
        let mut names = held.iter().map(|index| TaskName { index: *index, ..name });
        let open = names.rfind(|name| !self.turns.contains(name));
        open.or_else(|| self.first_open(name)).unwrap_or(name)
    }

    fn first_open(&self, name: TaskName) -> Option<TaskName> {
        let names = (0..self.config.n_train_tasks() as u32).map(|index| TaskName { index, ..name });
        names.into_iter().find(|name| !self.turns.contains(name))
    }

    fn compute(&mut self, spec: &TaskSpec, stage: &mut Stage) -> Standing {
        let Some((name, outcome)) = self.taken.pop_front() else { return Standing::Failed };
        stage.laws.adds(name, spec, &outcome);
        self.sum = reference::add(self.sum, outcome.digest);
        Standing::Busy(stage.dice.millis(10, 300))
    }

    /// A deliberate bug adds an outcome once more.
    pub fn add_again(&mut self, outcome: &Outcome) {
        self.sum = reference::add(self.sum, outcome.digest);
    }

    fn record(&mut self, kind: TaskKind, version: u32, stage: &mut Stage) -> Option<Standing> {
        let outcomes: Vec<(TaskName, Outcome)> = self.taken.drain(..).collect();
        let row = (version, reference::measure(outcomes.iter().map(|(_, outcome)| outcome.digest)));
        stage.laws.measures(kind, row);
        let journal = if kind == TaskKind::Test { &mut self.tests } else { &mut self.evaluations };
        let written = journal.append(stage.disk, row, stage.bug);
        self.intake.forget(kind, version);
        self.has_news = true;
        match written {
            Err(DiskFault::Died) => return Some(Standing::Died),
            // What it computes is of no use to anybody.
            Err(DiskFault::Superseded) => {}
            Err(fault) => {
                stage.laws.saw("row not written");
                stage.tell(|| format!("row {row:?} not written: {fault:?}"));
            }
            Ok(()) => {}
        }
        if kind == TaskKind::Evaluate { self.settled(stage) } else { None }
    }

    fn settled(&mut self, stage: &mut Stage) -> Option<Standing> {
        matches!(self.settle(stage), Err(DiskFault::Died)).then_some(Standing::Died)
    }

    fn finish(&mut self, iteration: u32, stage: &mut Stage) -> Option<Standing> {
        if !stage.has(Bug::NeverForgetsIterations) {
            self.intake.forget(TaskKind::Train, iteration);
        }
        self.version += 1;
        self.updates_at_boundary = self.updates;
        self.turns.clear();
        self.remember_policy();
        stage.laws.finishes(iteration, self.policy);
        let row: Row = (iteration, self.policy);
        let written = self.metrics.append(stage.disk, row, stage.bug);
        self.has_news = true;
        match written {
            Err(DiskFault::Died) => return Some(Standing::Died),
            Err(DiskFault::Superseded) => {}
            Err(fault) => {
                stage.laws.saw("row not written");
                stage.tell(|| format!("metrics of {iteration} not written: {fault:?}"));
            }
            Ok(()) => {}
        }
        let (config, version) = (&self.config, self.version);
        let is_due = version.is_multiple_of(config.checkpoints.every)
            || version == config.run.iterations
            || config.evaluation_due(version);
        if is_due || self.has_failed_to_save { self.save(stage) } else { None }
    }

    fn test_what_is_reported(&mut self) {
        self.steps.extend([Step::SaveAtLast, Step::Done]);
        let is_tested = self.tests.rows.iter().any(|(row, _)| *row == self.version);
        if self.config.data.has_validation() && !is_tested {
            self.want_images(TaskKind::Test, self.version, self.policy);
            let rest = std::mem::take(&mut self.steps);
            self.plan_taking(TaskKind::Test, self.version);
            self.steps.extend(rest);
        }
    }

    /// What waits for training, at most what is wanted.
    pub fn n_waiting(&self) -> usize {
        self.taken.len()
    }
}

fn name_of(spec: &TaskSpec) -> TaskName {
    TaskName { iteration: spec.iteration, kind: spec.kind, index: spec.index }
}

fn died(fault: DiskFault) -> Standing {
    match fault {
        DiskFault::Died => Standing::Died,
        DiskFault::Superseded => Standing::Fenced(exit_code::FENCED),
        DiskFault::Withdrawn => Standing::Fenced(exit_code::RETRY),
        _ => Standing::Failed,
    }
}

/// Evaluations and tests, lost ones put back from their copies, and metrics.
fn open_journals(saved: &Saved, stage: &mut Stage) -> Result<[Journal; 3], DiskFault> {
    let (version, bug) = (saved.version, stage.bug);
    let is_past = |row: u32| row <= version;
    Ok([
        Journal::open(stage.disk, "run/evaluations.jsonl", (is_past, &saved.evaluations[..]), bug)?,
        Journal::open(stage.disk, "run/tests.jsonl", (is_past, &saved.tests[..]), bug)?,
        Journal::open(stage.disk, "run/metrics.jsonl", (|row: u32| row < version, &[][..]), bug)?,
    ])
}
