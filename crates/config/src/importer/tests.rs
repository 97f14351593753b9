use super::*;
use crate::{
    AdapterMethod, AdvantageGroup, Algorithm, BranchSteps, Dtype, KlDenominator, RatioNormalization,
    RewardCombination, RewardSection, StepRule, StepWeight, validate,
};

const SD35: &str = include_str!("../../tests/flow-factory/sd35-lora.yaml");
const FLUX: &str = include_str!("../../tests/flow-factory/flux-full.yaml");
const QWEN: &str = include_str!("../../tests/flow-factory/qwen-guard.yaml");

fn import(yaml: &str) -> Import {
    import_flow_factory(yaml, "run.yaml").expect("importable")
}

fn problems(yaml: &str) -> String {
    let error = import_flow_factory(yaml, "run.yaml").expect_err("unsuitable");
    assert!(matches!(error, ImportError::Unsuitable { .. }), "{error}");
    error.to_string()
}

/// SD3.5 with a line put in the place of another.
fn with(old: &str, new: &str) -> String {
    assert!(SD35.contains(old), "{old}");
    SD35.replacen(old, new, 1)
}

#[test]
fn a_run_on_sd35_is_carried_over() {
    let config = import(SD35).config;
    let sampling = &config.sampling;
    assert_eq!(sampling.algorithm, Algorithm::FlowGrpo);
    assert_eq!((sampling.seeds_per_prompt, sampling.prompts_per_iteration), (24, 48));
    assert_eq!((sampling.steps, sampling.guidance_scale, sampling.noise_level), (10, 4.5, 0.8));
    assert_eq!(sampling.branch_steps, BranchSteps::RandomAmong { count: 2, among: vec![1, 2, 3, 4, 5] });
    assert_eq!((sampling.height, sampling.width), (512, 512));
    assert_eq!((config.adapter.rank, config.adapter.alpha, config.adapter.targets.len()), (32, 64.0, 8));
    let training = &config.training;
    assert_eq!((training.learning_rate, training.clip_range, training.max_rows), (3e-4, 1e-4, 8));
    assert_eq!((training.adam_beta1, training.adam_beta2), (0.9, 0.99));
    assert_eq!(training.advantage_group, AdvantageGroup::Prompt, "gdpo does not look at global_std");
    assert_eq!(training.reward_combination, RewardCombination::Gdpo);
    assert_eq!((config.ema.decay, config.ema.interval), (0.99, 8));
    assert_eq!(config.model.dtype, Dtype::Bfloat16);
    assert_eq!((config.evaluation.steps, config.evaluation.every, config.checkpoints.every), (40, 20, 20));
    assert_eq!(config.rewards[0].name, "pickscore");
    assert_eq!(
        config.rewards[0].options_as_json(),
        serde_json::json!({"batch_size": 16, "dtype": "bfloat16"})
    );
    assert!(config.evaluation_rewards.is_empty());
}

#[test]
fn nothing_but_the_missing_reward_stands_in_the_way_of_an_imported_run() {
    for yaml in [SD35, FLUX, QWEN] {
        let import = import(yaml);
        for problem in validate(&import.config) {
            assert!(problem.message.contains("is not available in this build"), "{problem:?}");
        }
    }
}

#[test]
fn the_written_file_says_what_was_imported() {
    for yaml in [SD35, FLUX, QWEN] {
        let import = import(yaml);
        let (config, problems) = crate::parse::read(&import.text, &[]);
        assert_eq!(config, Some(import.config), "{}", import.text);
        assert!(problems.is_empty(), "{problems:?}");
    }
    let text = import(SD35).text;
    assert!(text.contains("# train.group_size = 24\nseeds_per_prompt = 24\n"), "{text}");
}

#[test]
fn every_key_is_accounted_for() {
    for yaml in [SD35, FLUX, QWEN] {
        let import = import(yaml);
        let document = Document::parse(yaml, "run.yaml").expect("yaml");
        let keys: Vec<&str> = document.keys().collect();
        assert!(keys.len() > 40, "{}", keys.len());
        let report = import.report.to_string();
        for key in keys {
            assert!(import.report.fate(key).is_some(), "{key}");
            assert!(report.contains(key), "{key} is not in\n{report}");
        }
    }
}

#[test]
fn keys_that_nobody_knows_are_reported() {
    let import = import(&with("train:\n", "train:\n  warmup: 3\n"));
    assert!(matches!(import.report.fate("train.warmup"), Some(Fate::NotCarried { .. })));
    assert!(import.report.to_string().contains("train.warmup = 3: nothing here corresponds to it"));
}

#[test]
fn silent_keys_have_the_defaults_of_their_authors() {
    let yaml = "model: {model_type: flux1}\ndata: {dataset_dir: d}\ntrain: {group_size: 16}\n\
                rewards: [{name: a, reward_model: OCR}]\n";
    let import = import(yaml);
    let config = &import.config;
    assert_eq!((config.adapter.rank, config.adapter.alpha), (8, 16.0));
    assert_eq!((config.training.learning_rate, config.sampling.guidance_scale), (1e-5, 3.5));
    assert_eq!((config.ema.decay, config.ema.interval), (0.995, 20));
    assert_eq!((config.sampling.prompts_per_iteration, config.evaluation.steps), (8, 30));
    assert_eq!(config.sampling.branch_steps, BranchSteps::Random { count: 1 });
    let report = import.report.to_string();
    assert!(report.contains("adapter.rank ← model.lora_rank (their default)"), "{report}");
}

#[test]
fn full_fine_tuning_and_unequal_evaluation_are_told() {
    let import = import(FLUX);
    let report = import.report.to_string();
    assert!(report.contains("adapter.method ← model.finetune_type = full"), "{report}");
    assert_eq!(import.config.adapter.method, AdapterMethod::Full);
    assert!(import.config.training.gradient_checkpointing);
    assert!(
        report.contains(
            "eval.resolution = 1024: held-out images are as large as those of training; theirs were NOT"
        ),
        "{report}"
    );
    assert_eq!(import.config.sampling.branch_steps, BranchSteps::List(vec![1, 2, 3]));
    assert_eq!(import.config.training.advantage_group, AdvantageGroup::Prompt);
    assert_eq!(import.config.training.reward_combination, RewardCombination::Sum);
    let [held_out] = import.config.evaluation_rewards.as_slice() else { panic!("{report}") };
    assert_eq!((held_out.name.as_str(), held_out.weight), ("ocr", 2.0), "theirs weighs it otherwise");
    assert!(report.contains("evaluation_rewards ← eval_rewards = "), "{report}");
    assert_eq!((import.config.sampling.height, import.config.sampling.width), (384, 640));
    assert_eq!(import.config.training.kl_denominator, KlDenominator::Eta);
    assert_eq!(import.config.training.kl_beta, 0.01);
}

#[test]
fn guard_is_imported_with_its_ratio_and_the_weights_of_its_steps_are_told() {
    let import = import(QWEN);
    let training = &import.config.training;
    assert_eq!(training.ratio_normalization, RatioNormalization::Guard);
    assert_eq!((training.step_weight, training.clip_range), (StepWeight::None, 4e-6));
    let report = import.report.to_string();
    assert!(
        report.contains("inverse-length") && report.contains("train.trainer_type = grpo-guard"),
        "{report}"
    );
    let rewards: Vec<(&str, f64)> =
        import.config.rewards.iter().map(|reward| (reward.name.as_str(), reward.weight)).collect();
    assert_eq!(rewards, [("clipscore", 1.0), ("pickscore", 0.5)]);
    assert_eq!(import.config.sampling.step_rule, StepRule::Cps);
    assert_eq!(import.config.adapter.targets.len(), 12);
}

#[test]
fn sd3_is_told_to_have_another_schedule_here_and_others_are_not() {
    let is_told = |yaml| import(yaml).report.to_string().contains("OTHER noise levels");
    assert_eq!([SD35, FLUX, QWEN].map(is_told), [true, false, false]);
}

#[test]
fn the_guidance_of_evaluations_is_carried_over() {
    let guidance = |yaml: &str| {
        let config = import(yaml).config;
        (config.sampling.guidance_scale, config.evaluation.guidance_scale)
    };
    assert_eq!(guidance(QWEN), (4.0, 4.0));
    let unequal =
        QWEN.replace("  guidance_scale: 4.0\n  num_inference_steps: 28", "  num_inference_steps: 28");
    assert_eq!(guidance(&unequal), (4.0, 3.5), "their default, which is not that of training");
}

/// SD3.5 with other rewards.
fn with_rewards(rewards: &str) -> Import {
    let start = SD35.find("rewards:\n").expect("it has rewards");
    import(&format!("{}{rewards}", &SD35[..start]))
}

#[test]
fn without_gdpo_the_deviation_is_as_global_as_it_was() {
    for (is_global, group) in [("true", AdvantageGroup::Batch), ("false", AdvantageGroup::Prompt)] {
        let yaml = with("global_std: true", &format!("global_std: {is_global}"))
            .replace("advantage_aggregation: gdpo", "advantage_aggregation: sum");
        let training = import(&yaml).config.training;
        assert_eq!((training.advantage_group, training.reward_combination), (group, RewardCombination::Sum));
    }
}

#[test]
fn options_of_scorers_are_carried_where_there_is_a_counterpart() {
    let import = with_rewards(
        "rewards:\n  - {name: a, reward_model: flow_factory.rewards.remote.RemotePointwiseRewardModel, \
         server_url: \"http://a:8000\", timeout: 90.0, batch_size: 4, retry_attempts: 3}\n  - {name: b, reward_model: \
         vllm_evaluate, api_base_url: \"http://b/v1\", vlm_model: Qwen3-VL, timeout: 1.5, max_concurrent: 8, top_logprobs: 20}\n  - {name: c, \
         reward_model: OCR, server_url: \"http://c\", batch_size: 4}\n",
    );
    let rewards = &import.config.rewards;
    assert_eq!(
        rewards.iter().map(|reward| reward.scorer()).collect::<Vec<_>>(),
        ["flow_factory", "vlm_judge", "ocr"]
    );
    let expected = [
        serde_json::json!({"url": "http://a:8000", "timeout_seconds": 90, "batch_size": 4}),
        serde_json::json!({"url": "http://b/v1", "model": "Qwen3-VL", "timeout_seconds": 1.5, "max_concurrent": 8}),
        serde_json::json!({}),
    ];
    assert_eq!(rewards.iter().map(RewardSection::options_as_json).collect::<Vec<_>>(), expected);
    let report = import.report.to_string();
    assert!(
        report.contains("rewards ← rewards[0].server_url = http://a:8000 (option `url` of flow_factory)"),
        "{report}"
    );
    assert!(
        report.contains("rewards[2].server_url = http://c: the scorer is not reached over a network"),
        "{report}"
    );
    assert!(report.contains("rewards[1].top_logprobs = 20: nothing here corresponds to it"), "{report}");
    let (read, problems) = crate::parse::read(&import.text, &[]);
    assert_eq!((read, problems), (Some(import.config), Vec::new()), "{}", import.text);
}

#[test]
fn one_scorer_twice_is_weighed_together_or_gets_another_name() {
    let import = with_rewards(
        "rewards:\n  - {name: a, reward_model: CLIP, weight: 0.5}\n  - {name: b, reward_model: clip}\n  - {name: \"big one\", \
         reward_model: CLIP, batch_size: 64}\neval_rewards:\n  - {name: a, reward_model: CLIP, weight: 1.5}\n  - {name: c, \
         reward_model: CLIP, batch_size: 64}\n",
    );
    let named: Vec<(&str, &str, f64)> = import
        .config
        .rewards
        .iter()
        .map(|reward| (reward.name.as_str(), reward.scorer(), reward.weight))
        .collect();
    assert_eq!(named, [("clipscore", "clipscore", 1.5), ("big-one", "clipscore", 1.0)]);
    assert_eq!(import.config.evaluation_rewards.len(), 2, "the same scores under other names");
    assert!(import.config.held_out_rewards().is_empty());
}

#[test]
fn ranges_of_unequal_sides_are_carried_over_or_narrowed_and_said() {
    let import = import(
        &with("clip_range: 1e-4", "clip_range: [-1e-4, 2.0e-4]")
            .replace("adv_clip_range: 5.0", "adv_clip_range: [-4.0, 5.0]"),
    );
    let training = &import.config.training;
    assert_eq!((training.clip_range_lt, training.clip_range_gt), (1e-4, 2e-4));
    assert_eq!(training.advantage_clip, 4.0);
    let report = import.report.to_string();
    assert!(
        report.contains("training.clip_range_lt ← train.clip_range") && report.contains("NARROWER"),
        "{report}"
    );
}

#[test]
fn steps_are_drawn_as_they_were() {
    let steps = |lines: &str| {
        import(&with("  num_sde_steps: 2\n  sde_steps: [1, 2, 3, 4, 5]\n", lines))
            .config
            .sampling
            .branch_steps
    };
    assert_eq!(steps("  num_sde_steps: null\n"), BranchSteps::All);
    assert_eq!(steps("  num_sde_steps: 3\n"), BranchSteps::Random { count: 3 });
    assert_eq!(steps("  num_sde_steps: 2\n  sde_steps: [8, 9]\n"), BranchSteps::List(vec![8]));
}

#[test]
fn other_trainers_and_models_are_refused_together() {
    let yaml = with("trainer_type: grpo", "trainer_type: nft").replace("sd3-5", "wan2");
    let message = problems(&yaml);
    assert!(message.contains("`train.trainer_type` is nft"), "{message}");
    assert!(message.contains("`model.model_type` is `wan2`"), "{message}");
}

#[test]
fn values_of_the_wrong_type_are_named_together() {
    let yaml = with("group_size: 24", "group_size: many").replace("noise_level: 0.8", "noise_level: [1]");
    let message = problems(&yaml);
    assert!(message.contains("`train.group_size` is many; it must be a whole number"), "{message}");
    assert!(message.contains("`scheduler.noise_level` is [1]; it must be a number"), "{message}");
}

#[test]
fn broken_yaml_is_pointed_at() {
    for yaml in ["train:\n  a: 1\n b: [\n", "- 1\n- 2\n", "a: 1\na: 2\n"] {
        let error = import_flow_factory(yaml, "run.yaml").expect_err("malformed");
        assert!(matches!(error, ImportError::Malformed { .. }), "{error}");
    }
    let message =
        import_flow_factory("train:\n  a: 1\n b: 2\n", "run.yaml").expect_err("malformed").to_string();
    assert!(message.starts_with("run.yaml:3:"), "{message}");
}

#[test]
fn numbers_that_mean_nothing_are_refused_where_they_stand() {
    let problems = |yaml: &str| {
        let text = format!("model: {{model_type: sd3-5}}\ndata: {{dataset_dir: prompts}}\n{yaml}");
        import_flow_factory(&text, "theirs.yaml").expect_err(yaml).to_string()
    };
    for (key, value) in [
        ("resolution", "-512"),
        ("resolution", "[512, -1]"),
        ("resolution", "0"),
        ("resolution", "512.5"),
        ("resolution", "1e30"),
        ("height", "-16"),
        ("width", "0"),
        ("clip_range", "-1.0e-4"),
        ("clip_range", "[1.0e-4, 2.0e-4]"),
        ("clip_range", "[0, 1.0e-4]"),
        ("adv_clip_range", "[-5, -1]"),
        ("num_inference_steps", "1000000000000"),
        ("group_size", "-8"),
    ] {
        let group = if key == "group_size" { "" } else { "group_size: 8, " };
        let message = problems(&format!("train: {{{group}{key}: {value}}}\n"));
        assert!(message.contains(&format!("`train.{key}` is ")), "{key} = {value}: {message}");
    }
}
