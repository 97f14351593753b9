//! Which prompts train, which choose, and which report: a split by meaning.
//!
//! "a green circle and a yellow square" says what "a yellow square and a green circle" says, so the unit of the split is
//! the meaning of a prompt ([`PromptSpec::meaning`]), and all wordings of one meaning are on one side of it. Validation
//! and test hold a single wording of each of their meanings, so that their prompts are independent of each other; the
//! other wordings are in no split.
//!
//! The shipped settings were chosen on an earlier split, whose 224 held-out prompts were the first of each tag by
//! [`digest`]. Meanings are taken for validation from that end and for the test from the other, and a unit test checks that
//! no meaning of the test was among the 224: nothing was chosen on what is reported.

use std::collections::BTreeMap;

use crate::prompt::{PromptSpec, Tag};
use crate::universe::all_prompts;

/// The prompts of the world, divided; each list in the order of [`all_prompts`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// What is trained on, in pre-training and after it.
    pub train: Vec<PromptSpec>,
    /// What settings and the best version are chosen on.
    pub validation: Vec<PromptSpec>,
    /// What is reported.
    pub test: Vec<PromptSpec>,
}

/// Divides the prompts of the world.
pub fn split() -> Split {
    let mut split = Split { train: Vec::new(), validation: Vec::new(), test: Vec::new() };
    let meanings = by_meaning(all_prompts());
    for tag in Tag::ALL {
        let mut of_tag: Vec<&Vec<PromptSpec>> =
            meanings.values().filter(|wordings| wordings[0].tag == tag).collect();
        of_tag.sort_unstable_by_key(|wordings| smallest_digest(wordings));
        let (n_validation, n_test) = n_held_out(tag);
        let (validation, rest) = of_tag.split_at(n_validation);
        let (train, test) = rest.split_at(rest.len() - n_test);
        split.train.extend(train.iter().flat_map(|wordings| wordings.iter().cloned()));
        split.validation.extend(validation.iter().map(|wordings| first_by_digest(wordings)));
        split.test.extend(test.iter().map(|wordings| first_by_digest(wordings)));
    }
    let order: BTreeMap<String, usize> =
        all_prompts().into_iter().enumerate().map(|(position, spec)| (spec.prompt, position)).collect();
    for prompts in [&mut split.train, &mut split.validation, &mut split.test] {
        prompts.sort_unstable_by_key(|spec| order[&spec.prompt]);
    }
    split
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

/// Meanings of a tag that go to validation and to the test; compositions of two objects dominate.
fn n_held_out(tag: Tag) -> (usize, usize) {
    match tag {
        Tag::SingleObject => (1, 1),
        Tag::TwoObject => (1, 2),
        Tag::Counting => (10, 18),
        Tag::Colors => (3, 5),
        Tag::Position => (43, 94),
        Tag::ColorAttr => (32, 80),
    }
}

/// The wordings of each meaning.
fn by_meaning(prompts: Vec<PromptSpec>) -> BTreeMap<String, Vec<PromptSpec>> {
    let mut meanings = BTreeMap::<String, Vec<PromptSpec>>::new();
    for spec in prompts {
        meanings.entry(spec.meaning()).or_default().push(spec);
    }
    meanings
}

fn smallest_digest(wordings: &[PromptSpec]) -> Option<u64> {
    wordings.iter().map(|spec| digest(&spec.prompt)).min()
}

fn first_by_digest(wordings: &[PromptSpec]) -> PromptSpec {
    let first = wordings.iter().min_by_key(|spec| digest(&spec.prompt));
    first.expect("a meaning has a wording; else this is a bug").clone()
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

    fn meanings(prompts: &[PromptSpec]) -> HashSet<String> {
        prompts.iter().map(PromptSpec::meaning).collect()
    }

    #[test]
    fn no_meaning_is_in_two_splits() {
        let Split { train, validation, test } = split();
        let (trained, chosen, reported) = (meanings(&train), meanings(&validation), meanings(&test));
        assert!(
            trained.is_disjoint(&chosen) && trained.is_disjoint(&reported) && chosen.is_disjoint(&reported)
        );
        assert_eq!((validation.len(), test.len()), (90, 200));
        assert_eq!((chosen.len(), reported.len()), (90, 200), "each prompt is a meaning of its own");
        let all = meanings(&all_prompts()).len();
        assert_eq!(trained.len() + chosen.len() + reported.len(), all, "every meaning is in a split");
    }

    #[test]
    fn every_wording_of_a_trained_meaning_is_trained() {
        let Split { train, .. } = split();
        let trained = meanings(&train);
        let wordings = all_prompts().into_iter().filter(|spec| trained.contains(&spec.meaning())).count();
        assert_eq!(train.len(), wordings);
    }

    #[test]
    fn the_test_holds_no_meaning_on_which_the_shipped_settings_were_chosen() {
        let all = all_prompts();
        let mut chosen_on = Vec::new();
        for (tag, n_prompts) in Tag::ALL.into_iter().zip([2, 4, 20, 6, 96, 96]) {
            let mut of_tag: Vec<&PromptSpec> = all.iter().filter(|spec| spec.tag == tag).collect();
            of_tag.sort_unstable_by_key(|spec| digest(&spec.prompt));
            chosen_on.extend(of_tag[..n_prompts].iter().copied().cloned());
        }
        assert!(meanings(&chosen_on).is_disjoint(&meanings(&split().test)));
    }

    #[test]
    fn every_word_of_held_out_prompts_is_seen_in_training() {
        let Split { train, validation, test } = split();
        let seen: HashSet<&str> = train.iter().flat_map(|spec| spec.prompt.split(' ')).collect();
        let held_out = validation.iter().chain(&test).flat_map(|spec| spec.prompt.split(' '));
        let unseen: Vec<&str> = held_out.filter(|word| !seen.contains(word)).collect();
        assert!(unseen.is_empty(), "{unseen:?}");
    }

    #[test]
    fn committed_prompt_files_are_what_the_code_writes() {
        let Split { train, validation, test } = split();
        for (name, prompts, committed) in [
            ("train", train, include_str!("../../../assets/prompts/train.jsonl")),
            ("validation", validation, include_str!("../../../assets/prompts/validation.jsonl")),
            ("test", test, include_str!("../../../assets/prompts/test.jsonl")),
        ] {
            let written = to_jsonl(&prompts).expect("plain data");
            assert!(written == committed, "{name}.jsonl is stale; run write_prompts");
        }
    }
}
