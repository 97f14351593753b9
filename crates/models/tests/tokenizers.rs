//! Token ids against those that `transformers` recorded.

use std::path::{Path, PathBuf};

use models::tokenizer::Tokenizer;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn clip() -> Tokenizer {
    Tokenizer::open(&golden().join("tokenizers/clip"), "CLIPTokenizer").unwrap()
}

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<i64>,
}

#[test]
fn clip_ids_equal_the_recorded_ones() {
    let text = std::fs::read_to_string(golden().join("tokenizers/clip/cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 36);
    let tokenizer = clip();
    for Case { text, ids } in cases {
        assert_eq!(tokenizer.encode(&text, 77).unwrap().ids, ids, "{text:?}");
    }
}

#[test]
fn a_text_that_does_not_fit_is_cut_and_says_by_how_much() {
    let encoded = clip().encode(&"cat ".repeat(100), 77).unwrap();
    assert_eq!(encoded.truncated, 25);
    assert_eq!(encoded.ids.len(), 77);
    assert_eq!((encoded.ids[0], encoded.ids[76]), (49_406, 49_407));
    assert_eq!(clip().encode("cat", 77).unwrap().truncated, 0);
}

#[test]
fn a_length_without_room_for_special_tokens_is_refused() {
    assert!(clip().encode("cat", 1).unwrap_err().to_string().contains("max_sequence_length"));
}

#[test]
fn t5_ends_with_its_end_token_also_when_cut() {
    let tokenizer = Tokenizer::open(&golden().join("sd3/tokenizer_3"), "T5TokenizerFast").unwrap();
    let short = tokenizer.encode("a photo of two red circles", 32).unwrap();
    let end = short.ids.iter().position(|&id| id == 1).unwrap();
    assert_eq!((short.truncated, short.ids.len()), (0, 32));
    assert!(short.ids[end + 1..].iter().all(|&id| id == 0));
    let cut = tokenizer.encode("a photo of two red circles", 5).unwrap();
    assert_eq!(cut.ids[..4], short.ids[..4]);
    assert_eq!((cut.ids[4], cut.truncated), (1, end - 4));
}

#[test]
fn an_added_token_inside_the_text_is_one_id_and_splits_the_word() {
    const END: i64 = 1113;
    const EXCLAMATION: i64 = 0;
    let tokenizer = Tokenizer::open(&golden().join("sd3/tokenizer_2"), "CLIPTokenizer").unwrap();
    let ids = |text: &str| tokenizer.encode(text, 77).unwrap().ids;
    let inner = |text: &str| {
        let end = ids(text).iter().position(|&id| id == END).unwrap();
        ids(text)[1..end].to_vec()
    };
    assert_eq!(inner("hi!there"), [inner("hi"), vec![EXCLAMATION], inner("there")].concat());
    assert_eq!(*ids("hi").last().unwrap(), EXCLAMATION, "the folder pads with `!`");
}

#[test]
fn a_subscript_iota_parts_words_and_is_dropped() {
    let ids = |text: &str| clip().encode(text, 77).unwrap().ids;
    assert_eq!(ids("cat\u{345}dog!\u{345}"), ids("cat dog !"));
}

#[test]
fn merges_that_are_none_are_named_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let open_with = |merges: &str| {
        std::fs::write(folder.path().join("merges.txt"), merges).unwrap();
        Tokenizer::open(folder.path(), "CLIPTokenizer").err().map(|error| error.to_string())
    };
    std::fs::copy(golden().join("sd3/tokenizer/vocab.json"), folder.path().join("vocab.json")).unwrap();
    assert_eq!(open_with("#version: 0.2\ni n\nt h\n"), None);
    for (line, problem) in [
        ("i n t", "line 3 is `i n t`, not two symbols"),
        ("<html>", "line 3 is `<html>`"),
        ("", "line 3 is ``"),
        ("zq qz", "line 3 makes `zqqz`, which vocab.json lacks"),
    ] {
        let message = open_with(&format!("#version: 0.2\ni n\n{line}\nt h\n")).unwrap();
        assert!(message.contains("merges.txt") && message.contains(problem), "{message}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let message = |class| Tokenizer::open(empty.path(), class).unwrap_err().to_string();
    assert!(message("CLIPTokenizer").contains("vocab.json"));
    assert!(message("T5TokenizerFast").contains("tokenizer.json"));
}
