//! Settings that take less of a card's memory, and how much each frees.

use crate::{MemoryPlace, MemoryPlan, ModelInspection, RewardInspection, RunConfig, memory_plan};

/// Sides of tiles are multiples of that, in pixels: tiles overlap by a quarter, and a latent is 8 pixels wide.
const TILE_UNIT: i64 = 32;

/// Side in pixels of the smallest tiles that are proposed: an image of 512 is decoded in a quarter of the memory.
const LEAST_TILE: i64 = 256;

/// Where embeddings are proposed to be kept.
const CACHE: &str = "embeddings";

/// A setting that takes less of a card's memory. The maths of a run stays what it is; batches of other sizes round
/// differently, and images that are decoded in tiles differ slightly.
#[derive(Clone, Debug, PartialEq)]
pub struct Remedy {
    /// The setting, as a user writes it, or what to do in words.
    pub setting: String,
    /// Bytes that it frees on the learner's card.
    pub learner: f64,
    /// Bytes that it frees on the worker's card.
    pub worker: f64,
}

/// The settings that take less than a config's own, and what is held under all of them together.
pub fn remedies(
    config: &RunConfig,
    model: &ModelInspection,
    rewards: &[RewardInspection],
) -> (Vec<Remedy>, MemoryPlan) {
    let before = memory_plan(config, model, rewards);
    let frees = |setting: String, after: &MemoryPlan| Remedy {
        setting,
        learner: before.learner_bytes(MemoryPlace::Device) - after.learner_bytes(MemoryPlace::Device),
        worker: before.worker_bytes(MemoryPlace::Device) - after.worker_bytes(MemoryPlace::Device),
    };
    let mut remedies = Vec::new();
    let mut with_all = config.clone();
    for (setting, change) in changes(config) {
        let mut changed = config.clone();
        change(&mut changed);
        change(&mut with_all);
        remedies.push(frees(setting, &memory_plan(&changed, model, rewards)));
    }
    let moved = "rewards moved elsewhere (serve-reward, grpc)".to_owned();
    remedies.push(frees(moved, &memory_plan(config, model, &[])));
    (remedies, memory_plan(&with_all, model, &[]))
}

type Change = fn(&mut RunConfig);

/// What a config does not say already.
fn changes(config: &RunConfig) -> Vec<(String, Change)> {
    let sampling_rows = fewer(config.sampling.max_rows);
    let tile = smaller_tile(config);
    let is_smaller = tile < config.sampling.height.max(config.sampling.width)
        && (config.sampling.vae_tile == 0 || config.sampling.vae_tile > tile);
    let all: [(bool, String, Change); 5] = [
        (
            !config.training.gradient_checkpointing,
            "training.gradient_checkpointing = true".to_owned(),
            |config| config.training.gradient_checkpointing = true,
        ),
        (config.training.max_rows > 1, "training.max_rows = 1".to_owned(), |config| {
            config.training.max_rows = 1;
        }),
        (
            config.model.embedding_cache.as_os_str().is_empty(),
            format!("model.embedding_cache = \"{CACHE}\""),
            |config| config.model.embedding_cache = CACHE.into(),
        ),
        (config.sampling.max_rows > 1, format!("sampling.max_rows = {sampling_rows}"), |config| {
            config.sampling.max_rows = fewer(config.sampling.max_rows);
        }),
        (is_smaller, format!("sampling.vae_tile = {tile}"), |config| {
            config.sampling.vae_tile = smaller_tile(config);
        }),
    ];
    all.into_iter().filter(|(is_new, ..)| *is_new).map(|(_, setting, change)| (setting, change)).collect()
}

/// A quarter of the rows.
fn fewer(rows: usize) -> usize {
    (rows / 4).max(1)
}

/// Half the longer side of an image, as tiles can have it.
fn smaller_tile(config: &RunConfig) -> i64 {
    let half = config.sampling.height.max(config.sampling.width) / 2;
    ((half + TILE_UNIT - 1) / TILE_UNIT * TILE_UNIT).max(LEAST_TILE)
}
