//! `rollout-worker inspect-rewards`: whether rewards could be built here, without reading a weight, and whether there is
//! somebody at the addresses of servers, without asking for a score.

use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use config::{RewardInquiry, RewardInspection, RewardSection};
use models::weights::{Inventory, TensorSource};
use protocol::with_causes;
use rewards::Resources;
use service::Hub;
use tch::Device;

use crate::scoring::reward_resources::reward_resources;

/// How long a server is waited for.
const KNOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// Looks at every reward.
pub fn run(inquiry: &RewardInquiry, hub: &Hub) -> Vec<RewardInspection> {
    let device = run_setup::tensor_device(inquiry.device);
    let looked = inquiry.rewards.iter().map(|(key, section)| {
        let (mut inspection, server) = inspect(key, section, device, hub);
        if let (None, Some(url), true) = (&inspection.problem, server, inquiry.knock) {
            inspection.problem = knock(&url).err();
        }
        inspection
    });
    looked.collect()
}

/// What a reward is, and where its server is.
fn inspect(
    key: &str,
    section: &RewardSection,
    device: Device,
    hub: &Hub,
) -> (RewardInspection, Option<String>) {
    let inventory = Inventory::default();
    let source = TensorSource::Headers(inventory.clone());
    let resources = Resources { source, ..reward_resources(device, hub.clone()) };
    let built = rewards::build(section.scorer(), &section.options_as_json(), &resources);
    let server = built.as_ref().ok().and_then(|reward| reward.server());
    let inspection = RewardInspection {
        key: key.to_owned(),
        name: section.name.clone(),
        bytes: inventory.components().iter().map(|(_, size)| size.bytes).sum(),
        problem: built.err().map(|error| with_causes(&error)),
    };
    (inspection, server)
}

/// Whether somebody takes a connection at a URL.
fn knock(url: &str) -> Result<(), String> {
    let silent =
        |reason: String| format!("nobody answers at {url} ({reason}); start the server, or mend `url`");
    let (host, port) = host_and_port(url).ok_or_else(|| silent("it names no port".to_owned()))?;
    let addresses = (host, port).to_socket_addrs().map_err(|error| silent(error.to_string()))?;
    let mut reason = "it has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, KNOCK_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(silent(reason))
}

/// The parts of `scheme://host:port/path`, with the scheme's port where there is none.
fn host_and_port(url: &str) -> Option<(&str, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let usual = if scheme == "https" { 443 } else { 80 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (authority, usual),
    };
    Some((host.trim_start_matches('[').trim_end_matches(']'), port))
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
        let url = format!("http://{}/v1", server.local_addr().expect("bound"));
        let option = format!("url={url}");
        assert_eq!(look("cpu", "deqa", &[&option]).problem, None);
        drop(server);
        let problem = look("cpu", "deqa", &[&option]).problem.expect("nobody is there");
        assert!(problem.starts_with(&format!("nobody answers at {url} (")), "{problem}");
    }

    #[test]
    fn addresses_have_a_port_even_where_none_is_written() {
        for (url, parts) in [
            ("http://gpu-7:18085", Some(("gpu-7", 18085))),
            ("https://judge.example/v1", Some(("judge.example", 443))),
            ("http://[::1]:80/x", Some(("::1", 80))),
            ("http://[::1]", Some(("::1", 80))),
            ("http://a:port", None),
        ] {
            assert_eq!(host_and_port(url), parts, "{url}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_option_is_told() {
        let problem = look("cpu", "jpeg_compressibility", &["qualty=80"]).problem.expect("misspelt");
        assert!(problem.contains("unknown field `qualty`, expected `quality`"), "{problem}");
    }
}
