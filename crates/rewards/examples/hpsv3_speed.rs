//! Times HPSv3's network: `cargo run --release -p rewards --example hpsv3_speed -- [THREADS [BATCH ...]] [--device cuda]
//! [--dtype bfloat16]`.
//!
//! By default on the CPU in float32; random weights; two of the 28 layers of the language model and four of the 32 blocks of the vision tower, as
//! wide as published, on images of 1024 × 1024 pixels (256 tokens) with 544 tokens of text, about as many as the question
//! has. A line of CSV per batch size: images, milliseconds to make their patches, milliseconds of the network.
//! `tests/reference/bench.py` puts PyTorch beside it.

use std::time::Instant;

use clap::Parser;
use models::qwen2_vl::{Qwen2Vl, Qwen2VlConfig, Qwen2VlInput, TokenPositions};
use models::weights::{TensorSource, WeightOptions, Weights};
use rewards::image_resampling::resize_bicubic;
use rewards::{ImagePatches, PixelBounds, Qwen2VlImageProcessor, RgbImage, TooNarrow, smart_resize};
use serde_json::json;
use service::{ComputeArguments, cuda};
use tch::{Cuda, Device};

const REPEATS: usize = 3;
const SIDE: usize = 1024;
const PIXELS: usize = 256 * 28 * 28;
/// Tokens before and after those of the image.
const TEXT_TOKENS: [i64; 2] = [14, 530];
const IMAGE_TOKEN: i64 = 7;

/// Times HPSv3's network.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// CPU threads.
    #[arg(default_value_t = 2)]
    threads: i32,
    /// Images of a network call; a line each.
    #[arg(default_values_t = [1, 2])]
    batches: Vec<usize>,
    #[command(flatten)]
    compute: ComputeArguments,
}

fn main() -> anyhow::Result<()> {
    let Args { threads, batches, compute } = service::parse_arguments();
    cuda::load_where_wanted(Some(compute.device))?;
    tch::set_num_threads(threads);
    let device = run_setup::open_device(compute.device).map_err(cuda::explained)?;
    let options = WeightOptions::new(run_setup::element_type(compute.dtype), device);
    let (model, processor) = open(options.from_source(TensorSource::Random(0)))?;
    let image = noise()?;
    println!("images,patches_ms,network_ms");
    for batch in batches {
        let patches_ms = batch as f64 * least_ms(Device::Cpu, || drop(patches(&processor, &image)));
        let one = patches(&processor, &image)?;
        let pixel_values = one.values.repeat([batch as i64, 1]);
        let grids = vec![one.grid; batch];
        let [before, after] = TEXT_TOKENS.map(|count| (0..count).map(|idx| 8 + 31 * idx % 900));
        let of_image = std::iter::repeat_n(IMAGE_TOKEN, model.image_tokens(one.grid));
        let ids: Vec<i64> = before.chain(of_image).chain(after).collect();
        let input_ids = &vec![ids; batch];
        let input = Qwen2VlInput { input_ids, pixel_values: &pixel_values, grids: &grids };
        let network_ms = least_ms(device, || {
            let _ = tch::no_grad(|| model.forward(&input, TokenPositions::InSequence));
        });
        println!("{batch},{patches_ms:.3},{network_ms:.3}");
    }
    Ok(())
}

fn patches(processor: &Qwen2VlImageProcessor, image: &RgbImage) -> Result<ImagePatches, TooNarrow> {
    let bounds = PixelBounds { min: PIXELS, max: PIXELS };
    let (width, height) = smart_resize((image.width, image.height), 28, bounds)?;
    processor.process(&resize_bicubic(image, width, height))
}

fn noise() -> anyhow::Result<RgbImage> {
    let bytes =
        (0..SIDE as u32 * SIDE as u32 * 3).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8);
    Ok(RgbImage::new(SIDE, SIDE, bytes.collect())?)
}

/// A model of the published width, but for its depth and vocabulary.
fn open(options: WeightOptions) -> anyhow::Result<(Qwen2Vl, Qwen2VlImageProcessor)> {
    let folder = tempfile::tempdir()?;
    let config = json!({
        "model_type": "qwen2_vl", "vocab_size": 1000, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 2, "num_attention_heads": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "image_token_id": IMAGE_TOKEN,
        "vision_config": {"depth": 4, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "hidden_size": 3584},
    });
    let (path, preprocessor) = (folder.path().join("config.json"), folder.path().join("preprocessor.json"));
    std::fs::write(&path, config.to_string())?;
    std::fs::write(&preprocessor, "{}")?;
    let config = Qwen2VlConfig::read(&path)?;
    let processor = Qwen2VlImageProcessor::open(&preprocessor, &config.vision)?;
    let weights = Weights::open(folder.path(), "model", &options)?;
    Ok((Qwen2Vl::new(&weights, config), processor))
}

/// The least of repeated calls: what the code costs when nothing else runs. A card is waited for.
fn least_ms(device: Device, mut call: impl FnMut()) -> f64 {
    let mut finished = || {
        call();
        if let Device::Cuda(position) = device {
            Cuda::synchronize(position as i64);
        }
    };
    finished();
    let time = |_| {
        let start = Instant::now();
        finished();
        start.elapsed().as_secs_f64() * 1e3
    };
    (0..REPEATS).map(time).fold(f64::INFINITY, f64::min)
}
