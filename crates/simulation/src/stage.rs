//! What a simulated process sees of its world while it handles one event, and what it asks of it.

use crate::bug::Bug;
use crate::dice::Dice;
use crate::disk::Disk;
use crate::laws::Laws;
use crate::process::ProcessId;
use crate::reference::Outcome;
use proto::push_reply::Status as PushStatus;
use proto::seek_weights_reply::Source;
use proto::{
    FinishTaskRequest, HeartbeatReply, HeartbeatRequest, JoinReply, JoinRequest, LeaveRequest,
    NextTaskRequest, ReportRequest, SeekWeightsRequest,
};
use protocol::{TaskName, WeightsName};
use std::time::{Duration, Instant};
use tonic::Status;

/// A call from one process to another; numbers are not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// Whom a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callee {
    /// Whoever listens at the coordinator's port.
    Coordinator,
    /// The learner whose address that is.
    Learner(ProcessId),
    /// The worker whose address that is.
    Worker(ProcessId),
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum Request {
    /// Of the coordinator.
    Join(Box<JoinRequest>),
    /// Of the coordinator.
    Heartbeat(HeartbeatRequest),
    /// Of the coordinator.
    NextTask(NextTaskRequest),
    /// Of the coordinator.
    FinishTask(FinishTaskRequest),
    /// Of the coordinator.
    Report(Box<ReportRequest>),
    /// Of the coordinator.
    Leave(LeaveRequest),
    /// Of the learner: whether it lacks an embedding.
    MissingConditioning(u64),
    /// Of the learner: to take an outcome, its embedding and its next latents being with it or not.
    Push {
        /// Of which task.
        task: TaskName,
        /// What came of it.
        outcome: Outcome,
        /// Whether the embedding comes along.
        has_embedding: bool,
        /// Whether the next latents do.
        has_next_latents: bool,
    },
    /// Of the coordinator: from whom to fetch weights.
    SeekWeights(SeekWeightsRequest),
    /// Of the learner: what stands for the weights' manifest.
    Manifest(WeightsName),
    /// Of the learner, or of a worker that holds them.
    Weights(WeightsName),
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A member.
    Joined(Box<JoinReply>),
    /// Orders.
    Heartbeat(HeartbeatReply),
    /// A task, or none for now.
    Task(Option<Box<proto::Task>>),
    /// The end of a task was heard.
    Finished,
    /// A report was taken; whether the learner is to leave.
    Reported(bool),
    /// The goodbye was heard.
    Left,
    /// Whether the embedding is missing.
    Missing(bool),
    /// What became of a push.
    Pushed(PushStatus),
    /// Who gives the weights; nobody yet.
    Source(Option<Source>),
    /// What stands for the weights, by the learner's word.
    Manifest(u64),
    /// What stands for the weights.
    Weights(u64),
}

/// How a call ended for who made it.
pub type Answer = Result<Reply, Status>;

/// Why a process is woken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// A call has had no answer in time.
    Deadline(CallId),
    /// The pause of a loop of calls to the coordinator is over, by the loop's number.
    CallAgain(u64),
    /// It is time for a heartbeat.
    Heartbeat,
    /// A process has what it needs to begin.
    Opened,
    /// A worker's drawing got on; the number tells this drawing from earlier ones.
    Drew(u64),
    /// Likewise its scoring.
    Scored(u64),
    /// The pause of the sampling hand is over.
    FetchAgain(u64),
    /// The pause of the finishing hand is over.
    PushAgain(u64),
    /// A worker that leaves has tried for long enough.
    PatienceOver,
    /// The learner's thread has done what it did.
    Trained,
    /// The bytes of a push have arrived whole.
    Received(CallId),
    /// The learner may report again.
    ReportPauseOver,
    /// The learner is to report though nothing changed.
    ReportDue(u64),
    /// The coordinator looks after its members.
    Tick,
    /// A worker that waits for a task has waited for long enough.
    WaitOver(CallId),
}

/// What a process asks of its world.
#[derive(Debug)]
pub enum Act {
    /// Send a request and wait for its answer, so long at most.
    Call(CallId, Callee, Request, Duration),
    /// Hang up.
    HangUp(CallId),
    /// Answer a call.
    Reply(CallId, Answer),
    /// Wake the process after a while.
    After(Duration, Wake),
    /// End, with this exit code.
    Exit(u8),
}

/// What a process sees while it handles one event.
pub struct Stage<'a> {
    /// Which process it is.
    pub own: ProcessId,
    /// The time, by its own clock.
    pub now: Instant,
    /// Its chance.
    pub dice: &'a mut Dice,
    /// The disk of the run.
    pub disk: &'a mut Disk,
    /// What must hold.
    pub laws: &'a mut Laws,
    /// A deliberate bug.
    pub bug: Option<Bug>,
    /// Calls made so far in this world.
    pub n_calls: &'a mut u64,
    /// What is asked.
    pub acts: Vec<Act>,
}

impl Stage<'_> {
    /// Sends a request and returns the call.
    pub fn call(&mut self, callee: Callee, request: Request, deadline: Duration) -> CallId {
        *self.n_calls += 1;
        let call = CallId(*self.n_calls);
        self.acts.push(Act::Call(call, callee, request, deadline));
        call
    }

    /// Wakes the process after a while.
    pub fn after(&mut self, pause: Duration, wake: Wake) {
        self.acts.push(Act::After(pause, wake));
    }

    /// Answers a call.
    pub fn answer(&mut self, call: CallId, answer: Answer) {
        self.acts.push(Act::Reply(call, answer));
    }

    /// Ends the process.
    pub fn exit(&mut self, code: u8) {
        self.acts.push(Act::Exit(code));
    }

    /// Whether this is the deliberate bug of the world.
    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Tells the story.
    pub fn tell(&mut self, what: impl FnOnce() -> String) {
        self.laws.story.tell(what);
    }
}
