//! The FLUX.1 transformer and its adapter against what diffusers and PEFT recorded.

use std::path::{Path, PathBuf};

use models::adapter_file::SavedAdapter;
use models::flux::{FluxConfig, FluxTransformer};
use models::network::Query;
use models::patches::{from_patches, to_patches};
use models::reference_case::{Deviation, TOLERANCE};
use models::safetensors_file::SafetensorsFile;
use models::weights::{WeightOptions, Weights, read_all, write};
use models::{AdapterMode, Network};
use tch::{Device, Kind, Tensor, no_grad};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
/// Rows and columns of the recorded latent images.
const SIZE: (i64, i64) = (10, 8);

fn flux() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/flux")
}

struct Case(SafetensorsFile);

/// What a test changes about a recorded question.
struct Change<'a> {
    tensors: &'a dyn Fn(Tensor) -> Tensor,
    guidance_scale: f64,
}

const AS_RECORDED: Change = Change { tensors: &|tensor| tensor, guidance_scale: 3.5 };

impl Case {
    fn open(name: &str) -> Self {
        Self(SafetensorsFile::open(&flux().join("cases").join(name)).unwrap())
    }

    fn get(&self, name: &str) -> Tensor {
        self.0.read(name).unwrap()
    }

    /// The network's answer, packed as it was recorded.
    fn ask(&self, network: &FluxTransformer, mode: AdapterMode, change: &Change) -> Tensor {
        let input = |name: &str| (change.tensors)(self.get(name));
        let latents = from_patches(&input("in.hidden_states"), SIZE, 2);
        let query = Query {
            latents: &latents,
            timestep: &input("in.timestep").to_kind(Kind::Float),
            text: &input("in.encoder_hidden_states"),
            pooled: Some(&input("in.pooled_projections")),
            text_mask: None,
            guidance_scale: change.guidance_scale,
        };
        to_patches(&network.forward(&query, mode), 2)
    }
}

fn transformer(kind: Kind) -> FluxTransformer {
    FluxTransformer::open(&flux().join("transformer"), &WeightOptions::new(kind, Device::Cpu)).unwrap()
}

fn with_adapter() -> FluxTransformer {
    let saved = SavedAdapter::read(&flux().join("cases/transformer_lora")).unwrap();
    let mut transformer = transformer(Kind::Float);
    transformer.attach_adapter(&saved.config, &mut |_, n| vec![0.0; n]).unwrap();
    transformer.load_adapter(&saved.tensors).unwrap();
    transformer
}

/// A network from a seed, its zeros moved, by a config with one entry changed.
fn random(key: &str, value: serde_json::Value) -> FluxTransformer {
    let text = std::fs::read_to_string(flux().join("transformer/config.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json[key] = value;
    let config: FluxConfig = serde_json::from_value(json).unwrap();
    let weights = Weights::random(7, CPU.0, CPU.1);
    let transformer = FluxTransformer::new(&weights.scope(""), &config);
    weights.finish().unwrap();
    for (_, parameter) in transformer.parameters() {
        // Away from the start, where zero gates hide most parameters from the velocity.
        let _ = no_grad(|| parameter.shallow_clone().g_add_scalar_(0.01));
    }
    transformer
}

fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    Deviation::between(got, want).relative
}

#[test]
fn velocity_is_that_of_diffusers() {
    let case = Case::open("transformer.safetensors");
    let got = case.ask(&transformer(Kind::Float), AdapterMode::Frozen, &AS_RECORDED);
    let error = relative_error(&got, &case.get("out.sample"));
    assert!(error <= TOLERANCE, "relative error {error:e}");
}

#[test]
fn velocity_with_adapter_and_its_gradients_are_those_of_peft() {
    let case = Case::open("lora.safetensors");
    let transformer = with_adapter();
    let got = case.ask(&transformer, AdapterMode::Trainable, &AS_RECORDED);
    let error = relative_error(&got, &case.get("out.sample"));
    assert!(error <= TOLERANCE, "relative error {error:e}");

    (got * case.get("in.cotangent")).sum(Kind::Float).backward();
    let parameters = transformer.adapter_parameters();
    let recorded = case.0.names().iter().filter(|name| name.starts_with("out.grad.")).count();
    assert_eq!(parameters.len(), recorded);
    for (name, parameter) in parameters {
        let want = case.get(&format!("out.grad.base_model.model.{name}"));
        let error = relative_error(&parameter.grad(), &want);
        assert!(error <= TOLERANCE, "gradient of {name}: relative error {error:e}");
    }
}

#[test]
fn sampling_and_training_use_the_same_weights_to_the_last_bit() {
    let case = Case::open("lora.safetensors");
    let transformer = with_adapter();
    let sampled = no_grad(|| case.ask(&transformer, AdapterMode::Frozen, &AS_RECORDED));
    assert_eq!(sampled, case.ask(&transformer, AdapterMode::Trainable, &AS_RECORDED).detach());
}

#[test]
fn rows_of_a_batch_do_not_depend_on_each_other_and_have_their_own_timesteps() {
    let case = Case::open("transformer.safetensors");
    let transformer = transformer(Kind::Float);
    let both = case.ask(&transformer, AdapterMode::Off, &AS_RECORDED);
    for row in 0..2 {
        let one = |tensor: Tensor| tensor.narrow(0, row, 1);
        let change = Change { tensors: &one, ..AS_RECORDED };
        let alone = case.ask(&transformer, AdapterMode::Off, &change);
        assert!(relative_error(&both.narrow(0, row, 1), &alone) <= TOLERANCE);
    }
}

#[test]
fn guidance_is_a_question_to_a_distilled_network_and_nothing_to_another() {
    let case = Case::open("transformer.safetensors");
    let strong = Change { guidance_scale: 7.0, ..AS_RECORDED };
    let both = |network: &FluxTransformer| {
        [&AS_RECORDED, &strong].map(|change| case.ask(network, AdapterMode::Off, change))
    };
    let [weak_velocity, strong_velocity] = both(&transformer(Kind::Float));
    assert!(relative_error(&weak_velocity, &strong_velocity) > 1e-3);

    let schnell = random("guidance_embeds", false.into());
    assert!(schnell.checkpoint().iter().all(|(name, _)| !name.contains("guidance")));
    let [weak_velocity, strong_velocity] = both(&schnell);
    assert_eq!(weak_velocity, strong_velocity);
}

#[test]
fn half_precision_stays_near_float32_and_trains_its_adapter_in_float32() {
    let case = Case::open("transformer.safetensors");
    let saved = SavedAdapter::read(&flux().join("cases/transformer_lora")).unwrap();
    let mut transformer = transformer(Kind::BFloat16);
    transformer.attach_adapter(&saved.config, &mut |_, n| vec![1.0; n]).unwrap();
    let half = |tensor: Tensor| if tensor.dim() == 1 { tensor } else { tensor.to_kind(Kind::BFloat16) };
    let change = Change { tensors: &half, ..AS_RECORDED };
    let velocity = case.ask(&transformer, AdapterMode::Trainable, &change);
    assert_eq!(velocity.kind(), Kind::BFloat16);
    let error = relative_error(&velocity.to_kind(Kind::Float), &case.get("out.sample"));
    assert!(error < 0.05, "relative error {error:e}");
    velocity.sum(Kind::Float).backward();
    let parameters = transformer.adapter_parameters();
    for (name, parameter) in parameters.iter().filter(|(name, _)| name.contains("lora_B")) {
        assert_eq!(parameter.grad().kind(), Kind::Float);
        assert!(parameter.grad().norm().double_value(&[]) > 0.0, "{name}");
    }
}

#[test]
fn a_checkpoint_is_written_as_it_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let original = flux().join("transformer/diffusion_pytorch_model.safetensors");
    let path = folder.path().join("diffusion_pytorch_model.safetensors");
    write(&path, &transformer(Kind::Float).checkpoint(), &Default::default()).unwrap();
    assert_eq!(read_all(&path).unwrap().0, read_all(&original).unwrap().0);
}

#[test]
fn a_network_from_a_seed_learns_in_all_its_parameters() {
    let transformer = random("guidance_embeds", true.into());
    for (_, parameter) in transformer.parameters() {
        let _ = parameter.set_requires_grad(true);
    }
    let case = Case::open("transformer.safetensors");
    let velocity = case.ask(&transformer, AdapterMode::Off, &AS_RECORDED);
    velocity.square().sum(Kind::Float).backward();
    for (name, parameter) in transformer.parameters() {
        assert!(parameter.grad().defined() && parameter.grad().norm().double_value(&[]) > 0.0, "{name}");
    }
}

#[test]
fn sizes_that_the_network_cannot_work_on_are_told_beforehand() {
    let transformer = transformer(Kind::Float);
    assert!(transformer.check_size(10, 320).is_ok());
    for (height, width) in [(9, 8), (8, 7), (0, 8)] {
        assert!(transformer.check_size(height, width).is_err(), "{height}x{width}");
    }
}
