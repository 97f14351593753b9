//! Networks and their files: transformers, text encoders, autoencoders, tokenizers, LoRA, safetensors.

pub mod error;
pub mod layers;
pub mod safetensors_file;
pub mod weights;

pub use error::ModelError;
