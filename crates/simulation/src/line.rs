//! A member's line to the coordinator, as `service::membership::link` drives it.
//!
//! Real: [`MemberLink`] decides what follows from the end of a call, [`service::call_end`] what a status means, [`Backoff`]
//! how long a pause is, [`InHand`] what is told of work. Modelled: that several loops of calls run beside each other, and
//! that those which were fenced together wait for one join.

use crate::bug::Bug;
use crate::stage::{Act, Answer, CallId, Callee, Reply, Request, Stage, Wake};
use proto::{
    Caller, FinishTaskRequest, HeartbeatRequest, JoinReply, JoinRequest, NextTaskRequest, ReportRequest,
    Role, Standstill, TaskId, WeightsStanding, Work,
};
use protocol::{AfterCall, Backoff, CallEnd, InHand, JoinEnd, MemberLink, MembershipLoss};
use std::collections::BTreeMap;
use std::time::Duration;

const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// How long one request for a task waits for one.
pub const TASK_WAIT: Duration = Duration::from_secs(10);

/// What a loop of calls is for; it ends when the coordinator answers.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// To stay a member.
    Heartbeat,
    /// To get a task beside those that are being finished.
    NextTask(Vec<TaskId>),
    /// To tell how a task ended.
    Finish(FinishTaskRequest),
    /// The learner: to tell what it wants.
    Report(Box<ReportRequest>),
}

/// What comes of an event on the line.
#[derive(Debug)]
pub enum Heard {
    /// The process is a member, for the first time or again.
    Joined(Box<JoinReply>),
    /// A loop of calls has its answer.
    Answered(Purpose, Reply),
    /// A loop of calls has failed, which is the caller's fault.
    Failed(Purpose),
    /// The membership is lost.
    Lost(MembershipLoss),
}

#[derive(Debug)]
struct Loop {
    purpose: Purpose,
    pauses: Backoff,
    stage: LoopStage,
}

#[derive(Debug)]
enum LoopStage {
    Calling(CallId, Caller),
    Pausing,
    /// For a join, the identity having been refused.
    Waiting(Caller),
}

#[derive(Debug)]
struct Joining {
    pauses: Backoff,
    call: Option<CallId>,
}

/// The line.
#[derive(Debug)]
pub struct Line {
    member: MemberLink,
    /// What the member has in hand.
    pub in_hand: InHand,
    /// Worker: what it tells of its weights.
    pub weights: Option<WeightsStanding>,
    role: Role,
    address: String,
    process: proto::Process,
    loops: BTreeMap<u64, Loop>,
    n_loops: u64,
    joining: Option<Joining>,
    has_joined: bool,
    is_lost: bool,
}

fn patience(stage: &mut Stage) -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(2), stage.dice.below(u64::MAX))
}

impl Line {
    /// A line of a process that begins; it joins at once.
    pub fn new(join: JoinRequest, grace: Duration, stage: &mut Stage) -> Self {
        let (role, process) = (join.role(), join.process.unwrap_or_default());
        let mut line = Self {
            member: MemberLink::new(&join.member_id, grace, stage.now),
            in_hand: InHand::default(),
            weights: None,
            role,
            address: join.address,
            process,
            loops: BTreeMap::new(),
            n_loops: 0,
            joining: None,
            has_joined: false,
            is_lost: false,
        };
        line.join(stage);
        line
    }

    /// The newest identity.
    pub fn caller(&self) -> &Caller {
        self.member.caller()
    }

    fn join(&mut self, stage: &mut Stage) {
        let pauses = patience(stage);
        self.joining = Some(Joining { pauses, call: None });
        self.send_join(stage);
    }

    fn send_join(&mut self, stage: &mut Stage) {
        let request = JoinRequest {
            role: self.role.into(),
            member_id: self.caller().member_id.clone(),
            run_id: self.caller().run_id.clone(),
            process: Some(self.process.clone()),
            rank: 0,
            address: self.address.clone(),
            running: self.in_hand.tasks().to_vec(),
            own_directory: None,
        };
        let call = stage.call(Callee::Coordinator, Request::Join(Box::new(request)), CALL_DEADLINE);
        if let Some(joining) = &mut self.joining {
            joining.call = Some(call);
        }
    }

    /// Begins a loop of calls.
    pub fn begin(&mut self, purpose: Purpose, stage: &mut Stage) {
        self.n_loops += 1;
        let pauses = patience(stage);
        self.loops.insert(self.n_loops, Loop { purpose, pauses, stage: LoopStage::Pausing });
        self.attempt(self.n_loops, stage);
    }

    /// Gives up waiting for a task.
    pub fn abandon_task(&mut self, stage: &mut Stage) {
        let asking = |of: &Loop| matches!(of.purpose, Purpose::NextTask(_));
        let found: Vec<u64> =
            self.loops.iter().filter(|(_, of)| asking(of)).map(|(number, _)| *number).collect();
        for number in found {
            if let Some(Loop { stage: LoopStage::Calling(call, _), .. }) = self.loops.remove(&number) {
                stage.acts.push(Act::HangUp(call));
            }
        }
    }

    fn attempt(&mut self, number: u64, stage: &mut Stage) {
        let caller = self.member.caller().clone();
        let is_told = |told: &Standstill| match stage.bug {
            Some(Bug::HidesStandstill) => false,
            Some(Bug::HidesOpening) => told.work() != Work::Opening,
            Some(Bug::HidesTraining) => self.role != Role::Learner,
            _ => true,
        };
        let standstills = self.in_hand.standstills(stage.now).into_iter().filter(is_told).collect();
        let running = self.in_hand.tasks().to_vec();
        let Some(of) = self.loops.get_mut(&number) else { return };
        let (request, deadline) =
            request_of(&of.purpose, &caller, (standstills, running, self.weights.clone()));
        let call = stage.call(Callee::Coordinator, request, deadline);
        of.stage = LoopStage::Calling(call, caller);
    }

    /// The pause of a loop, or of the join (number 0), is over.
    pub fn call_again(&mut self, number: u64, stage: &mut Stage) -> Option<Heard> {
        if self.is_lost {
            return None;
        }
        if number == 0 {
            if self.joining.as_ref().is_some_and(|joining| joining.call.is_none()) {
                self.send_join(stage);
            }
        } else if self.loops.get(&number).is_some_and(|of| matches!(of.stage, LoopStage::Pausing)) {
            self.attempt(number, stage);
        }
        None
    }

    /// A call of this line ended, if it is one.
    pub fn answered(&mut self, call: CallId, answer: &Answer, stage: &mut Stage) -> Option<Heard> {
        if self.is_lost {
            return None;
        }
        if self.joining.as_ref().is_some_and(|joining| joining.call == Some(call)) {
            return self.join_answered(answer, stage);
        }
        let is_it = |of: &Loop| matches!(of.stage, LoopStage::Calling(of, _) if of == call);
        let number = *self.loops.iter().find(|(_, of)| is_it(of))?.0;
        let LoopStage::Calling(_, caller) = &self.loops[&number].stage else { return None };
        let caller = caller.clone();
        let end = service::call_end(answer.as_ref().err(), &caller);
        if matches!(end, CallEnd::Fenced(_)) {
            stage.laws.saw("fenced");
        }
        match self.member.on_call(end, stage.now) {
            Ok(AfterCall::Return) => {
                let of = self.loops.remove(&number)?;
                Some(self.over(of.purpose, answer))
            }
            Ok(AfterCall::CallLater) => {
                self.pause(number, stage);
                None
            }
            Ok(AfterCall::JoinFirst) => self.join_first(number, caller, stage),
            Err(loss) => Some(self.lose(loss)),
        }
    }

    fn over(&mut self, purpose: Purpose, answer: &Answer) -> Heard {
        let Ok(reply) = answer else { return Heard::Failed(purpose) };
        match (&purpose, reply) {
            (Purpose::NextTask(finishing), Reply::Task(task)) => {
                self.in_hand.answered(finishing, task.as_ref().and_then(|task| task.id));
            }
            (Purpose::Finish(message), _) => self.in_hand.told(message.task),
            _ => {}
        }
        Heard::Answered(purpose, reply.clone())
    }

    fn pause(&mut self, number: u64, stage: &mut Stage) {
        if let Some(of) = self.loops.get_mut(&number) {
            of.stage = LoopStage::Pausing;
            let pause = of.pauses.next_pause();
            stage.after(pause, Wake::CallAgain(number));
        }
    }

    fn join_first(&mut self, number: u64, refused: Caller, stage: &mut Stage) -> Option<Heard> {
        if let Some(of) = self.loops.get_mut(&number) {
            of.stage = LoopStage::Waiting(refused);
        }
        if self.joining.is_some() {
            return None;
        }
        self.join_if_still_refused(stage)
    }

    /// The next of those that wait for a join holds the lock, and asks again whether it has to.
    fn join_if_still_refused(&mut self, stage: &mut Stage) -> Option<Heard> {
        loop {
            let waits = |of: &Loop| match &of.stage {
                LoopStage::Waiting(refused) => Some(refused.clone()),
                _ => None,
            };
            let (number, refused) = self.loops.iter().find_map(|(number, of)| Some((*number, waits(of)?)))?;
            match self.member.on_call(CallEnd::Fenced(refused), stage.now) {
                Ok(AfterCall::JoinFirst) => {
                    self.join(stage);
                    return None;
                }
                Ok(_) => self.pause(number, stage),
                Err(loss) => return Some(self.lose(loss)),
            }
        }
    }

    fn join_answered(&mut self, answer: &Answer, stage: &mut Stage) -> Option<Heard> {
        let end = match answer {
            Ok(Reply::Joined(reply)) => JoinEnd::Joined(reply),
            Ok(_) => return None,
            Err(status) => service::join_end(Err(status)),
        };
        match self.member.on_join(end, stage.now) {
            Ok(true) => self.joined(answer, stage),
            Ok(false) => {
                if let Some(joining) = &mut self.joining {
                    joining.call = None;
                    let pause = joining.pauses.next_pause();
                    stage.after(pause, Wake::CallAgain(0));
                }
                None
            }
            Err(loss) => Some(self.lose(loss)),
        }
    }

    fn joined(&mut self, answer: &Answer, stage: &mut Stage) -> Option<Heard> {
        self.joining = None;
        if std::mem::replace(&mut self.has_joined, true) {
            stage.laws.saw("joined again");
        } else {
            stage.after(self.member.heartbeat_pause(), Wake::Heartbeat);
        }
        if let Some(lost) = self.join_if_still_refused(stage) {
            return Some(lost);
        }
        match answer {
            Ok(Reply::Joined(reply)) => Some(Heard::Joined(reply.clone())),
            _ => None,
        }
    }

    fn lose(&mut self, loss: MembershipLoss) -> Heard {
        self.is_lost = true;
        Heard::Lost(loss)
    }

    /// It is time for a heartbeat.
    pub fn heartbeat(&mut self, stage: &mut Stage) {
        if !self.is_lost {
            self.begin(Purpose::Heartbeat, stage);
        }
    }

    /// The last heartbeat was answered: there is to be another one.
    pub fn heartbeat_over(&self, stage: &mut Stage) {
        stage.after(self.member.heartbeat_pause(), Wake::Heartbeat);
    }

    /// Loops of calls that go on; for the bound on memory.
    pub fn n_loops(&self) -> usize {
        self.loops.len()
    }
}

fn request_of(
    purpose: &Purpose,
    caller: &Caller,
    (standstills, running, weights): (Vec<Standstill>, Vec<TaskId>, Option<WeightsStanding>),
) -> (Request, Duration) {
    let caller = Some(caller.clone());
    match purpose {
        Purpose::Heartbeat => {
            let message =
                HeartbeatRequest { caller, standstills, running, weights, ..HeartbeatRequest::default() };
            (Request::Heartbeat(message), CALL_DEADLINE)
        }
        Purpose::NextTask(finishing) => {
            let (wait_seconds, finishing) = (TASK_WAIT.as_secs_f64(), finishing.clone());
            (
                Request::NextTask(NextTaskRequest { caller, wait_seconds, finishing }),
                TASK_WAIT + CALL_DEADLINE,
            )
        }
        Purpose::Finish(message) => {
            (Request::FinishTask(FinishTaskRequest { caller, ..message.clone() }), CALL_DEADLINE)
        }
        Purpose::Report(message) => {
            (Request::Report(Box::new(ReportRequest { caller, ..(**message).clone() })), CALL_DEADLINE)
        }
    }
}
