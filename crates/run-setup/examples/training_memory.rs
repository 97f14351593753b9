//! Memory and time of one training step of an SD3 transformer with random weights, by default in float32 on one CPU thread:
//! `cargo run --release -p run-setup --example training_memory -- kept|recomputed [WIDTH BLOCKS SIDE BATCH] [--device cuda]
//! [--dtype bfloat16]`.
//!
//! SIDE is the latent image's, in latents: SIDE² / 4 image tokens. A line of CSV: resident memory before the step and
//! the most it came to, in MiB as Linux counts them, then milliseconds. The peak is the process's, so each way of
//! training wants a process of its own; what lies on a card it does not count.

use std::time::Instant;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use models::lora::LoraConfig;
use models::network::Query;
use models::sd3::{Sd3Config, Sd3Transformer};
use models::weights::Weights;
use models::{Activations, Network, TrainingVelocity};
use service::{ComputeArguments, cuda};
use tch::{Cuda, Device, Kind, Tensor};

const HEAD_WIDTH: i64 = 64;
/// As many as SD3.5 has: 77 of CLIP and 128 of T5.
const TEXT_TOKENS: i64 = 205;
const TEXT_WIDTH: i64 = 1024;
const CHANNELS: i64 = 16;
const TARGETS: [&str; 8] =
    ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"];

/// Measures one training step.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where the backward pass gets activations from.
    activations: Choice,
    /// Width of a token between blocks.
    #[arg(default_value_t = 768)]
    width: i64,
    /// Number of blocks.
    #[arg(default_value_t = 12)]
    n_blocks: i64,
    /// Side of the latent image.
    #[arg(default_value_t = 64)]
    side: i64,
    /// Number of images.
    #[arg(default_value_t = 2)]
    batch: i64,
    #[command(flatten)]
    compute: ComputeArguments,
}

#[derive(Clone, Copy, ValueEnum)]
enum Choice {
    Kept,
    Recomputed,
}

fn main() -> anyhow::Result<()> {
    let Args { activations, width, n_blocks, side, batch, compute } = service::parse_arguments();
    let activations = match activations {
        Choice::Kept => Activations::Kept,
        Choice::Recomputed => Activations::Recomputed,
    };
    cuda::load_where_wanted(Some(compute.device))?;
    tch::set_num_threads(1);
    let device = run_setup::open_device(compute.device).map_err(cuda::explained)?;
    let options = (run_setup::element_type(compute.dtype), device);
    let config: Sd3Config = serde_json::from_value(serde_json::json!({
        "num_layers": n_blocks, "num_attention_heads": width / HEAD_WIDTH, "attention_head_dim": HEAD_WIDTH,
        "joint_attention_dim": TEXT_WIDTH, "pooled_projection_dim": TEXT_WIDTH, "in_channels": CHANNELS,
        "caption_projection_dim": width, "sample_size": side, "pos_embed_max_size": side, "qk_norm": "rms_norm",
    }))?;
    let weights = Weights::random(1, options.0, options.1);
    let mut transformer = Sd3Transformer::new(&weights.scope(""), &config);
    weights.finish()?;
    let lora =
        LoraConfig { rank: 32, alpha: 64.0, targets: TARGETS.map(|t| format!("attn.{t}")).to_vec().into() };
    transformer.attach_adapter(&lora, &mut |_, n| vec![0.01; n])?;

    let latents = Tensor::randn([batch, CHANNELS, side, side], options);
    let timestep = Tensor::rand([batch], (Kind::Float, device)) * 1000.0;
    let text = Tensor::randn([batch, TEXT_TOKENS, TEXT_WIDTH], options);
    let pooled = Tensor::randn([batch, TEXT_WIDTH], options);
    let query = Query {
        latents: &latents,
        timestep: &timestep,
        text: &text,
        pooled: Some(&pooled),
        text_mask: None,
        guidance_scale: 1.0,
    };
    let before = memory("VmRSS:")?;
    let start = Instant::now();
    let training = TrainingVelocity::new(&transformer, activations, |evaluate| evaluate(&query));
    let loss = training.velocity().square().mean(Kind::Float);
    training.backward(&loss);
    if let Device::Cuda(position) = device {
        Cuda::synchronize(position as i64);
    }
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    println!("activations,before_mib,peak_mib,step_ms");
    println!("{activations:?},{before:.0},{:.0},{milliseconds:.0}", memory("VmHWM:")?);
    Ok(())
}

/// A line of this process's status, in MiB.
fn memory(field: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .context("no such field in /proc/self/status")?;
    let kibibytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes / 1024.0)
}
