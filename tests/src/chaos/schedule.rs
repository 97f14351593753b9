//! Which faults a seed stands for, and when they come: pure, so that a seed can be replayed.

use std::time::Duration;

/// What is done to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9 of a worker, which its host starts again.
    KillWorker,
    /// A worker that stands still for longer than its lease.
    StopWorker,
    /// kill -9 of the learner.
    KillLearner,
    /// A learner that stands still for longer than its lease.
    StopLearner,
    /// kill -9 of the coordinator, which is started again with `--resume`.
    KillCoordinator,
    /// A worker's host without network.
    Cut,
    /// A worker's host that hears nothing.
    CutTowardsHost,
    /// A worker's host that nobody hears.
    CutFromHost,
    /// 200 ms and 1 % loss in each direction, out of order.
    SlowNetwork,
    /// Turned bits in 2 % of a host's packets.
    DamagedPackets,
    /// Turned bits in 0.2 % of a host's packets, which the checksum of TCP does not tell.
    DamagedStream,
    /// A run directory without a free byte.
    FullDisk,
    /// A run directory that nobody may write to.
    ReadOnlyDisk,
    /// A disk on which every write stands still.
    FrozenDisk,
    /// A checkpoint with a turned bit, found by a learner that was killed.
    DamagedCheckpoint,
    /// A reward server that ends, and another in its place.
    RewardServerDown,
    /// A reward server that takes connections and answers nothing.
    RewardServerHung,
    /// Another reward server in its place, which answers with what is no score.
    RewardServerLies,
}

/// Every fault.
pub const FAULTS: [Fault; 18] = [
    Fault::KillWorker,
    Fault::StopWorker,
    Fault::KillLearner,
    Fault::StopLearner,
    Fault::KillCoordinator,
    Fault::Cut,
    Fault::CutTowardsHost,
    Fault::CutFromHost,
    Fault::SlowNetwork,
    Fault::DamagedPackets,
    Fault::DamagedStream,
    Fault::FullDisk,
    Fault::ReadOnlyDisk,
    Fault::FrozenDisk,
    Fault::DamagedCheckpoint,
    Fault::RewardServerDown,
    Fault::RewardServerHung,
    Fault::RewardServerLies,
];

/// One fault of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What.
    pub fault: Fault,
    /// It comes once so many iterations are trained,
    pub iterations: usize,
    /// and this much later.
    pub pause: Duration,
    /// The worker whom it meets, where it meets one.
    pub worker: usize,
}

/// What a seed stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The lag of the run.
    pub lag: u32,
    /// What rewards are compared within.
    pub group: &'static str,
    /// Whether the run's directory is seen through a FUSE file system.
    pub is_fuse: bool,
    /// In the order in which they come.
    pub faults: Vec<Planned>,
}

const GROUPS: [&str; 3] = ["seed", "prompt", "batch"];
/// The longest pause after an iteration, which is longer than an iteration takes.
const LONGEST_PAUSE_MS: u64 = 1500;

impl Schedule {
    /// The schedule of a seed: `n_faults` of those in `among`, each once before any comes twice.
    ///
    /// # Panics
    /// If `among` is empty.
    pub fn of(seed: u64, n_faults: usize, among: &[Fault]) -> Self {
        assert!(!among.is_empty(), "a schedule draws from some faults");
        let mut draws = Draws { seed, count: 0 };
        let (lag, group) = (draws.below(2) as u32, GROUPS[draws.below(3) as usize]);
        let is_fuse = draws.below(2) == 1;
        let mut left = Vec::new();
        let faults = (0..n_faults).map(|idx| {
            if left.is_empty() {
                left = among.to_vec();
            }
            let fault = left.remove(draws.below(left.len() as u64) as usize);
            let pause = Duration::from_millis(draws.below(LONGEST_PAUSE_MS));
            Planned { fault, iterations: 1 + idx, pause, worker: draws.below(2) as usize }
        });
        Self { lag, group, is_fuse, faults: faults.collect() }
    }

    /// Iterations of a run that outlasts all its faults: an iteration takes a third of a second, a fault up to ten seconds
    /// until it is noticed.
    pub fn iterations(&self) -> usize {
        self.faults.len() * 40 + 10
    }
}

struct Draws {
    seed: u64,
    count: u64,
}

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.count += 1;
        let key = [self.seed.to_le_bytes(), self.count.to_le_bytes()].concat();
        let hash = blake3::hash(&key);
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        u64::from_le_bytes(first) % bound
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{FAULTS, Schedule};

    #[test]
    fn a_seed_stands_for_one_schedule_and_another_for_another() {
        assert_eq!(Schedule::of(7, 14, &FAULTS), Schedule::of(7, 14, &FAULTS));
        assert_ne!(Schedule::of(7, 14, &FAULTS), Schedule::of(8, 14, &FAULTS));
    }

    #[test]
    fn every_fault_comes_before_any_comes_twice() {
        let kinds = |n: usize| {
            let schedule = Schedule::of(3, n, &FAULTS);
            schedule.faults.iter().map(|planned| planned.fault).collect::<BTreeSet<_>>().len()
        };
        assert_eq!((kinds(FAULTS.len()), kinds(5)), (FAULTS.len(), 5));
    }

    #[test]
    fn seeds_reach_both_lags_all_groups_and_both_file_systems() {
        let reached: BTreeSet<_> = (0..64)
            .map(|seed| Schedule::of(seed, 1, &FAULTS))
            .map(|found| (found.lag, found.group, found.is_fuse))
            .collect();
        assert_eq!(reached.len(), 12);
    }
}
