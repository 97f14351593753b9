//! Adapters that PEFT and diffusers wrote (`tests/golden/adapters/make_adapters.py`): those of plain LoRA give the outputs
//! that these give, the others are refused by the key that makes them others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use models::adapter_file::{DIFFUSERS_FILE, PEFT_CONFIG, PEFT_TENSORS, SavedAdapter};
use models::reference_case::{NetworkQuery, ReferenceCase, TOLERANCE};
use models::safetensors_file::{SafetensorsFile, read_all};
use models::weights::{Inventory, TensorSource, WeightOptions, write};
use models::{AdapterMode, LoadOptions, TextToImageModel, pipeline};
use tch::{Device, Kind, Tensor, no_grad};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

fn cases() -> BTreeMap<String, Option<String>> {
    serde_json::from_slice(&std::fs::read(golden("adapters/cases.json")).unwrap()).unwrap()
}

fn family(case: &str) -> &'static str {
    if case.starts_with("flux") { "flux" } else { "sd3" }
}

fn open(family: &str, source: TensorSource) -> Box<dyn TextToImageModel> {
    let weights = WeightOptions::new(Kind::Float, Device::Cpu).from_source(source);
    pipeline::open(&golden(family), LoadOptions { weights, text_encoders: false, decoder: None }).unwrap()
}

fn output(model: &dyn TextToImageModel, family: &str) -> Tensor {
    let case =
        ReferenceCase::open(&golden(family).join("cases/transformer.safetensors"), Device::Cpu).unwrap();
    no_grad(|| NetworkQuery::read(&case, model).unwrap().sample(model, AdapterMode::Frozen))
}

#[track_caller]
fn refusal(path: &Path) -> String {
    SavedAdapter::read(path).err().unwrap_or_else(|| panic!("{} was read", path.display())).to_string()
}

/// A copy of a recorded adapter that may be changed.
fn copied(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden("adapters").join(case)).unwrap().flatten() {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// Gives the tensors of a file other names.
fn rename(path: &Path, name: impl Fn(&str) -> String) {
    let (tensors, metadata) = read_all(path).unwrap();
    let renamed: Vec<(String, Tensor)> =
        tensors.into_iter().map(|(old, tensor)| (name(&old), tensor)).collect();
    write(path, &renamed, &metadata.into_iter().collect()).unwrap();
}

#[test]
fn plain_lora_gives_the_outputs_of_peft_and_diffusers() {
    let expected = SafetensorsFile::open(&golden("adapters/expected.safetensors")).unwrap();
    let plain: Vec<String> =
        cases().into_iter().filter(|(_, key)| key.is_none()).map(|(name, _)| name).collect();
    assert!(plain.len() >= 15, "{plain:?}");
    for name in plain {
        let mut model = open(family(&name), TensorSource::Files);
        let folder = golden("adapters").join(&name);
        SavedAdapter::load_into(&folder, model.network_mut())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let (got, want) = (output(model.as_ref(), family(&name)), expected.read(&name).unwrap());
        let error = (got - &want).norm().double_value(&[]) / want.norm().double_value(&[]);
        assert!(error <= TOLERANCE, "{name}: relative error {error:e}");
    }
}

#[test]
fn what_is_more_than_plain_lora_is_refused_by_its_key() {
    for (name, key) in cases() {
        let Some(key) = key else { continue };
        let error = refusal(&golden("adapters").join(&name));
        assert!(
            error.contains(&format!("{PEFT_CONFIG}: {key}: ")) && error.contains("PEFT's `"),
            "{name}: {error}"
        );
    }
}

#[test]
fn tensors_beside_the_factors_are_refused_where_no_settings_tell_of_them() {
    for (case, word) in
        [("use_dora", "use_dora"), ("lora_bias", "lora_bias"), ("modules_to_save", "modules_to_save")]
    {
        let folder = copied(case);
        std::fs::remove_file(folder.path().join(PEFT_CONFIG)).unwrap();
        let file = folder.path().join(DIFFUSERS_FILE);
        std::fs::rename(folder.path().join(PEFT_TENSORS), &file).unwrap();
        rename(&file, |name| name.replace("base_model.model.", "transformer."));
        let error = refusal(&file);
        assert!(error.contains(word) && !error.contains("damaged"), "{case}: {error}");
    }
}

#[test]
fn an_adapter_is_read_by_its_files_too_and_in_a_checkpoint_of_flow_grpo() {
    let plain = SavedAdapter::read(&golden("adapters/plain")).unwrap();
    let checkpoint = tempfile::tempdir().unwrap();
    let inner = checkpoint.path().join("checkpoint-60/lora");
    std::fs::create_dir_all(&inner).unwrap();
    for file in [PEFT_CONFIG, PEFT_TENSORS] {
        std::fs::copy(golden("adapters/plain").join(file), inner.join(file)).unwrap();
    }
    for place in [inner.join(PEFT_TENSORS), inner.join(PEFT_CONFIG), checkpoint.path().join("checkpoint-60")]
    {
        let read = SavedAdapter::read(&place).unwrap();
        assert_eq!((&read.config, &read.tensors), (&plain.config, &plain.tensors), "{}", place.display());
    }
    let error = refusal(checkpoint.path());
    assert!(error.contains("here that is checkpoint-60"), "{error}");
    std::fs::remove_file(inner.join(PEFT_CONFIG)).unwrap();
    for place in [inner.join(PEFT_TENSORS), inner] {
        let error = refusal(&place);
        assert!(
            error.contains("adapter_config.json is missing") && error.contains("rank and alpha"),
            "{error}"
        );
    }
}

#[test]
fn parts_of_text_encoders_are_left_out_and_told() {
    let file = golden("adapters/diffusers_text_encoder").join(DIFFUSERS_FILE);
    let saved = SavedAdapter::read(&file).unwrap();
    let n_tensors = SafetensorsFile::open(&file).unwrap().names().len() - saved.tensors.len();
    assert_eq!(saved.left_out, [format!("{n_tensors} tensors of text_encoder")]);
    assert_eq!((saved.config.rank, saved.config.alpha), (2, 3.0));
    let folder = copied("diffusers_text_encoder");
    let file = folder.path().join(DIFFUSERS_FILE);
    rename(&file, |name| name.replace("transformer.", "text_encoder_2."));
    assert!(refusal(&file).contains("no adapter of the transformer"));
}

#[test]
fn other_formats_are_named_and_not_called_damaged() {
    for (prefix, word) in [
        ("lora_unet_", "Kohya's"),
        ("diffusion_model.", "ComfyUI's"),
        ("", "a network by itself"),
        ("double_blocks.0.", "the original network's"),
        ("unet.", "UNet"),
    ] {
        let folder = copied("diffusers_without_metadata");
        let file = folder.path().join(DIFFUSERS_FILE);
        rename(&file, |name| name.replace("transformer.", prefix));
        let error = refusal(&file);
        assert!(
            error.contains(word) && error.contains(DIFFUSERS_FILE) && !error.contains("damaged"),
            "{prefix}: {error}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    for (text, word) in [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "git lfs pull"),
        ("<!DOCTYPE html>\n<html lang=\"en\">", "web page"),
        ("Entry not found", "is a text"),
    ] {
        for name in [DIFFUSERS_FILE, "any.bin", PEFT_TENSORS] {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            let error = refusal(&file);
            assert!(
                !error.contains("damaged") && (error.contains(word) || name == "any.bin"),
                "{name}: {error}"
            );
        }
    }
}

#[test]
fn factors_must_come_in_pairs_of_one_rank_and_of_finite_numbers() {
    let folder = copied("diffusers_without_metadata");
    let file = folder.path().join(DIFFUSERS_FILE);
    let (tensors, _) = read_all(&file).unwrap();
    type NamedTensors = Vec<(String, Tensor)>;
    let change = |change: &dyn Fn(&mut NamedTensors)| {
        let mut changed: NamedTensors =
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect();
        change(&mut changed);
        write(&file, &changed, &Default::default()).unwrap();
        refusal(&file)
    };
    let name = tensors[0].0.clone();
    let error = change(&|tensors| drop(tensors.remove(0)));
    assert!(
        error.contains("1 missing") && error.contains(name.trim_start_matches("transformer.")),
        "{error}"
    );
    let error = change(&|tensors| {
        let (pair, rank) = (tensors[..2].iter_mut(), 1);
        pair.for_each(|(name, tensor)| *tensor = tensor.narrow(i64::from(name.contains("lora_B")), 0, rank));
    });
    assert!(error.contains("only one rank for all modules"), "{error}");
    let error = change(&|tensors| drop(tensors[0].1.fill_(f64::NAN)));
    assert!(error.contains("not finite") && error.contains(&name), "{error}");
    let error = change(&|tensors| tensors[0].1 = tensors[0].1.to_kind(Kind::Int8));
    assert!(error.contains("element type") && error.contains(&name), "{error}");
}

#[test]
fn training_goes_on_only_from_the_adapter_that_the_config_describes() {
    let model = open("sd3", TensorSource::Headers(Inventory::default()));
    let path = golden("adapters/plain");
    let ends = |ends: &[&str]| ends.iter().map(|end| (*end).to_owned()).collect::<Vec<_>>().into();
    let config = models::lora::LoraConfig { rank: 2, alpha: 3.0, targets: ends(&["attn.to_q", "attn.to_v"]) };
    assert!(SavedAdapter::to_go_on_from(&path, &config, model.network()).is_ok());
    let refused = |config, model: &dyn TextToImageModel| {
        SavedAdapter::to_go_on_from(&path, &config, model.network()).unwrap_err().to_string()
    };
    for (rank, alpha) in [(4, 3.0), (2, 4.0)] {
        let error = refused(models::lora::LoraConfig { rank, alpha, ..config.clone() }, model.as_ref());
        assert!(error.contains("rank 2 and alpha 3") && error.contains("adapter.rank"), "{error}");
    }
    let error = refused(
        models::lora::LoraConfig { targets: ends(&["attn.to_q", "proj_out"]), ..config.clone() },
        model.as_ref(),
    );
    assert!(error.contains("1 of those are not in it (such as proj_out), 4 are in it besides"), "{error}");
    let flux = open("flux", TensorSource::Headers(Inventory::default()));
    let error = refused(config, flux.as_ref());
    assert!(error.contains("transformer has not as linear modules"), "{error}");
}
