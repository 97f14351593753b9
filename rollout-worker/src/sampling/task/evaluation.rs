//! Evaluation tasks: images of held-out prompts from fixed noises, without randomness on the way.

use std::rc::Rc;

use flow::Schedule;
use models::Conditioning;
use noise::NoiseKey;
use protocol::{Task, push_tensors};
use rewards::RgbImage;
use run_setup::evaluation_key;

use super::{Origin, Sampled, Sampler, TaskError};
use crate::sampling::delivery::WireTensor;
use crate::sampling::guided_model::Embedding;
use crate::sampling::wavefront::{Noise, sample_deterministically};

/// One image to be drawn.
struct Row {
    origin: Origin,
    embedding: Rc<Embedding>,
    key: NoiseKey,
}

impl Sampler {
    pub(super) fn evaluate(&mut self, task: &Task, goes_on: &dyn Fn() -> bool) -> Result<Sampled, TaskError> {
        let schedule = self.schedule(self.config.evaluation.steps)?;
        let rows = self.rows(task)?;
        let negative = self.model.embed_negative(self.config.evaluation.guidance_scale)?;
        let mut images: Vec<RgbImage> = Vec::with_capacity(rows.len());
        let mut decoding_seconds = 0.0;
        for rows in rows.chunks(self.config.sampling.max_rows) {
            let (drawn, seconds) = self.draw(task, rows, (&schedule, negative.as_deref()), goes_on)?;
            images.extend(drawn);
            decoding_seconds += seconds;
        }
        let n_images = images.len() as i64;
        let shape = [n_images, self.config.sampling.height, self.config.sampling.width, 3];
        let pixels = images.iter().flat_map(|image| image.pixels.iter().copied()).collect();
        Ok(Sampled {
            task: task.clone(),
            images,
            origins: rows.into_iter().map(|row| row.origin).collect(),
            score_shape: vec![n_images],
            steps: Vec::new(),
            tensors: vec![WireTensor::from_bytes(push_tensors::IMAGES, &shape, pixels)],
            embeddings: Vec::new(),
            next_latents: None,
            network_evaluations: n_images as u64 * schedule.steps() as u64,
            seconds: 0.0,
            decoding_seconds,
        })
    }

    /// Prompt by prompt, the images of one prompt together.
    fn rows(&mut self, task: &Task) -> Result<Vec<Row>, TaskError> {
        let mut rows = Vec::with_capacity(task.prompts.len() * task.n_seeds as usize);
        for (position, prompt) in task.prompts.iter().enumerate() {
            let embedding = self.model.embed(&prompt.text)?;
            for image in 0..task.n_seeds {
                let origin = Origin { prompt: position, seed: image, exploration: None };
                let key = evaluation_key(self.config.run.seed, prompt.index, image);
                rows.push(Row { origin, embedding: embedding.clone(), key });
            }
        }
        Ok(rows)
    }

    fn draw(
        &self,
        task: &Task,
        rows: &[Row],
        (schedule, negative): (&Schedule, Option<&Embedding>),
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(Vec<RgbImage>, f64), TaskError> {
        let embeddings: Vec<&Conditioning> = rows.iter().map(|row| &row.embedding.conditioning).collect();
        let positive = Conditioning::cat(&embeddings);
        let initial = self.noise(rows.iter().map(|row| row.key).collect()).initial();
        let guidance = Embedding::guidance(&positive, negative, self.config.evaluation.guidance_scale);
        let mut velocity =
            |latents: &_, step: usize| self.velocity(latents, schedule.sigmas[step], &guidance, goes_on);
        let finished = sample_deterministically(initial, schedule, &mut velocity).map_err(|source| {
            let origin = &rows[source.seed].origin;
            let prompt = task.prompts[origin.prompt].text.clone();
            TaskError::NonFinite { prompt, seed: origin.seed, problem: source }
        })?;
        let origins: Vec<Origin> = rows.iter().map(|row| row.origin.clone()).collect();
        self.images(&finished, task, &origins)
    }
}
