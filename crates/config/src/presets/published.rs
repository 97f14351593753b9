//! The published runs: every image preset of TempFlow-GRPO's `config/dgx.py` for the three models, and those of
//! Flow-GRPO's `config/grpo.py` that this trainer can repeat.
//!
//! Of the latter these are left out: `clipscore_sd3` (one initial noise for all samples of a prompt), `pickscore_sd3_fast`
//! (samples that part after a common start), and those that edit images or train other models; of `config/grpo_guard.py` the
//! one that mixes two preference scores.
//!
//! Source: TempFlow-GRPO, `config/dgx.py` at 63e4def; Flow-GRPO, `config/grpo.py` and `config/grpo_guard.py` of October and
//! November 2025. No preset of theirs evaluates under another guidance than it trains with.

use super::base_model::{FLUX1_DEV, QWEN_IMAGE, SD35_MEDIUM};
use super::recipe::{Launch, Recipe};
use crate::{AdvantageGroup, Algorithm, KlDenominator, RatioNormalization, StepRule};

/// Flow-GRPO on SD3.5-M as TempFlow-GRPO's authors run it: on 48 GPUs, 48 prompts of 24 samples in two updates.
const DGX: Recipe = Recipe {
    name: "",
    source: "",
    remark: "",
    model: &SD35_MEDIUM,
    rank: 32,
    algorithm: Algorithm::FlowGrpo,
    launch: Launch { gpus: 48, samples: 6, repeats: 24, batches: 4 },
    branches: 1,
    pixels: 512,
    steps: 10,
    guidance: 4.5,
    step_rule: StepRule::FlowSde,
    noise_level: 0.7,
    branch_steps: "all",
    group: AdvantageGroup::Prompt,
    learning_rate: 3e-4,
    ratio_normalization: RatioNormalization::None,
    clip_range: 1e-4,
    kl_beta: 0.004,
    kl_denominator: KlDenominator::Std,
    has_ema: true,
    iterations: Some(3000),
    evaluation_steps: 40,
    evaluation_every: 20,
    evaluation_batch: 16,
    reward: "",
    prompts: "",
    max_sampling_rows: 64,
    max_training_rows: 4,
};

/// TempFlow-GRPO: 4 seeds per prompt, one per GPU and batch, with 6 branches at each of 9 steps.
const DGX_PR: Recipe = Recipe {
    algorithm: Algorithm::TempflowGrpo,
    launch: Launch { gpus: 48, samples: 1, repeats: 4, batches: 4 },
    branches: 6,
    group: AdvantageGroup::Seed,
    ..DGX
};

const DGX_FLUX: Recipe = Recipe {
    model: &FLUX1_DEV,
    pixels: 1024,
    guidance: 3.5,
    noise_level: 0.9,
    iterations: Some(250),
    evaluation_steps: 50,
    evaluation_batch: 6,
    reward: "hpsv3",
    prompts: "hpsv2",
    remark: "The hpsv3 entry of the reference's reward table is commented out; it has to be put back there to compare.",
    max_sampling_rows: 8,
    max_training_rows: 1,
    ..DGX
};

const DGX_QWEN: Recipe = Recipe {
    model: &QWEN_IMAGE,
    rank: 64,
    guidance: 4.0,
    noise_level: 1.2,
    kl_beta: 0.0,
    has_ema: false,
    iterations: Some(250),
    evaluation_steps: 50,
    evaluation_batch: 4,
    reward: "pickscore",
    prompts: "pickscore",
    max_sampling_rows: 16,
    max_training_rows: 1,
    ..DGX
};

/// Flow-GRPO on SD3.5-M as its authors run it, on 32 GPUs.
const GRPO: Recipe = Recipe {
    launch: Launch { gpus: 32, samples: 9, repeats: 24, batches: 4 },
    group: AdvantageGroup::Batch,
    kl_denominator: KlDenominator::Eta,
    iterations: None,
    evaluation_every: 60,
    ..DGX
};

/// GRPO-Guard on SD3.5-M as its authors run it, on 16 GPUs.
const GRPO_GUARD: Recipe = Recipe {
    launch: Launch { gpus: 16, samples: 9, repeats: 24, batches: 8 },
    group: AdvantageGroup::Prompt,
    learning_rate: 1e-4,
    ratio_normalization: RatioNormalization::Guard,
    clip_range: 2e-6,
    kl_beta: 0.0,
    ..GRPO
};

/// Flow-GRPO-Fast without guidance: three stochastic steps among the first five.
const GRPO_FAST_NOCFG: Recipe = Recipe {
    guidance: 1.0,
    step_rule: StepRule::Cps,
    noise_level: 0.8,
    branch_steps: "window:3@0..5",
    clip_range: 1e-5,
    kl_beta: 0.0,
    ..GRPO
};

const GRPO_4GPU: Recipe = Recipe { launch: Launch { gpus: 4, samples: 8, repeats: 16, batches: 8 }, ..GRPO };

const GRPO_FLUX: Recipe = Recipe {
    model: &FLUX1_DEV,
    rank: 64,
    launch: Launch { gpus: 32, samples: 3, repeats: 24, batches: 12 },
    steps: 6,
    guidance: 3.5,
    noise_level: 0.9,
    kl_beta: 0.0,
    evaluation_steps: 28,
    evaluation_every: 30,
    evaluation_batch: 6,
    reward: "pickscore",
    prompts: "pickscore",
    max_sampling_rows: 24,
    max_training_rows: 2,
    ..GRPO
};

const GRPO_FLUX_FAST: Recipe = Recipe {
    step_rule: StepRule::Cps,
    noise_level: 0.8,
    branch_steps: "window:3@0..3",
    clip_range: 1e-5,
    ..GRPO_FLUX
};

/// All of them, in the order of their files.
pub(super) static PUBLISHED: [Recipe; 24] = [
    Recipe {
        name: "dgx-compressibility",
        source: "TempFlow-GRPO config/dgx.py: compressibility (base of all)",
        remark: "The source leaves model, resolution, steps, guidance and group size to its other presets; those of \
                 pickscore_sd3 are taken.",
        kl_beta: 0.0,
        has_ema: false,
        iterations: Some(100),
        evaluation_every: 100,
        reward: "jpeg_compressibility",
        prompts: "pickscore",
        ..DGX
    },
    Recipe {
        name: "dgx-general-ocr-sd3",
        source: "TempFlow-GRPO config/dgx.py: general_ocr_sd3",
        remark: "The numbers are those that the source notes for 8 GPUs (24 samples per prompt), which make 48 prompts.",
        launch: Launch { gpus: 8, samples: 12, repeats: 24, batches: 12 },
        group: AdvantageGroup::Batch,
        iterations: Some(100_000),
        evaluation_every: 60,
        reward: "ocr",
        prompts: "ocr",
        ..DGX
    },
    Recipe {
        name: "dgx-geneval-sd3",
        source: "TempFlow-GRPO config/dgx.py: geneval_sd3",
        reward: "geneval",
        prompts: "geneval",
        ..DGX
    },
    Recipe {
        name: "dgx-geneval-sd3-pr",
        source: "TempFlow-GRPO config/dgx.py: geneval_sd3_pr",
        reward: "geneval",
        prompts: "geneval",
        ..DGX_PR
    },
    Recipe {
        name: "dgx-pickscore-sd3",
        source: "TempFlow-GRPO config/dgx.py: pickscore_sd3",
        kl_beta: 0.001,
        iterations: Some(1000),
        reward: "pickscore",
        prompts: "pickscore",
        ..DGX
    },
    Recipe {
        name: "dgx-pickscore-sd3-pr",
        source: "TempFlow-GRPO config/dgx.py: pickscore_sd3_pr",
        kl_beta: 0.001,
        iterations: Some(1000),
        reward: "pickscore",
        prompts: "pickscore",
        ..DGX_PR
    },
    Recipe { name: "dgx-flux", source: "TempFlow-GRPO config/dgx.py: flux", ..DGX_FLUX },
    Recipe {
        name: "dgx-flux-pr",
        source: "TempFlow-GRPO config/dgx.py: flux_pr",
        algorithm: DGX_PR.algorithm,
        launch: DGX_PR.launch,
        branches: DGX_PR.branches,
        group: DGX_PR.group,
        ..DGX_FLUX
    },
    Recipe {
        name: "dgx-pickscore-qwenimage",
        source: "TempFlow-GRPO config/dgx.py: pickscore_qwenimage",
        ..DGX_QWEN
    },
    Recipe {
        name: "dgx-pickscore-qwenimage-pr",
        source: "TempFlow-GRPO config/dgx.py: pickscore_qwenimage_pr",
        algorithm: DGX_PR.algorithm,
        launch: DGX_PR.launch,
        branches: DGX_PR.branches,
        group: DGX_PR.group,
        ..DGX_QWEN
    },
    Recipe {
        name: "grpo-general-ocr-sd3",
        source: "Flow-GRPO config/grpo.py: general_ocr_sd3",
        kl_beta: 0.04,
        reward: "ocr",
        prompts: "ocr",
        ..GRPO
    },
    Recipe {
        name: "grpo-geneval-sd3",
        source: "Flow-GRPO config/grpo.py: geneval_sd3",
        kl_beta: 0.04,
        reward: "geneval",
        prompts: "geneval",
        ..GRPO
    },
    Recipe {
        name: "grpo-pickscore-sd3",
        source: "Flow-GRPO config/grpo.py: pickscore_sd3",
        kl_beta: 0.01,
        reward: "pickscore",
        prompts: "pickscore",
        ..GRPO
    },
    Recipe {
        name: "grpo-geneval-sd3-fast-nocfg",
        source: "Flow-GRPO config/grpo.py: geneval_sd3_fast_nocfg",
        reward: "geneval",
        prompts: "geneval",
        ..GRPO_FAST_NOCFG
    },
    Recipe {
        name: "grpo-pickscore-sd3-fast-nocfg",
        source: "Flow-GRPO config/grpo.py: pickscore_sd3_fast_nocfg",
        launch: Launch { gpus: 32, samples: 9, repeats: 18, batches: 4 },
        reward: "pickscore",
        prompts: "pickscore",
        ..GRPO_FAST_NOCFG
    },
    Recipe {
        name: "grpo-general-ocr-sd3-4gpu",
        source: "Flow-GRPO config/grpo.py: general_ocr_sd3_4gpu",
        kl_beta: 0.04,
        reward: "ocr",
        prompts: "ocr",
        ..GRPO_4GPU
    },
    Recipe {
        name: "grpo-pickscore-sd3-4gpu",
        source: "Flow-GRPO config/grpo.py: pickscore_sd3_4gpu",
        kl_beta: 0.01,
        reward: "pickscore",
        prompts: "pickscore",
        ..GRPO_4GPU
    },
    Recipe {
        name: "grpo-general-ocr-sd3-1gpu",
        source: "Flow-GRPO config/grpo.py: general_ocr_sd3_1gpu",
        launch: Launch { gpus: 1, samples: 8, repeats: 8, batches: 8 },
        kl_beta: 0.04,
        reward: "ocr",
        prompts: "ocr",
        ..GRPO
    },
    Recipe {
        name: "grpo-pickscore-flux",
        source: "Flow-GRPO config/grpo.py: pickscore_flux, pickscore_flux_8gpu",
        ..GRPO_FLUX
    },
    Recipe {
        name: "grpo-geneval-flux-fast",
        source: "Flow-GRPO config/grpo.py: geneval_flux_fast",
        reward: "geneval",
        prompts: "geneval",
        ..GRPO_FLUX_FAST
    },
    Recipe {
        name: "grpo-pickscore-flux-fast",
        source: "Flow-GRPO config/grpo.py: pickscore_flux_fast",
        group: AdvantageGroup::Prompt,
        ..GRPO_FLUX_FAST
    },
    Recipe {
        name: "grpo-pickscore-qwenimage",
        source: "Flow-GRPO config/grpo.py: pickscore_qwenimage, pickscore_qwenimage_8gpu",
        launch: Launch { gpus: 32, samples: 4, repeats: 16, batches: 4 },
        group: AdvantageGroup::Batch,
        branch_steps: "window:2@0..5",
        kl_denominator: KlDenominator::Eta,
        iterations: None,
        evaluation_every: 30,
        ..DGX_QWEN
    },
    Recipe {
        name: "grpo-guard-general-ocr-sd3",
        source: "Flow-GRPO config/grpo_guard.py: general_ocr_sd3_rationorm",
        reward: "ocr",
        prompts: "ocr",
        ..GRPO_GUARD
    },
    Recipe {
        name: "grpo-guard-geneval-sd3",
        source: "Flow-GRPO config/grpo_guard.py: geneval_sd3_rationorm",
        reward: "geneval",
        prompts: "geneval",
        ..GRPO_GUARD
    },
];
