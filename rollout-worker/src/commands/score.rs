//! `rollout-worker score`: what a reward says about image files.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use config::{PromptRecord, RewardSection};
use rewards::{Resources, Reward, Score};
use serde_json::json;

use crate::bad_input::BadInput;
use crate::commands::image_file;

/// Images that are in memory at once, and that a scorer is handed as one batch.
const BATCH: usize = 64;

/// What is to be scored.
pub struct ScoreOptions {
    /// Scorer and its options.
    pub reward: RewardSection,
    /// Folder of PNG files named as [`image_file::name`] names them.
    pub images: PathBuf,
    /// `.txt` or `.jsonl`.
    pub prompts: PathBuf,
    /// One JSON object per line instead of columns.
    pub json: bool,
    /// What scorers may need.
    pub resources: Resources,
}

/// An image file and the prompt that it was drawn for.
struct Entry {
    path: PathBuf,
    prompt: PromptRecord,
}

/// Scores every image and writes a line for each, then the means.
///
/// # Errors
/// [`BadInput`] if the reward, an image or the prompts cannot be used; else if an image cannot be scored.
pub fn run(options: &ScoreOptions, out: &mut dyn Write) -> anyhow::Result<()> {
    let section = &options.reward;
    let reward = rewards::build(section.scorer(), &section.options_as_json(), &options.resources)
        .map_err(BadInput::from_error)?;
    let entries = entries(options).map_err(BadInput::from_error)?;
    let (mut values, mut extras) = (Vec::new(), BTreeMap::<String, Vec<f64>>::new());
    for batch in entries.chunks(BATCH) {
        for (entry, score) in batch.iter().zip(score(reward.as_ref(), batch)?) {
            write_score(out, options, entry, &score)?;
            values.push(f64::from(score.value));
            for (name, value) in score.extras {
                extras.entry(name).or_default().push(f64::from(value));
            }
        }
    }
    write_means(out, options, &values, &extras)
}

/// The image files, each with its prompt.
fn entries(options: &ScoreOptions) -> anyhow::Result<Vec<Entry>> {
    let prompts = config::read_prompts(&options.prompts)?;
    config::check_metadata(&options.prompts, &prompts, std::slice::from_ref(&options.reward))?;
    let n_prompts = prompts.len();
    let by_index: HashMap<u32, PromptRecord> =
        prompts.into_iter().map(|prompt| (prompt.index, prompt)).collect();
    let entry = |(path, index): (PathBuf, u32)| {
        let prompt = by_index.get(&index).cloned().with_context(|| {
            let path = path.display();
            format!("{path} belongs to prompt {index}, but the file has {n_prompts} prompts, from 0")
        })?;
        Ok(Entry { path, prompt })
    };
    image_file::list(&options.images)?.into_iter().map(entry).collect()
}

fn score(reward: &dyn Reward, batch: &[Entry]) -> anyhow::Result<Vec<Score>> {
    let read = |entry: &Entry| image_file::read(&entry.path);
    let images = batch.iter().map(read).collect::<Result<Vec<_>, _>>().map_err(BadInput::from_error)?;
    let record = |Entry { prompt, .. }: &Entry| rewards::PromptRecord {
        prompt: prompt.text.clone(),
        metadata: prompt.metadata.clone(),
    };
    let prompts: Vec<_> = batch.iter().map(record).collect();
    reward.score(&images, &prompts).map_err(|error| {
        let place = error.image().and_then(|image| batch.get(image)).map(|entry| &entry.path);
        let first = || batch.first().map(|entry| &entry.path);
        let place = place.or_else(first).map_or_else(String::new, |path| path.display().to_string());
        anyhow::Error::new(error).context(format!("scoring {place}"))
    })
}

fn write_score(
    out: &mut dyn Write,
    options: &ScoreOptions,
    Entry { path, prompt }: &Entry,
    score: &Score,
) -> anyhow::Result<()> {
    let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
    match options.json {
        true => {
            let line =
                json!({"image": name, "prompt": prompt.text, "score": score.value, "extras": score.extras});
            writeln!(out, "{line}")?;
        }
        false => writeln!(out, "{name}  {:9.6}  {}", score.value, prompt.text)?,
    }
    Ok(())
}

/// The mean score with its standard error, and the mean of each extra over the images that have it.
fn write_means(
    out: &mut dyn Write,
    options: &ScoreOptions,
    scores: &[f64],
    extras: &BTreeMap<String, Vec<f64>>,
) -> anyhow::Result<()> {
    let (n_images, mean) = (scores.len() as f64, mean(scores));
    let variance = scores.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n_images - 1.0).max(1.0);
    let standard_error = (variance / n_images).sqrt();
    if options.json {
        let means: BTreeMap<&str, f64> =
            extras.iter().map(|(name, of)| (name.as_str(), self::mean(of))).collect();
        let line =
            json!({"images": scores.len(), "mean": mean, "standard_error": standard_error, "extras": means});
        writeln!(out, "{line}")?;
        return Ok(());
    }
    writeln!(out, "mean {mean:.6} ± {standard_error:.6} of {} images", scores.len())?;
    for (name, of) in extras {
        writeln!(out, "  {name} {:.6} of {} images", self::mean(of), of.len())?;
    }
    Ok(())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
