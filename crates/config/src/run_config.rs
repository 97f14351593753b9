//! The run config as it stands in the TOML file, section by section.
//!
//! Every key has one meaning for all processes: the coordinator reads the file once and hands the resolved text to
//! whoever joins. Ranges and contradictions are checked in `validate`, not by these types.

use crate::{ComputeDevice, Determinism, HostSection, NetworkSection};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything a run needs to know; `runs/<name>/config.toml` holds it resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Name, seed and length of the run.
    pub run: RunSection,
    /// Which model is trained.
    pub model: ModelSection,
    /// What of the model is trained.
    pub adapter: AdapterSection,
    /// Prompt files.
    pub data: DataSection,
    /// How trajectories are sampled.
    pub sampling: SamplingSection,
    /// How the policy is updated.
    pub training: TrainingSection,
    /// Moving average of what is trained, used for evaluation and export.
    pub ema: EmaSection,
    /// What training images are scored by.
    pub rewards: Vec<RewardSection>,
    /// What held-out images are scored by; those of training if there are none.
    pub evaluation_rewards: Vec<RewardSection>,
    /// Held-out evaluation.
    pub evaluation: EvaluationSection,
    /// How often checkpoints are written and how many are kept.
    pub checkpoints: CheckpointSection,
    /// Devices, threads and worker count; only `workers` may change while a run lives.
    pub resources: ResourceSection,
    /// Where it listens and how members know each other.
    pub network: NetworkSection,
    /// Where `coordinator up --on ssh` starts workers, in the order in which they get them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostSection>,
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSection {
    /// Directory of the run below `directory`.
    pub name: String,
    /// Where runs are kept.
    pub directory: PathBuf,
    /// Seed of every random number of the run.
    pub seed: u64,
    /// Number of iterations (rollout, then `training.updates_per_iteration` updates).
    pub iterations: u32,
    /// Hours after which the run is stopped as by `coordinator down`, to be resumed; 0 for never. Counted anew from every
    /// start: a resumed run has all of them again.
    pub max_hours: f64,
    /// Tasks of iteration `i` are sampled with policy version `max(0, i − lag)`: 0 is strictly on-policy.
    pub lag: u32,
    /// Whether libtorch may take what is faster but gives other bits each time, as some of its kernels on a GPU do.
    pub determinism: Determinism,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSection {
    /// Pipeline folder in the diffusers layout, or `org/name` or `org/name@revision` in the Hugging Face cache.
    pub path: PathBuf,
    /// Variant of the weight files, such as `fp16`; empty for the plain files, or the only ones there are.
    pub variant: String,
    /// Draws the weights from the run's seed and needs configuration files alone: to measure speed and memory.
    pub random_weights: bool,
    /// Type that network and text encoders compute in; what is trained is float32 all the same.
    pub dtype: Dtype,
    /// Type that images are decoded in; a decoder that overflows in half precision has float32 anyway.
    pub decoder_dtype: Dtype,
    /// Tokens of a prompt for the encoder of long texts: T5, or Qwen2.5-VL. SD3 without T5 has that many zero tokens.
    pub max_sequence_length: usize,
    /// Where workers keep prompt embeddings, below `run.directory` unless absolute, so that text encoders are in memory
    /// only until every prompt is embedded; empty for nowhere. SD3.5 takes 1.7 MB a prompt.
    pub embedding_cache: PathBuf,
}

/// Element type of the base weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    Float32,
    /// bfloat16.
    Bfloat16,
}

/// `[adapter]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterSection {
    /// What of the transformer is trained; `full` has no use for the other keys.
    pub method: AdapterMethod,
    /// Rank of the update.
    pub rank: i64,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Module names or dotted suffixes, as PEFT matches them.
    pub targets: Vec<String>,
    /// Adapter that training goes on from, a PEFT folder or a LoRA file as diffusers writes it, of the same rank, alpha
    /// and modules; empty for a fresh one. A divergence is still measured from the base model.
    pub start_from: PathBuf,
}

/// What of the transformer is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterMethod {
    /// Low-rank updates of some linear modules.
    Lora,
    /// All parameters, without an adapter.
    Full,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataSection {
    /// Training prompts: `.txt` (one per line); `.jsonl`, `.ndjson` or `.json` (strings, or objects with `prompt` and
    /// metadata); `.csv` or `.tsv` (with a column `prompt`); or a folder with one such file called `train` or
    /// `train_metadata`. Read once, when the run starts.
    pub train: PathBuf,
    /// Held-out prompts that are evaluated all along and that the best version is chosen by, likewise. Empty: those of
    /// `test`, so that what is reported was chosen on the prompts that it is reported on.
    pub validation: PathBuf,
    /// Held-out prompts that are reported, likewise: with `validation` prompts beside them, of the first, the last and the
    /// best version alone.
    pub test: PathBuf,
}

/// `[sampling]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingSection {
    /// TempFlow-GRPO (branches) or Flow-GRPO (stochastic at every trained step).
    pub algorithm: Algorithm,
    /// Denoising steps T.
    pub steps: usize,
    /// Classifier-free guidance; 1 or less means none.
    pub guidance_scale: f64,
    /// Image height in pixels.
    pub height: i64,
    /// Image width in pixels.
    pub width: i64,
    /// Stochastic transition.
    pub step_rule: StepRule,
    /// Noise level `a` of the transition.
    pub noise_level: f64,
    /// Steps that branch (TempFlow-GRPO) or are stochastic (Flow-GRPO), and are trained.
    pub branch_steps: BranchSteps,
    /// Distinct prompts per iteration, M.
    pub prompts_per_iteration: usize,
    /// Initial noises per prompt, N.
    pub seeds_per_prompt: usize,
    /// Branches per seed and step, K; 1 for Flow-GRPO.
    pub branches_per_seed: usize,
    /// Seeds of one prompt that are sampled together as one task.
    pub seeds_per_task: usize,
    /// Most latents in one network call (before guidance doubles them).
    pub max_rows: usize,
    /// Side of the overlapping tiles that larger images are decoded in, in pixels; 0 for images decoded whole. Less
    /// memory, and slightly other pixels.
    pub vae_tile: i64,
}

/// Which trajectories are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Deterministic trunk, branches at each trained step (arXiv 2508.04324).
    TempflowGrpo,
    /// Stochastic steps along one path, one reward per path (arXiv 2505.05470).
    FlowGrpo,
}

/// Stochastic transition of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepRule {
    /// Flow-SDE of Flow-GRPO.
    FlowSde,
    /// Coefficients-preserving sampling (arXiv 2509.05952).
    Cps,
}

/// Which steps are trained; never the last one. Written `all`, `0..4` (end excluded), `0,2,5`, `random:3`,
/// `random:2@1,2,3` (two of the three), or `window:2@0..5` (a window of two consecutive steps). What is drawn is drawn once
/// for all tasks of an iteration; Flow-GRPO draws its windows for every batch of an epoch anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BranchSteps {
    /// Steps 0 to T−2.
    All,
    /// Steps `from` to `to − 1`.
    Range {
        /// First step.
        from: usize,
        /// One past the last step.
        to: usize,
    },
    /// Exactly these.
    List(Vec<usize>),
    /// That many distinct steps, drawn anew for every iteration.
    Random {
        /// How many.
        count: usize,
    },
    /// That many distinct steps of a list, drawn anew for every iteration.
    RandomAmong {
        /// How many.
        count: usize,
        /// Which steps can be drawn.
        among: Vec<usize>,
    },
    /// Consecutive steps, the start drawn anew for every iteration.
    Window {
        /// How many.
        size: usize,
        /// Lowest start.
        from: usize,
        /// One past the highest step.
        to: usize,
    },
}

/// `[training]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingSection {
    /// AdamW's step size.
    pub learning_rate: f64,
    /// AdamW's first moment decay.
    pub adam_beta1: f64,
    /// AdamW's second moment decay.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global L2 norm of the gradient.
    pub max_grad_norm: f64,
    /// Optimizer updates per iteration; only the first is strictly on-policy.
    pub updates_per_iteration: usize,
    /// Into how many parts, a power of two, the tasks of an update are cut, whose gradients are added as one binary tree,
    /// whatever the number of learner ranks. Where a config is silent: 8 for an adapter, else the smallest that
    /// `resources.learners` needs, since a rank holds several gradients at a time.
    pub gradient_shards: usize,
    /// Which rewards an advantage is measured against.
    pub advantage_group: AdvantageGroup,
    /// How several rewards become one advantage.
    pub reward_combination: RewardCombination,
    /// Weight of each step in the policy loss. Where a config is silent: `inverse-length` with GRPO-Guard's ratio, else
    /// `noise` for TempFlow-GRPO with Flow-SDE, else `none` (a CPS step's gradient shrinks with its noise by itself).
    pub step_weight: StepWeight,
    /// What the logarithm of a probability ratio is normalized by.
    pub ratio_normalization: RatioNormalization,
    /// Ratios are clipped to `1 ± clip_range`.
    pub clip_range: f64,
    /// How far below 1 a ratio is clipped; 0 for `clip_range`.
    pub clip_range_lt: f64,
    /// How far above 1 a ratio is clipped; 0 for `clip_range`.
    pub clip_range_gt: f64,
    /// Advantages are clipped to `± advantage_clip`.
    pub advantage_clip: f64,
    /// Weight of the KL divergence to the base model; 0 skips it.
    pub kl_beta: f64,
    /// What the squared mean difference is divided by.
    pub kl_denominator: KlDenominator,
    /// Most latents in one training forward (before guidance doubles them).
    pub max_rows: usize,
    /// Whether the backward pass computes activations again, block by block: less memory for one more forward pass.
    pub gradient_checkpointing: bool,
}

/// Which rewards an advantage is measured against, always per step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdvantageGroup {
    /// The K branches of one seed.
    Seed,
    /// All branches of all seeds of the prompt.
    Prompt,
    /// Mean of the prompt, deviation of the whole iteration.
    Batch,
    /// Mean and deviation of the whole iteration over all steps.
    None,
}

/// How several rewards become one advantage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RewardCombination {
    /// Advantages of the weighted sum of raw scores.
    Sum,
    /// The weighted sum of each reward's advantages, over its deviation in the whole iteration (GDPO, arXiv 2601.05242):
    /// rewards count by their weights, whatever their scales. Training waits for all tasks of an iteration.
    Gdpo,
}

/// Weight of a step in the policy loss. Written `noise`, `none`, `inverse-length`, or `constant:2.25`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StepWeight {
    /// `S_i` divided by its mean over all steps that can be drawn for training.
    Noise,
    /// 1.
    None,
    /// `1/(σ_i − σ_{i+1})`, as GRPO-Guard.
    InverseLength,
    /// `C · S_i`.
    Constant(f64),
}

/// How the logarithm of a probability ratio is normalized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RatioNormalization {
    /// Not at all.
    None,
    /// As GRPO-Guard does (arXiv 2510.22319): without the bias of the squared change of the mean, and in units that are the
    /// same at all steps. Its clip ranges are smaller, 2e-6 to 4e-6.
    Guard,
}

/// What the squared difference of means in the KL term is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KlDenominator {
    /// `2·S²`, the exact divergence.
    Std,
    /// `2·η²`, as Flow-GRPO since July 2025.
    Eta,
}

/// `[ema]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmaSection {
    /// Largest decay; 0 with an interval of 1 makes the average equal to the live adapter.
    pub decay: f64,
    /// Updates between two steps of the average.
    pub interval: u64,
}

/// `[[rewards]]` and `[[evaluation_rewards]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardSection {
    /// What metrics call it; the scorer's name, unless one scorer is used twice.
    pub name: String,
    /// The scorer, where `name` does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scorer: Option<String>,
    /// Factor of its raw score, or of its advantage, in the sum.
    #[serde(default = "crate::rewards::unit_weight")]
    pub weight: f64,
    /// Every other key is an option of the scorer, which alone knows them.
    #[serde(flatten)]
    pub options: toml::Table,
}

/// `[evaluation]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationSection {
    /// Iterations between evaluations; the first comes before any update, the last after all.
    pub every: u32,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance of held-out images; that of sampling where a config is silent.
    pub guidance_scale: f64,
    /// Held-out prompts used of each file, in its order; 0 means all.
    pub prompts: usize,
    /// Images per prompt, each from its own fixed noise.
    pub images_per_prompt: usize,
    /// Prompts of one evaluation task.
    pub prompts_per_task: usize,
    /// Images in the PNG grid.
    pub grid: usize,
    /// Evaluations in a row over which the training reward must rise and a reward that is not trained fall to be called
    /// reward hacking; 0 does not look.
    pub hacking_patience: u32,
    /// What follows from that.
    pub on_reward_hacking: OnRewardHacking,
}

/// What a run does when rewards that it does not train fall while those that it trains rise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRewardHacking {
    /// It says so and goes on.
    Warn,
    /// It writes a checkpoint and ends.
    Stop,
}

/// `[checkpoints]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointSection {
    /// Iterations between checkpoints.
    pub every: u32,
    /// Newest checkpoints kept; the best one is kept besides.
    pub keep_last: usize,
    /// Minutes for which checkpoints or exports may keep failing, as on a full disk, before the run gives up.
    pub retry_minutes: f64,
}

/// `[resources]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResourceSection {
    /// `cpu`, `cuda` (a GPU for each process; they share where there are fewer) or `cuda:N` (that one for all).
    pub device: ComputeDevice,
    /// Processes that the learner consists of, its ranks; the result does not depend on their number.
    pub learners: usize,
    /// Whether learners, or workers, may compute on several kinds of device: other cards, processors or libraries. The bits
    /// of the result then depend on who did what.
    pub mixed_devices: bool,
    /// Rollout workers started by `coordinator up`.
    pub workers: usize,
    /// Most rollout workers that `workers`, `--workers` or `coordinator scale` may ask for.
    pub max_workers: usize,
    /// CPU threads of one worker's tensor operations.
    pub worker_threads: usize,
    /// CPU threads of the learner's tensor operations.
    pub learner_threads: usize,
}
