//! How much memory loading takes beyond the model itself. One test, alone in its process, since peaks are the process's.
//!
//! `cargo nextest run --release -p models --test loading_memory --no-capture` prints what docs/measurements.md says.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use models::weights::{Init, Scope, TensorSource, WeightOptions, Weights, write};
use tch::{Device, Kind, Tensor};

/// Side of the square matrices.
const SIDE: i64 = 4096;
/// Shards, of two matrices each.
const N_SHARDS: usize = 3;
const MEBIBYTE: f64 = (1 << 20) as f64;

#[test]
fn loading_takes_the_model_and_little_more_than_its_largest_tensor() {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path());
    println!("source    as        model MiB  largest tensor MiB  peak beyond the model MiB  seconds");
    for (source, name) in [(TensorSource::Files, "float32"), (TensorSource::Random(1), "random")] {
        for kind in [Kind::Float, Kind::BFloat16] {
            let options = WeightOptions::new(kind, Device::Cpu).from_source(source.clone());
            let loaded = load(folder.path(), options);
            let largest = (SIDE * SIDE) as f64 * kind.elt_size_in_bytes() as f64;
            println!(
                "{name:<9} {:<9} {:>9.0} {:>19.0} {:>26.1} {:>8.2}",
                format!("{kind:?}"),
                loaded.model / MEBIBYTE,
                largest / MEBIBYTE,
                loaded.beyond / MEBIBYTE,
                loaded.seconds
            );
            let limit = 1.2 * largest;
            assert!(loaded.beyond < limit, "{name} as {kind:?}: {} of at most {limit}", loaded.beyond);
        }
    }
}

struct Loaded {
    model: f64,
    beyond: f64,
    seconds: f64,
}

/// Loads all shards: one matrix alone, the others stacked, as networks do with theirs.
fn load(folder: &Path, options: WeightOptions) -> Loaded {
    // Sets the peak to what is resident now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, start) = (status("VmRSS"), Instant::now());
    let weights = Weights::open(folder, "model", &options).unwrap();
    let scope = |idx: usize| weights.scope(&format!("matrix.{idx}"));
    let single = scope(0).tensor("weight", &[SIDE, SIDE], Init::Xavier);
    let rest: Vec<_> = (1..2 * N_SHARDS).map(|idx| (scope(idx), SIDE)).collect();
    let stacked = Scope::stacked(&rest, "weight", &[SIDE], Init::Xavier);
    weights.finish().unwrap();
    let model = ((single.numel() + stacked.numel()) * options.kind.elt_size_in_bytes()) as f64;
    Loaded { model, beyond: status("VmHWM") - before - model, seconds: start.elapsed().as_secs_f64() }
}

fn write_shards(folder: &Path) {
    let mut weight_map = serde_json::Map::new();
    for shard in 0..N_SHARDS {
        let file = format!("model-{:05}-of-{N_SHARDS:05}.safetensors", shard + 1);
        let tensors = [2 * shard, 2 * shard + 1].map(|idx| {
            let name = format!("matrix.{idx}.weight");
            weight_map.insert(name.clone(), file.clone().into());
            (name, Tensor::rand([SIDE, SIDE], (Kind::Float, Device::Cpu)))
        });
        write(&folder.join(&file), &tensors, &HashMap::new()).unwrap();
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// A number of bytes out of `/proc/self/status`.
fn status(key: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
}
