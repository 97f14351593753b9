//! `tokenizer.json`, read by the `tokenizers` crate: T5's Unigram model and every fast tokenizer.

use std::path::{Path, PathBuf};

use tokenizers::{PostProcessor, TruncationDirection};

use super::TokenIds;
use super::settings::Settings;
use crate::ModelError;

/// A tokenizer described by one `tokenizer.json`.
#[derive(Debug)]
pub struct JsonTokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    pad_id: i64,
    model_max_length: Option<usize>,
}

impl JsonTokenizer {
    /// Opens `tokenizer.json` in `dir`, with the padding token that `tokenizer_config.json` names.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the padding token is not in the vocabulary.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            return Err(crate::json_file::missing(&path));
        }
        // The library panics at some files that contradict themselves, such as pairs without the prefix that all should have.
        let mut inner = match std::panic::catch_unwind(|| tokenizers::Tokenizer::from_file(&path)) {
            Ok(opened) => opened.map_err(|error| ModelError::damaged(&path, error))?,
            Err(_) => return Err(ModelError::damaged(&path, "its tokenizer contradicts itself")),
        };
        // Length is the caller's; what the file was saved with must not apply as well.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| ModelError::damaged(&path, error))?;
        Self::new(path, inner, Settings::open(dir)?, "<pad>")
    }

    /// Wraps what was read from `path`; `pad` is the padding token where the settings name none.
    pub(super) fn new(
        path: PathBuf,
        inner: tokenizers::Tokenizer,
        settings: Settings,
        pad: &str,
    ) -> Result<Self, ModelError> {
        let pad = settings.pad.map_or_else(|| pad.to_owned(), |token| token.content);
        let pad_id = inner.token_to_id(&pad).ok_or_else(|| {
            let file = path.file_name().unwrap_or_default().display();
            let reason = format!("\"{pad}\" is not in the vocabulary of {file}; name a token that is");
            ModelError::config(&path.with_file_name("tokenizer_config.json"), "pad_token", reason)
        })?;
        Ok(Self { path, inner, pad_id: i64::from(pad_id), model_max_length: settings.model_max_length })
    }

    /// Encodes `text` with its special tokens, cut and padded on the right to `max_length`.
    ///
    /// # Errors
    /// If `max_length` has no room for the special tokens, or the tokenizer refuses the text.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<TokenIds, ModelError> {
        let mut tokens = self.encode_unpadded(text, max_length)?;
        tokens.ids.resize(max_length, self.pad_id);
        Ok(tokens)
    }

    /// As [`Self::encode`], but a short text stays as short as it is.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_unpadded(&self, text: &str, max_length: usize) -> Result<TokenIds, ModelError> {
        let refused = |error: tokenizers::Error| {
            ModelError::Input(format!("{} cannot encode the text: {error}", self.path.display()))
        };
        let n_special = self.inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        let Some(room) = max_length.checked_sub(n_special) else {
            return Err(super::too_short(max_length, n_special));
        };
        let mut encoding = self.inner.encode_fast(text, false).map_err(refused)?;
        let truncated = encoding.len().saturating_sub(room);
        encoding.truncate(room, 0, TruncationDirection::Right);
        let encoding = self.inner.post_process(encoding, None, true).map_err(refused)?;
        let ids = encoding.get_ids().iter().copied().map(i64::from).collect();
        Ok(TokenIds { ids, truncated })
    }

    /// The id of a token, if there is such a one.
    pub fn token_id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// Cuts `content` out of texts as one token: the one of that name, or else a new one after the last.
    ///
    /// # Errors
    /// If the tokenizer refuses the token.
    pub fn add_special_token(&mut self, content: &str) -> Result<i64, ModelError> {
        let token = tokenizers::AddedToken::from(content, true);
        let refused = |reason: &dyn std::fmt::Display| {
            ModelError::damaged(
                &self.path,
                format!("its tokenizer does not take the token `{content}`: {reason}"),
            )
        };
        self.inner.add_special_tokens([token]).map_err(|error| refused(&error))?;
        self.token_id(content).ok_or_else(|| refused(&"it gives it no id"))
    }

    /// The longest sequence the model takes, where `tokenizer_config.json` states one.
    pub fn model_max_length(&self) -> Option<usize> {
        self.model_max_length
    }
}
