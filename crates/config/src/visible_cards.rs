//! The cards that a process may see, as `CUDA_VISIBLE_DEVICES` lists them.

use crate::ComputeDevice;
use std::str::FromStr;

/// The cards of a list such as `0,1`, `GPU-8932f937,GPU-0a5c3c1e` or `MIG-7e3d…`, in its order and as it names them.
///
/// It is read as CUDA reads it: the first entry that names no card ends the list, so that an empty one, `-1` and
/// `NoDevFiles` list none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VisibleCards(Vec<String>);

/// A list that names a card twice, by which CUDA sees none at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "CUDA_VISIBLE_DEVICES = `{list}` names card `{card}` twice, so that CUDA sees no card; name each once"
)]
pub struct RepeatedCard {
    list: String,
    card: String,
}

impl VisibleCards {
    /// As the list names them.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

impl FromStr for VisibleCards {
    type Err = RepeatedCard;

    fn from_str(list: &str) -> Result<Self, RepeatedCard> {
        let names: Vec<&str> = list.split(',').map(str::trim).take_while(|name| is_card(name)).collect();
        for (position, card) in names.iter().enumerate() {
            if names[..position].iter().any(|earlier| same_card(earlier, card)) {
                return Err(RepeatedCard { list: list.to_owned(), card: (*card).to_owned() });
            }
        }
        Ok(Self(names.into_iter().map(str::to_owned).collect()))
    }
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

fn is_card(name: &str) -> bool {
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
        list.parse::<VisibleCards>().expect("no card twice").names().to_vec()
    }

    #[test]
    fn all_forms_of_a_list_are_read_as_cuda_reads_them() {
        for (list, expected) in [
            ("0", &["0"][..]),
            ("3,1, 2", &["3", "1", "2"]),
            ("GPU-8932f937-d72c,GPU-0a5c", &["GPU-8932f937-d72c", "GPU-0a5c"]),
            ("MIG-7e3d,MIG-GPU-8932/1/0", &["MIG-7e3d", "MIG-GPU-8932/1/0"]),
            ("1gpu,2", &["1gpu", "2"]),
            ("2,-1,3", &["2"]),
            ("0,,1", &["0"]),
            ("0,1,none", &["0", "1"]),
            ("", &[]),
            ("-1", &[]),
            ("NoDevFiles", &[]),
            ("99999999999999999999", &[]),
        ] {
            assert_eq!(names(list), expected, "{list}");
        }
    }

    #[test]
    fn a_card_that_is_named_twice_is_refused_with_the_remedy() {
        for list in ["0,1,0", "1,01", "GPU-ab,GPU-AB"] {
            let told = list.parse::<VisibleCards>().expect_err("twice").to_string();
            assert!(told.contains(&format!("`{list}`")) && told.contains("name each once"), "{told}");
        }
        assert_eq!(names("0,x,0"), ["0"], "what stands behind the end is not looked at");
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
