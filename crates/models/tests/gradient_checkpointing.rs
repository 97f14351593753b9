//! Gradients with recomputed activations against those with kept ones.

use std::path::{Path, PathBuf};

use models::lora::LoraConfig;
use models::weights::WeightOptions;
use models::{Activations, AdapterMode, Conditioning, Guidance, LoadOptions, TextToImageModel, pipeline};
use tch::{Device, Kind, Tensor};

/// One factor of an adapter in every kind of place: before the blocks, in what all blocks share, in them, after them.
const EVERYWHERE: [&str; 9] = [
    "timestep_embedder.linear_1",
    "text_embedder.linear_2",
    "context_embedder",
    "norm1.linear",
    "norm1_context.linear",
    "norm_out.linear",
    "attn.to_q",
    "ff.net.2",
    "proj_out",
];
const ATTENTION: [&str; 4] = ["attn.to_q", "attn.to_out.0", "attn.add_v_proj", "attn.to_add_out"];

fn sd3() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd3")
}

fn numbers(shape: &[i64], seed: f64) -> Tensor {
    let count = shape.iter().product::<i64>();
    (Tensor::arange(count, (Kind::Double, Device::Cpu)) * seed).sin().view(shape).to_kind(Kind::Float)
}

fn model(kind: Kind) -> Box<dyn TextToImageModel> {
    let weights = WeightOptions::new(kind, Device::Cpu);
    pipeline::open(&sd3(), LoadOptions { weights, text_encoders: false, decoder: None }).unwrap()
}

fn with_adapter(targets: &[&str], kind: Kind) -> Box<dyn TextToImageModel> {
    let mut model = model(kind);
    let targets: Vec<String> = targets.iter().map(|target| (*target).to_owned()).collect();
    let lora = LoraConfig { rank: 2, alpha: 4.0, targets: targets.into() };
    model.network_mut().attach_adapter(&lora, &mut |_, n| vec![0.0; n]).unwrap();
    let filled = model.network().adapter_parameters().into_iter();
    let filled: Vec<_> = filled.map(|(name, t)| (name, numbers(&t.size(), 1.7) * 0.1)).collect();
    model.network_mut().load_adapter(&filled).unwrap();
    model
}

fn conditioning(model: &dyn TextToImageModel, seed: f64) -> Conditioning {
    let (features, pooled) = model.embedding_widths();
    let pooled = Some(numbers(&[1, pooled], seed * 2.0));
    Conditioning { text: numbers(&[1, 5, features], seed), pooled, text_mask: None }
}

/// Velocity and gradients of a loss with guidance and a distance to the model without its adapter, accumulated over two
/// calls.
fn gradients(
    model: &dyn TextToImageModel,
    parameters: &[(String, Tensor)],
    activations: Activations,
) -> (Tensor, Vec<(String, Tensor)>) {
    parameters.iter().for_each(|(_, parameter)| parameter.shallow_clone().zero_grad());
    let (positive, negative) = (conditioning(model, 1.1), conditioning(model, 2.3));
    let guidance = Guidance { positive: &positive, negative: Some(&negative), scale: 3.0 };
    let (latents, sigmas) = (numbers(&[2, 16, 4, 6], 0.9), Tensor::from_slice(&[0.75_f32, 0.25]));
    let reference = tch::no_grad(|| model.velocity(&latents, &sigmas, &guidance, AdapterMode::Off));
    let mut predicted = Vec::new();
    for call in 1..=2 {
        let training = model.training_velocity(&latents, &sigmas, &guidance, activations);
        // Branches that share one velocity.
        let branches = training.velocity().repeat_interleave_self_int(3, Some(0), None);
        let cotangent = numbers(&branches.size(), f64::from(call) * 0.31);
        let distance = (training.velocity() - &reference).square().sum(Kind::Float);
        predicted.push(training.velocity().detach());
        training.backward(&((branches * cotangent).sum(Kind::Float) + distance * 0.1));
    }
    let gradient = |parameter: &Tensor| match parameter.grad().defined() {
        true => parameter.grad().copy(),
        false => parameter.zeros_like().detach(),
    };
    let gradients = parameters.iter().map(|(name, parameter)| (name.clone(), gradient(parameter)));
    (Tensor::stack(&predicted, 0), gradients.collect())
}

fn assert_equal_gradients(model: &dyn TextToImageModel, parameters: &[(String, Tensor)]) {
    let (velocity, kept) = gradients(model, parameters, Activations::Kept);
    let (same_velocity, recomputed) = gradients(model, parameters, Activations::Recomputed);
    assert_eq!(velocity, same_velocity);
    assert!(kept.iter().any(|(_, gradient)| gradient.norm().double_value(&[]) > 0.0));
    for ((name, kept), (_, recomputed)) in kept.iter().zip(&recomputed) {
        assert_eq!(kept, recomputed, "{name}");
    }
}

#[test]
fn an_adapter_gets_the_same_gradients_to_the_last_bit_wherever_it_is() {
    for targets in [&ATTENTION[..], &EVERYWHERE[..]] {
        let model = with_adapter(targets, Kind::Float);
        assert_equal_gradients(model.as_ref(), &model.network().adapter_parameters());
    }
}

#[test]
fn all_parameters_of_a_network_get_the_same_gradients() {
    let model = model(Kind::Float);
    let parameters = model.network().parameters();
    for (_, parameter) in &parameters {
        let _ = parameter.set_requires_grad(true);
    }
    assert_equal_gradients(model.as_ref(), &parameters);
}

#[test]
fn half_precision_changes_nothing_about_it() {
    let model = with_adapter(&EVERYWHERE, Kind::BFloat16);
    assert_equal_gradients(model.as_ref(), &model.network().adapter_parameters());
}
