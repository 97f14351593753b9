//! Text to token ids, as `transformers` makes them from the files of a model folder.
//!
//! Two kinds of folder occur: `vocab.json` + `merges.txt` (byte-pair encoding, as [`ClipTokenizer`] and [`Qwen2Tokenizer`]
//! have it) and a self-contained `tokenizer.json` (T5 and the fast tokenizers, [`JsonTokenizer`]).

mod bytes;
mod clip;
mod json;
mod qwen2;
mod settings;

use std::path::Path;

pub use bytes::ByteTokenizer;
pub use clip::ClipTokenizer;
pub use json::JsonTokenizer;
pub use qwen2::Qwen2Tokenizer;

use crate::ModelError;

/// The token ids of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIds {
    /// The ids, special tokens included; padded where the encoder wants one length for all texts.
    pub ids: Vec<i64>,
    /// How many tokens of the text did not fit and were cut off its end.
    pub truncated: usize,
}

/// A tokenizer opened from a model folder; boxed, since either kind is large.
#[derive(Debug)]
pub enum Tokenizer {
    /// CLIP's `vocab.json` and `merges.txt`.
    Clip(Box<ClipTokenizer>),
    /// Qwen2's.
    Qwen2(Box<Qwen2Tokenizer>),
    /// `tokenizer.json`.
    Json(Box<JsonTokenizer>),
    /// No files.
    Bytes(ByteTokenizer),
}

impl Tokenizer {
    /// Opens the tokenizer in `dir`, where `class` is the name that `model_index.json` gives it.
    ///
    /// A class ending in `Fast` reads `tokenizer.json` where there is one; other classes prefer `vocab.json` and
    /// `merges.txt`, since the two differ on accents and ideographs.
    ///
    /// # Errors
    /// If neither set of files is in `dir`, or they cannot be read.
    pub fn open(dir: &Path, class: &str) -> Result<Self, ModelError> {
        let has_json = dir.join("tokenizer.json").is_file();
        let has_vocabulary = dir.join("vocab.json").is_file();
        if has_json && (class.ends_with("Fast") || !has_vocabulary) {
            return Ok(Self::Json(Box::new(JsonTokenizer::open(dir)?)));
        }
        if class.starts_with("Qwen2") {
            return Ok(Self::Qwen2(Box::new(Qwen2Tokenizer::open(dir)?)));
        }
        if has_vocabulary || class.starts_with("CLIP") {
            return Ok(Self::Clip(Box::new(ClipTokenizer::open(dir)?)));
        }
        Err(crate::json_file::missing(&dir.join("tokenizer.json")))
    }

    /// Whether `dir` has the file that every tokenizer of its kind begins with.
    pub fn is_in(dir: &Path) -> bool {
        ["tokenizer.json", "vocab.json"].iter().any(|name| dir.join(name).is_file())
    }

    /// Encodes `text` with the model's special tokens, cut and padded to `max_length`.
    ///
    /// # Errors
    /// If `max_length` has no room for the special tokens, or the tokenizer refuses the text.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<TokenIds, ModelError> {
        match self {
            Self::Clip(tokenizer) => tokenizer.encode(text, max_length),
            Self::Qwen2(tokenizer) => tokenizer.encode(text, max_length),
            Self::Json(tokenizer) => tokenizer.encode(text, max_length),
            Self::Bytes(tokenizer) => Ok(tokenizer.encode(text, max_length)),
        }
    }

    /// Encodes `text` with the model's special tokens, cut to `max_length` but not padded.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_unpadded(&self, text: &str, max_length: usize) -> Result<TokenIds, ModelError> {
        match self {
            Self::Clip(tokenizer) => tokenizer.encode_unpadded(text, max_length),
            Self::Qwen2(tokenizer) => tokenizer.encode_unpadded(text, max_length),
            Self::Json(tokenizer) => tokenizer.encode_unpadded(text, max_length),
            Self::Bytes(tokenizer) => Ok(tokenizer.encode_unpadded(text, max_length)),
        }
    }

    /// The longest sequence the model takes, where the folder states one.
    pub fn model_max_length(&self) -> Option<usize> {
        match self {
            Self::Clip(tokenizer) => tokenizer.model_max_length(),
            Self::Qwen2(tokenizer) => tokenizer.model_max_length(),
            Self::Json(tokenizer) => tokenizer.model_max_length(),
            Self::Bytes(_) => None,
        }
    }
}

fn too_short(max_length: usize, n_special: usize) -> ModelError {
    ModelError::Input(format!(
        "a sequence of {max_length} tokens has no room for the {n_special} special ones; raise `max_sequence_length`"
    ))
}
