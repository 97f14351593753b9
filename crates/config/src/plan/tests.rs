use super::*;
use crate::published_models::{component, flux1_dev, qwen_image, sd35_medium};
use crate::{
    AdapterInspection, AdapterMethod, CARDS, ComputeDevice, Dtype, ImageInspection, MemoryPart, MemoryPlace,
    MemoryPlan, memory_plan, preset, remedies, total_bytes,
};

#[test]
fn a_run_that_cannot_stream_says_so() {
    let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
    assert!(
        plan(&config, None, Vec::new())
            .to_string()
            .contains("1  of 16: training begins while others are sampled")
    );
    config.training.reward_combination = RewardCombination::Gdpo;
    let text = plan(&config, None, Vec::new()).to_string();
    assert!(
        text.contains("16  of 16: training begins when all are sampled (reward_combination = \"gdpo\")"),
        "{text}"
    );
}

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// The random model of docs/measurements.md, `layers` blocks deep: what it took is held against the plan.
fn measured_model(layers: usize, parameters: u64) -> ModelInspection {
    ModelInspection {
        folder: "measured".into(),
        class: "StableDiffusion3Pipeline".to_owned(),
        dtype: Dtype::Float32,
        components: vec![
            component("transformer", parameters, 4, 0),
            component("text_encoder", 285_440, 4, 0),
        ],
        n_blocks: layers,
        width: 768,
        decoder_width: 12,
        image: ImageInspection { height: 64, width: 64, latent_shape: vec![3, 64, 64], tokens: 256 },
        text_tokens: 9,
        embedding_widths: (128, 128),
        rows_per_evaluation: 1,
        rows_per_held_out_evaluation: 1,
        steps: Vec::new(),
        adapter: Some(AdapterInspection {
            rank: 16,
            modules: 8 * layers - 1,
            parameters: (8 * layers as u64 - 1) * 2 * 16 * 768,
            left_out: Vec::new(),
        }),
    }
}

/// Held against measurements by hand: megabytes of learner and worker.
#[test]
fn measured_runs_took_what_the_plan_says_within_15_percent() {
    let runs = [
        // blocks, parameters, rows in sampling and training, seeds, branches; learner, worker
        (4, 80_381_488, (8, 3), (4, 4), (965.0, 765.0)),
        (4, 80_381_488, (1, 1), (1, 2), (764.0, 642.0)),
        (4, 80_381_488, (6, 3), (1, 2), (906.0, 755.0)),
        (8, 165_409_328, (1, 1), (1, 2), (1535.0, 1135.0)),
    ];
    for (layers, parameters, rows, (seeds, branches), measured) in runs {
        let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
        config.sampling.steps = 4;
        (config.sampling.max_rows, config.training.max_rows) = rows;
        (config.sampling.prompts_per_iteration, config.sampling.seeds_per_prompt) = (1, seeds);
        (config.sampling.branches_per_seed, config.sampling.seeds_per_task) = (branches, 1);
        config.evaluation.prompts_per_task = 1;
        let memory = memory_plan(&config, &measured_model(layers, parameters), &[]);
        let megabytes = |parts: &[MemoryPart]| parts.iter().map(|part| part.bytes).sum::<f64>() / 1e6;
        for (planned, measured) in
            [(megabytes(&memory.learner), measured.0), (megabytes(&memory.worker), measured.1)]
        {
            let deviation = planned / measured - 1.0;
            assert!(deviation.abs() < 0.15, "{planned:.0} MB planned, {measured} MB measured");
        }
    }
}

fn tempflow() -> RunConfig {
    preset("dgx-geneval-sd3-pr").expect("a preset").config
}

fn bytes_of(parts: &[MemoryPart], name: &str) -> f64 {
    parts.iter().find(|part| part.name == name).unwrap_or_else(|| panic!("no {name} in {parts:?}")).bytes
}

#[test]
fn what_is_trained_takes_five_floats_a_parameter_on_the_learner() {
    let learner = memory_plan(&tempflow(), &sd35_medium(), &[]).learner;
    assert_eq!(bytes_of(&learner, "trained weights, float32"), 75_104_256.0);
    assert_eq!(bytes_of(&learner, "their gradient"), 75_104_256.0);
    assert_eq!(bytes_of(&learner, "moments of AdamW"), 150_208_512.0);
    assert_eq!(bytes_of(&learner, "their moving average"), 75_104_256.0);
    assert_eq!(bytes_of(&learner, "transformer"), 4_939_327_872.0);
}

#[test]
fn full_fine_tuning_holds_masters_and_a_reference() {
    let mut config = tempflow();
    config.adapter.method = AdapterMethod::Full;
    let learner = memory_plan(&config, &sd35_medium(), &[]).learner;
    assert_eq!(bytes_of(&learner, "moments of AdamW"), 8.0 * 2_469_663_936.0);
    assert_eq!(bytes_of(&learner, "transformer, as it was at first"), 4_939_327_872.0);
    assert_eq!(bytes_of(&learner, "trained weights, float32"), 4.0 * 2_469_663_936.0);
    config.training.kl_beta = 0.0;
    config.model.dtype = Dtype::Float32;
    let model = ModelInspection { dtype: Dtype::Float32, ..sd35_medium() };
    let learner = memory_plan(&config, &model, &[]).learner;
    assert!(learner.iter().all(|part| part.name != "transformer, as it was at first"));
    assert_eq!(bytes_of(&learner, "trained weights, float32"), 0.0, "the network is its own master");
}

#[test]
fn versions_that_sampled_are_kept_where_they_are_needed_again() {
    let versions = |dtype, lag, updates| {
        let mut config = tempflow();
        (config.model.dtype, config.run.lag) = (dtype, lag);
        config.training.updates_per_iteration = updates;
        let learner = memory_plan(&config, &sd35_medium(), &[]).learner;
        bytes_of(&learner, "versions that sampled") / 75_104_256.0
    };
    assert_eq!([1, 2].map(|updates| versions(Dtype::Float32, 0, updates)), [0.0, 0.0]);
    assert_eq!([1, 2].map(|updates| versions(Dtype::Bfloat16, 0, updates)), [0.0, 1.0]);
    assert_eq!([Dtype::Float32, Dtype::Bfloat16].map(|dtype| versions(dtype, 1, 1)), [2.0, 2.0]);
}

#[test]
fn activations_follow_rows_blocks_tokens_width_and_dtype() {
    let activations = |change: fn(&mut RunConfig)| {
        let mut config = tempflow();
        change(&mut config);
        bytes_of(&memory_plan(&config, &sd35_medium(), &[]).learner, "activations in training")
    };
    let plain = activations(|config| config.training.max_rows = 1);
    assert_eq!(activations(|config| config.training.max_rows = 4), 4.0 * plain);
    let checkpointed = activations(|config| {
        config.training.max_rows = 1;
        config.training.gradient_checkpointing = true;
    });
    assert!(checkpointed < plain / 10.0, "{checkpointed} of {plain}");
    let all_cells = activations(|config| config.training.max_rows = 1000);
    assert_eq!(all_cells, 9.0 * plain, "a task has one seed of nine steps");
}

#[test]
fn trajectories_are_a_state_a_mean_and_the_next_latents() {
    let learner = memory_plan(&tempflow(), &sd35_medium(), &[]).learner;
    let cells = 192.0 * 9.0;
    assert_eq!(bytes_of(&learner, "trajectories of an iteration"), cells * 8.0 * 65_536.0 * 4.0);
    let mut lagging = tempflow();
    lagging.run.lag = 1;
    let learner = memory_plan(&lagging, &sd35_medium(), &[]).learner;
    assert_eq!(bytes_of(&learner, "trajectories of an iteration"), 2.0 * cells * 8.0 * 65_536.0 * 4.0);
}

#[test]
fn guided_evaluations_of_an_unguided_run_take_their_rows() {
    let sampling = |of_training, held_out| {
        let mut config = tempflow();
        config.evaluation.prompts_per_task = 64;
        let model = ModelInspection {
            rows_per_evaluation: of_training,
            rows_per_held_out_evaluation: held_out,
            ..sd35_medium()
        };
        bytes_of(&memory_plan(&config, &model, &[]).worker, "activations in sampling")
    };
    // A training call has 54 rows at most, an evaluation's 64.
    assert_eq!(sampling(1, 2), 2.0 * sampling(1, 1));
    assert_eq!(sampling(2, 1), sampling(1, 1) * 108.0 / 64.0);
}

#[test]
fn tiles_and_half_precision_make_decoding_small() {
    let decoding = |tile, dtype| {
        let mut config = tempflow();
        (config.sampling.vae_tile, config.model.decoder_dtype) = (tile, dtype);
        bytes_of(&memory_plan(&config, &sd35_medium(), &[]).worker, "activations in decoding")
    };
    assert_eq!(decoding(256, Dtype::Float32), decoding(0, Dtype::Float32) / 4.0);
    assert_eq!(decoding(0, Dtype::Bfloat16), decoding(0, Dtype::Float32) / 2.0);
}

#[test]
fn the_wire_carries_two_tensors_a_cell() {
    let plan = plan(&tempflow(), Some(sd35_medium()), Vec::new());
    let cells = 192.0 * 9.0;
    let expected = cells * (2.0 * 65_536.0 * 4.0 + 6.0 * (4.0 * 3.0 + 8.0));
    assert_eq!(plan.trajectory_bytes(), Some(expected));
    assert_eq!(plan.weight_bytes(), Some(75_104_256.0));
    assert_eq!(plan.embedding_bytes(), Some(49.0 * 2.0 * (205.0 * 4096.0 + 2048.0)));
}

#[test]
fn the_ratio_sets_sampling_against_training() {
    // 53 568 evaluations; 1728 cells, each a forward, a backward worth two, a forward of the reference, and in the second
    // of two updates one of the version that sampled.
    assert_eq!(plan(&tempflow(), None, Vec::new()).workers_per_learner(), 53_568.0 / (1728.0 * 4.5));
}

#[test]
fn the_published_run_fits_an_80_gb_card() {
    let memory = memory_plan(&tempflow(), &sd35_medium(), &[]);
    for parts in [&memory.learner, &memory.worker] {
        assert!(total_bytes(parts, MemoryPlace::Device) < 74.0 * GIB, "{parts:?}");
    }
}

#[test]
fn everything_known_is_printed_and_only_that() {
    let text = plan(&tempflow(), Some(sd35_medium()), Vec::new()).to_string();
    for part in [
        "48 prompts × 4 seeds × 6 branches",
        "53568  279 per seed",
        "107136  2 per evaluation",
        "10368",
        "18776064  parameters",
        "weight of each trained step in the policy loss (step_weight = \"noise\")",
        "step 0                                      1.577  from noise level 1.000",
        "step 8                                      0.508  from noise level 0.278",
        "on the GPU",
        "7 workers per learner",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!plan(&tempflow(), None, Vec::new()).to_string().contains("on the wire"));
    let mut on_cpu = tempflow();
    on_cpu.resources.device = ComputeDevice::Cpu;
    assert!(plan(&on_cpu, Some(sd35_medium()), Vec::new()).to_string().contains("in all"));
}

/// A reward of a preset whose files are not here.
fn absent(name: &str) -> RewardInspection {
    let problem = Some("not in the cache".to_owned());
    RewardInspection {
        key: "rewards[0]".to_owned(),
        name: name.to_owned(),
        bytes: 0,
        problem,
        is_of_host: true,
    }
}

#[test]
fn half_precision_keeps_more_copies_than_single() {
    let activations = |model: &ModelInspection| {
        bytes_of(&memory_plan(&tempflow(), model, &[]).learner, "activations in training")
    };
    let single = ModelInspection { dtype: Dtype::Float32, ..sd35_medium() };
    // 24 blocks of 22 and 28 copies, and 28 of the base's forward pass for the KL term; half the bytes of a number.
    let expected = (24.0 * 28.0 + 28.0) / (24.0 * 22.0 + 28.0) / 2.0;
    assert!((activations(&sd35_medium()) / activations(&single) - expected).abs() < 1e-12);
}

#[test]
fn a_card_has_a_context_a_workspace_and_rewards_in_it_and_says_what_is_estimated() {
    let mut config = tempflow();
    config.rewards = vec![crate::RewardSection::new("pickscore")];
    let worker = memory_plan(&config, &sd35_medium(), &[absent("pickscore")]).worker;
    assert_eq!(bytes_of(&worker, "CUDA context and workspaces"), GIB);
    assert_eq!(bytes_of(&worker, "workspace of the decoder"), 2.0 * 512.0 * 512.0 * 256.0 * 2.0 * 4.0);
    assert_eq!(bytes_of(&worker, "reward pickscore"), 986e6 * 4.0);
    assert_eq!(bytes_of(&worker, "reward pickscore, scoring"), 16.0 * 257.0 * 1280.0 * 28.0 * 4.0);
    let counted = ["transformer", "text encoders", "image decoder", "adapter, float32"];
    let is_counted = |part: &&MemoryPart| counted.contains(&part.name.as_str());
    for part in worker.iter().filter(|part| part.place == MemoryPlace::Device && part.bytes > 0.0) {
        assert_eq!(part.is_estimate, !is_counted(&part), "{part:?}");
    }
    config.resources.device = ComputeDevice::Cpu;
    let worker = memory_plan(&config, &sd35_medium(), &[]).worker;
    assert!(worker.iter().all(|part| !part.is_estimate), "{worker:?}");
    assert_eq!(bytes_of(&worker, "CUDA context and workspaces"), 0.0);
}

#[test]
fn rewards_take_what_their_headers_and_options_say_and_servers_nothing() {
    let parts = |reward: &str, bytes| {
        let mut config = tempflow();
        config.rewards = vec![toml::from_str(reward).expect("a reward")];
        let inspected = RewardInspection { bytes, problem: None, ..absent(&config.rewards[0].name) };
        let worker = memory_plan(&config, &sd35_medium(), &[inspected]).worker;
        worker.into_iter().filter(|part| part.name.starts_with("reward")).collect::<Vec<_>>()
    };
    let halved = parts("name = \"liked\"\nscorer = \"pickscore\"\ndtype = \"bfloat16\"\nbatch_size = 8", 5);
    assert_eq!(bytes_of(&halved, "reward liked"), 5.0);
    assert_eq!(bytes_of(&halved, "reward liked, scoring"), 8.0 * 257.0 * 1280.0 * 28.0 * 2.0);
    let served = parts("name = \"geneval\"\nurl = \"http://scores:18085\"", 0);
    assert_eq!(total_bytes(&served, MemoryPlace::Device), 0.0);
}

#[test]
fn encoders_are_gone_before_the_transformer_is_there_where_embeddings_are_cached() {
    let mut config = tempflow();
    let beside = memory_plan(&config, &sd35_medium(), &[]);
    assert!(beside.embedding.is_empty());
    config.model.embedding_cache = "embeddings".into();
    let apart = memory_plan(&config, &sd35_medium(), &[]);
    let encoders = 2.0 * (123_650_304.0 + 694_659_840.0 + 4_762_310_656.0);
    assert_eq!(bytes_of(&apart.embedding, "text encoders"), encoders);
    let on_card = |memory: &MemoryPlan| memory.worker_bytes(MemoryPlace::Device);
    assert_eq!(on_card(&beside) - on_card(&apart), encoders);
    config.sampling.max_rows = 1;
    config.sampling.vae_tile = 256;
    let small = memory_plan(&config, &sd35_medium(), &[]);
    assert_eq!(on_card(&small), total_bytes(&small.embedding, MemoryPlace::Device), "encoders are the more");
}

#[test]
fn full_fine_tuning_has_its_gradient_twice_and_copies_on_the_host() {
    let mut config = tempflow();
    config.adapter.method = AdapterMethod::Full;
    config.training.max_rows = 1;
    config.training.gradient_checkpointing = true;
    let learner = memory_plan(&config, &sd35_medium(), &[]).learner;
    assert_eq!(bytes_of(&learner, "the network's own gradient"), 2.0 * 2_469_663_936.0);
    // The modulation of all blocks is one tensor of 0.77 billion numbers, of which AdamW has three at once.
    let at_work = bytes_of(&learner, "activations in training") + bytes_of(&learner, "AdamW, beyond those");
    assert!((at_work / (3.0 * 4.0 * 325.0 * 1536.0 * 1536.0) - 1.0).abs() < 1e-3, "{at_work}");
    for (name, bytes) in [("versions that sampled", 2.0), ("versions for workers", 4.0)] {
        let part = learner.iter().find(|part| part.name == name).expect("a part");
        assert_eq!((part.place, part.bytes), (MemoryPlace::Host, bytes * 2_469_663_936.0), "{name}");
    }
    let adapter = memory_plan(&tempflow(), &sd35_medium(), &[]).learner;
    assert_eq!(bytes_of(&adapter, "the network's own gradient"), 0.0);
    assert_eq!(bytes_of(&adapter, "trained weights set aside"), 75_104_256.0);
}

#[test]
fn a_float32_adapter_is_merged_on_a_card() {
    let model = ModelInspection { dtype: Dtype::Float32, ..sd35_medium() };
    let merged = |model: &ModelInspection| {
        bytes_of(&memory_plan(&tempflow(), model, &[]).worker, "adapted weights, merged")
    };
    // 191 square modules, reckoned as if they were as large as any of their sides' sum.
    let counted = 191.0 * 1536.0 * 1536.0 * 4.0;
    assert!(merged(&model) >= counted && merged(&model) < 1.7 * counted, "{}", merged(&model));
    assert_eq!(merged(&sd35_medium()), 0.0);
}

#[test]
fn a_card_is_full_before_its_last_bytes() {
    let card = CARDS[0];
    assert!(card.takes(21.6e9) && !card.takes(21.7e9), "{card}");
    assert!(CARDS.is_sorted_by_key(|card| card.gigabytes));
}

/// The row of a card: whether learner, worker and both on one fit.
fn row<'a>(text: &'a str, card: &str) -> Vec<&'a str> {
    let line = text.lines().find(|line| line.trim_start().starts_with(card)).expect("a row");
    line.split_once(')').expect("names of cards").1.split_whitespace().collect()
}

#[test]
fn the_cards_that_a_run_fits_are_said_and_what_takes_less() {
    let flux = preset("dgx-flux-pr").expect("a preset").config;
    let text = plan(&flux, Some(flux1_dev()), vec![absent("hpsv3")]).to_string();
    assert_eq!(row(&text, "24 GB"), ["no", "no", "no"], "{text}");
    assert_eq!(row(&text, "40 GB"), ["fits", "no", "no"], "{text}");
    assert_eq!(row(&text, "80 GB"), ["fits", "fits", "no"], "{text}");
    assert_eq!(row(&text, "141 GB"), ["fits", "fits", "fits"], "{text}");
    for part in [
        "has never been measured on a card",
        "model.embedding_cache = \"embeddings\"",
        "sampling.vae_tile = 512",
        "rewards moved elsewhere",
        "with all of these",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!text.contains("gradient_checkpointing = true"), "it is on already:\n{text}");
    let qwen = preset("dgx-pickscore-qwenimage-pr").expect("a preset").config;
    let text = plan(&qwen, Some(qwen_image()), vec![absent("pickscore")]).to_string();
    assert_eq!(row(&text, "80 GB"), ["fits", "no", "no"], "{text}");
}

#[test]
fn what_fits_the_smallest_card_is_told_no_remedies() {
    let config = preset("tempflow-tiny-cpu").expect("a preset").config;
    let text = plan(&config, Some(measured_model(4, 80_381_488)), Vec::new()).to_string();
    assert_eq!(row(&text, "24 GB"), ["fits", "fits", "fits"], "{text}");
    assert!(text.contains("with resources.device = \"cuda\"") && !text.contains("takes less"), "{text}");
}

#[test]
fn a_remedy_frees_what_the_plan_with_it_says() {
    let config = tempflow();
    let (remedies, with_all) = remedies(&config, &sd35_medium(), &[]);
    let bytes = |config: &RunConfig| {
        let memory = memory_plan(config, &sd35_medium(), &[]);
        [memory.learner_bytes(MemoryPlace::Device), memory.worker_bytes(MemoryPlace::Device)]
    };
    let mut all = config.clone();
    for remedy in remedies.iter().filter(|remedy| remedy.setting.contains('=')) {
        let set = |config: &RunConfig| {
            let setting = [remedy.setting.replace(" = ", "=").replace('"', "")];
            RunConfig::from_toml_with(&config.to_toml(), &setting).expect("valid")
        };
        let [learner, worker] = bytes(&set(&config));
        let before = bytes(&config);
        assert_eq!([remedy.learner, remedy.worker], [before[0] - learner, before[1] - worker], "{remedy:?}");
        all = set(&all);
    }
    let place = MemoryPlace::Device;
    assert_eq!(bytes(&all), [with_all.learner_bytes(place), with_all.worker_bytes(place)]);
    assert_eq!(remedies.len(), 6);
}
