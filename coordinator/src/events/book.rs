//! Events that were not written down yet, and how many there have been of each kind.

use super::{CAUSES, Event};
use crate::membership::Refusal;
use protocol::TaskName;
use serde::Serialize;
use std::collections::BTreeMap;

/// Refused names that are remembered, so that each refusal is said once.
const MOST_REFUSED: usize = 1000;

/// How often something was decided for a cause, since the coordinator was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventCount {
    /// What was decided.
    pub event: String,
    /// Why, in a word; empty where there is but one cause.
    pub cause: String,
    /// How often.
    pub count: u64,
}

/// How a worker got a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenAs {
    /// It asked for one.
    Granted,
    /// It had it when it joined.
    Claimed,
}

/// Takes down what is decided.
#[derive(Clone, Debug)]
pub struct EventBook {
    new: Vec<Event>,
    counts: BTreeMap<(&'static str, &'static str), u64>,
    /// Why each name was refused last, that of a process which asks again and again.
    refused: BTreeMap<String, &'static str>,
}

impl Default for EventBook {
    fn default() -> Self {
        let labels = CAUSES.iter().flat_map(|(event, causes)| causes.iter().map(|cause| (*event, *cause)));
        let counts = labels.map(|label| (label, 0)).collect();
        Self { new: Vec::new(), counts, refused: BTreeMap::new() }
    }
}

impl EventBook {
    /// Takes down one more.
    pub fn note(&mut self, event: Event) {
        let label = event.label();
        debug_assert!(self.counts.contains_key(&label), "{label:?} is not among the causes");
        *self.counts.entry(label).or_default() += 1;
        self.new.push(event);
    }

    /// A process was not let in.
    pub fn refused(&mut self, member: &str, refusal: &Refusal) {
        let cause = refusal.cause();
        if self.refused.len() >= MOST_REFUSED {
            self.refused.clear();
        }
        if self.refused.insert(member.to_owned(), cause) != Some(cause) {
            let (member, reason) = (member.to_owned(), refusal.to_string());
            self.note(Event::MemberRefused { member, cause, reason });
        }
    }

    /// A process was let in.
    pub fn joined(&mut self, event: Event) {
        if let Event::MemberJoined { member, .. } = &event {
            self.refused.remove(member);
        }
        self.note(event);
    }

    /// The tasks of a worker changed: those that are new it has `given_as`, those that are gone it gave back for a `cause`.
    pub fn tasks_changed(
        &mut self,
        worker: &str,
        (before, after): (&[TaskName], &[TaskName]),
        given_as: GivenAs,
        cause: &'static str,
    ) {
        for &task in before.iter().filter(|task| !after.contains(task)) {
            self.note(Event::TaskReturned { task, member: worker.to_owned(), cause });
        }
        for &task in after.iter().filter(|task| !before.contains(task)) {
            let member = worker.to_owned();
            self.note(match given_as {
                GivenAs::Granted => Event::TaskGranted { task, member },
                GivenAs::Claimed => Event::TaskClaimed { task, member },
            });
        }
    }

    /// Those that were not taken yet.
    pub fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.new)
    }

    /// All counts, those that are 0 included.
    pub fn counts(&self) -> Vec<EventCount> {
        let count = |(&(event, cause), &count): (&(&str, &str), &u64)| EventCount {
            event: event.to_owned(),
            cause: cause.to_owned(),
            count,
        };
        self.counts.iter().map(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::TaskKind;

    fn task(index: u32) -> TaskName {
        TaskName { iteration: 0, kind: TaskKind::Train, index }
    }

    #[test]
    fn what_a_worker_has_more_or_less_is_an_event_and_is_counted() {
        let mut book = EventBook::default();
        assert!(book.counts().iter().all(|count| count.count == 0), "shown before it happens");
        let change = (&[task(0), task(1)][..], &[task(1), task(2)][..]);
        book.tasks_changed("a", change, GivenAs::Granted, "not_wanted");
        let member = "a".to_owned();
        assert_eq!(
            book.take(),
            [
                Event::TaskReturned { task: task(0), member: member.clone(), cause: "not_wanted" },
                Event::TaskGranted { task: task(2), member }
            ]
        );
        assert!(book.take().is_empty());
        let count = |event: &str, cause: &str| {
            let found = book
                .counts()
                .into_iter()
                .find(|count| (count.event.as_str(), count.cause.as_str()) == (event, cause));
            found.expect("known").count
        };
        assert_eq!((count("task_returned", "not_wanted"), count("task_granted", "")), (1, 1));
    }

    #[test]
    fn who_asks_in_vain_again_and_again_is_said_once() {
        let mut book = EventBook::default();
        for refusal in [&Refusal::Full, &Refusal::Full, &Refusal::Malformed("a nonce"), &Refusal::Full] {
            book.refused("a", refusal);
        }
        assert_eq!(book.take().len(), 3);
        for number in 0..3 * MOST_REFUSED {
            book.refused(&number.to_string(), &Refusal::Full);
        }
        assert!(book.refused.len() <= MOST_REFUSED);
    }
}
