//! The text side of Stable Diffusion 3: two CLIP encoders side by side, then T5's tokens after theirs.
//!
//! Source: diffusers 0.38, `pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py`.

use std::path::Path;

use tch::Tensor;

use crate::ModelError;
use crate::clip_text::ClipTextModel;
use crate::pipeline::model_index::ModelIndex;
use crate::pipeline::{Conditioning, LoadOptions, PromptTokens, encode_each};
use crate::t5::T5Encoder;
use crate::tokenizer::Tokenizer;

struct Clip {
    tokenizer: Tokenizer,
    encoder: ClipTextModel,
}

struct T5 {
    tokenizer: Tokenizer,
    encoder: T5Encoder,
}

/// The encoders of one folder.
pub(super) struct TextEncoders {
    clips: [Clip; 2],
    /// Without it, diffusers hands zeros to the transformer in its place.
    t5: Option<T5>,
    /// Tokens that both CLIP encoders get.
    clip_length: usize,
    /// Features of a token, as the transformer takes them.
    joint_width: i64,
    options: LoadOptions,
}

impl TextEncoders {
    /// Opens the encoders that `model_index.json` names.
    pub fn open(
        dir: &Path,
        index: &ModelIndex,
        joint_width: i64,
        options: LoadOptions,
    ) -> Result<Self, ModelError> {
        let clips = [Clip::open(dir, index, "", options)?, Clip::open(dir, index, "_2", options)?];
        let t5 = index.has("text_encoder_3").then(|| T5::open(dir, index, options)).transpose()?;
        // The pipeline asks the first tokenizer for the length of both.
        let clip_length = clips[0].tokenizer.model_max_length().unwrap_or(77);
        let encoders = Self { clips, t5, clip_length, joint_width, options };
        encoders.check(dir)?;
        Ok(encoders)
    }

    /// Features of the pooled text.
    pub fn pooled_width(&self) -> i64 {
        self.clips.iter().map(|clip| clip.encoder.config().projection_dim).sum()
    }

    fn check(&self, dir: &Path) -> Result<(), ModelError> {
        for (clip, folder) in self.clips.iter().zip(["text_encoder", "text_encoder_2"]) {
            let longest = clip.encoder.config().max_position_embeddings;
            if self.clip_length as i64 > longest {
                let reason =
                    format!("{longest} is below the tokenizer's `model_max_length` {}", self.clip_length);
                return Err(ModelError::config(
                    &dir.join(folder).join("config.json"),
                    "max_position_embeddings",
                    reason,
                ));
            }
        }
        let clip_width: i64 = self.clips.iter().map(|clip| clip.encoder.config().hidden_size).sum();
        if clip_width > self.joint_width {
            let reason =
                format!("{} is below the {clip_width} features of both CLIP encoders", self.joint_width);
            return Err(ModelError::config(
                &dir.join("transformer/config.json"),
                "joint_attention_dim",
                reason,
            ));
        }
        let t5_width = self.t5.as_ref().map_or(self.joint_width, |t5| t5.encoder.config().d_model);
        if t5_width != self.joint_width {
            let reason = format!(
                "{t5_width} differs from the transformer's `joint_attention_dim` {}",
                self.joint_width
            );
            return Err(ModelError::config(&dir.join("text_encoder_3/config.json"), "d_model", reason));
        }
        Ok(())
    }

    /// Encodes each distinct prompt once and alone.
    pub fn encode(&self, prompts: &[String], max_sequence_length: usize) -> Result<Conditioning, ModelError> {
        encode_each(prompts, |prompt| self.encode_one(prompt, max_sequence_length))
    }

    /// What each encoder gets of `prompt`.
    pub fn token_ids(
        &self,
        prompt: &str,
        max_sequence_length: usize,
    ) -> Result<Vec<PromptTokens>, ModelError> {
        let mut all = Vec::new();
        for (clip, tokenizer) in self.clips.iter().zip(["tokenizer", "tokenizer_2"]) {
            all.push(PromptTokens { tokenizer, tokens: clip.tokenizer.encode(prompt, self.clip_length)? });
        }
        if let Some(t5) = self.t5.as_ref().filter(|_| max_sequence_length > 0) {
            let tokens = t5.tokenizer.encode(prompt, max_sequence_length)?;
            all.push(PromptTokens { tokenizer: "tokenizer_3", tokens });
        }
        Ok(all)
    }

    fn encode_one(&self, prompt: &str, max_sequence_length: usize) -> Result<Conditioning, ModelError> {
        let [first, second] = &self.clips;
        let first = first.encoder.forward(&self.ids(&first.tokenizer, prompt, self.clip_length)?);
        let second = second.encoder.forward(&self.ids(&second.tokenizer, prompt, self.clip_length)?);
        let clip = Tensor::cat(&[&first.penultimate, &second.penultimate], -1);
        let clip_width = clip.size()[2];
        let clip = clip.constant_pad_nd([0, self.joint_width - clip_width]); // [1, L, C₁ + C₂] → [1, L, C]
        let t5 = self.encode_t5(prompt, max_sequence_length)?.to_kind(clip.kind());
        Ok(Conditioning {
            text: Tensor::cat(&[clip, t5], 1),
            pooled: Some(Tensor::cat(&[first.text_embeds, second.text_embeds], -1)),
            text_mask: None,
        })
    }

    fn encode_t5(&self, prompt: &str, max_sequence_length: usize) -> Result<Tensor, ModelError> {
        match &self.t5 {
            Some(t5) if max_sequence_length > 0 => {
                Ok(t5.encoder.forward(&self.ids(&t5.tokenizer, prompt, max_sequence_length)?))
            }
            _ => {
                let size = [1, max_sequence_length as i64, self.joint_width];
                Ok(Tensor::zeros(size, (self.options.weights.kind, self.options.weights.device)))
            }
        }
    }

    fn ids(&self, tokenizer: &Tokenizer, prompt: &str, max_length: usize) -> Result<Tensor, ModelError> {
        let ids = tokenizer.encode(prompt, max_length)?.ids;
        Ok(Tensor::from_slice(&ids).unsqueeze(0).to_device(self.options.weights.device))
    }
}

impl Clip {
    fn open(dir: &Path, index: &ModelIndex, suffix: &str, options: LoadOptions) -> Result<Self, ModelError> {
        let (encoder, tokenizer) = (format!("text_encoder{suffix}"), format!("tokenizer{suffix}"));
        index.require(&encoder, "CLIPTextModelWithProjection")?;
        Ok(Self {
            tokenizer: open_tokenizer(dir, index, &tokenizer)?,
            encoder: ClipTextModel::open(&dir.join(encoder), options.weights)?,
        })
    }
}

impl T5 {
    fn open(dir: &Path, index: &ModelIndex, options: LoadOptions) -> Result<Self, ModelError> {
        index.require("text_encoder_3", "T5EncoderModel")?;
        Ok(Self {
            tokenizer: open_tokenizer(dir, index, "tokenizer_3")?,
            encoder: T5Encoder::open(&dir.join("text_encoder_3"), options.weights)?,
        })
    }
}

fn open_tokenizer(dir: &Path, index: &ModelIndex, component: &str) -> Result<Tokenizer, ModelError> {
    Tokenizer::open(&dir.join(component), index.class(component).unwrap_or_default())
}
