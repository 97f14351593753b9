//! `rollout-worker inspect-rewards`: whether rewards could be built here, without reading a weight or asking a server.

use config::{RewardInquiry, RewardInspection, RewardSection};
use models::weights::{Inventory, TensorSource};
use rewards::Resources;
use service::Hub;
use tch::Device;

use crate::settings;

/// Looks at every reward.
pub fn run(inquiry: &RewardInquiry, hub: &Hub) -> Vec<RewardInspection> {
    let device = if inquiry.device == "cuda" { Device::Cuda(0) } else { Device::Cpu };
    inquiry.rewards.iter().map(|(key, section)| inspect(key, section, device, hub)).collect()
}

fn inspect(key: &str, section: &RewardSection, device: Device, hub: &Hub) -> RewardInspection {
    let inventory = Inventory::default();
    let source = TensorSource::Headers(inventory.clone());
    let resources = Resources { source, ..settings::reward_resources(device, hub.clone()) };
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

    fn look(device: &str, scorer: &str, settings: &[&str]) -> RewardInspection {
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let section = config::reward_from_settings(scorer, &settings).expect("well-formed");
        let inquiry =
            RewardInquiry { device: device.to_owned(), rewards: vec![("rewards[0]".to_owned(), section)] };
        run(&inquiry, &Hub::at("/nowhere")).remove(0)
    }

    #[test]
    fn a_reward_without_weights_takes_nothing() {
        let expected = RewardInspection {
            key: "rewards[0]".to_owned(),
            name: "jpeg_compressibility".to_owned(),
            bytes: 0,
            problem: None,
        };
        assert_eq!(look("cpu", "jpeg_compressibility", &["quality=80"]), expected);
    }

    #[test]
    fn a_network_is_counted_in_what_it_would_be_on_a_gpu_that_is_not_here() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");
        let model = |name: &str| format!("model={golden}/{name}");
        let bytes = |device: &str, scorer: &str, folder: &str| {
            let inspection = look(device, scorer, &[&model(folder)]);
            assert_eq!(inspection.problem, None);
            inspection.bytes
        };
        let (whole, half) = (bytes("cpu", "hpsv3", "hpsv3"), bytes("cuda", "hpsv3", "hpsv3"));
        // Its head stays in float32.
        assert!(whole > 0 && (whole / 2..whole / 2 + whole / 20).contains(&half), "{half} of {whole}");
        assert_eq!(bytes("cuda", "clipscore", "pickscore"), bytes("cpu", "clipscore", "pickscore"));
    }

    #[test]
    fn what_is_wrong_with_an_option_is_told() {
        let problem = look("cpu", "jpeg_compressibility", &["qualty=80"]).problem.expect("misspelt");
        assert!(problem.contains("unknown field `qualty`, expected `quality`"), "{problem}");
    }
}
