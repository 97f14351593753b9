//! Scorers by name.

use std::path::{Path, PathBuf};

use models::weights::TensorSource;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tch::Device;

use crate::aesthetic::AestheticReward;
use crate::error::RewardError;
use crate::hpsv3::Hpsv3Reward;
use crate::jpeg::JpegReward;
use crate::remote::{FlowFactoryReward, FlowGrpoReward, GenevalReward, GrpcReward, VlmJudge};
use crate::reward::Reward;
use crate::shapes::ShapesReward;
use crate::{clipscore, hpsv2, pickscore};

/// The name of every scorer that [`build`] knows.
pub const NAMES: [&str; 15] = [
    "shapes",
    "jpeg_compressibility",
    "jpeg_incompressibility",
    "flow_grpo_server",
    "geneval",
    "deqa",
    "flow_factory",
    "unifiedreward",
    "vlm_judge",
    "grpc",
    "hpsv3",
    "pickscore",
    "clipscore",
    "aesthetic",
    "hpsv2.1",
];

/// What scorers may need beside their options.
pub struct Resources {
    /// Where networks live.
    pub device: Device,
    /// Where their tensors come from: files, or nowhere, to find out what is wrong without reading them.
    pub source: TensorSource,
    /// Finds the folder of a model: a path, or `org/name` in a cache.
    pub find_model: FindModel,
    /// Looks up a variable of the environment, where options name one that holds a secret.
    pub variable: LookUpVariable,
}

impl Resources {
    /// The CPU, models by their paths alone, and no environment.
    pub fn local() -> Self {
        let find_model = Box::new(|model: &Path| Ok(model.to_owned()));
        let variable = Box::new(|_: &str| None);
        Self { device: Device::Cpu, source: TensorSource::Files, find_model, variable }
    }
}

/// The folder that a model's name stands for.
pub type FindModel = Box<dyn Fn(&Path) -> Result<PathBuf, ModelLookupError>>;

/// The value of a variable of the environment.
pub type LookUpVariable = Box<dyn Fn(&str) -> Option<String>>;

/// Why a model's folder is not found.
pub type ModelLookupError = Box<dyn std::error::Error + Send + Sync>;

/// Builds the scorer called `name`; `options` is an object of its options, or `null` for none.
///
/// # Errors
/// If there is no such scorer (the nearest name is told), an option is unknown, of the wrong kind, or out of range, or
/// what the scorer needs is missing.
pub fn build(
    name: &str,
    options: &Value,
    resources: &Resources,
) -> Result<Box<dyn Reward + Send>, RewardError> {
    match name {
        "shapes" => Ok(Box::new(ShapesReward::new(parse_options(name, options)?)?)),
        "jpeg_compressibility" => Ok(Box::new(JpegReward::compressibility(parse_options(name, options)?)?)),
        "jpeg_incompressibility" => {
            Ok(Box::new(JpegReward::incompressibility(parse_options(name, options)?)?))
        }
        "flow_grpo_server" => Ok(Box::new(FlowGrpoReward::with_prompts(options)?)),
        "geneval" => Ok(Box::new(GenevalReward::new(options)?)),
        "deqa" => Ok(Box::new(FlowGrpoReward::deqa(options)?)),
        "flow_factory" => Ok(Box::new(FlowFactoryReward::new(options)?)),
        "unifiedreward" => Ok(Box::new(VlmJudge::unified_reward(options, resources)?)),
        "vlm_judge" => Ok(Box::new(VlmJudge::of_options(options, resources)?)),
        "grpc" => Ok(Box::new(GrpcReward::new(options)?)),
        "hpsv3" => Ok(Box::new(Hpsv3Reward::new(parse_options(name, options)?, resources)?)),
        "pickscore" => Ok(Box::new(pickscore::open(&parse_options(name, options)?, resources)?)),
        "clipscore" => Ok(Box::new(clipscore::open(&parse_options(name, options)?, resources)?)),
        "aesthetic" => Ok(Box::new(AestheticReward::open(&parse_options(name, options)?, resources)?)),
        "hpsv2.1" => Ok(Box::new(hpsv2::open(&parse_options(name, options)?, resources)?)),
        _ => Err(unknown_name(name)),
    }
}

fn unknown_name(name: &str) -> RewardError {
    let distance = |known: &&str| strsim::damerau_levenshtein(known, name);
    let nearest = NAMES.into_iter().min_by_key(distance).unwrap_or_default();
    RewardError::UnknownName { name: name.to_owned(), nearest: nearest.to_owned(), known: NAMES.join(", ") }
}

pub(crate) fn parse_options<T: DeserializeOwned>(name: &str, options: &Value) -> Result<T, RewardError> {
    let options = if options.is_null() { json!({}) } else { options.clone() };
    serde_path_to_error::deserialize(options).map_err(|error| RewardError::Options {
        name: name.to_owned(),
        key: error.path().to_string(),
        problem: error.into_inner(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str, options: &Value) -> String {
        build(name, options, &Resources::local()).err().expect("must be refused").to_string()
    }

    #[test]
    fn every_listed_name_builds_a_scorer_of_that_name() {
        for name in NAMES {
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
