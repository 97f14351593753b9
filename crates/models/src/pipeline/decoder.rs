//! What makes images of latents, whatever the autoencoder.

use std::path::Path;

use tch::Tensor;

use super::DecoderOptions;
use crate::ModelError;
use crate::autoencoder_kl::{AutoencoderKlConfig, AutoencoderKlDecoder};
use crate::autoencoder_kl_qwen_image::{AutoencoderKlQwenImageConfig, AutoencoderKlQwenImageDecoder};
use crate::weights::WeightOptions;

/// Draws images, from -1 to 1, of latents with the decoder's channels.
pub(super) type Draw = Box<dyn Fn(&Tensor) -> Tensor>;

/// The shape of an autoencoder, of which the decoder alone is opened.
pub(super) trait Vae: Sized {
    /// Class of the autoencoder.
    const CLASS_NAME: &'static str;
    /// Key of its configuration for the channels of latents.
    const CHANNELS_KEY: &'static str;

    /// Reads and checks the configuration in `dir`.
    fn open(dir: &Path) -> Result<Self, ModelError>;

    /// Channels of latents.
    fn channels(&self) -> i64;

    /// Pixels along the side of one latent.
    fn scale(&self) -> i64;

    /// Opens the decoder in `dir`.
    fn open_decoder(dir: &Path, weights: &WeightOptions, options: DecoderOptions)
    -> Result<Draw, ModelError>;
}

impl Vae for AutoencoderKlConfig {
    const CLASS_NAME: &'static str = "AutoencoderKL";
    const CHANNELS_KEY: &'static str = "latent_channels";

    fn open(dir: &Path) -> Result<Self, ModelError> {
        Self::open(dir)
    }

    fn channels(&self) -> i64 {
        self.latent_channels
    }

    fn scale(&self) -> i64 {
        self.scale()
    }

    fn open_decoder(
        dir: &Path,
        weights: &WeightOptions,
        options: DecoderOptions,
    ) -> Result<Draw, ModelError> {
        let decoder = AutoencoderKlDecoder::open(dir, weights, options)?;
        Ok(Box::new(move |latents| decoder.decode(latents)))
    }
}

impl Vae for AutoencoderKlQwenImageConfig {
    const CLASS_NAME: &'static str = "AutoencoderKLQwenImage";
    const CHANNELS_KEY: &'static str = "z_dim";

    fn open(dir: &Path) -> Result<Self, ModelError> {
        Self::open(dir)
    }

    fn channels(&self) -> i64 {
        self.z_dim
    }

    fn scale(&self) -> i64 {
        self.scale()
    }

    fn open_decoder(
        dir: &Path,
        weights: &WeightOptions,
        options: DecoderOptions,
    ) -> Result<Draw, ModelError> {
        let decoder = AutoencoderKlQwenImageDecoder::open(dir, weights, options)?;
        Ok(Box::new(move |latents| decoder.decode(latents)))
    }
}
