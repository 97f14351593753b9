//! This machine's cards: by NVML, which comes with NVIDIA's driver and is loaded if it is there; else by what the driver
//! tells in `/proc`. Where neither tells anything, no card is known.

use nvml_wrapper::{Device, Nvml, error::NvmlError};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

/// Compute capabilities that the wheel of PyTorch 2.13 has kernels for; a card runs those of its own major number up to its
/// minor one.
pub const BUILT_FOR: [(i32, i32); 6] = [(7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)];

/// What the driver tells of a card each.
const DRIVER_CARDS: &str = "/proc/driver/nvidia/gpus";

/// What is known of a card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// Its maker's name for it.
    pub name: String,
    /// `GPU-…`, or `MIG-…` for a part of one.
    pub uuid: String,
    /// Its place on the PCI bus as the system's files name it; empty where that is not known.
    pub place: String,
    /// Major and minor number of what it can compute.
    pub capability: Option<(i32, i32)>,
    /// Its memory, all processes' together.
    pub memory: Option<CardMemory>,
}

/// Bytes of a card's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CardMemory {
    /// That nobody has.
    pub free: u64,
    /// In all.
    pub total: u64,
}

impl Card {
    /// Whether the wheel of PyTorch has kernels for it, as far as is known.
    pub fn is_built_for(&self) -> bool {
        self.capability.is_none_or(|(major, minor)| {
            BUILT_FOR.iter().any(|&(built_major, built_minor)| built_major == major && built_minor <= minor)
        })
    }
}

/// Name and free memory.
impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.memory {
            Some(memory) => write!(f, ", {memory}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for CardMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [free, total] = [self.free, self.total].map(|bytes| config::human_bytes(bytes as f64));
        write!(f, "{free} of {total} free")
    }
}

/// The cards of this machine, as far as they are known.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// In the order of the PCI bus; parts behind them.
    cards: Vec<Card>,
    /// Whether that is the order in which CUDA counts them.
    are_counted_so: bool,
}

impl Inventory {
    /// Looks at all cards of this machine, and at the parts (`MIG-…`) among these names; `order` is the user's
    /// `CUDA_DEVICE_ORDER`, without which members count as this does.
    pub fn look(named: &[String], order: Option<&str>) -> Self {
        let cards = by_nvml(named);
        let cards = cards.unwrap_or_else(|_| by_driver(Path::new(DRIVER_CARDS), Path::new("/dev")));
        Self::new(cards, order)
    }

    /// Of cards in the order of the PCI bus.
    pub fn new(cards: Vec<Card>, order: Option<&str>) -> Self {
        Self { cards, are_counted_so: order.is_none_or(|order| order == "PCI_BUS_ID") }
    }

    /// How many there are, parts aside.
    pub fn n_cards(&self) -> usize {
        self.whole().count()
    }

    /// The makers' names for those, parts aside.
    pub fn models(&self) -> BTreeSet<String> {
        self.whole().map(|card| card.name.clone()).collect()
    }

    /// The card that a name of `CUDA_VISIBLE_DEVICES` means: its position, or its identifier or the start of that.
    pub fn find(&self, name: &str) -> Option<&Card> {
        if name.starts_with(|letter: char| letter.is_ascii_digit()) {
            let mut whole = self.whole();
            let is_known = self.are_counted_so || self.n_cards() == 1;
            return whole.nth(name.parse().ok().filter(|_| is_known)?);
        }
        // An old name of a part begins with that of the whole card.
        let whole = name.strip_prefix("MIG-GPU-").and_then(|rest| rest.split('/').next());
        let uuid = whole.map_or(name.to_owned(), |whole| format!("GPU-{whole}")).to_ascii_lowercase();
        self.cards.iter().find(|card| card.uuid.to_ascii_lowercase().starts_with(&uuid))
    }

    fn whole(&self) -> impl Iterator<Item = &Card> {
        self.cards.iter().filter(|card| !card.uuid.starts_with("MIG-"))
    }
}

fn by_nvml(named: &[String]) -> Result<Vec<Card>, NvmlError> {
    let nvml = Nvml::init()?;
    let cards = (0..nvml.device_count()?).filter_map(|position| nvml.device_by_index(position).ok());
    let parts = named.iter().filter(|name| name.starts_with("MIG-"));
    let parts = parts.filter_map(|name| nvml.device_by_uuid(name.as_str()).ok());
    Ok(cards.chain(parts).map(|device| told(&device)).collect())
}

/// What NVML tells of a card; the rest stays open.
fn told(device: &Device<'_>) -> Card {
    let place =
        device.pci_info().map(|pci| format!("{:04x}:{:02x}:{:02x}.0", pci.domain, pci.bus, pci.device));
    let capability = device.cuda_compute_capability().ok();
    let memory = device.memory_info().ok();
    Card {
        name: device.name().unwrap_or_default(),
        uuid: device.uuid().unwrap_or_default(),
        place: place.unwrap_or_default(),
        capability: capability.map(|capability| (capability.major, capability.minor)),
        memory: memory.map(|memory| CardMemory { free: memory.free, total: memory.total }),
    }
}

/// The cards below a folder of the driver's that have a file in a folder of devices.
fn by_driver(folder: &Path, devices: &Path) -> Vec<Card> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut places: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    places.sort();
    let card = |place: String| {
        let text = fs::read_to_string(folder.join(&place).join("information")).ok()?;
        let field = |key: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            value.map(|value| value.trim().to_owned())
        };
        let device = devices.join(format!("nvidia{}", field("Device Minor")?));
        let (name, uuid) = (field("Model").unwrap_or_default(), field("GPU UUID").unwrap_or_default());
        device.exists().then(|| Card { name, uuid, place, ..Card::default() })
    };
    places.into_iter().filter_map(card).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(uuid: &str) -> Card {
        Card { name: "NVIDIA H200".to_owned(), uuid: uuid.to_owned(), ..Card::default() }
    }

    #[test]
    fn a_card_is_found_by_any_of_its_names() {
        let cards = ["GPU-ab12", "GPU-AC34", "MIG-ef56"].map(card);
        let inventory = Inventory::new(cards.to_vec(), None);
        for (name, expected) in [
            ("0", Some(0)),
            ("1", Some(1)),
            ("2", None),
            ("GPU-ab", Some(0)),
            ("GPU-ac34", Some(1)),
            ("GPU-zz", None),
            ("MIG-ef56", Some(2)),
            ("MIG-GPU-ac34/1/0", Some(1)),
        ] {
            assert_eq!(inventory.find(name), expected.map(|position: usize| &cards[position]), "{name}");
        }
    }

    #[test]
    fn a_position_in_another_order_than_that_of_the_bus_tells_nothing_unless_there_is_one_card() {
        let found = |uuids: &[&str], order, name| {
            let cards = uuids.iter().map(|uuid| card(uuid)).collect();
            Inventory::new(cards, order).find(name).map(|card| card.uuid.clone())
        };
        let two = &["GPU-a", "GPU-b"];
        assert_eq!(found(two, Some("PCI_BUS_ID"), "1").as_deref(), Some("GPU-b"));
        assert_eq!(found(two, Some("FASTEST_FIRST"), "1"), None);
        assert_eq!(found(two, Some("FASTEST_FIRST"), "GPU-b").as_deref(), Some("GPU-b"));
        assert_eq!(found(&["GPU-a"], Some("FASTEST_FIRST"), "0").as_deref(), Some("GPU-a"));
    }

    #[test]
    fn a_card_runs_kernels_of_its_own_generation_and_not_newer_ones() {
        for (capability, expected) in [
            ((7, 0), false),
            ((7, 5), true),
            ((8, 9), true),
            ((9, 0), true),
            ((10, 3), true),
            ((11, 0), false),
        ] {
            let card = Card { capability: Some(capability), ..card("GPU-a") };
            assert_eq!(card.is_built_for(), expected, "{capability:?}");
        }
        assert!(card("GPU-a").is_built_for(), "nothing is known");
    }

    #[test]
    fn the_driver_tells_of_cards_where_nvml_is_not() {
        let home = tempfile::tempdir().expect("a directory");
        for (place, minor) in [("0000:65:00.0", 1), ("0000:17:00.0", 0), ("0000:ca:00.0", 2)] {
            let folder = home.path().join("gpus").join(place);
            fs::create_dir_all(&folder).expect("created");
            let text =
                format!("Model: \t\t NVIDIA H200\nGPU UUID:   \t GPU-{minor}\nDevice Minor: \t {minor}\n");
            fs::write(folder.join("information"), text).expect("written");
        }
        for file in ["nvidia0", "nvidia1"] {
            fs::write(home.path().join(file), "").expect("written");
        }
        let cards = by_driver(&home.path().join("gpus"), home.path());
        let placed = |uuid, place: &str| Card { place: place.to_owned(), ..card(uuid) };
        assert_eq!(cards, [placed("GPU-0", "0000:17:00.0"), placed("GPU-1", "0000:65:00.0")]);
        assert_eq!(by_driver(Path::new("/no/driver"), home.path()), []);
    }

    #[test]
    fn a_card_is_shown_with_the_memory_that_is_free() {
        let memory = Some(CardMemory { free: 20 << 30, total: 140 << 30 });
        assert_eq!(Card { memory, ..card("") }.to_string(), "NVIDIA H200, 20.0 GiB of 140.0 GiB free");
        assert_eq!(card("").to_string(), "NVIDIA H200");
    }
}
