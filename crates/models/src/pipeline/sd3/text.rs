//! The text side of Stable Diffusion 3: two CLIP encoders side by side, then T5's tokens after theirs.
//!
//! Source: diffusers 0.38, `pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py`.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::clip_text::{ClipHead, ClipTextModel};
use crate::pipeline::conditioning::encode_each;
use crate::pipeline::family::EncodesPrompts;
use crate::pipeline::model_index::ModelIndex;
use crate::pipeline::text_encoders::{Component, TextEncoder, check_t5_length};
use crate::pipeline::{Conditioning, PromptTokens};
use crate::t5::T5Encoder;
use crate::weights::WeightOptions;

/// The encoders of one folder.
pub(in crate::pipeline) struct TextEncoders {
    clips: [TextEncoder<ClipTextModel>; 2],
    /// Without it, diffusers hands zeros to the transformer in its place.
    t5: Option<TextEncoder<T5Encoder>>,
    /// Tokens that both CLIP encoders get.
    clip_length: usize,
    /// Features of a token, as the transformer takes them.
    joint_width: i64,
    kind: Kind,
    device: Device,
}

impl TextEncoders {
    /// Opens the encoders that `model_index.json` names.
    pub fn open(dir: &Path, joint_width: i64, weights: &WeightOptions) -> Result<Self, ModelError> {
        let index = ModelIndex::open(dir)?;
        let clip = |component| TextEncoder::open_clip(dir, &index, component, ClipHead::Projection, weights);
        let clips = [clip(Component::FIRST)?, clip(Component::SECOND)?];
        let t5 = index.has(Component::THIRD.encoder);
        let t5 = t5.then(|| TextEncoder::open_t5(dir, &index, Component::THIRD, weights)).transpose()?;
        // The pipeline asks the first tokenizer for the length of both.
        let clip_length = clips[0].length();
        let WeightOptions { kind, device, .. } = *weights;
        let encoders = Self { clips, t5, clip_length, joint_width, kind, device };
        encoders.check(dir)?;
        Ok(encoders)
    }

    /// Tokens that both CLIP encoders get.
    pub fn clip_length(&self) -> usize {
        self.clip_length
    }

    /// Features of the pooled text.
    pub fn pooled_width(&self) -> i64 {
        self.clips.iter().map(|clip| clip.encoder.pooled_width()).sum()
    }

    fn check(&self, dir: &Path) -> Result<(), ModelError> {
        for (clip, component) in self.clips.iter().zip([Component::FIRST, Component::SECOND]) {
            clip.check_length(dir, component, self.clip_length)?;
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
        self.t5.as_ref().map_or(Ok(()), |t5| t5.check_width(dir, Component::THIRD, self.joint_width))
    }

    fn encode_one(&self, prompt: &str, max_sequence_length: usize) -> Result<Conditioning, ModelError> {
        let [first, second] = &self.clips;
        let first = first.encode(prompt, self.clip_length)?;
        let second = second.encode(prompt, self.clip_length)?;
        let clip = Tensor::cat(&[&first.penultimate, &second.penultimate], -1);
        let clip_width = clip.size()[2];
        let clip = clip.constant_pad_nd([0, self.joint_width - clip_width]); // [1, L, C₁ + C₂] → [1, L, C]
        let t5 = self.encode_t5(prompt, max_sequence_length)?.to_kind(clip.kind());
        Ok(Conditioning {
            text: Tensor::cat(&[clip, t5], 1),
            pooled: Some(Tensor::cat(&[first.pooled, second.pooled], -1)),
            text_mask: None,
        })
    }

    fn encode_t5(&self, prompt: &str, max_sequence_length: usize) -> Result<Tensor, ModelError> {
        check_t5_length(max_sequence_length)?;
        match &self.t5 {
            Some(t5) if max_sequence_length > 0 => t5.encode(prompt, max_sequence_length),
            _ => {
                let size = [1, max_sequence_length as i64, self.joint_width];
                Ok(Tensor::zeros(size, (self.kind, self.device)))
            }
        }
    }
}

impl EncodesPrompts for TextEncoders {
    /// Encodes each distinct prompt once and alone.
    fn encode(&self, prompts: &[String], max_sequence_length: usize) -> Result<Conditioning, ModelError> {
        encode_each(prompts, |prompt| self.encode_one(prompt, max_sequence_length))
    }

    /// What each encoder gets of `prompt`.
    fn token_ids(&self, prompt: &str, max_sequence_length: usize) -> Result<Vec<PromptTokens>, ModelError> {
        check_t5_length(max_sequence_length)?;
        let clips = self.clips.iter().map(|clip| clip.tokens(prompt, self.clip_length));
        let t5 = self.t5.iter().filter(|_| max_sequence_length > 0);
        clips.chain(t5.map(|t5| t5.tokens(prompt, max_sequence_length))).collect()
    }
}
