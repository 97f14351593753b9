//! Times a small SD3 transformer: `cargo run --release -p models --example transformer_speed [BATCH ...]`.
//!
//! One thread, float32, CPU; 16 image and 10 text tokens, as the shipped task has them. Each line is the fastest of
//! repeated calls, which other work on the machine disturbs least: sampling (adapter merged), then a training step (forward and backward with an adapter).

use std::time::Instant;

use models::lora::LoraConfig;
use models::sd3::{Sd3Config, Sd3Transformer};
use models::weights::Weights;
use tch::{Device, Kind, Tensor, no_grad};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const REPEATS: usize = 30;

const CONFIG: &str = r#"{
    "sample_size": 8, "patch_size": 2, "in_channels": 16, "num_layers": 4, "attention_head_dim": 32,
    "num_attention_heads": 4, "joint_attention_dim": 64, "caption_projection_dim": 128, "pooled_projection_dim": 64,
    "out_channels": 16, "pos_embed_max_size": 8, "dual_attention_layers": [0, 1], "qk_norm": "rms_norm"
}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tch::set_num_threads(1);
    let config: Sd3Config = serde_json::from_str(CONFIG)?;
    let mut transformer = Sd3Transformer::new(&Weights::random(1, CPU.0, CPU.1).scope(""), &config);
    let targets =
        ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"];
    let lora = LoraConfig { rank: 8, alpha: 16.0, targets: targets.map(|t| format!("attn.{t}")).to_vec() };
    transformer.attach_adapter(&lora, &mut |_, n| vec![0.01; n])?;

    let mut batches: Vec<i64> = std::env::args().skip(1).map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    if batches.is_empty() {
        batches = vec![1, 8, 24, 64, 240];
    }
    println!("{:>6} {:>14} {:>14} {:>16}", "batch", "sampling ms", "training ms", "sampled rows/s");
    for batch in batches {
        let inputs = [[batch, 16, 8, 8].as_slice(), &[batch], &[batch, 10, 64], &[batch, 64]]
            .map(|shape| Tensor::randn(shape, CPU));
        let [latents, timestep, text, pooled] = &inputs;
        let sampling = fastest_ms(|| {
            let _ = no_grad(|| transformer.forward(latents, timestep, text, pooled));
        });
        let training = fastest_ms(|| {
            transformer
                .forward_training(latents, timestep, text, pooled)
                .square()
                .mean(Kind::Float)
                .backward();
        });
        println!("{batch:>6} {sampling:>14.3} {training:>14.3} {:>16.0}", batch as f64 / sampling * 1e3);
    }
    Ok(())
}

fn fastest_ms(mut call: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64() * 1e3
    };
    (0..REPEATS).map(time).fold(f64::INFINITY, f64::min)
}
