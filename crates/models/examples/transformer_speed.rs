//! Times an SD3 transformer: `cargo run --release -p models --example transformer_speed -- [FOLDER [BATCH ...]]`.
//!
//! One thread, float32, CPU; FOLDER is a pipeline in the diffusers layout, by default the shipped one. A line of CSV per
//! batch size: rows, milliseconds to sample (adapter merged), milliseconds of a training step (forward and backward with
//! an adapter). `tests/reference/bench.py` puts PyTorch beside it.

use std::path::PathBuf;
use std::time::Instant;

use models::lora::LoraConfig;
use models::network::Query;
use models::sd3::Sd3Transformer;
use models::weights::WeightOptions;
use models::{AdapterMode, Network};
use tch::{Device, Kind, Tensor, no_grad};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const REPEATS: usize = 30;
/// Text tokens of the shipped task's prompts.
const TEXT_TOKENS: i64 = 9;
const TARGETS: [&str; 8] =
    ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tch::set_num_threads(1);
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().unwrap_or_else(|| "assets/tiny-sd3".to_owned()));
    let mut transformer =
        Sd3Transformer::open(&folder.join("transformer"), &WeightOptions::new(CPU.0, CPU.1))?;
    let lora =
        LoraConfig { rank: 16, alpha: 32.0, targets: TARGETS.map(|t| format!("attn.{t}")).to_vec().into() };
    transformer.attach_adapter(&lora, &mut |_, n| vec![0.01; n])?;

    let mut batches: Vec<i64> = arguments.map(|argument| argument.parse()).collect::<Result<_, _>>()?;
    if batches.is_empty() {
        batches = vec![1, 8, 24, 64, 240];
    }
    println!("rows,sampling_ms,training_ms");
    for batch in batches {
        let [latents, timestep, text, pooled] = &inputs(&transformer, batch);
        let query =
            Query { latents, timestep, text, pooled: Some(pooled), text_mask: None, guidance_scale: 1.0 };
        let sampling = least_ms(|| {
            let _ = no_grad(|| transformer.forward(&query, AdapterMode::Frozen));
        });
        let training = least_ms(|| {
            let velocity = transformer.forward(&query, AdapterMode::Trainable);
            velocity.square().mean(Kind::Float).backward();
        });
        println!("{batch},{sampling:.3},{training:.3}");
    }
    Ok(())
}

/// Random latents, timesteps, text and pooled text.
fn inputs(transformer: &Sd3Transformer, batch: i64) -> [Tensor; 4] {
    let config = transformer.config();
    let side = config.sample_size;
    let latents = Tensor::randn([batch, config.in_channels, side, side], CPU);
    let text = Tensor::randn([batch, TEXT_TOKENS, config.joint_attention_dim], CPU);
    let pooled = Tensor::randn([batch, config.pooled_projection_dim], CPU);
    [latents, Tensor::rand([batch], CPU) * 1000.0, text, pooled]
}

/// The least of repeated calls: what the code costs when nothing else runs.
fn least_ms(mut call: impl FnMut()) -> f64 {
    call();
    let time = |_| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64() * 1e3
    };
    (0..REPEATS).map(time).fold(f64::INFINITY, f64::min)
}
