//! The parity command on the repository's own cases, and on folders and files that are not what they should be.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use models::reference_case::ParityOptions;
use models::safetensors_file::{read_all, write};
use models::weights::WeightOptions;
use rollout_worker::commands::parity::{self, ParityOutcome};
use tch::{Device, Kind, Tensor};

const RTOL: f64 = models::reference_case::TOLERANCE;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn run(model: &Path, cases: Option<&Path>, rtol: f64) -> (anyhow::Result<ParityOutcome>, String) {
    run_in(Kind::Float, model, cases, rtol)
}

fn run_in(
    kind: Kind,
    model: &Path,
    cases: Option<&Path>,
    rtol: f64,
) -> (anyhow::Result<ParityOutcome>, String) {
    let mut text = Vec::new();
    let weights = WeightOptions::new(kind, Device::Cpu);
    let outcome = parity::run(&ParityOptions { model, cases, rtol, weights }, &mut text);
    (outcome, String::from_utf8(text).unwrap())
}

#[track_caller]
fn refusal(model: &Path, cases: Option<&Path>) -> String {
    format!("{:#}", run(model, cases, RTOL).0.expect_err("this must be refused"))
}

/// A folder with one golden case, such as `sd3/transformer`, its tensors and its call changed.
fn changed_case(
    case: &str,
    change: impl FnOnce(&mut Vec<(String, Tensor)>, &mut serde_json::Value),
) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (family, name) = case.split_once('/').unwrap();
    let name = format!("{name}.safetensors");
    let (mut tensors, metadata) = read_all(&golden(family).join("cases").join(&name)).unwrap();
    let mut call = serde_json::from_str(&metadata["call"]).unwrap();
    change(&mut tensors, &mut call);
    let metadata = HashMap::from([("call".to_owned(), call.to_string())]);
    write(&dir.path().join(name), &tensors, &metadata).unwrap();
    dir
}

#[test]
fn every_recorded_sd3_case_holds() {
    let (outcome, text) = run(&golden("sd3"), None, RTOL);
    let outcome = outcome.unwrap();
    assert_eq!(outcome.failed, 0, "{text}");
    for case in ["prompt_embeds", "transformer", "vae_decode", "pipeline_4_1.0", "pipeline_10_4.5", "lora"] {
        assert!(
            text.lines().any(|line| line.starts_with(case) && line.ends_with(" ok")),
            "{case} is missing:\n{text}"
        );
    }
    assert!(text.contains("grad.") && text.contains("t5_ids") && text.contains("negative_pooled"), "{text}");
    assert!(text.ends_with(&format!("{} passed, 0 failed\n", outcome.passed)), "{text}");
}

#[test]
fn every_recorded_qwen_image_case_holds() {
    let (outcome, text) = run(&golden("qwen-image"), None, RTOL);
    let outcome = outcome.unwrap();
    assert_eq!(outcome.failed, 0, "{text}");
    for case in ["prompt_embeds", "transformer", "vae_decode", "pipeline_4_1.0", "pipeline_10_4.0", "lora"] {
        assert!(
            text.lines().any(|line| line.starts_with(case) && line.ends_with(" ok")),
            "{case} is missing:\n{text}"
        );
    }
    // 66 gradients and the sample, two outputs of each pipeline, four of the prompts, one each of network and decoder.
    assert_eq!(outcome.passed, 67 + 2 * 2 + 4 + 2, "{text}");
}

#[test]
fn every_recorded_flux_case_holds() {
    let (outcome, text) = run(&golden("flux"), None, RTOL);
    // Three outputs of the encoders, two of each pipeline, one sample without an adapter and one with it, an image.
    let n_gradients = text.lines().filter(|line| line.contains(" grad.")).count();
    assert_eq!(outcome.unwrap(), ParityOutcome { passed: 3 + 2 * 2 + 3 + n_gradients, failed: 0 }, "{text}");
    assert!(n_gradients == 2 * (2 * 12 + 3 * 3) && text.contains("txt_ids"), "{text}");
}

#[test]
fn every_recorded_hpsv3_case_holds() {
    let (outcome, text) = run(&golden("hpsv3"), None, RTOL);
    // Patches, their grid, the hidden states and the head's numbers, of two images.
    assert_eq!(outcome.unwrap(), ParityOutcome { passed: 2 * 4, failed: 0 }, "{text}");
}

#[test]
fn every_recorded_pickscore_case_holds() {
    let (outcome, text) = run(&golden("pickscore"), None, RTOL);
    assert_eq!(outcome.unwrap(), ParityOutcome { passed: 4, failed: 0 }, "{text}");
    for output in ["pixel_values", "text_embeds", "image_embeds", "score"] {
        assert!(text.contains(output), "{output} is missing:\n{text}");
    }
}

/// Bits that a family rounds away in half precision show in every case of networks, and in no other.
#[test]
fn networks_compute_in_the_type_asked_for() {
    for (family, case) in [("sd3", "transformer"), ("pickscore", "score"), ("hpsv3", "score")] {
        let (outcome, text) = run_in(Kind::BFloat16, &golden(family), None, RTOL);
        assert!(outcome.unwrap().failed > 0, "{text}");
        let is_off = |line: &str| line.starts_with(case) && line.ends_with("FAIL");
        assert!(text.lines().any(is_off), "{family} has {case} in float32:\n{text}");
        let (outcome, text) = run_in(Kind::BFloat16, &golden(family), None, 0.5);
        assert_eq!(outcome.unwrap().failed, 0, "{text}");
    }
}

#[test]
fn pickscore_cases_that_are_not_what_we_make_of_them_are_named() {
    let refused = |change: fn(&mut Vec<(String, Tensor)>, &mut serde_json::Value)| {
        let cases = changed_case("pickscore/score", change);
        for image in ["image0.png", "image1.png", "image2.png"] {
            std::fs::copy(golden("pickscore/cases").join(image), cases.path().join(image)).unwrap();
        }
        refusal(&golden("pickscore"), Some(cases.path()))
    };
    let prompt = refused(|_, call| call["prompts"][1] = "another".into());
    assert!(
        prompt.contains("in.input_ids of `another` is [1112, ") && prompt.contains("but we make"),
        "{prompt}"
    );
    let count = refused(|_, call| call["images"] = serde_json::json!(["image0.png"]));
    assert!(count.contains("3 prompts and 1 images"), "{count}");
    let lost = refused(|_, call| call["images"][2] = "lost.png".into());
    assert!(lost.contains("lost.png"), "{lost}");
    let other = changed_case("pickscore/score", |_, _| ());
    let message = refusal(&golden("sd3/text_encoder"), Some(other.path()));
    assert!(
        message.contains("of type `clip_text_model`; cases of scores are for clip and qwen2_vl"),
        "{message}"
    );
}

#[test]
fn hpsv3_cases_that_are_not_what_we_make_of_them_are_named() {
    let refused = |change: fn(&mut Vec<(String, Tensor)>, &mut serde_json::Value)| {
        let cases = changed_case("hpsv3/score", change);
        for image in ["image0.png", "image1.png"] {
            std::fs::copy(golden("hpsv3/cases").join(image), cases.path().join(image)).unwrap();
        }
        refusal(&golden("hpsv3"), Some(cases.path()))
    };
    let ids = refused(|tensors, _| {
        let ids = tensors.iter_mut().find(|(name, _)| name == "in.1.input_ids").unwrap();
        ids.1 = ids.1.narrow(1, 1, 9).contiguous();
    });
    assert!(ids.contains("in.1.input_ids"), "{ids}");
    let image = refused(|_, call| call["images"][1] = "image7.png".into());
    assert!(image.contains("image7.png"), "{image}");
    let prompts = refused(|_, call| call["prompts"] = serde_json::json!(["one"]));
    assert!(prompts.contains("1 prompts and 2 images"), "{prompts}");
    let token = refused(|_, call| call["prompts"][0] = "a <|Reward|>".into());
    assert!(token.contains("image0.png") && token.contains("2 times the token <|Reward|>"), "{token}");
}

#[test]
fn positions_that_are_not_those_of_an_image_are_named() {
    let change_ids = |name: &str, change: fn(&Tensor)| {
        let cases = changed_case("flux/transformer", |tensors, _| {
            change(&tensors.iter().find(|(known, _)| known == name).unwrap().1);
        });
        refusal(&golden("flux"), Some(cases.path()))
    };
    let ragged = change_ids("in.img_ids", |ids| {
        let _ = ids.get(19).get(2).fill_(4.0);
    });
    assert!(ragged.contains("in.img_ids ends at row 5 and column 5, but has 20 patches"), "{ragged}");
    let swapped = change_ids("in.img_ids", |ids| {
        let _ = ids.get(1).get(1).fill_(3.0);
    });
    assert!(swapped.contains("row by row"), "{swapped}");
    let moved = change_ids("in.txt_ids", |ids| {
        let _ = ids.get(0).get(2).fill_(1.0);
    });
    assert!(moved.contains("in.txt_ids must be zero"), "{moved}");
    let uneven = change_ids("in.guidance", |guidance| {
        let _ = guidance.get(1).fill_(4.0);
    });
    assert!(uneven.contains("in.guidance is [3.5, 4.0]"), "{uneven}");
    let placeless =
        changed_case("flux/transformer", |tensors, _| tensors.retain(|(name, _)| name != "in.img_ids"));
    let message = refusal(&golden("flux"), Some(placeless.path()));
    assert!(message.contains("where the patches lie"), "{message}");
}

/// A golden family with another folder in the place of its scheduler's.
fn with_scheduler(family: &str, scheduler: &Path) -> tempfile::TempDir {
    let model = tempfile::tempdir().unwrap();
    for part in std::fs::read_dir(golden(family)).unwrap().map(Result::unwrap) {
        let name = part.file_name();
        let from = if name == "scheduler" { scheduler.to_owned() } else { part.path() };
        std::os::unix::fs::symlink(from.canonicalize().unwrap(), model.path().join(name)).unwrap();
    }
    model
}

#[test]
fn whole_runs_keep_the_grid_of_their_pipeline_under_any_bend() {
    for (crossed, family) in [
        ("flux", "flux"),
        ("flux-flow-sigmas", "flux"),
        ("flux-training-grid", "flux"),
        ("qwen-image", "qwen-image"),
        ("sd3", "sd3"),
    ] {
        let cases = golden("crossed_schedules").join(crossed);
        let model = with_scheduler(family, &cases.join("scheduler"));
        let (outcome, text) = run(model.path(), Some(&cases), RTOL);
        assert_eq!(outcome.unwrap(), ParityOutcome { passed: 2, failed: 0 }, "{crossed}:\n{text}");
    }
}

#[test]
fn every_recorded_schedule_and_step_holds_without_a_model() {
    let (outcome, text) = run(&golden("sde"), None, RTOL);
    assert_eq!(outcome.unwrap(), ParityOutcome { passed: 2 * 5 + (10 + 14) * 2, failed: 0 }, "{text}");
}

#[test]
fn every_recorded_text_has_its_token_ids() {
    for (tokenizer, passed) in [("clip", 36), ("qwen", 27)] {
        let (outcome, text) = run(&golden("tokenizers").join(tokenizer), None, RTOL);
        assert_eq!(outcome.unwrap(), ParityOutcome { passed, failed: 0 }, "{text}");
    }
}

#[test]
fn an_output_that_differs_fails_alone_and_in_one_line() {
    let cases = changed_case("sd3/vae_decode", |tensors, _| {
        let image = tensors.iter_mut().find(|(name, _)| name == "out.image").unwrap();
        image.1 = &image.1 * 1.01;
    });
    let (outcome, text) = run(&golden("sd3"), Some(cases.path()), RTOL);
    assert_eq!(outcome.unwrap(), ParityOutcome { passed: 0, failed: 1 });
    let line = text.lines().find(|line| line.starts_with("vae_decode")).unwrap();
    assert!(line.contains("image") && line.ends_with("FAIL"), "{line}");
    assert_eq!(
        run(&golden("sd3"), Some(cases.path()), 0.1).0.unwrap(),
        ParityOutcome { passed: 1, failed: 0 }
    );
}

#[test]
fn a_folder_that_is_missing_or_has_no_case_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let missing = empty.path().join("nowhere");
    assert!(refusal(&missing, None).contains("nowhere does not exist"));
    assert!(refusal(empty.path(), Some(&missing)).contains("nowhere does not exist"));
    assert!(refusal(empty.path(), None).contains("0 cases in"));
}

#[test]
fn a_malformed_case_is_named_with_what_is_wrong_in_it() {
    let sd3 = golden("sd3");
    let no_steps = changed_case("sd3/pipeline_4_1.0", |_, call| {
        call.as_object_mut().unwrap().remove("steps");
    });
    let message = refusal(&sd3, Some(no_steps.path()));
    assert!(message.contains("pipeline_4_1.0.safetensors") && message.contains("call.steps"), "{message}");

    let short_text = changed_case("sd3/transformer", |tensors, _| {
        let text = tensors.iter_mut().find(|(name, _)| name == "in.encoder_hidden_states").unwrap();
        text.1 = text.1.narrow(2, 0, 3).contiguous();
    });
    let message = refusal(&sd3, Some(short_text.path()));
    assert!(message.contains("transformer.safetensors") && message.contains("text embeddings"), "{message}");

    let no_input =
        changed_case("sd3/vae_decode", |tensors, _| tensors.retain(|(name, _)| name != "in.latents"));
    assert!(refusal(&sd3, Some(no_input.path())).contains("in.latents"));

    let unknown = changed_case("sd3/transformer", |tensors, _| {
        tensors.push(("out.mystery".to_owned(), Tensor::from_slice(&[1.0_f32])));
    });
    assert!(refusal(&sd3, Some(unknown.path())).contains("out.mystery"));

    let truncated = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(sd3.join("cases/transformer.safetensors")).unwrap();
    std::fs::write(truncated.path().join("transformer.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    assert!(refusal(&sd3, Some(truncated.path())).contains("transformer.safetensors is damaged"));

    let no_adapter = changed_case("sd3/lora", |_, _| ());
    assert!(refusal(&sd3, Some(no_adapter.path())).contains("transformer_lora"));
}
