//! A short form of `make chaos`.

use tests::chaos::schedule::{Fault, Schedule};
use tests::chaos::{disturb, enclosure, undisturbed};

#[test]
fn a_run_on_three_hosts_that_faults_meet_ends_in_the_same_bits() {
    const NAME: &str = "a_run_on_three_hosts_that_faults_meet_ends_in_the_same_bits";
    let among = [
        Fault::KillWorker,
        Fault::KillLearner,
        Fault::KillCoordinator,
        Fault::CutFromHost,
        Fault::RewardServerLies,
    ];
    // Not every machine has bindfs.
    let schedule = Schedule { is_fuse: false, ..Schedule::of(1, among.len(), &among) };
    let tested = enclosure::test_inside(NAME, || disturb(&schedule, &undisturbed(&schedule)).map(drop));
    if let Err(missing) = tested {
        eprintln!("skipped: {missing}");
    }
}
