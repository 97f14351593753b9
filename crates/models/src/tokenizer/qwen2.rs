//! Qwen2's byte-level byte-pair encoding from `vocab.json` and `merges.txt`.
//!
//! Follows the slow `Qwen2Tokenizer` of `transformers`: the text is composed (NFC), added tokens are cut out whole, the
//! rest is split into words, whose bytes are merged. Nothing is put before or after the text.
//!
//! Source: `transformers` 4.57, `models/qwen2/tokenization_qwen2.py`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken as LibraryToken, SplitDelimiterBehavior};
use unicode_normalization::UnicodeNormalization;

use super::settings::{AddedToken, Settings};
use super::{JsonTokenizer, TokenIds};
use crate::{ModelError, json_file};

/// Where words end: contractions; letters after at most one other sign; single digits; signs after at most one space;
/// line ends; and white space, whose last one stays with the word that follows.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The class itself pads with it and ends texts with it where the folder does not say.
const END: &str = "<|endoftext|>";

/// A byte-pair tokenizer of the Qwen2 family.
#[derive(Debug)]
pub struct Qwen2Tokenizer(JsonTokenizer);

impl Qwen2Tokenizer {
    /// Opens `vocab.json`, `merges.txt`, the added tokens of `tokenizer_config.json` or `added_tokens.json`, and, where
    /// present, `special_tokens_map.json`; in folders without them `tokenizer.json`, which says the same.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the files contradict each other.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let vocabulary_path = dir.join("vocab.json");
        if !vocabulary_path.is_file() && dir.join("tokenizer.json").is_file() {
            return JsonTokenizer::open(dir).map(Self);
        }
        let vocabulary: HashMap<String, u32> = json_file::read(&vocabulary_path)?;
        let merges = merges(&dir.join("merges.txt"), &vocabulary)?;
        let settings = Settings::open(dir)?;
        let added = added_tokens(dir, &settings)?;
        let model = BPE::builder().vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges);
        let model = model.build().map_err(|error| ModelError::damaged(&vocabulary_path, error))?;
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_pre_tokenizer(Some(words()));
        add(&mut inner, added).map_err(|reason| ModelError::damaged(&vocabulary_path, reason))?;
        JsonTokenizer::new(vocabulary_path, inner, settings, END).map(Self)
    }

    /// Encodes `text`, cut and padded on the right to `max_length`.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<TokenIds, ModelError> {
        self.0.encode(&composed(text), max_length)
    }

    /// Encodes `text`, cut to `max_length` and not padded.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode_unpadded(&self, text: &str, max_length: usize) -> Result<TokenIds, ModelError> {
        self.0.encode_unpadded(&composed(text), max_length)
    }

    /// The id of a token, if there is such a one.
    pub fn token_id(&self, token: &str) -> Option<i64> {
        self.0.token_id(token)
    }

    /// Cuts `content` out of texts as one token: the one of that name, or else a new one after the last.
    ///
    /// # Errors
    /// If the tokenizer refuses the token.
    pub fn add_special_token(&mut self, content: &str) -> Result<i64, ModelError> {
        self.0.add_special_token(content)
    }

    /// The longest sequence the model takes, where `tokenizer_config.json` states one.
    pub fn model_max_length(&self) -> Option<usize> {
        self.0.model_max_length()
    }
}

/// The reference composes before it cuts out added tokens.
fn composed(text: &str) -> String {
    text.nfc().collect()
}

fn words() -> PreTokenizerWrapper {
    let pattern = SplitPattern::Regex(WORDS.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .expect("the expression is a constant; if it does not compile, this is a bug");
    let bytes = ByteLevel::new(false, false, false);
    PreTokenizerWrapper::Sequence(Sequence::new(vec![split.into(), bytes.into()]))
}

/// The pairs of `merges.txt`, after a line with its version where there is one.
fn merges(path: &Path, vocabulary: &HashMap<String, u32>) -> Result<Merges, ModelError> {
    let text = json_file::read_text(path)?;
    let is_version = |idx: usize, line: &str| idx == 0 && line.starts_with("#version:");
    let lines = text.lines().map(str::trim).enumerate();
    let pairs = lines.filter(|(idx, line)| !(line.is_empty() || is_version(*idx, line)));
    let pair = |(idx, line): (usize, &str)| {
        let (first, second) = line.split_once(' ').unwrap_or((line, ""));
        // The library relies on all three.
        let known = [first, second, &format!("{first}{second}")].map(|token| vocabulary.contains_key(token));
        match known {
            [true, true, true] => Ok((first.to_owned(), second.to_owned())),
            _ => {
                let reason =
                    format!("line {} merges `{line}`, but vocab.json lacks a part or the whole", idx + 1);
                Err(ModelError::damaged(path, reason))
            }
        }
    };
    pairs.map(pair).collect()
}

/// Every added token of the folder by its id: those that a special role is given to, of `added_tokens.json`, and of the
/// settings, which know most about them.
fn added_tokens(dir: &Path, settings: &Settings) -> Result<BTreeMap<u32, AddedToken>, ModelError> {
    let path = dir.join("added_tokens.json");
    if settings.added.is_empty() && !path.is_file() {
        return Err(json_file::missing(&path));
    }
    let listed: BTreeMap<String, u32> =
        if path.is_file() { json_file::read(&path)? } else { BTreeMap::new() };
    let listed =
        listed.into_iter().map(|(content, id)| (id, AddedToken { content, ..AddedToken::default() }));
    let known = settings.added.iter().map(|(token, id)| (*id as u32, token.clone()));
    let all: BTreeMap<u32, AddedToken> = listed.chain(known).collect();
    let mut contents = HashSet::new();
    match all.values().find(|token| !contents.insert(token.content.as_str())) {
        None => Ok(all),
        Some(token) => {
            let reason = format!("`{}` has another id in tokenizer_config.json", token.content);
            Err(ModelError::damaged(&path, reason))
        }
    }
}

/// Adds tokens under their own ids, which must go on where the vocabulary ends: the library counts them itself.
fn add(inner: &mut tokenizers::Tokenizer, tokens: BTreeMap<u32, AddedToken>) -> Result<(), String> {
    for (id, AddedToken { content, lstrip, rstrip }) in tokens {
        let token = LibraryToken::from(content.as_str(), true).lstrip(lstrip).rstrip(rstrip);
        inner.add_special_tokens([token]).map_err(|error| error.to_string())?;
        let found = inner.token_to_id(&content);
        if found != Some(id) {
            return Err(format!(
                "with its {} tokens, the added token `{content}` cannot have the id {id}; it would get {found:?}",
                inner.get_vocab_size(false)
            ));
        }
    }
    Ok(())
}
