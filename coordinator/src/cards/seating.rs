//! Who sits on which card: a decision without I/O.

use crate::member_name::MemberName;
use config::{ComputeDevice, Determinism, ResourceSection, VisibleCards, VisibleCardsError};

/// What names the cards that a process may see.
pub(super) const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
/// What libtorch's allocator takes, under the name that is meant here and under the newer one.
const ALLOCATOR: [&str; 2] = ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"];

/// What members on a GPU are started with where the user has not set it. CUDA counts cards as NVML and `nvidia-smi` do;
/// memory is not lost to pieces of unequal sizes.
const DEFAULTS: [(&str, &str); 2] =
    [("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), (ALLOCATOR[0], "expandable_segments:True")];

/// Likewise where bits count: the same products give the same ones however many rows they have.
const DEFAULTS_FOR_BITS: [(&str, &str); 3] = [
    ("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1"),
    ("CUBLAS_WORKSPACE_CONFIG", ":16:8"),
    ("CUBLASLT_WORKSPACE_SIZE", "1"),
];

/// All that a user may have set of what decides about cards here.
pub(super) const VARIABLES: [&str; 6] = [
    DEFAULTS[0].0,
    ALLOCATOR[0],
    ALLOCATOR[1],
    DEFAULTS_FOR_BITS[0].0,
    DEFAULTS_FOR_BITS[1].0,
    DEFAULTS_FOR_BITS[2].0,
];

/// The cards of a run in the order in which they are given out.
///
/// The ranks of the learner have the first cards and worker *i* the (*i* + 1)th after them; where there are more processes than
/// cards, the next begins again with the first. So a member keeps its card over restarts and whatever the number of workers, which
/// decides bits where cards are of several kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seating {
    device: ComputeDevice,
    n_learners: usize,
    /// As the user names them, else by their position; none where nothing is known of this machine's.
    cards: Vec<String>,
}

/// The cards that a run asks for are not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeatingError {
    /// The user's list cannot be meant so.
    #[error(transparent)]
    List(#[from] VisibleCardsError),
    /// The user's list is empty.
    #[error(
        "`resources.device` = {device}, but CUDA_VISIBLE_DEVICES = `{list}` lists no card; unset it, name the cards that \
         the run may have, or write `cpu`"
    )]
    NoneListed {
        /// Asked for.
        device: ComputeDevice,
        /// As it is.
        list: String,
    },
    /// There are fewer than the one asked for.
    #[error(
        "`resources.device` = {device} is not there: {n_cards} card(s) are seen, from `cuda:0` on{origin}"
    )]
    NotThere {
        /// Asked for.
        device: ComputeDevice,
        /// How many there are.
        n_cards: usize,
        /// Whose list they are from.
        origin: String,
    },
}

impl Seating {
    /// Gives out the cards of the user's list, or, without one, all `n_cards` of the machine; 0 if that is not known.
    ///
    /// # Errors
    /// If the list has not what the device asks for.
    pub fn new(
        resources: &ResourceSection,
        list: Option<&str>,
        n_cards: usize,
    ) -> Result<Self, SeatingError> {
        let ResourceSection { device, learners: n_learners, .. } = *resources;
        let Some(position) = device.position() else {
            return Ok(Self { device, n_learners, cards: Vec::new() });
        };
        let cards = match list {
            Some(list) => list.parse::<VisibleCards>()?.names().to_vec(),
            None => (0..n_cards).map(|card| card.to_string()).collect(),
        };
        if let (Some(list), true) = (list, cards.is_empty()) {
            return Err(SeatingError::NoneListed { device, list: list.to_owned() });
        }
        if !cards.is_empty() && position >= cards.len() {
            let origin = list.map(|list| format!(", of CUDA_VISIBLE_DEVICES = `{list}`"));
            let (n_cards, origin) = (cards.len(), origin.unwrap_or_default());
            return Err(SeatingError::NotThere { device, n_cards, origin });
        }
        Ok(Self { device, n_learners, cards })
    }

    /// The place of a member among all that there may be.
    fn turn(&self, member: MemberName) -> usize {
        match member {
            MemberName::Learner(rank) => rank as usize,
            MemberName::Worker(position) => position as usize + self.n_learners,
        }
    }

    /// The card of a member; `None` on the CPU, and where nothing is known of the machine's.
    pub fn card(&self, member: MemberName) -> Option<&str> {
        let position = match self.device {
            ComputeDevice::Cuda => self.turn(member).checked_rem(self.cards.len())?,
            device => device.position()?,
        };
        self.cards.get(position).map(String::as_str)
    }

    /// What a member's environment has besides, in a run of this determinism; `is_set` tells which variables the user has
    /// set, which are left alone.
    pub fn environment(
        &self,
        member: MemberName,
        determinism: Determinism,
        is_set: impl Fn(&str) -> bool,
    ) -> Vec<(&'static str, String)> {
        environment(self.device, self.card(member), determinism, is_set)
    }
}

/// What the environment of a process has besides that computes on that device, and on that card where each has its own.
pub(crate) fn environment(
    device: ComputeDevice,
    card: Option<&str>,
    determinism: Determinism,
    is_set: impl Fn(&str) -> bool,
) -> Vec<(&'static str, String)> {
    let own = match (device, card) {
        // A card that it does not use costs a process memory there, and libtorch's CUDA half memory and time.
        (ComputeDevice::Cpu, _) => Some(String::new()),
        (ComputeDevice::Cuda, Some(card)) => Some(card.to_owned()),
        // The position counts in the list as it is.
        (ComputeDevice::Cuda | ComputeDevice::CudaAt(_), _) => None,
    };
    let own = own.map(|cards| (VISIBLE, cards));
    let is_set = |name: &str| match ALLOCATOR.contains(&name) {
        true => ALLOCATOR.into_iter().any(&is_set),
        false => is_set(name),
    };
    let for_bits = DEFAULTS_FOR_BITS.iter().filter(|_| determinism == Determinism::Strict);
    let defaults = DEFAULTS.iter().chain(for_bits);
    let defaults = defaults.filter(|(name, _)| !device.is_cpu() && !is_set(name));
    let told = (Determinism::VARIABLE, determinism.name().to_owned());
    let defaults = defaults.map(|&(name, value)| (name, value.to_owned()));
    own.into_iter().chain([told]).chain(defaults).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUDA: ComputeDevice = ComputeDevice::Cuda;

    fn of(device: ComputeDevice) -> ResourceSection {
        let resources = config::preset("tempflow-tiny-cpu").expect("a preset").config.resources;
        ResourceSection { device, ..resources }
    }

    /// The cards of the learner and five workers.
    fn seats(device: ComputeDevice, list: Option<&str>, n_cards: usize) -> Vec<String> {
        let seating = Seating::new(&of(device), list, n_cards).expect("cards");
        let members = std::iter::once(MemberName::Learner(0)).chain((0..5).map(MemberName::Worker));
        members.map(|member| seating.card(member).unwrap_or("-").to_owned()).collect()
    }

    #[test]
    fn the_learner_sits_first_then_workers_and_what_is_too_many_shares_in_that_order() {
        for (list, n_cards, expected) in [
            (None, 8, ["0", "1", "2", "3", "4", "5"]),
            (None, 4, ["0", "1", "2", "3", "0", "1"]),
            (None, 1, ["0"; 6]),
            (None, 0, ["-"; 6]),
            (Some("6,2"), 8, ["6", "2", "6", "2", "6", "2"]),
            (Some("GPU-ab,MIG-cd,1"), 0, ["GPU-ab", "MIG-cd", "1", "GPU-ab", "MIG-cd", "1"]),
            (Some("3,-1,4"), 8, ["3"; 6]),
        ] {
            assert_eq!(seats(CUDA, list, n_cards), expected, "{list:?} of {n_cards}");
        }
    }

    #[test]
    fn ranks_of_the_learner_sit_before_workers() {
        let resources = ResourceSection { learners: 2, ..of(CUDA) };
        let seating = Seating::new(&resources, None, 4).expect("cards");
        let members = [MemberName::Learner(0), MemberName::Learner(1), MemberName::Worker(0)];
        assert_eq!(members.map(|member| seating.card(member)), [Some("0"), Some("1"), Some("2")]);
    }

    #[test]
    fn a_card_that_is_asked_for_is_everybodys_and_the_cpu_nobodys() {
        assert_eq!(seats(ComputeDevice::CudaAt(1), Some("6,2"), 8), ["2"; 6]);
        assert_eq!(seats(ComputeDevice::CudaAt(3), None, 4), ["3"; 6]);
        assert_eq!(seats(ComputeDevice::CudaAt(3), None, 0), ["-"; 6], "nothing is known of this machine");
        assert_eq!(seats(ComputeDevice::Cpu, Some("0,0"), 8), ["-"; 6]);
    }

    #[test]
    fn a_member_keeps_its_card_however_many_there_are() {
        let seating = Seating::new(&of(CUDA), None, 3).expect("cards");
        let of = |position| seating.card(MemberName::Worker(position));
        assert_eq!([of(0), of(1), of(2), of(30)], [Some("1"), Some("2"), Some("0"), Some("1")]);
    }

    #[test]
    fn a_list_without_what_is_asked_for_is_refused_with_what_it_says() {
        for (device, list, n_cards, expected) in [
            (CUDA, Some(""), 8, "CUDA_VISIBLE_DEVICES = `` lists no card; unset it"),
            (CUDA, Some("NoDevFiles"), 8, "`NoDevFiles` lists no card"),
            (CUDA, Some("1,1"), 8, "names card `1` twice"),
            (ComputeDevice::CudaAt(2), Some("4,5"), 8, "2 card(s) are seen, from `cuda:0` on, of CUDA"),
            (ComputeDevice::CudaAt(8), None, 8, "`resources.device` = cuda:8 is not there: 8 card(s)"),
        ] {
            let told = Seating::new(&of(device), list, n_cards).expect_err("refused").to_string();
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn each_member_sees_its_card_alone_and_what_the_user_has_set_stays() {
        let environment = |device: ComputeDevice, n_cards, determinism| {
            let seating = Seating::new(&of(device), None, n_cards).expect("cards");
            let is_set = |name: &str| ["CUDA_DEVICE_ORDER", "PYTORCH_ALLOC_CONF"].contains(&name);
            let variables = seating.environment(MemberName::Worker(0), determinism, is_set).into_iter();
            variables.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let defaults = [
            "FLOW_RL_DETERMINISM=strict",
            "TORCH_CUDNN_SDPA_DEPRIORITIZED=1",
            "CUBLAS_WORKSPACE_CONFIG=:16:8",
            "CUBLASLT_WORKSPACE_SIZE=1",
        ];
        let strict = |device, n_cards| environment(device, n_cards, Determinism::Strict);
        assert_eq!(strict(CUDA, 2)[0], "CUDA_VISIBLE_DEVICES=1");
        assert_eq!(strict(CUDA, 2)[1..], defaults);
        assert_eq!(strict(CUDA, 0), defaults, "nothing is known, so nothing is hidden");
        assert_eq!(strict(ComputeDevice::CudaAt(1), 2), defaults, "it counts in the user's list");
        assert_eq!(strict(ComputeDevice::Cpu, 2), ["CUDA_VISIBLE_DEVICES=", defaults[0]]);
        let fast = environment(CUDA, 0, Determinism::Fast);
        assert_eq!(fast, ["FLOW_RL_DETERMINISM=fast"], "what bits need costs time");
    }
}
