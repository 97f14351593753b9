//! The worker's commands as a user types them wrong, or stops reading what they write.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is below the root").to_owned()
}

fn worker(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollout-worker"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).env("HF_HUB_CACHE", "/nowhere");
    command.env_remove("HUGGINGFACE_HUB_CACHE");
    command
}

#[track_caller]
fn refused(folder: &Path, arguments: &[&str], words: &[&str]) {
    let Output { status, stdout, stderr } = worker(folder, arguments).output().expect("the worker starts");
    let told = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(2), "{arguments:?}: {told}");
    assert!(told.starts_with("error: ") && !told.contains("panicked"), "{told}");
    assert_eq!(String::from_utf8_lossy(&stdout), "");
    for word in words {
        assert!(told.contains(word), "`{word}` is not in {told}");
    }
}

fn tiny() -> String {
    repository().join("assets/tiny-sd3").display().to_string()
}

#[test]
fn parity_without_cases_names_the_script_that_makes_them() {
    let home = tempfile::tempdir().unwrap();
    let model = tiny();
    let script = format!("python tests/reference/write_cases.py --model {model} --out ");
    refused(home.path(), &["parity", &model], &["0 cases in", &format!("{script}cases`")]);
    // A folder of that name is no case, whatever it is called.
    std::fs::create_dir_all(home.path().join("empty/transformer.safetensors")).unwrap();
    let command = format!("{script}{}`", home.path().join("empty").display());
    refused(home.path(), &["parity", &model, "--cases", "empty"], &["0 cases in", &command]);
    let nowhere = home.path().join("nowhere").display().to_string();
    refused(home.path(), &["parity", &model, "--cases", "nowhere"], &[&nowhere, "does not exist", &script]);
    for odd in ["NaN", "inf", "-1e-4", "tight"] {
        refused(home.path(), &["parity", &model, &format!("--rtol={odd}")], &["--rtol", "0 or more"]);
    }
}

#[test]
fn models_that_are_none_are_named_with_where_they_were_looked_for() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("file"), "").unwrap();
    let here = home.path().display().to_string();
    for (model, words) in [
        ("./tiny", &["tiny/model_index.json is missing", "diffusers layout", "org/name"][..]),
        ("file", &["file/model_index.json is missing"]),
        (".", &["model_index.json is missing"]),
        ("org/tiny", &["hf download org/tiny"]),
    ] {
        refused(home.path(), &["inspect", model], &[words, &[&here]].concat());
    }
}

#[test]
fn numbers_beyond_what_a_model_bears_are_refused_before_it_runs() {
    let home = tempfile::tempdir().unwrap();
    let model = tiny();
    let inspect = |flags: &[&str], words: &[&str]| {
        refused(home.path(), &[&["inspect", model.as_str()], flags].concat(), words);
    };
    for rank in ["4096", "99999999999999", "9223372036854775807"] {
        inspect(&["--rank", rank, "--target", "attn.to_q"], &[rank, "full rank", "lower"]);
    }
    inspect(&["--rank", "-1", "--target", "attn.to_q"], &["rank -1"]);
    inspect(&["--max-sequence-length", "4096"], &["4096", "at most 512"]);
    inspect(&["--max-sequence-length", "18446744073709551615"], &["18446744073709551615", "to 4096"]);
    let with_t5 = repository().join("tests/golden/sd3").display().to_string();
    let flux = repository().join("tests/golden/flux").display().to_string();
    for (model, length) in [(&with_t5, "4096"), (&flux, "4096"), (&flux, "0")] {
        let arguments = ["inspect", model, "--max-sequence-length", length];
        refused(home.path(), &arguments, &["max_sequence_length"]);
    }
    inspect(&["--height", "9223372036854775807"], &["9223372036854775807", "sides are multiples of"]);
    inspect(&["--guidance", "NaN"], &["--guidance", "finite"]);
    let sample = |flags: &[&str], words: &[&str]| {
        let fixed = ["sample", "--model", model.as_str(), "--prompts", "prompts.txt", "--out", "out"];
        refused(home.path(), &[&fixed[..], flags].concat(), words);
    };
    for (flag, odd) in [
        ("--steps", "0"),
        ("--steps", "1000001"),
        ("--height", "0"),
        ("--width", "-8"),
        ("--images-per-prompt", "0"),
        ("--max-rows", "0"),
        ("--vae-tile", "-4"),
        ("--guidance", "inf"),
        ("--seed", "-1"),
        ("--threads", "0"),
        ("--threads", "65535"),
        ("--dtype", "float16"),
        ("--adapter", ""),
    ] {
        sample(&[flag, odd], &[flag]);
    }
}

#[test]
fn images_and_prompts_that_cannot_be_scored_are_named() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    std::fs::create_dir(path("images")).unwrap();
    std::fs::write(path("prompts.txt"), "a red circle\n").unwrap();
    let score = |reward: &str, words: &[&str]| {
        let fixed = ["score", "--images", "images", "--prompts", "prompts.txt", "--reward"];
        refused(home.path(), &[&fixed[..], &[reward]].concat(), words);
    };
    score("jpeg_compressibility", &["images holds no file of the name NUMBER.png"]);
    std::fs::write(path("images/00000-0.png"), "no image").unwrap();
    score("jpeg_compressibility", &["cannot read the image", "images/00000-0.png"]);
    // Before an image is looked at.
    score("shapes", &["prompt 1 `a red circle` has no `tag`", "prompts.txt"]);
    std::fs::rename(path("images/00000-0.png"), path("images/00001-0.png")).unwrap();
    score("jpeg_compressibility", &["00001-0.png belongs to prompt 1, but the file has 1 prompts"]);
}

/// Runs a command whose standard output nobody reads.
fn unread(arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = worker(&repository(), arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the worker starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the worker ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_reader_that_goes_away_ends_the_program_without_a_word() {
    let model = tiny();
    for arguments in
        [&["inspect", &model][..], &["inspect", &model, "--json"], &["parity", "tests/golden/sde"]]
    {
        let gone = Some(i32::from(service::exit_code::READER_GONE));
        assert_eq!(unread(arguments), (gone, String::new()), "{arguments:?}");
    }
}
