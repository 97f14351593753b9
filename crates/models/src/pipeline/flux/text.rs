//! The text side of FLUX.1: T5's tokens, and CLIP's features of the whole text.
//!
//! Source: diffusers 0.38, `pipelines/flux/pipeline_flux.py`.

use std::path::Path;

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
    clip: TextEncoder<ClipTextModel>,
    t5: TextEncoder<T5Encoder>,
}

impl TextEncoders {
    /// Opens the encoders that `model_index.json` names, for a transformer that takes features of these widths.
    pub fn open(
        dir: &Path,
        (width, pooled_width): (i64, i64),
        weights: &WeightOptions,
    ) -> Result<Self, ModelError> {
        let index = ModelIndex::open(dir)?;
        let clip = TextEncoder::open_clip(dir, &index, Component::FIRST, ClipHead::Bare, weights)?;
        let t5 = TextEncoder::open_t5(dir, &index, Component::SECOND, weights)?;
        clip.check_length(dir, Component::FIRST, clip.length())?;
        t5.check_width(dir, Component::SECOND, width)?;
        let (pooled, expected) = (clip.encoder.pooled_width(), pooled_width);
        if pooled != expected {
            let reason =
                format!("{pooled} differs from the transformer's `pooled_projection_dim` {expected}");
            return Err(ModelError::config(&dir.join("text_encoder/config.json"), "hidden_size", reason));
        }
        Ok(Self { clip, t5 })
    }
}

impl EncodesPrompts for TextEncoders {
    /// Encodes each distinct prompt once and alone.
    fn encode(&self, prompts: &[String], max_sequence_length: usize) -> Result<Conditioning, ModelError> {
        check_length(max_sequence_length)?;
        encode_each(prompts, |prompt| {
            Ok(Conditioning {
                text: self.t5.encode(prompt, max_sequence_length)?,
                pooled: Some(self.clip.encode(prompt, self.clip.length())?.pooled),
                text_mask: None,
            })
        })
    }

    /// What each encoder gets of `prompt`.
    fn token_ids(&self, prompt: &str, max_sequence_length: usize) -> Result<Vec<PromptTokens>, ModelError> {
        check_length(max_sequence_length)?;
        Ok(vec![self.clip.tokens(prompt, self.clip.length())?, self.t5.tokens(prompt, max_sequence_length)?])
    }
}

fn check_length(max_sequence_length: usize) -> Result<(), ModelError> {
    if max_sequence_length == 0 {
        let reason = "FLUX takes all tokens of a text from T5, so `max_sequence_length` must be at least 1";
        return Err(ModelError::Input(reason.to_owned()));
    }
    check_t5_length(max_sequence_length)
}
