//! What a run leaves for people to look at: metrics, evaluations, TensorBoard events, grids of samples.
//!
//! None of it decides anything about what is trained, so a file that cannot be written is an alarm and not the end of the
//! run. Rows are the truth of it: events are written anew from rows and grids at every opening, and a grid is there before
//! its evaluation's row.

pub mod evaluation;
mod font;
pub mod grid;
pub mod journal;
pub mod tensorboard;

use std::io::Cursor;
use std::path::{Path, PathBuf};

use config::PromptRecord;
use image::ImageReader;
use protocol::with_causes;
use service::{OwnedDirectory, ServiceError};

use crate::exchange::outcome::EvaluatedImages;
use crate::records::evaluation::Evaluation;
use crate::records::journal::Journal;
use crate::records::tensorboard::{EventValue, EventWriter, Step, unix_seconds};
use crate::training::metrics::IterationMetrics;
use grid::Tile;

/// Rows that a checkpoint holds a copy of, for files that have lost them.
#[derive(Debug, Default)]
pub struct Copies {
    /// On the prompts that versions are chosen by.
    pub evaluations: Vec<Evaluation>,
    /// Of those on the test prompts.
    pub tests: Vec<Evaluation>,
}

/// The open files.
pub struct Records {
    metrics: Journal<IterationMetrics>,
    evaluations: Journal<Evaluation>,
    tests: Journal<Evaluation>,
    /// Absent where they could not be written last time.
    events: Option<EventWriter>,
    run: OwnedDirectory,
    samples: PathBuf,
    notices: Vec<String>,
}

impl Records {
    /// Continues the records of a run at `version`, without what was recorded after it. Evaluations that the file has lost
    /// are put back from `copy`, a checkpoint's.
    ///
    /// # Errors
    /// If metrics or evaluations cannot be read, or the run is another learner's.
    pub fn open(directory: &OwnedDirectory, version: u32, copies: Copies) -> Result<Self, ServiceError> {
        let is_trained = |row: &IterationMetrics| row.iteration < version;
        let metrics = Journal::open(directory, &directory.metrics(), is_trained)?;
        let is_past = |row: &Evaluation| row.version <= version;
        let mut evaluations = Journal::open(directory, &directory.evaluations(), is_past)?;
        let mut tests = Journal::open(directory, &directory.tests(), is_past)?;
        let damage = [metrics.damage(), evaluations.damage(), tests.damage()];
        let mut notices: Vec<String> = damage.into_iter().flatten().collect();
        let lost = missing(metrics.rows(), version);
        if !lost.is_empty() {
            notices.push(format!("{} lacks iterations {}", directory.metrics().display(), list(&lost)));
        }
        for (journal, copy, path) in [
            (&mut evaluations, copies.evaluations, directory.evaluations()),
            (&mut tests, copies.tests, directory.tests()),
        ] {
            let restored = journal.restore(copy, |row| row.version)?;
            if !restored.is_empty() {
                notices.push(format!(
                    "{} lacked the evaluations of versions {}; they are put back from the checkpoint",
                    path.display(),
                    list(&restored)
                ));
            }
        }
        let (run, samples) = (directory.clone(), directory.samples());
        let mut records = Self { metrics, evaluations, tests, events: None, run, samples, notices };
        records.rewrite_events();
        Ok(records)
    }

    /// What was found amiss at the opening.
    pub fn notices(&self) -> &[String] {
        &self.notices
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
        let metrics = IterationMetrics { recorded_at: unix_seconds(), ..metrics };
        let step = iteration_step(&metrics);
        if let Err(error) = self.metrics.append(metrics) {
            tracing::error!("{}; the row is written with the next one", with_causes(&error));
        }
        self.events(step);
    }

    /// Records an evaluation on the test prompts.
    pub fn test(&mut self, test: Evaluation) {
        let test = Evaluation { recorded_at: unix_seconds(), ..test };
        let step = test_step(&test);
        if let Err(error) = self.tests.append(test) {
            tracing::error!("{}; the row is written with the next one", with_causes(&error));
        }
        self.events(step);
    }

    /// Records an evaluation and draws its grid.
    pub fn evaluation(&mut self, evaluation: Evaluation, tiles: &[Tile]) {
        let evaluation = Evaluation { recorded_at: unix_seconds(), ..evaluation };
        if let Some(canvas) = grid::draw(tiles) {
            let path = grid_path(&self.samples, evaluation.version);
            match grid::to_png(&canvas) {
                Ok(bytes) => self
                    .run
                    .write_file(&path, &bytes)
                    .unwrap_or_else(|error| tracing::error!("no samples: {}", with_causes(&error))),
                Err(error) => tracing::error!("no samples: {error}"),
            }
        }
        let step = evaluation_step(&evaluation, &self.samples);
        if let Err(error) = self.evaluations.append(evaluation) {
            tracing::error!("{}; the row is written with the next one", with_causes(&error));
        }
        self.events(step);
    }

    /// Writes the rows that could not be written before.
    ///
    /// # Errors
    /// If they cannot be written now either.
    pub fn flush(&mut self) -> Result<(), ServiceError> {
        self.metrics.flush()?;
        self.evaluations.flush()?;
        self.tests.flush()
    }

    fn events(&mut self, step: Step) {
        if let Err(error) = self.run.check() {
            tracing::error!("no TensorBoard events: {}", with_causes(&error));
            self.events = None;
            return;
        }
        // Readers stop where a record is torn, so a file that a write failed on is of no use any more.
        match self.events.as_mut().map(|writer| writer.write(step)) {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::error!("TensorBoard events: {error}; they are written anew with the next ones");
                self.events = None;
            }
            None => self.rewrite_events(),
        }
    }

    fn rewrite_events(&mut self) {
        let steps = steps(self.metrics.rows(), self.evaluations.rows(), &self.samples);
        let events = EventWriter::rewrite(&self.run, steps.chain(self.tests.rows().iter().map(test_step)));
        let complain =
            |error: &ServiceError| tracing::error!("no TensorBoard events: {}", with_causes(error));
        self.events = events.inspect_err(complain).ok();
    }
}

/// Iterations before `version` that have no row.
fn missing(rows: &[IterationMetrics], version: u32) -> Vec<u32> {
    let known: std::collections::BTreeSet<u32> = rows.iter().map(|row| row.iteration).collect();
    (0..version).filter(|iteration| !known.contains(iteration)).collect()
}

/// Rising numbers in words, such as `3, 5 to 9`.
fn list(numbers: &[u32]) -> String {
    let spans = numbers.chunk_by(|one, next| one + 1 == *next);
    let spans = spans.map(|span| match span {
        [first, .., last] => format!("{first} to {last}"),
        _ => span[0].to_string(),
    });
    spans.collect::<Vec<_>>().join(", ")
}

/// All that rows and grids tell, in the order in which it came about: a version is evaluated before its iteration ends.
fn steps<'a>(
    metrics: &'a [IterationMetrics],
    evaluations: &'a [Evaluation],
    samples: &'a Path,
) -> impl Iterator<Item = Step> + 'a {
    let (mut metrics, mut evaluations) = (metrics.iter().peekable(), evaluations.iter().peekable());
    std::iter::from_fn(move || {
        let iteration = metrics.peek().map(|row| row.iteration);
        let is_next = |row: &&Evaluation| iteration.is_none_or(|iteration| row.version <= iteration);
        match evaluations.next_if(is_next) {
            Some(row) => Some(evaluation_step(row, samples)),
            None => metrics.next().map(iteration_step),
        }
    })
}

fn iteration_step(metrics: &IterationMetrics) -> Step {
    let scalars = metrics.scalars().into_iter().map(|(tag, value)| (tag, EventValue::Scalar(value)));
    Step { step: metrics.iteration, wall_time: metrics.recorded_at, values: scalars.collect() }
}

fn evaluation_step(evaluation: &Evaluation, samples: &Path) -> Step {
    let mut values = scalars("held_out", evaluation);
    let scalar = |name: &str, value: f64| (format!("held_out/{name}"), EventValue::Scalar(value as f32));
    values.push(scalar("reward_hacking", evaluation.reward_hacking.len() as f64));
    values.extend(evaluation.training_reward.map(|reward| scalar("training_reward", reward)));
    values.extend(read_grid(samples, evaluation.version).map(|png| ("samples".to_owned(), png)));
    Step { step: evaluation.version, wall_time: evaluation.recorded_at, values }
}

fn test_step(test: &Evaluation) -> Step {
    Step { step: test.version, wall_time: test.recorded_at, values: scalars("test", test) }
}

/// What an evaluation measured, as TensorBoard shows it below `group`.
fn scalars(group: &str, evaluation: &Evaluation) -> Vec<(String, EventValue)> {
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

fn grid_path(samples: &Path, version: u32) -> PathBuf {
    samples.join(format!("iteration-{version:06}.png"))
}

/// The grid of a version, if one was drawn and is still there.
fn read_grid(samples: &Path, version: u32) -> Option<EventValue> {
    let bytes = std::fs::read(grid_path(samples, version)).ok()?;
    let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().ok()?;
    let (width, height) = reader.into_dimensions().ok()?;
    Some(EventValue::Png { bytes, width, height })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_listed_by_their_spans() {
        assert_eq!(list(&[3]), "3");
        assert_eq!(list(&[0, 1, 2, 5, 7, 8]), "0 to 2, 5, 7 to 8");
    }

    #[test]
    fn what_rows_tell_comes_in_the_order_in_which_it_came_about() {
        let rows = [0, 1, 2].map(|iteration| IterationMetrics { iteration, ..IterationMetrics::default() });
        let evaluations = [0, 2, 3].map(|version| Evaluation::new(version, &[], 1, &[], &[]));
        let order: Vec<(u32, bool)> = steps(&rows, &evaluations, Path::new("absent"))
            .map(|step| (step.step, step.values[0].0.starts_with("held_out/")))
            .collect();
        assert_eq!(order, [(0, true), (0, false), (1, false), (2, true), (2, false), (3, true)]);
        assert_eq!(missing(&rows[1..], 4), [0, 3]);
    }
}
