//! Ranges and contradictions of a run config.

use crate::defaults::{REWARD_LISTS, default_adapter};
use crate::hosts::host_problems;
use crate::network::network_problems;
use crate::{
    AdapterMethod, AdapterSection, Algorithm, ConfigProblem, Dtype, EvaluationSection, OnRewardHacking,
    RewardSection, RunConfig, SamplingSection, StepRule, StepWeight,
};

mod rewards;

pub(crate) use rewards::unavailable_rewards;
use rewards::{check_rewards, check_scorer};

/// More of anything than a run can have; keeps products of counts and casts to 32 bits safe.
pub(crate) const MOST: usize = 1_000_000;

/// Tokens of a prompt's text; no text encoder of a pipeline is given more than 1024.
const MOST_TOKENS: usize = 4096;

/// Threads of one process: above the cores of any machine, and each is a thread of the system, with a stack of its own.
const MOST_THREADS: usize = 1024;

/// Side of an image: as 32-bit floats, one of that size has 3 GB.
const MOST_PIXELS: i64 = 16_384;

/// Denoising steps: models know a thousand noise levels, between which more steps hardly move.
const MOST_STEPS: usize = 10_000;

/// Images of one prompt in an evaluation, which are in memory together with those of the other prompts of a task.
const MOST_IMAGES_PER_PROMPT: usize = 10_000;

/// Images of a grid, which is drawn in memory before it is written.
const MOST_TILES: usize = 1024;

/// Shards of a gradient: more than any learner has ranks.
const MOST_SHARDS: usize = 1024;

/// Rank of an adapter: no linear module of a network is wider.
const MOST_RANK: i64 = 65_536;

/// The largest number of 32 bits.
const MOST_REAL: f64 = f32::MAX as f64;

/// Minutes: a week.
const LONGEST_RETRY: f64 = 10_080.0;

/// Longer than any run: a century.
const MOST_HOURS: f64 = 876_000.0;

/// Bytes of a run's name: it names a directory, and what is told from others by it is named with more behind.
const LONGEST_RUN_NAME: usize = 200;

/// Collects problems, one check a line.
struct Checks(Vec<ConfigProblem>);

impl Checks {
    fn require(&mut self, holds: bool, key: &str, message: impl FnOnce() -> String) {
        if !holds {
            self.0.push(ConfigProblem::new(key, message()));
        }
    }

    /// A count that processes allocate for; products of a few of them stay far below 2^63.
    fn count(&mut self, value: usize, key: &str) {
        self.require((1..=MOST).contains(&value), key, || format!("is {value}; it must be 1 to {MOST}"));
    }

    /// A count with a bound of its own, and the reason for that.
    fn count_to(&mut self, most: usize, value: usize, key: &str, reason: &str) {
        self.require((1..=most).contains(&value), key, || {
            format!("is {value}; it must be 1 to {most}, since {reason}")
        });
    }

    fn positive(&mut self, value: f64, key: &str) {
        self.require(value.is_finite() && value > 0.0, key, || format!("is {value:?}; it must be above 0"));
    }

    fn not_negative(&mut self, value: f64, key: &str) {
        self.require(value.is_finite() && value >= 0.0, key, || {
            format!("is {value:?}; it must be 0 or more")
        });
    }

    /// A number that tensors are multiplied by, which have those of 32 bits; what is no number at all is reported as such.
    fn held_by_tensors(&mut self, value: f64, key: &str) {
        self.require(!value.is_finite() || value.abs() <= MOST_REAL, key, || {
            format!("is {value:?}; it must be at most 3.4e38, the largest number that tensors hold")
        });
    }

    fn below_one(&mut self, value: f64, key: &str) {
        self.require((0.0..1.0).contains(&value), key, || format!("is {value:?}; it must be in [0, 1)"));
    }
}

/// Finds everything about the config that cannot work; whether files exist is not looked at.
pub fn validate(config: &RunConfig) -> Vec<ConfigProblem> {
    let mut checks = Checks(Vec::new());
    check_run(config, &mut checks);
    check_model(config, &mut checks);
    check_sampling(config, &mut checks);
    check_branch_steps(config, &mut checks);
    check_training(config, &mut checks);
    check_rest(config, &mut checks);
    check_reals(config, &mut checks);
    checks.0.extend(network_problems(&config.network));
    checks.0.extend(host_problems(config));
    checks.0
}

fn check_run(config: &RunConfig, checks: &mut Checks) {
    let name = &config.run.name;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    checks.require(!name.is_empty(), "run.name", || "is missing; give the run a name".to_owned());
    checks.require(name.chars().all(is_plain) && !name.starts_with(['.', '-']), "run.name", || {
        format!("is `{name}`; use letters, digits, `_` and, but not first, `-` and `.`: it names a directory")
    });
    checks.require(name.len() <= LONGEST_RUN_NAME, "run.name", || {
        format!("has {} letters; at most {LONGEST_RUN_NAME} name a directory", name.len())
    });
    checks.count(config.run.iterations as usize, "run.iterations");
    let hours = config.run.max_hours;
    checks.require((0.0..=MOST_HOURS).contains(&hours), "run.max_hours", || {
        format!("is {hours}; it must be 0 (no limit) to {MOST_HOURS}")
    });
    checks.require(config.run.lag <= 1, "run.lag", || {
        format!("is {}; 0 (on-policy) and 1 (rollouts overlap training) are supported", config.run.lag)
    });
    checks.require(config.run.seed <= i64::MAX as u64, "run.seed", || "is above 2^63 − 1".to_owned());
}

fn check_model(config: &RunConfig, checks: &mut Checks) {
    checks.require(!config.model.path.as_os_str().is_empty(), "model.path", || {
        "is missing; name a pipeline folder in the diffusers layout, or a repository `org/name`".to_owned()
    });
    let variant = &config.model.variant;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    checks.require(variant.len() <= 32 && variant.chars().all(is_plain), "model.variant", || {
        format!("is `{variant}`; use at most 32 letters, digits, `-` and `_`, since it is part of file names")
    });
    checks.require(!config.data.train.as_os_str().is_empty(), "data.train", || {
        "is missing; name a prompt file (.txt, .jsonl, .json, .csv, .tsv) or a folder".to_owned()
    });
    checks.require(!config.data.test.as_os_str().is_empty(), "data.test", || {
        "is missing; name a file of held-out prompts (.txt, .jsonl, .json, .csv, .tsv) or a folder".to_owned()
    });
    let tokens = config.model.max_sequence_length;
    checks.require(tokens <= MOST_TOKENS, "model.max_sequence_length", || {
        format!("is {tokens}; a prompt has at most {MOST_TOKENS} tokens")
    });
    check_adapter(&config.adapter, checks);
}

fn check_adapter(adapter: &AdapterSection, checks: &mut Checks) {
    if adapter.method == AdapterMethod::Full {
        let unused = default_adapter();
        let remedy = "but with method = \"full\" there is no adapter; remove this key";
        checks.require(adapter.rank == unused.rank, "adapter.rank", || {
            format!("is {}, {remedy}", adapter.rank)
        });
        checks.require(adapter.alpha == unused.alpha, "adapter.alpha", || {
            format!("is {}, {remedy}", adapter.alpha)
        });
        checks.require(adapter.targets == unused.targets, "adapter.targets", || {
            format!("is {:?}, {remedy}", adapter.targets)
        });
        checks.require(adapter.start_from == unused.start_from, "adapter.start_from", || {
            format!("is {}, {remedy}", adapter.start_from.display())
        });
        return;
    }
    checks.require((1..=MOST_RANK).contains(&adapter.rank), "adapter.rank", || {
        format!("is {}; it must be 1 to {MOST_RANK}, since no module is wider", adapter.rank)
    });
    checks.positive(adapter.alpha, "adapter.alpha");
    checks.require(!adapter.targets.is_empty(), "adapter.targets", || {
        "is empty; name the modules that get an adapter, such as `attn.to_q`".to_owned()
    });
}

fn check_sampling(config: &RunConfig, checks: &mut Checks) {
    let sampling = &config.sampling;
    checks.not_negative(sampling.guidance_scale, "sampling.guidance_scale");
    checks.require(sampling.height >= 1, "sampling.height", || format!("is {}", sampling.height));
    checks.require(sampling.width >= 1, "sampling.width", || format!("is {}", sampling.width));
    checks.positive(sampling.noise_level, "sampling.noise_level");
    checks.require(
        sampling.step_rule != StepRule::Cps || sampling.noise_level <= 1.0,
        "sampling.noise_level",
        || format!("is {}; with step_rule = \"cps\" it must be at most 1", sampling.noise_level),
    );
    check_steps(sampling.steps, "sampling.steps", checks);
    for (value, key) in [
        (sampling.prompts_per_iteration, "sampling.prompts_per_iteration"),
        (sampling.seeds_per_prompt, "sampling.seeds_per_prompt"),
        (sampling.branches_per_seed, "sampling.branches_per_seed"),
        (sampling.seeds_per_task, "sampling.seeds_per_task"),
        (sampling.max_rows, "sampling.max_rows"),
    ] {
        checks.count(value, key);
    }
    check_images(sampling, checks);
    checks.require((0..=MOST_PIXELS).contains(&sampling.vae_tile), "sampling.vae_tile", || {
        format!(
            "is {}; give the side of a tile in pixels, at most {MOST_PIXELS}, or 0 to decode images whole",
            sampling.vae_tile
        )
    });
    checks.require(sampling.height.max(sampling.width) <= MOST_PIXELS, "sampling.height", || {
        format!("and width are {} and {}; at most {MOST_PIXELS}", sampling.height, sampling.width)
    });
    checks.require(sampling.seeds_per_task <= sampling.seeds_per_prompt, "sampling.seeds_per_task", || {
        format!("is {}, more than seeds_per_prompt = {}", sampling.seeds_per_task, sampling.seeds_per_prompt)
    });
    checks.require(
        sampling.algorithm != Algorithm::FlowGrpo || sampling.branches_per_seed == 1,
        "sampling.branches_per_seed",
        || format!("is {}; Flow-GRPO does not branch, set it to 1", sampling.branches_per_seed),
    );
}

fn check_reals(config: &RunConfig, checks: &mut Checks) {
    for (value, key) in [
        (config.sampling.guidance_scale, "sampling.guidance_scale"),
        (config.sampling.noise_level, "sampling.noise_level"),
        (config.evaluation.guidance_scale, "evaluation.guidance_scale"),
        (config.adapter.alpha, "adapter.alpha"),
    ] {
        checks.held_by_tensors(value, key);
    }
    if let StepWeight::Constant(factor) = config.training.step_weight {
        checks.held_by_tensors(factor, "training.step_weight");
    }
}

/// All images of an iteration are tasks of one table, and their rewards are compared in memory.
fn check_images(sampling: &SamplingSection, checks: &mut Checks) {
    let counts = [sampling.prompts_per_iteration, sampling.seeds_per_prompt, sampling.branches_per_seed];
    // Too large ones are reported one by one.
    if counts.iter().any(|&count| count > MOST) {
        return;
    }
    let n_images: usize = counts.iter().product();
    checks.require(n_images <= MOST, "sampling.prompts_per_iteration", || {
        format!(
            "is {}, which with seeds_per_prompt = {} and branches_per_seed = {} makes {n_images} images of a step in one \
             iteration; at most {MOST} can be held and compared, so lower one of the three",
            counts[0], counts[1], counts[2]
        )
    });
}

fn check_steps(steps: usize, key: &str, checks: &mut Checks) {
    checks.require((2..=MOST_STEPS).contains(&steps), key, || {
        format!(
            "is {steps}; it must be 2, since the last step is never trained, to {MOST_STEPS}, since a model knows a \
             thousand noise levels"
        )
    });
}

fn check_branch_steps(config: &RunConfig, checks: &mut Checks) {
    let sampling = &config.sampling;
    // Too few steps are reported as such.
    if (2..=MOST_STEPS).contains(&sampling.steps)
        && let Err(error) = sampling.step_draw()
    {
        let problem = format!("is `{}`, with steps = {}: {}", error.branch_steps, error.steps, error.problem);
        checks.0.push(ConfigProblem::new("sampling.branch_steps", problem));
    }
}

fn check_training(config: &RunConfig, checks: &mut Checks) {
    let training = &config.training;
    checks.positive(training.learning_rate, "training.learning_rate");
    checks.below_one(training.adam_beta1, "training.adam_beta1");
    checks.below_one(training.adam_beta2, "training.adam_beta2");
    checks.positive(training.adam_epsilon, "training.adam_epsilon");
    checks.not_negative(training.weight_decay, "training.weight_decay");
    checks.positive(training.max_grad_norm, "training.max_grad_norm");
    checks.positive(training.clip_range, "training.clip_range");
    for (side, key) in [
        (training.clip_range_lt, "training.clip_range_lt"),
        (training.clip_range_gt, "training.clip_range_gt"),
    ] {
        checks.require(side.is_finite() && side >= 0.0, key, || {
            format!(
                "is {side}; give a distance from 1 above 0, or 0 to clip as far as clip_range on this side"
            )
        });
    }
    checks.positive(training.advantage_clip, "training.advantage_clip");
    checks.not_negative(training.kl_beta, "training.kl_beta");
    checks.count(training.updates_per_iteration, "training.updates_per_iteration");
    checks.count(training.max_rows, "training.max_rows");
    check_shards(config, checks);
    let counts = [config.sampling.prompts_per_iteration, config.sampling.seeds_per_prompt];
    if config.sampling.seeds_per_task >= 1 && counts.iter().all(|&count| count <= MOST) {
        let n_tasks = config.n_train_tasks();
        checks.require(
            training.updates_per_iteration <= n_tasks.max(1),
            "training.updates_per_iteration",
            || {
                format!(
                    "is {}, but an iteration has only {n_tasks} tasks to split",
                    training.updates_per_iteration
                )
            },
        );
    }
    if let StepWeight::Constant(factor) = training.step_weight {
        checks.positive(factor, "training.step_weight");
    }
    check_groups(config, checks);
}

fn check_shards(config: &RunConfig, checks: &mut Checks) {
    let (shards, learners) = (config.training.gradient_shards, config.resources.learners);
    checks.require(shards.is_power_of_two() && shards <= MOST_SHARDS, "training.gradient_shards", || {
        format!("is {shards}; it must be a power of two, 1 to {MOST_SHARDS}")
    });
    checks.count(learners, "resources.learners");
    checks.require(learners <= shards || shards == 0 || learners == 0, "resources.learners", || {
        format!(
            "is {learners}, more than the {shards} shards of a gradient that they could share (training.gradient_shards); have \
             fewer learners, or in a new run more shards"
        )
    });
}

/// A group of one reward has no deviation, so nothing would ever be learned.
fn check_groups(config: &RunConfig, checks: &mut Checks) {
    let sampling = &config.sampling;
    let counts = [sampling.branches_per_seed, sampling.seeds_per_prompt, sampling.prompts_per_iteration];
    if counts.iter().any(|&count| count > MOST) {
        return;
    }
    let group = match config.training.advantage_group {
        crate::AdvantageGroup::Seed => sampling.branches_per_seed,
        // Batch groups take their mean from the prompt.
        crate::AdvantageGroup::Prompt | crate::AdvantageGroup::Batch => {
            sampling.branches_per_seed * sampling.seeds_per_prompt
        }
        crate::AdvantageGroup::None => {
            sampling.branches_per_seed * sampling.seeds_per_prompt * sampling.prompts_per_iteration
        }
    };
    checks.require(group != 1, "training.advantage_group", || {
        "compares each reward with itself alone; raise sampling.branches_per_seed (seed groups) or \
         sampling.seeds_per_prompt (prompt groups)"
            .to_owned()
    });
}

fn check_rest(config: &RunConfig, checks: &mut Checks) {
    checks.below_one(config.ema.decay, "ema.decay");
    checks.count(config.ema.interval as usize, "ema.interval");
    checks.require(!config.rewards.is_empty(), "rewards", || {
        "none is given; write `[[rewards]]` with a name, such as `name = \"shapes\"`".to_owned()
    });
    for (list, rewards) in reward_lists(config) {
        check_rewards(list, rewards, checks);
    }
    for (place, reward) in config.all_rewards() {
        check_scorer(&place, reward, &config.sampling, checks);
    }
    checks.0.extend(unavailable_rewards(config));
    check_evaluation(&config.evaluation, checks);
    check_hacking(config, checks);
    checks.count(config.checkpoints.every as usize, "checkpoints.every");
    checks.count(config.checkpoints.keep_last, "checkpoints.keep_last");
    let minutes = config.checkpoints.retry_minutes;
    checks.require((0.0..=LONGEST_RETRY).contains(&minutes), "checkpoints.retry_minutes", || {
        format!("is {minutes}; it must be 0 (give up at once) to {LONGEST_RETRY}, a week")
    });
    let (workers, most) = (config.resources.workers, config.resources.max_workers);
    checks.count(most, "resources.max_workers");
    checks.require(workers <= most || most > MOST, "resources.workers", || {
        format!("is {workers}, more than `resources.max_workers` = {most}; lower the one or raise the other")
    });
    let on_cpu = config.resources.device.is_cpu();
    let model = &config.model;
    for (dtype, key) in [(model.dtype, "model.dtype"), (model.decoder_dtype, "model.decoder_dtype")] {
        checks.require(!on_cpu || dtype == Dtype::Float32, key, || {
            "is bfloat16, which is only of use with resources.device = \"cuda\"; write `float32`".to_owned()
        });
    }
    let reason = "each is a thread of the system, and no machine has more cores";
    checks.count_to(MOST_THREADS, config.resources.worker_threads, "resources.worker_threads", reason);
    checks.count_to(MOST_THREADS, config.resources.learner_threads, "resources.learner_threads", reason);
}

fn check_evaluation(evaluation: &EvaluationSection, checks: &mut Checks) {
    checks.count(evaluation.every as usize, "evaluation.every");
    check_steps(evaluation.steps, "evaluation.steps", checks);
    checks.not_negative(evaluation.guidance_scale, "evaluation.guidance_scale");
    let reason = "a task has all of them in memory";
    let images = evaluation.images_per_prompt;
    checks.count_to(MOST_IMAGES_PER_PROMPT, images, "evaluation.images_per_prompt", reason);
    checks.count(evaluation.prompts_per_task, "evaluation.prompts_per_task");
    checks.require(evaluation.prompts <= MOST, "evaluation.prompts", || {
        format!("is {}; it must be 0 (all that there are) to {MOST}", evaluation.prompts)
    });
    checks.require(evaluation.grid <= MOST_TILES, "evaluation.grid", || {
        format!("is {}; it must be 0 to {MOST_TILES}, since a grid is drawn in memory", evaluation.grid)
    });
}

/// To stop at reward hacking there must be something that tells it.
fn check_hacking(config: &RunConfig, checks: &mut Checks) {
    let patience = config.evaluation.hacking_patience;
    checks.require(patience as usize <= MOST, "evaluation.hacking_patience", || {
        format!("is {patience}; it must be 0 (off) to {MOST}")
    });
    if config.evaluation.on_reward_hacking == OnRewardHacking::Warn {
        return;
    }
    checks.require(patience > 0, "evaluation.hacking_patience", || {
        "is 0, so that on_reward_hacking = \"stop\" would never stop; give the number of evaluations in a row, or write \
         \"warn\""
            .to_owned()
    });
    checks.require(!config.held_out_rewards().is_empty(), "evaluation.on_reward_hacking", || {
        "is `stop`, but evaluations are scored by nothing that is not trained, so that hacking cannot be told; add an \
         `[[evaluation_rewards]]` that is not among the `[[rewards]]`, or write \"warn\""
            .to_owned()
    });
}

pub(crate) fn reward_lists(config: &RunConfig) -> impl Iterator<Item = (&'static str, &[RewardSection])> {
    REWARD_LISTS.into_iter().zip([config.rewards.as_slice(), config.evaluation_rewards.as_slice()])
}

#[cfg(test)]
mod tests;
