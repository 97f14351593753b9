//! `rollout-worker inspect-rewards`: whether rewards could be built here, without reading a weight or asking a server.

use config::{RewardInspection, RewardSection};
use models::weights::{Inventory, TensorSource};
use rewards::Resources;
use service::Hub;
use tch::Device;

use crate::settings;

/// Looks at a reward; `key` is its place in the config.
pub fn run(key: &str, section: &RewardSection, hub: &Hub) -> RewardInspection {
    let inventory = Inventory::default();
    let source = TensorSource::Headers(inventory.clone());
    let resources = Resources { source, ..settings::reward_resources(Device::Cpu, hub.clone()) };
    let built = rewards::build(section.scorer(), &section.options_as_json(), &resources);
    RewardInspection {
        key: key.to_owned(),
        name: section.name.clone(),
        bytes: inventory.components().iter().map(|(_, size)| size.bytes).sum(),
        problem: built.err().map(|error| format!("{:#}", anyhow::Error::from(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspect(scorer: &str, settings: &[&str]) -> RewardInspection {
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let section = config::reward_from_settings(scorer, &settings).expect("well-formed");
        run("rewards[0]", &section, &Hub::at("/nowhere"))
    }

    #[test]
    fn a_reward_without_weights_takes_nothing() {
        let expected = RewardInspection {
            key: "rewards[0]".to_owned(),
            name: "jpeg_compressibility".to_owned(),
            bytes: 0,
            problem: None,
        };
        assert_eq!(inspect("jpeg_compressibility", &["quality=80"]), expected);
    }

    #[test]
    fn what_is_wrong_with_an_option_is_told() {
        let problem = inspect("jpeg_compressibility", &["qualty=80"]).problem.expect("misspelt");
        assert!(problem.contains("unknown field `qualty`, expected `quality`"), "{problem}");
    }
}
