//! What distinguishes one published run from another, and how that is said in our words.

use super::base_model::BaseModel;
use crate::commented::commented_toml;
use crate::{
    AdvantageGroup, Algorithm, ComputeDevice, Dtype, KlDenominator, RatioNormalization, RewardSection,
    RunConfig, StepRule, default_step_weight, parse,
};
use std::path::PathBuf;

/// A published run in the terms of its source, with the counts of its launch.
#[derive(Debug)]
pub(super) struct Recipe {
    pub name: &'static str,
    /// Repository, file and function.
    pub source: &'static str,
    /// What a user should know about the translation; may be empty.
    pub remark: &'static str,
    pub model: &'static BaseModel,
    /// Rank of the adapter; alpha is twice that.
    pub rank: i64,
    pub algorithm: Algorithm,
    pub launch: Launch,
    pub branches: usize,
    pub pixels: i64,
    pub steps: usize,
    pub guidance: f64,
    pub step_rule: StepRule,
    pub noise_level: f64,
    pub branch_steps: &'static str,
    pub group: AdvantageGroup,
    pub learning_rate: f64,
    pub ratio_normalization: RatioNormalization,
    pub clip_range: f64,
    pub kl_beta: f64,
    pub kl_denominator: KlDenominator,
    pub has_ema: bool,
    /// Epochs; `None` where the source has it run until it is stopped.
    pub iterations: Option<u32>,
    pub evaluation_steps: usize,
    pub evaluation_every: u32,
    pub evaluation_batch: usize,
    pub reward: &'static str,
    /// Folder of prompts in the source.
    pub prompts: &'static str,
    /// Ours alone: what fits an 80 GB card.
    pub max_sampling_rows: usize,
    pub max_training_rows: usize,
}

/// How the source spreads an epoch over its GPUs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    pub gpus: usize,
    /// Initial noises per GPU and batch.
    pub samples: usize,
    /// Initial noises per prompt.
    pub repeats: usize,
    /// Batches per epoch.
    pub batches: usize,
}

impl Launch {
    /// Prompts per epoch; every published launch divides evenly.
    fn prompts(self) -> usize {
        self.gpus * self.samples * self.batches / self.repeats
    }
}

/// Keys that make up the published run, written also where they equal our defaults.
const ALWAYS_STATED: [&str; 20] = [
    "run.seed",
    "run.iterations",
    "adapter.rank",
    "adapter.alpha",
    "sampling.algorithm",
    "sampling.steps",
    "sampling.height",
    "sampling.width",
    "sampling.step_rule",
    "sampling.noise_level",
    "sampling.branch_steps",
    "sampling.seeds_per_prompt",
    "sampling.branches_per_seed",
    "training.learning_rate",
    "training.updates_per_iteration",
    "training.ratio_normalization",
    "training.clip_range",
    "evaluation.every",
    "evaluation.steps",
    "evaluation.guidance_scale",
];

impl Recipe {
    /// The run in our words.
    pub fn config(&self) -> RunConfig {
        let (defaults, _) = parse::read("", &[]);
        let mut config = defaults.expect("the built-in defaults are a config; else this is a bug");
        self.name.clone_into(&mut config.run.name);
        config.run.iterations = self.iterations.unwrap_or(config.run.iterations);
        config.model.path = self.model.repository.into();
        config.model.dtype = Dtype::Bfloat16;
        config.model.max_sequence_length = self.model.max_sequence_length;
        config.adapter.rank = self.rank;
        config.adapter.alpha = 2.0 * self.rank as f64;
        config.adapter.targets = self.model.targets();
        config.data.train = PathBuf::from("dataset").join(self.prompts);
        config.data.test = config.data.train.clone();
        self.fill_sampling(&mut config);
        self.fill_training(&mut config);
        config.rewards = vec![RewardSection::new(self.reward)];
        config.evaluation.every = self.evaluation_every;
        config.evaluation.steps = self.evaluation_steps;
        config.evaluation.guidance_scale = self.guidance;
        config.evaluation.prompts_per_task = self.evaluation_batch;
        config.resources.device = ComputeDevice::Cuda;
        config
    }

    fn fill_sampling(&self, config: &mut RunConfig) {
        let sampling = &mut config.sampling;
        sampling.algorithm = self.algorithm;
        sampling.steps = self.steps;
        sampling.guidance_scale = self.guidance;
        (sampling.height, sampling.width) = (self.pixels, self.pixels);
        sampling.step_rule = self.step_rule;
        sampling.noise_level = self.noise_level;
        sampling.branch_steps =
            self.branch_steps.parse().expect("the table's notation is valid; else this is a bug");
        sampling.prompts_per_iteration = self.launch.prompts();
        sampling.seeds_per_prompt = self.launch.repeats;
        sampling.branches_per_seed = self.branches;
        sampling.seeds_per_task = match self.algorithm {
            Algorithm::TempflowGrpo => 1,
            Algorithm::FlowGrpo => self.launch.repeats.min(self.max_sampling_rows).min(8),
        };
        sampling.max_rows = self.max_sampling_rows;
    }

    fn fill_training(&self, config: &mut RunConfig) {
        let training = &mut config.training;
        training.learning_rate = self.learning_rate;
        training.updates_per_iteration = 2;
        training.advantage_group = self.group;
        training.step_weight = default_step_weight(self.algorithm, self.step_rule, self.ratio_normalization);
        training.ratio_normalization = self.ratio_normalization;
        training.clip_range = self.clip_range;
        training.kl_beta = self.kl_beta;
        training.kl_denominator = self.kl_denominator;
        training.max_rows = self.max_training_rows;
        training.gradient_checkpointing = self.model.gradient_checkpointing;
        (config.ema.decay, config.ema.interval) = if self.has_ema { (0.9, 8) } else { (0.0, 1) };
    }

    /// The commented file.
    pub fn text(&self) -> String {
        let config = self.config();
        commented_toml(&config, &with_supplies(&self.header(), &config), &self.comments())
    }

    fn header(&self) -> String {
        let remark = if self.remark.is_empty() { String::new() } else { format!("\n{}", self.remark) };
        format!("{}{remark}", self.source)
    }

    /// Why a key has its value, where that is more than copied.
    pub fn comments(&self) -> Vec<(&'static str, String)> {
        let launch = self.launch;
        let counts = format!(
            "The source: {} GPUs × {} {} × {} batches, every prompt {} times, in 2 updates. Here the counts hold \
             whatever the number of workers.",
            launch.gpus,
            launch.samples,
            if self.branches > 1 { "seed" } else { "samples" },
            launch.batches,
            launch.repeats,
        );
        let mut comments = vec![
            ("model.path", "Yours: a folder, or a repository in the Hugging Face cache.".to_owned()),
            (
                "model.dtype",
                "The frozen base; the adapter and all that is computed about a step stay in 32 bits."
                    .to_owned(),
            ),
            (
                "data.train",
                "Yours: a folder with train.txt or train_metadata.jsonl (and test likewise), or a file."
                    .to_owned(),
            ),
            ("sampling.guidance_scale", self.model.guidance.to_owned()),
            ("sampling.prompts_per_iteration", counts),
            (
                "sampling.max_rows",
                "Ours: latents in one network call. Lower it where memory runs out.".to_owned(),
            ),
            ("training.kl_beta", self.kl_comment().to_owned()),
            ("training.advantage_group", self.group_comment().to_owned()),
            ("training.step_weight", self.weight_comment().to_owned()),
            ("training.clip_range_lt", "Below 1 and above 1; 0 clips as far as clip_range.".to_owned()),
            ("training.clip_range_gt", String::new()),
            (
                "training.max_rows",
                "Ours: latents in one training forward. Lower it where memory runs out.".to_owned(),
            ),
            ("ema.decay", self.ema_comment().to_owned()),
            ("run.max_hours", "Hours after which it stops, to be resumed; 0 for no limit.".to_owned()),
            ("resources.workers", "GPUs that sample, besides the learner's.".to_owned()),
            (
                "resources.max_workers",
                "Most that `--workers` and `coordinator scale` may ask for.".to_owned(),
            ),
        ];
        if self.iterations.is_none() {
            comments.push(("run.iterations", "The source runs until it is stopped.".to_owned()));
        }
        if self.branch_steps == "all" && self.algorithm == Algorithm::FlowGrpo {
            comments.push((
                "sampling.branch_steps",
                "The source is stochastic at the last step too, but never trains it; here that step has no noise."
                    .to_owned(),
            ));
        }
        if self.branch_steps.starts_with("window:") {
            comments.push((
                "sampling.branch_steps",
                "The source draws a window for every batch, so that an epoch trains several; here it is one for all tasks \
                 of an iteration."
                    .to_owned(),
            ));
        }
        comments.extend(ALWAYS_STATED.map(|key| (key, String::new())));
        comments
    }

    fn kl_comment(&self) -> &'static str {
        match self.kl_denominator {
            _ if self.kl_beta == 0.0 => "No KL term, as in the source.",
            KlDenominator::Std => {
                "For a KL divided by twice the squared deviation of the step (kl_denominator = \"std\")."
            }
            KlDenominator::Eta => {
                "For a KL divided by twice the squared diffusion coefficient, as Flow-GRPO does since July 2025."
            }
        }
    }

    fn group_comment(&self) -> &'static str {
        match self.group {
            AdvantageGroup::Seed => "The branches of one seed are compared with each other.",
            AdvantageGroup::Prompt => "The source's global_std = False.",
            AdvantageGroup::Batch | AdvantageGroup::None => {
                "The source's global_std = True: mean of the prompt, deviation of the whole iteration."
            }
        }
    }

    fn weight_comment(&self) -> &'static str {
        match (self.algorithm, self.ratio_normalization) {
            (_, RatioNormalization::Guard) => {
                "One over the length of the step, by which GRPO-Guard divides the loss."
            }
            (Algorithm::TempflowGrpo, RatioNormalization::None) => {
                "The deviation of the step over its mean; the source's constant is the mean's inverse, rounded."
            }
            (Algorithm::FlowGrpo, RatioNormalization::None) => "Every step weighs the same.",
        }
    }

    fn ema_comment(&self) -> &'static str {
        match self.has_ema {
            true => "The source's.",
            false => "No averaging in the source: with 0 and 1 the average is the live adapter.",
        }
    }
}

/// What stands above a file: what it is, and what its user supplies.
pub(super) fn with_supplies(header: &str, config: &RunConfig) -> String {
    format!(
        "{header}\n\nYou supply:\n  model.path   {}: a folder in the diffusers layout, or this name where it is in the \
         Hugging Face cache\n  data         {}: a folder with the prompts of training and test, or two files\n\nKeys that \
         are left out have their defaults. `coordinator plan` shows what the run costs.",
        config.model.path.display(),
        config.data.train.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::preset;
    use super::super::published::PUBLISHED;
    use super::*;
    use crate::StepWeight;

    /// What the sources say, written down a second time: prompts per epoch, group size, KL weight, noise level, and
    /// whether the deviation is that of the whole epoch.
    const PUBLISHED_NUMBERS: [(&str, usize, usize, f64, f64, bool); 24] = [
        ("dgx-compressibility", 48, 24, 0.0, 0.7, false),
        ("dgx-general-ocr-sd3", 48, 24, 0.004, 0.7, true),
        ("dgx-geneval-sd3", 48, 24, 0.004, 0.7, false),
        ("dgx-geneval-sd3-pr", 48, 24, 0.004, 0.7, false),
        ("dgx-pickscore-sd3", 48, 24, 0.001, 0.7, false),
        ("dgx-pickscore-sd3-pr", 48, 24, 0.001, 0.7, false),
        ("dgx-flux", 48, 24, 0.004, 0.9, false),
        ("dgx-flux-pr", 48, 24, 0.004, 0.9, false),
        ("dgx-pickscore-qwenimage", 48, 24, 0.0, 1.2, false),
        ("dgx-pickscore-qwenimage-pr", 48, 24, 0.0, 1.2, false),
        ("grpo-general-ocr-sd3", 48, 24, 0.04, 0.7, true),
        ("grpo-geneval-sd3", 48, 24, 0.04, 0.7, true),
        ("grpo-pickscore-sd3", 48, 24, 0.01, 0.7, true),
        ("grpo-geneval-sd3-fast-nocfg", 48, 24, 0.0, 0.8, true),
        ("grpo-pickscore-sd3-fast-nocfg", 64, 18, 0.0, 0.8, true),
        ("grpo-general-ocr-sd3-4gpu", 16, 16, 0.04, 0.7, true),
        ("grpo-pickscore-sd3-4gpu", 16, 16, 0.01, 0.7, true),
        ("grpo-general-ocr-sd3-1gpu", 8, 8, 0.04, 0.7, true),
        ("grpo-pickscore-flux", 48, 24, 0.0, 0.9, true),
        ("grpo-geneval-flux-fast", 48, 24, 0.0, 0.8, true),
        ("grpo-pickscore-flux-fast", 48, 24, 0.0, 0.8, false),
        ("grpo-pickscore-qwenimage", 32, 16, 0.0, 1.2, true),
        ("grpo-guard-general-ocr-sd3", 48, 24, 0.0, 0.7, false),
        ("grpo-guard-geneval-sd3", 48, 24, 0.0, 0.7, false),
    ];

    #[test]
    fn counts_and_settings_are_the_published_ones() {
        assert_eq!(PUBLISHED.len(), PUBLISHED_NUMBERS.len());
        for (name, prompts, group, kl_beta, noise_level, is_global) in PUBLISHED_NUMBERS {
            let config = preset(name).expect(name).config;
            let sampling = &config.sampling;
            let training = &config.training;
            assert_eq!(sampling.prompts_per_iteration, prompts, "{name}");
            assert_eq!(sampling.seeds_per_prompt * sampling.branches_per_seed, group, "{name}");
            assert_eq!((training.kl_beta, sampling.noise_level), (kl_beta, noise_level), "{name}");
            assert_eq!(training.advantage_group == AdvantageGroup::Batch, is_global, "{name}");
            assert_eq!((training.updates_per_iteration, training.max_grad_norm), (2, 1.0), "{name}");
            let is_guarded = training.ratio_normalization == RatioNormalization::Guard;
            assert_eq!(is_guarded, name.contains("guard"), "{name}");
            let clip_range = match (is_guarded, sampling.step_rule) {
                (true, _) => 2e-6,
                (false, StepRule::Cps) => 1e-5,
                (false, StepRule::FlowSde) => 1e-4,
            };
            assert_eq!(training.clip_range, clip_range, "{name}");
            assert_eq!(training.learning_rate, if is_guarded { 1e-4 } else { 3e-4 }, "{name}");
            assert_eq!(config.evaluation.guidance_scale, sampling.guidance_scale, "{name}");
        }
    }

    #[test]
    fn flow_grpo_evaluates_as_often_as_its_source() {
        for recipe in PUBLISHED.iter().filter(|recipe| recipe.name.starts_with("grpo-")) {
            let every = if recipe.name.contains("sd3") { 60 } else { 30 };
            assert_eq!(recipe.config().evaluation.every, every, "{}", recipe.name);
        }
    }

    #[test]
    fn a_window_that_the_source_draws_more_often_says_so() {
        for recipe in &PUBLISHED {
            let is_told = recipe.text().contains("The source draws a window for every batch");
            assert_eq!(is_told, recipe.branch_steps.starts_with("window:"), "{}", recipe.name);
        }
    }

    #[test]
    fn launches_divide_evenly() {
        for recipe in &PUBLISHED {
            let launch = recipe.launch;
            assert_eq!(launch.gpus * launch.samples * launch.batches % launch.repeats, 0, "{}", recipe.name);
        }
    }

    #[test]
    fn tempflow_presets_branch_in_seed_groups_and_cost_what_is_published() {
        for recipe in PUBLISHED.iter().filter(|recipe| recipe.name.ends_with("-pr")) {
            let config = recipe.config();
            assert_eq!(config.sampling.algorithm, Algorithm::TempflowGrpo, "{}", recipe.name);
            assert_eq!(config.training.advantage_group, AdvantageGroup::Seed, "{}", recipe.name);
            assert_eq!(config.training.step_weight, StepWeight::Noise, "{}", recipe.name);
            let cost = config.iteration_cost();
            assert_eq!(cost.evaluations_per_seed, 279.0, "{}", recipe.name);
            assert_eq!(cost.sampling_evaluations, 48.0 * 1116.0, "{}", recipe.name);
            assert_eq!((cost.images, cost.updates), (10_368.0, 2), "{}", recipe.name);
        }
    }

    #[test]
    fn flow_grpo_presets_cost_one_evaluation_per_step_and_sample() {
        for recipe in PUBLISHED.iter().filter(|recipe| !recipe.name.ends_with("-pr")) {
            let config = recipe.config();
            let step_weight = match recipe.ratio_normalization {
                RatioNormalization::None => StepWeight::None,
                RatioNormalization::Guard => StepWeight::InverseLength,
            };
            assert_eq!(config.training.step_weight, step_weight, "{}", recipe.name);
            let n_images = config.sampling.prompts_per_iteration * config.sampling.seeds_per_prompt;
            let cost = config.iteration_cost();
            assert_eq!(cost.images, n_images as f64, "{}", recipe.name);
            assert_eq!(
                cost.sampling_evaluations,
                (n_images * config.sampling.steps) as f64,
                "{}",
                recipe.name
            );
        }
    }

    #[test]
    fn the_file_says_where_numbers_come_from_and_what_is_missing() {
        let text = preset("dgx-geneval-sd3-pr").expect("listed").text;
        for part in [
            "# TempFlow-GRPO config/dgx.py: geneval_sd3_pr",
            "# You supply:",
            "# The source: 48 GPUs × 1 seed × 4 batches, every prompt 4 times",
            "branches_per_seed = 6",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
