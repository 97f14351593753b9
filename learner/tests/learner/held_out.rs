//! Validation prompts choose, test prompts report: which versions are looked at by which, and what is told of them.

use crate::lab::{Delivery, Lab, Sample, Shared};
use config::{RunConfig, TaskKind, TaskSpec};
use learner::records::evaluation::Evaluation;
use learner::records::journal::Journal;
use learner::run::TrainingEnd;
use proto::Summary;

/// The best version by validation is not the last one, and the test would have chosen another.
fn second_is_best(task: &TaskSpec, sample: &mut Sample) {
    let by_validation = [0.1, 0.3, 0.9, 0.5, 0.4];
    let by_test = [0.2, 0.3, 0.4, 0.9, 0.7];
    let rewards = match task.kind {
        TaskKind::Train => return,
        TaskKind::Evaluate => by_validation,
        TaskKind::Test => by_test,
    };
    for name in ["rewards", "reward.shapes"] {
        let _ = sample.tensor(name).fill_(rewards[task.version as usize]);
    }
}

fn lab(change: impl FnOnce(&mut RunConfig)) -> Lab {
    let mut lab = Lab::new(|config| {
        (config.run.iterations, config.evaluation.every) = (4, 1);
        config.checkpoints.keep_last = 1;
        change(config);
    });
    lab.config.data.validation = lab.config.data.test.with_file_name("validation.txt");
    std::fs::write(&lab.config.data.validation, "a green circle\ntwo stars\na cross\n").unwrap();
    lab
}

fn done(lab: &Lab) -> Summary {
    match lab.train(Delivery::InOrder, second_is_best).unwrap() {
        TrainingEnd::Done(summary) => *summary,
        TrainingEnd::Left => panic!("it was not stopped"),
    }
}

fn versions(lab: &Lab, path: &std::path::Path) -> Vec<(u32, u32)> {
    let journal = Journal::<Evaluation>::open(&lab.owned(), path, |_| true).unwrap();
    journal.rows().iter().map(|row| (row.version, row.prompts)).collect()
}

#[test]
fn the_test_sees_the_first_the_last_and_the_best_version_and_chooses_none() {
    let lab = lab(|_| {});
    let summary = done(&lab);
    let directory = lab.directory();
    assert_eq!(versions(&lab, &directory.evaluations()), [(0, 3), (1, 3), (2, 3), (3, 3), (4, 3)]);
    assert_eq!(versions(&lab, &directory.tests()), [(0, 2), (4, 2), (2, 2)]);
    assert!(summary.is_of_test_prompts);
    let reported = [summary.before, summary.after, summary.best].map(|row| row.unwrap());
    assert_eq!(reported.map(|row| row.version), [0, 4, 2]);
    for (row, reward) in reported.iter().zip([0.2, 0.7, 0.4]) {
        assert!((row.reward - reward).abs() < 1e-6, "{row:?}");
    }
    assert!((summary.gain - 0.5).abs() < 1e-6 && summary.prompts == 2);
    assert_eq!(std::fs::read_to_string(directory.checkpoints().join("best")).unwrap(), "iteration-000002\n");
}

#[test]
fn a_run_that_ended_is_not_tested_again_and_one_that_was_cut_short_is() {
    let lab = lab(|_| {});
    let summary = done(&lab);
    let again = done(&lab);
    assert_eq!(again.images, summary.images, "nothing was drawn anew");
    std::fs::remove_file(lab.directory().tests()).unwrap();
    done(&lab);
    // The first comes back from the last checkpoint, whose adapter is not the first one's.
    assert_eq!(versions(&lab, &lab.directory().tests()), [(0, 2), (4, 2), (2, 2)]);
}

#[test]
fn the_best_version_is_one_that_could_be_saved() {
    let lab = lab(|config| config.checkpoints.retry_minutes = 60.0);
    let shared = Shared::default();
    let mut run = lab.open(&shared).unwrap();
    // In the way of the checkpoint of version 2, which would be the best.
    let checkpoint = lab.directory().checkpoints().join("iteration-000002");
    std::fs::write(lab.owned().partial_name(&checkpoint), "").unwrap();
    let worker = lab.spawn_worker(&shared, Delivery::InOrder, None, second_is_best);
    let ended = run.run();
    shared.inbox.stop();
    worker.join().unwrap();
    let Ok(TrainingEnd::Done(summary)) = ended else { panic!("{ended:?}") };
    assert_eq!(summary.best.map(|row| row.version), Some(3));
    assert_eq!(summary.best_adapter, lab.directory().best_adapter().display().to_string());
    assert_eq!(versions(&lab, &lab.directory().tests()), [(0, 2), (4, 2), (3, 2)]);
}

#[test]
fn a_run_is_not_compared_with_itself_once_its_test_prompts_have_changed() {
    let lab = lab(|_| {});
    done(&lab);
    let test = lab.config.data.test.clone();
    std::fs::write(&test, std::fs::read_to_string(&test).unwrap() + "one more\n").unwrap();
    let summary = done(&lab);
    assert_eq!(summary.before, None, "the first version is not tested on these prompts");
}

#[test]
fn without_validation_prompts_the_test_prompts_are_evaluated_and_chosen_by() {
    let mut lab = lab(|_| {});
    lab.config.data.validation = std::path::PathBuf::new();
    let summary = done(&lab);
    assert!(!summary.is_of_test_prompts && !lab.directory().tests().exists());
    assert_eq!(summary.best.map(|row| row.version), Some(2));
    assert_eq!(versions(&lab, &lab.directory().evaluations())[0], (0, 2));
}
