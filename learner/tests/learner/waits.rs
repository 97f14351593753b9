//! How often training makes the host wait for the card, which then has nothing to do.

use config::{ComputeDevice, RunConfig};
use learner::training::gradient::{MeansBefore, TrainingTask};
use learner::training::trainer::Trainer;
use protocol::WeightsName;
use run_setup::TrainedSteps;

use crate::lab::{Lab, Shared, Worker, trajectories};

/// Tells the test started again on the card what to train: whose means, and how often.
const TRAINS: &str = "TRAINING_ON_STAND_IN_CARD";

/// The batches of a task: one for each of its trained steps.
const BATCHES: u64 = 3;

fn config(config: &mut RunConfig) {
    config.training.kl_beta = 0.5;
    config.training.max_rows = 1;
    config.resources.device = ComputeDevice::Cuda;
}

/// Differentiates a task several times.
fn train(means: &str, times: usize) {
    let (lab, shared) = (Lab::new(config), Shared::default());
    let Trainer { policy, objective, schedule, .. } = lab.trainer(&shared);
    assert!(policy.device().is_cuda());
    shared.publications.publish(WeightsName::policy(0), &policy.for_workers(policy.trained())).unwrap();
    let steps = TrainedSteps::new(&lab.config, &schedule, 0).unwrap();
    assert_eq!(steps.steps().len() as u64, BATCHES);
    let task = &lab.config.train_tasks(3, 0)[0];
    let mut worker = Worker::new(&lab.config);
    let (header, bytes) = worker.sample(task, &shared.publications).unwrap().push(task);
    let outcome = worker.receiver.outcome(&header, &bytes, task, &shared.embeddings).unwrap();
    let trajectories = &trajectories(outcome);
    let advantages = &[[1.0, -1.0, 0.5].repeat(BATCHES as usize)];
    let embedding = |digest: &[u8; 32]| policy.on_device(&shared.embeddings.get(digest).unwrap());
    let positive = embedding(&trajectories.conditioning);
    let negative = trajectories.negative_conditioning.as_ref().map(embedding);
    let training = TrainingTask { task, trajectories, advantages, positive, negative };
    for _ in 0..times {
        let before = match means {
            "own" => MeansBefore::Own,
            "computed" => MeansBefore::Computed(objective.means(&policy, &training, &steps)),
            _ => MeansBefore::Sent,
        };
        objective.accumulate(&policy, &training, &steps, (&before, 0.1)).unwrap();
    }
}

#[test]
fn a_batch_of_training_waits_for_the_card_once() {
    if let Ok(told) = std::env::var(TRAINS) {
        let (means, times) = told.split_once(' ').unwrap();
        return train(means, times.parse().unwrap());
    }
    for means in ["own", "computed", "sent"] {
        let waits = |times: u64| {
            let test = "waits::a_batch_of_training_waits_for_the_card_once";
            tests::traffic_on_stand_in_card(test, TRAINS, &format!("{means} {times}")).waits
        };
        assert_eq!(waits(3) - waits(1), 2 * BATCHES, "{means}");
    }
}
