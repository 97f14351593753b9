//! The seats of a run's members on this machine.

use super::affinity::{self, Cpus};
use super::seating::{Seating, SeatingError, VARIABLES, VISIBLE};
use crate::launch::Roster;
use crate::member_name::MemberName;
use config::{Determinism, ResourceSection, RunConfig, VisibleCards};
use service::cuda::{BUILT_FOR, Card, Inventory};
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

/// The system's folder of what is on the PCI bus.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";
/// Decides which card a position means.
const ORDER: &str = "CUDA_DEVICE_ORDER";

/// The cards of this machine that a run may have, and who has which.
#[derive(Clone, Debug)]
pub struct Places {
    seating: Seating,
    cards: Inventory,
    /// Variables that the user has set.
    set: BTreeSet<&'static str>,
    resources: ResourceSection,
    roster: Roster,
    determinism: Determinism,
    allowed: Cpus,
    pci_devices: PathBuf,
}

/// Where a member sits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its card as `CUDA_VISIBLE_DEVICES` names it; none on the CPU, and where nothing is known of cards.
    pub card: Option<String>,
    /// What is known of that.
    pub facts: Option<Card>,
    /// The CPUs beside it, if it is to keep to them.
    cpus: Option<Cpus>,
    /// What its environment has besides.
    pub environment: Vec<(&'static str, String)>,
}

impl Places {
    /// Looks at this machine and at what the user's environment lets the run have of it.
    ///
    /// # Errors
    /// If that is not what the device asks for.
    pub fn look(config: &RunConfig) -> Result<Self, SeatingError> {
        let variable = |name: &str| std::env::var(name).ok();
        let list = variable(VISIBLE).map(|list| VisibleCards::seen(&list)).unwrap_or_default();
        let cards = match config.resources.device.is_cpu() {
            true => Inventory::default(),
            false => Inventory::look(list.names(), variable(ORDER).as_deref()),
        };
        Self::of(config, variable, cards)
    }

    /// The same on a machine with these cards; `variable` looks a variable up.
    ///
    /// # Errors
    /// Likewise.
    pub fn of(
        config: &RunConfig,
        variable: impl Fn(&str) -> Option<String>,
        cards: Inventory,
    ) -> Result<Self, SeatingError> {
        let resources = config.resources.clone();
        Ok(Self {
            seating: Seating::new(&resources, variable(VISIBLE).as_deref(), cards.n_cards())?,
            cards,
            set: VARIABLES.into_iter().filter(|name| variable(name).is_some()).collect(),
            resources,
            roster: Roster::of(config),
            determinism: config.run.determinism,
            allowed: affinity::allowed(),
            pci_devices: PCI_DEVICES.into(),
        })
    }

    /// Whether any card is known; if not, each process takes the first that CUDA shows it.
    pub fn are_known(&self) -> bool {
        self.seating.card(MemberName::Learner(0)).is_some()
    }

    /// Where a member sits.
    pub fn seat(&self, member: MemberName) -> Seat {
        let card = self.seating.card(member).map(str::to_owned);
        let facts = card.as_deref().and_then(|card| self.cards.find(card)).cloned();
        let n_threads = match member {
            MemberName::Learner(_) => self.resources.learner_threads,
            MemberName::Worker(_) => self.resources.worker_threads,
        };
        let beside =
            |card: &Card| affinity::cpus_beside(&self.pci_devices, &card.place, &self.allowed, n_threads);
        Seat {
            cpus: facts.as_ref().and_then(beside),
            environment: self.seating.environment(member, self.determinism, |name| self.set.contains(name)),
            card,
            facts,
        }
    }

    /// The seats of all members that the config starts, in the order in which they are given out.
    pub fn seats(&self) -> impl Iterator<Item = (MemberName, Seat)> {
        self.roster.members().map(|member| (member, self.seat(member)))
    }

    /// What is to be said of the cards: those that PyTorch's wheel has no kernels for.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for (_, Seat { card, facts, .. }) in self.seats() {
            let Some((card, facts)) = card.zip(facts.filter(|facts| !facts.is_built_for())) else { continue };
            let note = not_built_for(&card, &facts);
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        notes
    }
}

impl Seat {
    /// Does something on the CPUs beside the card: a process that is started meanwhile stays on them.
    pub fn on_its_cpus<T>(&self, work: impl FnOnce() -> T) -> T {
        affinity::on(self.cpus.as_ref(), work)
    }
}

/// `card 0 (NVIDIA H200, 138.1 GiB of 139.8 GiB free), CPUs 0-47`.
impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.card {
            Some(card) => write!(f, "card {card}")?,
            None => f.write_str("no card")?,
        }
        self.facts.iter().try_for_each(|facts| write!(f, " ({facts})"))?;
        self.cpus.iter().try_for_each(|cpus| write!(f, ", CPUs {cpus}"))
    }
}

fn not_built_for(card: &str, facts: &Card) -> String {
    let (major, minor) = facts.capability.unwrap_or_default();
    let built: Vec<String> = BUILT_FOR.iter().map(|(major, minor)| format!("{major}{minor}")).collect();
    format!(
        "card {card} ({}) is sm_{major}{minor}, which PyTorch's wheel has no kernels for (it has sm {}): unless this \
         libtorch was built otherwise, the run fails with \"no kernel image is available\"; list other cards in \
         CUDA_VISIBLE_DEVICES",
        facts.name,
        built.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::ComputeDevice;

    fn card(position: u32) -> Card {
        let (name, uuid) = (format!("model {position}"), format!("GPU-{position}"));
        Card { name, uuid, place: format!("0000:0{position}:00.0"), ..Card::default() }
    }

    fn run(device: ComputeDevice, workers: usize) -> RunConfig {
        let config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        RunConfig { resources: ResourceSection { device, workers, ..config.resources }, ..config }
    }

    /// Three cards, of which the user lists some.
    fn places(list: Option<&str>) -> Places {
        let cards = Inventory::new(vec![card(0), card(1), card(2)], None);
        let variable = |name: &str| list.filter(|_| name == VISIBLE).map(str::to_owned);
        Places::of(&run(ComputeDevice::Cuda, 2), variable, cards).expect("cards")
    }

    fn shown(places: &Places) -> Vec<String> {
        places.seats().map(|(member, seat)| format!("{member}: {seat}")).collect()
    }

    #[test]
    fn seats_are_shown_with_what_is_known_of_their_cards() {
        let expected =
            ["learner: card 0 (model 0)", "worker-0: card 1 (model 1)", "worker-1: card 2 (model 2)"];
        assert_eq!(shown(&places(None)), expected);
        let expected =
            ["learner: card 2 (model 2)", "worker-0: card GPU-1 (model 1)", "worker-1: card 2 (model 2)"];
        assert_eq!(shown(&places(Some("2,GPU-1"))), expected);
    }

    #[test]
    fn a_member_keeps_to_the_cpus_beside_its_card() {
        let home = tempfile::tempdir().expect("a directory");
        let allowed = affinity::allowed();
        let first = allowed.to_string().split(['-', ',']).next().expect("a CPU").to_owned();
        std::fs::create_dir(home.path().join("0000:01:00.0")).expect("created");
        std::fs::write(home.path().join("0000:01:00.0/local_cpulist"), &first).expect("written");
        let places = Places { pci_devices: home.path().to_owned(), ..places(None) };
        let is_one = allowed.to_string() == first;
        let expected =
            if is_one { "card 1 (model 1)".to_owned() } else { format!("card 1 (model 1), CPUs {first}") };
        assert_eq!(places.seat(MemberName::Worker(0)).to_string(), expected);
        assert_eq!(places.seat(MemberName::Learner(0)).to_string(), "card 0 (model 0)");
    }

    #[test]
    fn a_card_without_kernels_is_said_once() {
        let old = Card { capability: Some((7, 0)), ..card(0) };
        let cards = Inventory::new(vec![old], None);
        let places = Places::of(&run(ComputeDevice::Cuda, 3), |_| None, cards).expect("cards");
        let notes = places.notes();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(
            notes[0].contains("card 0 (model 0) is sm_70") && notes[0].contains("75, 80, 86"),
            "{notes:?}"
        );
    }

    #[test]
    fn on_the_cpu_nobody_has_a_card() {
        let places = Places::look(&run(ComputeDevice::Cpu, 0)).expect("no card is asked for");
        assert_eq!(shown(&places), ["learner: no card"]);
    }
}
