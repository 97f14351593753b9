//! Every family of models: prompts, velocities, gradients, images.

use std::path::{Path, PathBuf};

use models::adapter_file::SavedAdapter;
use models::pipeline::{self, LoadOptions};
use models::weights::WeightOptions;
use models::{Activations, AdapterMode, Conditioning, DecoderOptions, Guidance, TextToImageModel};
use tch::{Device, Kind, Tensor, no_grad};

use crate::{Found, assert_same};

/// Side of the images in pixels; of the tiles in which they are drawn where they are drawn so.
pub(crate) const SIDE: i64 = 64;
const TILE: i64 = 32;
const MOST_TOKENS: usize = 24;

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(family)
}

pub(crate) fn open(family: &str, kind: Kind, device: Device, tile: Option<i64>) -> Box<dyn TextToImageModel> {
    let weights = WeightOptions::new(kind, device);
    let decoder = Some(DecoderOptions { tile, ..DecoderOptions::WHOLE });
    let options = LoadOptions { weights, text_encoders: true, decoder };
    let mut model = pipeline::open(&golden(family), options).expect("a golden folder");
    let adapter = SavedAdapter::read(&golden(family).join("cases/transformer_lora")).expect("an adapter");
    let network = model.network_mut();
    network.attach_adapter(&adapter.config, &mut |_, n| vec![0.0; n]).expect("it suits the network");
    network.load_adapter(&adapter.tensors).expect("it fits the network");
    model
}

fn numbers(shape: &[i64], seed: f64, device: Device) -> Tensor {
    let count = shape.iter().product::<i64>();
    let numbers = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * seed).sin();
    numbers.view(shape).to_kind(Kind::Float).to_device(device)
}

/// Prompts of unequal lengths, and what guidance leads away from.
pub(crate) fn embeddings(model: &dyn TextToImageModel) -> (Conditioning, Option<Conditioning>) {
    let encode = |prompts: &[String]| model.encode_prompts(prompts, MOST_TOKENS).expect("prompts");
    let prompts = ["a red circle", "two blue squares left of a large green triangle, and nothing else"];
    let negative = model.negative_prompt(3.0).map(|prompt| encode(&[prompt.to_owned()]));
    (encode(&prompts.map(str::to_owned)), negative)
}

fn tensors(name: &str, embedding: &Conditioning) -> Found {
    let parts = [("text", Some(&embedding.text)), ("pooled", embedding.pooled.as_ref())];
    let parts = parts.into_iter().chain([("mask", embedding.text_mask.as_ref())]);
    parts.filter_map(|(part, tensor)| Some((format!("{name} {part}"), tensor?.copy()))).collect()
}

/// What a family makes of prompts and latents with its adapter in every state, and the gradients of a loss.
fn walk(family: &str, kind: Kind, device: Device) -> Found {
    let model = open(family, kind, device, None);
    let (positive, negative) = embeddings(model.as_ref());
    let mut found = tensors("positive", &positive);
    found.extend(negative.iter().flat_map(|negative| tensors("negative", negative)));

    let mut shape = model.latent_shape(SIDE, SIDE).expect("a size that fits");
    shape.insert(0, 2);
    let latents = numbers(&shape, 0.9, device);
    let sigmas = Tensor::from_slice(&[0.75_f32, 0.25]).to_device(device);
    let guided = Guidance { positive: &positive, negative: negative.as_ref(), scale: 3.0 };
    for (name, guidance) in [("guided", guided), ("plain", Guidance::none(&positive))] {
        for mode in [AdapterMode::Off, AdapterMode::Frozen, AdapterMode::Trainable] {
            let velocity = no_grad(|| model.velocity(&latents, &sigmas, &guidance, mode));
            found.push((format!("{name} {mode:?}"), velocity));
        }
    }
    for activations in [Activations::Kept, Activations::Recomputed] {
        let training = model.training_velocity(&latents, &sigmas, &guided, activations);
        let cotangent = numbers(&shape, 0.31, device);
        let loss = (training.velocity() * cotangent).sum(Kind::Float);
        training.backward(&loss);
        for (name, mut parameter) in model.network().adapter_parameters() {
            // What the last block makes of the text nobody sees.
            if parameter.grad().defined() {
                found.push((format!("{activations:?} {name}"), parameter.grad().copy()));
                parameter.zero_grad();
            }
        }
    }
    found.push(("image".to_owned(), no_grad(|| model.decode(&latents).expect("latents fit"))));
    found
}

/// A card whose tensors all came from the host by mistake would pass the walk as well.
fn assert_lives_on(family: &str, device: Device) {
    let model = open(family, Kind::Float, device, None);
    let network = model.network();
    let parameters = network.parameters().into_iter().chain(network.adapter_parameters());
    for (name, parameter) in parameters {
        assert_eq!(parameter.device(), device, "{name}");
    }
    let (positive, _) = embeddings(model.as_ref());
    assert_eq!(positive.text.device(), device);
}

fn check(family: &'static str) {
    assert_lives_on(family, crate::CARD);
    for kind in [Kind::Float, Kind::BFloat16] {
        assert_same(|device| walk(family, kind, device));
    }
}

#[test]
fn sd3_computes_on_the_card() {
    tests::on_stand_in_card("families::sd3_computes_on_the_card", || check("sd3"));
}

#[test]
fn flux_computes_on_the_card() {
    tests::on_stand_in_card("families::flux_computes_on_the_card", || check("flux"));
}

#[test]
fn qwen_image_computes_on_the_card() {
    tests::on_stand_in_card("families::qwen_image_computes_on_the_card", || check("qwen-image"));
}

#[test]
fn images_are_drawn_in_tiles_on_the_card() {
    tests::on_stand_in_card("families::images_are_drawn_in_tiles_on_the_card", || {
        for family in ["sd3", "flux"] {
            assert_same(|device| {
                let model = open(family, Kind::Float, device, Some(TILE));
                let mut shape = model.latent_shape(SIDE, SIDE).expect("a size that fits");
                shape.insert(0, 1);
                let image = no_grad(|| model.decode(&numbers(&shape, 0.7, device)).expect("latents fit"));
                vec![("image".to_owned(), image)]
            });
        }
    });
}

/// A run that trains the whole network differentiates all of it.
#[test]
fn a_whole_network_is_differentiated_on_the_card() {
    tests::on_stand_in_card("families::a_whole_network_is_differentiated_on_the_card", || {
        for family in ["sd3", "flux", "qwen-image"] {
            assert_same(|device| {
                let model = open(family, Kind::Float, device, None);
                let parameters = model.network().parameters();
                for (_, parameter) in &parameters {
                    let _ = parameter.set_requires_grad(true);
                }
                let (positive, _) = embeddings(model.as_ref());
                let mut shape = model.latent_shape(SIDE, SIDE).expect("a size that fits");
                shape.insert(0, 2);
                let (latents, sigmas) = (numbers(&shape, 0.9, device), numbers(&[2], 1.0, device).abs());
                let guidance = Guidance::none(&positive);
                let training = model.training_velocity(&latents, &sigmas, &guidance, Activations::Recomputed);
                let loss = training.velocity().square().sum(Kind::Float);
                training.backward(&loss);
                let moved = parameters.iter().filter(|(_, parameter)| parameter.grad().defined());
                moved.map(|(name, parameter)| (name.clone(), parameter.grad())).collect()
            });
        }
    });
}
