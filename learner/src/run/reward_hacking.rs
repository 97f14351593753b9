//! Whether training games its rewards: what it trains gets better and what it does not train gets worse.
//!
//! A policy that has learned to please a scorer, and not what the scorer stands for, shows it in scorers that it was not
//! trained on. Each evaluation is held against those before it:
//!
//! ```text
//! evaluation     0       20       40       60       80
//! training           0.51 ──▶ 0.55 ──▶ 0.60 ──▶ 0.66        mean of the iterations in between, rising
//! held out     0.83     0.84 ──▶ 0.83 ──▶ 0.81 ──▶ 0.80     falling over 3 evaluations: hacked, with a patience of 3
//! ```
//!
//! 1. The decision is a function of the rows of `evaluations.jsonl` and the config alone, so a resumed run decides as one
//!    that was never interrupted.
//! 2. An evaluation that gave every score of the one before, since the averaged weights had not moved, is passed over.
//! 3. A reward that counts with a negative weight falls where its raw score rises.

use std::fmt;

use config::RewardSection;

use crate::records::evaluation::Evaluation;

/// A reward that fell at every one of the last evaluations, while the training reward rose.
#[derive(Clone, Debug, PartialEq)]
pub struct Hacked {
    /// Name of the reward.
    pub name: String,
    /// Versions of the evaluations.
    pub versions: Vec<u32>,
    /// Of each, the mean training reward since the evaluation before.
    pub training: Vec<f64>,
    /// Of each, the mean raw score of the reward.
    pub held_out: Vec<f64>,
}

/// Finds the rewards of `held_out` that the last `patience` evaluations of `history` found worse each time, while the
/// training reward rose each time; none if the patience is 0 or there are too few evaluations to tell.
pub fn hacked(history: &[Evaluation], held_out: &[&RewardSection], patience: u32) -> Vec<Hacked> {
    let n_rows = patience as usize + 1;
    let list = history.last().map(|row| &row.prompt_list);
    let mut rows: Vec<&Evaluation> = history.iter().filter(|row| Some(&row.prompt_list) == list).collect();
    // Averaged weights that did not move between two evaluations score the same to the last bit, and tell nothing new.
    rows.dedup_by(|later, earlier| later.scores == earlier.scores);
    let Some(rows) = rows.len().checked_sub(n_rows).map(|first| &rows[first..]) else {
        return Vec::new();
    };
    let training: Option<Vec<f64>> = rows.iter().map(|row| row.training_reward).collect();
    let Some(training) = training.filter(|training| patience > 0 && rises(training)) else {
        return Vec::new();
    };
    let is_hacked = |reward: &&RewardSection| {
        let scores: Vec<f64> = rows.iter().map(|row| row.score_of(reward)).collect::<Option<_>>()?;
        let losses: Vec<f64> = scores.iter().map(|score| -score * reward.weight.signum()).collect();
        rises(&losses).then(|| Hacked {
            name: reward.name.clone(),
            versions: rows.iter().map(|row| row.version).collect(),
            training: training.clone(),
            held_out: scores,
        })
    };
    held_out.iter().filter_map(is_hacked).collect()
}

fn rises(values: &[f64]) -> bool {
    values.windows(2).all(|pair| pair[1] > pair[0])
}

impl fmt::Display for Hacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let course =
            |values: &[f64]| values.iter().map(|value| format!("{value:.4}")).collect::<Vec<_>>().join(" → ");
        let versions: Vec<String> = self.versions.iter().map(u32::to_string).collect();
        write!(
            f,
            "from version to version ({}) the training reward got better ({}) and `{}`, which is not trained, got worse ({})",
            versions.join(", "),
            course(&self.training),
            self.name,
            course(&self.held_out)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::evaluation::Estimate;

    fn reward(name: &str, weight: f64) -> RewardSection {
        RewardSection { weight, ..RewardSection::new(name) }
    }

    /// Evaluations 10 versions apart; the first has no training before it.
    fn history(training: &[f64], held_out: &[f64]) -> Vec<Evaluation> {
        let row = |(position, score): (usize, &f64)| {
            let mut row = Evaluation::new(
                10 * position as u32,
                &[],
                1,
                &[reward("shapes", 1.0), reward("pickscore", 0.5)],
                &[],
            );
            row.training_reward = position.checked_sub(1).map(|before| training[before]);
            row.scores = [("shapes", 0.5), ("pickscore", *score)]
                .map(|(name, mean)| (name.to_owned(), Estimate { mean, standard_error: 0.0 }))
                .into();
            row
        };
        held_out.iter().enumerate().map(row).collect()
    }

    fn names(history: &[Evaluation], patience: u32) -> Vec<String> {
        hacked(history, &[&reward("pickscore", 0.5)], patience)
            .into_iter()
            .map(|hacked| hacked.name)
            .collect()
    }

    #[test]
    fn a_held_out_reward_that_falls_while_training_rises_is_hacked() {
        let history = history(&[0.1, 0.2, 0.3, 0.4], &[0.8, 0.9, 0.7, 0.6, 0.5]);
        assert_eq!(names(&history, 3), ["pickscore"]);
        assert!(names(&history[..4], 3).is_empty(), "one evaluation earlier it is not");
        let mut on_others = history.clone();
        on_others[1].prompt_list = "other prompts".to_owned();
        assert!(names(&on_others, 3).is_empty(), "evaluations on other prompts tell nothing");
        assert_eq!(names(&history[..4], 2), ["pickscore"], "unless patience is shorter");
        let found = hacked(&history, &[&reward("pickscore", 0.5)], 3).remove(0);
        assert_eq!((found.versions, found.training), (vec![10, 20, 30, 40], vec![0.1, 0.2, 0.3, 0.4]));
        assert_eq!(found.held_out, [0.9, 0.7, 0.6, 0.5]);
    }

    #[test]
    fn one_step_the_other_way_or_none_at_all_clears_the_run() {
        let falling = [0.8, 0.9, 0.7, 0.6, 0.5];
        for training in [[0.1, 0.2, 0.15, 0.4], [0.1, 0.2, 0.2, 0.4], [0.1, f64::NAN, 0.3, 0.4]] {
            assert!(names(&history(&training, &falling), 3).is_empty(), "{training:?}");
        }
        for held_out in
            [[0.8, 0.9, 0.7, 0.75, 0.5], [0.8, 0.9, 0.7, 0.7, 0.5], [0.8, 0.9, 0.7, f64::NAN, 0.5]]
        {
            assert!(names(&history(&[0.1, 0.2, 0.3, 0.4], &held_out), 3).is_empty(), "{held_out:?}");
        }
    }

    #[test]
    fn evaluations_of_weights_that_did_not_move_are_passed_over() {
        let training = [0.1, 0.2, 0.25, 0.3, 0.35, 0.4];
        let repeated = history(&training, &[0.9, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6]);
        assert_eq!(names(&repeated, 2), ["pickscore"]);
        assert_eq!(
            names(&repeated[..6], 1),
            ["pickscore"],
            "the newest told nothing new, which changes nothing"
        );
        let mut moved = repeated;
        for (position, row) in moved.iter_mut().enumerate() {
            // Another reward moved, so the weights did.
            row.scores.get_mut("shapes").expect("it is there").mean += position as f64;
        }
        assert!(names(&moved, 2).is_empty());
    }

    #[test]
    fn a_patience_of_zero_never_looks_and_short_histories_cannot_tell() {
        let history = history(&[0.1, 0.2], &[0.9, 0.8, 0.7]);
        assert_eq!(names(&history, 1), ["pickscore"]);
        assert!(names(&history, 0).is_empty());
        assert!(names(&history, 2).is_empty(), "before the first evaluation nothing was trained");
        assert!(names(&[], 1).is_empty());
        assert!(names(&history, u32::MAX).is_empty());
    }

    #[test]
    fn a_penalty_that_grows_is_a_reward_that_falls() {
        let rising = history(&[0.1, 0.2], &[0.1, 0.2, 0.3]);
        let found = hacked(&rising, &[&reward("pickscore", -2.0)], 1);
        assert_eq!(found.len(), 1);
        assert!(hacked(&rising, &[&reward("pickscore", 2.0)], 1).is_empty());
    }

    #[test]
    fn a_reward_that_earlier_evaluations_lack_is_not_judged() {
        let mut history = history(&[0.1, 0.2, 0.3], &[0.9, 0.8, 0.7, 0.6]);
        assert!(hacked(&history, &[&reward("hpsv3", 1.0)], 1).is_empty());
        let namesake = RewardSection { scorer: Some("pickscore".to_owned()), ..reward("shapes", 1.0) };
        assert!(hacked(&history, &[&namesake], 2).is_empty(), "a name alone is not enough");
        history[2].rewards.pop();
        assert!(names(&history, 2).is_empty() && names(&history, 1).is_empty());
    }

    #[test]
    fn words_name_the_reward_the_versions_and_the_numbers() {
        let history = history(&[0.51, 0.55], &[0.85, 0.84, 0.8312]);
        let text = hacked(&history, &[&reward("pickscore", 0.5)], 1)[0].to_string();
        for part in ["(10, 20)", "0.5100 → 0.5500", "`pickscore`", "0.8400 → 0.8312"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
