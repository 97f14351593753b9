//! `learner parity` on the recorded cases, and on cases that are wrong.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use learner::parity::{ParityOutcome, run};
use models::Activations;
use models::reference_case::{ParityOptions, TOLERANCE};
use models::safetensors_file::{read_all, write};
use models::weights::WeightOptions;
use tch::{Device, Kind};

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(family)
}

fn sd3() -> PathBuf {
    golden("sd3")
}

fn check(cases: Option<&Path>, rtol: f64) -> (anyhow::Result<ParityOutcome>, String) {
    check_with("sd3", Activations::Kept, cases, rtol)
}

fn check_with(
    family: &str,
    activations: Activations,
    cases: Option<&Path>,
    rtol: f64,
) -> (anyhow::Result<ParityOutcome>, String) {
    let mut out = Vec::new();
    let (model, weights) = (golden(family), WeightOptions::new(Kind::Float, Device::Cpu));
    let outcome = run(&ParityOptions { model: &model, cases, rtol, weights }, activations, &mut out);
    (outcome, String::from_utf8(out).unwrap())
}

/// A folder with copies of everything that the recorded update consists of.
fn copied_cases() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in ["rl_step.safetensors", "rl_lora_before", "rl_lora_after"] {
        let from = sd3().join("cases").join(entry);
        let to = folder.path().join(entry);
        if from.is_file() {
            std::fs::copy(from, to).unwrap();
            continue;
        }
        std::fs::create_dir(&to).unwrap();
        for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    folder
}

#[test]
fn recorded_gradients_and_updates_are_reproduced() {
    for activations in [Activations::Kept, Activations::Recomputed] {
        let (outcome, text) = check_with("sd3", activations, None, TOLERANCE);
        let ParityOutcome { passed, failed } = outcome.unwrap();
        // 62 adapter tensors: gradients and sample of one case; gradients, six terms, the norm and the update of the
        // other.
        assert_eq!((passed, failed), (63 + 62 + 7 + 62, 0), "{text}");
        assert!(text.ends_with("194 passed, 0 failed\n"), "{text}");
    }
}

#[test]
fn recorded_gradients_of_qwen_image_are_reproduced() {
    for activations in [Activations::Kept, Activations::Recomputed] {
        let (outcome, text) = check_with("qwen-image", activations, None, TOLERANCE);
        let ParityOutcome { passed, failed } = outcome.unwrap();
        // 72 adapter tensors less the last block's text output, which nobody reads and nothing is recorded of; the
        // sample.
        assert_eq!((passed, failed), (67, 0), "{text}");
    }
}

#[test]
fn recorded_gradients_of_flux_are_reproduced() {
    for activations in [Activations::Kept, Activations::Recomputed] {
        let (outcome, text) = check_with("flux", activations, None, TOLERANCE);
        // Twelve modules of each block over two streams and three of each over one have two factors each; and the
        // sample.
        assert_eq!(outcome.unwrap(), ParityOutcome { passed: 2 * (2 * 12 + 3 * 3) + 1, failed: 0 }, "{text}");
    }
}

#[test]
fn a_tolerance_that_floats_cannot_meet_fails_and_says_where() {
    let (outcome, text) = check(None, 1e-12);
    assert!(outcome.unwrap().failed > 0);
    assert!(
        text.lines()
            .any(|line| line.starts_with("lora ") && line.contains(" sample ") && line.ends_with(" FAIL")),
        "{text}"
    );
}

#[test]
fn a_wrong_update_is_found() {
    let folder = copied_cases();
    let after = folder.path().join("rl_lora_after/adapter_model.safetensors");
    std::fs::copy(folder.path().join("rl_lora_before/adapter_model.safetensors"), after).unwrap();
    let (outcome, text) = check(Some(folder.path()), TOLERANCE);
    assert!(outcome.unwrap().failed > 0);
    assert!(
        text.lines().filter(|line| line.ends_with("FAIL")).all(|line| line.contains(" adapter_after.")),
        "{text}"
    );
}

#[test]
fn cases_that_cannot_be_run_are_told_by_name() {
    let folder = copied_cases();
    let path = folder.path().join("rl_step.safetensors");
    let message = || format!("{:#}", check(Some(folder.path()), TOLERANCE).0.unwrap_err());

    let (mut tensors, metadata) = read_all(&path).unwrap();
    let metadata: HashMap<String, String> = metadata.into_iter().collect();
    write(&path, &tensors, &HashMap::new()).unwrap();
    assert!(message().contains("rl_step.safetensors is damaged: its header has no `call`"), "{}", message());

    tensors.retain(|(name, _)| name != "in.latents");
    write(&path, &tensors, &metadata).unwrap();
    assert!(message().contains("in.latents"), "{}", message());

    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(message().contains("rl_step.safetensors is damaged"), "{}", message());

    std::fs::remove_file(&path).unwrap();
    assert!(message().contains("looked for lora*.safetensors"), "{}", message());

    let nowhere = folder.path().join("nowhere");
    let error = format!("{:#}", check(Some(&nowhere), TOLERANCE).0.unwrap_err());
    assert!(error.contains("nowhere"), "{error}");
}
