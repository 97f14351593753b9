//! Which prompts train and which are held out.

use crate::prompt::{PromptSpec, Tag};
use crate::universe::all_prompts;

/// The prompts to train on, in the order of [`all_prompts`].
pub fn train_prompts() -> Vec<PromptSpec> {
    split().0
}

/// The prompts never trained on, in the order of [`all_prompts`]; compositions of two objects dominate.
pub fn held_out_prompts() -> Vec<PromptSpec> {
    split().1
}

/// The prompts as JSONL, one metadata object a line.
///
/// # Errors
/// None in practice: the data is plain; the error is serde's.
pub fn to_jsonl(prompts: &[PromptSpec]) -> Result<String, serde_json::Error> {
    let mut text = String::new();
    for prompt in prompts {
        text.push_str(&serde_json::to_string(prompt)?);
        text.push('\n');
    }
    Ok(text)
}

fn n_held_out(tag: Tag) -> usize {
    match tag {
        Tag::SingleObject => 2,
        Tag::TwoObject => 4,
        Tag::Counting => 20,
        Tag::Colors => 6,
        Tag::Position => 96,
        Tag::ColorAttr => 96,
    }
}

fn split() -> (Vec<PromptSpec>, Vec<PromptSpec>) {
    let all = all_prompts();
    let mut held_out: Vec<&str> = Vec::new();
    for tag in Tag::ALL {
        let mut of_tag: Vec<&str> =
            all.iter().filter(|spec| spec.tag == tag).map(|spec| &*spec.prompt).collect();
        of_tag.sort_unstable_by_key(|prompt| digest(prompt));
        held_out.extend(&of_tag[..n_held_out(tag)]);
    }
    all.iter().cloned().partition(|spec| !held_out.contains(&&*spec.prompt))
}

/// FNV-1a with a final mix: without it, prompts that differ in the last letters sort beside each other.
fn digest(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn split_covers_the_universe_without_overlap() {
        let (train, held_out) = split();
        assert!(held_out.len() >= 200);
        assert_eq!(train.len() + held_out.len(), all_prompts().len());
        let trained: HashSet<&str> = train.iter().map(|spec| &*spec.prompt).collect();
        assert!(held_out.iter().all(|spec| !trained.contains(&*spec.prompt)));
    }

    #[test]
    fn every_word_of_held_out_prompts_is_seen_in_training() {
        let (train, held_out) = split();
        let seen: HashSet<&str> = train.iter().flat_map(|spec| spec.prompt.split(' ')).collect();
        let unseen: Vec<&str> = held_out
            .iter()
            .flat_map(|spec| spec.prompt.split(' '))
            .filter(|word| !seen.contains(word))
            .collect();
        assert!(unseen.is_empty(), "{unseen:?}");
    }

    #[test]
    fn committed_prompt_files_are_what_the_code_writes() {
        let train = include_str!("../../../assets/prompts/train.jsonl");
        let test = include_str!("../../../assets/prompts/test.jsonl");
        assert!(
            to_jsonl(&train_prompts()).expect("plain data") == train,
            "train.jsonl is stale; run write_prompts"
        );
        assert!(
            to_jsonl(&held_out_prompts()).expect("plain data") == test,
            "test.jsonl is stale; run write_prompts"
        );
    }
}
