//! What the coordinator says of the group of ranks, between the network and the training thread.

use std::sync::{Condvar, Mutex, MutexGuard};

use collective::Aborter;
use proto::RankGroup;
use service::Membership;

use crate::exchange::inbox::Stopped;

/// The newest order, and what ends the group that it is not of.
#[derive(Default)]
pub struct RankOrders {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    newest: Option<RankGroup>,
    /// The newest epoch whose group works no more.
    broken: u64,
    /// The group that this rank forms or has.
    own: Option<(u64, Aborter)>,
    is_stopped: bool,
    /// Whom it is told that a group broke.
    membership: Option<Membership>,
}

impl RankOrders {
    /// From now on the coordinator hears of groups that break.
    pub fn told_by(&self, membership: Membership) {
        self.state().membership = Some(membership);
    }

    /// Takes what the coordinator says; a group of an earlier epoch is over.
    pub fn order(&self, order: RankGroup) {
        let mut state = self.state();
        if state.newest.as_ref().is_some_and(|newest| newest.epoch >= order.epoch) {
            return;
        }
        if let Some((_, aborter)) = state.own.take_if(|(epoch, _)| *epoch < order.epoch) {
            aborter.abort("the coordinator has the ranks form another group");
        }
        state.newest = Some(order);
        self.changed.notify_all();
    }

    /// Ends all waiting for other ranks, for good.
    pub fn stop(&self) {
        let mut state = self.state();
        state.is_stopped = true;
        if let Some((_, aborter)) = state.own.take() {
            aborter.abort("this rank is told to leave");
        }
        self.changed.notify_all();
    }

    /// The group to form, of a later epoch than the last that broke; waits for one.
    ///
    /// # Errors
    /// If this rank is told to leave.
    pub fn wait(&self) -> Result<RankGroup, Stopped> {
        // The lock is given back before the wait, which takes it.
        let broken = self.state().broken;
        self.wait_after(broken)
    }

    /// The first group of a later epoch than this; waits for one.
    ///
    /// # Errors
    /// If this rank is told to leave.
    pub fn wait_after(&self, epoch: u64) -> Result<RankGroup, Stopped> {
        let mut state = self.state();
        loop {
            if state.is_stopped {
                return Err(Stopped);
            }
            if let Some(newest) = state.newest.as_ref().filter(|newest| newest.epoch > epoch) {
                return Ok(newest.clone());
            }
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Whether there is an order of a later epoch.
    pub fn is_over(&self, epoch: u64) -> bool {
        let state = self.state();
        state.is_stopped || state.newest.as_ref().is_some_and(|newest| newest.epoch > epoch)
    }

    /// Notes that this rank forms a group, which ends when another is ordered: at once, if one has been meanwhile.
    pub fn forming(&self, epoch: u64, aborter: Aborter) {
        let mut state = self.state();
        if state.is_stopped || state.newest.as_ref().is_some_and(|newest| newest.epoch > epoch) {
            aborter.abort("the coordinator has the ranks form another group");
            return;
        }
        state.own = Some((epoch, aborter));
    }

    /// Notes that the group of an epoch works no more, and lets the coordinator know.
    pub fn broke(&self, epoch: u64) {
        let mut state = self.state();
        state.broken = state.broken.max(epoch);
        state.own.take_if(|(own, _)| *own == epoch);
        if let Some(membership) = &state.membership {
            membership.ranks_broke(epoch);
        }
    }

    /// Whether this rank is told to leave.
    pub fn is_stopped(&self) -> bool {
        self.state().is_stopped
    }

    // A std mutex: it is held for look-ups only.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn group(epoch: u64) -> RankGroup {
        RankGroup { epoch, ..RankGroup::default() }
    }

    fn aborter() -> (Aborter, Arc<AtomicBool>) {
        let is_aborted = Arc::new(AtomicBool::new(false));
        let seen = is_aborted.clone();
        (Aborter::new(move |_| seen.store(true, Ordering::Release)), is_aborted)
    }

    #[test]
    fn a_later_order_ends_the_group_and_an_earlier_one_is_passed_over() {
        let orders = RankOrders::default();
        orders.order(group(5));
        let (own, is_aborted) = aborter();
        orders.forming(5, own);
        orders.order(group(4));
        orders.order(group(5));
        assert!(!is_aborted.load(Ordering::Acquire) && !orders.is_over(5));
        orders.order(group(6));
        assert!(is_aborted.load(Ordering::Acquire) && orders.is_over(5));
        assert_eq!(orders.wait().map(|group| group.epoch), Ok(6));
        let (late, is_aborted) = aborter();
        orders.forming(5, late);
        assert!(is_aborted.load(Ordering::Acquire), "it was over before it began");
    }

    #[test]
    fn what_broke_is_waited_out_and_a_stop_ends_the_waiting() {
        let orders = Arc::new(RankOrders::default());
        orders.order(group(5));
        orders.broke(5);
        let waiting = std::thread::spawn({
            let orders = orders.clone();
            move || (orders.wait().map(|group| group.epoch), orders.wait_after(6).map(|group| group.epoch))
        });
        orders.order(group(6));
        orders.stop();
        let (first, second) = waiting.join().expect("no panic");
        assert!(first == Ok(6) || first == Err(Stopped));
        assert_eq!(second, Err(Stopped));
    }
}
