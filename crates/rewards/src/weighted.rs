//! A weighted raw sum of rewards.

use std::collections::BTreeMap;

use scenes::RgbImage;

use crate::error::RewardError;
use crate::reward::{PromptRecord, Reward, Score, check_finite};

/// The sum over its parts of weight times raw score.
///
/// The extras hold each part's raw score under the part's name, and the part's own extras under `name/extra`.
pub struct WeightedReward {
    name: String,
    parts: Vec<WeightedPart>,
}

struct WeightedPart {
    reward: Box<dyn Reward + Send>,
    weight: f32,
}

impl WeightedReward {
    /// Takes scorers with their weights.
    ///
    /// # Errors
    /// If there are none.
    pub fn new(parts: Vec<(Box<dyn Reward + Send>, f32)>) -> Result<Self, RewardError> {
        if parts.is_empty() {
            return Err(RewardError::NoParts);
        }
        let names: Vec<&str> = parts.iter().map(|(reward, _)| reward.name()).collect();
        let name = names.join("+");
        let parts = parts.into_iter().map(|(reward, weight)| WeightedPart { reward, weight });
        Ok(Self { name, parts: parts.collect() })
    }
}

impl Reward for WeightedReward {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, images: &[RgbImage], prompts: &[PromptRecord]) -> Result<Vec<Score>, RewardError> {
        let mut sums = vec![Score { value: 0.0, extras: BTreeMap::new() }; images.len()];
        for WeightedPart { reward, weight } in &self.parts {
            for (sum, part) in sums.iter_mut().zip(reward.score(images, prompts)?) {
                sum.value += weight * part.value;
                sum.extras.insert(reward.name().to_owned(), part.value);
                let named =
                    part.extras.into_iter().map(|(key, value)| (format!("{}/{key}", reward.name()), value));
                sum.extras.extend(named);
            }
        }
        for (index, sum) in sums.iter().enumerate() {
            check_finite(&self.name, index, sum)?;
        }
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Resources, build};
    use serde_json::json;

    fn parts(names: [(&str, f32); 2]) -> Vec<(Box<dyn Reward + Send>, f32)> {
        names
            .map(|(name, weight)| (build(name, &json!({}), &Resources::local()).expect("known name"), weight))
            .into()
    }

    #[test]
    fn sum_is_weighted_and_keeps_each_part() {
        let reward =
            WeightedReward::new(parts([("shapes", 1.0), ("jpeg_incompressibility", -0.5)])).expect("parts");
        let spec = &scenes::all_prompts()[0];
        let metadata = serde_json::to_value(spec).expect("plain data");
        let image = scenes::Scene::sample(spec, &mut || 0.3, 16).expect("one object").render();
        let record = PromptRecord { prompt: spec.prompt.clone(), metadata };
        let score = reward.score(&[image], &[record]).expect("good input").remove(0);
        let (shapes, jpeg) = (score.extras["shapes"], score.extras["jpeg_incompressibility"]);
        assert_eq!(shapes, 1.0);
        assert!(jpeg > 0.3);
        assert_eq!(score.value, shapes - 0.5 * jpeg);
        assert_eq!(score.extras["shapes/strict_accuracy"], 1.0);
        assert_eq!(reward.name(), "shapes+jpeg_incompressibility");
    }

    #[test]
    fn infinite_weight_is_told_with_its_image() {
        let image = RgbImage::filled(8, 8, [9; 3]);
        let record = PromptRecord { prompt: "x".to_owned(), metadata: serde_json::Value::Null };
        let names = [("jpeg_compressibility", f32::INFINITY), ("jpeg_incompressibility", f32::INFINITY)];
        let result = WeightedReward::new(parts(names)).expect("parts").score(&[image], &[record]);
        assert!(matches!(result, Err(RewardError::NotFinite { index: 0, .. })));
    }

    #[test]
    fn sum_without_parts_is_refused() {
        assert!(matches!(WeightedReward::new(Vec::new()), Err(RewardError::NoParts)));
    }
}
