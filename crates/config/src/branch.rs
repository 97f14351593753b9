//! The config of a run that branches off another one.

use crate::RunConfig;
use crate::commented::commented_toml;

/// Keys that a branch is likely to change, or that make it one, written even where they are at their defaults.
const STATED: [&str; 7] = [
    "run.seed",
    "run.iterations",
    "run.max_hours",
    "adapter.start_from",
    "training.learning_rate",
    "training.kl_beta",
    "resources.max_workers",
];

/// The config as a file that a person goes on editing, below a header without `#`.
pub fn branch_text(config: &RunConfig, header: &str) -> String {
    commented_toml(config, header, &STATED.map(|key| (key, String::new())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    #[test]
    fn a_branch_states_where_it_starts_from_and_means_the_same() {
        let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
        config.adapter.start_from = "/runs/a-adapter/peft".into();
        let text = branch_text(&config, "Branches off a.");
        assert!(
            text.starts_with("# Branches off a.\n") && text.contains("start_from = \"/runs/a-adapter/peft\""),
            "{text}"
        );
        assert!(text.contains("kl_beta = 0.0") && text.contains("max_hours = 0.0"), "{text}");
        assert_eq!(RunConfig::from_toml(&text).expect("valid"), config);
    }
}
