//! `make gpu-check` on the CPU with tiny models, so that it is known to work where it is needed: on a card, once.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tests::{cargo, coordinator, repository};

fn gpu_check(arguments: &[&str]) -> Output {
    let mut command = Command::new("python3");
    command.arg("tests/gpu_check/gpu_check.py").args(arguments).current_dir(repository());
    command.output().expect("Python 3")
}

/// Builds the one example that the checks time, beside the programs.
fn programs() -> String {
    let programs = coordinator().parent().expect("a folder").to_owned();
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "-p", "run-setup", "--example", "transformer_speed"]);
    if programs.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.status().expect("cargo runs").success());
    programs.display().to_string()
}

fn results(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("results.json")).expect("results");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn on_the_cpu_every_check_holds_or_says_what_it_needs() {
    let out = tempfile::tempdir().expect("a directory");
    let folder = out.path().to_str().expect("text");
    let output = gpu_check(&["--device", "cpu", "--out", folder, "--programs", &programs()]);
    let said = format!("{output:?}");
    assert!(output.status.success(), "{said}");
    let results = results(out.path());
    let page = std::fs::read_to_string(out.path().join("results.md")).expect("a page");
    let steps = results["steps"].as_array().expect("steps");
    assert_eq!(steps.len(), 10, "{said}");
    for step in steps {
        let name = step["name"].as_str().expect("a name");
        let expected = if name == "out of memory" { "not run" } else { "holds" };
        assert_eq!(step["result"], expected, "{name}: {step}");
        assert!(page.contains(&format!("| {name} | {expected} | ")), "{name} is not on the page:\n{page}");
    }
    let measured =
        |name: &str| steps.iter().find(|step| step["name"] == name).expect("the step")["measured"].clone();
    assert_eq!(measured("tiny run")["with two workers"]["iterations"], 4);
    let float32 = measured("parity float32");
    assert!(float32["learner sd3"]["outputs"].as_u64() > Some(100), "{float32}");
    assert!(measured("speed")["tiny SD3"]["4 rows"]["training rows/s"].as_f64() > Some(0.0));
}

#[test]
fn what_does_not_hold_or_has_no_time_is_told_and_the_rest_goes_on() {
    let out = tempfile::tempdir().expect("a directory");
    let folder = out.path().to_str().expect("text");
    let arguments =
        ["--device", "cpu", "--out", folder, "--only", "load", "scorers", "--programs", "/nowhere"];
    let output = gpu_check(&arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let without_programs = results(out.path());
    assert_eq!(without_programs["steps"][0]["result"], "does not hold", "{without_programs}");
    assert!(
        without_programs["steps"][0]["reason"].as_str().is_some_and(|reason| reason.contains("/nowhere"))
    );
    let output = gpu_check(&[&arguments[..], &["--minutes", "0"]].concat());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(results(out.path())["steps"][1]["reason"], "the time for all checks was over");
}

#[test]
fn without_a_card_it_says_so_and_what_to_do() {
    if ["/dev/nvidiactl", "/dev/dxg"].iter().any(|device| Path::new(device).exists()) {
        return;
    }
    let output = gpu_check(&["--look"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for words in ["no card is here", "make setup DEVICE=cuda", "make gpu-check DEVICE=cpu"] {
        assert!(said.contains(words), "{said}");
    }
}
