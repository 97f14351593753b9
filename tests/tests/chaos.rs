//! A short form of `make chaos`.

use tests::chaos::schedule::{Fault, Schedule};
use tests::chaos::{disturb, undisturbed};

#[test]
fn a_run_on_three_hosts_that_faults_meet_ends_in_the_same_bits() {
    let among = [Fault::KillWorker, Fault::KillLearner, Fault::KillCoordinator, Fault::CutFromHost];
    let schedule = Schedule::of(1, among.len(), &among);
    let expected = undisturbed(&schedule);
    if let Err(missing) = disturb(&schedule, &expected) {
        eprintln!("skipped: {missing}");
    }
}
