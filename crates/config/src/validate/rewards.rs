//! The scorers of a run, and what they take.

use super::{Checks, MOST};
use crate::image_sizes::ImageSizes;
use crate::spelling::meant;
use crate::{ConfigProblem, REWARD_NAMES, RewardSection, RunConfig, SamplingSection};

/// Options of scorers that memory is taken by, the most that they may be, and why.
const MOST_OF_OPTIONS: [(&str, i64, &str); 2] = [
    ("batch_size", MOST as i64, "an iteration has no more images"),
    ("max_reply_bytes", 1 << 32, "a reply is in memory whole"),
];

/// Bytes of a reward's name.
const LONGEST_REWARD_NAME: usize = 64;

pub(super) fn check_rewards(list: &str, rewards: &[RewardSection], checks: &mut Checks) {
    for (position, reward) in rewards.iter().enumerate() {
        checks.require(
            reward.weight.is_finite() && reward.weight != 0.0,
            &format!("{list}[{position}].weight"),
            || format!("is {}; it must be finite and not 0", reward.weight),
        );
        let name = format!("{list}[{position}].name");
        checks.require(!reward.name.is_empty(), &name, || "is empty; name a scorer".to_owned());
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_name = reward.name.len() <= LONGEST_REWARD_NAME && reward.name.chars().all(is_plain);
        checks.require(is_name, &name, || {
            format!(
                "is `{}`; use at most {LONGEST_REWARD_NAME} letters, digits, `-`, `_` and `.`, since it names tensors and \
                 curves",
                reward.name
            )
        });
        let is_repeated = rewards[..position].iter().any(|other| other.name == reward.name);
        checks.require(!is_repeated, &name, || {
            format!(
                "`{}` is given twice; add the weights, or give one another name and the scorer's as `scorer`",
                reward.name
            )
        });
    }
}

/// What of a scorer's images and options cannot work, whatever else it makes of them.
pub(super) fn check_scorer(
    place: &str,
    reward: &RewardSection,
    sampling: &SamplingSection,
    checks: &mut Checks,
) {
    let sizes = ImageSizes::of_scorer(reward.scorer());
    let side = |pixels: i64| usize::try_from(pixels).unwrap_or_default();
    let (width, height) = (sampling.width, sampling.height);
    // Sides that no image has are reported as such.
    checks.require(
        width < 1 || height < 1 || sizes.has((side(width), side(height))),
        &format!("{place}.name"),
        || {
            format!(
                "`{}` takes {sizes}, and `sampling.width` and `sampling.height` are {width} and {height}; change these, or \
                 take another scorer",
                reward.scorer()
            )
        },
    );
    for (option, most, reason) in MOST_OF_OPTIONS {
        let value = reward.options.get(option).and_then(toml::Value::as_integer).unwrap_or_default();
        checks.require(value <= most, &format!("{place}.{option}"), || {
            format!("is {value}; it must be at most {most}, since {reason}")
        });
    }
}

/// The rewards that no scorer of this build is called by.
pub(crate) fn unavailable_rewards(config: &RunConfig) -> Vec<ConfigProblem> {
    let problem = |(place, reward): (String, &RewardSection)| {
        let key = if reward.scorer.is_some() { "scorer" } else { "name" };
        let is_lacking = !REWARD_NAMES.contains(&reward.scorer());
        is_lacking.then(|| ConfigProblem::new(format!("{place}.{key}"), unavailable_reward(reward.scorer())))
    };
    config.all_rewards().filter_map(problem).collect()
}

pub(super) fn unavailable_reward(name: &str) -> String {
    let hint = match meant(name, REWARD_NAMES) {
        Some(known) => format!("; did you mean `{known}`?"),
        None => String::new(),
    };
    format!("reward `{name}` is not available in this build{hint}; available: {}", REWARD_NAMES.join(", "))
}
