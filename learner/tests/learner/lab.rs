//! A learner in this process, and a worker beside it that samples a tiny real model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::service::{OwnedDirectory, Ownership, RunDirectory};
use bytes::Bytes;
use config::{AdapterMethod, Dtype, RewardSection, RunConfig, TaskKind, TaskSpec};
use flow::{TransitionRows, log_probability, next_latents, ode_step, repeat_for_branches, transition_mean};
use learner::error::LearnerError;
use learner::exchange::embeddings::Embeddings;
use learner::exchange::inbox::{Inbox, Outcome};
use learner::exchange::outcome::{Trajectories, push_schema};
use learner::exchange::publications::Publications;
use learner::exchange::receive::{OutcomeReader, hash_of};
use learner::progress::ProgressBoard;
use learner::ranks::group::Ranks;
use learner::records::journal::Journal;
use learner::run::{HeldOutPrompts, Run, TrainingEnd};
use learner::training::gradient::Objective;
use learner::training::metrics::IterationMetrics;
use learner::training::policy::Policy;
use learner::training::shares::Shares;
use learner::training::trainer::Trainer;
use models::lora::LoraConfig;
use models::weights::WeightOptions;
use models::{AdapterMode, Conditioning, Guidance, LoadOptions, TextToImageModel, pipeline, tensor_bytes};
use noise::{NoiseKey, standard_normal};
use proto::{PushHeader, TaskCost, TensorInfo};
use protocol::{TaskName, TaskStanding, WeightsName, kind_from_wire};
use run_setup::{TrainedSteps, training_key};
use tch::{Device, Kind, Tensor};

/// Text tokens of the T5 part.
const SEQUENCE_LENGTH: usize = 4;

/// A run directory, a config for the tiny model, and prompts.
pub struct Lab {
    /// The run.
    pub config: RunConfig,
    /// What the worker's kernels add to every mean.
    pub worker_error: f64,
    folder: PathBuf,
    /// In a coordinator's place.
    owner: OnceLock<Ownership>,
    /// Removes the folder, where it is a temporary one.
    _temporary: Option<tempfile::TempDir>,
}

/// What the learner's parts share.
#[derive(Clone, Default)]
pub struct Shared {
    /// Wanted tasks.
    pub inbox: Arc<Inbox>,
    /// Embeddings.
    pub embeddings: Arc<Embeddings>,
    /// Weights.
    pub publications: Arc<Publications>,
}

/// In which order the worker delivers what is wanted together.
#[derive(Clone, Copy, Debug)]
pub enum Delivery {
    /// By index.
    InOrder,
    /// The last of each iteration first, and each twice.
    Reversed,
}

impl Lab {
    /// A run of two iterations, each of two prompts with two seeds, changed as asked.
    pub fn new(change: impl FnOnce(&mut RunConfig)) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let lab = Self::inside(temporary.path(), change);
        Self { _temporary: Some(temporary), ..lab }
    }

    /// The same in a folder that stays.
    pub fn inside(folder: &Path, change: impl FnOnce(&mut RunConfig)) -> Self {
        std::fs::write(folder.join("train.txt"), "a red circle\na blue square\na green star\n").unwrap();
        std::fs::write(folder.join("test.txt"), "two red circles\na blue circle\n").unwrap();
        let mut config = config::preset("tempflow-tiny-cpu").unwrap().config;
        config.run.iterations = 2;
        config.model.path = model_path();
        config.model.max_sequence_length = SEQUENCE_LENGTH;
        config.adapter.rank = 4;
        config.adapter.alpha = 8.0;
        config.data.train = folder.join("train.txt");
        config.data.test = folder.join("test.txt");
        config.data.validation = PathBuf::new();
        config.sampling.steps = 4;
        config.sampling.guidance_scale = 2.0;
        config.sampling.prompts_per_iteration = 2;
        config.sampling.seeds_per_prompt = 2;
        config.sampling.seeds_per_task = 1;
        config.sampling.branches_per_seed = 3;
        config.training.updates_per_iteration = 2;
        config.training.max_rows = 2;
        config.evaluation.every = 2;
        config.evaluation.images_per_prompt = 1;
        config.evaluation.prompts_per_task = 1;
        config.evaluation.grid = 2;
        config.checkpoints.every = 1;
        config.checkpoints.keep_last = 9;
        change(&mut config);
        let (folder, owner) = (folder.to_owned(), OnceLock::new());
        Self { config, worker_error: 0.0, folder, owner, _temporary: None }
    }

    /// The run's directory.
    pub fn directory(&self) -> RunDirectory {
        let directory = RunDirectory::new(self.folder.join("run"));
        directory.create().unwrap();
        directory
    }

    /// The run's directory, to be changed.
    pub fn owned(&self) -> OwnedDirectory {
        let owner = self.owner.get_or_init(|| Ownership::claim(&self.directory(), 0, None).unwrap());
        owner.directory().clone()
    }

    /// A learner that continues what is in the directory.
    pub fn open(&self, shared: &Shared) -> Result<Run, LearnerError> {
        let data = &self.config.data;
        let held_out = HeldOutPrompts::read(data, |split| config::read_prompts(data.path(split))).unwrap();
        Run::open(self.trainer(shared), held_out, shared.publications.clone(), self.owned())
    }

    /// A trainer with a fresh policy.
    pub fn trainer(&self, shared: &Shared) -> Trainer {
        tch::set_num_threads(1);
        let policy = Policy::open(&self.config, &self.config.model.path).unwrap();
        let latent_shape = self.latent_shape(policy.model());
        Trainer {
            schedule: run_setup::training_schedule(&self.config, policy.model()).unwrap(),
            objective: Objective::new(&self.config, &latent_shape),
            prompts: config::read_prompts(&self.config.data.train).unwrap(),
            inbox: shared.inbox.clone(),
            embeddings: shared.embeddings.clone(),
            progress: Arc::new(ProgressBoard::default()),
            ranks: Ranks::alone(),
            shares: Shares::of(&self.config, 0).unwrap(),
            updates: 0,
            iteration: 0,
            earlier: BTreeMap::new(),
            told_drift: 0.0,
            config: self.config.clone(),
            policy,
        }
    }

    /// Runs a learner to its end with a worker beside it; `spoil` may change what the worker delivers.
    pub fn train(
        &self,
        delivery: Delivery,
        spoil: impl Fn(&TaskSpec, &mut Sample) + Send + 'static,
    ) -> Result<TrainingEnd, LearnerError> {
        let shared = Shared::default();
        let mut run = self.open(&shared)?;
        let worker = self.spawn_worker(&shared, delivery, None, spoil);
        let ended = run.run();
        shared.inbox.stop();
        worker.join().unwrap();
        ended
    }

    /// Bytes of a file of the checkpoint of a version.
    pub fn checkpoint_file(&self, version: u32, name: &str) -> Vec<u8> {
        let checkpoint = self.directory().checkpoints().join(format!("iteration-{version:06}"));
        std::fs::read(checkpoint.join(name)).unwrap()
    }

    fn latent_shape(&self, model: &dyn TextToImageModel) -> Vec<i64> {
        model.latent_shape(self.config.sampling.height, self.config.sampling.width).unwrap()
    }

    /// A worker beside a learner; with `stop_in`, it delivers so many tasks of that iteration and stops the learner.
    pub fn spawn_worker(
        &self,
        shared: &Shared,
        delivery: Delivery,
        stop_in: Option<(u32, usize)>,
        spoil: impl Fn(&TaskSpec, &mut Sample) + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        let (config, worker_error, shared) = (self.config.clone(), self.worker_error, shared.clone());
        std::thread::spawn(move || {
            let mut worker = Worker { error: worker_error, ..Worker::new(&config) };
            while !shared.inbox.is_stopping() {
                let mut wanted = worker.wanted(&shared.inbox);
                if wanted.is_empty() {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                }
                if let Delivery::Reversed = delivery {
                    wanted.reverse();
                }
                let first = wanted.iter().map(|(id, _)| id.iteration).min();
                wanted.retain(|(id, _)| Some(id.iteration) == first);
                let stop = stop_in.filter(|(iteration, _)| first == Some(*iteration));
                let n_delivered = stop.map_or(wanted.len(), |(_, n_tasks)| n_tasks);
                for (id, task) in wanted.into_iter().take(n_delivered) {
                    let Some(mut sample) = worker.sample(&task, &shared.publications) else { continue };
                    spoil(&task, &mut sample);
                    let (header, bytes) = sample.push(&task);
                    for _ in 0..1 + usize::from(matches!(delivery, Delivery::Reversed)) {
                        let mut outcome =
                            worker.receiver.outcome(&header, &bytes, &task, &shared.embeddings).unwrap();
                        if let (Outcome::Train(trajectories), Some(spoil)) =
                            (&mut outcome, sample.spoil_inside)
                        {
                            spoil(trajectories);
                        }
                        shared.inbox.hold(id, outcome);
                    }
                }
                if stop.is_some() {
                    shared.inbox.stop();
                }
            }
        })
    }
}

fn model_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/sd3")
}

/// Samples tasks as a rollout worker does, rewards aside: these are numbers drawn from the latents.
pub struct Worker {
    config: RunConfig,
    model: Box<dyn TextToImageModel>,
    prompts: Vec<config::PromptRecord>,
    /// The learner's side of the wire.
    pub receiver: OutcomeReader,
    error: f64,
    loaded: Option<u32>,
}

/// The tensors of a push by name, and the header without them.
pub struct Sample {
    /// Version, steps and digests.
    pub header: PushHeader,
    /// Everything that is announced.
    pub tensors: Vec<(String, Tensor)>,
    /// What becomes of it in the learner, beyond the checks of what is pushed.
    pub spoil_inside: Option<fn(&mut Trajectories)>,
}

impl Worker {
    /// A worker of a run.
    pub fn new(config: &RunConfig) -> Self {
        tch::set_num_threads(1);
        let kind = match config.model.dtype {
            Dtype::Float32 => Kind::Float,
            Dtype::Bfloat16 => Kind::BFloat16,
        };
        let options = LoadOptions {
            weights: WeightOptions::new(kind, Device::Cpu),
            text_encoders: true,
            decoder: None,
        };
        let mut model = pipeline::open(&config.model.path, options).unwrap();
        let adapter = &config.adapter;
        if adapter.method == AdapterMethod::Lora {
            let targets = adapter.targets.clone();
            let lora = LoraConfig { rank: adapter.rank, alpha: adapter.alpha, targets: targets.into() };
            model.network_mut().attach_adapter(&lora, &mut |_, len| vec![0.0; len]).unwrap();
        }
        let schedule = run_setup::training_schedule(config, model.as_ref()).unwrap();
        let latent_shape = model.latent_shape(config.sampling.height, config.sampling.width).unwrap();
        let receiver = OutcomeReader {
            schema: push_schema(config, model.as_ref(), latent_shape),
            run_seed: config.run.seed,
            stds: run_setup::move_stds(config, &schedule).unwrap(),
        };
        let prompts = config::read_prompts(&config.data.train).unwrap();
        Self { config: config.clone(), model, prompts, receiver, error: 0.0, loaded: None }
    }

    /// Tasks that are wanted and not held, by iteration and index.
    pub fn wanted(&self, inbox: &Inbox) -> Vec<(TaskName, TaskSpec)> {
        let ids = inbox.wanted().into_iter().flat_map(|wanted| {
            let (last, kind) = (64, kind_from_wire(wanted.kind()).unwrap());
            (0..last).map(move |index| TaskName { iteration: wanted.iteration, kind, index })
        });
        ids.filter_map(|id| match inbox.standing(id) {
            TaskStanding::Wanted(task, _) => Some((id, task)),
            TaskStanding::Held | TaskStanding::NotWanted => None,
        })
        .collect()
    }

    /// The outcome of a task, unless its weights are gone.
    pub fn sample(&mut self, task: &TaskSpec, publications: &Publications) -> Option<Sample> {
        match task.kind {
            TaskKind::Train => {
                if self.loaded != Some(task.version) {
                    let publication = publications.get(WeightsName::policy(task.version))?;
                    let tensors =
                        tensor_bytes::split(&publication.manifest.tensors, &publication.bytes).unwrap();
                    let network = self.model.network_mut();
                    match self.config.adapter.method {
                        AdapterMethod::Lora => network.load_adapter(&tensors).unwrap(),
                        AdapterMethod::Full => network.load_parameters(&tensors).unwrap(),
                    }
                    self.loaded = Some(task.version);
                }
                Some(tch::no_grad(|| self.trajectories(task)))
            }
            TaskKind::Evaluate | TaskKind::Test => {
                publications.get(WeightsName::average(task.version))?;
                Some(self.images(task))
            }
        }
    }

    fn embed(&self, prompt: &str) -> Conditioning {
        self.model.encode_prompts(&[prompt.to_owned()], SEQUENCE_LENGTH).unwrap()
    }

    fn trajectories(&self, task: &TaskSpec) -> Sample {
        let sampling = &self.config.sampling;
        let schedule = run_setup::training_schedule(&self.config, self.model.as_ref()).unwrap();
        let trained = TrainedSteps::new(&self.config, &schedule, task.iteration).unwrap();
        let n_branches = sampling.branches_per_seed;
        let (positive, negative) = (self.embed(&self.prompts[task.prompts[0] as usize].text), self.embed(""));
        let noise = |key: NoiseKey| {
            let shape = &self.receiver.schema.latent_shape;
            Tensor::from_slice(&standard_normal(&key, self.receiver.schema.latent_len()))
                .view(shape.as_slice())
        };
        let (mut states, mut means, mut nexts, mut log_probs) = (vec![], vec![], vec![], vec![]);
        for seed in task.first_seed..task.first_seed + task.n_seeds {
            let key = training_key(self.config.run.seed, task.iteration, task.prompt_slot, seed);
            let mut trunk = noise(key).unsqueeze(0);
            for step in 0..sampling.steps - 1 {
                let sigma = Tensor::from_slice(&[schedule.sigmas[step]]);
                let guidance = Guidance {
                    positive: &positive,
                    negative: Some(&negative),
                    scale: sampling.guidance_scale,
                };
                let velocity = self.model.velocity(&trunk, &sigma, &guidance, AdapterMode::Frozen);
                if let Some(position) = trained.steps().iter().position(|trained| *trained == step) {
                    let rows = TransitionRows::new(&[trained.coefficients[position]], Device::Cpu);
                    let mean = transition_mean(&trunk, &velocity, &rows) + self.error;
                    let epsilons: Vec<Tensor> = (0..n_branches as u32)
                        .map(|branch| noise(key.transition(step as u32, branch)))
                        .collect();
                    let (rows, branch_means) =
                        (rows.repeat_for_branches(n_branches), repeat_for_branches(&mean, n_branches));
                    let next = next_latents(&branch_means, &rows.std, &Tensor::stack(&epsilons, 0));
                    log_probs.push(log_probability(&next, &branch_means, &rows));
                    states.push(trunk.shallow_clone());
                    means.push(mean);
                    nexts.push(next);
                }
                trunk = ode_step(&trunk, &velocity, &Tensor::from_slice(&[schedule.delta_sigma(step)]));
            }
        }
        self.training_sample(task, &trained, [states, means, nexts, log_probs], [positive, negative])
    }

    fn training_sample(
        &self,
        task: &TaskSpec,
        trained: &TrainedSteps,
        sampled: [Vec<Tensor>; 4],
        embeddings: [Conditioning; 2],
    ) -> Sample {
        let n_branches = self.config.sampling.branches_per_seed as i64;
        let (seeds, steps) = (i64::from(task.n_seeds), trained.steps().len() as i64);
        let latent = &self.receiver.schema.latent_shape;
        let [states, means, nexts, log_probs] = sampled.map(|rows| Tensor::cat(&rows, 0));
        let moves = [seeds, steps, n_branches];
        let scores: Vec<Tensor> = (0..self.config.rewards.len() as i64)
            .map(|position| {
                let eight = nexts.flatten(1, -1).narrow(1, 8 * position, 8);
                let scores = eight.mean_dim(1, false, Kind::Float).view(moves);
                // Some cells teach nothing: the first step of every odd seed.
                if !task.first_seed.is_multiple_of(2) {
                    let _ = scores.get(0).get(0).fill_(0.5);
                }
                scores
            })
            .collect();
        let floats: Vec<f32> = Vec::try_from(&nexts.flatten(0, -1)).unwrap();
        let hashes: Vec<u8> = floats.chunks(self.receiver.schema.latent_len()).flat_map(hash_of).collect();
        let cells = [&moves[..2], latent].concat();
        let mut tensors = vec![
            ("states".to_owned(), states.view(cells.as_slice())),
            ("means".to_owned(), means.view(cells.as_slice())),
            ("log_probs".to_owned(), log_probs.view(moves)),
            ("next_hashes".to_owned(), Tensor::from_slice(&hashes).view([seeds, steps, n_branches, 8])),
        ];
        tensors.extend(scored(&self.config.rewards, scores));
        for embedding in &embeddings {
            let hex = blake3::Hash::from(embedding.digest()).to_hex();
            let named = embedding.tensors().into_iter();
            tensors.extend(named.map(|(name, t)| (format!("conditioning.{hex}.{name}"), t.shallow_clone())));
        }
        let [positive, negative] = embeddings.map(|embedding| Bytes::copy_from_slice(&embedding.digest()));
        let header = PushHeader {
            version: task.version,
            steps: trained.on_the_wire(),
            conditioning: positive,
            negative_conditioning: negative,
            cost: Some(TaskCost {
                network_evaluations: 10,
                images: 9,
                sampling_seconds: 0.5,
                reward_seconds: 0.25,
                decoding_seconds: 0.25,
            }),
            ..PushHeader::default()
        };
        Sample { header, tensors, spoil_inside: None }
    }

    /// Later versions score better by the first reward, so that there is a best one, and worse by all others.
    fn images(&self, task: &TaskSpec) -> Sample {
        let (height, width) = self.receiver.schema.image_size;
        let rewards = self.config.rewards_of_evaluation();
        let scores = (0..rewards.len()).map(|position| {
            let change = if position == 0 { 0.125 } else { -0.0625 };
            let of_prompt = |prompt: &u32| *prompt as f32 * 0.25 + task.version as f32 * change;
            Tensor::from_slice(&task.prompts.iter().map(of_prompt).collect::<Vec<_>>())
        });
        let shape = [task.prompts.len() as i64, height, width, 3];
        let images = ("images".to_owned(), Tensor::full(shape, 200, (Kind::Uint8, Device::Cpu)));
        let tensors = std::iter::once(images).chain(scored(rewards, scores.collect())).collect();
        let header = PushHeader { version: task.version, ..PushHeader::default() };
        Sample { header, tensors, spoil_inside: None }
    }
}

/// The tensors of scores: the weighted sum and each reward's own.
fn scored(rewards: &[RewardSection], scores: Vec<Tensor>) -> Vec<(String, Tensor)> {
    let weighted = rewards.iter().zip(&scores).map(|(reward, scores)| scores * reward.weight);
    let sum = weighted.reduce(|sum, scores| sum + scores).unwrap();
    let own = rewards.iter().zip(scores).map(|(reward, scores)| (format!("reward.{}", reward.name), scores));
    std::iter::once(("rewards".to_owned(), sum)).chain(own).collect()
}

impl Sample {
    /// The tensor of a name, to be changed in place.
    pub fn tensor(&self, name: &str) -> Tensor {
        let found = self.tensors.iter().find(|(known, _)| known == name);
        found.map(|(_, tensor)| tensor.shallow_clone()).unwrap()
    }

    /// As it goes over the wire.
    pub fn push(&self, task: &TaskSpec) -> (PushHeader, Vec<u8>) {
        let infos: Vec<TensorInfo> = self
            .tensors
            .iter()
            .map(|(name, tensor)| tensor_bytes::tensor_info(name, tensor).unwrap())
            .collect();
        let bytes = self.tensors.iter().flat_map(|(_, tensor)| tensor_bytes::to_bytes(tensor)).collect();
        let name = TaskName { iteration: task.iteration, kind: task.kind, index: task.index };
        (PushHeader { task: Some(name.into()), tensors: infos, ..self.header.clone() }, bytes)
    }
}

/// The rows of a run's iterations.
pub fn metrics(lab: &Lab) -> Vec<IterationMetrics> {
    Journal::open(&lab.owned(), &lab.directory().metrics(), |_| true).unwrap().rows().to_vec()
}

/// The trajectories in an outcome.
pub fn trajectories(outcome: Outcome) -> Trajectories {
    let Outcome::Train(trajectories) = outcome else { panic!("a training task was sampled") };
    *trajectories
}
