//! The policy that is trained: a network, what of it training moves, that part's optimizer and moving average.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use config::{AdapterMethod, RunConfig};
use flow::{AdamW, Ema, FlowError, clip_gradient_norm, host_copy, upload};
use models::{
    Activations, AdapterMode, Conditioning, Guidance, LoadOptions, ModelError, TextToImageModel,
    TrainingVelocity, pipeline, weights,
};
use service::cuda;
use tch::{Device, Tensor, no_grad};

use crate::error::LearnerError;
pub use crate::training::trained_tensors::NamedTensors;
use crate::training::trained_tensors::TrainedTensors;

const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The moving average in a checkpoint.
pub(crate) const AVERAGE_FILE: &str = "ema.safetensors";

/// The network with everything that training changes.
pub struct Policy {
    model: Box<dyn TextToImageModel>,
    /// What the divergence is measured from, where it is not the model without its adapter.
    reference: Option<Box<dyn TextToImageModel>>,
    trained: TrainedTensors,
    optimizer: AdamW,
    average: Ema,
    max_grad_norm: f64,
    activations: Activations,
    device: Device,
    /// Where the model lies.
    folder: PathBuf,
}

/// All that training changes, as copies.
pub struct PolicyState {
    /// What is trained, as the optimizer moves it.
    pub trained: NamedTensors,
    /// The optimizer's own.
    pub optimizer: NamedTensors,
    /// The moving average.
    pub average: NamedTensors,
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
    /// Opens the model of a run, which lies in `folder`, and makes it trainable; nothing about it has changed yet. A run
    /// that trains the whole network and measures a divergence holds it twice.
    ///
    /// # Errors
    /// If the model cannot be opened, the adapter does not suit it, or the device is not there.
    pub fn open(config: &RunConfig, folder: &Path) -> Result<Self, LearnerError> {
        let device = run_setup::open_device(config.resources.device).map_err(cuda::explained)?;
        let options = LoadOptions {
            weights: run_setup::weight_options(config, device),
            text_encoders: false,
            decoder: None,
        };
        let open = || pipeline::open(folder, options.clone());
        let mut model = open()?;
        let moves_base = config.adapter.method == AdapterMethod::Full;
        let reference = (moves_base && config.training.kl_beta > 0.0).then(open).transpose()?;
        let trained = TrainedTensors::new(model.network_mut(), config)?;
        Ok(Self {
            optimizer: AdamW::new(trained.masters(), run_setup::optimizer(config)),
            average: Ema::new(trained.masters(), run_setup::average(config)),
            max_grad_norm: config.training.max_grad_norm,
            activations: run_setup::activations(config),
            model,
            reference,
            trained,
            device,
            folder: folder.to_owned(),
        })
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
        embedding.to_device(self.device)
    }

    /// Velocities with gradients to what is trained.
    ///
    /// # Shapes
    /// `states` `[B, latent…]`, `sigmas` `[B]` → `[B, latent…]`, float32.
    pub fn training_velocity(
        &self,
        states: &Tensor,
        sigmas: &Tensor,
        guidance: &Guidance,
    ) -> TrainingVelocity<'_> {
        self.model.training_velocity(states, sigmas, guidance, self.activations)
    }

    /// Velocities of the base model, without gradients: the one that the files hold, and no adapter, not even that which
    /// `adapter.start_from` names and training went on from. Shapes as [`Self::training_velocity`].
    pub fn reference_velocity(&self, states: &Tensor, sigmas: &Tensor, guidance: &Guidance) -> Tensor {
        let model = self.reference.as_ref().unwrap_or(&self.model);
        no_grad(|| model.velocity(states, sigmas, guidance, AdapterMode::Off))
    }

    /// What `look` makes of this policy while it is an earlier version of it, as [`Self::for_workers`] gave it away.
    /// Gradients gathered so far stay, and so does every bit of what is trained.
    ///
    /// # Errors
    /// If `version` is not one of this policy.
    pub fn at_version<T>(
        &mut self,
        version: &[(String, Tensor)],
        look: impl FnOnce(&Self) -> T,
    ) -> Result<T, ModelError> {
        let replaced = self.trained.replace(self.model.network_mut(), version)?;
        let seen = look(self);
        self.trained.restore(self.model.network_mut(), replaced);
        Ok(seen)
    }

    /// Velocities by the kernels of [`Self::training_velocity`], without gradients; shapes likewise.
    pub fn velocity(&self, states: &Tensor, sigmas: &Tensor, guidance: &Guidance) -> Tensor {
        no_grad(|| self.model.velocity(states, sigmas, guidance, AdapterMode::Trainable))
    }

    /// Adds the gradient of a loss formed from `training`'s velocity to that of the policy.
    pub fn differentiate(&self, training: TrainingVelocity, loss: &Tensor) {
        training.backward(loss);
        self.trained.collect_gradients();
    }

    /// The gradient gathered so far, all numbers of all tensors in order, and zeros in its place.
    pub fn take_gradient(&mut self) -> Vec<f32> {
        let flat: Vec<Tensor> =
            self.trained.masters().iter().map(|(_, tensor)| tensor.grad().flatten(0, -1)).collect();
        let flat = host_copy(&Tensor::cat(&flat, 0));
        self.optimizer.zero_gradients();
        Vec::try_from(flat).expect("a gradient is float32 and has one axis; else this is a bug")
    }

    /// Puts a gradient of [`Self::take_gradient`]'s form in place of the one gathered so far.
    ///
    /// # Panics
    /// If it has another length.
    pub fn put_gradient(&mut self, gradient: &[f32]) {
        let flat = upload(&Tensor::from_slice(gradient), self.device);
        let mut start = 0;
        for (_, master) in self.trained.masters() {
            let length = master.numel() as i64;
            let own = flat.narrow(0, start, length).view_as(master);
            no_grad(|| master.grad().copy_(&own));
            start += length;
        }
        assert_eq!(start as usize, gradient.len(), "a gradient of another policy; this is a bug");
    }

    /// How many numbers are trained.
    pub fn n_trained(&self) -> usize {
        self.trained.masters().iter().map(|(_, tensor)| tensor.numel()).sum()
    }

    /// Moves what is trained along the gradient gathered so far, and the average after it; returns the gradient's norm.
    ///
    /// `updates` counts this update, from 1 over the whole run.
    ///
    /// # Errors
    /// If a gradient or, afterwards, a weight is not finite.
    pub fn update(&mut self, updates: u64) -> Result<f64, NonFiniteParameter> {
        let norm = clip_gradient_norm(self.trained.masters(), self.max_grad_norm).map_err(|error| {
            let FlowError::NonFiniteGradient { parameter } = error else {
                unreachable!("clipping only fails on gradients; else this is a bug")
            };
            NonFiniteParameter { quantity: "gradient", parameter }
        })?;
        self.optimizer.step();
        self.optimizer.zero_gradients();
        if let Some(name) = first_not_finite(self.trained.masters()) {
            return Err(NonFiniteParameter { quantity: "weight", parameter: name.to_owned() });
        }
        self.average.update(self.trained.masters(), updates);
        self.trained.refresh(self.model.network_mut());
        Ok(norm)
    }

    /// What is trained, as the optimizer moves it.
    pub fn trained(&self) -> &[(String, Tensor)] {
        self.trained.masters()
    }

    /// Its moving average.
    pub fn average(&self) -> &[(String, Tensor)] {
        self.average.averages()
    }

    /// What is trained or its average as workers get it: copies in the element type that networks compute from.
    pub fn for_workers(&self, tensors: &[(String, Tensor)]) -> NamedTensors {
        self.trained.for_workers(tensors)
    }

    /// The whole network by the names of its checkpoint, with the average in place of what is trained, as `look` is
    /// handed it; for runs that train the whole network.
    ///
    /// # Errors
    /// If `average` is not one of this policy.
    pub fn with_average<T>(
        &mut self,
        average: &[(String, Tensor)],
        look: impl FnOnce(&[(String, Tensor)]) -> T,
    ) -> Result<T, ModelError> {
        let network = self.model.network_mut();
        TrainedTensors::with_values(network, average, |network| look(&network.checkpoint()))
    }

    /// The folder that the model was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All that training changes.
    pub fn state(&self) -> PolicyState {
        let copies = |tensors: &[(String, Tensor)]| {
            tensors.iter().map(|(name, tensor)| (name.clone(), host_copy(&tensor.detach()))).collect()
        };
        PolicyState {
            trained: copies(self.trained.masters()),
            optimizer: self.optimizer.state(),
            average: copies(self.average.averages()),
        }
    }

    /// Continues from a state; gradients gathered so far are dropped.
    ///
    /// # Errors
    /// If it is of another policy.
    pub fn set_state(&mut self, state: &PolicyState) -> Result<(), LearnerError> {
        self.trained.load(self.model.network_mut(), &state.trained)?;
        self.optimizer.load_state(&state.optimizer)?;
        self.average.load_state(&state.average)?;
        self.optimizer.zero_gradients();
        Ok(())
    }

    /// Writes all that training changes into a directory.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn save(&self, directory: &Path) -> Result<(), ModelError> {
        let save = |name: &str, tensors: &[(String, Tensor)]| {
            weights::write(&directory.join(name), tensors, &HashMap::new())
        };
        save(self.trained.file_name(), self.trained.masters())?;
        save(OPTIMIZER_FILE, &self.optimizer.state())?;
        save(AVERAGE_FILE, self.average.averages())
    }

    /// Continues from what [`Self::save`] wrote.
    ///
    /// # Errors
    /// If a file is missing or does not fit.
    pub fn load(&mut self, directory: &Path) -> Result<(), LearnerError> {
        let load = |name: &str| weights::read_all(&directory.join(name)).map(|(tensors, _)| tensors);
        let file = self.trained.file_name();
        self.trained
            .load(self.model.network_mut(), &load(file)?)
            .map_err(|error| error.of_file(&directory.join(file)))?;
        self.optimizer.load_state(&load(OPTIMIZER_FILE)?)?;
        self.average.load_state(&load(AVERAGE_FILE)?)?;
        Ok(())
    }
}

/// The moving average in a directory that [`Policy::save`] wrote.
///
/// # Errors
/// If the file is missing or damaged.
pub fn read_average(directory: &Path) -> Result<NamedTensors, ModelError> {
    Ok(weights::read_all(&directory.join(AVERAGE_FILE))?.0)
}

/// The first tensor that holds a NaN or an infinity. The device is waited for once, whatever the number of tensors.
fn first_not_finite(tensors: &[(String, Tensor)]) -> Option<&str> {
    let each: Vec<Tensor> = tensors.iter().map(|(_, tensor)| tensor.isfinite().all()).collect();
    let are_finite = Vec::<bool>::try_from(Tensor::stack(&each, 0)).expect("truths, one for each tensor");
    are_finite.iter().position(|is_finite| !is_finite).map(|position| tensors[position].0.as_str())
}
