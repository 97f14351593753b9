//! What `sampling.branch_steps` means: which steps can be trained, and which of them an iteration trains.
//!
//! The last step is never trained: its noise is so small that its Gaussian is a needle.

use crate::{BranchSteps, SamplingSection};
use noise::{NoiseKey, Purpose, permutation};

/// The steps that can be trained, and how an iteration's are drawn from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepDraw {
    /// In rising order, none of them the last.
    drawable: Vec<usize>,
    rule: DrawRule,
}

/// What of the drawable steps an iteration trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DrawRule {
    All,
    /// That many of them.
    Subset(usize),
    /// That many neighbours.
    Window(usize),
}

/// Branch steps that do not suit the number of sampling steps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("branch steps {branch_steps} do not suit {steps} sampling steps: {problem}")]
pub struct StepDrawError {
    /// The setting, as the user would recognise it.
    pub branch_steps: String,
    /// Number of sampling steps.
    pub steps: usize,
    /// What is wrong and what is allowed.
    pub problem: String,
}

impl StepDraw {
    /// Reads branch steps for trajectories of `steps` steps.
    ///
    /// # Errors
    /// If they leave no step, are not in rising order, or reach the last step or beyond.
    pub fn new(branch_steps: &BranchSteps, steps: usize) -> Result<Self, StepDrawError> {
        let n_trainable = steps.saturating_sub(1);
        let misfit = |problem| StepDrawError { branch_steps: branch_steps.to_string(), steps, problem };
        let (drawable, rule) = match branch_steps {
            BranchSteps::All => ((0..n_trainable).collect(), DrawRule::All),
            BranchSteps::Range { from, to } => {
                (range(*from, *to, n_trainable).map_err(misfit)?, DrawRule::All)
            }
            BranchSteps::List(list) => (list.clone(), DrawRule::All),
            BranchSteps::Random { count } => ((0..n_trainable).collect(), DrawRule::Subset(*count)),
            BranchSteps::RandomAmong { count, among } => (among.clone(), DrawRule::Subset(*count)),
            BranchSteps::Window { size, from, to } => {
                (range(*from, *to, n_trainable).map_err(misfit)?, DrawRule::Window(*size))
            }
        };
        check_drawable(&drawable, n_trainable).map_err(misfit)?;
        let n_drawable = drawable.len();
        match rule {
            DrawRule::Subset(count) if !(1..=n_drawable).contains(&count) => {
                Err(misfit(format!("draws {count} of {n_drawable} steps; draw 1 to {n_drawable}")))
            }
            DrawRule::Window(size) if !(1..=n_drawable).contains(&size) => {
                Err(misfit(format!("has a window of {size} in {n_drawable} steps; give 1 to {n_drawable}")))
            }
            DrawRule::All | DrawRule::Subset(_) | DrawRule::Window(_) => Ok(Self { drawable, rule }),
        }
    }

    /// All steps that can be trained, in rising order; those that always are where nothing is drawn.
    pub fn drawable(&self) -> &[usize] {
        &self.drawable
    }

    /// Number of steps that every iteration trains.
    pub fn n_trained(&self) -> usize {
        match self.rule {
            DrawRule::All => self.drawable.len(),
            DrawRule::Subset(count) | DrawRule::Window(count) => count,
        }
    }

    /// The trained steps of an iteration, in rising order; a function of its arguments alone.
    pub fn draw(&self, run_seed: u64, iteration: u32) -> Vec<usize> {
        let key = NoiseKey::initial(run_seed, Purpose::BranchSteps, iteration, 0, 0);
        match self.rule {
            DrawRule::All => self.drawable.clone(),
            DrawRule::Subset(count) => {
                let positions = permutation(&key, self.drawable.len());
                let mut drawn: Vec<usize> =
                    positions[..count].iter().map(|&position| self.drawable[position]).collect();
                drawn.sort_unstable();
                drawn
            }
            DrawRule::Window(size) => {
                let start = permutation(&key, self.n_windows(size))[0];
                self.drawable[start..start + size].to_vec()
            }
        }
    }

    /// What an iteration's trained steps come to on average, `value` by `value`, added up.
    pub fn mean_sum(&self, value: impl Fn(usize) -> f64) -> f64 {
        let sum = |steps: &[usize]| steps.iter().map(|&step| value(step)).sum::<f64>();
        match self.rule {
            DrawRule::All => sum(&self.drawable),
            // Every step is as likely to be drawn as any other.
            DrawRule::Subset(count) => sum(&self.drawable) * count as f64 / self.drawable.len() as f64,
            DrawRule::Window(size) => {
                self.drawable.windows(size).map(sum).sum::<f64>() / self.n_windows(size) as f64
            }
        }
    }

    /// The last step that an iteration trains, on average.
    pub fn mean_last(&self) -> f64 {
        let last = |steps: &[usize]| steps.last().map_or(0.0, |&step| step as f64);
        match self.rule {
            DrawRule::All => last(&self.drawable),
            DrawRule::Subset(count) => self.mean_last_of_subset(count),
            DrawRule::Window(size) => {
                self.drawable.windows(size).map(last).sum::<f64>() / self.n_windows(size) as f64
            }
        }
    }

    /// The r-th of n steps (from 0) is the last of `count` drawn with probability C(r, count − 1) / C(n, count).
    fn mean_last_of_subset(&self, count: usize) -> f64 {
        // From the top down: the chance that the step at `rank` is drawn and none above it is.
        let (mut none_above, mut mean) = (1.0, 0.0);
        for (rank, &step) in self.drawable.iter().enumerate().rev() {
            let is_last = none_above * (count as f64 / (rank + 1) as f64).min(1.0);
            mean += is_last * step as f64;
            none_above -= is_last;
        }
        mean
    }

    fn n_windows(&self, size: usize) -> usize {
        self.drawable.len() - size + 1
    }
}

impl SamplingSection {
    /// Its branch steps for its number of steps.
    ///
    /// # Errors
    /// As [`StepDraw::new`].
    pub fn step_draw(&self) -> Result<StepDraw, StepDrawError> {
        StepDraw::new(&self.branch_steps, self.steps)
    }
}

/// The steps `from` to `to − 1`; a range that reaches too far is not laid out.
fn range(from: usize, to: usize, n_trainable: usize) -> Result<Vec<usize>, String> {
    match to <= n_trainable {
        true => Ok((from..to).collect()),
        false => Err(beyond(to.saturating_sub(1), n_trainable)),
    }
}

fn check_drawable(drawable: &[usize], n_trainable: usize) -> Result<(), String> {
    match (drawable.last(), drawable.windows(2).find(|pair| pair[0] >= pair[1])) {
        (None, _) => Err("no step is left to train".to_owned()),
        (_, Some(pair)) => Err(format!("step {} stands before {}; they must rise", pair[0], pair[1])),
        (Some(&last), _) if last >= n_trainable => Err(beyond(last, n_trainable)),
        _ => Ok(()),
    }
}

fn beyond(step: usize, n_trainable: usize) -> String {
    match n_trainable {
        0 => "no step can be trained, since the last never is; take at least 2".to_owned(),
        _ => format!("step {step} cannot be trained; 0 to {} can, the last never", n_trainable - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn draw(text: &str, steps: usize) -> Result<StepDraw, StepDrawError> {
        StepDraw::new(&text.parse().expect("readable"), steps)
    }

    #[test]
    fn fixed_settings_give_the_steps_they_name() {
        let steps = |text, steps| draw(text, steps).unwrap().draw(1, 2);
        assert_eq!(steps("all", 10), (0..9).collect::<Vec<_>>());
        assert_eq!(steps("2..5", 10), [2, 3, 4]);
        assert_eq!(steps("0,3,7", 10), [0, 3, 7]);
        assert_eq!(steps("all", 2), [0]);
    }

    #[test]
    fn drawn_steps_change_with_the_iteration_and_cover_what_can_be_drawn() {
        for text in ["random:3", "random:2@1,2,5", "window:3@0..9", "window:2@1..5", "random:1"] {
            let draw = draw(text, 10).unwrap();
            let sets: HashSet<Vec<usize>> = (0..300).map(|iteration| draw.draw(5, iteration)).collect();
            assert!(sets.iter().all(|steps| steps.len() == draw.n_trained() && steps.is_sorted()), "{text}");
            let seen: HashSet<usize> = sets.iter().flatten().copied().collect();
            assert_eq!(seen, draw.drawable().iter().copied().collect(), "{text}");
            assert!(sets.len() > 2, "{text} gave only {sets:?}");
            assert_eq!(draw.draw(5, 7), draw.draw(5, 7));
        }
    }

    #[test]
    fn windows_are_neighbours() {
        let draw = draw("window:2@1..5", 10).unwrap();
        for iteration in 0..100 {
            let window = draw.draw(0, iteration);
            assert!(window[0] >= 1 && window[1] == window[0] + 1 && window[1] < 5);
        }
    }

    #[test]
    fn means_are_those_of_all_draws() {
        let subsets = |among: &[usize], count: usize| -> Vec<Vec<usize>> {
            let of_mask = |mask: usize| {
                among
                    .iter()
                    .enumerate()
                    .filter(|(bit, _)| mask >> bit & 1 == 1)
                    .map(|(_, &step)| step)
                    .collect()
            };
            (0..1 << among.len()).map(of_mask).filter(|steps: &Vec<usize>| steps.len() == count).collect()
        };
        let windows = |steps: std::ops::Range<usize>, size| {
            steps.collect::<Vec<_>>().windows(size).map(<[usize]>::to_vec).collect::<Vec<_>>()
        };
        for (text, all) in [
            ("all", vec![vec![0, 1, 2, 3, 4]]),
            ("1,3", vec![vec![1, 3]]),
            ("random:2", subsets(&[0, 1, 2, 3, 4], 2)),
            ("random:2@0,1,4", subsets(&[0, 1, 4], 2)),
            ("window:3@1..5", windows(1..5, 3)),
        ] {
            let draw = draw(text, 6).unwrap();
            let mean = |of: &dyn Fn(&Vec<usize>) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
            let square = |step: usize| (step * step) as f64;
            let sum = mean(&|steps| steps.iter().map(|&step| square(step)).sum());
            let last = mean(&|steps| steps[steps.len() - 1] as f64);
            assert!((draw.mean_sum(square) - sum).abs() < 1e-12, "{text}");
            assert!((draw.mean_last() - last).abs() < 1e-12, "{text}");
        }
    }

    #[test]
    fn steps_that_cannot_be_trained_are_refused() {
        let refused = [
            BranchSteps::List(vec![]),
            BranchSteps::List(vec![1, 9]),
            BranchSteps::List(vec![1, 1]),
            BranchSteps::List(vec![7, 3]),
            BranchSteps::Range { from: 4, to: 4 },
            BranchSteps::Range { from: 5, to: 4 },
            BranchSteps::Range { from: 4, to: 10 },
            BranchSteps::Range { from: 0, to: usize::MAX },
            BranchSteps::Random { count: 0 },
            BranchSteps::Random { count: 10 },
            BranchSteps::RandomAmong { count: 3, among: vec![1, 2] },
            BranchSteps::RandomAmong { count: 1, among: vec![9] },
            BranchSteps::RandomAmong { count: 1, among: vec![2, 1] },
            BranchSteps::Window { size: 3, from: 0, to: 2 },
            BranchSteps::Window { size: 2, from: 5, to: 10 },
            BranchSteps::Window { size: 0, from: 0, to: 5 },
        ];
        for branch_steps in refused {
            let error = StepDraw::new(&branch_steps, 10).expect_err(&branch_steps.to_string());
            assert_eq!(error.branch_steps, branch_steps.to_string());
        }
        assert!(StepDraw::new(&BranchSteps::All, 1).is_err() && StepDraw::new(&BranchSteps::All, 0).is_err());
    }
}
