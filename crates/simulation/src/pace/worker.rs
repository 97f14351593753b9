//! A worker of a paced run: its errands, and what its sampling hand does meanwhile.

use proto::{Caller, HeartbeatRequest, WeightsStanding};
use protocol::{Errands, TaskName, WeightsName};
use service::weights::KEPT_VERSIONS;
use tokio::sync::oneshot;

/// What the sampling hand does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// Asks for a task.
    Asking,
    Fetching,
    Drawing,
    /// What it drew waits for the other hand.
    Delivering,
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) caller: Option<Caller>,
    pub(super) errands: Errands<()>,
    pub(super) doing: Doing,
    /// Tells what the sampling hand does now from what it has dropped.
    pub(super) number: u64,
    /// It waits for a task.
    pub(super) granted: Option<oneshot::Receiver<proto::Task>>,
    /// It waits for a source of these weights.
    pub(super) seeking: Option<WeightsName>,
    pub(super) in_hand: Vec<TaskName>,
    /// The newest last.
    held: Vec<WeightsName>,
}

impl Worker {
    pub(super) fn new(caller: Option<Caller>) -> Self {
        Self {
            caller,
            errands: Errands::default(),
            doing: Doing::Asking,
            number: 0,
            granted: None,
            seeking: None,
            in_hand: Vec::new(),
            held: Vec::new(),
        }
    }

    pub(super) fn holds(&self, name: WeightsName) -> bool {
        self.held.contains(&name)
    }

    pub(super) fn keep(&mut self, name: WeightsName) {
        self.held.push(name);
        if self.held.len() > KEPT_VERSIONS {
            self.held.remove(0);
        }
    }

    /// What it tells the coordinator while it fetches some weights, or none.
    pub(super) fn heartbeat(&self, fetching: Option<WeightsName>) -> HeartbeatRequest {
        let weights = WeightsStanding {
            address: "10.0.0.1:7100".to_owned(),
            held: self.held.iter().map(|name| (*name).into()).collect(),
            fetching: fetching.map(Into::into),
        };
        HeartbeatRequest {
            caller: self.caller.clone(),
            running: self.in_hand.iter().map(|task| (*task).into()).collect(),
            weights: Some(weights),
            ..HeartbeatRequest::default()
        }
    }
}
