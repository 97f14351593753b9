//! Where a run listens and how its members reach it: `[network]`.

use crate::ConfigProblem;
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

/// `[network]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkSection {
    /// Where coordinator and learner listen: a number, an interface (`eth0`) or a subnet (`10.1.0.0/16`) of this host.
    pub bind: String,
    /// What they tell others to reach them by: a number, a host name, an interface or a subnet; empty follows `bind`.
    pub advertise: String,
    /// The port of the coordinator, or a range that coordinator and learner take free ones of; 0 is any.
    pub port: PortRange,
    /// Seconds that members wait for an absent coordinator before they leave.
    pub grace: f64,
    /// Where the coordinator shows metrics and health of the run over plain HTTP, `HOST:PORT` or `HOST:FIRST-LAST`; the members
    /// that it starts take the next free ports, of one port alone any. Empty: nowhere.
    pub metrics: String,
    /// Whether workers listen for each other, so that the learner sends a version of the weights to a few of many.
    pub weights_relay: bool,
    /// Where the learner runs.
    pub learner: LearnerPlace,
    /// How members know each other.
    pub tls: TlsSection,
}

/// Where the learner of a run is started, and by whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LearnerPlace {
    /// Beside the coordinator, by it.
    #[default]
    Here,
    /// On any host, by somebody.
    ByHand,
}

/// `[network.tls]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSection {
    /// When connections are secured.
    pub mode: TlsMode,
    /// Certificates of the authority that members are verified by, where the run is to have none of its own. In these three
    /// paths `{role}` stands for `coordinator`, `learner` or `worker`.
    pub ca: PathBuf,
    /// The certificate of a process.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// When connections between the members of a run are secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Whenever anything listens beyond this host's loopback.
    #[default]
    Auto,
    /// On the loopback, too.
    Always,
}

impl Default for TlsSection {
    fn default() -> Self {
        let none = PathBuf::new;
        Self { mode: TlsMode::Auto, ca: none(), certificate: none(), key: none() }
    }
}

impl TlsSection {
    /// Whether the user's own certificates are used.
    pub fn has_files(&self) -> bool {
        [&self.ca, &self.certificate, &self.key].iter().any(|path| !path.as_os_str().is_empty())
    }
}

/// Ports that may be taken, `7100` or `7100-7199`; 0 stands for any free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Exactly that one.
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// All of them, in the order in which they are tried.
    pub fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || {
            format!(
                "is `{text}`; write a port, such as 7100, a range, such as 7100-7199, or 0 for any free one"
            )
        };
        let number = |text: &str| text.trim().parse::<u16>().map_err(|_| malformed());
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(text)?, number(text)?),
        };
        match first <= last && (first > 0 || last == 0) {
            true => Ok(Self { first, last }),
            false => Err(malformed()),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = PortRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port, such as 7100, or a range, such as \"7100-7199\"")
            }

            fn visit_i64<E: Error>(self, port: i64) -> Result<PortRange, E> {
                self.visit_str(&port.to_string())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<PortRange, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Host and ports of a text such as `127.0.0.1:0`, `[::]:7100` or `eth0:7100-7199`.
///
/// # Errors
/// What is wrong with it, without its name.
pub fn host_and_ports(text: &str) -> Result<(String, PortRange), String> {
    let malformed =
        || format!("`{text}` is not `HOST:PORT`, as in `127.0.0.1:0`, `[::]:7100` or `eth0:7100-7199`");
    let (host, ports) = text.rsplit_once(':').ok_or_else(malformed)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || host.contains(['[', ']']) {
        return Err(malformed());
    }
    Ok((host.to_owned(), ports.parse().map_err(|problem| format!("its port {problem}"))?))
}

/// Seconds that a member waits for an absent coordinator unless it is told otherwise: `network.grace` of `defaults.toml`, as an
/// argument.
pub const DEFAULT_GRACE: &str = "60";

/// Longest time that members may wait without a coordinator: a week.
const LONGEST_GRACE: f64 = 604_800.0;

/// What cannot work, whatever the host.
pub(crate) fn network_problems(network: &NetworkSection) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    let mut require = |holds: bool, key: &str, message: String| {
        if !holds {
            problems.push(ConfigProblem::new(format!("network.{key}"), message));
        }
    };
    let is_anywhere = |text: &str| text.parse::<IpAddr>().is_ok_and(|number| number.is_unspecified());
    require(
        !network.bind.is_empty(),
        "bind",
        "is empty; write `127.0.0.1` for this host alone, or an address, interface or subnet of it"
            .to_owned(),
    );
    require(
        !is_anywhere(&network.advertise),
        "advertise",
        format!(
            "is `{}`, which nobody can reach; write an address, host name, interface or subnet",
            network.advertise
        ),
    );
    require(
        (0.0..=LONGEST_GRACE).contains(&network.grace),
        "grace",
        format!("is {}; it must be 0 to {LONGEST_GRACE} seconds, a week", network.grace),
    );
    let place = if network.metrics.is_empty() { Ok(()) } else { host_and_ports(&network.metrics).map(drop) };
    let problem = place.err().unwrap_or_default();
    require(
        problem.is_empty(),
        "metrics",
        format!("{problem}; `127.0.0.1:9400` shows metrics to this host alone, and nothing (\"\") to nobody"),
    );
    let paths = [&network.tls.ca, &network.tls.certificate, &network.tls.key];
    require(
        !network.tls.has_files() || paths.iter().all(|path| !path.as_os_str().is_empty()),
        "tls",
        "has some of `ca`, `certificate` and `key`; give all three, or none for an authority of the run's own".to_owned(),
    );
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RunConfig, preset};

    fn with(text: &str, settings: &[&str]) -> Result<NetworkSection, String> {
        let base = preset("tempflow-tiny-cpu").expect("a preset").text;
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let config = RunConfig::from_toml_with(&format!("{base}\n{text}"), &settings);
        config.map(|config| config.network).map_err(|errors| errors.to_string())
    }

    #[test]
    fn members_started_by_hand_wait_as_long_as_those_of_a_run() {
        assert_eq!(with("", &[]).expect("valid").grace.to_string(), DEFAULT_GRACE);
    }

    #[test]
    fn ports_are_one_or_a_range() {
        for (text, ports) in [("0", 0..=0), ("7100", 7100..=7100), ("7100-7102", 7100..=7102)] {
            let range: PortRange = text.parse().expect("well-formed");
            assert_eq!((range.ports(), range.to_string()), (ports, text.to_owned()));
        }
        for odd in ["", "-", "7", "70000", "9-7", "0-7", "a"].iter().filter(|text| **text != "7") {
            assert!(odd.parse::<PortRange>().is_err(), "{odd}");
        }
    }

    #[test]
    fn the_network_is_given_in_a_file_or_as_settings() {
        let text = "[network]\nbind = \"10.0.0.1\"\nport = 7100\n[network.tls]\nmode = \"always\"\n";
        let network =
            with(text, &["network.tls.ca=/a/ca.pem", "network.tls.key=k", "network.tls.certificate=c"]);
        let network = network.expect("valid");
        assert_eq!((network.bind.as_str(), network.port), ("10.0.0.1", PortRange::one(7100)));
        assert_eq!((network.tls.mode, network.tls.ca), (TlsMode::Always, PathBuf::from("/a/ca.pem")));
        assert_eq!(with("", &["network.port=7100-7199"]).expect("valid").port.to_string(), "7100-7199");
        for (text, words) in [
            ("[network]\nport = \"9-7\"", "`network.port`: is `9-7`; write a port"),
            ("[network]\nbnd = \"x\"", "unknown"),
            ("[network.tls]\nmod = \"auto\"", "unknown field `mod`"),
            (
                "[network.tls]\nca = \"a\"",
                "`network.tls`: has some of `ca`, `certificate` and `key`; give all three",
            ),
            (
                "[network]\nmetrics = \"9400\"",
                "`network.metrics`: `9400` is not `HOST:PORT`, as in `127.0.0.1:0`",
            ),
            ("[network]\nmetrics = \":9400\"", "`127.0.0.1:9400` shows metrics to this host alone"),
            ("[network]\nmetrics = \"127.0.0.1:94000\"", "its port is `94000`; write a port"),
            ("[network]\ngrace = -1", "`network.grace`: is -1"),
            (
                "[network]\nadvertise = \"0.0.0.0\"",
                "`network.advertise`: is `0.0.0.0`, which nobody can reach",
            ),
        ] {
            let told = with(text, &[]).expect_err("refused");
            assert!(told.contains(words), "{told}");
        }
    }
}
