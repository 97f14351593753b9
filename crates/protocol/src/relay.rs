//! From whom a worker fetches a version of the weights, so that the learner sends it a few times however many want it.
//!
//! Whoever holds a version gives it to two others at a time, and those to two others each: the time grows with the logarithm of
//! the number of workers. The plan knows names alone. What is sent is checked by who gets it, against the learner's own manifest.
//!
//! Invariants:
//! 1. No source serves more than [`FAN_OUT`] at a time of those that the plan sent to it.
//! 2. A worker is never sent to itself, to one that does not hold the version, nor to one that has failed it; one that has
//!    failed [`MOST_DOUBTS`] workers at a version serves that version to nobody.
//! 3. Nobody is told to wait while no stream flows, the learner being there for whoever finds no other source. Streams end, since
//!    who fetches says so, fails, or is gone; so nobody waits for ever.
//! 4. What is remembered is bounded by the workers that live and the versions that they hold.
//! 5. What a search costs does not grow with the number of workers, but for the depth of a map: who has room is kept, not looked
//!    for. Many workers search at once, and again whenever something changes.

mod search;

pub use search::{SearchStep, SourceSearch};

use crate::WeightsName;
use std::collections::{BTreeMap, BTreeSet};

/// Streams that a source serves at a time.
pub const FAN_OUT: usize = 2;
/// With fewer workers the learner serves all of them at once by itself.
pub const FEWEST_WORKERS: usize = FAN_OUT + 1;
/// Versions that one worker may say it holds.
pub const MOST_HELD: usize = 8;
/// Sources that may fail a worker before it is left to the learner.
pub const MOST_FAILED_SOURCES: usize = 4;
/// Workers that a source may fail at a version before it serves that version to nobody.
const MOST_DOUBTS: usize = 2;

/// Who sends weights.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WeightsSource {
    /// Who made them.
    Learner,
    /// A worker that holds them, by its member id.
    Worker(String),
}

/// A worker that looks for a source.
#[derive(Clone, Copy, Debug)]
pub struct SourceSought<'a> {
    /// Who asks.
    pub worker: &'a str,
    /// For these weights.
    pub name: WeightsName,
    /// Workers that have failed it at these weights, by member id.
    pub failed: &'a [String],
    /// Workers that live.
    pub n_workers: usize,
}

/// What a worker that looks for a source is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceAdvice {
    /// Fetch from this one.
    Fetch(WeightsSource),
    /// Ask again once something has changed: all sources have enough to do.
    Wait,
}

/// A stream that the plan sent a worker to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightsStream {
    /// What flows.
    pub name: WeightsName,
    /// From whom.
    pub source: WeightsSource,
}

/// Who holds what, and who serves whom.
#[derive(Clone, Debug, Default)]
pub struct RelayPlan {
    /// What workers hold and serve, with the workers that they failed at it.
    holders: Holders,
    /// Who fetches now; one at a time each.
    streams: BTreeMap<String, WeightsStream>,
    /// How many streams each source serves, of those that serve some.
    n_served: BTreeMap<WeightsSource, usize>,
    /// Of each version, the workers that may be sent another asker, with how many they serve.
    with_room: BTreeMap<WeightsName, BTreeSet<(usize, String)>>,
}

/// By worker and version, the workers that were failed.
type Holders = BTreeMap<String, BTreeMap<WeightsName, BTreeSet<String>>>;

impl RelayPlan {
    /// Takes a worker's word for what it holds and serves, all of it; whether that is news.
    pub fn holds(&mut self, worker: &str, names: &[WeightsName]) -> bool {
        let held: BTreeSet<WeightsName> = names.iter().take(MOST_HELD).copied().collect();
        let known = self.holders.get(worker);
        if known.map_or(held.is_empty(), |known| known.keys().eq(held.iter())) {
            return false;
        }
        self.change_holder(worker, |holders| {
            let mut before = holders.remove(worker).unwrap_or_default();
            let kept = held.into_iter().map(|name| (name, before.remove(&name).unwrap_or_default()));
            let kept: BTreeMap<_, _> = kept.collect();
            if !kept.is_empty() {
                holders.insert(worker.to_owned(), kept);
            }
        });
        true
    }

    /// Sends a worker to a source, in place of where it was sent before.
    pub fn seek(&mut self, sought: SourceSought) -> SourceAdvice {
        let SourceSought { worker, name, failed, n_workers } = sought;
        self.end(worker);
        failed.iter().take(MOST_FAILED_SOURCES).for_each(|source| self.doubt(worker, name, source));
        let source = match self.free_holder(&sought) {
            Some(holder) => WeightsSource::Worker(holder),
            None if n_workers < FEWEST_WORKERS || self.n_served(&WeightsSource::Learner) < FAN_OUT => {
                WeightsSource::Learner
            }
            None => return SourceAdvice::Wait,
        };
        self.streams.insert(worker.to_owned(), WeightsStream { name, source: source.clone() });
        self.count(&source, |n_served| n_served + 1);
        SourceAdvice::Fetch(source)
    }

    /// The worker that holds the weights, may be asked, and serves fewest.
    fn free_holder(&self, sought: &SourceSought) -> Option<String> {
        if sought.n_workers < FEWEST_WORKERS || sought.failed.len() >= MOST_FAILED_SOURCES {
            return None;
        }
        let has_failed = |holder: &String| sought.failed.contains(holder);
        let mut with_room = self.with_room.get(&sought.name)?.iter().map(|(_, holder)| holder);
        with_room.find(|holder| *holder != sought.worker && !has_failed(holder)).cloned()
    }

    /// Changes how many streams a source serves.
    fn count(&mut self, source: &WeightsSource, change: impl FnOnce(usize) -> usize) {
        let n_served = change(self.n_served(source));
        let note = |counts: &mut BTreeMap<WeightsSource, usize>| match n_served {
            0 => drop(counts.remove(source)),
            _ => drop(counts.insert(source.clone(), n_served)),
        };
        match source {
            WeightsSource::Learner => note(&mut self.n_served),
            WeightsSource::Worker(holder) => {
                self.unlist(holder);
                note(&mut self.n_served);
                self.list(holder);
            }
        }
    }

    /// Changes what a worker holds, or whom it failed.
    fn change_holder(&mut self, holder: &str, change: impl FnOnce(&mut Holders)) {
        self.unlist(holder);
        change(&mut self.holders);
        self.list(holder);
    }

    /// Has a worker among those with room, for the versions of which it has some.
    fn list(&mut self, holder: &str) {
        let entry = self.entry(holder);
        if entry.0 < FAN_OUT {
            let held = self.holders.get(holder).into_iter().flatten();
            for (name, _) in held.filter(|(_, doubts)| doubts.len() < MOST_DOUBTS) {
                self.with_room.entry(*name).or_default().insert(entry.clone());
            }
        }
    }

    /// Takes a worker from those with room; to be done before anything changes by which it was listed.
    fn unlist(&mut self, holder: &str) {
        let entry = self.entry(holder);
        for name in self.holders.get(holder).into_iter().flat_map(BTreeMap::keys) {
            if let Some(with_room) = self.with_room.get_mut(name) {
                with_room.remove(&entry);
                if with_room.is_empty() {
                    self.with_room.remove(name);
                }
            }
        }
    }

    fn entry(&self, holder: &str) -> (usize, String) {
        (self.n_served(&WeightsSource::Worker(holder.to_owned())), holder.to_owned())
    }

    fn doubt(&mut self, worker: &str, name: WeightsName, source: &str) {
        self.change_holder(source, |holders| {
            if let Some(doubts) = holders.get_mut(source).and_then(|held| held.get_mut(&name))
                && doubts.len() < MOST_DOUBTS
            {
                doubts.insert(worker.to_owned());
            }
        });
    }

    /// Streams that a source serves now.
    pub fn n_served(&self, source: &WeightsSource) -> usize {
        self.n_served.get(source).copied().unwrap_or(0)
    }

    /// The stream that a worker was sent to, if it has not ended.
    pub fn stream(&self, worker: &str) -> Option<&WeightsStream> {
        self.streams.get(worker)
    }

    /// All streams, by who fetches.
    pub fn streams(&self) -> impl Iterator<Item = (&str, &WeightsStream)> {
        self.streams.iter().map(|(worker, stream)| (worker.as_str(), stream))
    }

    /// The stream that a worker was sent to has ended, well or not.
    pub fn end(&mut self, worker: &str) -> Option<WeightsStream> {
        let stream = self.streams.remove(worker)?;
        self.count(&stream.source, |n_served| n_served.saturating_sub(1));
        Some(stream)
    }

    /// A worker is gone: it serves nobody and fetches nothing. Who fetches from it will fail, and say so.
    pub fn gone(&mut self, worker: &str) {
        self.change_holder(worker, |holders| drop(holders.remove(worker)));
        self.end(worker);
    }
}

#[cfg(test)]
mod tests;
