//! What a half-precision network does to the ratio of a first update, which is 1 where worker and learner compute alike.

use crate::lab::{Delivery, Lab, metrics};
use config::{AdapterMethod, Dtype, RunConfig};

/// Largest `|ratio − 1|` of any first update of a run in bfloat16.
fn ratio_deviation(method: AdapterMethod, max_rows: usize) -> f64 {
    let lab = Lab::new(|config: &mut RunConfig| {
        config.model.dtype = Dtype::Bfloat16;
        config.adapter.method = method;
        config.training.max_rows = max_rows;
        config.training.learning_rate = 1e-3;
    });
    lab.train(Delivery::InOrder, |_, _| {}).unwrap();
    metrics(&lab).iter().map(|row| row.policy.ratio_deviation).fold(0.0, f64::max)
}

#[test]
fn the_same_rows_in_bfloat16_give_a_ratio_of_one() {
    for method in [AdapterMethod::Lora, AdapterMethod::Full] {
        let deviation = ratio_deviation(method, 1);
        assert!(deviation == 0.0, "{method:?}: {deviation:e}");
    }
}

#[test]
fn rows_in_other_batches_keep_the_ratio_within_the_bound_that_the_learner_warns_at() {
    let deviation = ratio_deviation(AdapterMethod::Lora, 2);
    assert!(deviation < 1e-5, "{deviation:e}");
}
