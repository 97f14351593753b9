//! What a worker's hands are doing, and what a learner's status means to them.

use crate::reference::Outcome;
use crate::stage::CallId;
use proto::{TaskId, WorkerSource};
use protocol::{Failure, FetchFailure, Fetching, Pushing, SourceSearch, Task, TaskName, WeightsName};
use tonic::{Code, Status};

/// What the sampling hand does, asking aside.
#[derive(Debug)]
pub enum Sampling {
    /// Nothing, or it asks.
    Idle,
    /// It fetches weights.
    Fetching {
        /// These weights.
        name: WeightsName,
        /// With what befell it at the learner.
        fetching: Fetching,
        /// And at other workers.
        search: SourceSearch,
        /// What the call is for.
        step: FetchStep,
        /// Its number among the pieces of work.
        work: u64,
        /// Its number among what the hand did.
        number: u64,
        /// Under way.
        call: Option<CallId>,
    },
    /// It draws.
    Drawing {
        /// This task.
        task: Box<Task>,
        /// With these weights.
        weights: (WeightsName, u64),
        /// Calls of the network to go.
        n_calls: u32,
        /// Its number among the pieces of work.
        work: u64,
        /// Its number among what the hand did.
        number: u64,
    },
    /// It tells of a failure.
    Telling,
}

/// What a hand that fetches weights waits for.
#[derive(Clone, Debug)]
pub enum FetchStep {
    /// That the coordinator names a source.
    Seeks,
    /// The weights from the learner.
    FromLearner,
    /// The learner's manifest of what this worker is to give.
    Manifest(WorkerSource),
    /// What this worker gives, which is to have that digest.
    FromWorker(WorkerSource, u64),
}

/// What the finishing hand does.
#[derive(Debug)]
pub enum Finishing {
    /// Nothing.
    Idle,
    /// It scores.
    Scoring {
        /// What was drawn.
        outcome: Outcome,
        /// Its number among the pieces of work.
        work: u64,
        /// Its number among what the hand did.
        number: u64,
    },
    /// It pushes.
    Pushing {
        /// This task.
        task: TaskName,
        /// What is pushed.
        outcome: Outcome,
        /// With what befell it.
        pushing: Pushing,
        /// Whether the learner asked for next latents.
        has_next_latents: bool,
        /// Whether it asks what is missing, and has yet to push.
        is_asking: bool,
        /// Its number among the pieces of work.
        work: u64,
        /// Its number among what the hand did.
        number: u64,
        /// Under way.
        call: Option<CallId>,
    },
    /// It tells how this task ended.
    Telling(TaskId),
}

impl Sampling {
    /// Whether the hand still fetches what had that number.
    pub fn is(&self, wanted: u64) -> bool {
        matches!(self, Self::Fetching { number, call: None, .. } if *number == wanted)
    }

    /// Whether a call is this hand's.
    pub fn calls(&self, wanted: CallId) -> bool {
        matches!(self, Self::Fetching { call: Some(call), .. } if *call == wanted)
    }
}

impl Finishing {
    /// Whether the hand still pushes what had that number.
    pub fn is(&self, wanted: u64) -> bool {
        matches!(self, Self::Pushing { number, call: None, .. } if *number == wanted)
    }

    /// Whether a call is this hand's.
    pub fn calls(&self, wanted: CallId) -> bool {
        matches!(self, Self::Pushing { call: Some(call), .. } if *call == wanted)
    }
}

/// As `rollout-worker/src/errands/learner_link.rs`.
pub fn failure(status: &Status) -> Failure {
    let told = status.message().to_owned();
    match status.code() {
        Code::FailedPrecondition => Failure::Fenced(told),
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::PermissionDenied
        | Code::Unauthenticated => Failure::Final(told),
        Code::DataLoss | Code::Internal => Failure::Damaged(told),
        _ => Failure::Passing(told),
    }
}

/// As `rollout-worker/src/errands/push.rs`.
pub fn push_failure(status: &Status) -> Failure {
    match status.code() {
        Code::DeadlineExceeded | Code::Cancelled => Failure::Damaged(status.message().to_owned()),
        _ => failure(status),
    }
}

/// As `rollout-worker/src/errands/weights.rs`.
pub fn fetch_failure(status: &Status) -> FetchFailure {
    match status.code() {
        Code::NotFound => FetchFailure::Unavailable(status.message().to_owned()),
        _ => FetchFailure::Call(failure(status)),
    }
}
