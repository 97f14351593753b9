//! What `rollout-worker inspect` says of the published models under the settings of their published runs in bfloat16
//! (rollout-worker/tests/published_sizes.rs), for tests of what is reckoned from it.

use crate::{
    AdapterInspection, ComponentInspection, Dtype, ImageInspection, ModelInspection, StepInspection,
};

/// A component of so many numbers, of so many bytes each, and the numbers of its largest tensor.
pub(crate) fn component(name: &str, parameters: u64, bytes_each: u64, largest: u64) -> ComponentInspection {
    ComponentInspection {
        name: name.to_owned(),
        parameters,
        bytes: parameters * bytes_each,
        largest_tensor_bytes: largest * bytes_each,
    }
}

fn adapter(rank: i64, modules: usize, parameters: u64) -> Option<AdapterInspection> {
    Some(AdapterInspection { rank, modules, parameters, left_out: Vec::new() })
}

/// Stable Diffusion 3.5 medium at 512 pixels.
pub(crate) fn sd35_medium() -> ModelInspection {
    ModelInspection {
        folder: "sd35".into(),
        class: "StableDiffusion3Pipeline".to_owned(),
        dtype: Dtype::Bfloat16,
        components: vec![
            component("text_encoder", 123_650_304, 2, 37_945_344),
            component("text_encoder_2", 694_659_840, 2, 63_242_240),
            component("text_encoder_3", 4_762_310_656, 2, 131_596_288),
            component("transformer", 2_469_663_936, 2, 226_492_416),
            component("vae", 49_545_475, 4, 2_359_296),
        ],
        n_blocks: 24,
        width: 1536,
        decoder_width: 256,
        image: ImageInspection { height: 512, width: 512, latent_shape: vec![16, 64, 64], tokens: 1024 },
        text_tokens: 205,
        embedding_widths: (4096, 2048),
        rows_per_evaluation: 2,
        rows_per_held_out_evaluation: 2,
        adapter: adapter(32, 191, 18_776_064),
        steps: vec![
            StepInspection { step: 0, sigma: 1.0, weight: 1.576_56 },
            StepInspection { step: 8, sigma: 0.278_049, weight: 0.507_563 },
        ],
    }
}

/// FLUX.1-dev at 1024 pixels.
pub(crate) fn flux1_dev() -> ModelInspection {
    ModelInspection {
        folder: "flux".into(),
        class: "FluxPipeline".to_owned(),
        components: vec![
            component("text_encoder", 123_060_480, 2, 37_945_344),
            component("text_encoder_2", 4_762_310_656, 2, 131_596_288),
            component("transformer", 11_901_408_320, 2, 56_623_104),
            component("vae", 49_545_475, 4, 2_359_296),
        ],
        n_blocks: 57,
        width: 3072,
        image: ImageInspection { height: 1024, width: 1024, latent_shape: vec![16, 128, 128], tokens: 4096 },
        text_tokens: 128,
        embedding_widths: (4096, 768),
        rows_per_evaluation: 1,
        rows_per_held_out_evaluation: 1,
        adapter: adapter(32, 342, 89_653_248),
        steps: Vec::new(),
        ..sd35_medium()
    }
}

/// Qwen-Image at 512 pixels.
pub(crate) fn qwen_image() -> ModelInspection {
    ModelInspection {
        folder: "qwen".into(),
        class: "QwenImagePipeline".to_owned(),
        components: vec![
            component("text_encoder", 7_070_619_136, 2, 544_997_376),
            component("transformer", 20_430_401_088, 2, 56_623_104),
            component("vae", 71_524_595, 4, 3_981_312),
        ],
        n_blocks: 60,
        width: 3072,
        decoder_width: 192,
        text_tokens: 512,
        embedding_widths: (3584, 0),
        adapter: adapter(64, 720, 424_673_280),
        steps: Vec::new(),
        ..sd35_medium()
    }
}
