//! Tasks of one kind and iteration that a rank of the learner wants, and which of them it holds.

use std::collections::BTreeSet;

/// Those of the tasks `0 .. n_tasks` that are one rank's own.
#[derive(Clone, Debug)]
pub(super) struct WantedSet {
    is_held: Vec<bool>,
    n_own: u32,
    n_held: u32,
    open_below: u32,
    /// Those that nobody has: neither held nor delivered nor with a worker.
    free: BTreeSet<u32>,
}

impl WantedSet {
    /// A set of which the learner holds some, and has room for those below an index; `n_own` of the `n_tasks` are the rank's
    /// own. Numbers that are none of the set's are passed over.
    pub(super) fn new((n_tasks, n_own): (u32, u32), held: &[u32], open_below: u32) -> Self {
        let mut set = Self {
            is_held: vec![false; n_tasks as usize],
            n_own,
            n_held: 0,
            open_below,
            free: BTreeSet::new(),
        };
        for &index in held {
            if let Some(is_held @ false) = set.is_held.get_mut(index as usize) {
                *is_held = true;
                set.n_held += 1;
            }
        }
        set
    }

    /// The tasks that came, went, or are held now and were not before, or the other way round. What nobody had is taken over.
    pub(super) fn replace(&mut self, earlier: Option<Self>) -> Vec<u32> {
        let (before, free) = earlier.map(|earlier| (earlier.is_held, earlier.free)).unwrap_or_default();
        self.free = free;
        let n_ever = self.is_held.len().max(before.len());
        let changed = (0..n_ever).filter(|&index| self.is_held.get(index) != before.get(index));
        changed.map(|index| index as u32).collect()
    }

    /// Tasks that are the rank's own.
    pub(super) fn n_own(&self) -> u32 {
        self.n_own
    }

    pub(super) fn n_held(&self) -> u32 {
        self.n_held
    }

    pub(super) fn n_free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn has(&self, index: u32) -> bool {
        (index as usize) < self.is_held.len()
    }

    pub(super) fn is_held(&self, index: u32) -> bool {
        self.is_held.get(index as usize).is_some_and(|is_held| *is_held)
    }

    /// Notes whether nobody has a task.
    pub(super) fn set_free(&mut self, index: u32, is_free: bool) {
        if is_free {
            self.free.insert(index);
        } else {
            self.free.remove(&index);
        }
    }

    /// Tasks that nobody has and that there is room for, in order.
    pub(super) fn grantable(&self) -> impl Iterator<Item = u32> {
        self.free.range(..self.open_below).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_what_came_went_or_changed_hands() {
        let set = |n_tasks, held: &[u32]| WantedSet::new((n_tasks, n_tasks), held, n_tasks);
        let mut first = set(3, &[1, 1, 7, u32::MAX]);
        assert_eq!((first.n_own(), first.n_held(), first.is_held(1), first.is_held(7)), (3, 1, true, false));
        assert_eq!(first.replace(None), [0, 1, 2]);
        assert_eq!(set(3, &[2]).replace(Some(first.clone())), [1, 2]);
        assert_eq!(set(2, &[1]).replace(Some(first.clone())), [2]);
        assert!(set(3, &[1]).replace(Some(first)).is_empty());
    }

    #[test]
    fn what_is_free_and_has_room_can_be_granted() {
        let mut set = WantedSet::new((4, 4), &[0], 3);
        [1, 2, 3].into_iter().for_each(|index| set.set_free(index, true));
        set.set_free(1, false);
        assert_eq!((set.n_free(), set.grantable().collect::<Vec<_>>()), (2, vec![2]));
        let mut next = WantedSet::new((4, 4), &[0], 4);
        next.replace(Some(set));
        assert_eq!(next.grantable().collect::<Vec<_>>(), [2, 3], "what was free stays so");
    }
}
