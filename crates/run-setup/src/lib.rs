//! What a run config means for the maths and the networks: the one translation, for learner, workers and whoever checks them.
//!
//! Learner and worker never exchange what both can derive, so both must derive the same: where tensors live and in which
//! element type, along which noise levels a model is sampled, which steps are trained with which coefficients and weights,
//! and from which keys the noise is drawn. What is said here is said nowhere else.

mod determinism;
mod device;
mod networks;
mod noise_keys;
mod noise_levels;
mod optimization;
mod out_of_memory;
mod trained_steps;

pub use determinism::{OtherDeterminism, check_determinism};
pub use device::{DeviceError, open_device, tensor_device};
pub use networks::{decoder_options, element_type, lora_config, weight_options};
pub use noise_keys::{adapter_key, evaluation_key, training_key};
pub use noise_levels::{NoiseLevels, training_schedule};
pub use optimization::{activations, average, objective, optimizer};
pub use out_of_memory::{OutOfMemory, catch_out_of_memory};
pub use trained_steps::{DrawableStep, StepSettings, TrainedSteps, TrainedStepsError, move_stds};
