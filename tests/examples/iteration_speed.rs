//! Times an iteration of TempFlow-GRPO without decoder and rewards, a part at a time, as `tests/reference/iteration_bench.py`
//! asks for it: `cargo run --release -p tests --example iteration_speed -- PIPELINE CONFIG EXCHANGE`.
//!
//! Reads the words `rollout`, `update` and `memory` from standard input, a line each, and answers each with a line: seconds
//! of the rollouts of all seeds, seconds from their trajectories to an updated adapter in the sampler, and the most memory
//! that was resident so far in MiB. `EXCHANGE/inputs.safetensors` has the embeddings and advantages; what was drawn,
//! sampled and differentiated first is left beside it, so that the reference can be held against it.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use config::{RunConfig, TaskKind, TaskSpec};
use learner::exchange::outcome;
use learner::training::gradient::{MeansBefore, Objective, TrainingTask};
use learner::training::policy::Policy;
use models::{Conditioning, LoadOptions, weights};
use rollout_worker::sampling::guided_model::{Embedding, GuidedModel};
use rollout_worker::sampling::task_noise::TaskNoise;
use rollout_worker::sampling::wavefront::{Noise, Rollout, Trajectories};
use run_setup::{TrainedSteps, training_key};
use service::system_numbers::number_after;
use tch::{Device, Tensor};

/// Times rollouts and updates as asked on standard input.
#[derive(Parser)]
struct Args {
    /// Pipeline folder in the diffusers layout.
    pipeline: PathBuf,
    /// The run config.
    config: PathBuf,
    /// Where inputs are, and where what was computed from them goes.
    exchange: PathBuf,
}

/// A worker's half and a learner's half of one prompt's iteration.
struct Iteration {
    config: RunConfig,
    sampler: GuidedModel,
    policy: Policy,
    objective: Objective,
    rollout: Rollout,
    noise: Vec<TaskNoise>,
    positive: Conditioning,
    negative: Embedding,
    advantages: Vec<Vec<f32>>,
    sampled: Vec<Trajectories>,
    updates: u64,
}

fn main() -> anyhow::Result<()> {
    let args: Args = service::parse_arguments();
    let mut iteration = Iteration::open(&args)?;
    println!("ready");
    for word in std::io::stdin().lock().lines() {
        match word?.as_str() {
            "rollout" => println!("{:.4}", iteration.roll_out(&args.exchange)?),
            "update" => println!("{:.4}", iteration.update(&args.exchange)?),
            "memory" => println!("{:.0}", peak_memory()?),
            other => anyhow::bail!("{other:?} is neither rollout, update nor memory"),
        }
    }
    Ok(())
}

impl Iteration {
    fn open(args: &Args) -> anyhow::Result<Self> {
        let config = RunConfig::from_toml(&std::fs::read_to_string(&args.config)?)?;
        tch::set_num_interop_threads(1);
        tch::set_num_threads(config.resources.worker_threads as i32);
        let policy = Policy::open(&config, &args.pipeline)?;
        let weights = run_setup::weight_options(&config, Device::Cpu);
        let options = LoadOptions { weights, text_encoders: false, decoder: None };
        let tokens = config.model.max_sequence_length;
        let mut sampler = GuidedModel::open_with(&args.pipeline, options, tokens, None)?;
        sampler.attach_adapter(&run_setup::lora_config(&config.adapter))?;
        sampler.load_adapter(&policy.for_workers(policy.trained()))?;

        let (height, width) = (config.sampling.height as i64, config.sampling.width as i64);
        let latent_shape = sampler.latent_shape(height, width)?;
        let schedule = sampler.schedule(config.sampling.steps, height, width)?;
        let steps = TrainedSteps::new(&config, &schedule, 0)?;
        let inputs: HashMap<String, Tensor> =
            weights::read_all(&args.exchange.join("inputs.safetensors"))?.0.into_iter().collect();
        let input = |name: &str| inputs.get(name).map(Tensor::shallow_clone).context(name.to_owned());
        let conditioning = |sign: &str| -> anyhow::Result<Conditioning> {
            let pooled = Some(input(&format!("{sign}.pooled"))?);
            Ok(Conditioning { text: input(&format!("{sign}.text"))?, pooled, text_mask: None })
        };
        let per_seed = (steps.steps().len() * config.sampling.branches_per_seed) as i64;
        let advantages = Vec::<Vec<f32>>::try_from(input("advantages")?.view([-1, per_seed]))?;
        let noise = |seed| TaskNoise {
            keys: vec![training_key(config.run.seed, 0, 0, seed)],
            latent_shape: latent_shape.clone(),
            device: Device::Cpu,
        };
        Ok(Self {
            noise: (0..config.sampling.seeds_per_prompt as u32).map(noise).collect(),
            objective: Objective::new(&config, &latent_shape),
            rollout: Rollout::new(schedule, steps, config.sampling.max_rows),
            positive: conditioning("positive")?,
            negative: Embedding { conditioning: conditioning("negative")?, digest: [0; 32] },
            sampled: Vec::new(),
            updates: 0,
            config,
            sampler,
            policy,
            advantages,
        })
    }

    /// Seconds of the rollouts of all seeds, a seed a task.
    fn roll_out(&mut self, exchange: &Path) -> anyhow::Result<f64> {
        let is_first = self.sampled.is_empty();
        let start = Instant::now();
        let scale = self.config.sampling.guidance_scale;
        let guidance = Embedding::guidance(&self.positive, Some(&self.negative), scale);
        let sigmas = &self.rollout.schedule().sigmas;
        let mut velocity = |latents: &_, step: usize| self.sampler.velocity(latents, sigmas[step], &guidance);
        self.sampled.clear();
        for noise in &self.noise {
            self.sampled.push(self.rollout.sample(noise, &mut velocity)?);
        }
        let seconds = start.elapsed().as_secs_f64();
        if is_first {
            self.write_rollouts(exchange)?;
        }
        Ok(seconds)
    }

    fn write_rollouts(&self, exchange: &Path) -> anyhow::Result<()> {
        let branches = self.config.sampling.branches_per_seed;
        let mut tensors = Vec::new();
        for (seed, (noise, sampled)) in self.noise.iter().zip(&self.sampled).enumerate() {
            let steps = self.rollout.trained_steps().steps();
            let moves: Vec<Tensor> = steps.iter().map(|step| noise.transition(*step, branches)).collect();
            tensors.push((format!("{seed}.initial"), noise.initial()));
            tensors.push((format!("{seed}.moves"), Tensor::cat(&moves, 0)));
            tensors.push((format!("{seed}.finished"), sampled.finished.shallow_clone()));
            tensors.push((format!("{seed}.log_probabilities"), sampled.log_probabilities.shallow_clone()));
        }
        tensors.push(("sigmas".to_owned(), Tensor::from_slice(&self.rollout.schedule().sigmas)));
        tensors.extend(self.policy.for_workers(self.policy.trained()));
        weights::write(&exchange.join("rollouts.safetensors"), &tensors, &HashMap::new())?;
        Ok(())
    }

    /// Seconds from trajectories to an updated adapter in the sampler.
    fn update(&mut self, exchange: &Path) -> anyhow::Result<f64> {
        let start = Instant::now();
        let steps = self.rollout.trained_steps();
        let scale = 1.0 / (self.sampled.len() * steps.steps().len()) as f64;
        for (seed, sampled) in self.sampled.iter().enumerate() {
            let (spec, trajectories) = (task(seed as u32), received(sampled)?);
            let training = TrainingTask {
                task: &spec,
                trajectories: &trajectories,
                advantages: &self.advantages[seed..=seed],
                positive: self.positive.to_device(Device::Cpu),
                negative: Some(self.negative.conditioning.to_device(Device::Cpu)),
            };
            let portion = (&MeansBefore::Own, scale);
            self.objective
                .accumulate(&self.policy, &training, steps, portion)
                .map_err(|cell| anyhow::anyhow!("{cell:?} is not finite"))?;
        }
        let mut seconds = start.elapsed().as_secs_f64();
        if self.updates == 0 {
            let gradient = |(name, tensor): &(String, Tensor)| (name.clone(), tensor.grad());
            let gradients: Vec<_> = self.policy.trained().iter().map(gradient).collect();
            weights::write(&exchange.join("gradients.safetensors"), &gradients, &HashMap::new())?;
        }
        let start = Instant::now();
        self.updates += 1;
        self.policy.update(self.updates).map_err(|problem| anyhow::anyhow!("{problem:?}"))?;
        self.sampler.load_adapter(&self.policy.for_workers(self.policy.trained()))?;
        seconds += start.elapsed().as_secs_f64();
        Ok(seconds)
    }
}

fn task(seed: u32) -> TaskSpec {
    let (kind, prompts) = (TaskKind::Train, vec![0]);
    TaskSpec {
        kind,
        iteration: 0,
        index: seed,
        version: 0,
        prompts,
        prompt_slot: 0,
        first_seed: seed,
        n_seeds: 1,
    }
}

/// What the learner has of a seed once it has arrived.
fn received(sampled: &Trajectories) -> anyhow::Result<outcome::Trajectories> {
    let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor.flatten(0, -1));
    Ok(outcome::Trajectories {
        states: values(&sampled.states)?,
        means: values(&sampled.means)?,
        next_latents: values(&sampled.next_latents)?,
        log_probs: values(&sampled.log_probabilities)?,
        ..outcome::Trajectories::default()
    })
}

/// The most memory that was resident so far, in MiB.
fn peak_memory() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    Ok(number_after(&status, "VmHWM:").context("VmHWM")? as f64 / 1024.0)
}
