//! Which group the ranks of the learner are to form: a decision without I/O and without a clock.
//!
//! Invariants:
//! 1. A group has all ranks, each as the process that lives now; while one is missing there is none to form.
//! 2. Whenever a process takes the place of another, or a member says that the group broke, there is a new epoch. Epochs grow,
//!    also over restarts of the coordinator, since they are no less than the incarnations of their members.
//! 3. There is no deadline here: who hangs while it forms a group loses its membership as anybody does, and who died is
//!    replaced, which both make a new epoch. Nobody waits for a group that nobody was told of.

use proto::RankGroup;

/// A rank as it lives now.
#[derive(Clone, Copy, Debug)]
pub struct LivingRank<'a> {
    /// Its incarnation, which a process gets anew when it joins anew.
    pub incarnation: u64,
    /// Random bytes that only it and the coordinator know.
    pub nonce: &'a [u8],
    /// Where other ranks reach it.
    pub address: &'a str,
}

/// The groups of one run, one after the other.
#[derive(Clone, Debug, Default)]
pub struct RankGroups {
    epoch: u64,
    /// Incarnations of the members of the newest group, by rank.
    members: Vec<u64>,
    /// The newest epoch that a member says broke.
    broken: u64,
}

impl RankGroups {
    /// Hears that the group of an epoch works no more.
    pub fn note_broken(&mut self, epoch: u64) {
        // No member knows of a later epoch than the newest.
        self.broken = self.broken.max(epoch.min(self.epoch));
    }

    /// The group that these are to form, all ranks in order; and why, if it is a new one.
    pub fn group(&mut self, ranks: &[LivingRank<'_>]) -> (RankGroup, Option<&'static str>) {
        let members: Vec<u64> = ranks.iter().map(|rank| rank.incarnation).collect();
        let cause = match &self.members {
            earlier if earlier.is_empty() => Some("first"),
            earlier if *earlier != members => Some("replaced"),
            _ if self.broken == self.epoch => Some("broken"),
            _ => None,
        };
        if cause.is_some() {
            self.epoch = members.iter().copied().fold(self.epoch + 1, u64::max);
            self.members = members;
        }
        let addresses = ranks.iter().map(|rank| rank.address.to_owned()).collect();
        (RankGroup { epoch: self.epoch, id: self.id(ranks), addresses }, cause)
    }

    /// Nobody can guess it who does not know the nonces of all members.
    fn id(&self, ranks: &[LivingRank<'_>]) -> bytes::Bytes {
        let mut hasher = blake3::Hasher::new_derive_key("tempflow group of learner ranks");
        hasher.update(&self.epoch.to_le_bytes());
        ranks.iter().for_each(|rank| {
            hasher.update(rank.nonce);
        });
        bytes::Bytes::copy_from_slice(&hasher.finalize().as_bytes()[..16])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(incarnations: &[u64]) -> Vec<LivingRank<'_>> {
        let rank = |&incarnation| LivingRank { incarnation, nonce: b"nonce", address: "here:1" };
        incarnations.iter().map(rank).collect()
    }

    #[test]
    fn a_group_stays_until_a_rank_is_replaced_or_says_that_it_broke() {
        let mut groups = RankGroups::default();
        let (first, cause) = groups.group(&ranks(&[7, 9]));
        assert_eq!((first.epoch, first.addresses.len(), cause), (9, 2, Some("first")));
        assert_eq!(groups.group(&ranks(&[7, 9])), (first.clone(), None));
        let (second, cause) = groups.group(&ranks(&[7, 10]));
        assert_eq!((second.epoch, cause), (10, Some("replaced")));
        assert_ne!(first.id, second.id);
        groups.note_broken(10);
        let (third, cause) = groups.group(&ranks(&[7, 10]));
        assert_eq!((third.epoch, cause), (11, Some("broken")));
        assert_ne!(third.id, second.id);
    }

    #[test]
    fn what_is_said_of_an_earlier_or_an_unknown_epoch_changes_nothing() {
        let mut groups = RankGroups::default();
        groups.group(&ranks(&[1, 2]));
        groups.group(&ranks(&[1, 3]));
        groups.note_broken(2);
        assert_eq!(groups.group(&ranks(&[1, 3])).1, None);
        groups.note_broken(u64::MAX);
        assert_eq!(groups.group(&ranks(&[1, 3])).1, Some("broken"), "the newest is what it can know of");
        assert_eq!(groups.group(&ranks(&[1, 3])).1, None, "and it is said once");
    }
}
