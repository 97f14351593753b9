//! What was decided, by whom it is about and why: of members, tasks and processes. Pure; [`EventLog`] writes it down.

mod book;
mod log;

pub use book::{EventBook, EventCount, GivenAs};
pub use log::EventLog;

use crate::run_record::RunEnding;
use protocol::{TaskName, WeightsName};
use serde::{Serialize, Serializer};
use std::fmt::Display;

/// One decision. The names of variants and fields are those in `events.jsonl`; fields that say whom it is about come first, then
/// a cause in a word that can be counted, then the reason for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the fields are named as they are written")]
pub enum Event {
    /// A process became a member: a `new` one, the same `again`, or another that `replaced` it.
    MemberJoined {
        member: String,
        role: &'static str,
        pid: u32,
        host: String,
        incarnation: u64,
        cause: &'static str,
    },
    /// A process was not let in; said once for as long as it asks in vain.
    MemberRefused { member: String, cause: &'static str, reason: String },
    /// A member said goodbye.
    MemberLeft { member: String },
    /// A member is gone without a word.
    MemberLost { member: String, cause: &'static str, reason: String },
    /// A member that has been gone for long is remembered no more.
    MemberForgotten { member: String },
    /// A worker was given a task.
    TaskGranted {
        #[serde(serialize_with = "words")]
        task: TaskName,
        member: String,
    },
    /// A worker that joined had a task in hand already.
    TaskClaimed {
        #[serde(serialize_with = "words")]
        task: TaskName,
        member: String,
    },
    /// The learner has what a worker brought, or does not want it.
    TaskFinished {
        #[serde(serialize_with = "words")]
        task: TaskName,
        member: String,
    },
    /// A worker failed at a task, which another attempt follows unless it `is_given_up`.
    TaskFailed {
        #[serde(serialize_with = "words")]
        task: TaskName,
        member: String,
        cause: &'static str,
        is_given_up: bool,
        reason: String,
    },
    /// A task is no longer with a worker that has not finished it.
    TaskReturned {
        #[serde(serialize_with = "words")]
        task: TaskName,
        member: String,
        cause: &'static str,
    },
    /// A worker has weights that it was sent to the learner or to another worker for.
    WeightsFetched {
        #[serde(serialize_with = "words")]
        weights: WeightsName,
        member: String,
        source: String,
        cause: &'static str,
    },
    /// A worker did not get weights from another one that it was sent to.
    WeightsSourceFailed {
        #[serde(serialize_with = "words")]
        weights: WeightsName,
        member: String,
        source: String,
        reason: String,
    },
    /// A process was asked for.
    ProcessStarted { member: String },
    /// A process is told to leave once it has finished what it has in hand.
    ProcessDrained { member: String, reason: String },
    /// A process is asked to end, or made to.
    ProcessSignalled { member: String, signal: &'static str, cause: &'static str, reason: String },
    /// A process has ended, and what follows.
    ProcessEnded { member: String, cause: &'static str, reason: String },
    /// Another number of workers is wanted.
    WorkersScaled { from: u32, to: u32 },
    /// The ranks of the learner are to form another group: all are there for the `first` time, one was `replaced`, or one
    /// said that the group was `broken`.
    RanksGrouped { epoch: u64, cause: &'static str, members: Vec<String> },
    /// Members finish what they have in hand and leave.
    RunDrained {},
    /// The run has ended.
    RunEnded { cause: &'static str, reason: String },
}

/// Every event with each of its causes; one without a cause has an empty one.
pub const CAUSES: [(&str, &[&str]); 20] = [
    ("member_joined", &["new", "again", "replaced"]),
    (
        "member_refused",
        &[
            "malformed",
            "other_run",
            "taken",
            "stuck",
            "other_role",
            "other_build",
            "other_kind",
            "other_half",
            "other_learner",
            "no_such_rank",
            "full",
            "fenced",
        ],
    ),
    ("member_left", &[""]),
    ("member_lost", &["silent", "stuck", "exited"]),
    ("member_forgotten", &[""]),
    ("task_granted", &[""]),
    ("task_claimed", &[""]),
    ("task_finished", &[""]),
    ("task_failed", &["worker", "task", "memory"]),
    ("task_returned", &["member_lost", "member_left", "not_in_hand", "not_wanted", "given_back"]),
    ("weights_fetched", &["learner", "worker"]),
    ("weights_source_failed", &[""]),
    ("process_started", &[""]),
    ("process_drained", &[""]),
    ("process_signalled", &["hung", "surplus", "stopping"]),
    ("process_ended", &["restarted", "not_wanted", "set_aside", "given_up"]),
    ("workers_scaled", &[""]),
    ("ranks_grouped", &["first", "replaced", "broken"]),
    ("run_drained", &[""]),
    ("run_ended", &["done", "failed", "stopped"]),
];

impl Event {
    /// Its name and its cause, one of [`CAUSES`].
    pub fn label(&self) -> (&'static str, &'static str) {
        match self {
            Self::MemberJoined { cause, .. } => ("member_joined", cause),
            Self::MemberRefused { cause, .. } => ("member_refused", cause),
            Self::MemberLeft { .. } => ("member_left", ""),
            Self::MemberLost { cause, .. } => ("member_lost", cause),
            Self::MemberForgotten { .. } => ("member_forgotten", ""),
            Self::TaskGranted { .. } => ("task_granted", ""),
            Self::TaskClaimed { .. } => ("task_claimed", ""),
            Self::TaskFinished { .. } => ("task_finished", ""),
            Self::TaskFailed { cause, .. } => ("task_failed", cause),
            Self::TaskReturned { cause, .. } => ("task_returned", cause),
            Self::WeightsFetched { cause, .. } => ("weights_fetched", cause),
            Self::WeightsSourceFailed { .. } => ("weights_source_failed", ""),
            Self::ProcessStarted { .. } => ("process_started", ""),
            Self::ProcessDrained { .. } => ("process_drained", ""),
            Self::ProcessSignalled { cause, .. } => ("process_signalled", cause),
            Self::ProcessEnded { cause, .. } => ("process_ended", cause),
            Self::WorkersScaled { .. } => ("workers_scaled", ""),
            Self::RanksGrouped { cause, .. } => ("ranks_grouped", cause),
            Self::RunDrained {} => ("run_drained", ""),
            Self::RunEnded { cause, .. } => ("run_ended", cause),
        }
    }

    /// That a run has ended so.
    pub fn ended(ending: &RunEnding) -> Self {
        let (cause, reason) = match ending {
            RunEnding::Done { .. } => ("done", "all iterations are trained and evaluated".to_owned()),
            RunEnding::Failed { reason, .. } => ("failed", reason.clone()),
            RunEnding::Stopped { .. } => ("stopped", "it was asked to".to_owned()),
        };
        Self::RunEnded { cause, reason }
    }
}

fn words<S: Serializer>(name: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}
