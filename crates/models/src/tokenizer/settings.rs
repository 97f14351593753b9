//! What `tokenizer_config.json` and `special_tokens_map.json` say: special tokens, added tokens, the longest sequence.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::ModelError;

/// A token that is cut out of the text before anything else happens to it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct AddedToken {
    pub content: String,
    /// Whether it swallows the white space on its left.
    #[serde(default)]
    pub lstrip: bool,
    /// Whether it swallows the white space on its right.
    #[serde(default)]
    pub rstrip: bool,
}

/// A special token is written as a string or as an object.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Content(String),
    Added(AddedToken),
}

impl SpecialToken {
    fn into_added(self) -> AddedToken {
        match self {
            Self::Content(content) => AddedToken { content, ..AddedToken::default() },
            Self::Added(added) => added,
        }
    }
}

/// The special tokens by role, as either file may hold them.
#[derive(Debug, Default, Deserialize)]
struct SpecialTokens {
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
    unk_token: Option<SpecialToken>,
    pad_token: Option<SpecialToken>,
}

#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    #[serde(flatten)]
    special: SpecialTokens,
    added_tokens_decoder: Option<BTreeMap<String, AddedToken>>,
    model_max_length: Option<f64>,
}

/// The settings of one tokenizer folder.
#[derive(Debug)]
pub(super) struct Settings {
    pub bos: Option<AddedToken>,
    pub eos: Option<AddedToken>,
    pub unk: Option<AddedToken>,
    pub pad: Option<AddedToken>,
    /// Added tokens with the ids that the folder gives them.
    pub added: Vec<(AddedToken, i64)>,
    pub model_max_length: Option<usize>,
}

impl Settings {
    /// Reads the settings in `dir`; both files may be absent, as in the oldest repositories.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let config_path = dir.join("tokenizer_config.json");
        let config: TokenizerConfig = read_optional(&config_path)?;
        // The map speaks only for folders from before `added_tokens_decoder`.
        let map = match config.added_tokens_decoder {
            Some(_) => SpecialTokens::default(),
            None => read_optional(&dir.join("special_tokens_map.json"))?,
        };
        let added = config.added_tokens_decoder.unwrap_or_default().into_iter().map(|(id, token)| {
            let id = id.parse().map_err(|_| {
                ModelError::config(
                    &config_path,
                    "added_tokens_decoder",
                    format!("\"{id}\" is not a token id"),
                )
            })?;
            Ok((token, id))
        });
        let added = added.collect::<Result<_, ModelError>>()?;
        let role = |from_map: Option<SpecialToken>, from_config: Option<SpecialToken>| {
            from_map.or(from_config).map(SpecialToken::into_added)
        };
        Ok(Self {
            bos: role(map.bos_token, config.special.bos_token),
            eos: role(map.eos_token, config.special.eos_token),
            unk: role(map.unk_token, config.special.unk_token),
            pad: role(map.pad_token, config.special.pad_token),
            added,
            model_max_length: config.model_max_length.and_then(finite_length),
        })
    }
}

/// Folders without a limit write 1e30.
fn finite_length(length: f64) -> Option<usize> {
    (1.0..=f64::from(u32::MAX)).contains(&length).then_some(length as usize)
}

fn read_optional<T: Default + serde::de::DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    if path.is_file() { crate::json_file::read(path) } else { Ok(T::default()) }
}
