//! How fast one thread samples and scores training tasks of a run config:
//! `cargo run --release -p rollout-worker --example task_speed -- CONFIG [N_TASKS] [--device cuda] [--dtype bfloat16]`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use config::{ComputeDevice, Dtype, RunConfig};
use protocol::{Prompt, Task, TaskName};
use rollout_worker::sampling::guided_model::GuidedModel;
use rollout_worker::sampling::task::Sampler;
use rollout_worker::scoring::{Listener, Scorer};
use service::{Hub, cuda};

/// Nobody is told how scoring goes on.
struct Unheard;

impl Listener for Unheard {
    fn unreachable(&self, _: &str, _: &str) {}
    fn reachable(&self, _: &str) {}
}

/// Times training tasks of a run config.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The run config.
    config: PathBuf,
    /// How many tasks, after one that is not counted.
    #[arg(default_value_t = 20)]
    n_tasks: usize,
    /// `cpu`, `cuda` or `cuda:N`; the config's if not given.
    #[arg(long, env = "FLOW_RL_DEVICE")]
    device: Option<ComputeDevice>,
    /// Type that networks compute in, `float32` or `bfloat16`; the config's if not given.
    #[arg(long)]
    dtype: Option<Dtype>,
}

fn main() -> anyhow::Result<()> {
    let Args { config: path, n_tasks, device, dtype } = service::parse_arguments();
    let mut config = RunConfig::from_toml(&std::fs::read_to_string(&path)?)?;
    config.resources.device = device.unwrap_or(config.resources.device);
    config.model.dtype = dtype.unwrap_or(config.model.dtype);
    cuda::load_where_wanted(Some(config.resources.device))?;
    tch::set_num_interop_threads(1);
    tch::set_num_threads(config.resources.worker_threads as i32);

    let device = run_setup::open_device(config.resources.device).map_err(cuda::explained)?;
    let weights = run_setup::weight_options(&config, device);
    let model = GuidedModel::open(&config.model.path, weights, config.model.max_sequence_length)?;
    let hub = Hub::from_environment(|name| std::env::var_os(name));
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let scorer = runtime.block_on(Scorer::start(&config, device, &hub, rewards::RunIdentity::None))?;
    let file = config::prompt_file(&config.data.train, config::PromptSplit::Train)?;
    let prompts = config::read_prompts(&file)?;
    let specs = config.train_tasks(prompts.len(), 0);
    let mut sampler = Sampler::new(config, model)?;

    let (mut evaluations, mut images) = (0, 0);
    let (mut sampling, mut decoding, mut scoring) = (0.0, 0.0, 0.0);
    for (position, spec) in specs.iter().cycle().take(n_tasks + 1).enumerate() {
        let record = &prompts[spec.prompts[0] as usize];
        let prompt =
            Prompt { index: record.index, text: record.text.clone(), metadata: record.metadata.clone() };
        let task = Task {
            name: TaskName { iteration: spec.iteration, kind: spec.kind, index: spec.index },
            version: 0,
            prompts: vec![prompt],
            prompt_slot: spec.prompt_slot,
            first_seed: spec.first_seed,
            n_seeds: spec.n_seeds,
            learner_rank: 0,
        };
        let sampled = sampler.sample(&task, &|| true)?;
        let start = Instant::now();
        let seconds = sampled.seconds;
        let cost =
            runtime.block_on(scorer.complete(sampled, Arc::new(Unheard)))?.header.cost.unwrap_or_default();
        // The first task warms libtorch up.
        if position > 0 {
            evaluations += cost.network_evaluations;
            images += cost.images;
            sampling += seconds;
            decoding += cost.decoding_seconds;
            scoring += start.elapsed().as_secs_f64();
        }
    }
    println!(
        "{n_tasks} tasks: {:.1} ms sampling, {:.1} ms of it decoding, and {:.1} ms scoring each",
        per(sampling, n_tasks),
        per(decoding, n_tasks),
        per(scoring, n_tasks)
    );
    println!(
        "{:.0} network evaluations/s, {:.1} images/s",
        evaluations as f64 / sampling,
        images as f64 / sampling
    );
    Ok(())
}

fn per(seconds: f64, count: usize) -> f64 {
    1000.0 * seconds / count as f64
}
