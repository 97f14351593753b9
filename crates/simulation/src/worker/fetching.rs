//! A worker fetches weights, and gives them to others: as `rollout-worker/src/errands/weights.rs` and `service::weights`.

use super::{Event, KEPT_VERSIONS, Weights, Worker, patience};
use crate::bug::Bug;
use crate::hands::{FetchStep, Sampling, fetch_failure};
use crate::line::TASK_WAIT;
use crate::process::{ProcessId, address, process_at};
use crate::stage::{Answer, CallId, Callee, Reply, Request, Stage, Wake};
use proto::{SeekWeightsReply, SeekWeightsRequest, WeightsStanding, Work, WorkerSource};
use protocol::{FetchFailure, Fetching, SearchStep, SourceSearch, WeightsName};
use std::time::Duration;
use tonic::Status;

/// A stream that stands still for that long is given up.
const WEIGHTS_DEADLINE: Duration = Duration::from_secs(60);
/// How long a worker that gives weights to others may say nothing.
const WORKER_DEADLINE: Duration = Duration::from_secs(20);
/// Between two questions for a source; the product's coordinator keeps who asks waiting instead.
const SEEK_PAUSE: Duration = Duration::from_secs(1);

/// What a worker gives to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Giving {
    /// What it has.
    Truly,
    /// Other bytes.
    Spoilt,
    /// It takes the call and says nothing.
    Never,
}

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
        let (fetching, search) = (Fetching::new(name), SourceSearch::default());
        let step = FetchStep::Seeks;
        self.sampling = Sampling::Fetching { name, fetching, search, step, work, number, call: None };
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
        let Sampling::Fetching { search, .. } = &self.sampling else { return };
        let step = if self.habits.shares_weights { search.next() } else { SearchStep::FromLearner };
        self.fetch_by(step, stage);
    }

    fn fetch_by(&mut self, next: SearchStep, stage: &mut Stage) {
        let (learner, caller) = (self.learner, self.line.caller().clone());
        let Sampling::Fetching { name, search, step, work, number, call, .. } = &mut self.sampling else {
            return;
        };
        let (of_learner, fetch_step) = match next {
            SearchStep::Seek => {
                let failed = search.failed().to_vec();
                let wait_seconds = TASK_WAIT.as_secs_f64();
                let (weights, caller) = (Some((*name).into()), Some(caller));
                let message = SeekWeightsRequest { caller, weights, failed, wait_seconds };
                let request = Request::SeekWeights(message);
                *step = FetchStep::Seeks;
                *call = Some(stage.call(Callee::Coordinator, request, 2 * TASK_WAIT));
                return;
            }
            SearchStep::FromLearner => (Request::Weights(*name), FetchStep::FromLearner),
            SearchStep::FromWorker(source) => {
                stage.laws.asks_source((stage.own, *number), &source.member_id);
                (Request::Manifest(*name), FetchStep::Manifest(source))
            }
        };
        match learner {
            Some(learner) => {
                *step = fetch_step;
                *call = Some(stage.call(Callee::Learner(learner), of_learner, WEIGHTS_DEADLINE));
            }
            None => {
                self.line.in_hand.progressed(*work, stage.now);
                stage.after(self.pauses[0].next_pause(), Wake::FetchAgain(*number));
            }
        }
    }

    pub(super) fn fetch_answered(&mut self, answer: &Answer, stage: &mut Stage) {
        let Sampling::Fetching { name, search, step, work, number, call, .. } = &mut self.sampling else {
            return;
        };
        *call = None;
        self.line.in_hand.progressed(*work, stage.now);
        match (step.clone(), answer) {
            (FetchStep::Seeks, Ok(Reply::Source(None))) => {
                search.on_reply(Some(SeekWeightsReply { source: None }));
                stage.after(SEEK_PAUSE, Wake::FetchAgain(*number));
            }
            (FetchStep::Seeks, answer) => {
                let reply = match answer {
                    Ok(Reply::Source(source)) => Some(SeekWeightsReply { source: source.clone() }),
                    _ => None,
                };
                let next = search.on_reply(reply);
                self.fetch_by(next, stage);
            }
            (FetchStep::Manifest(source), Ok(Reply::Manifest(digest))) => {
                let process = process_at(&source.address).unwrap_or(ProcessId(0));
                *step = FetchStep::FromWorker(source, *digest);
                *call = Some(stage.call(Callee::Worker(process), Request::Weights(*name), WORKER_DEADLINE));
            }
            (FetchStep::FromWorker(_, digest), Ok(Reply::Weights(came)))
                if came == &digest || stage.has(Bug::TrustsDigestsOfWorkers) =>
            {
                stage.laws.saw("weights from a worker");
                let weights = (*name, *came);
                self.fetched(weights, stage);
            }
            (FetchStep::FromWorker(source, _), answer) => self.source_failed(&source, answer, stage),
            (FetchStep::FromLearner, Ok(Reply::Weights(digest))) => {
                self.pauses[0] = patience(stage);
                let weights = (*name, *digest);
                self.fetched(weights, stage);
            }
            (_, answer) => self.learner_failed(answer, stage),
        }
    }

    /// A worker did not give the weights, or gave others.
    fn source_failed(&mut self, source: &WorkerSource, answer: &Answer, stage: &mut Stage) {
        let Sampling::Fetching { search, number, .. } = &mut self.sampling else { return };
        stage.laws.saw("source passed over");
        stage.laws.source_failed((stage.own, *number), &source.member_id);
        let reason = answer.as_ref().err().map_or("another digest", Status::message).to_owned();
        if !stage.has(Bug::NeverPassesOverSources) {
            search.on_failure(source, reason);
        }
        self.fetch(stage);
    }

    fn learner_failed(&mut self, answer: &Answer, stage: &mut Stage) {
        let Sampling::Fetching { fetching, number, .. } = &mut self.sampling else { return };
        let failure = match answer {
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

    /// Another worker calls.
    pub fn asked(&mut self, call: CallId, request: &Request, stage: &mut Stage) {
        let Request::Weights(name) = request else {
            return stage.answer(call, Err(Status::unimplemented("workers give weights alone")));
        };
        let kept = self.kept.iter().find(|(kept, _)| kept == name).map(|(_, digest)| *digest);
        let not_held = || Status::not_found("this worker does not hold it");
        match self.habits.giving {
            Giving::Truly => stage.answer(call, kept.map(Reply::Weights).ok_or_else(not_held)),
            Giving::Spoilt => {
                stage.answer(call, kept.map(|digest| Reply::Weights(!digest)).ok_or_else(not_held))
            }
            Giving::Never => {}
        }
    }

    /// What its heartbeats tell of weights.
    pub(super) fn weights_standing(&self, own: ProcessId) -> Option<WeightsStanding> {
        let is_fetching = |step: &FetchStep| !matches!(step, FetchStep::Seeks);
        let fetching = match &self.sampling {
            Sampling::Fetching { name, step, .. } if is_fetching(step) => Some((*name).into()),
            _ => None,
        };
        self.habits.shares_weights.then(|| WeightsStanding {
            address: address(own),
            held: self.kept.iter().map(|(name, _)| (*name).into()).collect(),
            fetching,
        })
    }
}
