//! Tasks of one kind and iteration that the learner wants, and which of them it holds.

/// The tasks `0 .. n_tasks` of a set.
#[derive(Clone, Debug)]
pub(super) struct WantedSet {
    is_held: Vec<bool>,
    n_held: u32,
    open_below: u32,
}

impl WantedSet {
    /// A set of which the learner holds some, and has room for those below an index; numbers that are none of the set's are
    /// passed over.
    pub(super) fn new(n_tasks: u32, held: &[u32], open_below: u32) -> Self {
        let mut set = Self { is_held: vec![false; n_tasks as usize], n_held: 0, open_below };
        for &index in held {
            if let Some(is_held @ false) = set.is_held.get_mut(index as usize) {
                *is_held = true;
                set.n_held += 1;
            }
        }
        set
    }

    /// The tasks that came, went, or are held now and were not before, or the other way round.
    pub(super) fn changes_since(&self, earlier: Option<&Self>) -> impl Iterator<Item = u32> {
        let before = earlier.map_or(&[][..], |set| &set.is_held);
        let n_ever = self.is_held.len().max(before.len());
        (0..n_ever).filter(|&index| self.is_held.get(index) != before.get(index)).map(|index| index as u32)
    }

    pub(super) fn n_tasks(&self) -> u32 {
        self.is_held.len() as u32
    }

    pub(super) fn open_below(&self) -> u32 {
        self.open_below
    }

    pub(super) fn n_held(&self) -> u32 {
        self.n_held
    }

    pub(super) fn is_held(&self, index: u32) -> bool {
        self.is_held.get(index as usize).is_some_and(|is_held| *is_held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_what_came_went_or_changed_hands() {
        let changes =
            |now: &WantedSet, before: Option<&WantedSet>| now.changes_since(before).collect::<Vec<_>>();
        let first = WantedSet::new(3, &[1, 1, 7, u32::MAX], 3);
        assert_eq!(
            (first.n_tasks(), first.n_held(), first.is_held(1), first.is_held(7)),
            (3, 1, true, false)
        );
        assert_eq!(changes(&first, None), [0, 1, 2]);
        assert_eq!(changes(&WantedSet::new(3, &[2], 0), Some(&first)), [1, 2]);
        assert_eq!(changes(&WantedSet::new(2, &[1], 2), Some(&first)), [2]);
        assert!(changes(&first.clone(), Some(&first)).is_empty());
    }
}
