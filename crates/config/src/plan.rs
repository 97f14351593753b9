//! What `coordinator plan` says of a run before anything starts.

mod memory_text;
mod text_line;

use crate::memory::{dtype_bytes, version_bytes};
use crate::{
    Algorithm, IterationCost, ModelInspection, RewardCombination, RewardInspection, RunConfig,
    StepInspection, human_bytes, trained_parameters,
};
use memory_text::write_memory;
use std::fmt;
use text_line::line;

/// Everything that a run will cost, as far as it can be told beforehand.
#[derive(Clone, Debug)]
pub struct Plan {
    config: RunConfig,
    cost: IterationCost,
    model: Option<ModelInspection>,
    rewards: Vec<RewardInspection>,
}

/// Works out what a run will cost; without knowing the model, only what can be counted from the config. `rewards` are
/// those that workers compute.
pub fn plan(config: &RunConfig, model: Option<ModelInspection>, rewards: Vec<RewardInspection>) -> Plan {
    Plan { config: config.clone(), cost: config.iteration_cost(), model, rewards }
}

impl Plan {
    /// Rollout workers that keep one learner of the same hardware busy: forward passes of sampling over those of
    /// training. Decoding and rewards come on top, and a backward pass counts as two forward ones.
    pub fn workers_per_learner(&self) -> f64 {
        self.cost.sampling_evaluations / self.cost.training_forward_equivalents
    }

    /// Bytes of trajectories that workers send to the learner in an iteration, if the model is known: of a trained cell
    /// its state and mean, and of a branch a log-probability, a reward with its parts and an 8-byte hash.
    pub fn trajectory_bytes(&self) -> Option<f64> {
        let model = self.model.as_ref()?;
        let elements: f64 = model.image.latent_shape.iter().map(|&size| size as f64).product();
        let branches = self.config.sampling.branches_per_seed as f64;
        let scores = 2.0 + self.config.rewards.len() as f64;
        Some(self.cost.trained_cells * (8.0 * elements + branches * (4.0 * scores + 8.0)))
    }

    /// Bytes of prompt embeddings that travel in an iteration, one per prompt and one for all negative ones.
    pub fn embedding_bytes(&self) -> Option<f64> {
        let model = self.model.as_ref()?;
        let (text, pooled) = model.embedding_widths;
        let one = dtype_bytes(model.dtype) * (model.text_tokens as f64 * text as f64 + pooled as f64);
        let n_negative = model.rows_per_evaluation.saturating_sub(1);
        Some((self.config.sampling.prompts_per_iteration as f64 + n_negative as f64) * one)
    }

    /// Bytes of one version of the trained weights, which every worker fetches.
    pub fn weight_bytes(&self) -> Option<f64> {
        self.model.as_ref().map(|model| version_bytes(&self.config, model))
    }

    fn write_counts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cost, sampling) = (&self.cost, &self.config.sampling);
        let n_seeds = sampling.prompts_per_iteration * sampling.seeds_per_prompt;
        let branching = match sampling.algorithm {
            Algorithm::TempflowGrpo => format!(" × {} branches", sampling.branches_per_seed),
            Algorithm::FlowGrpo => String::new(),
        };
        writeln!(f, "per iteration ({} in all)", self.config.run.iterations)?;
        let seeds = format!(
            "{} prompts × {} seeds{branching}",
            sampling.prompts_per_iteration, sampling.seeds_per_prompt
        );
        line(f, "seeds", &n_seeds.to_string(), &seeds)?;
        let per_seed = format!("{:.0} per seed", cost.evaluations_per_seed);
        line(f, "network evaluations", &format!("{:.0}", cost.sampling_evaluations), &per_seed)?;
        if let Some(model) = &self.model {
            let rows = cost.sampling_evaluations * model.rows_per_evaluation as f64;
            line(
                f,
                "network rows",
                &format!("{rows:.0}"),
                &format!("{} per evaluation", model.rows_per_evaluation),
            )?;
        }
        line(f, "images decoded, scored", &format!("{:.0}", cost.images), "")?;
        line(
            f,
            "cells trained",
            &format!("{:.0}", cost.trained_cells),
            &format!("in {} updates", cost.updates),
        )?;
        line(f, "tasks compared", &self.config.tasks_compared().to_string(), &self.streaming())?;
        let ratio = self.workers_per_learner();
        let workers =
            format!("{:.0} workers per learner keep it busy; decoding and rewards come on top", ratio.ceil());
        line(f, "sampling : training", &format!("{ratio:.2}"), &workers)
    }

    /// Whether training and sampling of one iteration overlap.
    fn streaming(&self) -> String {
        let (compared, n_tasks) = (self.config.tasks_compared(), self.config.n_train_tasks());
        let cause = match self.config.training.reward_combination {
            RewardCombination::Gdpo => " (reward_combination = \"gdpo\")",
            RewardCombination::Sum => "",
        };
        match compared == n_tasks {
            true => format!("of {n_tasks}: training begins when all are sampled{cause}"),
            false => format!("of {n_tasks}: training begins while others are sampled"),
        }
    }

    /// Steps that are drawn at random are listed all.
    fn write_step_weights(&self, f: &mut fmt::Formatter<'_>, steps: &[StepInspection]) -> fmt::Result {
        let weight = self.config.training.step_weight;
        writeln!(f, "weight of each trained step in the policy loss (step_weight = \"{weight}\")")?;
        steps.iter().try_for_each(|StepInspection { step, sigma, weight }| {
            let remark = format!("from noise level {sigma:.3}");
            line(f, &format!("step {step}"), &format!("{weight:.3}"), &remark)
        })
    }

    fn write_bytes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [
            ("trajectories", self.trajectory_bytes()),
            ("prompt embeddings", self.embedding_bytes()),
            ("weights, to each worker", self.weight_bytes()),
        ];
        writeln!(f, "on the wire per iteration")?;
        bytes.iter().try_for_each(|(name, bytes)| line(f, name, &human_bytes(bytes.unwrap_or(0.0)), ""))?;
        match self.gradient_bytes() {
            Some(bytes) => {
                let remark = format!("of {} ranks of the learner", self.config.resources.learners);
                line(f, "gradients, sent by each", &human_bytes(bytes), &remark)
            }
            None => Ok(()),
        }
    }

    /// Bytes that a rank of the learner sends the others in an iteration: of each of its subtrees all slices but its own, and
    /// then its slice of the sum; none where there is one rank.
    fn gradient_bytes(&self) -> Option<f64> {
        let (learners, shards) = (self.config.resources.learners, self.config.training.gradient_shards);
        let model = self.model.as_ref().filter(|_| learners > 1)?;
        // Neighbouring shards make few subtrees: one where ranks and shards divide evenly.
        let subtrees = if learners.is_power_of_two() { 1.0 } else { f64::from(shards.ilog2().max(1)) };
        let others = (learners - 1) as f64;
        let sent = (subtrees / learners as f64 + 1.0 / learners as f64) * others;
        let gradient = 4.0 * trained_parameters(&self.config, model);
        Some(sent * gradient * self.config.training.updates_per_iteration as f64)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_counts(f)?;
        let Some(model) = &self.model else { return Ok(()) };
        self.write_step_weights(f, &model.steps)?;
        self.write_bytes(f)?;
        writeln!(f, "model {} ({})", model.folder.display(), model.class)?;
        for component in &model.components {
            line(f, &component.name, &component.parameters.to_string(), "parameters")?;
        }
        let trained = trained_parameters(&self.config, model);
        line(f, "trained", &format!("{trained:.0}"), "parameters")?;
        write_memory(f, &self.config, model, &self.rewards)
    }
}

#[cfg(test)]
mod tests;
