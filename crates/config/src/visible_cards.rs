//! The cards that a process may see, as `CUDA_VISIBLE_DEVICES` lists them.

use crate::ComputeDevice;
use std::str::FromStr;

/// The cards of a list such as `0,1`, `GPU-8932f937,GPU-0a5c3c1e` or `MIG-7e3d…`, in its order and as it names them.
///
/// It is read as CUDA reads it: `-1` ends the list, and an empty one or `NoDevFiles` lists none. What ends a list by being
/// misspelt hides the cards behind it, and is an error here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VisibleCards(Vec<String>);

/// What is wrong with a list, by which CUDA would see other cards than were meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VisibleCardsError {
    /// It names a card twice.
    #[error(
        "CUDA_VISIBLE_DEVICES = `{list}` names card `{card}` twice, so that CUDA sees no card; name each once"
    )]
    Repeated {
        /// The list.
        list: String,
        /// The card.
        card: String,
    },
    /// It has an entry that names none.
    #[error(
        "CUDA_VISIBLE_DEVICES = `{list}`: `{entry}` names no card, and hides it and all behind it from CUDA; name cards as \
         `0,1`, `GPU-…` or `MIG-…`, or take that out"
    )]
    Malformed {
        /// The list.
        list: String,
        /// What stands in place of a card.
        entry: String,
    },
}

/// Ends a list.
const END: &str = "-1";
/// Lists that are meant to have no card.
const NONE: [&str; 4] = ["", END, "NoDevFiles", "none"];

impl VisibleCards {
    /// What CUDA sees of a list, whatever was meant by it.
    pub fn seen(list: &str) -> Self {
        let names: Vec<&str> = list.split(',').map(str::trim).take_while(|name| is_card(name)).collect();
        match repeated(&names) {
            Some(_) => Self::default(),
            None => Self(names.into_iter().map(str::to_owned).collect()),
        }
    }

    /// As the list names them.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

impl FromStr for VisibleCards {
    type Err = VisibleCardsError;

    fn from_str(list: &str) -> Result<Self, VisibleCardsError> {
        if NONE.contains(&list.trim()) {
            return Ok(Self::default());
        }
        // A comma at the end has nothing behind it to hide.
        let entries = list.trim().trim_end_matches(',').split(',').map(str::trim);
        let names: Vec<&str> = entries.take_while(|entry| *entry != END).collect();
        if let Some(entry) = names.iter().find(|name| !is_card(name)) {
            return Err(VisibleCardsError::Malformed { list: list.to_owned(), entry: (*entry).to_owned() });
        }
        match repeated(&names) {
            Some(card) => Err(VisibleCardsError::Repeated { list: list.to_owned(), card: card.to_owned() }),
            None => Ok(Self(names.into_iter().map(str::to_owned).collect())),
        }
    }
}

/// The first name of a card that another one before it has.
fn repeated<'a>(names: &[&'a str]) -> Option<&'a str> {
    let mut named = names.iter().enumerate();
    let found =
        named.find(|(position, card)| names[..*position].iter().any(|earlier| same_card(earlier, card)));
    found.map(|(_, card)| *card)
}

impl ComputeDevice {
    /// The name of the card that a process with such a list computes on; without a list every card is seen, by its
    /// position. `None` on the CPU, and where the list is too short.
    pub fn card(self, visible: Option<&VisibleCards>) -> Option<String> {
        let position = self.position()?;
        match visible {
            Some(VisibleCards(names)) => names.get(position).cloned(),
            None => Some(position.to_string()),
        }
    }
}

/// Whether a word names a card.
pub(crate) fn is_card(name: &str) -> bool {
    name.starts_with("GPU-") || name.starts_with("MIG-") || position(name).is_some()
}

/// CUDA takes the digits at the start of an entry, whatever follows.
fn position(name: &str) -> Option<u32> {
    let end = name.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(name.len());
    name[..end].parse().ok()
}

fn same_card(one: &str, other: &str) -> bool {
    match (position(one), position(other)) {
        (None, None) => one.eq_ignore_ascii_case(other),
        (one, other) => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &str) -> Vec<String> {
        list.parse::<VisibleCards>().expect("well-formed").names().to_vec()
    }

    #[test]
    fn all_forms_of_a_list_are_read_as_cuda_reads_them() {
        for (list, expected) in [
            ("0", &["0"][..]),
            ("3,1, 2", &["3", "1", "2"]),
            ("0,1,", &["0", "1"]),
            ("GPU-8932f937-d72c,GPU-0a5c", &["GPU-8932f937-d72c", "GPU-0a5c"]),
            ("MIG-7e3d,MIG-GPU-8932/1/0", &["MIG-7e3d", "MIG-GPU-8932/1/0"]),
            ("1gpu,2", &["1gpu", "2"]),
            ("2,-1,3", &["2"]),
            ("", &[]),
            (" ", &[]),
            ("-1", &[]),
            ("NoDevFiles", &[]),
            ("none", &[]),
        ] {
            assert_eq!(names(list), expected, "{list}");
            assert_eq!(VisibleCards::seen(list).names(), expected, "{list}");
        }
    }

    #[test]
    fn what_cuda_sees_ends_before_what_is_no_card() {
        for (list, expected) in [
            ("0,x,1", &["0"][..]),
            ("0,,1", &["0"]),
            ("x,0", &[]),
            ("0,1,0", &[]),
            ("99999999999999999999", &[]),
        ] {
            assert_eq!(VisibleCards::seen(list).names(), expected, "{list}");
        }
    }

    #[test]
    fn an_entry_that_names_no_card_is_refused_and_hides_none_in_silence() {
        for (list, entry) in [
            ("0,x,1", "x"),
            ("0,,1", ""),
            ("0,1,none", "none"),
            ("gpu-8932", "gpu-8932"),
            ("cuda:0", "cuda:0"),
            ("0;1,-2", "-2"),
            ("99999999999999999999", "99999999999999999999"),
        ] {
            let told = list.parse::<VisibleCards>().expect_err("malformed").to_string();
            let words = format!("`{list}`: `{entry}` names no card");
            assert!(told.contains(&words) && told.contains("take that out"), "{told}");
        }
    }

    #[test]
    fn a_card_that_is_named_twice_is_refused_with_the_remedy() {
        for list in ["0,1,0", "1,01", "GPU-ab,GPU-AB"] {
            let told = list.parse::<VisibleCards>().expect_err("twice").to_string();
            assert!(told.contains(&format!("`{list}`")) && told.contains("name each once"), "{told}");
        }
        assert_eq!(names("0,-1,0"), ["0"], "what stands behind the end is not looked at");
    }

    #[test]
    fn a_device_is_a_card_of_the_list() {
        let list: VisibleCards = "5,GPU-ab".parse().expect("a list");
        for (device, with_list, without) in [
            (ComputeDevice::Cpu, None, None),
            (ComputeDevice::Cuda, Some("5"), Some("0")),
            (ComputeDevice::CudaAt(1), Some("GPU-ab"), Some("1")),
            (ComputeDevice::CudaAt(2), None, Some("2")),
        ] {
            assert_eq!(device.card(Some(&list)).as_deref(), with_list, "{device}");
            assert_eq!(device.card(None).as_deref(), without, "{device}");
        }
    }
}
