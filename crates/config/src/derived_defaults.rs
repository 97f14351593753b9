//! Defaults that follow other keys of the same config, where a default of their own would be wrong in silence.

use crate::{AdapterMethod, Algorithm, RatioNormalization, StepRule, StepWeight};
use serde::Deserialize;
use toml::{Table, Value};

/// The step weight that belongs to a way of sampling and a ratio.
///
/// The weight `S` takes the factor `1/S` out of the gradient of a Flow-SDE step's log-probability. That of a CPS step has
/// no such factor, and GRPO-Guard's ratio none either, which its authors weigh by the inverse of the step's length.
/// Flow-GRPO weighs all steps alike.
pub fn default_step_weight(
    algorithm: Algorithm,
    step_rule: StepRule,
    ratio_normalization: RatioNormalization,
) -> StepWeight {
    match (ratio_normalization, algorithm, step_rule) {
        (RatioNormalization::Guard, _, _) => StepWeight::InverseLength,
        (RatioNormalization::None, Algorithm::TempflowGrpo, StepRule::FlowSde) => StepWeight::Noise,
        (RatioNormalization::None, _, _) => StepWeight::None,
    }
}

/// The clip range that belongs to a way of sampling and a ratio, as its authors choose it.
///
/// A log ratio is as large as its step is loud: that of GRPO-Guard is the plain one times about `S`, and a CPS step's has no
/// `1/S` in it. A range that fits a Flow-SDE step never clips either of them.
pub fn default_clip_range(step_rule: StepRule, ratio_normalization: RatioNormalization) -> f64 {
    match (ratio_normalization, step_rule) {
        (RatioNormalization::Guard, _) => 2e-6,
        (RatioNormalization::None, StepRule::Cps) => 1e-5,
        (RatioNormalization::None, StepRule::FlowSde) => 1e-4,
    }
}

/// Shards of the gradient of an adapter: enough for the ranks of one machine, and few enough to hold several.
const SHARDS_OF_ADAPTER: usize = 8;

/// How many shards a gradient has that `learners` ranks share: of a whole network no more than they need.
pub fn default_gradient_shards(method: AdapterMethod, learners: usize) -> usize {
    match method {
        AdapterMethod::Lora => SHARDS_OF_ADAPTER,
        AdapterMethod::Full => learners.checked_next_power_of_two().unwrap_or(usize::MAX),
    }
}

/// A default that follows other keys.
pub(crate) struct DerivedDefault {
    pub section: &'static str,
    pub key: &'static str,
    pub value: Value,
}

/// The defaults that follow other keys of these sections. A key that is not readable decides nothing; it is reported
/// elsewhere.
pub(crate) fn derived_defaults(sections: &Table) -> Vec<DerivedDefault> {
    let stated = |section: &str, key: &str| sections.get(section)?.get(key).cloned();
    let weight = || {
        let weight = default_step_weight(
            read(stated("sampling", "algorithm")?)?,
            read(stated("sampling", "step_rule")?)?,
            read(stated("training", "ratio_normalization")?)?,
        );
        Some(DerivedDefault { section: "training", key: "step_weight", value: weight.to_string().into() })
    };
    let clip_range = || {
        let range = default_clip_range(
            read(stated("sampling", "step_rule")?)?,
            read(stated("training", "ratio_normalization")?)?,
        );
        Some(DerivedDefault { section: "training", key: "clip_range", value: range.into() })
    };
    let guidance = || {
        let value = stated("sampling", "guidance_scale")?;
        Some(DerivedDefault { section: "evaluation", key: "guidance_scale", value })
    };
    let shards = || {
        let method = read(stated("adapter", "method")?)?;
        let shards = default_gradient_shards(method, read(stated("resources", "learners")?)?);
        let value = i64::try_from(shards).ok()?.into();
        Some(DerivedDefault { section: "training", key: "gradient_shards", value })
    };
    [weight(), clip_range(), guidance(), shards()].into_iter().flatten().collect()
}

fn read<'a, T: Deserialize<'a>>(value: Value) -> Option<T> {
    value.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::default_gradient_shards;
    use crate::{AdapterMethod, RunConfig, StepWeight, commented, preset};

    /// The shipped run with lines in place of what it says about sampling's rule and its weights.
    fn with(settings: &[&str]) -> RunConfig {
        let text = preset("tempflow-tiny-cpu").expect("a preset").text;
        let text: String = text
            .lines()
            .filter(|line| {
                !["step_weight", "step_rule", "clip_range ", "gradient_shards"]
                    .iter()
                    .any(|key| line.starts_with(key))
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        RunConfig::from_toml_with(&text, &settings).expect("valid")
    }

    const FLOW_GRPO: [&str; 3] =
        ["sampling.algorithm=flow-grpo", "sampling.branches_per_seed=1", "training.advantage_group=prompt"];

    #[test]
    fn the_step_weight_follows_algorithm_step_rule_and_ratio() {
        let weight = |settings: &[&str]| with(settings).training.step_weight;
        let flow_grpo = |further: &'static str| [&FLOW_GRPO[..], &[further]].concat();
        assert_eq!(weight(&[]), StepWeight::Noise);
        assert_eq!(weight(&["sampling.step_rule=cps"]), StepWeight::None);
        assert_eq!(weight(&FLOW_GRPO), StepWeight::None);
        assert_eq!(weight(&flow_grpo("sampling.step_rule=cps")), StepWeight::None);
        for settings in [vec![], FLOW_GRPO.to_vec(), vec!["sampling.step_rule=cps"]] {
            let guarded = [&settings[..], &["training.ratio_normalization=guard"]].concat();
            assert_eq!(weight(&guarded), StepWeight::InverseLength, "{settings:?}");
            let asked = [&settings[..], &["training.step_weight=noise"]].concat();
            assert_eq!(weight(&asked), StepWeight::Noise, "{settings:?}");
        }
    }

    #[test]
    fn the_clip_range_follows_step_rule_and_ratio() {
        let range = |settings: &[&str]| with(settings).training.clip_range;
        assert_eq!(range(&[]), 1e-4);
        assert_eq!(range(&["sampling.step_rule=cps"]), 1e-5);
        assert_eq!(range(&["training.ratio_normalization=guard"]), 2e-6);
        assert_eq!(range(&["sampling.step_rule=cps", "training.ratio_normalization=guard"]), 2e-6);
        assert_eq!(range(&["training.ratio_normalization=guard", "training.clip_range=1e-5"]), 1e-5);
    }

    #[test]
    fn shards_follow_what_is_trained_and_by_how_many() {
        let shards = |settings: &[&str]| with(settings).training.gradient_shards;
        assert_eq!(shards(&["resources.learners=3"]), 8);
        assert_eq!(shards(&["resources.learners=3", "training.gradient_shards=16"]), 16);
        let of_full = |learners| default_gradient_shards(AdapterMethod::Full, learners);
        assert_eq!([1, 2, 3, 4, 5].map(of_full), [1, 2, 4, 4, 8]);
        assert_eq!(of_full(usize::MAX), usize::MAX, "which is refused as no power of two");
    }

    #[test]
    fn held_out_images_are_guided_as_training_images_unless_said_otherwise() {
        let guidance = |settings: &[&str]| with(settings).evaluation.guidance_scale;
        assert_eq!(guidance(&[]), 1.0);
        assert_eq!(guidance(&["sampling.guidance_scale=3"]), 3.0);
        assert_eq!(guidance(&["sampling.guidance_scale=3", "evaluation.guidance_scale=1"]), 1.0);
    }

    #[test]
    fn what_is_written_is_read_back_whatever_follows_from_what() {
        for settings in [
            vec![],
            vec!["training.step_weight=none"],
            vec!["sampling.step_rule=cps"],
            vec!["sampling.step_rule=cps", "training.step_weight=noise"],
            vec!["sampling.guidance_scale=4.5", "evaluation.guidance_scale=1.0"],
            vec!["sampling.guidance_scale=1.0", "evaluation.guidance_scale=4.5"],
            vec!["training.ratio_normalization=guard", "training.step_weight=noise"],
            vec!["sampling.step_rule=cps", "training.clip_range=1e-4"],
        ] {
            let config = with(&settings);
            let text = commented::commented_toml(&config, "", &[]);
            assert_eq!(RunConfig::from_toml(&text).expect("valid"), config, "{text}");
            assert_eq!(RunConfig::from_toml(&config.to_toml()).expect("valid"), config);
        }
    }

    #[test]
    fn an_unreadable_key_is_reported_once_and_by_its_name() {
        let text = preset("tempflow-tiny-cpu").expect("a preset").text;
        let settings = ["sampling.step_rule=ddim".to_owned(), "sampling.guidance_scale=strong".to_owned()];
        let problems = RunConfig::from_toml_with(&text, &settings).expect_err("two unreadable keys").0;
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["sampling.guidance_scale", "sampling.step_rule"], "{problems:?}");
    }
}
