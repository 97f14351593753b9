use super::*;
use crate::published_models::{flux1_dev, qwen_image, sd35_medium};
use crate::{
    CARDS, Card, MemoryPlace, MemoryPlan, ModelInspection, RewardInspection, memory_plan, preset, validate,
};

fn model(config: &RunConfig) -> ModelInspection {
    match config.model.path.to_str().expect("a name") {
        path if path.contains("diffusion-3.5") => sd35_medium(),
        path if path.contains("FLUX") => flux1_dev(),
        _ => qwen_image(),
    }
}

/// The plan of a config whose rewards are not here, so that they are reckoned as published.
fn planned(config: &RunConfig) -> MemoryPlan {
    let inspected = config.all_rewards().map(|(key, reward)| RewardInspection {
        key,
        name: reward.name.clone(),
        bytes: 0,
        problem: Some("not in the cache".to_owned()),
        is_of_host: true,
    });
    memory_plan(config, &model(config), &inspected.collect::<Vec<_>>())
}

/// Whether a run fits so many cards of a size with the plan's head-room: the only one holds learner and worker.
fn fits(config: &RunConfig, cards: usize, card: &Card) -> bool {
    let memory = planned(config);
    let (learner, worker) =
        (memory.learner_bytes(MemoryPlace::Device), memory.worker_bytes(MemoryPlace::Device));
    match cards {
        1 => card.takes(learner + worker),
        _ => card.takes(learner) && card.takes(worker) && config.resources.workers < cards,
    }
}

fn card_of(preset: &CardPreset) -> &'static Card {
    CARDS.iter().find(|card| card.gigabytes == preset.gigabytes).expect("a card of that size")
}

#[test]
fn each_fits_its_cards_by_plan_with_a_tenth_left_free() {
    for preset in &FOR_CARDS {
        let config = preset.config();
        assert!(fits(&config, preset.cards, card_of(preset)), "{}: {:#?}", preset.name, planned(&config));
    }
}

#[test]
fn those_that_set_something_for_memory_do_not_fit_without() {
    let mut n_set = 0;
    for preset in FOR_CARDS.iter().filter(|preset| preset.memory != AS_PUBLISHED) {
        let config = preset.config_with(AS_PUBLISHED);
        assert!(!fits(&config, preset.cards, card_of(preset)), "{} needs no settings", preset.name);
        n_set += 1;
    }
    assert!(n_set >= 3, "{n_set}");
}

#[test]
fn the_small_card_needs_each_of_its_larger_savings() {
    let small = &FOR_CARDS[0];
    assert_eq!(small.name, "tempflow-sd35-one-24gb");
    let without = [
        MemorySettings { caches_embeddings: false, ..small.memory },
        MemorySettings { recomputes_activations: false, ..small.memory },
        MemorySettings { sampling_rows: None, ..small.memory },
        MemorySettings { halves_rewards: false, ..small.memory },
    ];
    for memory in without {
        assert!(!fits(&small.config_with(memory), small.cards, card_of(small)), "{memory:?}");
    }
}

#[test]
fn two_copies_of_qwen_image_do_not_fit_80_gb_and_so_have_no_preset() {
    let mut config = preset("dgx-pickscore-qwenimage-pr").expect("a preset").config;
    config.model.embedding_cache = CACHE.into();
    (config.sampling.max_rows, config.training.max_rows, config.sampling.vae_tile) = (1, 1, 256);
    config.rewards = vec![RewardSection::new("jpeg_compressibility")];
    let card = CARDS.iter().find(|card| card.gigabytes == 80).expect("a card");
    assert!(!fits(&config, 1, card));
}

#[test]
fn nothing_but_batch_shapes_and_what_the_header_says_differs_from_the_published_run() {
    for preset in &FOR_CARDS {
        let (config, published) = (preset.config(), preset.recipe().config());
        let mut same = config.clone();
        same.run.name.clone_from(&published.run.name);
        same.sampling.max_rows = published.sampling.max_rows;
        same.training.max_rows = published.training.max_rows;
        same.training.gradient_checkpointing = published.training.gradient_checkpointing;
        same.model.embedding_cache.clone_from(&published.model.embedding_cache);
        same.resources.workers = published.resources.workers;
        same.rewards.iter_mut().for_each(|reward| drop(reward.options.remove("dtype")));
        let text = preset.text();
        if preset.cards == 1 {
            assert!(text.contains("Other than the source: 8 prompts per iteration instead of 48"), "{text}");
            same.sampling.prompts_per_iteration = published.sampling.prompts_per_iteration;
        }
        if preset.reward.is_some() {
            assert!(text.contains("PickScore is trained"), "{text}");
            same.rewards.clone_from(&published.rewards);
        }
        assert_eq!(same, published, "{}", preset.name);
        assert!(validate(&config).is_empty(), "{}", preset.name);
    }
}

#[test]
fn each_uses_all_of_its_cards() {
    for preset in &FOR_CARDS {
        let processes = preset.config().resources.workers + 1;
        assert_eq!(processes, preset.cards.max(2), "{}", preset.name);
    }
}

#[test]
fn the_published_reward_of_flux_does_not_fit_one_card_of_80_gb() {
    let flux = FOR_CARDS.iter().find(|preset| preset.name == "tempflow-flux-one-80gb").expect("listed");
    let mut config = flux.config();
    config.rewards.clone_from(&flux.recipe().config().rewards);
    assert!(!fits(&config, flux.cards, card_of(flux)));
}
