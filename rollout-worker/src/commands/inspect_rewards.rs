//! `rollout-worker inspect-rewards`: whether rewards could be built here, without reading a weight, and whether there is
//! somebody at the addresses of servers, without asking for a score.

use std::time::Duration;

use config::{RewardInquiry, RewardInspection, RewardSection};
use models::weights::{Inventory, TensorSource};
use protocol::with_causes;
use rewards::remote::RemoteError;
use rewards::{Resources, Reward, RewardError, RunIdentity};
use service::Hub;
use tch::Device;

use crate::scoring::reward_resources::reward_resources;

/// How long a server is waited for.
const KNOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// Looks at every reward.
pub fn run(inquiry: &RewardInquiry, hub: &Hub) -> Vec<RewardInspection> {
    let device = run_setup::tensor_device(inquiry.device);
    let run = if inquiry.is_secure { RunIdentity::ToBeCertified } else { RunIdentity::None };
    let looked = inquiry.rewards.iter().map(|(key, section)| {
        let (mut inspection, reward) = inspect(key, section, device, (hub.clone(), run.clone()));
        if let (Some(reward), true) = (reward, inquiry.knock) {
            inspection.problem = knock(&*reward).err();
            inspection.is_of_host = inspection.problem.is_some();
        }
        inspection
    });
    looked.collect()
}

/// What a reward is, and the reward itself where it can be built.
fn inspect(
    key: &str,
    section: &RewardSection,
    device: Device,
    (hub, run): (Hub, RunIdentity),
) -> (RewardInspection, Option<Box<dyn Reward + Send>>) {
    let inventory = Inventory::default();
    let source = TensorSource::Headers(inventory.clone());
    let resources = Resources { source, ..reward_resources(device, hub, run) };
    let built = rewards::build(section.scorer(), &section.options_as_json(), &resources);
    let mut inspection = RewardInspection {
        key: key.to_owned(),
        name: section.name.clone(),
        bytes: inventory.components().iter().map(|(_, size)| size.bytes).sum(),
        problem: None,
        is_of_host: false,
    };
    match built {
        Ok(reward) => (inspection, Some(reward)),
        Err(error) => {
            inspection.problem = Some(with_causes(&error));
            inspection.is_of_host = error.is_of_host();
            (inspection, None)
        }
    }
}

/// Whether the server of a reward is there and is who it should be.
fn knock(reward: &dyn Reward) -> Result<(), String> {
    reward.greet_server(KNOCK_TIMEOUT).map_err(|error| match error {
        RewardError::Remote { url, problem, .. } => match *problem {
            RemoteError::Unreachable { cause } => {
                format!("nobody answers at {url} ({cause}); start the server, or mend `url`")
            }
            problem => format!("at {url}: {problem}"),
        },
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(device: &str, scorer: &str, settings: &[&str]) -> RewardInspection {
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let section = config::reward_from_settings(scorer, &settings).expect("well-formed");
        let inquiry = RewardInquiry {
            device: device.parse().expect("known"),
            knock: true,
            is_secure: false,
            rewards: vec![("rewards[0]".to_owned(), section)],
        };
        run(&inquiry, &Hub::at("/nowhere")).remove(0)
    }

    #[test]
    fn a_reward_without_weights_takes_nothing() {
        let expected = RewardInspection {
            key: "rewards[0]".to_owned(),
            name: "jpeg_compressibility".to_owned(),
            bytes: 0,
            problem: None,
            is_of_host: false,
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
    fn servers_are_knocked_at() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let option = format!("url=http://{}/v1", server.local_addr().expect("bound"));
        assert_eq!(look("cpu", "deqa", &[&option]).problem, None);
        // A port that nobody gets who takes any free one.
        let url = "http://127.0.0.1:1/v1";
        let inspection = look("cpu", "deqa", &[&format!("url={url}")]);
        let problem = inspection.problem.expect("nobody is there");
        assert!(inspection.is_of_host, "others may reach it");
        assert!(problem.starts_with(&format!("nobody answers at {url} (")), "{problem}");
    }

    #[test]
    fn servers_of_a_run_are_knocked_at_before_it_has_a_certificate_to_show() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("grpcs://{}", server.local_addr().expect("bound"));
        // It hangs up on whoever greets it.
        std::thread::spawn(move || server.incoming().for_each(drop));
        let section = config::reward_from_settings("grpc", &[format!("url={url}")]).expect("well-formed");
        let problem = |is_secure| {
            let rewards = vec![("rewards[0]".to_owned(), section.clone())];
            let device = "cpu".parse().expect("known");
            let inquiry = RewardInquiry { device, knock: true, is_secure, rewards };
            run(&inquiry, &Hub::at("/nowhere")).remove(0).problem.expect("refused")
        };
        let told = problem(false);
        assert!(
            told.contains("this process is of no run that is secured") && told.contains("`tls_ca`"),
            "{told}"
        );
        let told = problem(true);
        assert!(told.contains("the server does not speak TLS") && told.contains("write `http://`"), "{told}");
    }

    #[test]
    fn what_is_wrong_with_an_option_is_told() {
        let inspection = look("cpu", "jpeg_compressibility", &["qualty=80"]);
        let problem = inspection.problem.expect("misspelt");
        assert!(!inspection.is_of_host, "it is misspelt everywhere");
        assert!(problem.contains("unknown field `qualty`, expected `quality`"), "{problem}");
    }
}
