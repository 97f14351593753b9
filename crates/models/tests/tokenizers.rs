//! Token ids against those that `transformers` recorded.

use std::path::{Path, PathBuf};

use models::tokenizer::{Qwen2Tokenizer, Tokenizer};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn clip() -> Tokenizer {
    Tokenizer::open(&golden().join("tokenizers/clip"), "CLIPTokenizer").unwrap()
}

fn qwen() -> Tokenizer {
    Tokenizer::open(&golden().join("tokenizers/qwen"), "Qwen2Tokenizer").unwrap()
}

/// A copy of the Qwen2 folder without the files named.
fn qwen_without(lost: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden().join("tokenizers/qwen")).unwrap().map(Result::unwrap) {
        if !lost.contains(&entry.file_name().to_str().unwrap()) {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    dir
}

fn cases(tokenizer: &str) -> Vec<Case> {
    let path = golden().join("tokenizers").join(tokenizer).join("cases.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<i64>,
}

#[test]
fn clip_ids_equal_the_recorded_ones() {
    let cases = cases("clip");
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

/// The library itself panics there.
#[test]
fn pairs_without_their_prefix_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open_with = |prefix: &str| {
        let model = serde_json::json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": prefix,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"<pad>": 0, "a": 1, "##b": 2, "ab": 3}, "merges": [["a", "##b"]]
        });
        let file = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model
        });
        std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
        Tokenizer::open(folder.path(), "T5TokenizerFast").err().map(|error| error.to_string())
    };
    assert_eq!(open_with("##"), None);
    let problem = open_with("#######").expect("refused");
    assert!(problem.contains("tokenizer.json is damaged"), "{problem}");
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

#[test]
fn qwen_ids_equal_the_recorded_ones() {
    let cases = cases("qwen");
    assert_eq!(cases.len(), 27);
    let tokenizer = qwen();
    for Case { text, ids } in cases {
        assert_eq!(tokenizer.encode(&text, 64).unwrap().ids, ids, "{text:?}");
    }
}

#[test]
fn a_token_added_to_qwen_takes_the_next_id_and_is_cut_out_whole() {
    let mut tokenizer = Qwen2Tokenizer::open(&golden().join("tokenizers/qwen")).unwrap();
    let last = tokenizer.token_id("<|video_pad|>").unwrap();
    assert_eq!(tokenizer.token_id("<|Reward|>"), None);
    assert_eq!(tokenizer.add_special_token("<|Reward|>").unwrap(), last + 1);
    assert_eq!(tokenizer.add_special_token("<|Reward|>").unwrap(), last + 1, "the same again");
    assert_eq!(tokenizer.add_special_token("<|video_pad|>").unwrap(), last, "one that is there keeps its id");
    let word = tokenizer.encode_unpadded("a", 9).unwrap().ids;
    let ids = tokenizer.encode_unpadded("a<|Reward|>a", 9).unwrap().ids;
    assert_eq!(ids, [word.as_slice(), &[last + 1], &word].concat());
}

#[test]
fn qwen_texts_are_padded_only_where_that_is_asked_for() {
    let tokenizer = qwen();
    let (padded, own) =
        (tokenizer.encode("a cat", 16).unwrap(), tokenizer.encode_unpadded("a cat", 16).unwrap());
    assert!(own.ids.len() < 16 && padded.ids.len() == 16 && padded.ids.starts_with(&own.ids));
    let cut = tokenizer.encode_unpadded("a cat", 2).unwrap();
    assert_eq!((cut.ids.as_slice(), cut.truncated), (&own.ids[..2], own.ids.len() - 2));
    assert!(tokenizer.encode_unpadded("", 16).unwrap().ids.is_empty());
}

#[test]
fn added_tokens_come_from_either_file_that_lists_them() {
    let text = "<|im_start|>a cat<|im_end|>";
    let ids = |dir: &tempfile::TempDir| {
        Tokenizer::open(dir.path(), "Qwen2Tokenizer").unwrap().encode(text, 16).unwrap().ids
    };
    let want = qwen().encode(text, 16).unwrap().ids;
    assert_eq!((want[0], ids(&qwen_without(&["added_tokens.json"]))), (475, want.clone()));
    assert_eq!(ids(&qwen_without(&["tokenizer_config.json"])), want);
    let neither = qwen_without(&["added_tokens.json", "tokenizer_config.json"]);
    let message = Tokenizer::open(neither.path(), "Qwen2Tokenizer").unwrap_err().to_string();
    assert!(message.contains("added_tokens.json is missing"), "{message}");
}

#[test]
fn qwen_files_that_contradict_each_other_are_named() {
    let message = |file: &str, content: &str| {
        let dir = qwen_without(&[]);
        std::fs::write(dir.path().join(file), content).unwrap();
        Tokenizer::open(dir.path(), "Qwen2Tokenizer").unwrap_err().to_string()
    };
    let unknown_pair = message("merges.txt", "#version: 0.2\nzz qq\n");
    assert!(unknown_pair.contains("merges.txt") && unknown_pair.contains("line 2"), "{unknown_pair}");
    let other_id = message("added_tokens.json", r#"{"<|im_end|>": 500}"#);
    assert!(other_id.contains("added_tokens.json") && other_id.contains("<|im_end|>"), "{other_id}");
    let few_words = message("vocab.json", r#"{"a": 0}"#);
    assert!(few_words.contains("merges.txt"), "{few_words}");
}

#[test]
fn a_folder_with_tokenizer_json_alone_is_enough_for_qwen() {
    let dir = qwen_without(&["vocab.json", "merges.txt"]);
    let vocabulary: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(golden().join("tokenizers/qwen/vocab.json")).unwrap())
            .unwrap();
    let end = serde_json::json!({
        "id": 474, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [end],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let tokenizer = Tokenizer::open(dir.path(), "Qwen2Tokenizer").unwrap();
    let ids = tokenizer.encode("hi<|endoftext|>", 4).unwrap().ids;
    assert_eq!((ids[2], ids[3]), (474, 474), "cut out whole, and padded with");
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(Tokenizer::open(dir.path(), "Qwen2Tokenizer").unwrap_err().to_string().contains("vocab.json"));
}
