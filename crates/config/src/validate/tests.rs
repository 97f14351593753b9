//! Every key out of its range, and every pair that does not go together.

use super::rewards::unavailable_reward;
use super::*;
use crate::{BranchSteps, preset};

fn keys_of(change: impl FnOnce(&mut RunConfig)) -> Vec<String> {
    let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
    change(&mut config);
    validate(&config).into_iter().map(|problem| problem.key).collect()
}

#[test]
fn the_preset_is_valid() {
    assert_eq!(keys_of(|_| {}), Vec::<String>::new());
}

#[test]
fn settings_of_an_adapter_contradict_training_all_parameters() {
    let keys = keys_of(|config| config.adapter.method = AdapterMethod::Full);
    assert_eq!(keys, ["adapter.rank", "adapter.alpha"], "the preset has its own");
    let silent = |config: &mut RunConfig| {
        config.adapter = AdapterSection { method: AdapterMethod::Full, ..default_adapter() };
    };
    assert_eq!(keys_of(silent), Vec::<String>::new());
}

#[test]
fn the_last_step_is_never_trained() {
    let last = |config: &mut RunConfig| {
        config.sampling.branch_steps = BranchSteps::List(vec![0, config.sampling.steps - 1]);
    };
    assert_eq!(keys_of(last), ["sampling.branch_steps"]);
}

#[test]
fn steps_are_drawn_from_steps_that_can_be_trained() {
    let draw = |count, among: &[usize]| {
        keys_of(|config| {
            config.sampling.branch_steps = BranchSteps::RandomAmong { count, among: among.to_vec() };
        })
    };
    assert_eq!(draw(2, &[1, 2, 4]), Vec::<String>::new());
    for faulty in [draw(4, &[1, 2, 4]), draw(0, &[1]), draw(1, &[2, 1]), draw(1, &[1, 5])] {
        assert_eq!(faulty, ["sampling.branch_steps"]);
    }
}

#[test]
fn sides_of_the_clip_range_are_distances_or_left_out() {
    let sides = |below, above| {
        keys_of(|config| {
            (config.training.clip_range_lt, config.training.clip_range_gt) = (below, above);
        })
    };
    assert_eq!(sides(0.0, 0.0), Vec::<String>::new());
    assert_eq!(sides(1e-5, 2e-4), Vec::<String>::new());
    assert_eq!(sides(-1e-5, f64::NAN), ["training.clip_range_lt", "training.clip_range_gt"]);
}

#[test]
fn guidance_of_evaluations_is_not_negative() {
    assert_eq!(keys_of(|config| config.evaluation.guidance_scale = -1.0), ["evaluation.guidance_scale"]);
}

#[test]
fn flow_grpo_with_seed_groups_is_a_contradiction() {
    let contradiction = |config: &mut RunConfig| {
        config.sampling.algorithm = Algorithm::FlowGrpo;
        config.sampling.branches_per_seed = 1;
    };
    assert_eq!(keys_of(contradiction), ["training.advantage_group"]);
}

#[test]
fn a_run_name_that_is_no_directory_is_refused() {
    for name in ["", "a/b", "..", "a b", &"a".repeat(201)] {
        assert!(
            keys_of(|config| config.run.name = name.to_owned()).contains(&"run.name".to_owned()),
            "{name}"
        );
    }
}

#[test]
fn a_variant_is_part_of_a_file_name() {
    for (variant, is_good) in [("", true), ("fp16", true), ("fp8_e4m3fn", true), ("../fp16", false)] {
        let problems = keys_of(|config| config.model.variant = variant.to_owned());
        assert_eq!(problems.is_empty(), is_good, "{variant}");
    }
}

#[test]
fn zeros_are_refused_one_by_one() {
    let zeros = |config: &mut RunConfig| {
        config.run.iterations = 0;
        config.sampling.max_rows = 0;
        config.training.learning_rate = 0.0;
        config.checkpoints.keep_last = 0;
    };
    let expected = ["run.iterations", "sampling.max_rows", "training.learning_rate", "checkpoints.keep_last"];
    assert_eq!(keys_of(zeros), expected);
}

#[test]
fn patience_with_a_full_disk_has_bounds() {
    for (minutes, is_good) in [(0.0, true), (0.5, true), (-1.0, false), (f64::NAN, false), (1e9, false)] {
        let problems = keys_of(|config| config.checkpoints.retry_minutes = minutes);
        assert_eq!(problems.is_empty(), is_good, "{minutes}");
    }
}

#[test]
fn batch_groups_need_more_than_one_reward_per_prompt() {
    let lonely = |config: &mut RunConfig| {
        config.sampling.seeds_per_prompt = 1;
        config.sampling.seeds_per_task = 1;
        config.sampling.branches_per_seed = 1;
        config.training.advantage_group = crate::AdvantageGroup::Batch;
    };
    assert_eq!(keys_of(lonely), ["training.advantage_group"]);
}

#[test]
fn absurd_counts_are_refused_without_overflow() {
    let absurd = |config: &mut RunConfig| {
        config.sampling.prompts_per_iteration = usize::MAX;
        config.sampling.branches_per_seed = usize::MAX;
        config.resources.workers = usize::MAX;
    };
    let expected = ["sampling.prompts_per_iteration", "sampling.branches_per_seed", "resources.workers"];
    assert_eq!(keys_of(absurd), expected);
}

#[test]
fn every_count_of_a_config_has_an_upper_bound() {
    let config = preset("tempflow-tiny-cpu").expect("a preset").config;
    let table: toml::Table = config.to_toml().parse().expect("TOML");
    let sections = table.iter().filter_map(|(section, keys)| Some((section, keys.as_table()?)));
    let counts = sections.flat_map(|(section, keys)| {
        let whole = keys.iter().filter(|(_, value)| value.is_integer());
        whole.map(move |(key, _)| format!("{section}.{key}"))
    });
    let absurd = |key: &str| {
        let setting = format!("{key}={}", u32::MAX);
        RunConfig::from_toml_with(&config.to_toml(), &[setting]).err().map(|problems| problems.to_string())
    };
    let unbounded: Vec<String> = counts
        .filter(|key| key != "run.seed")
        .filter(|key| !absurd(key).is_some_and(|told| told.contains(&u32::MAX.to_string())))
        .collect();
    assert_eq!(unbounded, Vec::<String>::new());
}

#[test]
fn threads_and_images_that_no_machine_has_are_refused_with_the_reason() {
    let told = |change: fn(&mut RunConfig)| {
        let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
        change(&mut config);
        validate(&config).into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("\n")
    };
    let threads = told(|config| config.resources.worker_threads = 1_000_000);
    assert_eq!(
        threads,
        "is 1000000; it must be 1 to 1024, since each is a thread of the system, and no machine has more cores"
    );
    let images = told(|config| {
        (config.sampling.prompts_per_iteration, config.sampling.seeds_per_prompt) = (10_000, 10_000);
    });
    assert!(images.contains("images of a step in one iteration; at most 1000000"), "{images}");
}

#[test]
fn a_misspelt_reward_is_named_with_the_nearest_one() {
    let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
    config.rewards[0].name = "shapse".to_owned();
    let problems = validate(&config);
    assert_eq!(problems[0].key, "rewards[0].name");
    assert!(problems[0].message.contains("did you mean `shapes`"), "{problems:?}");
}

#[test]
fn a_reward_that_this_build_lacks_is_told_from_a_misspelt_one() {
    let message = unavailable_reward("unheard-of");
    assert!(message.starts_with("reward `unheard-of` is not available in this build; available: shapes"));
    assert!(unavailable_reward("jpeg_compresibility").contains("did you mean `jpeg_compressibility`?"));
}

#[test]
fn names_of_rewards_are_plain() {
    for (name, is_good) in [("hpsv2.1", true), ("a/b", false), ("a b", false), ("é", false)] {
        let named = |config: &mut RunConfig| {
            config.rewards[0].scorer = Some("shapes".to_owned());
            config.rewards[0].name = name.to_owned();
        };
        assert_eq!(keys_of(named).is_empty(), is_good, "{name}");
    }
    let long = |config: &mut RunConfig| {
        config.rewards[0] =
            RewardSection { scorer: Some("shapes".to_owned()), ..RewardSection::new("a".repeat(65)) };
    };
    assert_eq!(keys_of(long), ["rewards[0].name"]);
}

#[test]
fn a_run_that_stops_at_reward_hacking_needs_a_reward_that_is_not_trained() {
    let stop = |rewards: &[&str], patience| {
        keys_of(|config| {
            config.evaluation.on_reward_hacking = OnRewardHacking::Stop;
            config.evaluation.hacking_patience = patience;
            config.evaluation_rewards = rewards.iter().map(|name| RewardSection::new(*name)).collect();
        })
    };
    assert_eq!(stop(&["shapes", "jpeg_compressibility"], 1), Vec::<String>::new());
    for rewards in [&[][..], &["shapes"]] {
        assert_eq!(stop(rewards, 1), ["evaluation.on_reward_hacking"]);
    }
    assert_eq!(stop(&["jpeg_compressibility"], 0), ["evaluation.hacking_patience"]);
}

#[test]
fn the_same_scorer_with_other_options_is_held_out() {
    let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
    let mut renamed = RewardSection { scorer: Some("shapes".to_owned()), ..RewardSection::new("again") };
    config.evaluation_rewards = vec![renamed.clone()];
    assert!(config.held_out_rewards().is_empty(), "another name is no other scorer");
    renamed.options.insert("threshold".to_owned(), toml::Value::Float(0.5));
    config.evaluation_rewards.push(renamed);
    assert_eq!(config.held_out_rewards(), [&config.evaluation_rewards[1]]);
}

#[test]
fn another_address_is_another_scorer_only_where_the_server_says_what_it_is() {
    let served = |scorer: &str, url: &str| {
        let mut section = RewardSection::new(scorer);
        section.options.insert("url".to_owned(), toml::Value::String(url.to_owned()));
        section
    };
    let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
    for (scorer, n_held_out) in [("deqa", 0), ("vlm_judge", 0), ("grpc", 1), ("flow_factory", 1)] {
        config.rewards = vec![served(scorer, "http://a:1")];
        config.evaluation_rewards = vec![served(scorer, "http://a:1"), served(scorer, "http://b:1")];
        config.evaluation_rewards[0].options.insert("timeout_seconds".to_owned(), toml::Value::Integer(1));
        assert_eq!(config.held_out_rewards().len(), n_held_out, "{scorer}");
    }
}

#[test]
fn workers_and_hours_have_bounds() {
    let crowd = |config: &mut RunConfig| (config.resources.workers, config.resources.max_workers) = (9, 8);
    assert_eq!(keys_of(crowd), ["resources.workers"]);
    assert_eq!(keys_of(|config| config.resources.workers = 65), ["resources.workers"]);
    assert_eq!(keys_of(|config| config.resources.max_workers = 0)[0], "resources.max_workers");
    for (hours, is_good) in [(0.0, true), (0.5, true), (-1.0, false), (f64::INFINITY, false)] {
        assert_eq!(keys_of(|config| config.run.max_hours = hours).is_empty(), is_good, "{hours}");
    }
}

#[test]
fn learners_share_the_shards_of_a_gradient() {
    let with = |shards, learners| {
        keys_of(|config| {
            (config.training.gradient_shards, config.resources.learners) = (shards, learners);
        })
    };
    assert!(with(1, 1).is_empty() && with(8, 8).is_empty() && with(1024, 3).is_empty());
    assert_eq!(with(8, 9), ["resources.learners"]);
    assert_eq!(with(8, 0), ["resources.learners"]);
    for shards in [0, 6, 2048] {
        assert_eq!(with(shards, 1), ["training.gradient_shards"], "{shards}");
    }
}

#[test]
fn numbers_that_tensors_cannot_hold_are_refused_as_such() {
    let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
    (config.sampling.guidance_scale, config.adapter.alpha) = (1e39, 1e300);
    let problems = validate(&config);
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["sampling.guidance_scale", "adapter.alpha"]);
    assert!(problems[0].message.starts_with("is 1e39; it must be at most 3.4e38"), "{problems:?}");
}

#[test]
fn nan_is_out_of_every_range() {
    assert_eq!(keys_of(|config| config.training.clip_range = f64::NAN), ["training.clip_range"]);
    assert_eq!(keys_of(|config| config.ema.decay = f64::NAN), ["ema.decay"]);
}

#[test]
fn a_scorer_that_takes_no_images_of_that_size_is_named_with_what_it_takes() {
    let problems = |scorer: &str, width: i64, height: i64| {
        let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
        config.rewards = vec![RewardSection::new(scorer)];
        (config.sampling.width, config.sampling.height) = (width, height);
        let problems = validate(&config).into_iter();
        problems.map(|problem| format!("{}: {}", problem.key, problem.message)).collect::<Vec<_>>()
    };
    for (scorer, width, height) in [("shapes", 32, 32), ("hpsv3", 1600, 8), ("jpeg_compressibility", 1, 4096)]
    {
        assert_eq!(problems(scorer, width, height), Vec::<String>::new(), "{scorer}");
    }
    for (scorer, width, height, words) in [
        ("shapes", 512, 512, "`shapes` takes squares with a side of 16 to 64 pixels"),
        (
            "hpsv3",
            1608,
            8,
            "at most 200 times the shorter, and `sampling.width` and `sampling.height` are 1608 and 8",
        ),
        ("ocr", 4, 64, "at least 8 pixels"),
    ] {
        let told = problems(scorer, width, height);
        assert!(
            matches!(&told[..], [one] if one.starts_with("rewards[0].name: ") && one.contains(words)),
            "{told:?}"
        );
    }
}

#[test]
fn options_that_memory_is_taken_by_have_bounds() {
    let keys = |option: &str, value: i64| {
        keys_of(|config| {
            config.rewards[0].options.insert(option.to_owned(), toml::Value::Integer(value));
        })
    };
    for (option, most) in [("batch_size", 1_000_000), ("max_reply_bytes", 1 << 32)] {
        assert_eq!(keys(option, most), Vec::<String>::new());
        for absurd in [most + 1, i64::MAX] {
            assert_eq!(keys(option, absurd), [format!("rewards[0].{option}")]);
        }
    }
}
