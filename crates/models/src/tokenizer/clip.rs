//! CLIP's byte-pair encoding from `vocab.json` and `merges.txt`.
//!
//! Follows the slow `CLIPTokenizer` of `transformers` where `ftfy` is not installed: control characters go, ideographs
//! are set apart, text is composed (NFC) and lower-cased word by word, accents stay. Where Unicode versions differ,
//! so may characters assigned in between.
//!
//! Source: `transformers` 4.57, `models/clip/tokenization_clip.py` and `tokenization_utils.py`.

use std::collections::HashMap;
use std::path::Path;

use regex::Regex;
use unicode_normalization::UnicodeNormalization;

use super::TokenIds;
use super::settings::{AddedToken, Settings};
use crate::ModelError;

/// The reference reads no merges beyond the published vocabulary: 49152 tokens less 256 bytes and 2 special ones.
const MAX_MERGES: usize = 49_152 - 256 - 2;
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// `tokenizer_config.json` is optional; CLIP was trained on this length.
const DEFAULT_MAX_LENGTH: usize = 77;

/// The reference matches without regard to case, and its engine then finds U+0345, whose capital is a letter, in none of
/// the classes: it parts words and is dropped. No other character is affected.
const WORDS: &str =
    r"(?i:<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+";

/// A byte-pair tokenizer of the CLIP family.
#[derive(Debug)]
pub struct ClipTokenizer {
    vocabulary: HashMap<String, i64>,
    /// Rank of "first second"; a lower rank is merged earlier.
    merge_ranks: HashMap<String, usize>,
    added: Vec<(AddedToken, i64)>,
    bos_id: i64,
    eos_id: i64,
    pad_id: i64,
    unk_id: i64,
    words: Regex,
    dropped: Regex,
    byte_symbols: [char; 256],
    model_max_length: usize,
}

impl ClipTokenizer {
    /// Opens `vocab.json`, `merges.txt` and, where present, `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// # Errors
    /// If a file is missing or malformed, or a special token has no id.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let vocabulary_path = dir.join("vocab.json");
        let vocabulary: HashMap<String, i64> = crate::json_file::read(&vocabulary_path)?;
        let merges_path = dir.join("merges.txt");
        let merge_ranks = parse_merges(&crate::json_file::read_text(&merges_path)?, &vocabulary)
            .map_err(|reason| ModelError::damaged(&merges_path, reason))?;
        let settings = Settings::open(dir)?;
        let special = |token: Option<AddedToken>, default: &str| {
            token.unwrap_or_else(|| AddedToken { content: default.to_owned(), ..AddedToken::default() })
        };
        let roles = [
            special(settings.bos, START),
            special(settings.eos, END),
            special(settings.pad, END),
            special(settings.unk, END),
        ];
        let added = added_tokens(settings.added, &roles, &vocabulary)
            .map_err(|reason| ModelError::damaged(&vocabulary_path, reason))?;
        let id_of = |token: &AddedToken| {
            added.iter().find(|(known, _)| known.content == token.content).map_or(0, |(_, id)| *id)
        };
        let [bos_id, eos_id, pad_id, unk_id] = roles.each_ref().map(id_of);
        Ok(Self {
            vocabulary,
            merge_ranks,
            added,
            bos_id,
            eos_id,
            pad_id,
            unk_id,
            words: pattern(WORDS),
            dropped: pattern(r"[\p{C}\x{FFFD}--\t\n\r]"),
            byte_symbols: byte_symbols(),
            model_max_length: settings.model_max_length.unwrap_or(DEFAULT_MAX_LENGTH),
        })
    }

    /// Encodes `text` between the start and end tokens, cut and padded on the right to `max_length`.
    ///
    /// # Errors
    /// If `max_length` has no room for the start and end tokens.
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
        let Some(room) = max_length.checked_sub(2) else {
            return Err(super::too_short(max_length, 2));
        };
        let mut ids = self.text_ids(text);
        let truncated = ids.len().saturating_sub(room);
        ids.truncate(room);
        ids.insert(0, self.bos_id);
        ids.push(self.eos_id);
        Ok(TokenIds { ids, truncated })
    }

    /// The longest sequence the model takes: `model_max_length`, or CLIP's 77 where the folder does not say.
    pub fn model_max_length(&self) -> Option<usize> {
        Some(self.model_max_length)
    }

    /// Ids of the text alone: added tokens are cut out first, the pieces between them go through the encoding.
    fn text_ids(&self, text: &str) -> Vec<i64> {
        let mut ids = Vec::new();
        let mut rest = text;
        let mut strip_left = false;
        loop {
            let found = self.first_added(rest);
            let end = found.map_or(rest.len(), |(start, _, _)| start);
            let mut piece = &rest[..end];
            if strip_left {
                piece = piece.trim_start();
            }
            if found.is_some_and(|(_, token, _)| token.lstrip) {
                piece = piece.trim_end();
            }
            self.encode_piece(piece, &mut ids);
            let Some((start, token, id)) = found else { return ids };
            ids.push(id);
            strip_left = token.rstrip;
            rest = &rest[start + token.content.len()..];
        }
    }

    fn first_added<'a>(&'a self, text: &str) -> Option<(usize, &'a AddedToken, i64)> {
        let starts =
            self.added.iter().filter_map(|(token, id)| Some((text.find(&token.content)?, token, *id)));
        starts.min_by_key(|(start, _, _)| *start)
    }

    fn encode_piece(&self, piece: &str, ids: &mut Vec<i64>) {
        let text = self.normalize(piece);
        for word in self.words.find_iter(&text) {
            let symbols: String =
                word.as_str().bytes().map(|byte| self.byte_symbols[usize::from(byte)]).collect();
            ids.extend(self.merge(&symbols).iter().map(|token| self.id(token)));
        }
    }

    fn id(&self, token: &str) -> i64 {
        let added = self.added.iter().find(|(known, _)| known.content == token).map(|(_, id)| id);
        added.or_else(|| self.vocabulary.get(token)).copied().unwrap_or(self.unk_id)
    }

    fn normalize(&self, text: &str) -> String {
        let kept = self.dropped.replace_all(text, "");
        let spaced: String = kept.chars().flat_map(set_ideograph_apart).flatten().nfc().collect();
        let words: Vec<String> = spaced.split_whitespace().map(str::to_lowercase).collect();
        words.join(" ")
    }

    /// Merges neighbouring symbols of a word, the lowest rank first, until no known pair is left.
    fn merge(&self, word: &str) -> Vec<String> {
        if word == START || word == END {
            return vec![word.to_owned()];
        }
        let mut symbols: Vec<String> = word.chars().map(String::from).collect();
        if let Some(last) = symbols.last_mut() {
            last.push_str("</w>");
        }
        while let Some(pair) = self.lowest_pair(&symbols) {
            let mut merged: Vec<String> = Vec::with_capacity(symbols.len());
            let mut idx = 0;
            while idx < symbols.len() {
                if idx + 1 < symbols.len() && format!("{} {}", symbols[idx], symbols[idx + 1]) == pair {
                    merged.push(format!("{}{}", symbols[idx], symbols[idx + 1]));
                    idx += 2;
                } else {
                    merged.push(std::mem::take(&mut symbols[idx]));
                    idx += 1;
                }
            }
            symbols = merged;
        }
        symbols
    }

    fn lowest_pair(&self, symbols: &[String]) -> Option<String> {
        let pairs = symbols.windows(2).map(|pair| format!("{} {}", pair[0], pair[1]));
        let ranked = pairs.filter_map(|pair| Some((*self.merge_ranks.get(&pair)?, pair)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, pair)| pair)
    }
}

/// What the folder adds, and the special tokens that it does not list; the longest first, since that wins where several
/// start at one place.
fn added_tokens(
    listed: Vec<(AddedToken, i64)>,
    roles: &[AddedToken],
    vocabulary: &HashMap<String, i64>,
) -> Result<Vec<(AddedToken, i64)>, String> {
    let mut added = listed;
    for token in roles {
        if added.iter().any(|(known, _)| known.content == token.content) {
            continue;
        }
        let id = vocabulary.get(&token.content);
        let id = id.ok_or_else(|| format!("the special token \"{}\" has no id in it", token.content))?;
        added.push((token.clone(), *id));
    }
    added.retain(|(token, _)| !token.content.is_empty());
    added.sort_by_key(|(token, _)| std::cmp::Reverse(token.content.len()));
    Ok(added)
}

fn pattern(expression: &str) -> Regex {
    Regex::new(expression).expect("the expression is a constant; if it does not compile, this is a bug")
}

/// The merges by rank; each must make a token of the vocabulary, or the file is of another one. The first line is a version
/// comment; later duplicates win, as in the reference.
fn parse_merges(text: &str, vocabulary: &HashMap<String, i64>) -> Result<HashMap<String, usize>, String> {
    let lines = text.trim().split('\n').enumerate().skip(1).take(MAX_MERGES);
    let ranked = lines.map(|(rank, line)| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        [first, second] if vocabulary.contains_key(&format!("{first}{second}")) => {
            Ok((format!("{first} {second}"), rank))
        }
        [first, second] => Err(format!("line {} makes `{first}{second}`, which vocab.json lacks", rank + 1)),
        _ => Err(format!("line {} is `{line}`, not two symbols to be merged", rank + 1)),
    });
    ranked.collect()
}

/// Every ideograph becomes a word of its own.
fn set_ideograph_apart(character: char) -> [Option<char>; 3] {
    let space = is_ideograph(character).then_some(' ');
    [space, Some(character), space]
}

/// The CJK ideograph blocks that the reference lists; Kana and Hangul are not among them.
fn is_ideograph(character: char) -> bool {
    matches!(u32::from(character),
        0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2B73F
        | 0x2B740..=0x2B81F | 0x2B820..=0x2CEAF | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F)
}

/// A printable symbol for every byte: itself where it prints in Latin-1, else one from U+0100 on, in byte order.
fn byte_symbols() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let code = byte as u32;
        if matches!(code, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) {
            return char::from(byte as u8);
        }
        let symbol = char::from_u32(next).expect("U+0100 to U+0143 are characters; else this is a bug");
        next += 1;
        symbol
    })
}
