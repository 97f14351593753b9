//! From whom workers fetch weights, as they tell it: the plan of [`RelayPlan`], with addresses and with the time.
//!
//! A stream that the plan knows of and no heartbeat confirms for a while has ended, or never began: the answer was lost.

use protocol::{RelayPlan, SourceAdvice, SourceSought, WeightsName, WeightsSource, WeightsStream};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What a worker tells of its weights, all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightsTold {
    /// Where it serves them, `host:port`; empty where it does not.
    pub address: String,
    /// What it has.
    pub held: Vec<WeightsName>,
    /// What it fetches.
    pub fetching: Option<WeightsName>,
}

/// A worker that looks for a source, with who failed it and why.
#[derive(Clone, Debug)]
pub struct Seeker {
    /// Who asks.
    pub worker: String,
    /// For these weights.
    pub name: WeightsName,
    /// Workers that have failed it at these, and what befell.
    pub failed: Vec<(String, String)>,
}

/// Where weights are to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceAddress {
    /// At the learner.
    Learner,
    /// At a worker.
    Worker {
        /// Which one.
        member_id: String,
        /// Where it serves.
        address: String,
    },
}

/// Who has which weights and who fetches them from whom.
#[derive(Clone, Debug, Default)]
pub struct WeightsRelay {
    plan: RelayPlan,
    /// Of workers that serve.
    addresses: BTreeMap<String, String>,
    /// When each stream was last heard of, by who fetches.
    heard: BTreeMap<String, Instant>,
    /// How many failures of a search were taken down, by who searches for what.
    noted: BTreeMap<String, (WeightsName, usize)>,
    /// Grows with all that may give a waiting worker a source.
    n_changes: u64,
}

impl WeightsRelay {
    /// Takes a worker's word for what it has; a stream that has brought what it was to is over, and returned.
    pub fn told(&mut self, worker: &str, told: &WeightsTold, now: Instant) -> Option<WeightsStream> {
        self.serves(worker, told);
        let name = self.plan.stream(worker)?.name;
        if told.held.contains(&name) {
            self.forget_search(worker);
            self.n_changes += 1;
            return self.plan.end(worker);
        }
        if told.fetching == Some(name) {
            self.heard.insert(worker.to_owned(), now);
        }
        None
    }

    fn serves(&mut self, worker: &str, told: &WeightsTold) {
        let served: &[WeightsName] = if told.address.is_empty() { &[] } else { &told.held };
        self.n_changes += u64::from(self.plan.holds(worker, served));
        match served {
            [] => drop(self.addresses.remove(worker)),
            _ => drop(self.addresses.insert(worker.to_owned(), told.address.clone())),
        }
    }

    /// Finds a source for a worker; `None` while all have enough to do.
    pub fn seek(&mut self, seeker: &Seeker, n_workers: usize, now: Instant) -> Option<SourceAddress> {
        let Seeker { worker, name, failed } = seeker;
        let failed: Vec<String> = failed.iter().map(|(source, _)| source.clone()).collect();
        if self.plan.stream(worker).is_some() {
            self.n_changes += 1;
        }
        let sought = SourceSought { worker, name: *name, failed: &failed, n_workers };
        let SourceAdvice::Fetch(source) = self.plan.seek(sought) else {
            self.heard.remove(worker);
            return None;
        };
        self.heard.insert(worker.clone(), now);
        Some(match source {
            WeightsSource::Learner => SourceAddress::Learner,
            WeightsSource::Worker(member_id) => {
                let address = self.addresses.get(&member_id).cloned().unwrap_or_default();
                SourceAddress::Worker { member_id, address }
            }
        })
    }

    /// Those failures of a search that were not told before.
    pub fn new_failures<'a>(&mut self, seeker: &'a Seeker) -> &'a [(String, String)] {
        let n_failed = seeker.failed.len();
        let (name, n_noted) = self.noted.get(&seeker.worker).copied().unwrap_or((seeker.name, 0));
        let n_noted = if name == seeker.name { n_noted.min(n_failed) } else { 0 };
        match n_failed {
            0 => drop(self.noted.remove(&seeker.worker)),
            _ => drop(self.noted.insert(seeker.worker.clone(), (seeker.name, n_failed))),
        }
        &seeker.failed[n_noted..]
    }

    /// A worker is gone, or begins anew.
    pub fn gone(&mut self, worker: &str) {
        self.plan.gone(worker);
        self.addresses.remove(worker);
        self.forget_search(worker);
        self.n_changes += 1;
    }

    /// Ends streams that were not heard of for so long.
    pub fn expire(&mut self, patience: Duration, now: Instant) {
        let is_silent = |heard: &Instant| now.saturating_duration_since(*heard) > patience;
        let silent: Vec<String> = self
            .heard
            .iter()
            .filter(|(_, heard)| is_silent(heard))
            .map(|(worker, _)| worker.clone())
            .collect();
        for worker in silent {
            self.heard.remove(&worker);
            self.plan.end(&worker);
            self.n_changes += 1;
        }
    }

    /// Grows with all that may give a waiting worker a source.
    pub fn n_changes(&self) -> u64 {
        self.n_changes
    }

    fn forget_search(&mut self, worker: &str) {
        self.heard.remove(worker);
        self.noted.remove(worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::FAN_OUT;

    const NAME: WeightsName = WeightsName { version: 3, role: protocol::WeightsRole::Policy };
    const PATIENCE: Duration = Duration::from_secs(5);

    fn seeker(worker: &str, failed: &[&str]) -> Seeker {
        let failed = failed.iter().map(|source| ((*source).to_owned(), "it was cut".to_owned())).collect();
        Seeker { worker: worker.to_owned(), name: NAME, failed }
    }

    fn has(held: &[WeightsName], fetching: Option<WeightsName>) -> WeightsTold {
        WeightsTold { address: "10.0.0.1:7".to_owned(), held: held.to_vec(), fetching }
    }

    #[test]
    fn who_has_the_version_serves_the_next_and_the_stream_that_brought_it_is_told() {
        let (mut relay, now) = (WeightsRelay::default(), Instant::now());
        assert_eq!(relay.seek(&seeker("a", &[]), 9, now), Some(SourceAddress::Learner));
        assert_eq!(relay.told("a", &has(&[], Some(NAME)), now), None);
        let stream = relay.told("a", &has(&[NAME], None), now).expect("it is here");
        assert_eq!((stream.name, stream.source), (NAME, WeightsSource::Learner));
        assert_eq!(relay.told("a", &has(&[NAME], None), now), None, "once");
        let of_a = SourceAddress::Worker { member_id: "a".to_owned(), address: "10.0.0.1:7".to_owned() };
        assert_eq!(relay.seek(&seeker("b", &[]), 9, now), Some(of_a));
        let silent = WeightsTold { address: String::new(), ..has(&[NAME], None) };
        relay.told("a", &silent, now);
        assert_eq!(
            relay.seek(&seeker("b", &["a"]), 9, now),
            Some(SourceAddress::Learner),
            "it serves nobody"
        );
    }

    #[test]
    fn a_stream_that_no_heartbeat_confirms_keeps_nobody_waiting() {
        let (mut relay, start) = (WeightsRelay::default(), Instant::now());
        for worker in ["a", "b"] {
            assert_eq!(relay.seek(&seeker(worker, &[]), 9, start), Some(SourceAddress::Learner));
        }
        assert_eq!(relay.seek(&seeker("c", &[]), 9, start), None);
        let later = start + PATIENCE;
        relay.told("a", &has(&[], Some(NAME)), later);
        relay.expire(PATIENCE, later);
        assert_eq!(relay.seek(&seeker("c", &[]), 9, later), None);
        let before = relay.n_changes();
        relay.expire(PATIENCE, later + Duration::from_millis(1));
        assert!(relay.n_changes() > before, "who waits is told");
        assert_eq!(relay.seek(&seeker("c", &[]), 9, later), Some(SourceAddress::Learner));
        assert_eq!(relay.seek(&seeker("d", &[]), 9, later), None, "a is still fetching");
        relay.gone("a");
        assert_eq!(relay.seek(&seeker("d", &[]), 9, later), Some(SourceAddress::Learner));
        assert_eq!(FAN_OUT, 2);
    }

    #[test]
    fn each_failure_is_told_once() {
        let mut relay = WeightsRelay::default();
        assert!(relay.new_failures(&seeker("c", &[])).is_empty());
        assert_eq!(relay.new_failures(&seeker("c", &["a"])).len(), 1);
        assert!(relay.new_failures(&seeker("c", &["a"])).is_empty(), "it asks again");
        assert_eq!(relay.new_failures(&seeker("c", &["a", "b"]))[0].0, "b");
        let other = Seeker { name: WeightsName::average(3), ..seeker("c", &["a"]) };
        assert_eq!(relay.new_failures(&other).len(), 1);
        relay.gone("c");
        assert!(relay.noted.is_empty());
    }
}
