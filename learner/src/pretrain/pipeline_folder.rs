//! Writes everything of a small SD3 pipeline folder that pre-training does not change.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context;
use noise::{NoiseKey, Purpose, standard_normal};
use serde_json::{Value, json};
use tch::Tensor;

use super::identity_autoencoder;
use super::settings::PretrainSettings;
use super::word_tokenizer;

/// Version of the folder layout that the files claim.
const LAYOUT_VERSION: &str = "0.38.0";

/// Writes configs, tokenizers, text encoders, autoencoder and scheduler; returns the transformer's config.
///
/// # Errors
/// If a file cannot be written.
pub fn write(folder: &Path, settings: &PretrainSettings) -> anyhow::Result<Value> {
    let words = scenes::vocabulary();
    let max_length = longest_prompt() + 2;
    for (position, suffix) in ["", "_2"].into_iter().enumerate() {
        let n_tokens = word_tokenizer::write(&folder.join(format!("tokenizer{suffix}")), &words, max_length)?;
        let encoder = folder.join(format!("text_encoder{suffix}"));
        write_json(&encoder, "config.json", &text_config(settings, n_tokens, max_length))?;
        let tensors = text_tensors(settings, n_tokens, max_length, position as u32);
        models::weights::write(&encoder.join("model.safetensors"), &tensors, &metadata())?;
    }
    let autoencoder = folder.join("vae");
    write_json(&autoencoder, "config.json", &autoencoder_config(settings))?;
    let weights = autoencoder.join("diffusion_pytorch_model.safetensors");
    models::weights::write(&weights, &identity_autoencoder::tensors(), &metadata())?;
    write_json(&folder.join("scheduler"), "scheduler_config.json", &scheduler_config(settings))?;
    write_json(folder, "model_index.json", &model_index())?;
    let transformer = transformer_config(settings);
    write_json(&folder.join("transformer"), "config.json", &transformer)?;
    Ok(transformer)
}

/// The metadata that PyTorch's own files carry.
pub fn metadata() -> HashMap<String, String> {
    HashMap::from([("format".to_owned(), "pt".to_owned())])
}

fn write_json(folder: &Path, name: &str, value: &Value) -> anyhow::Result<()> {
    let path = folder.join(name);
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    std::fs::write(&path, serde_json::to_string_pretty(value)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}

fn longest_prompt() -> usize {
    scenes::all_prompts().iter().map(|spec| spec.prompt.split_whitespace().count()).max().unwrap_or(0)
}

fn text_config(settings: &PretrainSettings, n_tokens: usize, max_length: usize) -> Value {
    let text = &settings.text;
    json!({
        "architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model", "dtype": "float32",
        "vocab_size": n_tokens, "hidden_size": text.width, "intermediate_size": 4 * text.width,
        "num_hidden_layers": text.layers, "num_attention_heads": text.heads, "projection_dim": text.width,
        "max_position_embeddings": max_length, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "bos_token_id": n_tokens - 2, "eos_token_id": n_tokens - 1, "pad_token_id": n_tokens - 1,
        "attention_dropout": 0.0,
    })
}

/// Random weights whose hidden states tell words and places apart: tokens at unit scale, positions at half of it, and
/// matrices that keep the variance.
fn text_tensors(
    settings: &PretrainSettings,
    n_tokens: usize,
    max_length: usize,
    encoder: u32,
) -> Vec<(String, Tensor)> {
    let width = settings.text.width;
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    let mut ordinal = 0;
    let mut random = |shape: &[i64], deviation: f64| {
        let key = NoiseKey {
            iteration: encoder,
            prompt_slot: ordinal,
            ..NoiseKey::initial(settings.seed, Purpose::ModelInit, 0, 0, 0)
        };
        ordinal += 1;
        let n_elements = shape.iter().product::<i64>() as usize;
        Tensor::from_slice(&standard_normal(&key, n_elements)).view(shape) * deviation
    };
    let keeping = |inputs: i64| (inputs as f64).sqrt().recip();
    let embeddings = "text_model.embeddings";
    let tokens = random(&[n_tokens as i64, width], 1.0);
    let positions = random(&[max_length as i64, width], 0.5);
    tensors.push((format!("{embeddings}.token_embedding.weight"), tokens));
    tensors.push((format!("{embeddings}.position_embedding.weight"), positions));
    let zeros = |n: i64| Tensor::zeros([n], tch::kind::FLOAT_CPU);
    let ones = |n: i64| Tensor::ones([n], tch::kind::FLOAT_CPU);
    for layer in 0..settings.text.layers {
        let prefix = format!("text_model.encoder.layers.{layer}");
        let sizes = ["q_proj", "k_proj", "v_proj", "out_proj"]
            .map(|name| (format!("self_attn.{name}"), width, width));
        let inner = [("mlp.fc1".to_owned(), width, 4 * width), ("mlp.fc2".to_owned(), 4 * width, width)];
        for (name, inputs, outputs) in sizes.into_iter().chain(inner) {
            tensors.push((format!("{prefix}.{name}.weight"), random(&[outputs, inputs], keeping(inputs))));
            tensors.push((format!("{prefix}.{name}.bias"), zeros(outputs)));
        }
        for norm in ["layer_norm1", "layer_norm2"] {
            tensors.push((format!("{prefix}.{norm}.weight"), ones(width)));
            tensors.push((format!("{prefix}.{norm}.bias"), zeros(width)));
        }
    }
    tensors.push(("text_model.final_layer_norm.weight".to_owned(), ones(width)));
    tensors.push(("text_model.final_layer_norm.bias".to_owned(), zeros(width)));
    tensors.push(("text_projection.weight".to_owned(), random(&[width, width], keeping(width))));
    tensors
}

fn autoencoder_config(settings: &PretrainSettings) -> Value {
    let channels = identity_autoencoder::CHANNELS;
    json!({
        "_class_name": "AutoencoderKL", "_diffusers_version": LAYOUT_VERSION, "act_fn": "silu",
        "in_channels": identity_autoencoder::COLORS, "out_channels": identity_autoencoder::COLORS,
        "latent_channels": identity_autoencoder::COLORS, "block_out_channels": [channels],
        "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"], "layers_per_block": 1,
        "norm_num_groups": identity_autoencoder::COLORS, "sample_size": scenes::DEFAULT_IMAGE_SIZE,
        "mid_block_add_attention": false, "use_quant_conv": false, "use_post_quant_conv": false, "force_upcast": true,
        "scaling_factor": settings.latents.scale, "shift_factor": settings.latents.shift,
        "latents_mean": null, "latents_std": null,
    })
}

fn scheduler_config(settings: &PretrainSettings) -> Value {
    json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": LAYOUT_VERSION,
        "num_train_timesteps": 1000, "shift": settings.schedule.shift, "use_dynamic_shifting": false,
    })
}

fn model_index() -> Value {
    json!({
        "_class_name": "StableDiffusion3Pipeline", "_diffusers_version": LAYOUT_VERSION,
        "feature_extractor": [null, null], "image_encoder": [null, null],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "text_encoder_3": [null, null], "tokenizer_3": [null, null],
        "transformer": ["diffusers", "SD3Transformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
    })
}

fn transformer_config(settings: &PretrainSettings) -> Value {
    let transformer = &settings.transformer;
    let side = scenes::DEFAULT_IMAGE_SIZE as i64;
    json!({
        "_class_name": "SD3Transformer2DModel", "_diffusers_version": LAYOUT_VERSION,
        "sample_size": side, "patch_size": transformer.patch_size, "in_channels": identity_autoencoder::COLORS,
        "out_channels": identity_autoencoder::COLORS, "num_layers": transformer.layers,
        "attention_head_dim": transformer.head_width, "num_attention_heads": transformer.heads,
        "caption_projection_dim": settings.width(), "joint_attention_dim": 2 * settings.text.width,
        "pooled_projection_dim": 2 * settings.text.width, "pos_embed_max_size": side / transformer.patch_size,
        "dual_attention_layers": [], "qk_norm": "rms_norm",
    })
}
