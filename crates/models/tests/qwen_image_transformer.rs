//! The Qwen-Image transformer and its adapter against what diffusers and PEFT recorded.

use std::path::{Path, PathBuf};

use models::adapter_file::SavedAdapter;
use models::network::Query;
use models::patches::{from_patches, to_patches};
use models::qwen_image::{QwenImageConfig, QwenImageTransformer};
use models::reference_case::{Deviation, TOLERANCE};
use models::safetensors_file::SafetensorsFile;
use models::weights::{WeightOptions, Weights, write};
use models::{AdapterMode, Network};
use tch::{Device, Kind, Tensor, no_grad};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
/// Of the recorded latents, which are packed.
const SIZE: (i64, i64) = (10, 8);

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/qwen-image")
}

/// What the network is asked about; a row for each image.
struct Inputs {
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    mask: Option<Tensor>,
}

impl Inputs {
    fn of(case: &SafetensorsFile) -> Self {
        let get = |name: &str| case.read(name).unwrap();
        Self {
            latents: from_patches(&get("in.hidden_states"), SIZE, 2),
            timestep: get("in.timestep"),
            text: get("in.encoder_hidden_states"),
            mask: Some(get("in.encoder_hidden_states_mask")),
        }
    }

    /// One row alone, its text cut to the tokens that count, without a mask.
    fn alone(&self, row: i64) -> Self {
        let mask = self.mask.as_ref().unwrap().get(row);
        let one = |t: &Tensor| t.narrow(0, row, 1);
        let words = mask.sum(Kind::Int64).int64_value(&[]);
        Self {
            latents: one(&self.latents),
            timestep: one(&self.timestep),
            text: one(&self.text).narrow(1, 0, words),
            mask: None,
        }
    }

    /// The network's answer, packed as the references are.
    fn ask(&self, network: &QwenImageTransformer, mode: AdapterMode) -> Tensor {
        let query = Query {
            latents: &self.latents,
            timestep: &self.timestep,
            text: &self.text,
            pooled: None,
            text_mask: self.mask.as_ref(),
            guidance_scale: 1.0,
        };
        to_patches(&network.forward(&query, mode), 2)
    }
}

fn case(name: &str) -> SafetensorsFile {
    SafetensorsFile::open(&golden().join("cases").join(name)).unwrap()
}

fn transformer(kind: Kind) -> QwenImageTransformer {
    QwenImageTransformer::open(&golden().join("transformer"), &WeightOptions::new(kind, Device::Cpu)).unwrap()
}

fn with_adapter() -> QwenImageTransformer {
    let saved = SavedAdapter::read(&golden().join("cases/transformer_lora")).unwrap();
    let mut transformer = transformer(Kind::Float);
    transformer.attach_adapter(&saved.config, &mut |_, n| vec![0.0; n]).unwrap();
    transformer.load_adapter(&saved.tensors).unwrap();
    transformer
}

fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    Deviation::between(got, want).relative
}

#[test]
fn velocity_is_that_of_diffusers() {
    let case = case("transformer.safetensors");
    let got = Inputs::of(&case).ask(&transformer(Kind::Float), AdapterMode::Frozen);
    let error = relative_error(&got, &case.read("out.sample").unwrap());
    assert!(error <= TOLERANCE, "relative error {error:e}");
}

#[test]
fn a_row_depends_neither_on_its_padding_nor_on_its_neighbours() {
    let inputs = Inputs::of(&case("transformer.safetensors"));
    let transformer = transformer(Kind::Float);
    let both = inputs.ask(&transformer, AdapterMode::Frozen);
    for row in 0..2 {
        let alone = inputs.alone(row).ask(&transformer, AdapterMode::Frozen);
        assert!(relative_error(&both.narrow(0, row, 1), &alone) <= TOLERANCE);
    }
    // Were padding attended to, its features would matter.
    let padding = inputs.mask.as_ref().unwrap().eq(0).unsqueeze(-1);
    let noisy = Inputs { text: inputs.text.masked_fill(&padding, 7.0), ..inputs };
    assert!(relative_error(&noisy.ask(&transformer, AdapterMode::Frozen), &both) <= TOLERANCE);
}

#[test]
fn velocity_with_adapter_and_its_gradients_are_those_of_peft() {
    let case = case("lora.safetensors");
    let transformer = with_adapter();
    let got = Inputs::of(&case).ask(&transformer, AdapterMode::Trainable);
    let error = relative_error(&got, &case.read("out.sample").unwrap());
    assert!(error <= TOLERANCE, "relative error {error:e}");

    (got * case.read("in.cotangent").unwrap()).sum(Kind::Float).backward();
    let recorded = case.names().iter().filter(|name| name.starts_with("out.grad.")).count();
    let reached = transformer.adapter_parameters().into_iter().filter(|(_, p)| p.grad().defined());
    let reached: Vec<_> = reached.collect();
    assert_eq!(reached.len(), recorded);
    for (name, parameter) in reached {
        let want = case.read(&format!("out.grad.base_model.model.{name}")).unwrap();
        let error = relative_error(&parameter.grad(), &want);
        assert!(error <= TOLERANCE, "gradient of {name}: relative error {error:e}");
    }
}

#[test]
fn sampling_and_training_use_the_same_weights_to_the_last_bit() {
    let inputs = Inputs::of(&case("lora.safetensors"));
    let transformer = with_adapter();
    let sampled = no_grad(|| inputs.ask(&transformer, AdapterMode::Frozen));
    assert_eq!(sampled, inputs.ask(&transformer, AdapterMode::Trainable).detach());
    let bare = inputs.ask(&self::transformer(Kind::Float), AdapterMode::Frozen);
    assert_eq!(no_grad(|| inputs.ask(&transformer, AdapterMode::Off)), bare);
    assert_ne!(sampled, bare);
}

#[test]
fn half_precision_stays_near_float32() {
    let case = case("transformer.safetensors");
    let inputs = Inputs::of(&case);
    let half = Inputs {
        latents: inputs.latents.to_kind(Kind::BFloat16),
        text: inputs.text.to_kind(Kind::BFloat16),
        ..inputs
    };
    let velocity = half.ask(&transformer(Kind::BFloat16), AdapterMode::Frozen);
    assert_eq!(velocity.kind(), Kind::BFloat16);
    let error = relative_error(&velocity.to_kind(Kind::Float), &case.read("out.sample").unwrap());
    assert!(error < 0.05, "relative error {error:e}");
}

#[test]
fn a_checkpoint_is_written_as_it_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let original = golden().join("transformer/diffusion_pytorch_model.safetensors");
    let path = folder.path().join("diffusion_pytorch_model.safetensors");
    write(&path, &transformer(Kind::Float).checkpoint(), &Default::default()).unwrap();
    let (written, _) = models::weights::read_all(&path).unwrap();
    let (read, _) = models::weights::read_all(&original).unwrap();
    assert_eq!(written, read);
}

#[test]
fn a_network_from_a_seed_starts_at_zero_and_learns_in_all_its_parameters() {
    let config = QwenImageConfig::read(&golden().join("transformer/config.json")).unwrap();
    let weights = Weights::random(7, CPU.0, CPU.1);
    let transformer = QwenImageTransformer::new(&weights.scope(""), &config);
    weights.finish().unwrap();
    let inputs = Inputs::of(&case("transformer.safetensors"));
    assert_eq!(inputs.ask(&transformer, AdapterMode::Frozen).abs().max().double_value(&[]), 0.0);

    for (_, parameter) in transformer.parameters() {
        // Away from the start, where zero gates hide most parameters from the loss.
        let _ = no_grad(|| parameter.shallow_clone().g_add_scalar_(0.01));
        let _ = parameter.set_requires_grad(true);
    }
    inputs.ask(&transformer, AdapterMode::Frozen).square().sum(Kind::Float).backward();
    // Nobody reads the text that the last block makes.
    let last = format!("transformer_blocks.{}", config.num_layers - 1);
    let reads_nothing = [format!("{last}.attn.to_add_out"), format!("{last}.txt_mlp")];
    for (name, parameter) in transformer.parameters() {
        let learns = parameter.grad().defined() && parameter.grad().norm().double_value(&[]) > 0.0;
        assert_eq!(learns, !reads_nothing.iter().any(|unread| name.starts_with(unread)), "{name}");
    }
}

#[test]
fn sizes_that_the_network_cannot_work_on_are_told_beforehand() {
    let transformer = transformer(Kind::Float);
    assert!(transformer.check_size(10, 32).is_ok());
    for (height, width) in [(9, 8), (8, 33), (0, 8)] {
        assert!(transformer.check_size(height, width).is_err(), "{height}x{width}");
    }
}
