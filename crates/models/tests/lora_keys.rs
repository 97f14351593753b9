//! Names and shapes of exported adapters of the published models, against those that diffusers and PEFT give theirs.

use std::path::{Path, PathBuf};

use models::adapter_file::{DIFFUSERS_FILE, SavedAdapter};
use models::lora::LoraConfig;
use models::safetensors_file::SafetensorsFile;
use models::weights::{Inventory, TensorSource, WeightOptions};
use models::{LoadOptions, pipeline};
use tch::{Device, Kind};

const ATTENTION: [&str; 8] = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
];
const FLUX: [&str; 4] = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"];
const QWEN_IMAGE: [&str; 4] = ["img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// Names and shapes in the LoRA file of a model that is known by its configurations alone, a line each.
fn exported(model: &str, further_targets: &[&str]) -> Vec<String> {
    // Without memory for the weights, and in half precision, where no module has its adapter merged.
    let weights = WeightOptions::new(Kind::BFloat16, Device::Cpu)
        .from_source(TensorSource::Shapes(Inventory::default()));
    let options = LoadOptions { weights, text_encoders: false, decoder: None };
    let mut model = pipeline::open(&golden().join("published").join(model), options).unwrap();
    let targets =
        ATTENTION.iter().chain(further_targets).map(|target| (*target).to_owned()).collect::<Vec<_>>();
    let config = LoraConfig { rank: 1, alpha: 2.0, targets: targets.into() };
    model.network_mut().attach_adapter(&config, &mut |_, n| vec![0.0; n]).unwrap();
    let adapter = SavedAdapter::new(config, model.network().adapter_parameters());
    let folder = tempfile::tempdir().unwrap();
    adapter.write_diffusers(folder.path()).unwrap();
    let file = SafetensorsFile::open(&folder.path().join(DIFFUSERS_FILE)).unwrap();
    let mut lines: Vec<String> = file
        .names()
        .into_iter()
        .map(|name| format!("{name} {}", shape_text(file.shape(&name).unwrap_or_default())))
        .collect();
    lines.sort();
    lines
}

fn shape_text(shape: impl AsRef<[i64]>) -> String {
    format!("{:?}", shape.as_ref()).replace(' ', "")
}

/// What diffusers recorded, with a rank of 1 in place of the recorded one.
fn recorded(model: &str, rank: i64) -> Vec<String> {
    let path = golden().join("lora_keys").join(format!("{model}.txt"));
    let text = std::fs::read_to_string(path).unwrap();
    let with_rank_one = |line: &str| match line.contains("lora_A") {
        true => line.replace(&format!("[{rank},"), "[1,"),
        false => line.replace(&format!(",{rank}]"), ",1]"),
    };
    text.lines().map(with_rank_one).collect()
}

#[test]
fn names_and_shapes_are_those_of_diffusers() {
    for (model, rank, targets, n_tensors) in [
        ("sd3.5-medium", 32, [].as_slice(), 2 * 191),
        ("flux.1-dev", 32, FLUX.as_slice(), 2 * 342),
        ("qwen-image", 64, QWEN_IMAGE.as_slice(), 2 * 720),
    ] {
        let (found, expected) = (exported(model, targets), recorded(model, rank));
        assert_eq!(expected.len(), n_tensors, "{model}");
        assert!(found == expected, "{model}: {:?}", found.iter().zip(&expected).find(|(a, b)| a != b));
    }
}
