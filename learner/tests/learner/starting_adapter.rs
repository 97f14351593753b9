//! Training that goes on from an adapter that PEFT wrote.

use crate::lab::{Delivery, Lab};
use config::RunConfig;
use learner::error::LearnerError;
use learner::training::policy::Policy;
use models::adapter_file::SavedAdapter;

/// The adapter of a recorded update, as `save_pretrained` left it: rank 4, alpha 8.
const SAVED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/sd3/cases/rl_lora_before");

fn lab(rank: i64) -> Lab {
    let saved = SavedAdapter::read(SAVED.as_ref()).unwrap();
    Lab::new(|config: &mut RunConfig| {
        config.adapter.rank = rank;
        config.adapter.alpha = saved.config.alpha;
        config.adapter.targets = saved.config.targets.names().into_iter().map(str::to_owned).collect();
        config.adapter.start_from = SAVED.into();
    })
}

fn open(lab: &Lab) -> Result<Policy, LearnerError> {
    Policy::open(&lab.config, &lab.config.model.path)
}

#[test]
fn an_adapter_made_in_python_trains_on() {
    let lab = lab(4);
    let mut saved = SavedAdapter::read(SAVED.as_ref()).unwrap().tensors;
    saved.sort_by(|a, b| a.0.cmp(&b.0));
    let policy = open(&lab).unwrap();
    let mut started: Vec<_> = policy.trained().iter().map(|(name, t)| (name.clone(), t.detach())).collect();
    started.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(started, saved);
    lab.train(Delivery::InOrder, |_, _| {}).unwrap();
}

#[test]
fn an_adapter_of_another_rank_is_refused_with_both_ranks() {
    let message = open(&lab(2)).err().expect("refused").to_string();
    assert!(
        message.contains("rank 4") && message.contains("adapter.rank") && message.contains(SAVED),
        "{message}"
    );
}
