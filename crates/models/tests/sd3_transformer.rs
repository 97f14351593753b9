//! The SD3 transformer and its adapter against what diffusers and PEFT recorded.

use std::path::{Path, PathBuf};

use models::adapter_file::SavedAdapter;
use models::lora::LoraConfig;
use models::network::Query;
use models::reference_case::{Deviation, TOLERANCE};
use models::safetensors_file::SafetensorsFile;
use models::sd3::{Sd3Config, Sd3Transformer};
use models::weights::{WeightOptions, Weights, write};
use models::{AdapterMode, ModelError, Network};
use tch::{Device, Kind, Tensor, no_grad};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

fn sd3() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd3")
}

struct Case(SafetensorsFile);

impl Case {
    fn open(name: &str) -> Self {
        Self(SafetensorsFile::open(&sd3().join("cases").join(name)).unwrap())
    }

    fn get(&self, name: &str) -> Tensor {
        self.0.read(name).unwrap()
    }

    /// The network's answer to the case's inputs, each changed by `change` before.
    fn ask_changed(
        &self,
        network: &Sd3Transformer,
        mode: AdapterMode,
        change: impl Fn(Tensor) -> Tensor,
    ) -> Tensor {
        let input = |name: &str| change(self.get(name));
        let (latents, text) = (input("in.hidden_states"), input("in.encoder_hidden_states"));
        let (timestep, pooled) = (input("in.timestep"), input("in.pooled_projections"));
        network.forward(
            &Query {
                latents: &latents,
                timestep: &timestep,
                text: &text,
                pooled: Some(&pooled),
                text_mask: None,
                guidance_scale: 1.0,
            },
            mode,
        )
    }

    fn ask(&self, network: &Sd3Transformer, mode: AdapterMode) -> Tensor {
        self.ask_changed(network, mode, |tensor| tensor)
    }
}

fn transformer() -> Sd3Transformer {
    Sd3Transformer::open(&sd3().join("transformer"), &WeightOptions::new(CPU.0, CPU.1)).unwrap()
}

fn with_adapter(folder: &str) -> Sd3Transformer {
    let saved = SavedAdapter::read(&sd3().join("cases").join(folder)).unwrap();
    let mut transformer = transformer();
    transformer.attach_adapter(&saved.config, &mut |_, n| vec![0.0; n]).unwrap();
    transformer.load_adapter(&saved.tensors).unwrap();
    transformer
}

fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    Deviation::between(got, want).relative
}

#[test]
fn velocity_is_that_of_diffusers() {
    let case = Case::open("transformer.safetensors");
    let transformer = transformer();
    let got = case.ask(&transformer, AdapterMode::Frozen);
    let error = relative_error(&got, &case.get("out.sample"));
    assert!(error <= TOLERANCE, "relative error {error:e}");
}

#[test]
fn rows_of_a_batch_do_not_depend_on_each_other_and_have_their_own_timesteps() {
    let case = Case::open("transformer.safetensors");
    let transformer = transformer();
    let both = case.ask(&transformer, AdapterMode::Frozen);
    for row in 0..2 {
        let one = |t: &Tensor| t.narrow(0, row, 1);
        let alone = case.ask_changed(&transformer, AdapterMode::Frozen, |tensor| tensor.narrow(0, row, 1));
        assert!(relative_error(&one(&both), &alone) <= TOLERANCE);
    }
}

#[test]
fn velocity_with_adapter_and_its_gradients_are_those_of_peft() {
    let case = Case::open("lora.safetensors");
    let transformer = with_adapter("transformer_lora");
    let got = case.ask(&transformer, AdapterMode::Trainable);
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
    let transformer = with_adapter("transformer_lora");
    let sampled = no_grad(|| case.ask(&transformer, AdapterMode::Frozen));
    let trained = case.ask(&transformer, AdapterMode::Trainable);
    assert_eq!(sampled, trained.detach());
}

#[test]
fn the_reference_is_the_network_without_its_adapter() {
    let case = Case::open("transformer.safetensors");
    let (bare, adapted) = (transformer(), with_adapter("transformer_lora"));
    let want = case.ask(&bare, AdapterMode::Frozen);
    assert_eq!(case.ask(&adapted, AdapterMode::Off), want);
    assert_ne!(case.ask(&adapted, AdapterMode::Frozen), want);
}

#[test]
fn a_fresh_adapter_changes_nothing_and_a_changed_one_needs_a_refresh_to_be_sampled() {
    let case = Case::open("transformer.safetensors");
    let mut transformer = transformer();
    let ask = |network: &Sd3Transformer| no_grad(|| case.ask(network, AdapterMode::Frozen));
    let before = ask(&transformer);
    let config = LoraConfig {
        rank: 2,
        alpha: 4.0,
        targets: vec!["attn.to_q".to_owned(), "ff.net.2".to_owned()].into(),
    };
    transformer.attach_adapter(&config, &mut |_, n| vec![1.0; n]).unwrap();
    assert_eq!(ask(&transformer), before);
    for (_, mut parameter) in transformer.adapter_parameters() {
        let _ = no_grad(|| parameter.fill_(0.1));
    }
    assert_eq!(ask(&transformer), before);
    transformer.refresh_adapter();
    assert!(relative_error(&ask(&transformer), &before) > 1e-3);
}

#[test]
fn half_precision_keeps_an_adapter_too_small_for_merged_weights() {
    let case = Case::open("transformer.safetensors");
    let mut transformer =
        Sd3Transformer::open(&sd3().join("transformer"), &WeightOptions::new(Kind::BFloat16, Device::Cpu))
            .unwrap();
    let config = LoraConfig { rank: 2, alpha: 2.0, targets: vec!["attn.to_q".to_owned()].into() };
    transformer.attach_adapter(&config, &mut |_, n| vec![1.0; n]).unwrap();
    let half = |tensor: Tensor| if tensor.dim() == 1 { tensor } else { tensor.to_kind(Kind::BFloat16) };
    let velocity = case.ask_changed(&transformer, AdapterMode::Trainable, half);
    assert!(relative_error(&velocity.to_kind(Kind::Float), &case.get("out.sample")) < 0.05);
    velocity.sum(Kind::Float).backward();
    for (name, parameter) in
        transformer.adapter_parameters().iter().filter(|(name, _)| name.contains("lora_B"))
    {
        assert_eq!(parameter.grad().kind(), Kind::Float);
        assert!(parameter.grad().norm().double_value(&[]) > 0.0, "{name}");
    }
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_whole_with_all_names() {
    let mut transformer = with_adapter("transformer_lora");
    let copies = |network: &Sd3Transformer| -> Vec<(String, Tensor)> {
        network.adapter_parameters().into_iter().map(|(name, t)| (name, t.detach().copy())).collect()
    };
    let before = copies(&transformer);
    let mut given: Vec<_> = before.iter().map(|(name, t)| (name.clone(), t * 2.0)).collect();
    let lost = given.remove(0).0;
    given[3].1 = Tensor::zeros([1, 1], CPU);
    given.push(("elsewhere.lora_A.weight".into(), Tensor::zeros([1, 1], CPU)));
    let Err(ModelError::Tensors { missing, unexpected, misshaped, .. }) = transformer.load_adapter(&given)
    else {
        panic!("an adapter that does not fit was accepted");
    };
    assert_eq!((missing, unexpected), (vec![lost], vec!["elsewhere.lora_A.weight".to_owned()]));
    assert!(misshaped.len() == 1 && misshaped[0].contains(&given[3].0));
    assert_eq!(copies(&transformer), before);
}

#[test]
fn a_checkpoint_is_written_as_it_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let original = sd3().join("transformer/diffusion_pytorch_model.safetensors");
    let path = folder.path().join("diffusion_pytorch_model.safetensors");
    write(&path, &transformer().checkpoint(), &Default::default()).unwrap();
    let (written, _) = models::weights::read_all(&path).unwrap();
    let (read, _) = models::weights::read_all(&original).unwrap();
    assert_eq!(written, read);
}

#[test]
fn a_network_from_a_seed_learns_in_all_its_parameters() {
    let config = Sd3Config::read(&sd3().join("transformer/config.json")).unwrap();
    let weights = Weights::random(7, CPU.0, CPU.1);
    let transformer = Sd3Transformer::new(&weights.scope(""), &config);
    weights.finish().unwrap();
    let case = Case::open("transformer.safetensors");
    let velocity = case.ask(&transformer, AdapterMode::Frozen);
    assert_eq!(velocity.abs().max().double_value(&[]), 0.0);

    for (_, parameter) in transformer.parameters() {
        // Away from the start, where zero gates hide most parameters from the loss.
        let _ = no_grad(|| parameter.shallow_clone().g_add_scalar_(0.01));
        let _ = parameter.set_requires_grad(true);
    }
    let velocity = case.ask(&transformer, AdapterMode::Frozen);
    velocity.square().sum(Kind::Float).backward();
    for (name, parameter) in transformer.parameters() {
        assert!(parameter.grad().defined() && parameter.grad().norm().double_value(&[]) > 0.0, "{name}");
    }
}

#[test]
fn the_table_of_positions_of_a_new_network_is_the_one_that_checkpoints_hold() {
    let config = Sd3Config::read(&sd3().join("transformer/config.json")).unwrap();
    let position_table = |transformer: &Sd3Transformer| {
        let tensors = transformer.checkpoint();
        tensors.into_iter().find(|(name, _)| name == "pos_embed.pos_embed").unwrap().1
    };
    let fresh = Sd3Transformer::new(&Weights::random(7, CPU.0, CPU.1).scope(""), &config);
    assert!(relative_error(&position_table(&fresh), &position_table(&transformer())) < 1e-6);
}

#[test]
fn sizes_that_the_network_cannot_work_on_are_told_beforehand() {
    let transformer = transformer();
    assert!(transformer.check_size(10, 32).is_ok());
    for (height, width) in [(9, 8), (8, 34), (0, 8)] {
        assert!(transformer.check_size(height, width).is_err(), "{height}x{width}");
    }
}
