//! The text encoders and the decoder, each by itself, against what transformers and diffusers recorded.

use std::path::{Path, PathBuf};

use models::autoencoder_kl::AutoencoderKlDecoder;
use models::clip_text::{ClipHead, ClipTextModel};
use models::reference_case::Deviation;
use models::safetensors_file::SafetensorsFile;
use models::t5::T5Encoder;
use models::weights::WeightOptions;
use models::{DecoderOptions, ModelError};
use tch::{Device, Kind, Tensor};

fn sd3() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd3")
}

fn case(name: &str) -> SafetensorsFile {
    SafetensorsFile::open(&sd3().join("cases").join(name)).unwrap()
}

#[track_caller]
fn assert_close(got: &Tensor, want: &Tensor) {
    let deviation = Deviation::between(got, want);
    assert!(deviation.is_rounding(), "{deviation:?}");
}

#[test]
fn clip_features_are_in_the_first_tokens() {
    let case = case("prompt_embeds.safetensors");
    let encoder = ClipTextModel::open(
        &sd3().join("text_encoder"),
        ClipHead::Projection,
        &WeightOptions::new(Kind::Float, Device::Cpu),
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
        T5Encoder::open(&sd3().join("text_encoder_3"), &WeightOptions::new(Kind::Float, Device::Cpu))
            .unwrap();
    let ids = case.read("out.t5_ids").unwrap();
    let embeds = case.read("out.prompt_embeds").unwrap();
    let length = ids.size()[1];
    assert_close(&encoder.forward(&ids), &embeds.narrow(1, embeds.size()[1] - length, length));
}

fn decoder(tile: Option<i64>) -> Result<AutoencoderKlDecoder, ModelError> {
    let weights = WeightOptions::new(Kind::BFloat16, Device::Cpu);
    AutoencoderKlDecoder::open(&sd3().join("vae"), &weights, DecoderOptions { tile, ..DecoderOptions::WHOLE })
}

#[test]
fn tiles_are_blended_as_diffusers_does() {
    let path = sd3().join("../tiled_decode/tiled_decode.safetensors");
    let case = SafetensorsFile::open(&path).unwrap();
    let (latents, want) = (case.read("latents").unwrap(), case.read("image").unwrap());
    let tiled = decoder(Some(32)).unwrap().decode(&latents);
    assert_close(&tiled, &want);

    let whole = decoder(None).unwrap().decode(&latents);
    // Random weights exaggerate it: norms and attention of a tile know nothing of the others.
    assert!((&tiled - &whole).abs().max().double_value(&[]) > 1e-3, "tiles do not see each other");
    assert_eq!(decoder(Some(64)).unwrap().decode(&latents), whole, "one tile is the whole image");
    assert!(decoder(Some(40)).err().unwrap().to_string().contains("multiple of 16"));
}

#[test]
fn decoder_draws_the_recorded_images() {
    let case = case("vae_decode.safetensors");
    let decoder = decoder(None).unwrap();
    assert_close(&decoder.decode(&case.read("in.latents").unwrap()), &case.read("out.image").unwrap());
}
