//! Runs with several rewards: how training combines them, what evaluations tell of each, and reward hacking.

use crate::lab::{Delivery, Lab, Sample, Shared, metrics};
use config::{
    AdvantageGroup, OnRewardHacking, RewardCombination, RewardSection, RunConfig, TaskKind, TaskSpec,
};
use learner::error::LearnerError;
use learner::records::evaluation::Evaluation;
use learner::records::journal::Journal;
use learner::run::TrainingEnd;
use tch::Tensor;

fn reward(name: &str, weight: f64) -> RewardSection {
    RewardSection { weight, ..RewardSection::new(name) }
}

/// Training by two rewards, of which the second varies a thousand times as much in the raw sum.
fn two_rewards(config: &mut RunConfig) {
    config.rewards = vec![reward("shapes", 1.0), reward("jpeg_compressibility", 1.0)];
}

/// A run of five iterations that evaluates every version, by a reward that is trained and two that are not.
fn held_out(config: &mut RunConfig) {
    config.run.iterations = 5;
    config.evaluation.every = 1;
    config.evaluation.hacking_patience = 2;
    config.evaluation_rewards = vec![
        reward("shapes", 1.0),
        reward("jpeg_compressibility", 0.5),
        reward("jpeg_incompressibility", -1.0),
    ];
}

/// A training reward that rises from iteration to iteration, without any effect on advantages.
fn rising(task: &TaskSpec, sample: &mut Sample) {
    if task.kind == TaskKind::Train {
        let _ = sample.tensor("rewards").g_add_scalar_(f64::from(task.iteration));
    }
}

fn evaluations(lab: &Lab) -> Vec<Evaluation> {
    Journal::open(&lab.owned(), &lab.directory().evaluations(), |_| true).unwrap().rows().to_vec()
}

#[test]
fn gdpo_trains_on_both_rewards_and_changes_no_bit_with_the_order_of_arrival() {
    let trained = |delivery, combination, weight: f64| {
        let lab = Lab::new(|config| {
            two_rewards(config);
            config.rewards[1].weight = weight;
            config.training.reward_combination = combination;
            config.training.advantage_group = AdvantageGroup::Seed;
        });
        assert!(matches!(lab.train(delivery, |_, _| {}).unwrap(), TrainingEnd::Done(_)));
        lab
    };
    let adapter = |lab: &Lab| lab.checkpoint_file(2, "adapter.safetensors");
    let gdpo = trained(Delivery::InOrder, RewardCombination::Gdpo, 1.0);
    assert!(adapter(&gdpo) == adapter(&trained(Delivery::Reversed, RewardCombination::Gdpo, 1.0)));
    assert!(adapter(&gdpo) != adapter(&trained(Delivery::InOrder, RewardCombination::Sum, 1.0)));
    assert!(adapter(&gdpo) != adapter(&trained(Delivery::InOrder, RewardCombination::Gdpo, -1.0)));
    for row in metrics(&gdpo) {
        assert!(row.policy.ratio_deviation.unwrap() < 1e-6 && row.advantage.max_abs > 1.0);
        let idle = row.advantage.zero_std_ratio;
        assert!(idle > 0.0 && idle < 0.5, "cells in which no reward differs stay idle: {idle}");
        assert_eq!(row.reward.scores.len(), 2);
    }
}

#[test]
fn evaluations_are_scored_by_their_own_rewards_and_tell_each_by_name() {
    let lab = Lab::new(|config| {
        two_rewards(config);
        config.evaluation_rewards = vec![reward("shapes", 1.0), reward("jpeg_incompressibility", 0.25)];
    });
    let with_extras = |task: &TaskSpec, sample: &mut Sample| {
        if task.kind == TaskKind::Evaluate {
            let value = if task.index == 0 { f32::NAN } else { 0.75 };
            sample.tensors.push(("extra.shapes/strict/color".to_owned(), Tensor::from_slice(&[value])));
        }
    };
    let TrainingEnd::Done(summary) = lab.train(Delivery::InOrder, with_extras).unwrap() else {
        panic!("not stopped")
    };

    let rows = evaluations(&lab);
    let last = &rows[1];
    // Prompts score 0 and 0.25 at version 0; at version 2 the one is 0.25 better and the other 0.125 worse.
    let (shapes, other) = (last.scores["shapes"], last.scores["jpeg_incompressibility"]);
    assert!((shapes.mean - 0.375).abs() < 1e-6 && (other.mean - 0.0).abs() < 1e-6, "{last:?}");
    assert!((shapes.standard_error - 0.125).abs() < 1e-6);
    assert!(
        (last.reward - 0.375).abs() < 1e-6 && (last.gain - (0.25 - 0.25 * 0.125)).abs() < 1e-6,
        "{last:?}"
    );
    assert_eq!(last.extras["shapes/strict/color"], 0.75, "where it applies");
    assert_eq!(last.rewards, lab.config.evaluation_rewards);
    let training = metrics(&lab).iter().map(|row| row.reward.mean).sum::<f64>() / 2.0;
    assert_eq!((rows[0].training_reward, last.training_reward), (None, Some(training)));

    let told: Vec<(&str, f64, f64)> =
        summary.scores.iter().map(|score| (score.name.as_str(), score.before, score.after)).collect();
    assert_eq!(told, [("shapes", 0.125, 0.375), ("jpeg_incompressibility", 0.125, 0.0)]);
    let scores = metrics(&lab)[0].reward.scores.keys().cloned().collect::<Vec<_>>();
    assert_eq!(scores, ["jpeg_compressibility", "shapes"], "training has its own");
}

#[test]
fn reward_hacking_is_told_and_marked_and_the_run_goes_on() {
    let lab = Lab::new(held_out);
    let shared = Shared::default();
    let mut run = lab.open(&shared).unwrap();
    let worker = lab.spawn_worker(&shared, Delivery::InOrder, None, rising);
    let TrainingEnd::Done(summary) = run.run().unwrap() else { panic!("nobody stopped it") };
    shared.inbox.stop();
    worker.join().unwrap();

    let flags: Vec<Vec<String>> = evaluations(&lab).into_iter().map(|row| row.reward_hacking).collect();
    let hacked = ["jpeg_compressibility".to_owned()];
    assert_eq!(
        flags,
        [&[][..], &[], &[], &hacked, &hacked, &hacked],
        "the third rise is the second in a row"
    );
    let counts: Vec<u32> = metrics(&lab).iter().map(|row| row.reward_hacking).collect();
    assert_eq!(counts, [0, 0, 0, 1, 1], "a penalty that falls is no loss");
    assert_eq!(summary.reward_hacking, hacked);
    let notices = run.trainer.progress.notices();
    assert_eq!(notices.len(), 3, "{notices:?}");
    assert!(notices[0].contains("`jpeg_compressibility`") && notices[0].contains("(1, 2, 3)"), "{notices:?}");
}

#[test]
fn a_run_that_is_told_to_stops_at_reward_hacking_with_everything_saved() {
    let stopping = |config: &mut RunConfig| {
        held_out(config);
        config.evaluation.on_reward_hacking = OnRewardHacking::Stop;
    };
    let mut lab = Lab::new(stopping);
    let stopped = |lab: &Lab| match lab.train(Delivery::InOrder, rising) {
        Err(error @ LearnerError::RewardHacking { .. }) => error,
        other => panic!("{other:?}"),
    };
    let error = stopped(&lab);
    let text = error.to_string();
    for part in ["`jpeg_compressibility`", "on_reward_hacking=warn", "coordinator resume", "adapter/best"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!error.is_bad_input());
    let summary = error.summary().expect("it ended in good order");
    assert_eq!(summary.after.unwrap().version, 3);
    // The iteration that was sampled beside the evaluation of version 3 is finished.
    assert!(lab.directory().checkpoints().join("iteration-000004").is_dir());
    assert!(!lab.directory().checkpoints().join("iteration-000005").exists());
    assert!(lab.directory().adapter().join("peft/adapter_config.json").is_file());

    let again = stopped(&lab);
    assert_eq!(again.to_string(), text, "a resumed run decides the same");
    lab.config.evaluation.on_reward_hacking = OnRewardHacking::Warn;
    assert!(matches!(lab.train(Delivery::InOrder, rising).unwrap(), TrainingEnd::Done(_)));
    let straight = Lab::new(held_out);
    straight.train(Delivery::InOrder, rising).unwrap();
    let adapter = |lab: &Lab| lab.checkpoint_file(5, "adapter.safetensors");
    assert!(adapter(&lab) == adapter(&straight), "the stop changed no bit");
}

#[test]
fn a_run_interrupted_between_the_evaluation_and_the_end_of_its_iteration_stops_where_others_do() {
    let stopping = |config: &mut RunConfig| {
        held_out(config);
        config.evaluation.on_reward_hacking = OnRewardHacking::Stop;
    };
    let interrupted = Lab::new(stopping);
    assert!(matches!(interrupted.train(Delivery::InOrder, rising), Err(LearnerError::RewardHacking { .. })));
    // As after a crash before the checkpoint of version 4: the evaluation of version 3 is there.
    std::fs::remove_dir_all(interrupted.directory().checkpoints().join("iteration-000004")).unwrap();
    let error = interrupted.train(Delivery::InOrder, rising);
    assert!(matches!(error, Err(LearnerError::RewardHacking { .. })), "{error:?}");
    assert!(interrupted.directory().checkpoints().join("iteration-000004").is_dir());
    assert_eq!(evaluations(&interrupted).len(), 4, "it was not evaluated twice");
    assert_eq!(metrics(&interrupted).last().map(|row| (row.iteration, row.reward_hacking)), Some((3, 1)));
}

#[test]
fn evaluation_rewards_may_change_and_what_is_compared_starts_anew() {
    let mut lab = Lab::new(|config| config.run.iterations = 2);
    lab.train(Delivery::InOrder, |_, _| {}).unwrap();
    lab.config.run.iterations = 4;
    lab.config.evaluation_rewards = vec![reward("jpeg_incompressibility", 2.0)];
    let TrainingEnd::Done(summary) = lab.train(Delivery::InOrder, |_, _| {}).unwrap() else {
        panic!("not stopped")
    };
    let rows = evaluations(&lab);
    assert_eq!(rows.iter().map(|row| row.version).collect::<Vec<_>>(), [0, 2, 4]);
    assert_eq!((rows[1].gain, rows[2].gain), (0.25, 0.0), "the first by other rewards");
    assert_eq!(summary.before, None, "nothing before was scored by these rewards");
    assert_eq!([summary.after, summary.best].map(|row| row.map(|row| row.version)), [Some(4); 2]);
    lab.config.rewards[0].weight = 2.0;
    assert!(matches!(lab.open(&Shared::default()), Err(LearnerError::OtherConfig { .. })));
}
