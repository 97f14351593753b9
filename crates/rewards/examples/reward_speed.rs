//! Times a scorer made of CLIP at its published size: `cargo run --release -p rewards --example reward_speed -- SCORER
//! [--images N] [--prompts N] [--side PIXELS] [--threads N] [--repeats N]`.
//!
//! CPU, float32, random weights, so that no model needs to be at hand: `pickscore` and `hpsv2.1` are a ViT-H/14 of a billion
//! parameters, `clipscore` and `aesthetic` a ViT-L/14. Pictures are noise, and prompts go round; each repeat has prompts of its
//! own, which the scorer does not remember. A line of CSV: images, prompts, least seconds, images per second.
//! `tests/reference/bench.py` puts PyTorch beside it.

use std::path::Path;
use std::time::Instant;

use models::weights::TensorSource;
use rewards::{PromptRecord, Resources, RgbImage, build};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

struct Arguments {
    scorer: String,
    images: usize,
    prompts: usize,
    side: usize,
    threads: usize,
    repeats: usize,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let scorer = words.next().ok_or("name a scorer, such as pickscore")?;
        let mut parsed = Self { scorer, images: 8, prompts: 1, side: 512, threads: 2, repeats: 3 };
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            let number = match name.as_str() {
                "--images" => &mut parsed.images,
                "--prompts" => &mut parsed.prompts,
                "--side" => &mut parsed.side,
                "--threads" => &mut parsed.threads,
                "--repeats" => &mut parsed.repeats,
                other => return Err(format!("unknown option {other}").into()),
            };
            *number = value.parse()?;
        }
        Ok(parsed)
    }
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    tch::set_num_threads(i32::try_from(arguments.threads)?);
    let folder = tempfile::tempdir()?;
    let options = options(&arguments.scorer, folder.path())?;
    let resources = Resources { source: TensorSource::Random(0), ..Resources::local() };
    let scorer = build(&arguments.scorer, &options, &resources)?;
    let images: Vec<RgbImage> = (0..arguments.images).map(|seed| noise(seed, arguments.side)).collect();
    println!("images,prompts,seconds,images_per_second");
    let mut least = f64::INFINITY;
    for repeat in 0..arguments.repeats {
        let prompts: Vec<PromptRecord> =
            (0..arguments.images).map(|image| prompt(repeat, image % arguments.prompts)).collect();
        let start = Instant::now();
        scorer.score(&images, &prompts)?;
        least = least.min(start.elapsed().as_secs_f64());
    }
    println!("{},{},{least:.3},{:.4}", arguments.images, arguments.prompts, arguments.images as f64 / least);
    Ok(())
}

/// The published configurations, with the vocabulary of the golden PickScore, which is a part of CLIP's.
fn options(scorer: &str, folder: &Path) -> Result<Value, Failure> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let size =
        if ["pickscore", "hpsv2.1"].contains(&scorer) { "pickscore-v1" } else { "clip-vit-large-patch14" };
    let model = golden.join("published").join(size);
    let files = [
        model.join("config.json"),
        model.join("preprocessor_config.json"),
        golden.join("pickscore/vocab.json"),
        golden.join("pickscore/merges.txt"),
    ];
    for file in files {
        std::fs::copy(&file, folder.join(file.file_name().unwrap_or_default()))?;
    }
    Ok(match scorer {
        "aesthetic" => json!({"model": folder, "predictor": folder}),
        _ => json!({"model": folder}),
    })
}

fn prompt(repeat: usize, number: usize) -> PromptRecord {
    let prompt = format!("a photo of {number} red circles and {repeat} blue squares on a table");
    PromptRecord { prompt, metadata: Value::Null }
}

fn noise(seed: usize, side: usize) -> RgbImage {
    let byte = |index: usize| ((index + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    RgbImage { width: side, height: side, pixels: (0..side * side * 3).map(byte).collect() }
}
