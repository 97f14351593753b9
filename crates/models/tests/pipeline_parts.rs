//! The text encoders and the decoder, each by itself, against what transformers and diffusers recorded.

use std::path::{Path, PathBuf};

use models::autoencoder_kl::AutoencoderKlDecoder;
use models::clip_text::{ClipHead, ClipTextModel};
use models::safetensors_file::SafetensorsFile;
use models::t5::T5Encoder;
use models::weights::WeightOptions;
use tch::{Device, Kind, Tensor};

fn sd3() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd3")
}

fn case(name: &str) -> SafetensorsFile {
    SafetensorsFile::open(&sd3().join("cases").join(name)).unwrap()
}

#[track_caller]
fn assert_close(got: &Tensor, want: &Tensor) {
    assert_eq!(got.size(), want.size());
    let relative = (got - want).norm().double_value(&[]) / want.norm().double_value(&[]);
    assert!(relative <= 1e-4, "relative error {relative:e}");
}

#[test]
fn clip_features_are_in_the_first_tokens() {
    let case = case("prompt_embeds.safetensors");
    let encoder = ClipTextModel::open(
        &sd3().join("text_encoder"),
        ClipHead::Projection,
        WeightOptions::new(Kind::Float, Device::Cpu),
    )
    .unwrap();
    let output = encoder.forward(&case.read("out.clip_ids").unwrap());
    let (length, width) = (encoder.config().max_position_embeddings, encoder.config().hidden_size);
    let embeds = case.read("out.prompt_embeds").unwrap();
    assert_close(&output.penultimate, &embeds.narrow(1, 0, length).narrow(2, 0, width));
    assert_close(
        &output.pooled,
        &case.read("out.pooled").unwrap().narrow(1, 0, encoder.config().projection_dim),
    );
}

#[test]
fn t5_features_are_in_the_last_tokens() {
    let case = case("prompt_embeds.safetensors");
    let encoder =
        T5Encoder::open(&sd3().join("text_encoder_3"), WeightOptions::new(Kind::Float, Device::Cpu)).unwrap();
    let ids = case.read("out.t5_ids").unwrap();
    let embeds = case.read("out.prompt_embeds").unwrap();
    let length = ids.size()[1];
    assert_close(&encoder.forward(&ids), &embeds.narrow(1, embeds.size()[1] - length, length));
}

#[test]
fn decoder_draws_the_recorded_images() {
    let case = case("vae_decode.safetensors");
    let decoder =
        AutoencoderKlDecoder::open(&sd3().join("vae"), WeightOptions::new(Kind::Float, Device::Cpu)).unwrap();
    assert_close(&decoder.decode(&case.read("in.latents").unwrap()), &case.read("out.image").unwrap());
}
