//! The learner's commands as a user types them wrong.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is below the root").to_owned()
}

fn learner(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_learner"));
    command.args(arguments).current_dir(folder).env("HF_HUB_CACHE", "/nowhere");
    command.env_remove("HUGGINGFACE_HUB_CACHE").output().expect("the learner starts")
}

#[track_caller]
fn fails(folder: &Path, arguments: &[&str], code: i32, words: &[&str]) {
    let output = learner(folder, arguments);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
    assert!(told.contains("error: ") && !told.contains("panicked"), "{told}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    for word in words {
        assert!(told.contains(word), "`{word}` is not in {told}");
    }
}

#[test]
fn parity_without_cases_names_the_script_that_makes_them() {
    let home = tempfile::tempdir().unwrap();
    let model = repository().join("assets/tiny-sd3");
    let model = model.to_str().unwrap();
    std::fs::create_dir(home.path().join("empty")).unwrap();
    let script = format!("python tests/reference/write_cases.py --model {model} --out ");
    fails(home.path(), &["parity", model], 2, &["0 cases in", &format!("{script}cases`")]);
    let empty = home.path().join("empty");
    let command = format!("{script}{}`", empty.display());
    fails(home.path(), &["parity", model, "--cases", "empty"], 2, &["0 cases in", &command]);
    let nowhere = home.path().join("nowhere").display().to_string();
    fails(home.path(), &["parity", model, "--cases", "nowhere"], 2, &[&nowhere, "does not exist", &script]);
}

#[test]
fn models_and_tolerances_that_are_none_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let here = home.path().display().to_string();
    fails(home.path(), &["parity", "./tiny"], 2, &[&here, "does not exist"]);
    fails(home.path(), &["parity", "org/tiny"], 2, &[&here, "hf download org/tiny"]);
    for odd in ["NaN", "inf", "-1e-4", "tight"] {
        fails(home.path(), &["parity", "tiny", &format!("--rtol={odd}")], 2, &["--rtol", "0 or more"]);
    }
}

#[test]
fn pre_training_keeps_what_is_there_and_leaves_nothing_that_is_not_trained() {
    let home = tempfile::tempdir().unwrap();
    let shipped = repository().join("deploy/configs/pretrain-tiny.toml");
    let text = std::fs::read_to_string(&shipped).unwrap();
    let shipped = shipped.to_str().unwrap();
    std::fs::create_dir(home.path().join("there")).unwrap();
    std::fs::write(home.path().join("file"), "kept").unwrap();
    for there in ["there", "file"] {
        let path = home.path().join(there).display().to_string();
        fails(home.path(), &["pretrain", shipped, "--out", there], 2, &[&path, "is there already", "--out"]);
    }
    fails(home.path(), &["pretrain", shipped, "--out", "file/below"], 1, &["file/below"]);
    fails(home.path(), &["pretrain", "nowhere.toml", "--out", "new"], 2, &["nowhere.toml"]);
    let wild = text.replace("learning_rate = 2e-3", "learning_rate = 1e300");
    assert!(wild != text);
    std::fs::write(home.path().join("wild.toml"), wild).unwrap();
    fails(home.path(), &["pretrain", "wild.toml", "--out", "new"], 1, &["is not finite", "lower"]);
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 3, "nothing is left of what failed");
    assert_eq!(std::fs::read(home.path().join("file")).unwrap(), b"kept");
}
