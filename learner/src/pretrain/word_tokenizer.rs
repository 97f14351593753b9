//! Writes a CLIP tokenizer folder in which every word of a small vocabulary is one token.
//!
//! It is a real byte-level BPE, only with few merges, so any other text still has token ids.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::Context;
use serde_json::json;

/// Start of every text.
pub const START: &str = "<|startoftext|>";
/// End of every text, and what short texts are padded with.
pub const END: &str = "<|endoftext|>";

/// The merges of a byte-pair encoding, in the order of their rank.
#[derive(Default)]
struct Merges {
    pairs: Vec<(String, String)>,
    ranks: HashMap<(String, String), usize>,
}

impl Merges {
    /// Splits a word as the encoder would: always the pair of lowest rank first.
    fn pieces(&self, word: &str) -> Vec<String> {
        let mut pieces: Vec<String> = word.chars().map(String::from).collect();
        if let Some(last) = pieces.last_mut() {
            last.push_str("</w>");
        }
        loop {
            let pairs = pieces.windows(2).enumerate();
            let known = pairs.filter_map(|(at, pair)| {
                self.ranks.get(&(pair[0].clone(), pair[1].clone())).map(|rank| (*rank, at))
            });
            let Some((_, at)) = known.min() else { return pieces };
            let right = pieces.remove(at + 1);
            pieces[at].push_str(&right);
        }
    }

    /// Adds what it takes to make the word one token. Words added before stay whole, since their merges rank lower.
    fn add(&mut self, word: &str) {
        let mut pieces = self.pieces(word).into_iter();
        let Some(mut left) = pieces.next() else { return };
        for right in pieces {
            let pair = (left.clone(), right.clone());
            if !self.ranks.contains_key(&pair) {
                self.ranks.insert(pair.clone(), self.pairs.len());
                self.pairs.push(pair);
            }
            left.push_str(&right);
        }
    }
}

/// CLIP's printable stand-ins for the 256 bytes, in the order of their ids.
fn byte_characters() -> Vec<char> {
    let is_printable =
        |byte: u32| (33..=126).contains(&byte) || (161..=172).contains(&byte) || (174..=255).contains(&byte);
    let printable = (0..256u32).filter(|&byte| is_printable(byte));
    let others = (0..256u32).filter(|&byte| !is_printable(byte)).enumerate().map(|(n, _)| 256 + n as u32);
    printable.chain(others).filter_map(char::from_u32).collect()
}

/// Writes `vocab.json`, `merges.txt` and the two settings files; returns the number of token ids.
///
/// # Errors
/// If a file cannot be written.
pub fn write(folder: &Path, words: &[&str], max_length: usize) -> anyhow::Result<usize> {
    let mut merges = Merges::default();
    for word in words {
        merges.add(word);
    }
    let characters = byte_characters();
    let mut tokens: Vec<String> = characters.iter().map(char::to_string).collect();
    tokens.extend(characters.iter().map(|character| format!("{character}</w>")));
    tokens.extend(merges.pairs.iter().map(|(left, right)| format!("{left}{right}")));
    tokens.extend([START.to_owned(), END.to_owned()]);
    let ids: BTreeMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();

    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let lines = merges.pairs.iter().map(|(left, right)| format!("{left} {right}\n"));
    let merges_text: String = std::iter::once("#version: 0.2\n".to_owned()).chain(lines).collect();
    let special = |content: &str| json!({"content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false});
    let map = json!({
        "bos_token": special(START), "eos_token": special(END), "pad_token": END, "unk_token": special(END),
    });
    let added = |content: &str| {
        let mut token = special(content);
        token["special"] = json!(true);
        token
    };
    let settings = json!({
        "added_tokens_decoder": {ids[START].to_string(): added(START), ids[END].to_string(): added(END)},
        "bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END,
        "errors": "replace", "clean_up_tokenization_spaces": false,
        "model_max_length": max_length, "tokenizer_class": "CLIPTokenizer",
    });
    for (name, text) in [
        ("vocab.json", serde_json::to_string(&ids)?),
        ("merges.txt", merges_text),
        ("special_tokens_map.json", serde_json::to_string_pretty(&map)?),
        ("tokenizer_config.json", serde_json::to_string_pretty(&settings)?),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(tokens.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::tokenizer::Tokenizer;

    #[test]
    fn every_word_is_one_token_and_other_text_still_has_ids() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let words = scenes::vocabulary();
        let n_tokens = write(folder.path(), &words, 12).expect("written");
        let tokenizer = Tokenizer::open(folder.path(), "CLIPTokenizer").expect("a CLIP tokenizer");
        let mut seen = std::collections::HashSet::new();
        for word in &words {
            let ids = tokenizer.encode(word, 12).expect("encoded").ids;
            assert_eq!(ids[0] as usize, n_tokens - 2);
            assert_eq!(ids[2] as usize, n_tokens - 1, "`{word}` is more than one token: {ids:?}");
            assert!(seen.insert(ids[1]), "`{word}` shares its token");
        }
        assert!(tokenizer.encode("猫 zebra", 12).expect("encoded").ids.len() == 12);
    }
}
