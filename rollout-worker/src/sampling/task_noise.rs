//! The randomness of a task, as a function of the task's name.

use noise::{NoiseKey, standard_normal};
use tch::{Device, Tensor};

use crate::sampling::wavefront::Noise;

/// Noise drawn from one key per seed.
#[derive(Debug)]
pub struct TaskNoise {
    /// One key per seed, in the order of the rows.
    pub keys: Vec<NoiseKey>,
    /// Shape of one image's latents.
    pub latent_shape: Vec<i64>,
    /// Where the noise is wanted.
    pub device: Device,
}

impl TaskNoise {
    /// One row of noise per key, stacked in front of `shape`.
    fn draw(&self, keys: impl Iterator<Item = NoiseKey>, leading: &[i64]) -> Tensor {
        let length = self.latent_shape.iter().product::<i64>() as usize;
        let values: Vec<f32> = keys.flat_map(|key| standard_normal(&key, length)).collect();
        let shape = [leading, &self.latent_shape].concat();
        flow::upload(&Tensor::from_slice(&values).view(shape.as_slice()), self.device)
    }
}

impl Noise for TaskNoise {
    fn initial(&self) -> Tensor {
        self.draw(self.keys.iter().copied(), &[self.keys.len() as i64])
    }

    fn transition(&self, step: usize, n_branches: usize) -> Tensor {
        let of_seed = |key: &NoiseKey| {
            let key = *key;
            (0..n_branches as u32).map(move |branch| key.transition(step as u32, branch))
        };
        self.draw(self.keys.iter().flat_map(of_seed), &[self.keys.len() as i64, n_branches as i64])
    }
}
