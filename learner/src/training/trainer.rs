//! Training as a stream: each task is turned into a gradient as soon as its advantages are known.
//!
//! An iteration is a list of tasks, sampled by workers with one version of the policy. What an update of the policy
//! needs is a sum over them:
//!
//! ```text
//! gradient = Σ over tasks  Σ over cells (seed, step)   ∇[ mean of K policy terms + β·KL ] / number of cells
//! ```
//!
//! The learner need not see the whole list to begin. Once the rewards that a task is compared with are here (its own for
//! seed groups, its prompt's for prompt groups, all of them for batch groups and for GDPO), its part of the sum can be computed while
//! other tasks are still being sampled:
//!
//! ```text
//! workers    task 0 ──┐ task 2 ──┐ task 1 ──┐  task 3 ──┐          in any order
//! inbox               0          2 waits    1           3
//! trainer            [gradient 0]          [gradient 1][gradient 2][gradient 3] update     always in this order
//! ```
//!
//! 1. **Terms are added in task order**, whatever the order of arrival. Floating-point sums depend on their order; the
//!    trained adapter must not depend on who was fast.
//! 2. **Tasks are not shuffled.** A stream needs an order that is known before anything arrives, and nothing is lost by
//!    that: which prompts an iteration has, and in which order, is drawn at random already.
//! 3. **Only the first update of an iteration is on-policy.** With more than one, the tasks are cut into contiguous parts
//!    and each part makes an update; the ratios of later parts take account of the updates before them. Against which mean
//!    a part's ratios are measured, [`config::OldMeans`] says, by the part, the lag and the element type alone.
//! 4. **A number that is not finite ends the run** before it can reach a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use collective::{SubtreeSums, TreePlan, ordered_sum};
use config::{Dtype, OldMeans, PromptRecord, RunConfig, TaskKind, TaskSpec};
use flow::{FlowError, Schedule};
use protocol::{Digest, TaskSet};
use run_setup::TrainedSteps;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::LearnerError;
use crate::exchange::embeddings::Embeddings;
use crate::exchange::inbox::{Inbox, Outcome};
use crate::exchange::outcome::{Trajectories, push_schema};
use crate::progress::ProgressBoard;
use crate::ranks::group::{Ranks, deadline, gather_bytes};
use crate::training::comparison::{TaskScores, compare};
use crate::training::gradient::{Drift, MeansBefore, NonFiniteCell, Objective, TrainingTask};
use crate::training::metrics::{
    CostMetrics, IterationMetrics, OptimizerMetrics, PolicyMetrics, Tally, TaskAccount, TimeMetrics, mean,
};
use crate::training::policy::{NamedTensors, Policy};
use crate::training::rank_state::Carried;
use crate::training::shares::Shares;

/// Share of the clip range by which workers may drift from the learner before the user is told.
const TOLERATED_DRIFT: f64 = 0.1;

/// Everything that turns trajectories into updates.
pub struct Trainer {
    /// The run.
    pub config: RunConfig,
    /// What is trained.
    pub policy: Policy,
    /// Noise levels of the trajectories.
    pub schedule: Schedule,
    /// Loss of a task.
    pub objective: Objective,
    /// Training prompts.
    pub prompts: Vec<PromptRecord>,
    /// Where outcomes arrive.
    pub inbox: Arc<Inbox>,
    /// Where their embeddings are.
    pub embeddings: Arc<Embeddings>,
    /// Where progress is told.
    pub progress: Arc<ProgressBoard>,
    /// The other ranks.
    pub ranks: Ranks,
    /// Which tasks are this rank's.
    pub shares: Shares,
    /// Optimizer updates since the start of the run.
    pub updates: u64,
    /// The iteration that is trained, or to be trained next.
    pub iteration: u32,
    /// Versions of the policy that tasks are sampled with later, or whose means are computed again: this one and earlier ones,
    /// as workers get them.
    pub earlier: BTreeMap<u32, NamedTensors>,
    /// Largest drift of workers that the user was told of since this process was started.
    pub told_drift: f64,
}

/// An iteration as far as it is trained.
struct IterationInWork {
    tasks: Vec<TaskSpec>,
    steps: TrainedSteps,
    /// What is known of what tasks scored, by index.
    scores: BTreeMap<usize, TaskScores>,
    /// Of this rank's own tasks, those that are here and not trained on.
    outcomes: BTreeMap<usize, Trajectories>,
    /// The advantages of those that were compared.
    advantages: BTreeMap<usize, Vec<Vec<f32>>>,
    /// The group of ranks in which scores were exchanged last.
    exchanged_in: Option<u64>,
    /// Of the tasks of all ranks that an update was made of.
    accounts: Vec<TaskAccount>,
    gradient_norms: Vec<f64>,
    waited: f64,
}

impl Trainer {
    /// Makes sure that all ranks are there, and that this one is where the first is.
    ///
    /// # Errors
    /// If the learner is told to leave, or this rank took over where the first one is ([`LearnerError::TakenOver`]).
    pub fn meet(&mut self) -> Result<(), LearnerError> {
        let (ranks, mut carried) = self.carried();
        ranks.meet(&mut carried)
    }

    /// Waits until the coordinator has the ranks form another group, and takes part in it.
    ///
    /// # Errors
    /// As [`Self::meet`].
    pub fn rest(&mut self) -> Result<(), LearnerError> {
        let (ranks, mut carried) = self.carried();
        ranks.rest(&mut carried)
    }

    fn carried(&mut self) -> (&mut Ranks, Carried<'_>) {
        let Self { ranks, policy, earlier, updates, iteration, .. } = self;
        (ranks, Carried { policy, earlier, updates, iteration })
    }

    /// The tasks of an iteration that this rank needs from the beginning of an update on.
    ///
    /// # Errors
    /// If the config's steps do not fit its schedule.
    pub fn own_tasks(&self, iteration: u32, update: usize) -> Result<TaskSet, LearnerError> {
        let steps = TrainedSteps::new(&self.config, &self.schedule, iteration)?.on_the_wire();
        let all = self.config.train_tasks(self.prompts.len(), iteration);
        let outcome_bytes = self.outcome_bytes(&all, steps.len())?;
        let tasks = self.shares.wanted_from(update).map(|index| all[index].clone()).collect();
        Ok(TaskSet { tasks, steps, outcome_bytes })
    }

    /// Memory that the outcome of any of these tasks takes at most.
    ///
    /// # Errors
    /// If the model has no images of the config's size.
    pub fn outcome_bytes(&self, tasks: &[TaskSpec], n_steps: usize) -> Result<u64, LearnerError> {
        let (config, model) = (&self.config, self.policy.model());
        let latent_shape = model.latent_shape(config.sampling.height, config.sampling.width)?;
        let schema = push_schema(config, model, latent_shape);
        Ok(tasks.iter().map(|task| schema.outcome_bytes(task, n_steps)).max().unwrap_or(0))
    }

    /// Keeps the policy as a version for tasks that are sampled with it later or whose means are computed from it again, and
    /// drops what none is.
    pub fn remember_policy(&mut self, version: u32) {
        if self.config.run.lag == 0 && !self.config.recomputes_means() {
            return;
        }
        let oldest = self.config.policy_version(version);
        self.earlier.insert(version, self.policy.for_workers(self.policy.trained()));
        self.earlier.retain(|version, _| *version >= oldest);
    }

    /// The update of the iteration that is to be made next, from 0; as many as there are where all are made.
    pub fn next_update(&self) -> usize {
        let n_updates = self.shares.n_updates() as u64;
        self.updates.saturating_sub(u64::from(self.iteration) * n_updates).min(n_updates) as usize
    }

    /// Trains the rest of [`Self::iteration`], whose tasks are wanted already: waits for them, and updates the policy.
    ///
    /// # Errors
    /// If the learner is told to leave, a number is not finite, or this rank took over where the first one is.
    ///
    /// # Panics
    /// If the config has means computed from the version that sampled ([`RunConfig::recomputes_means`]) and there is none.
    pub fn train(&mut self) -> Result<IterationMetrics, LearnerError> {
        let start = Instant::now();
        let mut work = IterationInWork {
            tasks: self.config.train_tasks(self.prompts.len(), self.iteration),
            steps: TrainedSteps::new(&self.config, &self.schedule, self.iteration)?,
            scores: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            advantages: BTreeMap::new(),
            exchanged_in: None,
            accounts: Vec::new(),
            gradient_norms: Vec::new(),
            waited: 0.0,
        };
        for update in self.next_update()..self.shares.n_updates() {
            self.exchange_scores(update, &mut work)?;
            let tree = self.shares.tree_of(update);
            let (sums, accounts) = self.own_gradient(update, &tree, &mut work)?;
            let accounts = self.add_up((update, &tree), sums, &accounts, &mut work)?;
            work.accounts.extend(accounts);
            self.update(update, &mut work)?;
        }
        self.metrics(&work, start)
    }

    /// Waits for the outcome of a task of this rank's own, unless it is here.
    fn take(&self, index: usize, work: &mut IterationInWork) -> Result<(), LearnerError> {
        if work.scores.contains_key(&index) {
            return Ok(());
        }
        let start = Instant::now();
        self.progress.waits();
        let outcome = self.inbox.take(TaskKind::Train, self.iteration, index);
        self.progress.gets_on();
        let Outcome::Train(outcome) = outcome? else {
            unreachable!("the inbox keeps training outcomes under training tasks; else this is a bug")
        };
        work.waited += start.elapsed().as_secs_f64();
        work.scores.insert(index, TaskScores::of(&outcome));
        work.outcomes.insert(index, *outcome);
        Ok(())
    }

    /// Where tasks of several ranks are compared: waits for all tasks that are this rank's own, and learns what all others
    /// scored.
    fn exchange_scores(&mut self, update: usize, work: &mut IterationInWork) -> Result<(), LearnerError> {
        if !self.shares.are_exchanged() {
            return Ok(());
        }
        self.progress.phase("sampling");
        for index in self.shares.wanted_from(update).collect::<Vec<_>>() {
            self.take(index, work)?;
        }
        let own = self.own_scores(work)?;
        let exchanged_in = &mut work.exchanged_in;
        let (ranks, mut carried) = self.carried();
        let all = ranks.together(&mut carried, |group, epoch| {
            if *exchanged_in == Some(epoch) {
                return Ok(Vec::new());
            }
            let all = gather_bytes(group, &own)?;
            *exchanged_in = Some(epoch);
            Ok(all)
        })?;
        for bytes in all {
            let scores: BTreeMap<usize, TaskScores> = of_rank(&bytes)?;
            work.scores.extend(scores);
        }
        Ok(())
    }

    /// What the tasks of this rank's own scored, as other ranks are told.
    fn own_scores(&self, work: &IterationInWork) -> Result<Vec<u8>, LearnerError> {
        let own = work.scores.iter().filter(|(index, _)| self.shares.is_own(**index));
        for_ranks(&own.collect::<BTreeMap<_, _>>())
    }

    /// The gradient of this rank's own tasks of an update, shard by shard in the order of tasks, and what is noted of them.
    /// Where there is nothing to add, the gradient stays with the policy.
    fn own_gradient(
        &mut self,
        update: usize,
        tree: &TreePlan,
        work: &mut IterationInWork,
    ) -> Result<(SubtreeSums, Vec<TaskAccount>), LearnerError> {
        let mut sums = SubtreeSums::new(self.ranks.rank(), self.policy.n_trained());
        let own: Vec<usize> = self.shares.tasks_of(update).filter(|task| self.shares.is_own(*task)).collect();
        let mut accounts = Vec::with_capacity(own.len());
        for (position, &index) in own.iter().enumerate() {
            self.compare(index, work)?;
            accounts.push(self.accumulate(index, update, work)?);
            let shard = self.shares.shard_of(index);
            let next = own.get(position + 1).map(|next| self.shares.shard_of(*next));
            if next != Some(shard) && !self.shares.is_whole(update) {
                sums.add(tree, shard, self.policy.take_gradient())?;
            }
        }
        Ok((sums, accounts))
    }

    /// Makes sure that the advantages of a task of this rank's own are known.
    fn compare(&self, index: usize, work: &mut IterationInWork) -> Result<(), LearnerError> {
        if work.advantages.contains_key(&index) {
            return Ok(());
        }
        self.progress.phase("sampling");
        let compared = self.shares.compared_with(index);
        for index in compared.clone().filter(|index| self.shares.is_own(*index)) {
            self.take(index, work)?;
        }
        self.progress.phase("training");
        let group = &work.tasks[compared.clone()];
        let scores: Option<Vec<&TaskScores>> =
            compared.clone().map(|index| work.scores.get(&index)).collect();
        let scores = scores.ok_or_else(|| {
            let (first, last) = (compared.start, compared.end - 1);
            LearnerError::RankState(format!("it lacks what some of the tasks {first} to {last} scored"))
        })?;
        let advantages = compare(&self.config, group, &scores, &work.steps);
        let advantages = advantages.map_err(|error| self.name_reward(group, &work.steps, error))?;
        let mut advantages = advantages.into_iter();
        for (index, task) in compared.zip(group) {
            let of_task = advantages.by_ref().take(task.n_seeds as usize).collect();
            if self.shares.is_own(index) {
                work.advantages.insert(index, of_task);
            }
        }
        Ok(())
    }

    /// Adds up the gradients of all ranks, so that each has the whole; returns what all of them noted, in task order.
    fn add_up(
        &mut self,
        (update, tree): (usize, &TreePlan),
        sums: SubtreeSums,
        accounts: &[TaskAccount],
        work: &mut IterationInWork,
    ) -> Result<Vec<TaskAccount>, LearnerError> {
        let (own, own_scores) = (for_ranks(&accounts)?, self.own_scores(work)?);
        let (are_exchanged, is_whole) = (self.shares.are_exchanged(), self.shares.is_whole(update));
        let is_alone = self.ranks.n_ranks() == 1;
        let mut sums = Some(sums);
        let exchanged_in = &mut work.exchanged_in;
        let (ranks, mut carried) = self.carried();
        let (gradient, accounts) = ranks.together(&mut carried, |group, epoch| {
            if are_exchanged && *exchanged_in != Some(epoch) {
                // Others of the group may not know them yet.
                gather_bytes(group, &own_scores)?;
                *exchanged_in = Some(epoch);
            }
            // What was summed is needed again if the group breaks.
            let own_sums = if is_alone { sums.take() } else { sums.clone() };
            let gradient = match own_sums.filter(|_| !is_whole) {
                Some(own_sums) => Some(ordered_sum(group, tree, own_sums, deadline())?),
                None => None,
            };
            Ok((gradient, gather_bytes(group, &own)?))
        })?;
        if let Some(gradient) = gradient {
            self.policy.put_gradient(&gradient);
        }
        let mut all = Vec::new();
        for bytes in accounts {
            all.extend(of_rank::<Vec<TaskAccount>>(&bytes)?);
        }
        all.sort_by_key(|account| account.index);
        Ok(all)
    }

    /// A task with all that its gradient needs.
    fn training_task<'a>(
        &self,
        task: &'a TaskSpec,
        trajectories: &'a Trajectories,
        advantages: &'a [Vec<f32>],
    ) -> Result<TrainingTask<'a>, LearnerError> {
        let embedding = |digest: &Digest| match self.embeddings.get(digest) {
            Some(embedding) => Ok(self.policy.on_device(&embedding)),
            None => {
                let digest = blake3::Hash::from(*digest).to_hex().to_string();
                Err(LearnerError::EmbeddingGone { digest, task: task.index })
            }
        };
        Ok(TrainingTask {
            task,
            trajectories,
            advantages,
            positive: embedding(&trajectories.conditioning)?,
            negative: trajectories.negative_conditioning.as_ref().map(embedding).transpose()?,
        })
    }

    /// The means that a task's ratios are measured against, so many updates of the iteration having been made.
    fn means_before(
        &mut self,
        task: &TrainingTask,
        steps: &TrainedSteps,
        updates: usize,
    ) -> Result<MeansBefore, LearnerError> {
        Ok(match self.config.old_means(task.task.iteration, updates) {
            OldMeans::Own => MeansBefore::Own,
            OldMeans::Sent => MeansBefore::Sent,
            OldMeans::Recomputed => {
                let version = self.earlier.get(&task.task.version);
                let version =
                    version.expect("a version that is computed from again is kept; else this is a bug");
                let objective = &self.objective;
                let means = |policy: &Policy| objective.means(policy, task, steps);
                MeansBefore::Computed(self.policy.at_version(version, means)?)
            }
        })
    }

    /// Adds a task's gradient to the policy's, and notes what there is to say of it.
    fn accumulate(
        &mut self,
        index: usize,
        update: usize,
        work: &mut IterationInWork,
    ) -> Result<TaskAccount, LearnerError> {
        let here = (work.outcomes.remove(&index), work.advantages.get(&index), work.scores.get(&index));
        let (Some(outcome), Some(advantages), Some(scores)) = here else {
            unreachable!("a task is trained on once it was compared, and once; else this is a bug")
        };
        let task = self.training_task(&work.tasks[index], &outcome, advantages)?;
        let before = self.means_before(&task, &work.steps, update)?;
        let n_seeds: u32 = work.tasks[self.shares.tasks_of(update)].iter().map(|task| task.n_seeds).sum();
        let scale = 1.0 / (f64::from(n_seeds) * work.steps.steps().len() as f64);
        let losses = self.objective.accumulate(&self.policy, &task, &work.steps, (&before, scale)).map_err(
            |NonFiniteCell { seed, step }| self.non_finite("loss", task.task, seed, step.to_string()),
        )?;
        let cost = CostMetrics::from(&outcome.cost);
        Ok(TaskAccount { index, scores: scores.clone(), advantages: advantages.clone(), cost, losses })
    }

    /// Moves the policy along the gradient that is there now.
    fn update(&mut self, update: usize, work: &mut IterationInWork) -> Result<(), LearnerError> {
        let norm =
            self.policy.update(self.updates + 1).map_err(|problem| LearnerError::NonFiniteParameter {
                quantity: problem.quantity,
                parameter: problem.parameter,
                iteration: self.iteration,
                tasks: self.names(&work.tasks[self.shares.tasks_of(update)]),
            })?;
        self.updates += 1;
        work.gradient_norms.push(norm);
        Ok(())
    }

    /// Tells the user that workers compute differently, once and again when it has doubled.
    fn tell_drift(&mut self, drift: Option<Drift>) {
        let iteration = self.iteration;
        let ratio = drift.map_or(0.0, |drift| drift.ratio);
        let clip_range = self.objective.narrower_clip_range();
        if ratio <= TOLERATED_DRIFT * clip_range || ratio <= 2.0 * self.told_drift {
            return;
        }
        self.told_drift = ratio;
        let consequence = match self.config.model.dtype {
            Dtype::Bfloat16 => {
                "ratios are measured between the learner's own means, so nothing is clipped for it, but images are those of \
                 a slightly other policy than the one that is trained"
            }
            Dtype::Float32 => {
                "ratios of updates that are not on-policy are measured against what workers sent, and may be clipped for it; \
                 workers and learner should run on the same kind of device"
            }
        };
        self.progress.notice(format!(
            "workers and learner compute differently: in iteration {iteration} the probability ratio of what workers sent to \
             what the learner computes with the same weights is {ratio:.1e} from 1 (policy.ratio_deviation), more than a \
             tenth of the clip range {clip_range:.1e}; {consequence}"
        ));
    }

    fn metrics(&mut self, work: &IterationInWork, start: Instant) -> Result<IterationMetrics, LearnerError> {
        let (group, steps) = (self.config.training.advantage_group, work.steps.steps());
        let mut tally = Tally::default();
        work.accounts.iter().for_each(|account| tally.count(&work.tasks[account.index], account));
        self.tell_drift(tally.losses.drift);
        let seconds = start.elapsed().as_secs_f64();
        Ok(IterationMetrics {
            iteration: self.iteration,
            sampled_with: self.config.policy_version(self.iteration),
            reward: tally.reward(group, steps)?,
            advantage: tally.advantage(group, steps.len())?,
            policy: PolicyMetrics::new(&tally.losses),
            optimizer: OptimizerMetrics {
                gradient_norm: mean(work.gradient_norms.iter().copied()),
                learning_rate: self.config.training.learning_rate,
                updates: self.updates,
            },
            cost: tally.cost,
            time: TimeMetrics {
                iteration: seconds,
                computing: seconds - work.waited,
                waiting: work.waited,
                busy: 1.0 - work.waited / seconds.max(f64::MIN_POSITIVE),
            },
            // The evaluation of this iteration is still to come.
            reward_hacking: 0,
            recorded_at: 0.0,
        })
    }

    fn name_reward(&self, group: &[TaskSpec], steps: &TrainedSteps, error: FlowError) -> LearnerError {
        let FlowError::NonFiniteReward { prompt_slot, seed_index, trained_step, .. } = error else {
            return error.into();
        };
        match group.iter().find(|task| task.prompt_slot == prompt_slot) {
            Some(task) => {
                self.non_finite("reward", task, seed_index, steps.steps()[trained_step].to_string())
            }
            None => error.into(),
        }
    }

    fn non_finite(&self, quantity: &'static str, task: &TaskSpec, seed: u32, step: String) -> LearnerError {
        let line = task.prompts.first().copied().unwrap_or_default();
        let prompt = self.prompts.get(line as usize).map(|record| record.text.clone()).unwrap_or_default();
        LearnerError::NonFinite { quantity, iteration: task.iteration, prompt, line, seed, step }
    }

    fn names(&self, part: &[TaskSpec]) -> String {
        let lines: BTreeSet<u32> = part.iter().flat_map(|task| &task.prompts).copied().collect();
        let last_seed =
            part.iter().map(|task| task.first_seed + task.n_seeds).max().unwrap_or(0).saturating_sub(1);
        let lines: Vec<String> = lines.iter().map(u32::to_string).collect();
        format!("prompts in lines {} (from 0), seeds 0 to {last_seed}, all trained steps", lines.join(", "))
    }
}

/// Something as other ranks are told it.
fn for_ranks(told: &impl Serialize) -> Result<Vec<u8>, LearnerError> {
    serde_json::to_vec(told).map_err(|error| LearnerError::RankState(error.to_string()))
}

/// What a rank told.
fn of_rank<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, LearnerError> {
    serde_json::from_slice(bytes).map_err(|error| LearnerError::RankState(error.to_string()))
}
