//! Networks and their files: transformers, text encoders, autoencoders, tokenizers, LoRA, safetensors.

mod adaptive_norm;
mod clip_encoder;
mod condition_embedding;
mod feed_forward;
mod file_slices;
mod joint_block;
mod query_key_norm;
mod rotary;
mod stand_in;
mod transformer_config;

pub mod adapter_file;
pub mod determinism;
pub mod error;
pub mod flux;
pub mod gradient_checkpointing;
pub mod layers;
pub mod lora;
pub mod network;
pub mod patches;
pub mod projection;
pub mod safetensors_file;
pub mod sd3;
mod sizes;
pub mod weights;

pub use error::ModelError;

pub mod aesthetic_predictor;
pub mod autoencoder_kl;
pub mod autoencoder_kl_qwen_image;
pub mod clip;
pub mod clip_text;
pub mod clip_vision;
pub mod json_file;
pub mod pipeline;
pub mod products;
pub mod qwen2_decoder;
pub mod qwen2_vision;
pub mod qwen2_vl;
pub mod qwen_image;
pub mod reference_case;
pub mod saved_weights;
pub mod t5;
pub mod tensor_bytes;
pub mod tiled_decoding;
pub mod tokenizer;
pub mod torch_file;

pub use gradient_checkpointing::{Activations, TrainingVelocity};
pub use network::Network;
pub use pipeline::{
    Conditioning, DecoderOptions, Guidance, LoadOptions, PromptTokens, TextToImageModel, to_rgb8,
};
pub use projection::AdapterMode;
