//! Ready run configs for `coordinator init`: the shipped ones of `deploy/configs/`, one for every published run that this
//! trainer can repeat, and some of those for the cards that people have.

pub(crate) mod base_model;
mod for_cards;
mod published;
mod recipe;

use crate::{Algorithm, RunConfig};
use for_cards::FOR_CARDS;
use published::PUBLISHED;

/// A ready run config.
#[derive(Clone, Debug)]
pub struct Preset {
    /// Name for `coordinator init --preset`.
    pub name: &'static str,
    /// Where its numbers come from.
    pub source: String,
    /// The commented file.
    pub text: String,
    /// What it says. A published preset may name a reward that this build lacks, which `validate` then tells.
    pub config: RunConfig,
}

const SHIPPED: [(&str, &str); 2] = [
    ("tempflow-tiny-cpu", include_str!("../../../deploy/configs/tempflow-tiny-cpu.toml")),
    ("flow-grpo-tiny-cpu", include_str!("../../../deploy/configs/flow-grpo-tiny-cpu.toml")),
];

/// Names of all presets, the default first.
pub fn preset_names() -> Vec<&'static str> {
    let shipped = SHIPPED.iter().map(|(name, _)| *name);
    let published = PUBLISHED.iter().map(|recipe| recipe.name);
    shipped.chain(published).chain(FOR_CARDS.iter().map(|preset| preset.name)).collect()
}

/// The preset of that name.
///
/// # Panics
/// If a shipped preset is invalid, which a test rules out.
pub fn preset(name: &str) -> Option<Preset> {
    if let Some(recipe) = PUBLISHED.iter().find(|recipe| recipe.name == name) {
        return Some(Preset {
            name: recipe.name,
            source: recipe.source.to_owned(),
            text: recipe.text(),
            config: recipe.config(),
        });
    }
    if let Some(found) = FOR_CARDS.iter().find(|found| found.name == name) {
        return Some(Preset {
            name: found.name,
            source: found.source(),
            text: found.text(),
            config: found.config(),
        });
    }
    let (name, text) = SHIPPED.into_iter().find(|(known, _)| *known == name)?;
    let config =
        RunConfig::from_toml(text).unwrap_or_else(|errors| panic!("preset {name} is invalid: {errors}"));
    Some(Preset { name, source: format!("deploy/configs/{name}.toml"), text: text.to_owned(), config })
}

/// All presets as a table: name, model, algorithm, reward, source.
pub fn preset_list() -> String {
    let mut rows = vec![["NAME", "MODEL", "ALGORITHM", "REWARD", "SOURCE"].map(str::to_owned)];
    rows.extend(preset_names().into_iter().filter_map(preset).map(|preset| {
        let config = &preset.config;
        let algorithm = match config.sampling.algorithm {
            Algorithm::TempflowGrpo => "tempflow-grpo",
            Algorithm::FlowGrpo => "flow-grpo",
        };
        let rewards: Vec<&str> = config.rewards.iter().map(|reward| reward.name.as_str()).collect();
        let model = config.model.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        [preset.name.to_owned(), model, algorithm.to_owned(), rewards.join("+"), preset.source]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4].map(width);
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{REWARD_NAMES, parse, validate};

    #[test]
    fn every_preset_is_valid_but_for_rewards_that_this_build_lacks() {
        for name in preset_names() {
            let preset = preset(name).expect("listed");
            assert_eq!(preset.name, name);
            let lacking = |reward: &&crate::RewardSection| !REWARD_NAMES.contains(&reward.scorer());
            let n_lacking = preset.config.rewards.iter().filter(lacking).count();
            let problems = validate(&preset.config);
            assert_eq!(problems.len(), n_lacking, "{name}: {problems:?}");
            for problem in problems {
                assert!(problem.message.contains("is not available in this build"), "{name}: {problem:?}");
            }
        }
        assert!(preset("unheard-of").is_none());
    }

    #[test]
    fn the_file_says_what_the_config_says() {
        for preset in preset_names().into_iter().filter_map(preset) {
            let (config, problems) = parse::read(&preset.text, &[]);
            assert_eq!(config.as_ref(), Some(&preset.config), "{}", preset.name);
            assert!(problems.is_empty(), "{}: {problems:?}", preset.name);
        }
    }

    #[test]
    fn the_list_has_a_line_for_every_preset() {
        let list = preset_list();
        assert_eq!(list.lines().count(), preset_names().len() + 1);
        let line = list.lines().find(|line| line.starts_with("dgx-geneval-sd3-pr ")).expect("listed");
        for part in ["stable-diffusion-3.5-medium", "tempflow-grpo", "geneval", "geneval_sd3_pr"] {
            assert!(line.contains(part), "{line}");
        }
    }
}
