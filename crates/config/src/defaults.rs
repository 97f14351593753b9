//! The built-in defaults of a run config.

use crate::AdapterSection;
use toml::Table;

/// Keys of the lists of rewards.
pub(crate) const REWARD_LISTS: [&str; 2] = ["rewards", "evaluation_rewards"];

/// The defaults as a table, section by section.
pub(crate) fn defaults() -> Table {
    let text = include_str!("defaults.toml");
    text.parse().expect("the built-in defaults are valid TOML; else this is a bug")
}

/// The adapter of a run config that says nothing about it.
pub(crate) fn default_adapter() -> AdapterSection {
    let mut defaults = defaults();
    let adapter = defaults.remove("adapter").and_then(|adapter| adapter.try_into().ok());
    adapter.expect("the built-in defaults have an adapter; else this is a bug")
}
