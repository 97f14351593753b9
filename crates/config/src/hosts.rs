//! Hosts that workers are started on by `ssh`: `[[hosts]]`.

use crate::visible_cards::is_card;
use crate::{ComputeDevice, ConfigProblem, RunConfig};
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Key of the list.
pub(crate) const HOST_LIST: &str = "hosts";
/// Workers of one host.
const MOST_SLOTS: usize = 1024;
/// What decides which cards a process sees.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// One of `[[hosts]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSection {
    /// As `ssh` takes it: a host name, number or alias of its configuration, or `user@host`.
    pub address: String,
    /// The workers that it takes.
    pub slots: Slots,
    /// Folder of the programs there, absolute or below `~/`; empty for the path that they have on the coordinator's host.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub programs: PathBuf,
    /// What the environment of workers there has besides; no place for secrets, since it stands in the run's config.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

/// The workers that a host takes: their number, or a card for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slots {
    /// So many; with `resources.device = "cuda"`, one for each of the host's first cards.
    Count(usize),
    /// One for each card, as `CUDA_VISIBLE_DEVICES` names it there; a card may be named more than once.
    Cards(Vec<String>),
}

impl Slots {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Count(count) => *count,
            Self::Cards(cards) => cards.len(),
        }
    }

    /// The card of one of them, where workers compute on a GPU each.
    pub fn card(&self, position: usize) -> Option<String> {
        match self {
            Self::Count(count) => (position < *count).then(|| position.to_string()),
            Self::Cards(cards) => cards.get(position).cloned(),
        }
    }
}

impl HostSection {
    /// The host without the user's name, by which it is told from others.
    fn name(&self) -> String {
        let address = self.address.strip_prefix("ssh://").unwrap_or(&self.address);
        address.rsplit_once('@').map_or(address, |(_, host)| host).to_ascii_lowercase()
    }
}

impl Serialize for Slots {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(count) => serializer.serialize_u64(*count as u64),
            Self::Cards(cards) => serializer.collect_seq(cards),
        }
    }
}

impl<'de> Deserialize<'de> for Slots {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Slots;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of workers, such as 4, or a card for each, such as [\"0\", \"1\"]")
            }

            fn visit_i64<E: Error>(self, count: i64) -> Result<Slots, E> {
                let told = || E::custom(format!("`slots` is {count}; it must be at least 1"));
                usize::try_from(count).map(Slots::Count).map_err(|_| told())
            }

            fn visit_u64<E: Error>(self, count: u64) -> Result<Slots, E> {
                self.visit_i64(i64::try_from(count).unwrap_or(i64::MAX))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Slots, A::Error> {
                let mut cards = Vec::new();
                while let Some(card) = entries.next_element::<String>()? {
                    cards.push(card);
                }
                Ok(Slots::Cards(cards))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// What is wrong with the list, whatever the hosts.
pub(crate) fn host_problems(config: &RunConfig) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    for (position, host) in config.hosts.iter().enumerate() {
        let mut tell = |key: &str, message: String| {
            problems.push(ConfigProblem::new(format!("{HOST_LIST}[{position}].{key}"), message));
        };
        let earlier = config.hosts[..position].iter().position(|other| other.name() == host.name());
        match (address_problem(&host.address), earlier) {
            (Some(problem), _) => tell("address", problem),
            (None, Some(earlier)) => tell(
                "address",
                format!(
                    "`{}` is the same host as `{}` of {HOST_LIST}[{earlier}]; name each host once, with all its slots",
                    host.address, config.hosts[earlier].address
                ),
            ),
            (None, None) => {}
        }
        slot_problem(&host.slots, config.resources.device).into_iter().for_each(|told| tell("slots", told));
        programs_problem(&host.programs).into_iter().for_each(|told| tell("programs", told));
        host.environment
            .iter()
            .filter_map(|(name, value)| environment_problem(name, value))
            .for_each(|told| tell("environment", told));
    }
    problems
}

fn address_problem(address: &str) -> Option<String> {
    if address.is_empty() {
        return Some("is empty; write the host as `ssh` takes it, as in `address = \"gpu1\"`".to_owned());
    }
    let is_word = address.chars().all(|c| !c.is_whitespace() && !c.is_control());
    (!is_word || address.starts_with('-')).then(|| {
        format!("is `{address}`, which `ssh` does not take for a host; write a name, a number or `user@host`")
    })
}

fn slot_problem(slots: &Slots, device: ComputeDevice) -> Option<String> {
    if slots.count() == 0 {
        return Some(
            "are 0, so that nothing would run there; write how many workers the host takes, or leave it out"
                .to_owned(),
        );
    }
    if slots.count() > MOST_SLOTS {
        return Some(format!("are {}; a host takes at most {MOST_SLOTS}", slots.count()));
    }
    let Slots::Cards(cards) = slots else { return None };
    if device != ComputeDevice::Cuda {
        return Some(format!(
            "name cards, and `resources.device` is {device}, which has no use for them; write their number, or \
             `device = \"cuda\"`"
        ));
    }
    let odd = cards.iter().find(|card| !is_card(card) || card.contains(','))?;
    Some(format!("name `{odd}`, which is no card; write `0`, `GPU-…` or `MIG-…`"))
}

fn programs_problem(programs: &Path) -> Option<String> {
    let is_found = is_empty(programs) || programs.is_absolute() || programs.starts_with("~/");
    (!is_found || programs.to_string_lossy().contains(char::is_control)).then(|| {
        format!("is `{}`; write an absolute path on that host, or one below `~/`", programs.display())
    })
}

fn environment_problem(name: &str, value: &str) -> Option<String> {
    let is_name = |(position, c): (usize, char)| {
        c == '_' || c.is_ascii_alphabetic() || position > 0 && c.is_ascii_digit()
    };
    if name.is_empty() || !name.chars().enumerate().all(is_name) {
        return Some(format!("has `{name}`, which is no name of a variable; use letters, digits and `_`"));
    }
    if name == VISIBLE {
        return Some(format!("has {VISIBLE}; say by `slots` which cards the host's workers have"));
    }
    value
        .contains(char::is_control)
        .then(|| format!("has {name} with a line break or another control character in it; leave that out"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    fn with(hosts: &str, settings: &[&str]) -> Result<RunConfig, String> {
        let base = preset("tempflow-tiny-cpu").expect("a preset").text;
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        RunConfig::from_toml_with(&format!("{base}\n{hosts}"), &settings).map_err(|errors| errors.to_string())
    }

    #[test]
    fn hosts_have_slots_by_number_or_by_card_and_come_back_as_written() {
        let text = "[[hosts]]\naddress = \"ada@gpu1\"\nslots = 2\n\n[[hosts]]\naddress = \"10.0.0.2\"\nslots = [\"1\", \"GPU-ab\"]\n\
                    programs = \"~/bin\"\nenvironment = { HF_HOME = \"/data/it's\" }\n";
        let config = with(text, &["resources.device=cuda"]).expect("valid");
        let cards =
            |host: usize| (0..3).map(|slot| config.hosts[host].slots.card(slot)).collect::<Option<Vec<_>>>();
        assert_eq!((config.hosts[0].slots.count(), config.hosts[1].slots.count()), (2, 2));
        assert_eq!((cards(0), cards(1)), (None, None), "each has two");
        assert_eq!(config.hosts[1].slots.card(1).as_deref(), Some("GPU-ab"));
        assert_eq!(config.hosts[1].environment["HF_HOME"], "/data/it's");
        assert_eq!(RunConfig::from_toml(&config.to_toml()).expect("valid"), config);
    }

    #[test]
    fn what_cannot_be_a_host_is_told_with_its_place_and_the_remedy() {
        let host = |rest: &str| format!("[[hosts]]\naddress = \"gpu1\"\n{rest}\n");
        for (text, words) in [
            (host("slots = 0"), "`hosts[0].slots`: are 0, so that nothing would run there; write how many"),
            (host("slots = []"), "`hosts[0].slots`: are 0"),
            (host("slots = -1"), "`slots` is -1; it must be at least 1"),
            (host("slots = 5000"), "`hosts[0].slots`: are 5000; a host takes at most 1024"),
            (host("slots = \"2\""), "a number of workers, such as 4, or a card for each"),
            (host(""), "`hosts[0]`: missing field `slots`"),
            (host("slots = 1\nslot = 2"), "unknown field `slot`"),
            (host("slots = [\"0\"]"), "`resources.device` is cpu, which has no use for them"),
            (host("slots = 1\nprograms = \"bin\""), "`hosts[0].programs`: is `bin`; write an absolute path"),
            (host("slots = 1\nenvironment = { 1A = \"\" }"), "has `1A`, which is no name of a variable"),
            (host("slots = 1\nenvironment = { A = \"a\\nb\" }"), "has A with a line break"),
            (host("slots = 1\nenvironment = { CUDA_VISIBLE_DEVICES = \"1\" }"), "say by `slots` which cards"),
            (
                "[[hosts]]\naddress = \"\"\nslots = 1\n".to_owned(),
                "`hosts[0].address`: is empty; write the host",
            ),
            (
                "[[hosts]]\naddress = \"-oProxy\"\nslots = 1\n".to_owned(),
                "is `-oProxy`, which `ssh` does not take",
            ),
            ("[[hosts]]\naddress = \"a b\"\nslots = 1\n".to_owned(), "is `a b`, which `ssh` does not take"),
            (
                format!("{}[[hosts]]\naddress = \"ada@GPU1\"\nslots = 1\n", host("slots = 1")),
                "`hosts[1].address`: `ada@GPU1` is the same host as `gpu1` of hosts[0]; name each host once",
            ),
            (
                "[hosts]\naddress = \"a\"\n".to_owned(),
                "`hosts`: is not a list; write `[[hosts]]` before each host",
            ),
        ] {
            let told = with(&text, &[]).expect_err(&text);
            assert!(told.contains(words), "{told}");
        }
        let told = with("", &["hosts.address=a"]).expect_err("a list");
        assert!(told.contains("hosts cannot be set one by one; write them into the file"), "{told}");
        let told = with(&host("slots = [\"x\"]"), &["resources.device=cuda"]).expect_err("no card");
        assert!(told.contains("name `x`, which is no card"), "{told}");
    }
}
