//! Training on a tiny real model: the same update whoever delivers what when, through stops, damage and bad numbers.

use crate::lab::{Delivery, Lab, Shared, Worker, metrics, trajectories};
use config::{
    AdvantageGroup, Dtype, KlDenominator, OldMeans, RatioNormalization, RunConfig, StepRule, StepWeight,
    TaskKind,
};
use flow::{TransitionRows, kl_divergence, log_probability, repeat_for_branches, transition_mean};
use learner::error::LearnerError;
use learner::exchange::outcome::Trajectories;
use learner::records::evaluation::Evaluation;
use learner::records::journal::Journal;
use learner::run::TrainingEnd;
use learner::training::gradient::{MeansBefore, TrainingTask};
use learner::training::trainer::Trainer;
use models::{AdapterMode, Conditioning, Guidance};
use protocol::WeightsName;
use run_setup::TrainedSteps;
use tch::{Device, Kind, Tensor};

const TRAINED_FILES: [&str; 3] = ["adapter.safetensors", "optimizer.safetensors", "ema.safetensors"];

fn assert_same_checkpoint(one: &Lab, other: &Lab, version: u32) {
    for file in TRAINED_FILES {
        assert!(one.checkpoint_file(version, file) == other.checkpoint_file(version, file), "{file} differs");
    }
}

#[test]
fn the_order_of_arrival_changes_no_bit() {
    for group in [AdvantageGroup::Seed, AdvantageGroup::Prompt, AdvantageGroup::Batch] {
        let labs = [Delivery::InOrder, Delivery::Reversed].map(|delivery| {
            let lab = Lab::new(|config| config.training.advantage_group = group);
            assert!(matches!(lab.train(delivery, |_, _| {}).unwrap(), TrainingEnd::Done(_)));
            lab
        });
        assert_same_checkpoint(&labs[0], &labs[1], 2);
        assert!(labs[0].checkpoint_file(0, TRAINED_FILES[0]) != labs[0].checkpoint_file(2, TRAINED_FILES[0]));
    }
}

#[test]
fn the_first_update_is_on_policy_and_the_records_are_complete() {
    let lab = Lab::new(|_| {});
    let TrainingEnd::Done(summary) = lab.train(Delivery::InOrder, |_, _| {}).unwrap() else {
        panic!("it was not stopped")
    };
    let rows = metrics(&lab);
    assert_eq!(rows.iter().map(|row| row.iteration).collect::<Vec<_>>(), [0, 1]);
    for row in &rows {
        assert!(row.policy.ratio_deviation.unwrap() < 1e-6, "{:?}", row.policy.ratio_deviation);
        assert!(row.policy.log_prob_deviation.unwrap() < 1e-5, "{:?}", row.policy.log_prob_deviation);
        assert!(row.policy.trained_cells < 1.0 && row.policy.trained_cells > 0.5, "idle cells are skipped");
        assert!(row.optimizer.gradient_norm > 0.0 && row.reward.std > 0.0);
    }
    assert_eq!((rows[1].optimizer.updates, rows[1].cost.images), (4, 36));

    let path = lab.directory().evaluations();
    let evaluations = Journal::<Evaluation>::open(&lab.owned(), &path, |_| true).unwrap();
    assert_eq!(evaluations.rows().iter().map(|row| row.version).collect::<Vec<_>>(), [0, 2]);
    assert!((summary.gain - 0.25).abs() < 1e-6 && summary.gain_standard_error < 1e-6);
    assert_eq!((summary.prompts, summary.images), (2, 72 + 4), "those of both evaluations, too");
    assert_eq!((summary.before.unwrap().version, summary.after.unwrap().version), (0, 2));
    assert_eq!(summary.best, summary.after);
    assert_eq!(summary.best_adapter, lab.directory().adapter().join("best").display().to_string());
    let directory = lab.directory();
    assert!(directory.samples().join("iteration-000002.png").is_file());
    for folder in ["", "best/"] {
        let adapter = directory.adapter();
        assert!(adapter.join(format!("{folder}peft/adapter_config.json")).is_file());
        assert!(adapter.join(format!("{folder}diffusers/pytorch_lora_weights.safetensors")).is_file());
    }
    assert_eq!(std::fs::read_to_string(directory.checkpoints().join("best")).unwrap(), "iteration-000002\n");
}

#[test]
fn the_order_of_arrival_changes_no_bit_where_means_are_computed_again() {
    for lag in [0, 1] {
        let labs = [Delivery::InOrder, Delivery::Reversed].map(|delivery| {
            let lab = Lab::new(|config| {
                (config.run.lag, config.model.dtype) = (lag, Dtype::Bfloat16);
                config.training.learning_rate = 1e-2;
            });
            assert!(matches!(lab.train(delivery, |_, _| {}).unwrap(), TrainingEnd::Done(_)));
            lab
        });
        assert_same_checkpoint(&labs[0], &labs[1], 2);
    }
}

#[test]
fn a_step_that_was_drawn_alone_has_the_weight_of_its_noise() {
    let labs = [StepWeight::Noise, StepWeight::None].map(|weight| {
        let lab = Lab::new(|config| {
            config.sampling.branch_steps = "random:1".parse().unwrap();
            config.training.step_weight = weight;
        });
        lab.train(Delivery::InOrder, |_, _| {}).unwrap();
        lab
    });
    let [by_noise, alike] = [0, 1].map(|lab| labs[lab].checkpoint_file(2, TRAINED_FILES[0]));
    assert!(by_noise != alike, "weights of noise are weights of 1");

    let trainer = labs[0].trainer(&Shared::default());
    let weights = |branch_steps: &str, iteration| {
        let mut config = labs[0].config.clone();
        config.sampling.branch_steps = branch_steps.parse().unwrap();
        TrainedSteps::new(&config, &trainer.schedule, iteration).unwrap()
    };
    let all = weights("all", 0).weights;
    for iteration in 0..20 {
        for branch_steps in ["random:1", "random:2", "window:2@0..3"] {
            let drawn = weights(branch_steps, iteration);
            let expected: Vec<f32> = drawn.steps().iter().map(|step| all[*step]).collect();
            assert_eq!(drawn.weights, expected, "{branch_steps} in iteration {iteration}");
        }
    }
}

#[test]
fn a_resumed_run_ends_where_an_uninterrupted_one_does() {
    for (lag, dtype) in [(0, Dtype::Float32), (1, Dtype::Float32), (0, Dtype::Bfloat16), (1, Dtype::Bfloat16)]
    {
        let lab = || {
            Lab::new(|config| {
                (config.run.iterations, config.run.lag, config.model.dtype) = (4, lag, dtype);
                assert_eq!(config.training.updates_per_iteration, 2);
            })
        };
        let straight = lab();
        straight.train(Delivery::InOrder, |_, _| {}).unwrap();
        let interrupted = lab();
        // Stopped before the first update of iteration 1, and between the two of iteration 3.
        for stop_in in [(1, 1), (3, 2)] {
            let shared = Shared::default();
            let mut run = interrupted.open(&shared).unwrap();
            let worker = interrupted.spawn_worker(&shared, Delivery::InOrder, Some(stop_in), |_, _| {});
            assert!(matches!(run.run().unwrap(), TrainingEnd::Left));
            worker.join().unwrap();
        }
        interrupted.train(Delivery::InOrder, |_, _| {}).unwrap();
        assert_same_checkpoint(&straight, &interrupted, 4);
        let rewards =
            |lab| metrics(lab).iter().map(|row| (row.iteration, row.reward.mean)).collect::<Vec<_>>();
        assert_eq!(rewards(&straight), rewards(&interrupted), "lag {lag} {dtype:?}");
        let policies = |lab| metrics(lab).into_iter().map(|row| row.policy).collect::<Vec<_>>();
        assert_eq!(policies(&straight), policies(&interrupted), "lag {lag} {dtype:?}");
        let sampled_with: Vec<u32> = metrics(&interrupted).iter().map(|row| row.sampled_with).collect();
        assert_eq!(sampled_with, if lag == 0 { [0, 1, 2, 3] } else { [0, 0, 1, 2] });
    }
}

#[test]
fn a_damaged_checkpoint_costs_an_iteration_and_nothing_else() {
    let straight = Lab::new(|config| config.run.iterations = 2);
    straight.train(Delivery::InOrder, |_, _| {}).unwrap();
    let mut damaged = Lab::new(|config| config.run.iterations = 2);
    damaged.train(Delivery::InOrder, |_, _| {}).unwrap();
    let path = damaged.directory().checkpoints().join("iteration-000002").join(TRAINED_FILES[1]);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    damaged.config.checkpoints.keep_last = 1;
    let run = damaged.open(&Shared::default()).unwrap();
    let notices = run.trainer.progress.notices().concat();
    assert!(
        notices.contains("damaged checkpoint passed over") && notices.contains(TRAINED_FILES[1]),
        "{notices}"
    );
    damaged.train(Delivery::InOrder, |_, _| {}).unwrap();
    assert_same_checkpoint(&straight, &damaged, 2);
    assert_eq!(metrics(&damaged).len(), 2, "no row is there twice");
    assert!(damaged.directory().checkpoints().join("iteration-000002.damaged").is_dir());
}

#[test]
fn a_finished_run_goes_on_with_more_iterations_as_if_it_had_had_them_from_the_start() {
    for lag in [0, 1] {
        let settings = |config: &mut RunConfig| {
            (config.run.iterations, config.run.lag) = (4, lag);
            config.training.updates_per_iteration = 1;
            config.evaluation.every = 4;
        };
        let straight = Lab::new(settings);
        straight.train(Delivery::InOrder, |_, _| {}).unwrap();
        let mut extended = Lab::new(settings);
        extended.config.run.iterations = 2;
        assert!(matches!(extended.train(Delivery::InOrder, |_, _| {}).unwrap(), TrainingEnd::Done(_)));
        // Rows that a crash left behind, newer than the newest checkpoint.
        let line = std::fs::read_to_string(extended.directory().metrics())
            .unwrap()
            .lines()
            .last()
            .unwrap()
            .to_owned();
        let newer = line.replacen("\"iteration\":1", "\"iteration\":2", 1);
        assert_ne!(line, newer);
        ::service::durable::append_line(&extended.directory().metrics(), &newer).unwrap();

        extended.config.run.iterations = 4;
        (extended.config.evaluation.every, extended.config.checkpoints.every) = (3, 2);
        let TrainingEnd::Done(summary) = extended.train(Delivery::InOrder, |_, _| {}).unwrap() else {
            panic!("it was not stopped")
        };
        assert_same_checkpoint(&straight, &extended, 4);
        assert_eq!(metrics(&extended).iter().map(|row| row.iteration).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let path = extended.directory().evaluations();
        let rows = Journal::<Evaluation>::open(&extended.owned(), &path, |_| true).unwrap();
        assert_eq!(rows.rows().iter().map(|row| row.version).collect::<Vec<_>>(), [0, 2, 3, 4], "lag {lag}");
        assert!((summary.gain - 0.5).abs() < 1e-6, "that of version 4, not of the former end");
        // Finished again, it has nothing to do and says the same.
        let TrainingEnd::Done(again) = extended.train(Delivery::InOrder, |_, _| {}).unwrap() else {
            panic!("it was not stopped")
        };
        assert_eq!((again.gain, again.best), (summary.gain, summary.best));
        assert_eq!(again.images, summary.images, "an evaluation after the last checkpoint counts");
        assert_eq!(again.network_evaluations, summary.network_evaluations);
        assert!(again.seconds >= rows.rows().last().unwrap().seconds, "and so does its time");
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_tried_again() {
    // A file where the temporary directory should be stands for a disk that does not take it.
    let block = |lab: &Lab, version: u32| {
        let checkpoint = lab.directory().checkpoints().join(format!("iteration-{version:06}"));
        std::fs::write(lab.owned().partial_name(&checkpoint), "").unwrap();
    };
    let train = |lab: &Lab, blocked: std::ops::Range<u32>| {
        let shared = Shared::default();
        let mut run = lab.open(&shared).unwrap();
        blocked.for_each(|version| block(lab, version));
        let worker = lab.spawn_worker(&shared, Delivery::InOrder, None, |_, _| {});
        let ended = run.run();
        shared.inbox.stop();
        worker.join().unwrap();
        (ended, run.trainer.progress.notices())
    };
    let lab = Lab::new(|config| config.run.iterations = 6);
    let (ended, notices) = train(&lab, 1..5);
    assert!(matches!(ended, Ok(TrainingEnd::Done(_))), "failures for a moment do not end a run: {ended:?}");
    let words = notices.concat();
    assert!(words.contains("checkpoint 1 not written") && words.contains("Not a directory"), "{words}");
    let checkpoint = |lab: &Lab, version: u32| {
        lab.directory().checkpoints().join(format!("iteration-{version:06}")).exists()
    };
    assert!(!checkpoint(&lab, 4) && checkpoint(&lab, 5));

    let lab = Lab::new(|config| (config.run.iterations, config.checkpoints.retry_minutes) = (9, 1e-3));
    let (failed, _) = train(&lab, 1..10);
    let Err(LearnerError::CheckpointsFail { failing, .. }) = failed else { panic!("{failed:?}") };
    assert!(failing.as_secs_f64() >= 0.06, "it is time that ends it: {failing:?}");
    assert!(checkpoint(&lab, 0), "the earlier one is kept");
}

#[test]
fn a_reward_that_is_no_number_ends_the_run_and_is_named() {
    let lab = Lab::new(|_| {});
    let failed = lab.train(Delivery::InOrder, |task, sample| {
        if task.kind == TaskKind::Train && task.iteration == 1 && task.index == 3 {
            // Step 1, branch 2 of the only seed.
            sample.spoil_inside = Some(|trajectories| trajectories.rewards[5] = f32::NAN);
        }
    });
    let Err(error @ LearnerError::NonFinite { .. }) = failed else { panic!("{failed:?}") };
    let LearnerError::NonFinite { quantity, iteration, seed, step, prompt, .. } = &error else {
        unreachable!()
    };
    assert_eq!((*quantity, *iteration, *seed, step.as_str()), ("reward", 1, 1, "1"));
    assert!(error.to_string().contains(prompt) && !prompt.is_empty());
    assert!(!lab.directory().checkpoints().join("iteration-000002").exists());
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_is_named() {
    let lab = Lab::new(|_| {});
    let failed = lab.train(Delivery::InOrder, |task, sample| {
        if task.kind == TaskKind::Train && task.index == 2 {
            // Step 2 of the only seed.
            sample.spoil_inside = Some(|trajectories| trajectories.states[2 * 256..].fill(f32::INFINITY));
        }
    });
    let Err(LearnerError::NonFinite { quantity, iteration, seed, step, .. }) = failed else {
        panic!("{failed:?}")
    };
    assert_eq!((quantity, iteration, seed, step.as_str()), ("loss", 0, 0, "2"));
}

#[test]
fn weights_that_are_no_numbers_end_the_run() {
    let lab = Lab::new(|config| config.training.learning_rate = f64::MAX);
    let failed = lab.train(Delivery::InOrder, |_, _| {});
    assert!(matches!(failed, Err(LearnerError::NonFiniteParameter { iteration: 0, .. })), "{failed:?}");
    assert!(!lab.directory().checkpoints().join("iteration-000001").exists());
}

#[test]
fn another_config_does_not_continue_a_run() {
    let mut lab = Lab::new(|_| {});
    lab.train(Delivery::InOrder, |_, _| {}).unwrap();
    lab.config.resources.workers += 1;
    assert!(lab.open(&Shared::default()).is_ok(), "the number of workers may change");
    lab.config.training.clip_range *= 2.0;
    assert!(matches!(lab.open(&Shared::default()), Err(LearnerError::OtherConfig { .. })));
}

/// What a streaming learner adds up is the gradient of the mean over all cells, taken at once.
#[test]
fn the_streamed_gradient_is_that_of_one_big_batch() {
    let plain = |_: &mut RunConfig| {};
    check_streamed_gradient(plain, OldMeans::Sent);
    check_streamed_gradient(plain, OldMeans::Recomputed);
    check_streamed_gradient(plain, OldMeans::Own);
    check_streamed_gradient(|config| config.sampling.step_rule = StepRule::Cps, OldMeans::Sent);
}

#[test]
fn sides_of_a_clip_range_of_unequal_width_are_in_the_gradient() {
    let unequal = |below, above| {
        move |config: &mut RunConfig| {
            (config.training.clip_range_lt, config.training.clip_range_gt) = (below, above);
        }
    };
    let gradients = [(0.0, 0.0), (1e-6, 0.0), (0.0, 1e-6)]
        .map(|(below, above)| check_streamed_gradient(unequal(below, above), OldMeans::Sent));
    assert!(gradients[0] != gradients[1] && gradients[1] != gradients[2] && gradients[0] != gradients[2]);
}

#[test]
fn guarded_ratios_are_in_the_gradient() {
    let guarded = |config: &mut RunConfig| {
        config.training.ratio_normalization = RatioNormalization::Guard;
        config.training.step_weight = StepWeight::InverseLength;
    };
    let plain = check_streamed_gradient(|_| {}, OldMeans::Sent);
    let gradients = [OldMeans::Sent, OldMeans::Recomputed, OldMeans::Own]
        .map(|before| check_streamed_gradient(guarded, before));
    assert!(gradients.iter().all(|gradient| *gradient != plain));
}

/// Holds the streamed gradient of a run against [`one_batch_loss`]; returns its norm. The policy is that which sampled
/// where its own means are the ones before, else one that moved.
fn check_streamed_gradient(change: impl FnOnce(&mut RunConfig), means: OldMeans) -> f64 {
    let lab = Lab::new(|config| {
        config.training.kl_beta = 0.5;
        change(config);
    });
    let shared = Shared::default();
    let mut trainer = lab.trainer(&shared);
    let version = trainer.policy.for_workers(trainer.policy.trained());
    shared.publications.publish(WeightsName::policy(0), &version).unwrap();
    let steps = TrainedSteps::new(&lab.config, &trainer.schedule, 0).unwrap();
    let tasks = lab.config.train_tasks(3, 0);
    let mut worker = Worker::new(&lab.config);
    let sampled: Vec<_> = tasks
        .iter()
        .map(|task| {
            let (header, bytes) = worker.sample(task, &shared.publications).unwrap().push(task);
            trajectories(worker.receiver.outcome(&header, &bytes, task, &shared.embeddings).unwrap())
        })
        .collect();
    if means != OldMeans::Own {
        move_away(&trainer);
    }
    let advantages: Vec<Vec<Vec<f32>>> =
        sampled.iter().map(|t| vec![made_up_advantages(t.rewards.len())]).collect();
    let embedding = |digest: &[u8; 32]| shared.embeddings.get(digest).unwrap();
    for ((task, sampled), advantages) in tasks.iter().zip(&sampled).zip(&advantages) {
        let negative = sampled.negative_conditioning.as_ref().map(embedding);
        let positive = embedding(&sampled.conditioning);
        let training = TrainingTask { task, trajectories: sampled, advantages, positive, negative };
        let Trainer { policy, objective, .. } = &mut trainer;
        let before = match means {
            OldMeans::Own => MeansBefore::Own,
            OldMeans::Sent => MeansBefore::Sent,
            OldMeans::Recomputed => {
                let moved: Vec<Tensor> = policy.trained().iter().map(|(_, p)| p.detach().copy()).collect();
                let means =
                    policy.at_version(&version, |policy| objective.means(policy, &training, &steps)).unwrap();
                assert!(policy.trained().iter().zip(&moved).all(|((_, now), then)| now == then));
                MeansBefore::Computed(means)
            }
        };
        let scale = 1.0 / (tasks.len() * steps.steps().len()) as f64;
        objective.accumulate(policy, &training, &steps, (&before, scale)).unwrap();
    }
    let streamed: Vec<Tensor> = trainer.policy.trained().iter().map(|(_, p)| p.grad().copy()).collect();
    trainer.policy.trained().iter().for_each(|(_, p)| p.shallow_clone().zero_grad());

    one_batch_loss(&trainer, &steps, &sampled, &advantages.concat(), &shared).backward();
    let (mut distance, mut norm) = (0.0, 0.0);
    for ((_, parameter), streamed) in trainer.policy.trained().iter().zip(&streamed) {
        distance += (parameter.grad() - streamed).square().sum(Kind::Double).double_value(&[]);
        norm += streamed.square().sum(Kind::Double).double_value(&[]);
    }
    let relative = (distance / norm).sqrt();
    // Means of float32 networks agree to about 5e-7 between batches of other sizes (the worst of the kernels that
    // `make test-rounding` walks), twice that is allowed; a gradient is made of their distance from the next latents, which
    // is of the size of a move's deviation.
    let smallest_std = steps.coefficients.iter().map(|move_| move_.std).fold(f64::INFINITY, f64::min);
    let bound = f64::max(1e-5, 1e-6 / smallest_std);
    assert!(norm > 0.0 && relative < bound, "{means:?}: relative distance {relative}, not below {bound}");
    norm.sqrt()
}

/// Away from the sampling policy, so that every term has a gradient.
fn move_away(trainer: &Trainer) {
    tch::no_grad(|| {
        for (ordinal, (_, parameter)) in trainer.policy.trained().iter().enumerate() {
            let _ = parameter.shallow_clone().g_add_scalar_(1e-3 * (ordinal % 3) as f64);
        }
    });
}

fn made_up_advantages(len: usize) -> Vec<f32> {
    (0..len).map(|position| [1.5, -0.5, 0.25, -7.0][position % 4]).collect()
}

/// The loss of all cells of all tasks in one forward pass, written out.
fn one_batch_loss(
    trainer: &Trainer,
    steps: &TrainedSteps,
    sampled: &[Trajectories],
    advantages: &[Vec<f32>],
    shared: &Shared,
) -> Tensor {
    let (n_steps, n_branches) = (steps.steps().len(), trainer.config.sampling.branches_per_seed);
    let n_cells = sampled.len() * n_steps;
    let latents = |values: Vec<f32>| Tensor::from_slice(&values).view([-1, 16, 4, 4]);
    let all =
        |part: fn(&Trajectories) -> &Vec<f32>| sampled.iter().flat_map(part).copied().collect::<Vec<f32>>();
    let states = latents(all(|t| &t.states));
    let coefficients: Vec<_> = (0..n_cells).map(|cell| steps.coefficients[cell % n_steps]).collect();
    let sigmas: Vec<f32> = coefficients.iter().map(|c| c.sigma as f32).collect();
    let embedding = |digest: &[u8; 32]| shared.embeddings.get(digest).unwrap();
    let positives: Vec<Conditioning> = sampled.iter().map(|t| embedding(&t.conditioning)).collect();
    let positive = Conditioning::cat(&positives.iter().collect::<Vec<_>>()).repeat_interleave(n_steps as i64);
    let negative = embedding(&sampled[0].negative_conditioning.unwrap());
    let (policy, sigmas, scale) =
        (&trainer.policy, Tensor::from_slice(&sigmas), trainer.config.sampling.guidance_scale);
    let rows = TransitionRows::new(&coefficients, Device::Cpu);
    let guidance = Guidance { positive: &positive, negative: Some(&negative), scale };
    let mean_with = |mode| {
        let velocity = policy.model().velocity(&states, &sigmas, &guidance, mode);
        transition_mean(&states, &velocity, &rows)
    };
    let mean = mean_with(AdapterMode::Trainable);
    let reference = tch::no_grad(|| mean_with(AdapterMode::Off));
    let kl = kl_divergence(&mean, &reference, &coefficients, KlDenominator::Std).mean(Kind::Float);

    let next = latents(all(|t| &t.next_latents));
    let branch_rows = rows.repeat_for_branches(n_branches);
    let branch_mean = repeat_for_branches(&mean, n_branches);
    let log_probs = log_probability(&next, &branch_mean, &branch_rows);
    let log_ratio = log_probs - Tensor::from_slice(&all(|t| &t.log_probs));
    let training = &trainer.config.training;
    let log_ratio = match training.ratio_normalization {
        RatioNormalization::None => log_ratio,
        RatioNormalization::Guard => {
            let change = branch_mean - repeat_for_branches(&latents(all(|t| &t.means)), n_branches);
            let bias = change.square().flatten(1, -1).mean_dim(1, false, Kind::Float);
            (log_ratio + bias / (branch_rows.std.square() * 2.0)) * &branch_rows.std
        }
    };
    let ratio = log_ratio.exp();
    let weights: Vec<f32> =
        (0..n_cells * n_branches).map(|row| steps.weights[row / n_branches % n_steps]).collect();
    let side = |own: f64| if own == 0.0 { training.clip_range } else { own };
    let (below, above) = (side(training.clip_range_lt), side(training.clip_range_gt));
    let weighted = Tensor::from_slice(&advantages.concat()).clamp(-5.0, 5.0) * Tensor::from_slice(&weights);
    let terms = (&weighted * &ratio).minimum(&(&weighted * ratio.clamp(1.0 - below, 1.0 + above)));
    kl * training.kl_beta - terms.mean(Kind::Float)
}
