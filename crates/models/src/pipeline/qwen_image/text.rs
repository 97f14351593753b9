//! The text side of Qwen-Image: a prompt inside a fixed request to a chat model, whose answer would begin after it.
//!
//! Source: diffusers 0.38, `pipelines/qwenimage/pipeline_qwenimage.py`.

use std::path::Path;

use tch::{Device, Tensor};

use crate::ModelError;
use crate::pipeline::conditioning::encode_each;
use crate::pipeline::family::EncodesPrompts;
use crate::pipeline::model_index::ModelIndex;
use crate::pipeline::{Conditioning, PromptTokens, open_tokenizer};
use crate::qwen2_decoder::Qwen2Decoder;
use crate::tokenizer::{TokenIds, Tokenizer};
use crate::weights::WeightOptions;

/// What stands before and after the prompt. The network was trained on these very words.
const BEFORE: &str = "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, \
                      text, spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n";
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n";
/// Tokens of [`BEFORE`] in the published vocabulary; as many are dropped whatever the vocabulary.
const DROPPED: usize = 34;
/// Most tokens that are left after that.
const LONGEST: usize = 1024;

/// The encoder of one folder.
pub(in crate::pipeline) struct PromptEncoder {
    tokenizer: Tokenizer,
    decoder: Qwen2Decoder,
    /// Tokens of [`AFTER`].
    after: usize,
    device: Device,
}

impl PromptEncoder {
    /// Opens the encoder that `model_index.json` names.
    pub fn open(dir: &Path, weights: &WeightOptions) -> Result<Self, ModelError> {
        let index = ModelIndex::open(dir)?;
        index.require("text_encoder", "Qwen2_5_VLForConditionalGeneration")?;
        let decoder = Qwen2Decoder::open(&dir.join("text_encoder"), weights)?;
        let tokenizer = open_tokenizer(dir, &index, "tokenizer", decoder.config().vocab_size, weights)?;
        let after = tokenizer.encode_unpadded(AFTER, LONGEST)?.ids.len();
        Ok(Self { tokenizer, decoder, after, device: weights.device })
    }

    /// Features of a token.
    pub fn width(&self) -> i64 {
        self.decoder.config().hidden_size
    }

    /// The reference cuts off features beyond `max_sequence_length` afterwards; since a token does not see those after
    /// it, cutting off the tokens is the same.
    fn tokens(&self, prompt: &str, max_sequence_length: usize) -> Result<TokenIds, ModelError> {
        if !(1..=LONGEST).contains(&max_sequence_length) {
            return Err(ModelError::Input(format!(
                "`max_sequence_length` {max_sequence_length} does not suit Qwen-Image; use 1 to {LONGEST}"
            )));
        }
        let request = format!("{BEFORE}{prompt}{AFTER}");
        let tokens = self.tokenizer.encode_unpadded(&request, DROPPED + max_sequence_length)?;
        match tokens.ids.len() {
            0..=DROPPED => Err(ModelError::Input(format!(
                "the tokenizer makes {} tokens of a prompt and the request around it, and {DROPPED} are dropped; it is not \
                 Qwen2's",
                tokens.ids.len()
            ))),
            _ => Ok(tokens),
        }
    }

    fn encode_one(&self, prompt: &str, max_sequence_length: usize) -> Result<Conditioning, ModelError> {
        let ids = self.tokens(prompt, max_sequence_length)?.ids;
        let ids = Tensor::from_slice(&ids).unsqueeze(0).to_device(self.device);
        let hidden = self.decoder.forward_text(&ids);
        let dropped = DROPPED as i64;
        let text = hidden.narrow(1, dropped, hidden.size()[1] - dropped).contiguous();
        Ok(Conditioning { text, pooled: None, text_mask: None })
    }
}

impl EncodesPrompts for PromptEncoder {
    /// Encodes each distinct prompt once, alone and without padding.
    fn encode(&self, prompts: &[String], max_sequence_length: usize) -> Result<Conditioning, ModelError> {
        encode_each(prompts, |prompt| self.encode_one(prompt, max_sequence_length))
    }

    /// What the encoder gets of `prompt`, the request around it included.
    fn token_ids(&self, prompt: &str, max_sequence_length: usize) -> Result<Vec<PromptTokens>, ModelError> {
        let mut tokens = self.tokens(prompt, max_sequence_length)?;
        // What follows the prompt is cut off before anything of the prompt is.
        tokens.truncated = tokens.truncated.saturating_sub(self.after);
        Ok(vec![PromptTokens { tokenizer: "tokenizer", tokens }])
    }
}
