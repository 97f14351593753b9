//! What `inspect` finds in the configurations of published models, against counts made by hand.

use std::path::Path;
use std::process::Command;

use config::{ModelInspection, preset};

/// Inspects a published model by its configurations alone, under the settings of a preset.
fn inspect(model: &str, preset_name: &str) -> ModelInspection {
    let config = preset(preset_name).expect("a preset").config;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/published").join(model);
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollout-worker"));
    command.arg("inspect").arg(folder).args(["--json", "--random-weights", "--dtype=bfloat16"]);
    command.arg(format!("--height={}", config.sampling.height));
    command.arg(format!("--width={}", config.sampling.width));
    command.arg(format!("--guidance={}", config.sampling.guidance_scale));
    command.arg(format!("--max-sequence-length={}", config.model.max_sequence_length));
    command.arg(format!("--steps={}", config.sampling.steps));
    command.arg(format!("--noise-level={}", config.sampling.noise_level));
    command.arg(format!("--step-weight={}", config.training.step_weight));
    command.arg(format!("--rank={}", config.adapter.rank));
    command.args(config.adapter.targets.iter().map(|target| format!("--target={target}")));
    let output = command.output().expect("started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("an inspection")
}

fn parameters(model: &ModelInspection, name: &str) -> u64 {
    model.components.iter().find(|component| component.name == name).expect("a component").parameters
}

/// Holds the weights of the first, the fourth and the last trained step of ten against those made by hand.
#[track_caller]
fn assert_weights(model: &ModelInspection, expected: [f64; 3]) {
    assert_eq!(model.steps.iter().map(|step| step.step).collect::<Vec<_>>(), (0..9).collect::<Vec<_>>());
    for (step, expected) in [0, 3, 8].into_iter().zip(expected) {
        let weight = model.steps[step].weight;
        assert!((weight - expected).abs() < 1e-5, "step {step}: {weight} is not {expected}");
    }
}

#[test]
fn sd35_medium_has_its_published_size() {
    let model = inspect("sd3.5-medium", "dgx-geneval-sd3-pr");
    let adapter = model.adapter.as_ref().expect("an adapter");
    assert_eq!((adapter.modules, adapter.parameters), (191, 18_776_064));
    assert_eq!(parameters(&model, "text_encoder"), 123_650_304);
    assert_eq!(parameters(&model, "text_encoder_2"), 694_659_840);
    assert_eq!(parameters(&model, "text_encoder_3"), 4_762_310_656);
    assert_eq!(parameters(&model, "vae"), 49_545_475);
    assert_eq!((model.n_blocks, model.width, model.decoder_width), (24, 1536, 256));
    assert_eq!((model.image.tokens, model.text_tokens, model.rows_per_evaluation), (1024, 205, 2));
    let transformer = parameters(&model, "transformer");
    assert!((2_200_000_000..2_500_000_000).contains(&transformer), "{transformer}");
    assert_weights(&model, [1.57655998, 1.00426225, 0.50756331]);
}

#[test]
fn flux_dev_has_its_published_size() {
    let model = inspect("flux.1-dev", "dgx-flux-pr");
    let adapter = model.adapter.as_ref().expect("an adapter");
    assert_eq!((adapter.modules, adapter.parameters), (342, 89_653_248));
    assert_eq!(parameters(&model, "transformer"), 11_901_408_320);
    assert_eq!(parameters(&model, "text_encoder_2"), 4_762_310_656);
    assert_eq!((model.n_blocks, model.width, model.decoder_width), (57, 3072, 256));
    assert_eq!((model.image.tokens, model.text_tokens, model.rows_per_evaluation), (4096, 128, 1));
    assert_weights(&model, [1.55339081, 0.98724278, 0.58794700]);
}

#[test]
fn qwen_image_has_its_published_size() {
    let model = inspect("qwen-image", "dgx-pickscore-qwenimage-pr");
    let adapter = model.adapter.as_ref().expect("an adapter");
    assert_eq!((adapter.modules, adapter.parameters), (720, 424_673_280));
    assert_eq!(parameters(&model, "transformer"), 20_430_401_088);
    assert_eq!(parameters(&model, "text_encoder"), 7_070_619_136);
    assert_eq!((model.n_blocks, model.width, model.decoder_width), (60, 3072, 192));
    assert_eq!((model.image.tokens, model.text_tokens, model.rows_per_evaluation), (1024, 512, 2));
    assert_weights(&model, [1.83953837, 1.01862086, 0.35217085]);
}
