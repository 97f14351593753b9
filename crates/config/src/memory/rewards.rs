//! What rewards with a network hold on each worker.

use super::activations::ALIVE_IN_BLOCK;
use super::parts::MemoryPart;
use super::sizes::FLOAT32;
use crate::{RewardInspection, RewardSection, RunConfig};

/// A published network that scores images.
struct ScoringNetwork {
    scorers: [&'static str; 2],
    /// Numbers, as counted from its published configuration.
    parameters: f64,
    /// Tokens of an image, with its words where the network reads them together.
    tokens: f64,
    /// Features of a token.
    width: f64,
    /// Images at once where an option does not say it.
    batch_size: f64,
    /// Bytes of a number on a card where an option does not say it.
    number_bytes: f64,
}

/// ViT-H/14: 32 blocks of width 1280 for images, 24 of width 1024 for words (tests/golden/published/pickscore-v1); 16²
/// patches of 14 pixels and one token for the whole image.
const VIT_H: ScoringNetwork = ScoringNetwork {
    scorers: ["pickscore", "hpsv2.1"],
    parameters: 986e6,
    tokens: 257.0,
    width: 1280.0,
    batch_size: 16.0,
    number_bytes: FLOAT32,
};

/// ViT-L/14: 24 blocks of width 1024 for images, 12 of width 768 for words (tests/golden/published/clip-vit-large-patch14).
const VIT_L: ScoringNetwork =
    ScoringNetwork { scorers: ["clipscore", "aesthetic"], parameters: 428e6, width: 1024.0, ..VIT_H };

/// Qwen2-VL-7B: 28 blocks of width 3584 with MLPs of 18944, 32 of width 1280 for images, no output layer
/// (tests/golden/published/qwen2-vl-7b-instruct); 800 tokens, of which 256 are the image's (docs/measurements.md).
const QWEN2_VL: ScoringNetwork = ScoringNetwork {
    scorers: ["hpsv3", "hpsv3"],
    parameters: 7.74e9,
    tokens: 800.0,
    width: 3584.0,
    batch_size: 4.0,
    number_bytes: 2.0,
};

/// The weights of all rewards that were inspected; those that are computed elsewhere or without a network have none.
pub(super) fn weights(config: &RunConfig, inspected: &[RewardInspection]) -> Vec<MemoryPart> {
    let part = |reward: &RewardInspection| {
        let published = published_network(config, reward)
            .map_or(0.0, |(section, network)| network.parameters * network.number_bytes(section, config));
        // Of files that are not here yet the headers cannot be read.
        let is_known = reward.bytes > 0 || published == 0.0;
        let bytes = if is_known { reward.bytes as f64 } else { published };
        let part = MemoryPart::device(format!("reward {}", reward.name), bytes);
        MemoryPart { is_estimate: !is_known, ..part }
    };
    inspected.iter().map(part).collect()
}

/// What they take to score, at the same time as each other and as the next task is sampled.
pub(super) fn scoring(config: &RunConfig, inspected: &[RewardInspection]) -> Vec<MemoryPart> {
    let part = |reward: &RewardInspection| {
        let (section, network) = published_network(config, reward)?;
        let features = network.images_at_once(section) * network.tokens * network.width;
        let bytes = features * network.number_bytes(section, config) * ALIVE_IN_BLOCK;
        let part = MemoryPart::device(format!("reward {}, scoring", reward.name), bytes);
        Some(part.estimated_on_card(config))
    };
    inspected.iter().filter_map(part).collect()
}

/// The section of a reward and its network, if it has one that is published.
fn published_network<'a>(
    config: &'a RunConfig,
    reward: &RewardInspection,
) -> Option<(&'a RewardSection, &'static ScoringNetwork)> {
    let (_, section) = config.all_rewards().find(|(key, _)| *key == reward.key)?;
    network_of(section).map(|network| (section, network))
}

/// The network of a scorer that has one.
fn network_of(section: &RewardSection) -> Option<&'static ScoringNetwork> {
    let known: [&'static ScoringNetwork; 3] = [&VIT_H, &VIT_L, &QWEN2_VL];
    known.into_iter().find(|network| network.scorers.contains(&section.scorer()))
}

impl ScoringNetwork {
    fn images_at_once(&self, section: &RewardSection) -> f64 {
        let stated = section.options.get("batch_size").and_then(toml::Value::as_integer);
        stated.map_or(self.batch_size, |size| size as f64)
    }

    fn number_bytes(&self, section: &RewardSection, config: &RunConfig) -> f64 {
        match section.options.get("dtype").and_then(toml::Value::as_str) {
            Some("bfloat16") => 2.0,
            Some(_) => FLOAT32,
            None if config.resources.device.is_cpu() => FLOAT32,
            None => self.number_bytes,
        }
    }
}
