//! Several rewards as one: the weighted sum of raw scores.

use std::collections::BTreeMap;

use crate::error::RewardError;
use crate::reward::{Score, check_finite};

/// What one reward said of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardPart {
    /// What metrics call the reward.
    pub name: String,
    /// Factor of its raw scores.
    pub weight: f32,
    /// Of every image.
    pub scores: Vec<Score>,
}

/// Adds weight times raw score over the parts, in their order, for each image.
///
/// The extras hold each part's raw score under the part's name, and the part's own extras under `name/extra`.
///
/// # Errors
/// If there are no parts, they differ in length, or a sum is not finite.
pub fn weighted_sum(parts: &[RewardPart]) -> Result<Vec<Score>, RewardError> {
    let n_images = parts.first().ok_or(RewardError::NoParts)?.scores.len();
    let mut sums = vec![Score { value: 0.0, extras: BTreeMap::new() }; n_images];
    for RewardPart { name, weight, scores } in parts {
        if scores.len() != n_images {
            return Err(RewardError::Lengths { images: n_images, prompts: scores.len() });
        }
        for (sum, part) in sums.iter_mut().zip(scores) {
            sum.value += weight * part.value;
            sum.extras.insert(name.clone(), part.value);
            sum.extras.extend(part.extras.iter().map(|(key, value)| (format!("{name}/{key}"), *value)));
        }
    }
    for (index, sum) in sums.iter().enumerate() {
        check_finite("the weighted sum", index, sum)?;
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, weight: f32, values: &[f32]) -> RewardPart {
        let scores = values.iter().map(|value| Score::from(*value)).collect();
        RewardPart { name: name.to_owned(), weight, scores }
    }

    #[test]
    fn sum_is_weighted_and_keeps_each_part() {
        let mut strict = part("shapes", 1.0, &[0.75, 1.0]);
        strict.scores[1].extras.insert("strict_accuracy".to_owned(), 1.0);
        let sums = weighted_sum(&[strict, part("jpeg", -0.5, &[0.5, 3.0])]).expect("finite");
        assert_eq!(sums.iter().map(|sum| sum.value).collect::<Vec<_>>(), [0.5, -0.5]);
        assert_eq!((sums[1].extras["shapes"], sums[1].extras["jpeg"]), (1.0, 3.0));
        assert_eq!(sums[1].extras["shapes/strict_accuracy"], 1.0);
        assert!(!sums[0].extras.contains_key("shapes/strict_accuracy"));
    }

    #[test]
    fn sum_that_overflows_is_told_with_its_image() {
        let result = weighted_sum(&[part("a", f32::MAX, &[1.0, 2.0])]);
        assert!(matches!(result, Err(RewardError::NotFinite { index: 1, .. })), "{result:?}");
    }

    #[test]
    fn nothing_to_sum_and_parts_of_different_length_are_refused() {
        assert!(matches!(weighted_sum(&[]), Err(RewardError::NoParts)));
        let result = weighted_sum(&[part("a", 1.0, &[1.0]), part("b", 1.0, &[])]);
        assert!(matches!(result, Err(RewardError::Lengths { .. })));
    }
}
