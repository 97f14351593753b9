//! The coordinator's process.
//!
//! Real: [`ControlPlane`] with its `RunState`, `TaskBook`, `Members`, leases and waiting room; [`Supervisor`] with its `Keeper`.
//! Modelled: the sockets, and of `coordinator/src/up.rs` the loop that ticks and the order in which a run is stopped.

use crate::bug::Bug;
use crate::launcher::SimulatedLauncher;
use crate::ownership;
use crate::scenario::Scenario;
use crate::stage::{Answer, CallId, Reply, Request, Stage, Wake};
use coordinator::catalog::Catalog;
use coordinator::error::CoordinatorError;
use coordinator::launch::{Handle, MemberName, Supervisor};
use coordinator::membership::{Member, Members};
use coordinator::run_record::RunEnding;
use coordinator::run_state::RunState;
use coordinator::server::{Asked, Clock, ControlPlane, waits};
use proto::{Caller, HeartbeatRequest, NextTaskRequest, Work};
use protocol::TaskName;
use service::OwnerRecord;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tonic::Status;

/// The product ticks every 100 ms; what is decided does not depend on it.
const TICK: Duration = Duration::from_millis(250);
/// Ticks between looks for silent members: a tenth of the lease.
const TICKS_PER_LOOK: u64 = 2;
const DONE_GRACE: Duration = Duration::from_secs(10);
const FAILED_GRACE: Duration = Duration::from_secs(2);

/// How a coordinator's process left off.
#[derive(Clone, Debug, PartialEq)]
pub enum Stop {
    /// The run is done.
    Done,
    /// It was asked to stop; it is to be resumed.
    Drained,
    /// It could not go on.
    Failed(String),
}

/// What `run.json` holds, which the next coordinator begins with.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Starts of the coordinator.
    pub generation: u64,
    /// By which members are found again.
    pub members: BTreeMap<String, Handle>,
    /// Whether the next coordinator is on another host, and knows of no processes there.
    pub is_elsewhere: bool,
}

/// A worker that waits for a task.
#[derive(Debug)]
struct Waiting {
    request: NextTaskRequest,
    granted: oneshot::Receiver<proto::Task>,
}

/// The coordinator's process.
pub struct Hub {
    plane: ControlPlane,
    supervisor: Supervisor,
    clock: Arc<AtomicU64>,
    waiting: BTreeMap<CallId, Waiting>,
    stop: Option<Stop>,
    drain: Duration,
    n_ticks: u64,
    /// By the word of workers; only a deliberate bug looks.
    told: BTreeSet<TaskName>,
    /// As it is on the disk.
    pub record: Record,
    /// Likewise.
    owner: OwnerRecord,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "coordinator of generation {}, {:?}", self.record.generation, self.stop)
    }
}

impl Hub {
    /// A process that begins or resumes the run. `epoch` is what its clock counts from.
    pub fn start(
        scenario: &Scenario,
        launcher: SimulatedLauncher,
        record: &Record,
        epoch: Instant,
        stage: &mut Stage,
    ) -> Self {
        let clock = Arc::new(AtomicU64::new(0));
        let told = clock.clone();
        let tell: Clock = Arc::new(move || epoch + Duration::from_micros(told.load(Ordering::Relaxed)));
        let owner = ownership::claim(stage.disk, stage.own, record.is_elsewhere, stage.bug);
        let generation = owner.epoch;
        let members = Members::new("run".to_owned(), generation, scenario.patience);
        let catalog = Catalog::new((*scenario.config).clone(), (*scenario.lists).clone(), Vec::new());
        let mut state = RunState::new(members, catalog, "run".to_owned(), stage.now);
        state.inherit_learner(owner.learner.clone());
        let plane = ControlPlane::with_clock(state, tell);
        let mut supervisor = Supervisor::new(Box::new(launcher), plane.clone());
        let adopted = supervisor.adopt(&record.members, stage.now);
        stage.tell(|| format!("coordinator of generation {generation} begins, adopts {adopted:?}"));
        stage.after(TICK, Wake::Tick);
        let record = Record { generation, members: supervisor.processes(), is_elsewhere: false };
        let (waiting, stop, drain) = (BTreeMap::new(), None, scenario.patience.drain);
        let told = BTreeSet::new();
        Self { plane, supervisor, clock, waiting, stop, drain, n_ticks: 0, told, record, owner }
    }

    /// Sets the clock before an event is handled.
    pub fn set_clock(&self, since_epoch: Duration) {
        self.clock.store(since_epoch.as_micros() as u64, Ordering::Relaxed);
    }

    /// How the run left off, once no process is left.
    pub fn outcome(&self) -> Option<&Stop> {
        self.stop.as_ref().filter(|_| self.record.members.is_empty())
    }

    /// An operator wants another number of workers.
    pub fn scale(&self, workers: u32) {
        self.plane.update(|state, _| state.scale(workers));
    }

    /// An operator wants the run to stop.
    pub fn down(&self) {
        self.plane.update(|state, _| state.drain());
    }

    /// The process is woken.
    pub fn wake(&mut self, wake: Wake, stage: &mut Stage) {
        match wake {
            Wake::Tick => self.tick(stage),
            Wake::WaitOver(call) => self.send_back(call, stage),
            _ => {}
        }
        self.serve_waiting(stage);
    }

    fn tick(&mut self, stage: &mut Stage) {
        self.n_ticks += 1;
        if self.n_ticks.is_multiple_of(TICKS_PER_LOOK) {
            self.plane.update(RunState::expire);
            self.record_learner(stage);
        }
        if self.stop.is_none() {
            self.stop = self.watch(stage);
            if let Some(stop) = &self.stop {
                stage.tell(|| format!("the coordinator stops the run: {stop:?}"));
                self.down();
            }
        }
        if let Some(stop) = &self.stop {
            let grace = match stop {
                Stop::Done => DONE_GRACE,
                Stop::Drained => self.drain,
                Stop::Failed(_) => FAILED_GRACE,
            };
            self.supervisor.take_down(Some(grace), stage.now);
        }
        self.record.members = self.supervisor.processes();
        stage.after(TICK, Wake::Tick);
    }

    /// As `ControlPlane::record_learner`.
    fn record_learner(&mut self, stage: &mut Stage) {
        let learner = self.plane.read(|state| state.writing_learner().cloned());
        ownership::let_write(stage.disk, &mut self.owner, learner);
    }

    fn watch(&mut self, stage: &mut Stage) -> Option<Stop> {
        let ending = self.plane.read(|state| state.is_ending().then(|| state.ending().cloned()));
        match ending {
            Some(Some(RunEnding::Done { .. })) => return Some(Stop::Done),
            Some(Some(RunEnding::Failed { reason, .. })) => return Some(Stop::Failed(reason)),
            Some(None | Some(RunEnding::Stopped { .. })) => return Some(Stop::Drained),
            None => {}
        }
        let failure = match self.supervisor.keep_alive(stage.now) {
            Err(CoordinatorError::MemberFailed(report)) if !report.member.is_learner() => {
                Some((report.to_string(), true))
            }
            Err(error) => Some((error.to_string(), false)),
            Ok(()) if stage.has(Bug::EndsWithAPlace) => self.set_aside().map(|notice| (notice, true)),
            Ok(()) => None,
        };
        if self.set_aside().is_some() {
            stage.laws.saw("place set aside");
        }
        let (reason, is_for_a_place) = failure?;
        let n_workers = self.plane.read(|state| state.members.n_workers());
        stage.laws.demand(!is_for_a_place || n_workers == 0, || {
            format!("the run ends with a place while {n_workers} workers live: {reason}")
        });
        Some(Stop::Failed(reason))
    }

    /// What a user was told of a place that is set aside.
    fn set_aside(&self) -> Option<String> {
        let is_it = |notice: &&String| notice.contains("is set aside");
        self.plane.read(|state| state.notices().iter().find(is_it).cloned())
    }

    /// How long a worker may stand still while it draws, if that was learnt.
    pub fn learnt_deadline(&self, member: MemberName) -> Option<Duration> {
        self.plane.read(|state| {
            let deadline = state.standstill_deadline(&member.to_string());
            (deadline < state.members.patience().task_deadline).then_some(deadline)
        })
    }

    fn granted(&self, task: Option<proto::Task>, request: &NextTaskRequest, stage: &mut Stage) -> Answer {
        let name = task.as_ref().and_then(|task| TaskName::try_from(task.id.as_ref()?).ok());
        if let (Some(name), Some(caller)) = (name, &request.caller) {
            stage.tell(|| format!("{} is given {name}", caller.member_id));
            let finishing: Vec<TaskName> = request.finishing.iter().flat_map(TaskName::try_from).collect();
            let n_runners = self.plane.read(|state| {
                let leases = |member: &Member| state.tasks().leases_of(&member.applicant.member_id);
                state.members.iter().filter(|member| leases(member).contains(&name)).count()
            });
            stage.laws.grants(name, &finishing, n_runners);
        }
        Ok(Reply::Task(task.map(Box::new)))
    }

    /// The last word of members counts more than why they were stopped.
    pub fn settle(&mut self) {
        let ending = self.plane.read(|state| state.ending().cloned());
        match ending {
            Some(RunEnding::Done { .. }) => self.stop = Some(Stop::Done),
            Some(RunEnding::Failed { reason, .. }) => self.stop = Some(Stop::Failed(reason)),
            Some(RunEnding::Stopped { .. }) | None => {}
        }
    }

    /// A member calls.
    pub fn asked(&mut self, call: CallId, request: Request, stage: &mut Stage) {
        let caller = caller_of(&request).cloned();
        let request = if stage.has(Bug::AdmitsFencedMembers) { self.as_newest(request) } else { request };
        let request = if stage.has(Bug::BelievesWorkersForever) { self.as_told(request) } else { request };
        let request = misheard(request, stage.bug);
        let answer = match request {
            Request::NextTask(request) => match self.ask(call, &request, stage) {
                Some(answer) => answer,
                None => return self.serve_waiting(stage),
            },
            request => self.answer(request, stage),
        };
        if answer.is_ok() {
            stage.laws.admits(caller.as_ref());
        }
        stage.answer(call, answer);
        self.serve_waiting(stage);
    }

    fn answer(&mut self, request: Request, stage: &mut Stage) -> Answer {
        let answer = match request {
            Request::Join(request) => self.plane.admit(&request).map(|reply| {
                reply.identity.iter().for_each(|identity| stage.laws.gives_identity(identity));
                self.record_learner(stage);
                stage.tell(|| format!("{} joined: {:?}", request.member_id, reply.identity));
                Reply::Joined(Box::new(reply))
            }),
            Request::Heartbeat(request) => {
                self.plane.update(|state, now| state.heartbeat(request, now)).map(Reply::Heartbeat)
            }
            Request::FinishTask(request) => {
                self.plane.update(|state, now| state.finish_task(&request, now)).map(|()| Reply::Finished)
            }
            Request::Report(request) => {
                self.plane.update(|state, now| state.report(*request, now)).map(Reply::Reported)
            }
            Request::Leave(request) => self
                .plane
                .update(|state, now| state.leave(request.caller.as_ref(), now))
                .map(|()| Reply::Left),
            Request::SeekWeights(request) => {
                self.plane.update(|state, now| state.seek_weights(&request, now)).map(Reply::Source)
            }
            _ => return Err(Status::unimplemented("the learner does that")),
        };
        answer.map_err(Status::from)
    }

    fn ask(&mut self, call: CallId, request: &NextTaskRequest, stage: &mut Stage) -> Option<Answer> {
        let forgetful = NextTaskRequest { finishing: Vec::new(), ..request.clone() };
        let is_misheard = stage.has(Bug::GrantsToItsOwnRunner);
        match self.plane.ask(if is_misheard { &forgetful } else { request }) {
            Err(refusal) => Some(Err(refusal.into())),
            Ok(asked) => {
                stage.laws.admits(request.caller.as_ref());
                match asked {
                    Asked::Granted(task) => Some(self.granted(Some(*task), request, stage)),
                    Asked::Nothing => Some(Ok(Reply::Task(None))),
                    Asked::Waits(receiver) => {
                        let waiting = Waiting { request: request.clone(), granted: receiver };
                        self.waiting.insert(call, waiting);
                        stage.after(waits(request), Wake::WaitOver(call));
                        None
                    }
                }
            }
        }
    }

    /// A caller has hung up.
    pub fn hung_up(&mut self, call: CallId) {
        self.waiting.remove(&call);
    }

    /// Answers workers that wait and have been given a task, or were sent back.
    fn serve_waiting(&mut self, stage: &mut Stage) {
        let looked: Vec<(CallId, Option<proto::Task>)> = self
            .waiting
            .iter_mut()
            .filter_map(|(call, waiting)| match waiting.granted.try_recv() {
                Ok(task) => Some((*call, Some(task))),
                Err(TryRecvError::Closed) => Some((*call, None)),
                Err(TryRecvError::Empty) => None,
            })
            .collect();
        for (call, task) in looked {
            match task {
                Some(task) => {
                    let Some(Waiting { request, .. }) = self.waiting.remove(&call) else { continue };
                    let answer = self.granted(Some(task), &request, stage);
                    stage.answer(call, answer);
                }
                None => self.send_back(call, stage),
            }
        }
        let n_waiting = self.waiting.len();
        stage.laws.demand(n_waiting <= 64, || format!("{n_waiting} calls wait for a task"));
    }

    fn send_back(&mut self, call: CallId, stage: &mut Stage) {
        let Some(mut waiting) = self.waiting.remove(&call) else { return };
        let answer = match self.plane.stop_waiting(&waiting.request, &mut waiting.granted) {
            Ok(task) => self.granted(task, &waiting.request, stage),
            Err(refusal) => Err(refusal.into()),
        };
        stage.answer(call, answer);
    }

    /// A deliberate bug: whoever calls is taken for the newest of its name.
    fn as_newest(&self, mut request: Request) -> Request {
        let caller = match &mut request {
            Request::Heartbeat(HeartbeatRequest { caller, .. })
            | Request::NextTask(NextTaskRequest { caller, .. })
            | Request::FinishTask(proto::FinishTaskRequest { caller, .. }) => caller,
            _ => return request,
        };
        let newest = |caller: &Caller| {
            self.plane.read(|state| state.members.get(&caller.member_id).map(|member| member.incarnation))
        };
        if let Some(caller) = caller
            && let Some(incarnation) = newest(caller)
        {
            caller.incarnation = incarnation;
        }
        request
    }

    /// A deliberate bug: what a worker once said to be held is taken for held by the learner.
    fn as_told(&mut self, mut request: Request) -> Request {
        match &mut request {
            Request::FinishTask(message) if message.failure.is_empty() => {
                self.told.extend(message.task.as_ref().and_then(|task| TaskName::try_from(task).ok()));
            }
            Request::Report(message) => {
                for set in &mut message.wanted {
                    let (iteration, kind) = (set.iteration, set.kind());
                    let is_of_set = |task: &&TaskName| {
                        task.iteration == iteration && protocol::kind_to_wire(task.kind) == kind
                    };
                    let told = self.told.iter().filter(is_of_set);
                    set.held.extend(told.map(|task| task.index));
                }
            }
            _ => {}
        }
        request
    }

    /// In words, for the story.
    pub fn standing(&self) -> String {
        let counts = self.plane.read(|state| state.tasks().counts());
        format!("{self:?}, {counts:?}, {} wait", self.waiting.len())
    }

    /// Whether leases and members are as many as there may be.
    pub fn is_bounded(&self) -> bool {
        self.plane.read(|state| {
            let mut members = state.members.iter();
            members.all(|member| state.tasks().leases_of(&member.applicant.member_id).len() <= 2)
        })
    }
}

/// Deliberate bugs: what the coordinator does not take in of what it is told.
fn misheard(mut request: Request, bug: Option<Bug>) -> Request {
    match (&mut request, bug) {
        (Request::Report(message), Some(Bug::GrantsWithoutRoom)) => {
            message.wanted.iter_mut().for_each(|set| set.open_below = None);
        }
        (Request::Heartbeat(message), Some(Bug::NeverLearnsDeadlines)) => {
            message.standstills.iter_mut().for_each(|told| told.work = Work::Waiting.into());
        }
        _ => {}
    }
    request
}

fn caller_of(request: &Request) -> Option<&Caller> {
    match request {
        Request::Heartbeat(request) => request.caller.as_ref(),
        Request::NextTask(request) => request.caller.as_ref(),
        Request::FinishTask(request) => request.caller.as_ref(),
        Request::Report(request) => request.caller.as_ref(),
        Request::SeekWeights(request) => request.caller.as_ref(),
        Request::Leave(request) => request.caller.as_ref(),
        _ => None,
    }
}
