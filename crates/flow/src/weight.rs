//! How much each trained step counts in the policy loss.
//!
//! The gradient of a step's log-probability grows with `1/S`, so the quiet late steps would drown the early ones, where
//! an image is decided. TempFlow-GRPO multiplies each step's term by its standard deviation `S`, scaled so that the mean
//! weight is 1 and the learning rate keeps its meaning. The mean is over all steps that can be drawn for training, not
//! over those that an iteration has drawn: a step counts the same whichever others it was drawn with, and one that was drawn
//! alone does not count 1. The KL term is not weighted.

use config::StepWeight;

use crate::TransitionCoefficients;

/// One weight per trained step; `drawable` are the moves of all steps that can be drawn.
///
/// The reference code's constants, for comparison, are 2.25 for SD3.5-M, 1.73 for FLUX.1-dev and 1.53 for Qwen-Image.
pub fn step_weights(
    weight: StepWeight,
    trained: &[TransitionCoefficients],
    drawable: &[TransitionCoefficients],
) -> Vec<f64> {
    let factor = match weight {
        StepWeight::Noise => {
            drawable.len() as f64 / drawable.iter().map(|coefficients| coefficients.std).sum::<f64>()
        }
        StepWeight::None => return vec![1.0; trained.len()],
        StepWeight::InverseLength => return trained.iter().map(|step| step.length().recip()).collect(),
        StepWeight::Constant(constant) => constant,
    };
    trained.iter().map(|coefficients| factor * coefficients.std).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NoiseGrid, Schedule, SchedulerConfig, TransitionCoefficients};
    use config::StepRule;

    fn sd3(steps: usize) -> Schedule {
        let config = SchedulerConfig { shift: 3.0, ..SchedulerConfig::default() };
        Schedule::new(&config, NoiseGrid::Scheduler, steps, 0).unwrap()
    }

    fn flux(steps: usize, length: usize) -> Schedule {
        let config = SchedulerConfig { use_dynamic_shifting: true, ..SchedulerConfig::default() };
        Schedule::new(&config, NoiseGrid::Pipeline, steps, length).unwrap()
    }

    fn qwen(steps: usize, length: usize) -> Schedule {
        let config = SchedulerConfig {
            use_dynamic_shifting: true,
            max_shift: 0.9,
            max_image_seq_len: 8192.0,
            shift_terminal: Some(0.02),
            ..SchedulerConfig::default()
        };
        Schedule::new(&config, NoiseGrid::Pipeline, steps, length).unwrap()
    }

    fn all_moves(schedule: &Schedule, noise_level: f64) -> Vec<TransitionCoefficients> {
        let coefficients =
            |step| TransitionCoefficients::new(StepRule::FlowSde, schedule, step, noise_level).unwrap();
        (0..schedule.steps() - 1).map(coefficients).collect()
    }

    fn weights_of_all(weight: StepWeight, schedule: &Schedule, noise_level: f64) -> Vec<f64> {
        let moves = all_moves(schedule, noise_level);
        step_weights(weight, &moves, &moves)
    }

    #[test]
    fn noise_weights_match_the_tables_and_average_to_one() {
        let sd3_weights = [
            1.57655998, 1.67332495, 1.20753694, 1.00426225, 0.88241031, 0.79457973, 0.71861883, 0.63514369,
            0.50756331,
        ];
        let flux_weights = [
            1.55339081, 1.64317816, 1.18588305, 0.98724278, 0.86984991, 0.78821253, 0.72298264, 0.66131312,
            0.58794700,
        ];
        let qwen_weights = [
            1.83953837, 1.85180803, 1.28311570, 1.01862086, 0.84816991, 0.71720987, 0.60217312, 0.48719329,
            0.35217085,
        ];
        let cases = [
            (sd3(10), 0.7, sd3_weights),
            (flux(10, 4096), 0.9, flux_weights),
            (qwen(10, 1024), 1.2, qwen_weights),
        ];
        for (schedule, noise_level, expected) in cases {
            let weights = weights_of_all(StepWeight::Noise, &schedule, noise_level);
            for (got, expected) in weights.iter().zip(expected) {
                assert!((got - expected).abs() < 1e-5, "{got} is not {expected}");
            }
            assert!((weights.iter().sum::<f64>() / 9.0 - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn reciprocal_mean_deviation_matches_the_table_for_other_lengths_and_sizes() {
        let steps = [6, 8, 10, 16, 20];
        let table = [
            (steps.map(sd3), [1.189296, 1.396527, 1.576560, 2.020348, 2.266948]),
            (steps.map(|steps| flux(steps, 4096)), [1.192888, 1.383048, 1.553391, 1.983506, 2.225761]),
            (steps.map(|steps| flux(steps, 1024)), [1.329830, 1.544943, 1.736176, 2.215960, 2.485124]),
            (steps.map(|steps| qwen(steps, 1024)), [1.433276, 1.648906, 1.839538, 2.316950, 2.585020]),
            (steps.map(|steps| qwen(steps, 4096)), [1.385653, 1.593359, 1.777384, 2.238935, 2.498300]),
        ];
        for (schedules, expected) in table {
            for (schedule, expected) in schedules.iter().zip(expected) {
                let first = weights_of_all(StepWeight::Noise, schedule, 1.0)[0];
                assert!(
                    (first - expected).abs() < 2e-5,
                    "{} steps: {first} is not {expected}",
                    schedule.steps()
                );
            }
        }
    }

    #[test]
    fn noise_weights_do_not_depend_on_the_noise_level() {
        let quiet = weights_of_all(StepWeight::Noise, &sd3(10), 0.1);
        let loud = weights_of_all(StepWeight::Noise, &sd3(10), 1.5);
        assert!(quiet.iter().zip(&loud).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn constants_of_the_reference_code_are_rounded_means() {
        for (schedule, noise_level, constant) in
            [(sd3(10), 0.7, 2.25), (flux(10, 4096), 0.9, 1.73), (qwen(10, 1024), 1.2, 1.53)]
        {
            let by_hand = weights_of_all(StepWeight::Constant(constant), &schedule, noise_level);
            let by_rule = weights_of_all(StepWeight::Noise, &schedule, noise_level);
            assert!(by_hand.iter().zip(&by_rule).all(|(a, b)| (a / b - 1.0).abs() < 3e-3));
        }
    }

    /// Weights of SD3.5-M's nine steps over all of them, to three digits.
    const SD3_WEIGHTS: [f64; 9] = [1.577, 1.673, 1.208, 1.004, 0.882, 0.795, 0.719, 0.635, 0.508];

    #[test]
    fn a_step_weighs_the_same_whichever_others_it_was_drawn_with() {
        let moves = all_moves(&sd3(10), 0.7);
        for drawn in [0..3, 6..9, 0..9, 4..5] {
            let weights = step_weights(StepWeight::Noise, &moves[drawn.clone()], &moves);
            for (got, expected) in weights.iter().zip(&SD3_WEIGHTS[drawn.clone()]) {
                assert!((got - expected).abs() < 5e-4, "{got} is not {expected} among {drawn:?}");
            }
        }
    }

    #[test]
    fn flow_grpo_weighs_all_steps_alike() {
        assert_eq!(weights_of_all(StepWeight::None, &sd3(3), 0.7), [1.0, 1.0]);
    }

    #[test]
    fn guard_divides_by_the_length_of_the_step() {
        let moves = all_moves(&sd3(10), 0.7);
        let weights = step_weights(StepWeight::InverseLength, &moves[3..4], &moves);
        assert!((weights[0] - 14.8535362).abs() < 1e-5, "{weights:?}");
    }
}
