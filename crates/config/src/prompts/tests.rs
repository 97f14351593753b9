//! What is read, and what is refused with its file and line.

use super::*;

fn read(name: &str, text: &str) -> Result<Vec<PromptRecord>, PromptFileError> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join(name);
    std::fs::write(&path, text).expect("writable");
    read_prompts(&path)
}

#[test]
fn plain_text_is_one_prompt_per_line_without_blank_ones() {
    let records = read("a.txt", "\u{feff}a cat \n\n  a dog\r\n").expect("valid");
    assert_eq!(records.iter().map(|record| record.text.as_str()).collect::<Vec<_>>(), ["a cat", "a dog"]);
    assert_eq!(records[1].index, 1);
}

#[test]
fn json_lines_keep_their_metadata() {
    let records = read("a.jsonl", "{\"prompt\": \"a cat\", \"tag\": \"colors\"}\n").expect("valid");
    assert_eq!(records[0].metadata["tag"], "colors");
}

#[test]
fn every_malformed_line_is_named() {
    let error = read("a.jsonl", "{\"prompt\": 3}\n\n{\n{\"text\": \"x\"}\n[]\n").expect_err("malformed");
    let message = error.to_string();
    for expected in ["line 1", "line 3", "line 4", "line 5"] {
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn prompts_without_what_a_reward_needs_are_named_before_anything_starts() {
    let records = read("a.jsonl", "{\"prompt\": \"a cat\", \"tag\": \"colors\"}\n").expect("valid");
    let reward = |name: &str| [RewardSection::new(name)];
    let path = Path::new("a.jsonl");
    assert!(check_metadata(path, &records, &reward("jpeg_compressibility")).is_ok());
    let message = check_metadata(path, &records, &reward("shapes")).expect_err("lacking").to_string();
    assert!(message.contains("`a cat` has no `include`"), "{message}");
    let records = read("a.csv", "prompt,tag,include\na cat,colors,cat\n").expect("valid");
    let message = check_metadata(path, &records, &reward("geneval")).expect_err("no list").to_string();
    assert!(message.contains("`a cat` has an `include` that is no list"), "{message}");
}

#[test]
fn a_folder_means_its_one_file_for_the_split() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path();
    let write = |name: &str| std::fs::write(path.join(name), "a cat\n").expect("writable");
    write("train.txt");
    write("test_metadata.jsonl");
    assert_eq!(prompt_file(path, PromptSplit::Train).expect("one"), path.join("train.txt"));
    assert_eq!(prompt_file(path, PromptSplit::Test).expect("one"), path.join("test_metadata.jsonl"));
    write("train.jsonl");
    let message = prompt_file(path, PromptSplit::Train).expect_err("two").to_string();
    assert!(message.contains("holds train.jsonl and train.txt"), "{message}");
    std::fs::remove_file(path.join("test_metadata.jsonl")).expect("removable");
    let message = prompt_file(path, PromptSplit::Test).expect_err("none").to_string();
    let expected = "holds no prompt file; data.test needs exactly one file called `test` or `test_metadata`";
    assert!(message.contains(expected), "{message}");
    for name in ["Test.JSONL", "._test.txt", "test.parquet", "testing.txt"] {
        write(name);
    }
    assert_eq!(prompt_file(path, PromptSplit::Test).expect("one"), path.join("Test.JSONL"));
}

#[test]
fn what_prompts_carry_in_vain_is_told() {
    let rows = "{\"prompt\": \"a\", \"negative_prompt\": \"blurry\", \"images\": []}\n\
                {\"prompt\": \"b\", \"negative_prompt\": \"\", \"image\": \"b.png\"}\n";
    let records = read("a.jsonl", rows).expect("valid");
    let notes = unused_prompt_keys(Path::new("a.jsonl"), &records);
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].starts_with("a.jsonl: `negative_prompt` of 1 prompts is not used"), "{notes:?}");
    assert!(notes[1].contains("`image`"), "{notes:?}");
}

#[test]
fn prompts_are_read_of_files_alone() {
    let error = read_prompts(Path::new("/dev/zero")).expect_err("refused");
    assert!(!error.is_absence());
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.starts_with("it is a device, no file"), "{cause}");
}

#[test]
fn empty_prompts_are_refused_in_every_format() {
    for (name, text) in [
        ("a.jsonl", "\"a cat\"\n{\"prompt\":\"\"}\n"),
        ("a.jsonl", "\"a cat\"\n\" \"\n"),
        ("a.json", "[\"a cat\",\n\"\"]"),
        ("a.csv", "prompt,n\n\"\",1\n"),
    ] {
        let message = refusal(name, text.as_bytes());
        assert!(message.contains("line 2: `prompt` is empty"), "{name}: {message}");
    }
}

#[test]
fn an_empty_file_is_refused() {
    assert!(matches!(read("a.txt", "\n \n"), Err(PromptFileError::Empty { .. })));
}

fn texts(name: &str, text: &str) -> Vec<String> {
    let records = read(name, text).unwrap_or_else(|error| panic!("{name}: {error}"));
    records.into_iter().map(|record| record.text).collect()
}

/// Writes bytes as a file and expects it to be refused in words that name the file.
fn refusal(name: &str, bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join(name);
    std::fs::write(&path, bytes).expect("writable");
    let message = read_prompts(&path).expect_err("refused").to_string();
    assert!(message.contains(&path.display().to_string()), "{message}");
    message
}

#[test]
fn the_ending_says_the_format_in_any_case() {
    let rows = "{\"prompt\": \"a cat\"}\n{\"prompt\": \"a dog\", \"tag\": \"x\"}\n";
    for name in ["a.jsonl", "a.JSONL", "a.ndjson", "a.Ndjson", "a.json"] {
        assert_eq!(texts(name, rows), ["a cat", "a dog"], "{name}");
    }
    for name in ["a.txt", "a.TXT", "a"] {
        assert_eq!(texts(name, "a cat\na dog\n"), ["a cat", "a dog"], "{name}");
    }
    for (name, separator) in [("a.csv", ","), ("a.CSV", ","), ("a.tsv", "\t"), ("a.Tsv", "\t")] {
        let text = format!("id{separator}prompt\n1{separator}a cat\n2{separator}a dog\n");
        assert_eq!(texts(name, &text), ["a cat", "a dog"], "{name}");
    }
    for name in ["a.parquet", "a.jsonl.gz", "a.yaml", "a.md"] {
        let message = refusal(name, b"a cat\n");
        assert!(message.contains(".jsonl") && message.contains(".csv"), "{message}");
    }
}

#[test]
fn json_lists_of_strings_and_objects_are_read_whole_or_over_lines() {
    for text in [
        "[\"a cat\", {\"prompt\": \"a dog\", \"tag\": \"x\"}]",
        "\u{feff}\n[\n  \"a cat\",\r\n  {\n    \"prompt\": \"a dog\",\n    \"tag\": \"x\"\n  }\n]\n",
    ] {
        for name in ["a.json", "a.jsonl"] {
            let records = read(name, text).expect("valid");
            assert_eq!(
                records.iter().map(|record| record.text.as_str()).collect::<Vec<_>>(),
                ["a cat", "a dog"]
            );
            assert_eq!(records[0].metadata, serde_json::json!({}));
            assert_eq!(records[1].metadata, serde_json::json!({"prompt": "a dog", "tag": "x"}));
        }
    }
    assert_eq!(texts("a.jsonl", "\"a cat\"\n\"a\\ndog\"\n"), ["a cat", "a\ndog"]);
    assert_eq!(texts("a.json", "{\n \"prompt\": \"a cat\"\n}\n"), ["a cat"]);
}

#[test]
fn items_of_a_list_at_fault_are_named_by_their_lines() {
    let text = "[\n  \"a \\\"] , [ cat\",\n  {\"prompt\": [\"x\", 1]}, 7,\n\n  {\"text\": \"a\", \"n\": {\"b\": [1,\n 2]}},\n  \"a dog\"\n]\n";
    let message = refusal("a.json", text.as_bytes());
    for expected in
        ["line 3: `prompt` is not", "line 3: neither", "line 5: has no `prompt`, only `n`, `text`"]
    {
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(message.matches("line ").count(), 3, "{message}");
    let message = refusal("a.json", b"[\n\"a cat\",\n\"a dog\n]\n");
    assert!(message.contains("line 3: is no valid JSON list"), "{message}");
    let message = refusal("a.json", b"{\n \"train\": [\"a cat\"]\n}");
    assert!(message.contains("line 1: has no `prompt`, only `train`"), "{message}");
    assert!(refusal("a.json", b"[]").contains("holds no prompt"));
}

#[test]
fn json_under_the_name_of_plain_text_is_no_prompt() {
    for (text, expected) in [
        ("{\"prompt\": \"a cat\"}\n", "line 1: is a JSON object"),
        ("a cat\n\n{\"prompt\": \"a dog\"}\n", "line 3: is a JSON object"),
        ("[\n\"a cat\"\n]\n", "line 1: begins a JSON list"),
    ] {
        let message = refusal("a.txt", text.as_bytes());
        assert!(message.contains(expected) && message.contains("name the file"), "{message}");
    }
    assert_eq!(texts("a.txt", "[photo] a cat\n{a|b} dog\n{}\n"), ["[photo] a cat", "{a|b} dog", "{}"]);
}

#[test]
fn tables_keep_their_other_columns_and_what_quotes_hold() {
    let text = "\u{feff}id, Prompt ,note\r\n1,\"a cat, with \"\"hat\"\"\nand tie\",x\r\n\r\n2, a dog ,\r\n3,a \"big\" fox,\"\"";
    let records = read("a.csv", text).expect("valid");
    let texts: Vec<&str> = records.iter().map(|record| record.text.as_str()).collect();
    assert_eq!(texts, ["a cat, with \"hat\"\nand tie", "a dog", "a \"big\" fox"]);
    let expected = serde_json::json!({"id": "2", "prompt": "a dog", "note": ""});
    assert_eq!((records[1].index, &records[1].metadata), (1, &expected));
}

#[test]
fn rows_of_a_table_at_fault_are_named_by_their_lines() {
    let text = "prompt,tag\n\"a\ncat\",x\n\na,b,c\n ,x\n\"a \"dog\",x\nfox,x\n\"owl,x\nbat,x\n";
    let message = refusal("a.csv", text.as_bytes());
    for expected in [
        "line 5: has 3 fields, but the first line names 2 columns",
        "line 6: `prompt` is empty",
        "line 7: goes on after a closing quote",
        "line 9: opens a quote that nothing closes",
    ] {
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(message.matches("line ").count() - message.matches("first line").count(), 4, "{message}");
    let message = refusal("a.csv", b"\ncaption;tag\na cat;x\n");
    assert!(message.contains("line 2: names no column `prompt`, only `caption;tag`"), "{message}");
    assert!(refusal("a.csv", b"prompt,Prompt\na,b\n").contains("twice"));
    assert!(refusal("a.tsv", b"prompt\ttag\n").contains("holds no prompt"));
}

#[test]
fn lines_end_as_any_system_ends_them() {
    for text in ["a cat\na dog", "a cat\r\na dog\r\n", "a cat\ra dog\r", "a cat\r\r\na dog\n"] {
        assert_eq!(texts("a.txt", text), ["a cat", "a dog"], "{text:?}");
        let rows = text.replace("a cat", "\"a cat\"").replace("a dog", "\"a dog\"");
        assert_eq!(texts("a.jsonl", &rows), ["a cat", "a dog"], "{rows:?}");
        assert_eq!(texts("a.csv", &format!("prompt\r{text}")), ["a cat", "a dog"], "{text:?}");
    }
    let message = refusal("a.jsonl", b"\"a\"\r\"b\"\r\n7\r{\r");
    assert!(message.contains("line 3: ") && message.contains("line 4: "), "{message}");
}

#[test]
fn other_encodings_and_binary_files_are_named_by_their_lines() {
    let utf16: Vec<u8> = "\u{feff}a cat\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let message = refusal("a.txt", &utf16);
    assert!(message.contains("line 1: is UTF-16, not UTF-8") && message.contains("iconv"), "{message}");
    let message = refusal("a.txt", &utf16[2..]);
    assert!(message.contains("line 1: has a NUL byte"), "{message}");
    let message = refusal("a.csv", b"prompt\ra cat\r\ncaf\xe9 and \xe9\n\na\xfe");
    assert!(message.contains("line 3: is not UTF-8 (byte 0xE9)"), "{message}");
    assert!(message.contains("line 5: is not UTF-8 (byte 0xFE)"), "{message}");
    assert_eq!(message.matches("is not UTF-8").count(), 2, "{message}");
    assert!(refusal("a.jsonl", b"\"a\"\n\"b\0\"\n").contains("line 2: has a NUL byte"));
}
