//! What a run leaves for people to look at: metrics, evaluations, TensorBoard events, grids of samples.
//!
//! None of it decides anything, so a file that cannot be written is an alarm and never the end of the run.

use std::path::PathBuf;

use config::PromptRecord;
use service::{RunDirectory, ServiceError};

use crate::evaluation::Evaluation;
use crate::grid::{self, Tile};
use crate::journal::Journal;
use crate::metrics::IterationMetrics;
use crate::outcome::EvaluatedImages;
use crate::tensorboard::{EventValue, EventWriter};

/// The open files.
pub struct Records {
    metrics: Journal<IterationMetrics>,
    evaluations: Journal<Evaluation>,
    tests: Journal<Evaluation>,
    events: Option<EventWriter>,
    samples: PathBuf,
}

impl Records {
    /// Continues the records of a run at `version`, without what was recorded after it.
    ///
    /// # Errors
    /// If metrics or evaluations cannot be read.
    pub fn open(directory: &RunDirectory, version: u32) -> Result<Self, ServiceError> {
        let events = EventWriter::create(&directory.tensorboard(), version);
        Ok(Self {
            metrics: Journal::open(&directory.metrics(), |row: &IterationMetrics| row.iteration < version)?,
            evaluations: Journal::open(&directory.evaluations(), |row: &Evaluation| row.version <= version)?,
            tests: Journal::open(&directory.tests(), |row: &Evaluation| row.version <= version)?,
            events: events.inspect_err(|error| tracing::error!("no TensorBoard events: {error}")).ok(),
            samples: directory.samples(),
        })
    }

    /// Rows of all iterations so far.
    pub fn metrics(&self) -> &[IterationMetrics] {
        self.metrics.rows()
    }

    /// Rows of all evaluations so far.
    pub fn evaluations(&self) -> &[Evaluation] {
        self.evaluations.rows()
    }

    /// Rows of all evaluations on the test prompts so far.
    pub fn tests(&self) -> &[Evaluation] {
        self.tests.rows()
    }

    /// Records an iteration.
    pub fn iteration(&mut self, metrics: IterationMetrics) {
        let scalars = metrics.scalars().into_iter().map(|(tag, value)| (tag, EventValue::Scalar(value)));
        self.events(metrics.iteration, scalars.collect());
        if let Err(error) = self.metrics.append(metrics) {
            tracing::error!("{error}; the row is written with the next one");
        }
    }

    /// Records an evaluation on the test prompts.
    pub fn test(&mut self, test: Evaluation) {
        self.events(test.version, scalars("test", &test));
        if let Err(error) = self.tests.append(test) {
            tracing::error!("{error}; the row is written with the next one");
        }
    }

    /// Records an evaluation and draws its grid.
    pub fn evaluation(&mut self, evaluation: Evaluation, tiles: &[Tile]) {
        let version = evaluation.version;
        let mut values = scalars("held_out", &evaluation);
        let scalar = |name: &str, value: f64| (format!("held_out/{name}"), EventValue::Scalar(value as f32));
        values.push(scalar("reward_hacking", evaluation.reward_hacking.len() as f64));
        values.extend(evaluation.training_reward.map(|reward| scalar("training_reward", reward)));
        let canvas = grid::draw(tiles);
        let png = grid::to_png(&canvas).inspect_err(|error| tracing::error!("no samples: {error}"));
        if let Ok(bytes) = &png {
            let path = self.samples.join(format!("iteration-{version:06}.png"));
            if let Err(error) = service::durable::write_file(&path, bytes) {
                tracing::error!("{error}");
            }
            let image = EventValue::Png { bytes, width: canvas.width(), height: canvas.height() };
            values.push(("samples".to_owned(), image));
        }
        self.events(version, values);
        if let Err(error) = self.evaluations.append(evaluation) {
            tracing::error!("{error}; the row is written with the next one");
        }
    }

    fn events(&mut self, step: u32, values: Vec<(String, EventValue)>) {
        if let Some(Err(error)) = self.events.as_mut().map(|writer| writer.write(step, values)) {
            tracing::error!("TensorBoard events: {error}");
        }
    }
}

/// What an evaluation measured, as TensorBoard shows it below `group`.
fn scalars(group: &str, evaluation: &Evaluation) -> Vec<(String, EventValue<'static>)> {
    let scalar = |name: &str, value: f64| (format!("{group}/{name}"), EventValue::Scalar(value as f32));
    let mut values = vec![
        scalar("reward", evaluation.reward),
        scalar("standard_error", evaluation.standard_error),
        scalar("gain", evaluation.gain),
        scalar("gain_standard_error", evaluation.gain_standard_error),
    ];
    for (name, score) in &evaluation.scores {
        values.push(scalar(&format!("scores/{name}/mean"), score.mean));
        values.push(scalar(&format!("scores/{name}/standard_error"), score.standard_error));
    }
    values.extend(evaluation.extras.iter().map(|(name, value)| scalar(&format!("extras/{name}"), *value)));
    values
}

/// The first image of `wanted` prompts, spread evenly over the file, since prompts of a kind stand together in it.
pub fn tiles(
    prompts: &[PromptRecord],
    outcomes: &[EvaluatedImages],
    (height, width): (i64, i64),
    images_per_prompt: usize,
    wanted: usize,
) -> Vec<Tile> {
    let image_bytes = (height * width * 3) as usize;
    let images = outcomes.iter().flat_map(|outcome| outcome.pixels.chunks(image_bytes).zip(&outcome.rewards));
    let first_images = images.step_by(images_per_prompt.max(1));
    let tile = |(prompt, (pixels, score)): (&PromptRecord, (&[u8], &f32))| Tile {
        size: (width as u32, height as u32),
        pixels: pixels.to_vec(),
        prompt: prompt.text.clone(),
        score: *score,
    };
    let stride = outcomes_per_tile(outcomes, image_bytes * images_per_prompt.max(1), wanted);
    prompts.iter().zip(first_images).step_by(stride).take(wanted).map(tile).collect()
}

/// How many evaluated prompts there are to each tile.
fn outcomes_per_tile(outcomes: &[EvaluatedImages], prompt_bytes: usize, wanted: usize) -> usize {
    let evaluated: usize = outcomes.iter().map(|outcome| outcome.pixels.len() / prompt_bytes.max(1)).sum();
    (evaluated / wanted.max(1)).max(1)
}
