//! A run from its newest checkpoint to its end: want tasks, train, evaluate, publish, record, checkpoint.
//!
//! Version `v` of the policy is what `v` iterations have made of it. The order of things that must survive a crash:
//!
//! 1. The evaluation of version `v` is recorded before iteration `v` ends, that is before a checkpoint of `v + 1` exists.
//! 2. The metrics of iteration `i` are recorded before the checkpoint of version `i + 1`; a resumed run cuts off what is
//!    newer than its checkpoint.
//! 3. What is published is either in a checkpoint or will be computed again, to the last bit, by a resumed run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::{OnRewardHacking, PromptRecord, RunConfig, TaskKind, TaskSpec};
use proto::{Summary, WeightsRole};
use service::RunDirectory;

use crate::checkpoint::Checkpoints;
use crate::error::LearnerError;
use crate::evaluation::{self, Evaluation};
use crate::inbox::{Order, Outcome, Stopped};
use crate::metrics::IterationMetrics;
use crate::outcome::EvaluatedImages;
use crate::policy::NamedTensors;
use crate::publications::Publications;
use crate::records::{self, Records};
use crate::reward_hacking::{self, Hacked};
use crate::rules::TrainedSteps;
use crate::saving::SavedState;
use crate::trainer::Trainer;

/// Between attempts to write the last checkpoint.
const LAST_SAVE_PAUSE: Duration = Duration::from_secs(5);

/// How a run left off.
#[derive(Debug)]
pub enum Ended {
    /// All iterations are trained and evaluated.
    Done(Box<Summary>),
    /// It was told to leave; a resumed run continues.
    Left,
}

/// A run in progress.
pub struct Run {
    /// Trains one iteration at a time.
    pub trainer: Trainer,
    pub(crate) publications: Arc<Publications>,
    pub(crate) test_prompts: Vec<PromptRecord>,
    /// Names that list by what is in it.
    test_list: String,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) records: Records,
    pub(crate) directory: RunDirectory,
    pub(crate) state: SavedState,
    /// Earlier versions of the policy that wanted tasks are sampled with.
    pub(crate) earlier: BTreeMap<u32, NamedTensors>,
    /// Version of the newest checkpoint.
    pub(crate) saved: Option<u32>,
    pub(crate) failed_saves: u32,
    pub(crate) opened: Instant,
}

impl Run {
    /// Continues from the newest intact checkpoint, or starts at version 0 where there is none.
    ///
    /// # Errors
    /// If no checkpoint is intact, it belongs to another config, or a file cannot be read.
    pub fn open(
        mut trainer: Trainer,
        test_prompts: Vec<PromptRecord>,
        publications: Arc<Publications>,
        directory: RunDirectory,
    ) -> Result<Self, LearnerError> {
        let checkpoints = Checkpoints::open(&directory.checkpoints(), trainer.config.checkpoints.keep_last)?;
        let newest = checkpoints.newest_intact()?;
        for rejected in &newest.rejected {
            let kept = checkpoints.set_aside(rejected)?;
            let kept = kept.display();
            trainer.progress.notice(format!("damaged checkpoint passed over and kept as {kept}: {rejected}"));
        }
        let mut state = SavedState::new(&trainer.config);
        let mut earlier = BTreeMap::new();
        if let Some((version, path)) = &newest.checkpoint {
            tracing::info!(version, "resuming from {}", path.display());
            state = SavedState::read(path, &state, &directory)?;
            trainer.policy.load(path)?;
            trainer.updates = state.updates;
            earlier = state.read_earlier(path)?;
        }
        let records = Records::open(&directory, state.version)?;
        // An evaluation is recorded after the checkpoint of its version.
        let recorded = records.evaluations().last().map_or(0.0, |row| row.seconds);
        state.seconds = state.seconds.max(recorded);
        let mut run = Self {
            records,
            test_list: service::prompt_digest(&test_prompts),
            test_prompts,
            saved: newest.checkpoint.map(|(version, _)| version),
            trainer,
            publications,
            checkpoints,
            directory,
            state,
            earlier,
            failed_saves: 0,
            opened: Instant::now(),
        };
        run.remember_policy();
        Ok(run)
    }

    /// Runs to the end, or until told to leave.
    ///
    /// # Errors
    /// If the run cannot go on.
    pub fn run(&mut self) -> Result<Ended, LearnerError> {
        if self.saved.is_none() {
            self.save()?;
        }
        for (version, tensors) in &self.earlier {
            self.publications.publish(*version, WeightsRole::Policy, tensors)?;
        }
        self.tell_progress();
        let updates_before = self.trainer.updates;
        match self.iterate() {
            Ok(()) => Ok(Ended::Done(Box::new(self.summary()))),
            Err(LearnerError::Stopped(Stopped)) => {
                tracing::info!(
                    updates = self.trainer.updates - updates_before,
                    "leaving before the end of the run"
                );
                self.save_before_leaving()?;
                Ok(Ended::Left)
            }
            Err(error) => Err(error),
        }
    }

    fn iterate(&mut self) -> Result<(), LearnerError> {
        while self.state.version < self.config().run.iterations {
            self.stop_if_hacked()?;
            let iteration = self.state.version;
            self.order(iteration)?;
            let metrics = self.trainer.train(iteration)?;
            self.evaluate(iteration)?;
            self.finish_iteration(metrics)?;
        }
        self.order(self.state.version)?;
        self.evaluate(self.state.version)?;
        self.save_at_last()
    }

    /// Saves the version reached, however often it takes.
    fn save_at_last(&mut self) -> Result<(), LearnerError> {
        while self.saved != Some(self.state.version) {
            self.save()?;
            if self.failed_saves > 0 {
                std::thread::sleep(LAST_SAVE_PAUSE);
            }
        }
        Ok(())
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
        self.save_at_last()?;
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
    fn order(&self, iteration: u32) -> Result<(), LearnerError> {
        let (config, inbox) = (self.config(), &self.trainer.inbox);
        self.trainer.embeddings.begin_iteration(iteration);
        let policy = &self.trainer.policy;
        self.publications.publish(iteration, WeightsRole::Policy, &policy.for_workers(policy.trained()))?;
        if self.is_evaluation_open(iteration) {
            self.publications.publish(
                iteration,
                WeightsRole::Average,
                &policy.for_workers(policy.average()),
            )?;
            let tasks = config.evaluation_tasks(self.test_prompts.len(), iteration);
            inbox.want(TaskKind::Evaluate, iteration, Order { tasks, steps: Vec::new() });
        }
        self.publications.keep(config.policy_version(iteration), iteration);
        let ahead = (iteration + config.run.lag + 1).min(config.run.iterations);
        for iteration in iteration..ahead {
            let steps = TrainedSteps::new(config, &self.trainer.schedule, iteration)?.on_the_wire();
            let tasks = config.train_tasks(self.trainer.prompts.len(), iteration);
            inbox.want(TaskKind::Train, iteration, Order { tasks, steps });
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
        self.remember_policy();
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
        if is_due || self.failed_saves > 0 { self.save() } else { Ok(()) }
    }

    /// Waits for the evaluation of a version, if it is due and not recorded yet, and records it.
    fn evaluate(&mut self, version: u32) -> Result<(), LearnerError> {
        if !self.is_evaluation_open(version) {
            return Ok(());
        }
        self.trainer.progress.phase("evaluating");
        let tasks = self.config().evaluation_tasks(self.test_prompts.len(), version);
        let mut outcomes = Vec::with_capacity(tasks.len());
        for task in &tasks {
            let taken = self.trainer.inbox.take(TaskKind::Evaluate, version, task.index as usize)?;
            let Outcome::Evaluate(images) = taken else {
                unreachable!("the inbox keeps evaluation outcomes under evaluation tasks; else this is a bug")
            };
            self.check_rewards(task, &images)?;
            outcomes.push(*images);
        }
        self.record_evaluation(version, &outcomes);
        self.trainer.inbox.forget(TaskKind::Evaluate, version);
        Ok(())
    }

    fn record_evaluation(&mut self, version: u32, outcomes: &[EvaluatedImages]) {
        let settings = &self.config().evaluation;
        let (images_per_prompt, grid) = (settings.images_per_prompt, settings.grid);
        let size = (self.config().sampling.height, self.config().sampling.width);
        let tiles = records::tiles(&self.test_prompts, outcomes, size, images_per_prompt, grid);
        let evaluation = self.evaluation(version, outcomes);
        tracing::info!(
            version,
            reward = evaluation.reward,
            standard_error = evaluation.standard_error,
            "evaluated"
        );
        self.records.evaluation(evaluation, &tiles);
        let is_best =
            evaluation::best(self.records.evaluations()).is_some_and(|best| best.version == version);
        if is_best && self.saved == Some(version) {
            let marked = self.checkpoints.mark_best(version).map_err(LearnerError::from);
            if let Err(error) = marked.and_then(|()| self.export_best(version)) {
                self.trainer.progress.notice(format!("the best checkpoint: {error}"));
            }
        }
        self.tell_progress();
    }

    /// Sums up an evaluation and holds it against those before.
    fn evaluation(&self, version: u32, outcomes: &[EvaluatedImages]) -> Evaluation {
        let (config, list) = (self.config(), self.test_list.clone());
        let of_this_list = self.records.evaluations().iter().filter(|row| row.prompt_list == list);
        let earlier: Vec<Evaluation> = of_this_list.cloned().collect();
        let (rewards, per_prompt) = (config.rewards_of_evaluation(), config.evaluation.images_per_prompt);
        let since = earlier.last().map(|row| row.version);
        let mut evaluation = Evaluation {
            seconds: self.seconds(),
            training_reward: since.and_then(|since| self.training_reward(since)),
            prompt_list: list,
            ..Evaluation::new(version, outcomes, per_prompt, rewards, &earlier)
        };
        let hacked = self.hacked(&[earlier.as_slice(), &[evaluation.clone()]].concat());
        if !hacked.is_empty() {
            self.trainer.progress.notice(format!("reward hacking: {}", findings(&hacked)));
        }
        evaluation.reward_hacking = hacked.into_iter().map(|hacked| hacked.name).collect();
        evaluation
    }

    /// Mean training reward of the iterations from `since` on that are finished.
    fn training_reward(&self, since: u32) -> Option<f64> {
        let rows = self.records.metrics().iter().filter(|row| row.iteration >= since);
        let rewards: Vec<f64> = rows.map(|row| row.reward.mean).collect();
        (!rewards.is_empty()).then(|| evaluation::mean(rewards.into_iter()))
    }

    fn is_evaluation_open(&self, version: u32) -> bool {
        let is_recorded = self.records.evaluations().iter().any(|row| row.version == version);
        self.config().evaluation_due(version) && !is_recorded
    }

    fn check_rewards(&self, task: &TaskSpec, images: &EvaluatedImages) -> Result<(), LearnerError> {
        let Some(image) = images.rewards.iter().position(|reward| !reward.is_finite()) else { return Ok(()) };
        let line = task.prompts[image / task.n_seeds as usize];
        Err(LearnerError::NonFinite {
            quantity: "held-out reward",
            iteration: task.iteration,
            prompt: self
                .test_prompts
                .get(line as usize)
                .map(|record| record.text.clone())
                .unwrap_or_default(),
            line,
            seed: image as u32 % task.n_seeds,
            step: "none".to_owned(),
        })
    }

    /// Keeps the new version for tasks that are sampled with it later, and drops what none is.
    fn remember_policy(&mut self) {
        if self.config().run.lag == 0 {
            return;
        }
        let (version, oldest) = (self.state.version, self.config().policy_version(self.state.version));
        let policy = &self.trainer.policy;
        self.earlier.insert(version, policy.for_workers(policy.trained()));
        self.earlier.retain(|version, _| *version >= oldest);
    }

    pub(crate) fn config(&self) -> &RunConfig {
        &self.trainer.config
    }
}

fn findings(hacked: &[Hacked]) -> String {
    hacked.iter().map(Hacked::to_string).collect::<Vec<_>>().join("; ")
}
