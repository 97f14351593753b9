//! What is still to happen, in the order in which it will.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

/// Events by time; those of one time in the order in which they were put down.
#[derive(Debug)]
pub struct Agenda<E> {
    entries: BinaryHeap<Reverse<Entry<E>>>,
    n_put_down: u64,
    now: Duration,
}

#[derive(Debug)]
struct Entry<E> {
    at: Duration,
    number: u64,
    event: E,
}

impl<E> Entry<E> {
    fn place(&self) -> (Duration, u64) {
        (self.at, self.number)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self { entries: BinaryHeap::new(), n_put_down: 0, now: Duration::ZERO }
    }
}

impl<E> Agenda<E> {
    /// Time since the beginning.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Has something happen after a while.
    pub fn after(&mut self, pause: Duration, event: E) {
        self.at(self.now + pause, event);
    }

    /// Has something happen at a time, at once if that has passed.
    pub fn at(&mut self, at: Duration, event: E) {
        self.n_put_down += 1;
        let entry = Entry { at: at.max(self.now), number: self.n_put_down, event };
        self.entries.push(Reverse(entry));
    }

    /// The next event; its time is now.
    pub fn take(&mut self) -> Option<E> {
        let Reverse(Entry { at, event, .. }) = self.entries.pop()?;
        self.now = at;
        Some(event)
    }

    /// Has some of the events happen so much earlier, none before now.
    pub fn hasten(&mut self, by: Duration, is_meant: impl Fn(&E) -> bool) {
        let now = self.now;
        let moved = std::mem::take(&mut self.entries).into_iter().map(|Reverse(mut entry)| {
            if is_meant(&entry.event) {
                entry.at = entry.at.saturating_sub(by).max(now);
            }
            Reverse(entry)
        });
        self.entries = moved.collect();
    }

    /// Drops events that have no meaning any more.
    pub fn retain(&mut self, is_meant: impl Fn(&E) -> bool) {
        self.entries.retain(|Reverse(entry)| is_meant(&entry.event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_in_the_order_in_which_they_were_put_down() {
        let mut agenda = Agenda::default();
        for (pause, name) in [(5, "c"), (1, "a"), (5, "d"), (3, "b")] {
            agenda.after(Duration::from_secs(pause), name);
        }
        agenda.hasten(Duration::from_secs(9), |name| *name == "d");
        let order: Vec<_> = std::iter::from_fn(|| agenda.take()).collect();
        assert_eq!(order, ["d", "a", "b", "c"]);
        assert_eq!(agenda.now(), Duration::from_secs(5));
    }
}
