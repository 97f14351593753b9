//! Text encoders with their tokenizers, as `model_index.json` names them.

use std::path::Path;

use tch::{Device, Tensor};

use super::model_index::ModelIndex;
use super::{PromptTokens, open_tokenizer};
use crate::ModelError;
use crate::clip_text::{ClipHead, ClipTextModel, ClipTextOutput};
use crate::t5::T5Encoder;
use crate::tokenizer::Tokenizer;
use crate::weights::WeightOptions;

/// Tokens that a CLIP encoder gets where its tokenizer does not say.
pub(super) const CLIP_LENGTH: usize = 77;

/// Most tokens of T5 that the published pipelines take.
const LONGEST_T5: usize = 512;

/// An encoder and its tokenizer.
pub(super) struct TextEncoder<E> {
    tokenizer: Tokenizer,
    tokenizer_name: &'static str,
    pub(super) encoder: E,
    device: Device,
}

/// Names of an encoder and of its tokenizer in `model_index.json`, which are those of their folders too.
#[derive(Clone, Copy)]
pub(super) struct Component {
    pub(super) encoder: &'static str,
    pub(super) tokenizer: &'static str,
}

impl Component {
    pub(super) const FIRST: Self = Self { encoder: "text_encoder", tokenizer: "tokenizer" };
    pub(super) const SECOND: Self = Self { encoder: "text_encoder_2", tokenizer: "tokenizer_2" };
    pub(super) const THIRD: Self = Self { encoder: "text_encoder_3", tokenizer: "tokenizer_3" };
}

impl<E> TextEncoder<E> {
    fn open(
        dir: &Path,
        index: &ModelIndex,
        component: Component,
        weights: &WeightOptions,
        (encoder, vocab_size): (E, i64),
    ) -> Result<Self, ModelError> {
        let Component { tokenizer: tokenizer_name, .. } = component;
        let tokenizer = open_tokenizer(dir, index, tokenizer_name, vocab_size, weights)?;
        Ok(Self { tokenizer, tokenizer_name, encoder, device: weights.device })
    }

    /// What the encoder gets of a prompt: `length` tokens.
    pub(super) fn tokens(&self, prompt: &str, length: usize) -> Result<PromptTokens, ModelError> {
        let tokens = self.tokenizer.encode(prompt, length)?;
        Ok(PromptTokens { tokenizer: self.tokenizer_name, tokens })
    }

    /// The same as a tensor `[1, length]`.
    fn ids(&self, prompt: &str, length: usize) -> Result<Tensor, ModelError> {
        let ids = self.tokens(prompt, length)?.tokens.ids;
        Ok(Tensor::from_slice(&ids).unsqueeze(0).to_device(self.device))
    }
}

impl TextEncoder<ClipTextModel> {
    pub(super) fn open_clip(
        dir: &Path,
        index: &ModelIndex,
        component: Component,
        head: ClipHead,
        weights: &WeightOptions,
    ) -> Result<Self, ModelError> {
        index.require(component.encoder, head.class_name())?;
        let encoder = ClipTextModel::open(&dir.join(component.encoder), head, weights)?;
        let vocab_size = encoder.config().vocab_size;
        Self::open(dir, index, component, weights, (encoder, vocab_size))
    }

    /// Tokens that the tokenizer asks for.
    pub(super) fn length(&self) -> usize {
        self.tokenizer.model_max_length().unwrap_or(CLIP_LENGTH)
    }

    /// Checks that the encoder takes so many tokens.
    pub(super) fn check_length(
        &self,
        dir: &Path,
        component: Component,
        length: usize,
    ) -> Result<(), ModelError> {
        let longest = self.encoder.config().max_position_embeddings;
        if length as i64 <= longest {
            return Ok(());
        }
        let path = dir.join(component.encoder).join("config.json");
        let reason = format!("{longest} is below the tokenizer's `model_max_length` {length}");
        Err(ModelError::config(&path, "max_position_embeddings", reason))
    }

    pub(super) fn encode(&self, prompt: &str, length: usize) -> Result<ClipTextOutput, ModelError> {
        Ok(self.encoder.forward(&self.ids(prompt, length)?))
    }
}

/// Checks the number of tokens that a pipeline takes from T5.
pub(super) fn check_t5_length(length: usize) -> Result<(), ModelError> {
    if length <= LONGEST_T5 {
        return Ok(());
    }
    let reason =
        format!("`max_sequence_length` {length} is more than T5's tokens may be; use at most {LONGEST_T5}");
    Err(ModelError::Input(reason))
}

impl TextEncoder<T5Encoder> {
    pub(super) fn open_t5(
        dir: &Path,
        index: &ModelIndex,
        component: Component,
        weights: &WeightOptions,
    ) -> Result<Self, ModelError> {
        index.require(component.encoder, "T5EncoderModel")?;
        let encoder = T5Encoder::open(&dir.join(component.encoder), weights)?;
        let vocab_size = encoder.config().vocab_size;
        Self::open(dir, index, component, weights, (encoder, vocab_size))
    }

    /// Checks that the transformer takes tokens of this width.
    pub(super) fn check_width(
        &self,
        dir: &Path,
        component: Component,
        expected: i64,
    ) -> Result<(), ModelError> {
        let width = self.encoder.config().d_model;
        if width == expected {
            return Ok(());
        }
        let path = dir.join(component.encoder).join("config.json");
        let reason = format!("{width} differs from the transformer's `joint_attention_dim` {expected}");
        Err(ModelError::config(&path, "d_model", reason))
    }

    /// # Shapes
    /// `[1, length, width]`.
    pub(super) fn encode(&self, prompt: &str, length: usize) -> Result<Tensor, ModelError> {
        Ok(self.encoder.forward(&self.ids(prompt, length)?))
    }
}
