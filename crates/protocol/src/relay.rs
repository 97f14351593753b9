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
    holders: BTreeMap<String, BTreeMap<WeightsName, BTreeSet<String>>>,
    /// Who fetches now; one at a time each.
    streams: BTreeMap<String, WeightsStream>,
}

impl RelayPlan {
    /// Takes a worker's word for what it holds and serves, all of it; whether that is news.
    pub fn holds(&mut self, worker: &str, names: &[WeightsName]) -> bool {
        let mut before = self.holders.remove(worker).unwrap_or_default();
        let n_before = before.len();
        let held = names.iter().take(MOST_HELD).map(|name| (*name, before.remove(name).unwrap_or_default()));
        let held: BTreeMap<_, _> = held.collect();
        let is_news = !before.is_empty() || held.len() != n_before;
        if !held.is_empty() {
            self.holders.insert(worker.to_owned(), held);
        }
        is_news
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
        SourceAdvice::Fetch(source)
    }

    /// The worker that holds the weights, may be asked, and serves fewest.
    fn free_holder(&self, sought: &SourceSought) -> Option<String> {
        if sought.n_workers < FEWEST_WORKERS || sought.failed.len() >= MOST_FAILED_SOURCES {
            return None;
        }
        let may_be_asked = |holder: &str, doubts: &BTreeSet<String>| {
            let has_failed =
                doubts.len() >= MOST_DOUBTS || sought.failed.iter().any(|failed| failed == holder);
            holder != sought.worker && !has_failed
        };
        let of_name =
            self.holders.iter().filter_map(|(holder, held)| Some((holder, held.get(&sought.name)?)));
        let counts = self.counts();
        let n_served = |holder: &str| counts.get(holder).copied().unwrap_or(0);
        of_name
            .filter(|(holder, doubts)| may_be_asked(holder, doubts))
            .map(|(holder, _)| (n_served(holder), holder))
            .filter(|(n_served, _)| *n_served < FAN_OUT)
            .min()
            .map(|(_, holder)| holder.clone())
    }

    /// Streams of each worker that serves some.
    fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for stream in self.streams.values() {
            if let WeightsSource::Worker(holder) = &stream.source {
                *counts.entry(holder.as_str()).or_default() += 1;
            }
        }
        counts
    }

    fn doubt(&mut self, worker: &str, name: WeightsName, source: &str) {
        if let Some(doubts) = self.holders.get_mut(source).and_then(|held| held.get_mut(&name))
            && doubts.len() < MOST_DOUBTS
        {
            doubts.insert(worker.to_owned());
        }
    }

    /// Streams that a source serves now.
    pub fn n_served(&self, source: &WeightsSource) -> usize {
        self.streams.values().filter(|stream| stream.source == *source).count()
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
        self.streams.remove(worker)
    }

    /// A worker is gone: it serves nobody and fetches nothing. Who fetches from it will fail, and say so.
    pub fn gone(&mut self, worker: &str) {
        self.holders.remove(worker);
        self.streams.remove(worker);
    }
}

#[cfg(test)]
mod tests;
