//! What the kernels of workers do to ratios: nothing where the policy has not moved, and in half precision nothing at all.

use crate::lab::{Delivery, Lab, Shared, metrics};
use config::{AdapterMethod, Dtype, RunConfig};
use learner::run::TrainingEnd;
use learner::training::metrics::IterationMetrics;

/// What the kernels of the worker add to every mean: enough to clip almost every transition.
const WORKER_ERROR: f64 = 5e-3;

/// A learning rate that is 0 in float32, so that it moves no bit of what is trained.
const STANDSTILL: f64 = 1e-50;

const DTYPES: [Dtype; 2] = [Dtype::Float32, Dtype::Bfloat16];

fn lab(dtype: Dtype, change: impl FnOnce(&mut RunConfig)) -> Lab {
    Lab::new(|config| {
        config.model.dtype = dtype;
        config.training.learning_rate = 1e-3;
        config.training.clip_range = 1e-4;
        change(config);
    })
}

/// The rows of a run whose worker computes otherwise than its learner, and what its user is told.
fn disturbed(mut lab: Lab) -> (Vec<IterationMetrics>, Vec<String>) {
    lab.worker_error = WORKER_ERROR;
    let shared = Shared::default();
    let mut run = lab.open(&shared).unwrap();
    let worker = lab.spawn_worker(&shared, Delivery::InOrder, None, |_, _| {});
    assert!(matches!(run.run().unwrap(), TrainingEnd::Done(_)));
    shared.inbox.stop();
    worker.join().unwrap();
    (metrics(&lab), run.trainer.progress.notices())
}

#[test]
fn the_same_rows_in_bfloat16_give_a_ratio_of_one() {
    for method in [AdapterMethod::Lora, AdapterMethod::Full] {
        let lab = lab(Dtype::Bfloat16, |config| {
            config.adapter.method = method;
            config.training.max_rows = 1;
        });
        lab.train(Delivery::InOrder, |_, _| {}).unwrap();
        for row in metrics(&lab) {
            assert_eq!(row.policy.ratio_deviation, Some(0.0), "{method:?}");
        }
    }
}

#[test]
fn a_first_update_is_on_policy_however_far_the_kernels_of_workers_are_off() {
    for dtype in DTYPES {
        let (rows, notices) = disturbed(lab(dtype, |config| config.training.updates_per_iteration = 1));
        for row in &rows {
            let policy = &row.policy;
            assert_eq!((policy.approx_kl, policy.clip_fraction), (0.0, 0.0), "{dtype:?}");
            assert!(policy.ratio_deviation > Some(1e-4), "{dtype:?}: {:?}", policy.ratio_deviation);
            assert!(policy.log_prob_deviation > Some(1e-4), "{dtype:?}: {:?}", policy.log_prob_deviation);
            assert!(row.optimizer.gradient_norm > 0.0);
        }
        let told: Vec<&String> = notices.iter().filter(|n| n.contains("compute differently")).collect();
        let [notice] = told.as_slice() else { panic!("{notices:?}") };
        assert!(notice.contains("in iteration 0") && notice.contains("1.0e-4"), "{notice}");
    }
}

#[test]
fn later_updates_and_lagging_ones_in_bfloat16_do_not_feel_the_kernels_of_workers() {
    for (lag, method, checkpointing) in [
        (0, AdapterMethod::Lora, false),
        (1, AdapterMethod::Lora, true),
        (0, AdapterMethod::Full, true),
        (1, AdapterMethod::Full, false),
    ] {
        let (rows, _) = disturbed(lab(Dtype::Bfloat16, |config| {
            config.run.lag = lag;
            config.adapter.method = method;
            config.training.gradient_checkpointing = checkpointing;
            config.training.learning_rate = STANDSTILL;
        }));
        for row in &rows {
            let policy = &row.policy;
            assert_eq!((policy.approx_kl, policy.clip_fraction), (0.0, 0.0), "lag {lag} {method:?}");
            assert!(policy.ratio_deviation > Some(1e-4), "{:?}", policy.ratio_deviation);
        }
    }
}

#[test]
fn later_updates_in_float32_are_measured_against_what_was_sent() {
    let standstill = |lag| {
        lab(Dtype::Float32, |config| {
            config.run.lag = lag;
            config.training.learning_rate = STANDSTILL;
        })
    };
    let (rows, _) = disturbed(standstill(0));
    assert!(rows.iter().all(|row| row.policy.approx_kl > 0.0 && row.policy.clip_fraction > 0.1));
    let (rows, _) = disturbed(standstill(1));
    let measured: Vec<bool> = rows.iter().map(|row| row.policy.ratio_deviation.is_some()).collect();
    assert_eq!(
        measured,
        [true, false],
        "only the first iteration is sampled with the version that it trains"
    );
}

/// A policy that moves is measured against the one that sampled, not against itself.
#[test]
fn a_policy_that_moved_has_ratios_of_other_than_one_in_bfloat16() {
    for (lag, updates) in [(0, 2), (1, 1)] {
        let lab = lab(Dtype::Bfloat16, |config| {
            (config.run.lag, config.training.updates_per_iteration) = (lag, updates);
        });
        lab.train(Delivery::InOrder, |_, _| {}).unwrap();
        let rows = metrics(&lab);
        assert!(rows[1].policy.approx_kl > 0.0, "lag {lag}, {updates} updates");
        assert_eq!(rows[0].policy.approx_kl > 0.0, updates > 1, "lag {lag}, {updates} updates");
    }
}
