//! `rollout-worker score`: what a reward says about image files.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use config::PromptRecord;
use rewards::{Resources, Score};
use serde_json::{Value, json};

use crate::bad_input::BadInput;
use crate::image_file;

/// What is to be scored.
pub struct ScoreOptions {
    /// Name of the scorer.
    pub reward: String,
    /// Folder of PNG files named as [`image_file::name`] names them.
    pub images: PathBuf,
    /// `.txt` or `.jsonl`.
    pub prompts: PathBuf,
    /// One JSON object per line instead of columns.
    pub json: bool,
    /// What scorers may need.
    pub resources: Resources,
}

/// Scores every image and writes a line for each, then their mean.
///
/// # Errors
/// [`BadInput`] if the reward, an image or the prompts cannot be used; else if an image cannot be scored.
pub fn run(options: &ScoreOptions, out: &mut dyn Write) -> anyhow::Result<()> {
    let reward =
        rewards::build(&options.reward, &Value::Null, &options.resources).map_err(BadInput::from_error)?;
    let prompts = config::read_prompts(&options.prompts).map_err(BadInput::from_error)?;
    let files = image_file::list(&options.images).map_err(BadInput::from_error)?;
    let by_index: HashMap<u32, &PromptRecord> = prompts.iter().map(|prompt| (prompt.index, prompt)).collect();
    let mut values = Vec::with_capacity(files.len());
    for (path, index) in files {
        let prompt = by_index.get(&index).ok_or_else(|| {
            let (path, n_prompts) = (path.display(), prompts.len());
            BadInput(anyhow::anyhow!(
                "{path} belongs to prompt {index}, but the file has {n_prompts} prompts, from 0"
            ))
        })?;
        let image = image_file::read(&path).map_err(BadInput::from_error)?;
        let record = rewards::PromptRecord { prompt: prompt.text.clone(), metadata: prompt.metadata.clone() };
        for score in reward.score(&[image], &[record])? {
            write_score(out, options, (&path, prompt), &score)?;
            values.push(f64::from(score.value));
        }
    }
    write_mean(out, options, &values)
}

fn write_score(
    out: &mut dyn Write,
    options: &ScoreOptions,
    (path, prompt): (&Path, &PromptRecord),
    score: &Score,
) -> anyhow::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
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

fn write_mean(out: &mut dyn Write, options: &ScoreOptions, values: &[f64]) -> anyhow::Result<()> {
    let n_images = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n_images;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n_images - 1.0).max(1.0);
    let standard_error = (variance / n_images).sqrt();
    match options.json {
        true => {
            writeln!(out, "{}", json!({"images": n_images, "mean": mean, "standard_error": standard_error}))?
        }
        false => writeln!(out, "mean {mean:.6} ± {standard_error:.6} of {} images", values.len())?,
    }
    Ok(())
}
