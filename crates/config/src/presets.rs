//! Ready run configs, kept as commented TOML in `deploy/configs/`; `coordinator init` writes one out.

use crate::RunConfig;

/// A ready run config.
#[derive(Clone, Debug)]
pub struct Preset {
    /// Name for `coordinator init --preset`.
    pub name: &'static str,
    /// The commented file.
    pub text: &'static str,
    /// What it says.
    pub config: RunConfig,
}

const TEXTS: [(&str, &str); 2] = [
    ("tempflow-tiny-cpu", include_str!("../../../deploy/configs/tempflow-tiny-cpu.toml")),
    ("flow-grpo-tiny-cpu", include_str!("../../../deploy/configs/flow-grpo-tiny-cpu.toml")),
];

/// Names of all presets, the default first.
pub fn preset_names() -> Vec<&'static str> {
    TEXTS.iter().map(|(name, _)| *name).collect()
}

/// The preset of that name.
///
/// # Panics
/// If a shipped preset is invalid, which a test rules out.
pub fn preset(name: &str) -> Option<Preset> {
    let (name, text) = TEXTS.into_iter().find(|(known, _)| *known == name)?;
    let config =
        RunConfig::from_toml(text).unwrap_or_else(|errors| panic!("preset {name} is invalid: {errors}"));
    Some(Preset { name, text, config })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid() {
        for name in preset_names() {
            assert_eq!(preset(name).expect("listed").name, name);
        }
        assert!(preset("unheard-of").is_none());
    }
}
