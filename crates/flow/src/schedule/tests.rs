//! Schedules by numbers worked out apart from the code, and scheduler configurations that are and are not taken.

use serde_json::{Value, json};

use super::*;

fn sd3() -> SchedulerConfig {
    SchedulerConfig { shift: 3.0, ..SchedulerConfig::default() }
}

fn flux() -> SchedulerConfig {
    SchedulerConfig { shift: 3.0, use_dynamic_shifting: true, ..SchedulerConfig::default() }
}

fn qwen() -> SchedulerConfig {
    SchedulerConfig {
        use_dynamic_shifting: true,
        max_shift: 0.9,
        max_image_seq_len: 8192.0,
        shift_terminal: Some(0.02),
        ..SchedulerConfig::default()
    }
}

/// As the pipelines of published models have it: a grid of their own where the shift is dynamic.
fn published_grid(config: &SchedulerConfig) -> NoiseGrid {
    NoiseGrid::of_pipeline(config.use_dynamic_shifting)
}

fn assert_sigmas(config: &SchedulerConfig, steps: usize, length: usize, expected: &[(usize, f64)]) {
    assert_sigmas_on(published_grid(config), config, (steps, length), expected);
}

fn assert_sigmas_on(
    grid: NoiseGrid,
    config: &SchedulerConfig,
    (steps, length): (usize, usize),
    expected: &[(usize, f64)],
) {
    let schedule = Schedule::new(config, grid, steps, length).unwrap();
    assert_eq!(schedule.sigmas.len(), steps + 1);
    assert_eq!((schedule.sigmas[0], schedule.sigmas[steps]), (1.0, 0.0));
    for &(index, sigma) in expected {
        let got = f64::from(schedule.sigmas[index]);
        assert!((got - sigma).abs() < 1e-6, "sigma {index} of {steps} steps is {got}, not {sigma}");
    }
}

#[test]
fn sd3_schedule_is_shifted_twice() {
    let sigmas = [
        1.0, 0.96012931, 0.91334895, 0.85769231, 0.79036827, 0.70727848, 0.60215054, 0.46487603, 0.27804878,
        0.00892857,
    ];
    let expected: Vec<_> = sigmas.into_iter().enumerate().collect();
    assert_sigmas(&sd3(), 10, 0, &expected);
    let long = [(1, 0.99133083), (2, 0.98235575), (19, 0.76055858), (37, 0.14650873), (38, 0.08104575)];
    assert_sigmas(&sd3(), 40, 0, &long);
    assert_sigmas(&sd3(), 40, 0, &[(39, 0.00892857)]);
}

#[test]
fn flux_schedule_follows_the_number_of_tokens() {
    let sigmas = [
        1.0, 0.96601383, 0.92664734, 0.88051308, 0.82570166, 0.75951092, 0.67798672, 0.57510294, 0.44119975,
        0.25975841,
    ];
    let expected: Vec<_> = sigmas.into_iter().enumerate().collect();
    assert_sigmas(&flux(), 10, 4096, &expected);
    assert_sigmas(&flux(), 50, 4096, &[(1, 0.99357951), (49, 0.06055027)]);
    let short = [(1, 0.90373557), (2, 0.78970484), (3, 0.65248946), (4, 0.48421845), (5, 0.27300333)];
    assert_sigmas(&flux(), 6, 1024, &short);
}

#[test]
fn qwen_schedule_ends_at_its_terminal_value() {
    let sigmas = [
        1.0, 0.92896964, 0.85148479, 0.76662383, 0.67328086, 0.57011730, 0.45549726, 0.32740015, 0.18330054,
        0.02,
    ];
    let expected: Vec<_> = sigmas.into_iter().enumerate().collect();
    assert_sigmas(&qwen(), 10, 1024, &expected);
    assert_sigmas(&qwen(), 50, 1024, &[(1, 0.98806396), (48, 0.05332441), (49, 0.02)]);
    assert_sigmas(&qwen(), 10, 4096, &[(1, 0.93697842), (8, 0.20153003)]);
}

#[test]
fn mu_is_linear_in_the_number_of_tokens() {
    for (config, length, mu) in [
        (flux(), 1024, 0.63),
        (flux(), 2304, 0.8466666667),
        (flux(), 4096, 1.15),
        (qwen(), 1024, 0.5387096774),
        (qwen(), 4096, 0.6935483871),
    ] {
        assert!((config.mu(length) - mu).abs() < 1e-9, "{length} tokens");
    }
}

#[test]
fn linear_time_shift_uses_mu_itself() {
    let config = SchedulerConfig { time_shift_type: TimeShift::Linear, ..flux() };
    assert_sigmas(&config, 2, 4096, &[(1, 1.15 / 2.15)]);
}

#[test]
fn timesteps_are_sigmas_on_the_training_grid() {
    let schedule = Schedule::new(&sd3(), NoiseGrid::Scheduler, 10, 0).unwrap();
    assert_eq!(schedule.timesteps[0], 1000.0);
    assert!((schedule.timesteps[9] - 8.92857).abs() < 1e-4);
}

#[test]
fn a_grid_is_bent_as_the_scheduler_says_whosever_it_is() {
    // FLUX.1-schnell: even levels, and a shift that leaves them alone.
    let schnell = SchedulerConfig::default();
    let even = [(1, 0.75), (2, 0.5), (3, 0.25)];
    assert_sigmas_on(NoiseGrid::Pipeline, &schnell, (4, 4096), &even);
    assert_sigmas_on(NoiseGrid::Pipeline, &sd3(), (4, 4096), &[(1, 0.9), (2, 0.75), (3, 0.5)]);
    // By diffusers 0.38, with a mu of 1.15.
    let own = [(1, 0.863497436), (2, 0.612978876), (3, 0.003151392)];
    assert_sigmas_on(NoiseGrid::Scheduler, &flux(), (4, 4096), &own);
}

fn read(change: Value) -> Result<SchedulerConfig, FlowError> {
    let mut json =
        json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": true});
    json.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    SchedulerConfig::read(&json)
}

#[test]
fn settings_that_are_not_supported_are_refused_by_name_and_value() {
    for (setting, value) in [
        ("use_karras_sigmas", json!(true)),
        ("use_exponential_sigmas", json!(true)),
        ("use_beta_sigmas", json!(true)),
        ("use_beta_sigmas", Value::Null),
        ("invert_sigmas", json!(true)),
        ("stochastic_sampling", json!(true)),
        ("use_dynamic_shifting", json!("no")),
        ("num_train_timesteps", Value::Null),
        ("num_train_timesteps", json!(1000.5)),
        ("num_train_timesteps", json!(1)),
        ("shift", json!("3")),
        ("shift_terminal", json!(1.5)),
        ("shift_terminal", json!(-0.1)),
        ("base_shift", Value::Null),
        ("max_shift", Value::Null),
        ("base_image_seq_len", Value::Null),
        ("max_image_seq_len", json!([4096])),
        ("max_image_seq_len", json!(256.0)),
        ("time_shift_type", Value::Null),
        ("time_shift_type", json!("cubic")),
        ("_class_name", json!("DDIMScheduler")),
        ("_class_name", Value::Null),
    ] {
        let message = read(json!({ setting: value })).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("scheduler setting `{setting}` is {value}, which")),
            "{message}"
        );
    }
    let length = read(json!({"base_image_seq_len": 4096})).unwrap_err().to_string();
    assert!(length.contains("`max_image_seq_len` is 4096.0"), "{length}");
    for shift in [json!(0), json!(-1.5), Value::Null] {
        let message = read(json!({"use_dynamic_shifting": false, "shift": shift})).unwrap_err().to_string();
        assert!(message.contains("`shift` is"), "{message}");
    }
    assert!(SchedulerConfig::read(&json!([])).unwrap_err().to_string().contains("is []"));
}

#[test]
fn null_is_off_and_what_a_bend_does_not_look_at_may_be_null() {
    let off =
        json!({"invert_sigmas": null, "stochastic_sampling": null, "shift_terminal": null, "shift": null});
    assert_eq!(read(off), Ok(SchedulerConfig { use_dynamic_shifting: true, ..SchedulerConfig::default() }));
    let unused = json!({
        "use_dynamic_shifting": null, "base_shift": null, "max_shift": null, "base_image_seq_len": null,
        "max_image_seq_len": null, "shift_terminal": 0,
    });
    assert_eq!(read(unused), Ok(sd3()));
    assert_eq!(
        SchedulerConfig::read(&json!({"shift": 3, "beta_schedule": "linear", "_diffusers_version": "1"})),
        Ok(sd3())
    );
}

#[test]
fn one_step_is_too_few_and_a_trillion_are_too_many() {
    for steps in [0, 1, 1_000_000_000_000, usize::MAX] {
        let refused = Schedule::new(&sd3(), NoiseGrid::Scheduler, steps, 0);
        assert_eq!(refused, Err(FlowError::NumberOfSteps { steps }));
    }
}

#[test]
fn noise_levels_that_do_not_fall_are_refused() {
    let steep = SchedulerConfig { shift: 1e9, ..sd3() };
    let undefined = SchedulerConfig { shift: 0.0, ..sd3() };
    for config in [steep, undefined] {
        for grid in [NoiseGrid::Scheduler, NoiseGrid::Pipeline] {
            let refused = Schedule::new(&config, grid, 10, 0);
            assert!(matches!(refused, Err(FlowError::NotDecreasing { .. })), "{refused:?}");
        }
    }
}

#[test]
fn the_shipped_json_of_a_pipeline_is_understood() {
    let json = json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.38.0",
        "num_train_timesteps": 1000, "shift": 3.0, "shift_terminal": null, "time_shift_type": "exponential"});
    assert_eq!(SchedulerConfig::read(&json), Ok(sd3()));
}
