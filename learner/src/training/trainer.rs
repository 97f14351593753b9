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

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use config::{Dtype, OldMeans, PromptRecord, RewardCombination, RunConfig, TaskKind, TaskSpec};
use flow::{FlowError, Schedule, SeedRewards, WeightedRewards, advantages, gdpo_advantages};
use protocol::Digest;
use run_setup::TrainedSteps;

use crate::error::LearnerError;
use crate::exchange::embeddings::Embeddings;
use crate::exchange::inbox::{Inbox, Outcome};
use crate::exchange::outcome::Trajectories;
use crate::progress::ProgressBoard;
use crate::training::gradient::{Drift, LossSums, MeansBefore, NonFiniteCell, Objective, TrainingTask};
use crate::training::metrics::{IterationMetrics, OptimizerMetrics, PolicyMetrics, Tally, TimeMetrics, mean};
use crate::training::policy::{NamedTensors, Policy};

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
    /// Optimizer updates since the start of the run.
    pub updates: u64,
    /// Largest drift of workers that the user was told of since this process was started.
    pub told_drift: f64,
}

/// What an iteration adds up.
#[derive(Default)]
struct Sums {
    tally: Tally,
    losses: LossSums,
    gradient_norms: Vec<f64>,
    waited: f64,
}

impl Sums {
    /// Updates made so far.
    fn updates(&self) -> usize {
        self.gradient_norms.len()
    }
}

impl Trainer {
    /// Trains one iteration, whose tasks are wanted already: waits for them, and updates the policy. `sampled_with` is the
    /// version that they are sampled with, as workers got it.
    ///
    /// # Errors
    /// If the learner is told to leave, or a number is not finite.
    ///
    /// # Panics
    /// If the config has means computed from the version that sampled ([`RunConfig::recomputes_means`]) and there is none.
    pub fn train(
        &mut self,
        iteration: u32,
        sampled_with: Option<&NamedTensors>,
    ) -> Result<IterationMetrics, LearnerError> {
        let start = Instant::now();
        let tasks = self.config.train_tasks(self.prompts.len(), iteration);
        let steps = TrainedSteps::new(&self.config, &self.schedule, iteration)?;
        let part_ends = part_ends(tasks.len(), self.config.training.updates_per_iteration);
        let mut sums = Sums::default();
        let mut part_start = 0;
        for group in tasks.chunks(self.config.tasks_compared().max(1)) {
            let trajectories = self.take(group, &mut sums)?;
            let advantages = self.advantages(group, &trajectories, &steps, &mut sums)?;
            let mut advantages = advantages.as_slice();
            for (task, trajectories) in group.iter().zip(&trajectories) {
                let of_task = advantages.split_off(..task.n_seeds as usize).unwrap_or_default();
                let index = task.index as usize;
                let part_end = *part_ends.range(index + 1..).next().unwrap_or(&tasks.len());
                let part = &tasks[part_start..part_end];
                let training_task = self.training_task(task, trajectories, of_task)?;
                let before = self.means_before(&training_task, &steps, sums.updates(), sampled_with)?;
                self.accumulate(&training_task, &before, (&steps, part), &mut sums)?;
                if index + 1 == part_end {
                    self.update(part, &mut sums)?;
                    part_start = part_end;
                }
            }
        }
        self.tell_drift(iteration, sums.losses.drift);
        self.metrics(iteration, &steps, &sums, start)
    }

    /// Waits for the outcomes of a group, in task order.
    fn take(&self, group: &[TaskSpec], sums: &mut Sums) -> Result<Vec<Trajectories>, LearnerError> {
        let start = Instant::now();
        self.progress.phase("sampling");
        let mut trajectories = Vec::with_capacity(group.len());
        for task in group {
            self.progress.waits();
            let outcome = self.inbox.take(TaskKind::Train, task.iteration, task.index as usize);
            self.progress.gets_on();
            let Outcome::Train(outcome) = outcome? else {
                unreachable!("the inbox keeps training outcomes under training tasks; else this is a bug")
            };
            sums.tally.count(&outcome);
            trajectories.push(*outcome);
        }
        self.progress.phase("training");
        sums.waited += start.elapsed().as_secs_f64();
        Ok(trajectories)
    }

    /// The advantages of every seed of a group, seeds in task order.
    fn advantages(
        &self,
        group: &[TaskSpec],
        trajectories: &[Trajectories],
        steps: &TrainedSteps,
        sums: &mut Sums,
    ) -> Result<Vec<Vec<f32>>, LearnerError> {
        let (n_steps, n_branches) = (steps.steps().len(), steps.plan.branches());
        let by_seed = |part: &dyn Fn(&Trajectories) -> &[f32]| {
            let of_task = |(task, outcome): (&TaskSpec, &Trajectories)| {
                seed_rewards(task, part(outcome), n_steps * n_branches)
            };
            group.iter().zip(trajectories).flat_map(of_task).collect::<Vec<_>>()
        };
        let rewards = by_seed(&|outcome| &outcome.rewards);
        let comparison = self.config.training.advantage_group;
        let advantages = match self.config.training.reward_combination {
            RewardCombination::Sum => advantages(comparison, &rewards, n_steps, n_branches),
            RewardCombination::Gdpo => {
                let sections = self.config.rewards.iter().enumerate();
                let weighted = sections.map(|(position, reward)| WeightedRewards {
                    weight: reward.weight,
                    rewards: by_seed(&|outcome| &outcome.scores[position].1),
                });
                gdpo_advantages(comparison, &weighted.collect::<Vec<_>>(), n_steps, n_branches)
            }
        };
        let advantages = advantages.map_err(|error| self.name_reward(group, steps, error))?;
        sums.tally.count_advantages(rewards, &advantages);
        Ok(advantages)
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

    /// The means that a task's ratios are measured against, `part` updates of the iteration having been made.
    fn means_before(
        &mut self,
        task: &TrainingTask,
        steps: &TrainedSteps,
        part: usize,
        sampled_with: Option<&NamedTensors>,
    ) -> Result<MeansBefore, LearnerError> {
        Ok(match self.config.old_means(task.task.iteration, part) {
            OldMeans::Own => MeansBefore::Own,
            OldMeans::Sent => MeansBefore::Sent,
            OldMeans::Recomputed => {
                let version =
                    sampled_with.expect("a version that is computed from again is kept; else this is a bug");
                let objective = &self.objective;
                let means = |policy: &Policy| objective.means(policy, task, steps);
                MeansBefore::Computed(self.policy.at_version(version, means)?)
            }
        })
    }

    /// Adds a task's gradient to that of its part.
    fn accumulate(
        &self,
        task: &TrainingTask,
        before: &MeansBefore,
        (steps, part): (&TrainedSteps, &[TaskSpec]),
        sums: &mut Sums,
    ) -> Result<(), LearnerError> {
        let n_seeds: u32 = part.iter().map(|task| task.n_seeds).sum();
        let scale = 1.0 / (f64::from(n_seeds) * steps.steps().len() as f64);
        let losses = self.objective.accumulate(&self.policy, task, steps, (before, scale)).map_err(
            |NonFiniteCell { seed, step }| self.non_finite("loss", task.task, seed, step.to_string()),
        )?;
        sums.losses.add(&losses);
        Ok(())
    }

    /// Ends a part: one update of the policy.
    fn update(&mut self, part: &[TaskSpec], sums: &mut Sums) -> Result<(), LearnerError> {
        self.updates += 1;
        let norm = self.policy.update(self.updates).map_err(|problem| LearnerError::NonFiniteParameter {
            quantity: problem.quantity,
            parameter: problem.parameter,
            iteration: part[0].iteration,
            tasks: self.names(part),
        })?;
        sums.gradient_norms.push(norm);
        Ok(())
    }

    /// Tells the user that workers compute differently, once and again when it has doubled.
    fn tell_drift(&mut self, iteration: u32, drift: Option<Drift>) {
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

    fn metrics(
        &self,
        iteration: u32,
        steps: &TrainedSteps,
        sums: &Sums,
        start: Instant,
    ) -> Result<IterationMetrics, LearnerError> {
        let group = self.config.training.advantage_group;
        let seconds = start.elapsed().as_secs_f64();
        Ok(IterationMetrics {
            iteration,
            sampled_with: self.config.policy_version(iteration),
            reward: sums.tally.reward(group, steps.steps())?,
            advantage: sums.tally.advantage(group, steps.steps().len())?,
            policy: PolicyMetrics::new(&sums.losses),
            optimizer: OptimizerMetrics {
                gradient_norm: mean(sums.gradient_norms.iter().copied()),
                learning_rate: self.config.training.learning_rate,
                updates: self.updates,
            },
            cost: sums.tally.cost.clone(),
            time: TimeMetrics {
                iteration: seconds,
                computing: seconds - sums.waited,
                waiting: sums.waited,
                busy: 1.0 - sums.waited / seconds.max(f64::MIN_POSITIVE),
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

/// The rewards of a task, seed by seed.
fn seed_rewards(task: &TaskSpec, rewards: &[f32], per_seed: usize) -> Vec<SeedRewards> {
    let of_seed = |(seed_index, rewards): (u32, &[f32])| SeedRewards {
        prompt_slot: task.prompt_slot,
        seed_index,
        rewards: rewards.to_vec(),
    };
    (task.first_seed..).zip(rewards.chunks(per_seed)).map(of_seed).collect()
}

/// One past the last task of each of `n_parts` contiguous, nearly equal, non-empty parts.
fn part_ends(n_tasks: usize, n_parts: usize) -> BTreeSet<usize> {
    let n_parts = n_parts.clamp(1, n_tasks.max(1));
    (1..=n_parts).map(|part| part * n_tasks / n_parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_contiguous_and_nearly_equal() {
        assert_eq!(part_ends(8, 2), BTreeSet::from([4, 8]));
        assert_eq!(part_ends(7, 3), BTreeSet::from([2, 4, 7]));
        assert_eq!(part_ends(2, 5), BTreeSet::from([1, 2]));
        assert_eq!(part_ends(5, 1), BTreeSet::from([5]));
    }
}
