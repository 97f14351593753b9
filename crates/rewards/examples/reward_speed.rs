//! Times a scorer made of CLIP at its published size: `cargo run --release -p rewards --example reward_speed -- SCORER
//! [--images N] [--prompts N] [--side PIXELS] [--threads N] [--repeats N] [--device cuda] [--dtype bfloat16]`.
//!
//! By default on the CPU in float32; random weights, so that no model needs to be at hand: `pickscore` and `hpsv2.1` are a ViT-H/14 of a billion
//! parameters, `clipscore` and `aesthetic` a ViT-L/14. Pictures are noise, and prompts go round; each repeat has prompts of its
//! own, which the scorer does not remember. A line of CSV: images, prompts, least seconds, images per second.
//! `tests/reference/bench.py` puts PyTorch beside it.

use std::path::Path;
use std::time::Instant;

use clap::Parser;
use config::Dtype;
use models::weights::TensorSource;
use rewards::{PromptRecord, Resources, RgbImage, build};
use serde_json::{Value, json};
use service::{ComputeArguments, cuda};

/// Times a scorer made of CLIP.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// `pickscore`, `hpsv2.1`, `clipscore` or `aesthetic`.
    scorer: String,
    /// Images of a batch.
    #[arg(long, default_value_t = 8)]
    images: usize,
    /// Distinct prompts that they share.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    prompts: u16,
    /// Height and width of an image.
    #[arg(long, default_value_t = 512)]
    side: usize,
    /// CPU threads.
    #[arg(long, default_value_t = 2)]
    threads: i32,
    /// Batches, of which the fastest counts.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    #[command(flatten)]
    compute: ComputeArguments,
}

fn main() -> anyhow::Result<()> {
    let arguments: Arguments = service::parse_arguments();
    let compute = arguments.compute;
    cuda::load_where_wanted(Some(compute.device))?;
    tch::set_num_threads(arguments.threads);
    let device = run_setup::open_device(compute.device).map_err(cuda::explained)?;
    let folder = tempfile::tempdir()?;
    let options = options(&arguments.scorer, compute.dtype, folder.path())?;
    let resources = Resources { device, source: TensorSource::Random(0), ..Resources::local() };
    let scorer = build(&arguments.scorer, &options, &resources)?;
    let images: Vec<RgbImage> = (0..arguments.images).map(|seed| noise(seed, arguments.side)).collect();
    println!("images,prompts,seconds,images_per_second");
    let mut least = f64::INFINITY;
    for repeat in 0..arguments.repeats {
        let prompts: Vec<PromptRecord> = (0..arguments.images)
            .map(|image| prompt(repeat, image % usize::from(arguments.prompts)))
            .collect();
        let start = Instant::now();
        scorer.score(&images, &prompts)?;
        least = least.min(start.elapsed().as_secs_f64());
    }
    println!("{},{},{least:.3},{:.4}", arguments.images, arguments.prompts, arguments.images as f64 / least);
    Ok(())
}

/// The published configurations, with the vocabulary of the golden PickScore, which is a part of CLIP's.
fn options(scorer: &str, dtype: Dtype, folder: &Path) -> anyhow::Result<Value> {
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
        "aesthetic" => json!({"model": folder, "predictor": folder, "dtype": dtype}),
        _ => json!({"model": folder, "dtype": dtype}),
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
