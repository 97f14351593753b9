//! Who owns the run and which learner may change it, on a simulated disk.
//!
//! Real: [`OwnerRecord`] and what follows from it. Modelled: that an owner's claim and whom it lets write are written whole
//! and durably, in one step each. The coordinator of before is dead by then; it is learners of which several live.

use crate::bug::Bug;
use crate::disk::Disk;
use crate::disk::fence::{OWNER_FILE, read};
use crate::process::{ProcessId, holder};
use service::{Holder, OwnerRecord};

fn write(disk: &mut Disk, record: &OwnerRecord) {
    let text = serde_json::to_vec(record).expect("plain data; anything else is a bug");
    disk.put(OWNER_FILE, &text);
}

/// Makes a coordinator the owner. On the host of the one before, the learner that this let write goes on.
pub fn claim(disk: &mut Disk, own: ProcessId, is_elsewhere: bool, bug: Option<Bug>) -> OwnerRecord {
    let before = read(disk);
    let raised = u64::from(bug != Some(Bug::TakesOverWithoutEpoch) || before.is_none());
    let record = OwnerRecord {
        epoch: before.as_ref().map_or(0, |record| record.epoch) + raised,
        owner: holder(own),
        machine: String::new(),
        since: 0,
        is_released: false,
        learner: before.and_then(|record| record.learner).filter(|_| !is_elsewhere),
    };
    write(disk, &record);
    record
}

/// Records which learner may write.
pub fn let_write(disk: &mut Disk, record: &mut OwnerRecord, learner: Option<Holder>) {
    if record.learner != learner {
        record.learner = learner;
        write(disk, record);
    }
}
