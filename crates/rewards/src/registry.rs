//! Scorers by name.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::aesthetic::AestheticReward;
use crate::error::RewardError;
use crate::hpsv3::Hpsv3Reward;
use crate::jpeg::JpegReward;
use crate::ocr::OcrReward;
use crate::options::parse_options;
use crate::remote::{FlowFactoryReward, FlowGrpoReward, GenevalReward, GrpcReward, VlmJudge};
use crate::resources::Resources;
use crate::reward::Reward;
use crate::shapes::ShapesReward;
use crate::{clipscore, hpsv2, pickscore};

/// Makes a scorer of what it was given.
type Build = fn(&Given) -> Built;

type Built = Result<Box<dyn Reward + Send>, RewardError>;

/// Every scorer by its name, those in other processes last.
const SCORERS: [(&str, Build); 16] = [
    ("shapes", |given| built(ShapesReward::new(given.options()?))),
    ("jpeg_compressibility", |given| built(JpegReward::compressibility(given.options()?))),
    ("jpeg_incompressibility", |given| built(JpegReward::incompressibility(given.options()?))),
    ("pickscore", |given| built(pickscore::open(&given.options()?, given.resources))),
    ("clipscore", |given| built(clipscore::open(&given.options()?, given.resources))),
    ("aesthetic", |given| built(AestheticReward::open(&given.options()?, given.resources))),
    ("hpsv2.1", |given| built(hpsv2::open(&given.options()?, given.resources))),
    ("hpsv3", |given| built(Hpsv3Reward::new(given.options()?, given.resources))),
    ("ocr", |given| built(OcrReward::new(given.options()?))),
    ("flow_grpo_server", |given| built(FlowGrpoReward::with_prompts(given.raw, given.resources))),
    ("geneval", |given| built(GenevalReward::new(given.raw, given.resources))),
    ("deqa", |given| built(FlowGrpoReward::deqa(given.raw, given.resources))),
    ("flow_factory", |given| built(FlowFactoryReward::new(given.raw, given.resources))),
    ("unifiedreward", |given| built(VlmJudge::unified_reward(given.raw, given.resources))),
    ("vlm_judge", |given| built(VlmJudge::of_options(given.raw, given.resources))),
    ("grpc", |given| built(GrpcReward::new(given.raw, given.resources))),
];

/// What a scorer is made of.
struct Given<'a> {
    name: &'a str,
    /// Its options as they came.
    raw: &'a Value,
    resources: &'a Resources,
}

impl Given<'_> {
    fn options<T: DeserializeOwned>(&self) -> Result<T, RewardError> {
        parse_options(self.name, self.raw)
    }
}

fn built<R: Reward + Send + 'static>(reward: Result<R, RewardError>) -> Built {
    Ok(Box::new(reward?))
}

/// The names of all scorers.
pub fn names() -> [&'static str; SCORERS.len()] {
    SCORERS.map(|(name, _)| name)
}

/// Builds the scorer called `name`; `options` is an object of its options, or `null` for none.
///
/// # Errors
/// If there is no such scorer (the nearest name is told), an option is unknown, of the wrong kind, or out of range, or
/// what the scorer needs is missing.
pub fn build(name: &str, options: &Value, resources: &Resources) -> Built {
    let known = SCORERS.iter().find(|(known, _)| *known == name);
    let (_, build) = known.ok_or_else(|| unknown_name(name))?;
    build(&Given { name, raw: options, resources })
}

fn unknown_name(name: &str) -> RewardError {
    let nearest = config::nearest(name, names()).unwrap_or_default();
    RewardError::UnknownName { name: name.to_owned(), nearest, known: names().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message(name: &str, options: &Value) -> String {
        build(name, options, &Resources::local()).err().expect("must be refused").to_string()
    }

    #[test]
    fn every_listed_name_builds_a_scorer_of_that_name() {
        for name in names() {
            let options = match name {
                "flow_grpo_server" | "flow_factory" | "grpc" => json!({"url": "http://127.0.0.1:1"}),
                "vlm_judge" => json!({
                    "url": "http://127.0.0.1:1", "model": "m", "question": "Is it {prompt}?", "pattern": "([01])"
                }),
                _ => Value::Null,
            };
            match build(name, &options, &Resources::local()) {
                Ok(scorer) => assert_eq!(scorer.name(), name),
                // Its network is not in the folder of this test.
                Err(error) => {
                    assert!(matches!(error, RewardError::Model { name: found, .. } if found == name))
                }
            }
        }
    }

    #[test]
    fn unknown_name_tells_the_nearest() {
        assert!(message("shape", &Value::Null).starts_with("unknown reward `shape`; did you mean `shapes`?"));
        assert!(
            message("jpg_incompresibility", &Value::Null).contains("did you mean `jpeg_incompressibility`?")
        );
    }

    #[test]
    fn wrong_options_are_told_by_name() {
        let unknown = message("shapes", &json!({"treshold": 0.5}));
        assert!(unknown.contains("unknown field `treshold`") && unknown.contains("`threshold`"), "{unknown}");
        let kind = message("jpeg_compressibility", &json!({"quality": "high"}));
        assert!(kind.starts_with("option `quality` of reward `jpeg_compressibility`"), "{kind}");
        let range = message("jpeg_compressibility", &json!({"quality": 101}));
        assert!(range.contains("is 101; use 1 to 100"), "{range}");
        let range = message("shapes", &json!({"counting_threshold": 1.5}));
        assert!(range.contains("`counting_threshold` of reward `shapes` is 1.5"), "{range}");
    }
}
