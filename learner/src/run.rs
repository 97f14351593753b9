//! A run from its newest checkpoint to its end: want tasks, train, evaluate, publish, record, checkpoint.
//!
//! Version `v` of the policy is what `v` iterations have made of it. The order of things that must survive a crash:
//!
//! 1. The evaluation of version `v` is recorded before iteration `v` ends, that is before a checkpoint of `v + 1` exists.
//! 2. The metrics of iteration `i` are recorded before the checkpoint of version `i + 1`; a resumed run cuts off what is
//!    newer than its checkpoint.
//! 3. What follows from checkpoints and records is made anew from them, see `settling`.
//! 4. What is published is either in a checkpoint or will be computed again, to the last bit, by a resumed run.

pub mod checkpoint;
mod export;
pub mod export_checkpoint;
pub mod follower;
mod held_out;
pub mod reward_hacking;
mod saved_state;
mod saving;
mod settling;

use std::sync::Arc;
use std::time::Instant;

use config::{OnRewardHacking, RewardSection, RunConfig, TaskKind};
use proto::Summary;
use protocol::{TaskSet, WeightsName};
use service::OwnedDirectory;
use tch::Tensor;

use crate::error::LearnerError;
use crate::exchange::inbox::{Outcome, Stopped};
use crate::exchange::outcome::EvaluatedImages;
use crate::exchange::publications::Publications;
use crate::records::evaluation::Evaluation;
use crate::records::{self, Copies, Records};
use crate::training::metrics::{self, IterationMetrics};
use crate::training::policy;
use crate::training::trainer::Trainer;
use checkpoint::OwnedCheckpoints;
pub use held_out::HeldOutPrompts;
use reward_hacking::Hacked;
use saved_state::SavedState;

/// How a run left off.
#[derive(Debug)]
pub enum TrainingEnd {
    /// All iterations are trained and evaluated.
    Done(Box<Summary>),
    /// It was told to leave; a resumed run continues.
    Left,
}

/// A run in progress.
pub struct Run {
    /// Trains one iteration at a time.
    pub trainer: Trainer,
    publications: Arc<Publications>,
    held_out: HeldOutPrompts,
    checkpoints: OwnedCheckpoints,
    records: Records,
    directory: OwnedDirectory,
    state: SavedState,
    /// Version of the newest checkpoint.
    saved: Option<u32>,
    /// Why no checkpoint could be written since.
    save_failure: Option<SaveFailure>,
    /// Why not everything that follows from checkpoints and evaluations could be made.
    unsettled: Option<LearnerError>,
    opened: Instant,
}

/// Checkpoints that cannot be written.
pub(crate) struct SaveFailure {
    /// Since when.
    since: Instant,
    /// Why the last could not.
    reason: String,
}

impl Run {
    /// Continues from the newest intact checkpoint, or starts at version 0 where there is none.
    ///
    /// # Errors
    /// If no checkpoint is intact, it belongs to another config, a file cannot be read, or the run is another learner's.
    pub fn open(
        mut trainer: Trainer,
        held_out: HeldOutPrompts,
        publications: Arc<Publications>,
        directory: OwnedDirectory,
    ) -> Result<Self, LearnerError> {
        let checkpoints = OwnedCheckpoints::open(&directory, trainer.config.checkpoints.keep_last)?;
        let newest = checkpoints.newest_intact()?;
        for rejected in &newest.rejected {
            let kept = checkpoints.set_aside(rejected)?;
            let kept = kept.display();
            trainer.progress.notice(format!("damaged checkpoint passed over and kept as {kept}: {rejected}"));
        }
        let mut state = SavedState::new(&trainer.config);
        let mut copies = Copies::default();
        if let Some((version, path)) = &newest.checkpoint {
            tracing::info!(version, "resuming from {}", path.display());
            state = SavedState::read(path, &state, &directory)?;
            trainer.policy.load(path)?;
            trainer.updates = state.updates;
            trainer.earlier = state.read_earlier(path)?;
            copies = saved_state::read_copies(path)?;
        } else if directory.has_records() {
            return Err(LearnerError::CheckpointsGone { directory: directory.path().to_owned() });
        }
        let records = Records::open(&directory, state.version, copies)?;
        records.notices().iter().for_each(|notice| trainer.progress.notice(notice.clone()));
        // An evaluation is recorded after the checkpoint of its version.
        let recorded = records.evaluations().last().map_or(0.0, |row| row.seconds);
        state.seconds = state.seconds.max(recorded);
        let mut run = Self {
            records,
            held_out,
            saved: newest.checkpoint.map(|(version, _)| version),
            trainer,
            publications,
            checkpoints,
            directory,
            state,
            save_failure: None,
            unsettled: None,
            opened: Instant::now(),
        };
        run.trainer.remember_policy(run.state.version);
        run.settle();
        Ok(run)
    }

    /// Runs to the end, or until told to leave.
    ///
    /// # Errors
    /// If the run cannot go on.
    pub fn run(&mut self) -> Result<TrainingEnd, LearnerError> {
        if self.saved.is_none() {
            self.save()?;
        }
        for (version, tensors) in &self.trainer.earlier {
            self.publications.publish(WeightsName::policy(*version), tensors)?;
        }
        self.tell_progress();
        let updates_before = self.trainer.updates;
        match self.iterate() {
            Ok(()) => Ok(TrainingEnd::Done(Box::new(self.summary()))),
            Err(LearnerError::Stopped(Stopped)) => {
                tracing::info!(
                    updates = self.trainer.updates - updates_before,
                    "leaving before the end of the run"
                );
                self.save_before_leaving()?;
                Ok(TrainingEnd::Left)
            }
            Err(error) => Err(error),
        }
    }

    fn iterate(&mut self) -> Result<(), LearnerError> {
        while self.state.version < self.config().run.iterations {
            self.stop_if_hacked()?;
            let iteration = self.state.version;
            self.want_tasks(iteration)?;
            self.trainer.iteration = iteration;
            self.trainer.meet()?;
            let metrics = self.trainer.train()?;
            self.evaluate(iteration)?;
            self.finish_iteration(metrics)?;
        }
        self.want_tasks(self.state.version)?;
        self.evaluate(self.state.version)?;
        self.report()
    }

    /// Ends the run where the config has it end. The iteration that was sampled beside the evaluation is finished first, by
    /// an uninterrupted run as by a resumed one.
    fn stop_if_hacked(&mut self) -> Result<(), LearnerError> {
        let evaluations = self.records.evaluations();
        let is_finished = evaluations.last().is_some_and(|row| row.version < self.state.version);
        if self.config().evaluation.on_reward_hacking == OnRewardHacking::Warn || !is_finished {
            return Ok(());
        }
        let hacked = self.hacked(evaluations);
        if hacked.is_empty() {
            return Ok(());
        }
        self.report()?;
        let summary = Box::new(self.summary());
        let best = summary.best.map_or(0, |best| best.version);
        let adapter = match summary.best_adapter.is_empty() {
            true => summary.adapter.clone(),
            false => summary.best_adapter.clone(),
        };
        Err(LearnerError::RewardHacking { findings: findings(&hacked), best, adapter, summary })
    }

    fn hacked(&self, history: &[Evaluation]) -> Vec<Hacked> {
        let config = self.config();
        reward_hacking::hacked(history, &config.held_out_rewards(), config.evaluation.hacking_patience)
    }

    /// Publishes what the tasks of `iteration` and of those that may be sampled ahead need, and wants them.
    fn want_tasks(&self, iteration: u32) -> Result<(), LearnerError> {
        let (config, inbox) = (self.config(), &self.trainer.inbox);
        self.trainer.embeddings.begin_iteration(iteration);
        let policy = &self.trainer.policy;
        let weights = policy.for_workers(policy.trained());
        self.publications.publish(WeightsName::policy(iteration), &weights)?;
        for kind in self.open_evaluations(iteration) {
            self.want_images(kind, iteration, policy.average())?;
        }
        self.publications.keep(config.policy_version(iteration), iteration);
        let ahead = (iteration + config.run.lag + 1).min(config.run.iterations);
        for iteration in iteration..ahead {
            inbox.want(TaskKind::Train, iteration, self.trainer.own_tasks(iteration, 0)?);
        }
        self.trainer.progress.update(|progress| progress.iteration = iteration);
        Ok(())
    }

    fn finish_iteration(&mut self, metrics: IterationMetrics) -> Result<(), LearnerError> {
        let iteration = self.state.version;
        let n_hacked = self.records.evaluations().last().map_or(0, |row| row.reward_hacking.len());
        let metrics = IterationMetrics { reward_hacking: n_hacked as u32, ..metrics };
        self.trainer.inbox.forget(TaskKind::Train, iteration);
        self.state.version += 1;
        self.state.updates = self.trainer.updates;
        self.state.computing_seconds += metrics.time.computing;
        self.state.images += metrics.cost.images;
        self.state.network_evaluations += metrics.cost.network_evaluations;
        self.trainer.remember_policy(self.state.version);
        tracing::info!(
            iteration,
            reward = metrics.reward.mean,
            ratio_deviation = metrics.policy.ratio_deviation,
            seconds = metrics.time.iteration,
            computing = metrics.time.computing,
            "iteration trained"
        );
        self.records.iteration(metrics);
        self.tell_progress();
        let (config, version) = (self.config(), self.state.version);
        let is_due = version.is_multiple_of(config.checkpoints.every)
            || version == config.run.iterations
            || config.evaluation_due(version);
        if is_due || self.save_failure.is_some() { self.save() } else { Ok(()) }
    }

    /// Waits for the evaluations of a version that are due and not recorded yet, and records them.
    fn evaluate(&mut self, version: u32) -> Result<(), LearnerError> {
        for kind in self.open_evaluations(version) {
            let outcomes = self.take_images(kind, version)?;
            match kind {
                TaskKind::Test => self.record_test(version, &outcomes),
                TaskKind::Evaluate | TaskKind::Train => self.record_evaluation(version, &outcomes),
            }
            self.trainer.inbox.forget(kind, version);
        }
        Ok(())
    }

    /// Saves the version reached, tests what is reported, and leaves nothing of it unwritten.
    fn report(&mut self) -> Result<(), LearnerError> {
        self.save_at_last()?;
        self.test_what_is_reported()?;
        self.save_at_last()
    }

    /// Has the last and the best version evaluated on the test prompts, which nothing is chosen by; the first one has been
    /// since the run began.
    fn test_what_is_reported(&mut self) -> Result<(), LearnerError> {
        if !self.config().data.has_validation() {
            return Ok(());
        }
        for version in [Some(self.state.version), self.readable_best()?].into_iter().flatten() {
            if self.is_tested(version) {
                continue;
            }
            match version == self.state.version {
                true => self.want_images(TaskKind::Test, version, self.trainer.policy.average())?,
                false => {
                    let average = policy::read_average(&self.checkpoints.path(version))?;
                    self.want_images(TaskKind::Test, version, &average)?;
                }
            }
            let outcomes = self.take_images(TaskKind::Test, version)?;
            self.record_test(version, &outcomes);
            self.trainer.inbox.forget(TaskKind::Test, version);
        }
        Ok(())
    }

    /// Publishes the average of a version and wants the images of its held-out prompts.
    fn want_images(
        &self,
        kind: TaskKind,
        version: u32,
        average: &[(String, Tensor)],
    ) -> Result<(), LearnerError> {
        let tensors = self.trainer.policy.for_workers(average);
        self.publications.publish(WeightsName::average(version), &tensors)?;
        let tasks = self.config().evaluation_tasks(kind, self.held_out.of(kind).prompts.len(), version);
        let outcome_bytes = self.trainer.outcome_bytes(&tasks, 0)?;
        self.trainer.inbox.want(kind, version, TaskSet { tasks, steps: Vec::new(), outcome_bytes });
        Ok(())
    }

    /// Waits for the images of a version, in the order of their tasks.
    fn take_images(&self, kind: TaskKind, version: u32) -> Result<Vec<EvaluatedImages>, LearnerError> {
        self.trainer.progress.phase("evaluating");
        let tasks = self.config().evaluation_tasks(kind, self.held_out.of(kind).prompts.len(), version);
        let mut outcomes = Vec::with_capacity(tasks.len());
        for task in &tasks {
            self.trainer.progress.waits();
            let taken = self.trainer.inbox.take(kind, version, task.index as usize);
            self.trainer.progress.gets_on();
            let Outcome::Evaluate(images) = taken? else {
                unreachable!("the inbox keeps evaluation outcomes under evaluation tasks; else this is a bug")
            };
            outcomes.push(*images);
        }
        Ok(outcomes)
    }

    fn record_test(&mut self, version: u32, outcomes: &[EvaluatedImages]) {
        let earlier = self.comparable_rows(TaskKind::Test, self.records.tests());
        let test = self.summed_up(TaskKind::Test, version, outcomes, &earlier);
        tracing::info!(version, reward = test.reward, standard_error = test.standard_error, "tested");
        self.records.test(test);
    }

    fn record_evaluation(&mut self, version: u32, outcomes: &[EvaluatedImages]) {
        let settings = &self.config().evaluation;
        let (images_per_prompt, grid) = (settings.images_per_prompt, settings.grid);
        let size = (self.config().sampling.height, self.config().sampling.width);
        let tiles = records::tiles(
            &self.held_out.of(TaskKind::Evaluate).prompts,
            outcomes,
            size,
            images_per_prompt,
            grid,
        );
        let evaluation = self.evaluation(version, outcomes);
        tracing::info!(
            version,
            reward = evaluation.reward,
            standard_error = evaluation.standard_error,
            "evaluated"
        );
        self.records.evaluation(evaluation, &tiles);
        self.settle();
        self.tell_progress();
    }

    /// Sums up an evaluation and holds it against those before.
    fn evaluation(&self, version: u32, outcomes: &[EvaluatedImages]) -> Evaluation {
        let earlier = self.comparable_rows(TaskKind::Evaluate, self.records.evaluations());
        let since = earlier.last().map(|row| row.version);
        let mut evaluation = Evaluation {
            training_reward: since.and_then(|since| self.training_reward(since)),
            ..self.summed_up(TaskKind::Evaluate, version, outcomes, &earlier)
        };
        let hacked = self.hacked(&[earlier.as_slice(), &[evaluation.clone()]].concat());
        if !hacked.is_empty() {
            self.trainer.progress.notice(format!("reward hacking: {}", findings(&hacked)));
        }
        evaluation.reward_hacking = hacked.into_iter().map(|hacked| hacked.name).collect();
        evaluation
    }

    /// The rows that are of the prompts which a kind of evaluation has today.
    fn comparable_rows(&self, kind: TaskKind, rows: &[Evaluation]) -> Vec<Evaluation> {
        let list = &self.held_out.of(kind).digest;
        rows.iter().filter(|row| row.prompt_list == *list).cloned().collect()
    }

    /// What the images of a version came to, gains over the first of the `earlier` rows by the same rewards.
    fn summed_up(
        &self,
        kind: TaskKind,
        version: u32,
        outcomes: &[EvaluatedImages],
        earlier: &[Evaluation],
    ) -> Evaluation {
        let config = self.config();
        let (rewards, per_prompt) = (config.rewards_of_evaluation(), config.evaluation.images_per_prompt);
        Evaluation {
            seconds: self.seconds(),
            prompt_list: self.held_out.of(kind).digest.clone(),
            ..Evaluation::new(version, outcomes, per_prompt, rewards, earlier)
        }
    }

    /// Mean training reward of the iterations from `since` on that are finished.
    fn training_reward(&self, since: u32) -> Option<f64> {
        let rows = self.records.metrics().iter().filter(|row| row.iteration >= since);
        let rewards: Vec<f64> = rows.map(|row| row.reward.mean).collect();
        (!rewards.is_empty()).then(|| metrics::mean(rewards.into_iter()))
    }

    /// The evaluations of a version that are due before its iteration ends, and not recorded yet.
    fn open_evaluations(&self, version: u32) -> Vec<TaskKind> {
        let config = self.config();
        let is_recorded = self.records.evaluations().iter().any(|row| row.version == version);
        let is_open = config.evaluation_due(version) && !is_recorded;
        let is_first = version == 0 && config.data.has_validation() && !self.is_tested(0);
        let open = [(TaskKind::Evaluate, is_open), (TaskKind::Test, is_first)];
        open.into_iter().filter(|(_, is_open)| *is_open).map(|(kind, _)| kind).collect()
    }

    /// Whether a version was evaluated on the test prompts and by the rewards of today.
    fn is_tested(&self, version: u32) -> bool {
        let rewards = self.config().rewards_of_evaluation().iter().map(RewardSection::without_connection);
        let rewards: Vec<RewardSection> = rewards.collect();
        let list = &self.held_out.of(TaskKind::Test).digest;
        let is_it =
            |row: &Evaluation| row.version == version && row.rewards == rewards && row.prompt_list == *list;
        self.records.tests().iter().any(is_it)
    }

    pub(crate) fn config(&self) -> &RunConfig {
        &self.trainer.config
    }
}

fn findings(hacked: &[Hacked]) -> String {
    hacked.iter().map(Hacked::to_string).collect::<Vec<_>>().join("; ")
}
