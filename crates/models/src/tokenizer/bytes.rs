//! What stands in for a tokenizer whose files are not there, where only speed and memory matter.

use super::TokenIds;

/// The bytes of a text as ids: as many as there is text, none of them meaning anything to a model.
#[derive(Debug)]
pub struct ByteTokenizer {
    vocab_size: i64,
}

impl ByteTokenizer {
    /// Gives ids below `vocab_size`, which is at least 1.
    pub fn new(vocab_size: i64) -> Self {
        Self { vocab_size }
    }

    /// Encodes `text`, cut and padded with zeros on the right to `max_length`.
    pub fn encode(&self, text: &str, max_length: usize) -> TokenIds {
        let mut tokens = self.encode_unpadded(text, max_length);
        tokens.ids.resize(max_length, 0);
        tokens
    }

    /// Encodes `text`, cut to `max_length`.
    pub fn encode_unpadded(&self, text: &str, max_length: usize) -> TokenIds {
        let mut ids: Vec<i64> = text.bytes().map(|byte| i64::from(byte) % self.vocab_size).collect();
        let truncated = ids.len().saturating_sub(max_length);
        ids.truncate(max_length);
        TokenIds { ids, truncated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_the_vocabulary_and_as_many_as_asked_for() {
        let tokenizer = ByteTokenizer::new(100);
        assert_eq!(tokenizer.encode("az", 3), TokenIds { ids: vec![97, 22, 0], truncated: 0 });
        assert_eq!(tokenizer.encode("az", 1), TokenIds { ids: vec![97], truncated: 1 });
    }
}
