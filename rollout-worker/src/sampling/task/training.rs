//! Training tasks: some seeds of one prompt, sampled by the wavefront.

use config::Algorithm;
use models::ModelError;
use protocol::{Task, push_tensors};
use run_setup::{TrainedSteps, training_key};

use super::{Origin, Sampled, Sampler, TaskError};
use crate::sampling::delivery::{WireEmbedding, WireTensor};
use crate::sampling::guided_model::Embedding;
use crate::sampling::wavefront::{Rollout, Trajectories};

impl Sampler {
    pub(super) fn train(
        &mut self,
        task: &Task,
        iteration: u32,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Sampled, TaskError> {
        let prompt = &task.prompts[0];
        let (sampling, run_seed) = (&self.config.sampling, self.config.run.seed);
        let schedule = self.schedule(sampling.steps)?;
        let steps = TrainedSteps::new(&self.config, &schedule, iteration)?;
        let rollout = Rollout::new(schedule, steps, sampling.max_rows);
        let positive = self.model.embed(&prompt.text)?;
        let negative = self.model.embed_negative(sampling.guidance_scale)?;
        let seeds = task.first_seed..task.first_seed + task.n_seeds;
        let key = |seed| training_key(run_seed, iteration, task.prompt_slot, seed);
        let noise = self.noise(seeds.map(key).collect());
        let sigmas = &rollout.schedule().sigmas;
        let guidance =
            Embedding::guidance(&positive.conditioning, negative.as_deref(), sampling.guidance_scale);
        let mut velocity =
            |latents: &_, step: usize| self.velocity(latents, sigmas[step], &guidance, goes_on);
        let trajectories = rollout.sample(&noise, &mut velocity).map_err(|source| {
            let seed = task.first_seed + source.seed as u32;
            TaskError::NonFinite { prompt: prompt.text.clone(), seed, problem: source }
        })?;
        let steps = rollout.trained_steps().on_the_wire();
        let origins =
            origins(task, self.config.sampling.algorithm, &steps, sampling.branches_per_seed as u32);
        let finished = trajectories.finished.flatten(0, 1); // [S, images, …] → [S·images, …]
        let (images, decoding_seconds) = self.images(&finished, task, &origins)?;
        let embeddings = [Some(positive), negative].into_iter().flatten();
        Ok(Sampled {
            task: task.clone(),
            images,
            origins,
            score_shape: trajectories.log_probabilities.size(),
            steps,
            tensors: wire_tensors(&trajectories)?,
            embeddings: embeddings.map(|e| WireEmbedding::new(&e)).collect::<Result<_, _>>()?,
            next_latents: Some(WireTensor::new(push_tensors::NEXT_LATENTS, &trajectories.next_latents)?),
            network_evaluations: trajectories.network_evaluations,
            seconds: 0.0,
            decoding_seconds,
        })
    }
}

/// In the order of the finished latents: seed by seed, then step by step, then branch by branch.
fn origins(task: &Task, algorithm: Algorithm, steps: &[u32], n_branches: u32) -> Vec<Origin> {
    let seeds = task.first_seed..task.first_seed + task.n_seeds;
    let explorations: Vec<Option<(u32, u32)>> = match algorithm {
        Algorithm::FlowGrpo => vec![None],
        Algorithm::TempflowGrpo => {
            steps.iter().flat_map(|step| (0..n_branches).map(|branch| Some((*step, branch)))).collect()
        }
    };
    seeds
        .flat_map(|seed| {
            explorations.iter().map(move |exploration| Origin { prompt: 0, seed, exploration: *exploration })
        })
        .collect()
}

fn wire_tensors(trajectories: &Trajectories) -> Result<Vec<WireTensor>, ModelError> {
    Ok(vec![
        WireTensor::new(push_tensors::STATES, &trajectories.states)?,
        WireTensor::new(push_tensors::MEANS, &trajectories.means)?,
        WireTensor::new(push_tensors::LOG_PROBS, &trajectories.log_probabilities)?,
        next_hashes(trajectories),
    ])
}

/// `[S, B, K, 8]`: by these the learner sees whether it rebuilt the next latents to the bit.
fn next_hashes(trajectories: &Trajectories) -> WireTensor {
    let bytes = models::tensor_bytes::to_bytes(&trajectories.next_latents);
    let mut shape = trajectories.log_probabilities.size();
    let n_moves = shape.iter().product::<i64>() as usize;
    let hashes = bytes.chunks_exact(bytes.len() / n_moves).flat_map(push_tensors::latent_hash);
    shape.push(push_tensors::HASH_BYTES as i64);
    WireTensor::from_bytes(push_tensors::NEXT_HASHES, &shape, hashes.collect())
}
