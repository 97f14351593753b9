//! The three models that the published runs train, as far as a config has to know them.

/// Linear layers of the joint attention, which all published adapters sit on.
const ATTENTION: [&str; 8] = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
];

/// A base model and what goes with it whatever is trained.
#[derive(Debug)]
pub(crate) struct BaseModel {
    /// Its repository on the Hugging Face hub.
    pub repository: &'static str,
    /// Tokens of the prompt's long encoder.
    pub max_sequence_length: usize,
    /// Linear layers that get an adapter besides those of the attention.
    pub further_targets: &'static [&'static str],
    /// Whether the published runs compute activations twice to save memory.
    pub gradient_checkpointing: bool,
    /// What `sampling.guidance_scale` does.
    pub guidance: &'static str,
}

impl BaseModel {
    /// Linear layers that get an adapter.
    pub fn targets(&self) -> Vec<String> {
        ATTENTION.iter().chain(self.further_targets).map(|&target| target.to_owned()).collect()
    }
}

/// Stable Diffusion 3.5 medium.
pub(crate) static SD35_MEDIUM: BaseModel = BaseModel {
    repository: "stabilityai/stable-diffusion-3.5-medium",
    max_sequence_length: 128,
    further_targets: &[],
    gradient_checkpointing: false,
    guidance: "Classifier-free guidance, in sampling and in training alike; 1 or less means none.",
};

/// FLUX.1-dev.
pub(crate) static FLUX1_DEV: BaseModel = BaseModel {
    repository: "black-forest-labs/FLUX.1-dev",
    max_sequence_length: 128,
    further_targets: &["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"],
    gradient_checkpointing: true,
    guidance: "Fed to the network, which was distilled with it: no second evaluation.",
};

/// Qwen-Image.
pub(crate) static QWEN_IMAGE: BaseModel = BaseModel {
    repository: "Qwen/Qwen-Image",
    max_sequence_length: 512,
    further_targets: &["img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"],
    gradient_checkpointing: true,
    guidance: "Classifier-free guidance against a prompt of one space, its norm held to the prompt's.",
};
