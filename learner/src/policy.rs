//! The policy that is trained: a frozen network, its adapter, the adapter's optimizer and moving average.

use std::collections::HashMap;
use std::path::Path;

use config::{Dtype, RunConfig};
use flow::{AdamW, Ema, FlowError, NoiseKey, Purpose, clip_gradient_norm, standard_normal};
use models::lora::LoraConfig;
use models::weights::{TensorSource, WeightOptions};
use models::{
    AdapterMode, Conditioning, Guidance, LoadOptions, ModelError, TextToImageModel, pipeline, weights,
};
use tch::{Device, Kind, Tensor};

use crate::error::LearnerError;
use crate::rules;

const ADAPTER_FILE: &str = "adapter.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const AVERAGE_FILE: &str = "ema.safetensors";

/// Tensors by name.
pub type NamedTensors = Vec<(String, Tensor)>;

/// The network with everything that training changes.
pub struct Policy {
    model: Box<dyn TextToImageModel>,
    parameters: NamedTensors,
    optimizer: AdamW,
    average: Ema,
    max_grad_norm: f64,
    device: Device,
}

/// A gradient or a weight that is no number.
#[derive(Debug)]
pub struct NonFiniteParameter {
    /// Gradient or weight.
    pub quantity: &'static str,
    /// The first such parameter.
    pub parameter: String,
}

impl Policy {
    /// Opens the model of a run, which lies in `folder`, and attaches a fresh adapter, which changes nothing yet.
    ///
    /// # Errors
    /// If the model cannot be opened, the adapter does not suit it, or the device is not there.
    pub fn open(config: &RunConfig, folder: &Path) -> Result<Self, LearnerError> {
        let device = device(&config.resources.device)?;
        let options =
            LoadOptions { weights: weight_options(config, device), text_encoders: false, decoder: false };
        Ok(Self::new(pipeline::open(folder, options)?, config, device)?)
    }

    fn new(
        mut model: Box<dyn TextToImageModel>,
        config: &RunConfig,
        device: Device,
    ) -> Result<Self, ModelError> {
        let adapter = &config.adapter;
        let lora = LoraConfig { rank: adapter.rank, alpha: adapter.alpha, targets: adapter.targets.clone() };
        model.network_mut().attach_adapter(&lora, &mut |name, len| {
            standard_normal(&adapter_key(config.run.seed, name), len)
        })?;
        let parameters = model.network().adapter_parameters();
        let policy = Self {
            optimizer: AdamW::new(&parameters, rules::optimizer(config)),
            average: Ema::new(&parameters, rules::average(config)),
            max_grad_norm: config.training.max_grad_norm,
            model,
            parameters,
            device,
        };
        policy.define_gradients();
        Ok(policy)
    }

    /// Zero is a gradient too: an update in which nothing was learned decays moments and weights like any other, also
    /// right after a resume.
    fn define_gradients(&self) {
        let zeros: Vec<Tensor> = self.parameters.iter().map(|(_, p)| (p * 0.0).sum(Kind::Float)).collect();
        Tensor::stack(&zeros, 0).sum(Kind::Float).backward();
    }

    /// The network's file folder, its sizes and its schedule.
    pub fn model(&self) -> &dyn TextToImageModel {
        self.model.as_ref()
    }

    /// Where the tensors live.
    pub fn device(&self) -> Device {
        self.device
    }

    /// An embedding where the network can use it.
    pub fn on_device(&self, embedding: &Conditioning) -> Conditioning {
        let moved = |tensor: &Tensor| tensor.to_device(self.device);
        Conditioning {
            text: moved(&embedding.text),
            pooled: embedding.pooled.as_ref().map(moved),
            text_mask: embedding.text_mask.as_ref().map(moved),
        }
    }

    /// Velocities; with gradients to the adapter if `mode` makes it trainable.
    ///
    /// # Shapes
    /// `states` `[B, latent…]`, `sigmas` `[B]` → `[B, latent…]`, float32.
    pub fn velocity(
        &self,
        states: &Tensor,
        sigmas: &Tensor,
        guidance: &Guidance,
        mode: AdapterMode,
    ) -> Tensor {
        self.model.velocity(states, sigmas, guidance, mode)
    }

    /// Moves the adapter along the gradient gathered so far, and the average after it; returns the gradient's norm.
    ///
    /// `updates` counts this update, from 1 over the whole run.
    ///
    /// # Errors
    /// If a gradient or, afterwards, a weight is not finite.
    pub fn update(&mut self, updates: u64) -> Result<f64, NonFiniteParameter> {
        let norm = clip_gradient_norm(&self.parameters, self.max_grad_norm).map_err(|error| {
            let FlowError::NonFiniteGradient { parameter } = error else {
                unreachable!("clipping only fails on gradients; else this is a bug")
            };
            NonFiniteParameter { quantity: "gradient", parameter }
        })?;
        self.optimizer.step();
        self.optimizer.zero_gradients();
        let is_finite = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
        if let Some((name, _)) = self.parameters.iter().find(|(_, parameter)| !is_finite(parameter)) {
            return Err(NonFiniteParameter { quantity: "weight", parameter: name.clone() });
        }
        self.average.update(&self.parameters, updates);
        self.model.network_mut().refresh_adapter();
        Ok(norm)
    }

    /// The adapter as it is trained.
    pub fn adapter(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// Its moving average.
    pub fn average(&self) -> &[(String, Tensor)] {
        self.average.averages()
    }

    /// Writes all that training changes into a directory.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn save(&self, directory: &Path) -> Result<(), ModelError> {
        let save = |name: &str, tensors: &[(String, Tensor)]| {
            weights::write(&directory.join(name), tensors, &HashMap::new())
        };
        save(ADAPTER_FILE, &self.parameters)?;
        save(OPTIMIZER_FILE, &self.optimizer.state())?;
        save(AVERAGE_FILE, self.average.averages())
    }

    /// Continues from what [`Self::save`] wrote.
    ///
    /// # Errors
    /// If a file is missing or does not fit.
    pub fn load(&mut self, directory: &Path) -> Result<(), LearnerError> {
        let load = |name: &str| weights::read_all(&directory.join(name)).map(|(tensors, _)| tensors);
        self.model.network_mut().load_adapter(&load(ADAPTER_FILE)?)?;
        self.optimizer.load_state(&load(OPTIMIZER_FILE)?)?;
        self.average.load_state(&load(AVERAGE_FILE)?)?;
        Ok(())
    }
}

/// Where the first values of an adapter's tensor come from: its name alone, so that targets may come and go beside it.
fn adapter_key(seed: u64, name: &str) -> NoiseKey {
    let digest = blake3::hash(name.as_bytes());
    let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
    let (slot, seed_index) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    NoiseKey::initial(seed, Purpose::AdapterInit, 0, slot, seed_index)
}

/// The moving average in a directory that [`Policy::save`] wrote.
///
/// # Errors
/// If the file is missing or damaged.
pub fn read_average(directory: &Path) -> Result<NamedTensors, ModelError> {
    Ok(weights::read_all(&directory.join(AVERAGE_FILE))?.0)
}

/// The same base weights as the workers'.
fn weight_options(config: &RunConfig, device: Device) -> WeightOptions<'_> {
    let model = &config.model;
    let kind = match model.dtype {
        Dtype::Float32 => Kind::Float,
        Dtype::Bfloat16 => Kind::BFloat16,
    };
    let variant = Some(model.variant.as_str()).filter(|variant| !variant.is_empty());
    let source =
        if model.random_weights { TensorSource::Random(config.run.seed) } else { TensorSource::Files };
    WeightOptions { kind, device, variant, source }
}

fn device(name: &str) -> Result<Device, LearnerError> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "cuda" if tch::Cuda::is_available() => Ok(Device::Cuda(0)),
        "cuda" => Err(LearnerError::Setting(
            "`resources.device` is `cuda`, but no CUDA device can be used; set it to `cpu`".to_owned(),
        )),
        other => Err(LearnerError::Setting(format!("`resources.device` is `{other}`; use `cpu` or `cuda`"))),
    }
}
