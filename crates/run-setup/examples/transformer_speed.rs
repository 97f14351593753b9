//! Times the velocity network of a pipeline: `cargo run --release -p run-setup --example transformer_speed -- [FOLDER
//! [ROWS ...]] [--device cuda] [--dtype bfloat16] [--random-weights]`.
//!
//! By default the shipped pipeline on one CPU thread in float32. With `--random-weights` the configurations of a folder are
//! enough, such as `tests/golden/published/sd3.5-medium`. A line of CSV per number of rows: rows, milliseconds to sample
//! (adapter frozen), milliseconds of a training step (forward and backward with an adapter), and the 10¹² floating-point
//! operations of one forward pass. `tests/reference/bench.py` and `make gpu-check` put PyTorch beside it.

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use models::lora::LoraConfig;
use models::products::product_operations;
use models::weights::{TensorSource, WeightOptions};
use models::{
    Activations, AdapterMode, Conditioning, Guidance, LoadOptions, ModelError, TextToImageModel, pipeline,
};
use service::{ComputeArguments, cuda};
use tch::{Cuda, Device, Kind, Tensor, no_grad};

const TARGETS: [&str; 8] =
    ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"];

/// Times the velocity network of a pipeline.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Pipeline folder in the diffusers layout.
    #[arg(default_value = "assets/tiny-sd3")]
    folder: PathBuf,
    /// Rows of a network call; a line each.
    #[arg(default_values_t = [1, 8, 24, 64, 240])]
    rows: Vec<i64>,
    #[command(flatten)]
    compute: ComputeArguments,
    /// Random weights, by the folder's configurations alone.
    #[arg(long)]
    random_weights: bool,
    /// Height and width in pixels; the model's own if not given.
    #[arg(long)]
    side: Option<i64>,
    /// Text tokens; by default those of the shipped task's prompts.
    #[arg(long, default_value_t = 9)]
    text_tokens: i64,
    /// Compute activations again in the backward pass, block by block.
    #[arg(long)]
    gradient_checkpointing: bool,
    /// Calls, of which the least counts.
    #[arg(long, default_value_t = 30)]
    repeats: usize,
    /// CPU threads.
    #[arg(long, default_value_t = 1)]
    threads: i32,
}

/// What the network is asked about, and where.
struct Question {
    latents: Tensor,
    sigmas: Tensor,
    conditioning: Conditioning,
}

fn main() -> anyhow::Result<()> {
    let args: Args = service::parse_arguments();
    cuda::load_where_wanted(Some(args.compute.device))?;
    tch::set_num_threads(args.threads);
    let device = run_setup::open_device(args.compute.device).map_err(cuda::explained)?;
    let model = open(&args, device)?;
    let activations = if args.gradient_checkpointing { Activations::Recomputed } else { Activations::Kept };
    let side = args.side.unwrap_or(model.usual_size().0);
    let tokens = (model.image_sequence_length(side, side), args.text_tokens as usize);
    let operations = product_operations(model.network(), tokens.0, tokens.1);
    println!("rows,sampling_ms,training_ms,forward_tflop");
    for rows in args.rows {
        let Question { latents, sigmas, conditioning } =
            question(model.as_ref(), (rows, side, args.text_tokens), device)?;
        let guidance = Guidance::none(&conditioning);
        let sampling = least_ms(args.repeats, device, || {
            let _ = no_grad(|| model.velocity(&latents, &sigmas, &guidance, AdapterMode::Frozen));
        });
        let training = least_ms(args.repeats, device, || {
            let training = model.training_velocity(&latents, &sigmas, &guidance, activations);
            let loss = training.velocity().square().mean(Kind::Float);
            training.backward(&loss);
        });
        println!("{rows},{sampling:.3},{training:.3},{:.6}", rows as f64 * operations / 1e12);
    }
    Ok(())
}

fn open(args: &Args, device: Device) -> Result<Box<dyn TextToImageModel>, ModelError> {
    let source = if args.random_weights { TensorSource::Random(0) } else { TensorSource::Files };
    let weights = WeightOptions::new(run_setup::element_type(args.compute.dtype), device).from_source(source);
    let mut model =
        pipeline::open(&args.folder, LoadOptions { weights, text_encoders: false, decoder: None })?;
    let lora =
        LoraConfig { rank: 16, alpha: 32.0, targets: TARGETS.map(|t| format!("attn.{t}")).to_vec().into() };
    model.network_mut().attach_adapter(&lora, &mut |_, n| vec![0.01; n])?;
    Ok(model)
}

/// Random latents, noise levels, text and pooled text.
fn question(
    model: &dyn TextToImageModel,
    (rows, side, text_tokens): (i64, i64, i64),
    device: Device,
) -> Result<Question, ModelError> {
    let options = (Kind::Float, device);
    let shape: Vec<i64> = std::iter::once(rows).chain(model.latent_shape(side, side)?).collect();
    let (text_width, pooled_width) = model.embedding_widths();
    let pooled = (pooled_width > 0).then(|| Tensor::randn([rows, pooled_width], options));
    let text = Tensor::randn([rows, text_tokens, text_width], options);
    Ok(Question {
        latents: Tensor::randn(shape, options),
        sigmas: Tensor::rand([rows], options),
        conditioning: Conditioning { text, pooled, text_mask: None },
    })
}

/// The least of repeated calls: what the code costs when nothing else runs. A card is waited for.
fn least_ms(repeats: usize, device: Device, mut call: impl FnMut()) -> f64 {
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
    (0..repeats).map(time).fold(f64::INFINITY, f64::min)
}
