//! A worker fetches weights: as `rollout-worker/src/errands/weights.rs`.

use super::{Event, KEPT_VERSIONS, Weights, Worker, patience};
use crate::bug::Bug;
use crate::hands::{Sampling, fetch_failure};
use crate::stage::{Answer, Callee, Reply, Request, Stage, Wake};
use proto::Work;
use protocol::{FetchFailure, Fetching, WeightsName};
use std::time::Duration;

/// A stream that stands still for that long is given up.
const WEIGHTS_DEADLINE: Duration = Duration::from_secs(60);

impl Worker {
    pub(super) fn begin_fetching(&mut self, name: WeightsName, stage: &mut Stage) {
        let work = self.line.in_hand.begin(Work::Waiting, stage.now);
        let number = self.number();
        let name = match stage.has(Bug::SamplesWithNewestWeights) {
            true => self
                .kept
                .iter()
                .map(|(name, _)| *name)
                .filter(|kept| kept.role == name.role)
                .max()
                .unwrap_or(name),
            false => name,
        };
        let fetching = Fetching::new(name);
        self.sampling = Sampling::Fetching { name, fetching, work, number, call: None };
        match self.kept.iter().position(|(kept, _)| *kept == name) {
            Some(position) => {
                let weights = self.kept[position];
                self.fetched(weights, stage);
            }
            None => self.fetch(stage),
        }
    }

    pub(super) fn fetched(&mut self, weights: Weights, stage: &mut Stage) {
        self.kept.retain(|(kept, _)| *kept != weights.0);
        self.kept.push_back(weights);
        if self.kept.len() > KEPT_VERSIONS {
            self.kept.pop_front();
        }
        self.end_fetching();
        self.feed(Event::Fetched(Ok(weights)), stage);
    }

    pub(super) fn end_fetching(&mut self) {
        if let Sampling::Fetching { work, .. } = std::mem::replace(&mut self.sampling, Sampling::Idle) {
            self.line.in_hand.end(work);
        }
    }

    pub(super) fn fetch(&mut self, stage: &mut Stage) {
        let learner = self.learner;
        let Sampling::Fetching { name, work, number, call, .. } = &mut self.sampling else { return };
        match learner {
            Some(learner) => {
                *call = Some(stage.call(Callee::Learner(learner), Request::Weights(*name), WEIGHTS_DEADLINE));
            }
            None => {
                self.line.in_hand.progressed(*work, stage.now);
                stage.after(self.pauses[0].next_pause(), Wake::FetchAgain(*number));
            }
        }
    }

    pub(super) fn fetch_answered(&mut self, answer: &Answer, stage: &mut Stage) {
        let Sampling::Fetching { name, fetching, work, number, call, .. } = &mut self.sampling else {
            return;
        };
        *call = None;
        self.line.in_hand.progressed(*work, stage.now);
        let failure = match answer {
            Ok(Reply::Weights(digest)) => {
                self.pauses[0] = patience(stage);
                let weights = (*name, *digest);
                return self.fetched(weights, stage);
            }
            Ok(_) => FetchFailure::Unavailable("another answer".to_owned()),
            Err(status) => fetch_failure(status),
        };
        match fetching.on(failure) {
            Ok(()) => stage.after(self.pauses[0].next_pause(), Wake::FetchAgain(*number)),
            Err(error) => {
                self.end_fetching();
                self.feed(Event::Fetched(Err(error)), stage);
            }
        }
    }
}
