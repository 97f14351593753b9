//! Whole pipelines from every source of weights: files of any element type and variant, headers alone, configurations
//! alone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use models::lora::LoraConfig;
use models::pipeline;
use models::weights::{Inventory, TensorSource, WeightOptions, read_all, write};
use models::{Guidance, LoadOptions, TextToImageModel};
use tch::{Device, Kind, Tensor};

const FLOAT: WeightOptions = WeightOptions::new(Kind::Float, Device::Cpu);

fn golden() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/sd3"))
}

fn whole(weights: WeightOptions) -> LoadOptions {
    LoadOptions { weights, text_encoders: true, decoder: Some(models::DecoderOptions::WHOLE) }
}

fn from_source(source: TensorSource) -> LoadOptions {
    whole(FLOAT.from_source(source))
}

/// A copy of the golden pipeline's files whose names pass.
fn copied(wanted: impl Fn(&str) -> bool) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let copy_files = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            if entry.path().is_file() && wanted(name.to_str().unwrap()) {
                std::fs::copy(entry.path(), to.join(name)).unwrap();
            }
        }
    };
    copy_files(&golden(), copy.path());
    for entry in std::fs::read_dir(golden()).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() && entry.file_name() != "cases" {
            copy_files(&entry.path(), &copy.path().join(entry.file_name()));
        }
    }
    copy
}

/// Configurations alone: no weights and no tokenizers.
fn configurations() -> tempfile::TempDir {
    copied(|name| ["config.json", "model_index.json", "scheduler_config.json"].contains(&name))
}

fn transformer_file(folder: &Path) -> PathBuf {
    folder.join("transformer/diffusion_pytorch_model.safetensors")
}

fn transformer_sum(model: &dyn TextToImageModel) -> f64 {
    let tensors = model.network().checkpoint();
    tensors.iter().map(|(_, tensor)| tensor.abs().sum(Kind::Double).double_value(&[])).sum()
}

#[test]
fn headers_alone_tell_the_sizes_of_what_would_be_loaded() {
    let inventory = Inventory::default();
    let sized = pipeline::open(&golden(), from_source(TensorSource::Headers(inventory.clone()))).unwrap();
    let loaded = pipeline::open(&golden(), whole(FLOAT)).unwrap();
    let components: HashMap<_, _> = inventory.components().into_iter().collect();
    let mut names: Vec<&str> = components.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"]);
    let tensors = loaded.network().checkpoint();
    let parameters: usize = tensors.iter().map(|(_, tensor)| tensor.numel()).sum();
    let largest = tensors.iter().map(|(_, tensor)| tensor.numel()).max().unwrap();
    let transformer = components["transformer"];
    assert_eq!(transformer.parameters, parameters as u64);
    assert_eq!(transformer.bytes, 4 * parameters as u64);
    assert_eq!(transformer.largest_tensor_bytes, 4 * largest as u64);
    // Nothing was allocated for them.
    assert!(
        sized
            .network()
            .parameters()
            .iter()
            .filter(|(name, _)| name.ends_with("weight"))
            .all(|(_, tensor)| tensor.numel() == 1 || tensor.stride().contains(&0) || tensor.numel() < 256)
    );
}

#[test]
fn an_adapter_is_sized_as_it_would_be_attached() {
    let targets = vec!["attn.to_q".to_owned(), "ff.net.2".to_owned()];
    let config = LoraConfig { rank: 3, alpha: 3.0, targets: targets.into() };
    let inventory = Inventory::default();
    let sized = pipeline::open(&golden(), from_source(TensorSource::Headers(inventory.clone()))).unwrap();
    let mut loaded = pipeline::open(&golden(), whole(FLOAT)).unwrap();
    loaded.network_mut().attach_adapter(&config, &mut |_, length| vec![0.0; length]).unwrap();
    let attached: usize =
        loaded.network().adapter_parameters().iter().map(|(_, tensor)| tensor.numel()).sum();
    let sizes = sized.network().adapter_sizes(&config).unwrap();
    assert_eq!(2 * sizes.len(), loaded.network().adapter_parameters().len());
    assert_eq!(sizes.iter().sum::<i64>(), attached as i64);
    let nothing = LoraConfig { targets: vec!["attn.to_z".to_owned()].into(), ..config };
    assert!(sized.network().adapter_sizes(&nothing).unwrap_err().to_string().contains("attn.to_z"));
}

#[test]
fn headers_tell_what_is_wrong_with_a_file_as_loading_would() {
    let folder = copied(|_| true);
    let path = transformer_file(folder.path());
    let (mut tensors, metadata) = read_all(&path).unwrap();
    let (name, tensor) = tensors.remove(0);
    tensors.push((format!("{name}_misspelt"), tensor));
    let reshaped = tensors[0].1.flatten(0, -1).unsqueeze(0);
    tensors[0].1 = reshaped;
    write(&path, &tensors, &metadata.into_iter().collect()).unwrap();
    let inventory = Inventory::default();
    let told = |options| pipeline::open(folder.path(), options).err().unwrap().to_string();
    let error = told(from_source(TensorSource::Headers(inventory.clone())));
    assert_eq!(error, told(whole(FLOAT)));
    for part in ["1 missing", "1 unexpected", "_misspelt", "1 mis-shaped"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
}

#[test]
fn half_precision_files_are_read_into_any_element_type() {
    let folder = copied(|_| true);
    let path = transformer_file(folder.path());
    let (tensors, metadata) = read_all(&path).unwrap();
    let expected = transformer_sum(pipeline::open(&golden(), whole(FLOAT)).unwrap().as_ref());
    for stored in [Kind::Half, Kind::BFloat16] {
        let tensors: Vec<_> = tensors.iter().map(|(name, t)| (name.clone(), t.to_kind(stored))).collect();
        write(&path, &tensors, &metadata.clone().into_iter().collect()).unwrap();
        for kind in [Kind::Float, Kind::BFloat16] {
            let model = pipeline::open(folder.path(), whole(WeightOptions::new(kind, Device::Cpu))).unwrap();
            let found = transformer_sum(model.as_ref());
            assert!((found / expected - 1.0).abs() < 1e-3, "{stored:?} as {kind:?}: {found}, {expected}");
            let tensors = model.network().checkpoint();
            assert!(tensors.iter().all(|(_, tensor)| tensor.kind() == kind));
        }
    }
}

#[test]
fn a_variant_is_read_where_a_component_has_it_and_must_be_had_by_one() {
    let folder = copied(|_| true);
    let plain = transformer_file(folder.path());
    let (tensors, metadata) = read_all(&plain).unwrap();
    let doubled: Vec<_> =
        tensors.iter().map(|(name, t)| (name.clone(), (t * 2.0).to_kind(Kind::Half))).collect();
    let variant = plain.with_file_name("diffusion_pytorch_model.fp16.safetensors");
    write(&variant, &doubled, &metadata.into_iter().collect()).unwrap();
    let open = |variant| pipeline::open(folder.path(), whole(WeightOptions { variant, ..FLOAT }));
    let (plain, half) = (open(None).unwrap(), open(Some("fp16".into())).unwrap());
    let ratio = transformer_sum(half.as_ref()) / transformer_sum(plain.as_ref());
    assert!((ratio - 2.0).abs() < 1e-3, "{ratio}");
    let error = open(Some("fp61".into())).err().unwrap().to_string();
    assert!(error.contains("`fp61`") && error.contains("present: fp16"), "{error}");
}

#[test]
fn random_weights_need_configurations_alone_and_draw_the_same_image_for_a_seed() {
    let folder = configurations();
    assert_eq!(pipeline::absent_tokenizers(folder.path()).unwrap().len(), 3);
    let image = |seed, kind| {
        let weights = WeightOptions::new(kind, Device::Cpu).from_source(TensorSource::Random(seed));
        let model = pipeline::open(folder.path(), whole(weights)).unwrap();
        let text = model.encode_prompts(&["a red cube".to_owned()], 16).unwrap();
        let shape = [&[1], model.latent_shape(16, 16).unwrap().as_slice()].concat();
        let latents = Tensor::ones(shape, (Kind::Float, Device::Cpu));
        let sigmas = Tensor::ones([1], (Kind::Float, Device::Cpu));
        let velocity = model.velocity(&latents, &sigmas, &Guidance::none(&text), models::AdapterMode::Off);
        assert!(velocity.std(false).double_value(&[]) > 0.0, "nothing flows through the network");
        model.decode_signed(&(latents - velocity)).unwrap()
    };
    let first = image(7, Kind::Float);
    assert!(first.isfinite().all().int64_value(&[]) == 1);
    assert_eq!(first, image(7, Kind::Float));
    assert_ne!(first, image(8, Kind::Float));
    assert!(image(7, Kind::BFloat16).isfinite().all().int64_value(&[]) == 1);
}

#[test]
fn weights_from_files_do_not_do_without_tokenizers() {
    let folder = copied(|name| !name.starts_with("vocab") && !name.starts_with("tokenizer"));
    let error = pipeline::open(folder.path(), whole(FLOAT)).err().unwrap().to_string();
    assert!(error.contains("tokenizer") && error.contains("is missing"), "{error}");
}

#[test]
fn an_element_type_that_the_device_cannot_compute_in_is_named() {
    let weights = WeightOptions::new(Kind::Bool, Device::Cpu);
    let error = pipeline::open(&golden(), whole(weights)).err().unwrap().to_string();
    assert!(error.contains("Cpu") && error.contains("Bool") && error.contains("model.dtype"), "{error}");
}
