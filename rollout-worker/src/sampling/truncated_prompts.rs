//! Prompts that are longer than a text encoder takes: counted by tokenizer, said once.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use models::PromptTokens;

/// Which prompts met so far lost their ends.
#[derive(Debug, Default)]
pub struct TruncatedPrompts {
    /// Digests of all prompts, since one may be met again long after.
    met: HashSet<blake3::Hash>,
    by_tokenizer: BTreeMap<&'static str, usize>,
}

impl TruncatedPrompts {
    /// Counts a prompt the first time it is met, and warns of the first that is truncated.
    pub fn note(&mut self, prompt: &str, tokens: &[PromptTokens]) {
        if !self.met.insert(blake3::hash(prompt.as_bytes())) {
            return;
        }
        for PromptTokens { tokenizer, tokens } in tokens.iter().filter(|part| part.tokens.truncated > 0) {
            let count = self.by_tokenizer.entry(tokenizer).or_default();
            *count += 1;
            if *count == 1 {
                let (kept, lost) = (tokens.ids.len(), tokens.truncated);
                tracing::warn!(
                    "a prompt is longer than the {kept} tokens of {tokenizer} and loses its last {lost}; others will be \
                     counted in silence: {prompt}"
                );
            }
        }
    }

    /// Whether no prompt was truncated.
    pub fn is_empty(&self) -> bool {
        self.by_tokenizer.is_empty()
    }
}

impl fmt::Display for TruncatedPrompts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of {} prompts", self.met.len())?;
        for (tokenizer, count) in &self.by_tokenizer {
            write!(f, ", {count} were cut to what {tokenizer} takes")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::tokenizer::TokenIds;

    #[test]
    fn a_prompt_counts_once_for_each_tokenizer_that_cuts_it() {
        let tokens = |lost: [usize; 2]| {
            ["tokenizer", "tokenizer_3"]
                .iter()
                .zip(lost)
                .map(|(tokenizer, truncated)| PromptTokens {
                    tokenizer,
                    tokens: TokenIds { ids: vec![0; 77], truncated },
                })
                .collect::<Vec<_>>()
        };
        let mut truncated = TruncatedPrompts::default();
        truncated.note("short", &tokens([0, 0]));
        assert!(truncated.is_empty());
        for _ in 0..2 {
            truncated.note("long", &tokens([3, 0]));
        }
        truncated.note("longer", &tokens([9, 1]));
        assert_eq!(
            truncated.to_string(),
            "of 3 prompts, 2 were cut to what tokenizer takes, 1 were cut to what tokenizer_3 takes"
        );
    }
}
