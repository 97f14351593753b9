use super::*;
use crate::{
    AdapterInspection, AdapterMethod, ComponentInspection, ComputeDevice, Dtype, ImageInspection,
    StepInspection, preset,
};

#[test]
fn a_run_that_cannot_stream_says_so() {
    let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
    assert!(plan(&config, None).to_string().contains("1  of 16: training begins while others are sampled"));
    config.training.reward_combination = RewardCombination::Gdpo;
    let text = plan(&config, None).to_string();
    assert!(
        text.contains("16  of 16: training begins when all are sampled (reward_combination = \"gdpo\")"),
        "{text}"
    );
}

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

fn component(name: &str, parameters: u64, bytes_each: u64) -> ComponentInspection {
    let bytes = parameters * bytes_each;
    ComponentInspection { name: name.to_owned(), parameters, bytes, largest_tensor_bytes: bytes }
}

/// Stable Diffusion 3.5 medium at 512 pixels with the published adapter.
fn sd35_medium() -> ModelInspection {
    ModelInspection {
        folder: "sd35".into(),
        class: "StableDiffusion3Pipeline".to_owned(),
        dtype: Dtype::Bfloat16,
        components: vec![
            component("transformer", 2_469_663_936, 2),
            component("text_encoder", 123_650_304, 2),
            component("vae", 49_545_475, 4),
        ],
        n_blocks: 24,
        width: 1536,
        decoder_width: 256,
        image: ImageInspection { height: 512, width: 512, latent_shape: vec![16, 64, 64], tokens: 1024 },
        text_tokens: 205,
        embedding_widths: (4096, 2048),
        rows_per_evaluation: 2,
        rows_per_held_out_evaluation: 2,
        adapter: Some(AdapterInspection {
            rank: 32,
            modules: 191,
            parameters: 18_776_064,
            left_out: Vec::new(),
        }),
        steps: vec![
            StepInspection { step: 0, sigma: 1.0, weight: 1.576_56 },
            StepInspection { step: 8, sigma: 0.278_049, weight: 0.507_563 },
        ],
    }
}

/// The random model of docs/measurements.md, `layers` blocks deep: what it took is held against the plan.
fn measured_model(layers: usize, parameters: u64) -> ModelInspection {
    ModelInspection {
        folder: "measured".into(),
        class: "StableDiffusion3Pipeline".to_owned(),
        dtype: Dtype::Float32,
        components: vec![component("transformer", parameters, 4), component("text_encoder", 285_440, 4)],
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
        let memory = memory_plan(&config, &measured_model(layers, parameters));
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
    let learner = memory_plan(&tempflow(), &sd35_medium()).learner;
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
    let learner = memory_plan(&config, &sd35_medium()).learner;
    assert_eq!(bytes_of(&learner, "moments of AdamW"), 8.0 * 2_469_663_936.0);
    assert_eq!(bytes_of(&learner, "transformer, as it was at first"), 4_939_327_872.0);
    assert_eq!(bytes_of(&learner, "trained weights, float32"), 4.0 * 2_469_663_936.0);
    config.training.kl_beta = 0.0;
    config.model.dtype = Dtype::Float32;
    let model = ModelInspection { dtype: Dtype::Float32, ..sd35_medium() };
    let learner = memory_plan(&config, &model).learner;
    assert!(learner.iter().all(|part| part.name != "transformer, as it was at first"));
    assert_eq!(bytes_of(&learner, "trained weights, float32"), 0.0, "the network is its own master");
}

#[test]
fn versions_that_sampled_are_kept_where_they_are_needed_again() {
    let versions = |dtype, lag, updates| {
        let mut config = tempflow();
        (config.model.dtype, config.run.lag) = (dtype, lag);
        config.training.updates_per_iteration = updates;
        let learner = memory_plan(&config, &sd35_medium()).learner;
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
        bytes_of(&memory_plan(&config, &sd35_medium()).learner, "activations in training")
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
    let learner = memory_plan(&tempflow(), &sd35_medium()).learner;
    let cells = 192.0 * 9.0;
    assert_eq!(bytes_of(&learner, "trajectories of an iteration"), cells * 8.0 * 65_536.0 * 4.0);
    let mut lagging = tempflow();
    lagging.run.lag = 1;
    let learner = memory_plan(&lagging, &sd35_medium()).learner;
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
        bytes_of(&memory_plan(&config, &model).worker, "activations in sampling")
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
        bytes_of(&memory_plan(&config, &sd35_medium()).worker, "activations in decoding")
    };
    assert_eq!(decoding(256, Dtype::Float32), decoding(0, Dtype::Float32) / 4.0);
    assert_eq!(decoding(0, Dtype::Bfloat16), decoding(0, Dtype::Float32) / 2.0);
}

#[test]
fn the_wire_carries_two_tensors_a_cell() {
    let plan = plan(&tempflow(), Some(sd35_medium()));
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
    assert_eq!(plan(&tempflow(), None).workers_per_learner(), 53_568.0 / (1728.0 * 4.5));
}

#[test]
fn the_published_run_fits_an_80_gb_card() {
    let memory = memory_plan(&tempflow(), &sd35_medium());
    for parts in [&memory.learner, &memory.worker] {
        assert!(total_bytes(parts, MemoryPlace::Device) < 74.0 * GIB, "{parts:?}");
    }
}

#[test]
fn everything_known_is_printed_and_only_that() {
    let text = plan(&tempflow(), Some(sd35_medium())).to_string();
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
    assert!(!plan(&tempflow(), None).to_string().contains("on the wire"));
    let mut on_cpu = tempflow();
    on_cpu.resources.device = ComputeDevice::Cpu;
    assert!(plan(&on_cpu, Some(sd35_medium())).to_string().contains("in all"));
}
