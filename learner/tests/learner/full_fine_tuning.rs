//! Training of all parameters instead of an adapter.

use crate::lab::{Delivery, Lab, Shared, metrics};
use config::{AdapterMethod, Dtype, RunConfig};
use learner::run::TrainingEnd;
use models::weights::{WeightOptions, read_all};
use models::{LoadOptions, pipeline};
use tch::{Device, Kind, Tensor};

const TRAINED_FILES: [&str; 3] = ["transformer.safetensors", "optimizer.safetensors", "ema.safetensors"];

fn full(config: &mut RunConfig) {
    config.adapter.method = AdapterMethod::Full;
    config.training.learning_rate = 1e-4;
    // The average is the live network.
    (config.ema.decay, config.ema.interval) = (0.0, 1);
}

/// Tensors of the exported transformer, by the names of a checkpoint.
fn exported(lab: &Lab) -> Vec<(String, Tensor)> {
    read_all(&lab.directory().adapter().join("transformer/diffusion_pytorch_model.safetensors")).unwrap().0
}

#[test]
fn a_stopped_run_with_a_divergence_to_the_base_goes_on_where_it_was() {
    let settings = |config: &mut RunConfig| {
        full(config);
        config.training.kl_beta = 0.1;
        config.training.gradient_checkpointing = true;
        config.run.lag = 1;
    };
    let straight = Lab::new(settings);
    straight.train(Delivery::InOrder, |_, _| {}).unwrap();
    let rows = metrics(&straight);
    assert!(rows[0].policy.ratio_deviation.unwrap() < 1e-6, "{:?}", rows[0].policy.ratio_deviation);
    assert!(rows[1].policy.kl > rows[0].policy.kl && rows[1].policy.kl > 0.0, "the base stays where it was");

    let interrupted = Lab::new(settings);
    let shared = Shared::default();
    let mut run = interrupted.open(&shared).unwrap();
    let worker = interrupted.spawn_worker(&shared, Delivery::Reversed, Some((1, 2)), |_, _| {});
    assert!(matches!(run.run().unwrap(), TrainingEnd::Left));
    worker.join().unwrap();
    interrupted.train(Delivery::InOrder, |_, _| {}).unwrap();
    for file in TRAINED_FILES {
        let [one, other] = [&straight, &interrupted].map(|lab| lab.checkpoint_file(2, file));
        assert!(one == other, "{file} differs");
    }
}

#[test]
fn the_exported_transformer_takes_the_place_of_the_base_one() {
    let lab = Lab::new(full);
    lab.train(Delivery::InOrder, |_, _| {}).unwrap();
    let base =
        read_all(&lab.config.model.path.join("transformer/diffusion_pytorch_model.safetensors")).unwrap().0;
    let trained = exported(&lab);
    assert_eq!(
        base.iter().map(|(name, t)| (name, t.size())).collect::<Vec<_>>(),
        trained.iter().map(|(name, t)| (name, t.size())).collect::<Vec<_>>()
    );
    let n_moved = base.iter().zip(&trained).filter(|((_, base), (_, trained))| base != trained).count();
    // The table of positions is not trained, and the text queries of the last block reach nothing: without a gradient,
    // weight decay alone is too little for float32.
    assert_eq!(n_moved, base.len() - 4);

    let folder = tempfile::tempdir().unwrap();
    for entry in ["model_index.json", "scheduler", "vae"] {
        std::os::unix::fs::symlink(lab.config.model.path.join(entry), folder.path().join(entry)).unwrap();
    }
    let transformer = lab.directory().adapter().join("transformer");
    std::os::unix::fs::symlink(transformer, folder.path().join("transformer")).unwrap();
    let weights = WeightOptions::new(Kind::Float, Device::Cpu);
    let options = LoadOptions { weights, text_encoders: false, decoder: None };
    let model = pipeline::open(folder.path(), options).unwrap();
    let live = lab.checkpoint_file(2, "transformer.safetensors");
    let path = folder.path().join("live.safetensors");
    std::fs::write(&path, live).unwrap();
    let mut parameters = model.network().parameters();
    parameters.sort_by(|(one, _), (other, _)| one.cmp(other));
    assert_eq!(read_all(&path).unwrap().0, parameters);
}

#[test]
fn a_half_precision_network_follows_float32_masters() {
    let lab = Lab::new(|config| {
        full(config);
        config.model.dtype = Dtype::Bfloat16;
        // So small that most bfloat16 weights would not feel it.
        config.training.learning_rate = 1e-6;
    });
    lab.train(Delivery::InOrder, |_, _| {}).unwrap();
    let path = |version| {
        lab.directory().checkpoints().join(format!("iteration-{version:06}/transformer.safetensors"))
    };
    let [before, after] = [0, 2].map(|version| read_all(&path(version)).unwrap().0);
    let (mut n_moved, mut n_rounded_moved, mut n_elements) = (0, 0, 0);
    for ((_, before), (_, after)) in before.iter().zip(&after) {
        assert_eq!(after.kind(), Kind::Float);
        let n_differ = |a: &Tensor, b: &Tensor| a.not_equal_tensor(b).sum(Kind::Int64).int64_value(&[]);
        n_moved += n_differ(before, after);
        n_rounded_moved += n_differ(&before.to_kind(Kind::BFloat16), &after.to_kind(Kind::BFloat16));
        n_elements += before.numel() as i64;
    }
    assert!(n_moved * 10 > n_elements * 9, "{n_moved} of {n_elements} masters moved");
    assert!(n_rounded_moved * 2 < n_elements, "{n_rounded_moved} of {n_elements} rounded weights moved");
    assert!(exported(&lab).iter().all(|(_, tensor)| tensor.kind() == Kind::BFloat16));
}
