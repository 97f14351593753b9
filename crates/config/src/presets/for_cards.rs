//! Presets for the cards that people have: published runs with the batch shapes that fit, by plan.
//!
//! Each takes its maths from one published preset. What of memory it sets is told apart, so that a test can take it back
//! and see that the run no longer fits.

use super::published::PUBLISHED;
use super::recipe::{Recipe, with_supplies};
use crate::commented::commented_toml;
use crate::{RewardSection, RunConfig};

/// Prompts per iteration on one card, as in Flow-GRPO's launch on one GPU (`general_ocr_sd3_1gpu`).
const PROMPTS_ON_ONE_CARD: usize = 8;

/// Where the presets that need it keep embeddings, below `run.directory`.
const CACHE: &str = "embeddings";

/// A published run for some cards.
#[derive(Debug)]
pub(super) struct CardPreset {
    pub name: &'static str,
    /// The published preset that it repeats.
    published: &'static str,
    /// How many cards there are.
    pub cards: usize,
    /// Memory of each in GB, as its maker calls it.
    pub gigabytes: u32,
    /// What is trained where the published reward does not fit.
    reward: Option<&'static str>,
    /// Why it differs in more than batch shapes, beside the number of prompts; may be empty.
    remark: &'static str,
    pub memory: MemorySettings,
}

/// What differs from the published preset to make room, and leaves the maths alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemorySettings {
    /// Latents in one network call.
    sampling_rows: Option<usize>,
    /// Latents in one training forward.
    training_rows: Option<usize>,
    recomputes_activations: bool,
    caches_embeddings: bool,
    /// Whether the network of a reward computes in bfloat16.
    halves_rewards: bool,
}

/// The published preset's own.
pub(super) const AS_PUBLISHED: MemorySettings = MemorySettings {
    sampling_rows: None,
    training_rows: None,
    recomputes_activations: false,
    caches_embeddings: false,
    halves_rewards: false,
};

/// All of them, the smallest card first.
pub(super) static FOR_CARDS: [CardPreset; 6] = [
    CardPreset {
        name: "tempflow-sd35-one-24gb",
        published: "dgx-pickscore-sd3-pr",
        cards: 1,
        gigabytes: 24,
        reward: None,
        remark: "",
        memory: MemorySettings {
            sampling_rows: Some(8),
            training_rows: Some(1),
            recomputes_activations: true,
            caches_embeddings: true,
            halves_rewards: true,
        },
    },
    CardPreset {
        name: "tempflow-sd35-one-80gb",
        published: "dgx-pickscore-sd3-pr",
        cards: 1,
        gigabytes: 80,
        reward: None,
        remark: "",
        memory: AS_PUBLISHED,
    },
    CardPreset {
        name: "tempflow-flux-one-80gb",
        published: "dgx-flux-pr",
        cards: 1,
        gigabytes: 80,
        reward: Some("pickscore"),
        remark: "PickScore is trained, as in Flow-GRPO's pickscore_flux: the source's HPSv3 has no room beside two copies \
                 of FLUX.1-dev.",
        memory: MemorySettings { sampling_rows: Some(4), caches_embeddings: true, ..AS_PUBLISHED },
    },
    CardPreset {
        name: "tempflow-sd35-eight-80gb",
        published: "dgx-pickscore-sd3-pr",
        cards: 8,
        gigabytes: 80,
        reward: None,
        remark: "",
        memory: AS_PUBLISHED,
    },
    CardPreset {
        name: "tempflow-flux-eight-80gb",
        published: "dgx-flux-pr",
        cards: 8,
        gigabytes: 80,
        reward: None,
        remark: "",
        memory: AS_PUBLISHED,
    },
    CardPreset {
        name: "tempflow-qwenimage-eight-80gb",
        published: "dgx-pickscore-qwenimage-pr",
        cards: 8,
        gigabytes: 80,
        reward: None,
        remark: "",
        memory: MemorySettings { sampling_rows: Some(8), ..AS_PUBLISHED },
    },
];

impl CardPreset {
    /// Where its numbers come from.
    pub fn source(&self) -> String {
        format!("{}, for {}", self.published, self.cards_in_words())
    }

    /// The run.
    pub fn config(&self) -> RunConfig {
        self.config_with(self.memory)
    }

    /// The run with other settings of memory.
    pub fn config_with(&self, memory: MemorySettings) -> RunConfig {
        let mut config = self.recipe().config();
        self.name.clone_into(&mut config.run.name);
        if self.is_for_one() {
            config.sampling.prompts_per_iteration = PROMPTS_ON_ONE_CARD;
        }
        if let Some(reward) = self.reward {
            config.rewards = vec![RewardSection::new(reward)];
        }
        config.resources.workers = self.workers();
        memory.apply(&mut config);
        config
    }

    /// The commented file.
    pub fn text(&self) -> String {
        let mut comments = self.comments();
        comments.extend(self.recipe().comments());
        let config = self.config();
        let header = format!("{}\n{}", self.source(), self.header());
        commented_toml(&config, &with_supplies(&header, &config), &comments)
    }

    fn recipe(&self) -> &'static Recipe {
        let found = PUBLISHED.iter().find(|recipe| recipe.name == self.published);
        found.expect("a preset for cards names a published one; else this is a bug")
    }

    fn is_for_one(&self) -> bool {
        self.cards == 1
    }

    /// The learner has a card of its own where there are several, and shares the only one.
    fn workers(&self) -> usize {
        (self.cards - 1).max(1)
    }

    fn cards_in_words(&self) -> String {
        match self.cards {
            1 => format!("one card of {} GB", self.gigabytes),
            n => format!("{n} cards of {} GB", self.gigabytes),
        }
    }

    /// What is the same as in the source, and what is not.
    fn header(&self) -> String {
        let same = "The maths is the source's; batch shapes are those that fit, by a plan that has not been held against a \
                    card yet.";
        if !self.is_for_one() {
            return same.to_owned();
        }
        let published = self.recipe().config().sampling.prompts_per_iteration;
        let different = format!(
            "Other than the source: {PROMPTS_ON_ONE_CARD} prompts per iteration instead of {published}, so an iteration \
             costs one card so much less, and gradients are noisier. {}",
            self.remark
        );
        format!("{same}\n{}", different.trim_end())
    }

    fn comments(&self) -> Vec<(&'static str, String)> {
        let mut comments = self.memory.comments();
        comments.push((
            "resources.workers",
            match self.is_for_one() {
                true => "It shares the card with the learner.".to_owned(),
                false => "One on each card besides the learner's.".to_owned(),
            },
        ));
        if self.is_for_one() {
            comments.push((
                "sampling.prompts_per_iteration",
                "Ours: as many as Flow-GRPO's launch on one GPU has. Seeds and branches of each prompt are the source's."
                    .to_owned(),
            ));
        }
        comments
    }
}

impl MemorySettings {
    fn apply(self, config: &mut RunConfig) {
        let (sampling, training) = (&mut config.sampling, &mut config.training);
        sampling.max_rows = self.sampling_rows.unwrap_or(sampling.max_rows);
        training.max_rows = self.training_rows.unwrap_or(training.max_rows);
        training.gradient_checkpointing |= self.recomputes_activations;
        if self.caches_embeddings {
            config.model.embedding_cache = CACHE.into();
        }
        if self.halves_rewards {
            let options = config.rewards.iter_mut().map(|reward| &mut reward.options);
            options.for_each(|options| drop(options.insert("dtype".to_owned(), "bfloat16".into())));
        }
    }

    fn comments(self) -> Vec<(&'static str, String)> {
        let all = [
            (
                self.caches_embeddings,
                "model.embedding_cache",
                "Text encoders are gone before the transformer is opened. Each prompt of `data` takes 1 to 2 MB of \
                 disk.",
            ),
            (
                self.recomputes_activations,
                "training.gradient_checkpointing",
                "Activations are computed twice: less memory for one more forward pass, the same gradients up to rounding.",
            ),
            (
                self.halves_rewards,
                "rewards",
                "In bfloat16 its network takes half the room beside the text encoders; scores are rounded accordingly.",
            ),
        ];
        let told = all.into_iter().filter(|(is_set, ..)| *is_set);
        told.map(|(_, key, comment)| (key, comment.to_owned())).collect()
    }
}

#[cfg(test)]
mod tests;
