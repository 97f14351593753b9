//! The coordinator's services over gRPC: reads the clock, asks the state, waits where a caller is to wait.

mod checks;
mod halves;
mod logs;
mod operators;

use crate::entrance::Entrance;
use crate::events::EventLog;
use crate::membership::Refusal;
use crate::rates::Rates;
use crate::run_record::RunEnding;
use crate::run_state::RunState;
use crate::view::{LivingRun, Overview, PlannedMemory};
use crate::waiting_room::WaitingRoom;
use checks::{check_reachable, check_relay, check_role};
use halves::{Exchange, FileParts, KeptParts};
use proto::admin_server::AdminServer;
use proto::coordinator_server::{Coordinator, CoordinatorServer};
use proto::enrolment_server::EnrolmentServer;
use proto::seek_weights_reply::Source;
use proto::{
    Caller, FinishTaskReply, FinishTaskRequest, HeartbeatReply, HeartbeatRequest, JoinReply, JoinRequest,
    KeepResultsRequest, LeaveReply, LeaveRequest, NextTaskReply, NextTaskRequest, ReportReply, ReportRequest,
    Role, RunFilesRequest, SeekWeightsReply, SeekWeightsRequest, TellLogReply, TellLogRequest,
};
use protocol::with_causes;
use service::trust::peer_role;
use service::{Ownership, PeerRole, ServiceError, Trust};
use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};
use tonic::{Request, Response, Status, Streaming};

/// How often silent members are looked for, as a part of the lease.
const LOOKS_PER_LEASE: u32 = 10;
/// Longest wait of one `NextTask`.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Changes closer together than this are looked at once by each of many workers that wait for a source of weights.
const CHANGES_TOGETHER: Duration = Duration::from_millis(20);
/// Longest call, `NextTask` included.
const LONGEST_CALL: Duration = Duration::from_secs(70);
/// Largest message that a member or an operator may send, in bytes.
const REQUEST_LIMIT: usize = 1024 * 1024;
/// Largest answer to an operator, in bytes: the status of as many members as there may be.
const STATUS_LIMIT: usize = 512 * 1024 * 1024;

/// Operators that read files of the run at a time.
const MOST_READERS: usize = 8;

/// What tells the time; in a simulation, its own clock.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// What comes of asking for a task.
#[derive(Debug)]
pub enum Asked {
    /// This one.
    Granted(Box<proto::Task>),
    /// None, and the caller does not want to wait.
    Nothing,
    /// None yet: the first that the caller may have comes here. Once the time is up, see [`ControlPlane::stop_waiting`].
    Waits(oneshot::Receiver<proto::Task>),
}

/// The living state of a run, shared between the services, the supervisor and the display.
#[derive(Clone)]
pub struct ControlPlane {
    clock: Clock,
    // A std mutex: held for a decision, never across an await.
    shared: Arc<Mutex<Shared>>,
    /// Whether the run has ended or members are asked to leave.
    is_ending: watch::Sender<bool>,
    /// Counts what may give a worker a source of weights that waits for one.
    relay_changes: watch::Sender<u64>,
    /// Whether nobody beyond this host is served.
    is_local: bool,
    /// Where it is recorded which learner may change the run directory; absent where nobody owns it, as in a simulation.
    ownership: Option<Arc<Ownership>>,
    /// Held while kinds of device are recorded.
    recording_kinds: Arc<tokio::sync::Mutex<()>>,
    /// Room for operators that read files of the run: each has a thread.
    readers: Arc<Semaphore>,
    /// Whether those that follow what grows are to come to their end.
    is_closing: Arc<AtomicBool>,
    /// Between the learner and its half of the run.
    exchange: Arc<Exchange>,
}

struct Shared {
    state: RunState,
    waiting: WaitingRoom,
    /// How fast the run has been seen to go.
    rates: Rates,
    /// Where what is decided is written, if anywhere.
    event_log: Option<EventLog>,
    /// Where metrics of the coordinator are shown; empty where they are not.
    metrics_address: String,
    memory_planned: Vec<PlannedMemory>,
}

impl Shared {
    fn new(state: RunState) -> Self {
        Self {
            state,
            waiting: WaitingRoom::default(),
            rates: Rates::default(),
            event_log: None,
            metrics_address: String::new(),
            memory_planned: Vec::new(),
        }
    }

    /// Passes on what was decided, in order, since the lock is held.
    fn tell_events(&mut self) {
        let events = self.state.events_mut().take();
        if let Some(log) = &self.event_log {
            log.record(events);
        }
    }

    fn view(&self, now: Instant) -> LivingRun {
        LivingRun {
            events_dropped: self.event_log.as_ref().map_or(0, EventLog::n_dropped),
            metrics_address: self.metrics_address.clone(),
            memory_planned: self.memory_planned.clone(),
            ..LivingRun::of(&self.state, &self.rates, now)
        }
    }
}

impl ControlPlane {
    /// Shares a state.
    pub fn new(state: RunState) -> Self {
        Self::with_clock(state, Arc::new(Instant::now))
    }

    /// Shares a state whose time another clock tells.
    pub fn with_clock(state: RunState, clock: Clock) -> Self {
        Self {
            clock,
            shared: Arc::new(Mutex::new(Shared::new(state))),
            is_ending: watch::Sender::new(false),
            relay_changes: watch::Sender::new(0),
            is_local: true,
            ownership: None,
            recording_kinds: Arc::default(),
            readers: Arc::new(Semaphore::new(MOST_READERS)),
            is_closing: Arc::default(),
            exchange: Arc::default(),
        }
    }

    /// The same, for a run directory that this process owns.
    #[must_use]
    pub fn of_run(self, ownership: Arc<Ownership>) -> Self {
        Self { ownership: Some(ownership), ..self }
    }

    /// Serves until `shutdown` resolves; connections still open then are given up by the process's end.
    ///
    /// # Errors
    /// If the listener breaks.
    pub async fn serve(
        self,
        listener: TcpListener,
        entrance: Entrance,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServiceError> {
        let Entrance { trust, enrolment, is_local } = entrance;
        let this = Self { is_local, ..self.clone() };
        let coordinator = CoordinatorServer::new(this).max_decoding_message_size(REQUEST_LIMIT);
        let admin = AdminServer::new(self.clone()).max_decoding_message_size(REQUEST_LIMIT);
        let router = service::server(LONGEST_CALL).add_service(coordinator).add_service(admin);
        let enrolment =
            enrolment.map(|service| EnrolmentServer::new(service).max_decoding_message_size(REQUEST_LIMIT));
        let router = router.add_optional_service(enrolment);
        tokio::select! {
            outcome = service::serve(router, listener, trust, std::future::pending()) => outcome,
            () = self.expire_leases() => Ok(()),
            () = shutdown => Ok(()),
        }
    }

    async fn expire_leases(&self) {
        let lease = self.read(|state| state.members.patience().lease);
        let mut ticks = tokio::time::interval(lease / LOOKS_PER_LEASE);
        loop {
            ticks.tick().await;
            self.update(RunState::expire);
            if let Err(error) = self.record_learner().await {
                tracing::warn!("which learner may change the run is not recorded: {}", with_causes(&error));
            }
        }
    }

    /// Records which learner may change the run directory, before anything is said that depends on it.
    async fn record_learner(&self) -> Result<(), ServiceError> {
        let Some(ownership) = self.ownership.clone() else { return Ok(()) };
        let plane = self.clone();
        let record = move || ownership.let_write(|| plane.read(|state| state.writing_learner().cloned()));
        tokio::task::spawn_blocking(record).await.expect("recording does not panic; else this is a bug")
    }

    /// Records on what kinds of device the run is computed, before a member of a new one is told that it joined.
    async fn record_kinds(&self) -> Result<(), ServiceError> {
        let Some(ownership) = self.ownership.clone() else { return Ok(()) };
        // One after the other, so that what is recorded last is what is known then.
        let _turn = self.recording_kinds.lock().await;
        let Some(kinds) = self.read(RunState::kinds_to_record) else { return Ok(()) };
        let written = kinds.clone();
        let record = move || written.write(ownership.directory());
        tokio::task::spawn_blocking(record).await.expect("recording does not panic; else this is a bug")?;
        self.update(|state, _| state.kinds_recorded(kinds));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Looks at the state.
    pub fn read<T>(&self, look: impl FnOnce(&RunState) -> T) -> T {
        look(&self.lock().state)
    }

    /// Changes the state and gives tasks that are free by that to workers that wait.
    pub fn update<T>(&self, change: impl FnOnce(&mut RunState, Instant) -> T) -> T {
        let mut shared = self.lock();
        let Shared { state, waiting, .. } = &mut *shared;
        let now = (self.clock)();
        let outcome = change(state, now);
        waiting.serve(state, now);
        let (is_ending, n_relay_changes) = (state.is_ending(), state.n_relay_changes());
        shared.tell_events();
        drop(shared);
        self.is_ending.send_if_modified(|known| std::mem::replace(known, is_ending) != is_ending);
        self.relay_changes
            .send_if_modified(|known| std::mem::replace(known, n_relay_changes) != n_relay_changes);
        outcome
    }

    /// What is shown of the run on a line now; to be asked again and again, since rates come of what was seen.
    pub fn observe(&self, now: Instant) -> Overview {
        let mut shared = self.lock();
        let Shared { state, rates, .. } = &mut *shared;
        // Before the learner has said how far the run is, nothing is known of it, least of all that it stands at its beginning.
        if state.has_progress() {
            rates.observe(state.progress(), state.tasks().counts(), now);
        }
        Overview::of(state, rates, now)
    }

    /// Has what is decided written down from now on.
    pub fn write_events(&self, log: EventLog) {
        self.lock().event_log = Some(log);
    }

    /// Waits a moment for events that are not written yet.
    pub fn finish_events(&self) {
        let log = self.lock().event_log.clone();
        if let Some(log) = log {
            log.close();
        }
    }

    /// Where metrics of the coordinator are shown, `host:port`, for who asks how the run is doing.
    pub fn show_metrics_address(&self, address: String) {
        self.lock().metrics_address = address;
    }

    /// What processes are reckoned to hold in memory, once that is known.
    pub fn plan_memory(&self, planned: Vec<PlannedMemory>) {
        self.lock().memory_planned = planned;
    }

    /// All that is shown of the run.
    pub fn view(&self) -> LivingRun {
        self.lock().view((self.clock)())
    }

    /// Waits until the run has ended or members are asked to leave.
    pub async fn ending(&self) -> Option<RunEnding> {
        let mut is_ending = self.is_ending.subscribe();
        // The sender lives in `self`.
        let _ = is_ending.wait_for(|is_ending| *is_ending).await;
        self.read(|state| state.ending().cloned())
    }

    /// Makes the sender a member.
    ///
    /// # Errors
    /// If it is refused.
    pub fn admit(&self, request: &JoinRequest) -> Result<JoinReply, Refusal> {
        let reply = self.update(|state, now| state.join(request, now))?;
        // A call of its earlier incarnation comes back to hear that it is fenced.
        self.lock().waiting.dismiss(&request.member_id);
        Ok(reply)
    }

    /// Asks for a task, which is a sign of life; waiting for one is none.
    ///
    /// # Errors
    /// If the sender is fenced.
    pub fn ask(&self, request: &NextTaskRequest) -> Result<Asked, Refusal> {
        let mut shared = self.lock();
        let now = (self.clock)();
        shared.state.members.admit(request.caller.as_ref(), now)?;
        let granted = shared.state.next_task(request, now);
        shared.tell_events();
        Ok(match granted? {
            Some(task) => Asked::Granted(Box::new(task)),
            None if waits(request).is_zero() => Asked::Nothing,
            None => Asked::Waits(shared.waiting.enter(request.clone())),
        })
    }

    /// The time of a worker that waits is up, or it was sent back. It may be none any more, or have been given a task just
    /// now.
    ///
    /// # Errors
    /// If the sender is fenced.
    pub fn stop_waiting(
        &self,
        request: &NextTaskRequest,
        granted: &mut oneshot::Receiver<proto::Task>,
    ) -> Result<Option<proto::Task>, Refusal> {
        let mut shared = self.lock();
        let member_id = request.caller.as_ref().map_or("", |caller| &caller.member_id);
        shared.waiting.leave(granted, member_id);
        let granted = shared.state.next_task(request, (self.clock)());
        shared.tell_events();
        granted
    }

    async fn wait_for_task(&self, request: NextTaskRequest) -> Result<Option<proto::Task>, Refusal> {
        let deadline = tokio::time::Instant::now() + waits(&request);
        let mut granted = match self.ask(&request)? {
            Asked::Granted(task) => return Ok(Some(*task)),
            Asked::Nothing => return Ok(None),
            Asked::Waits(granted) => granted,
        };
        match tokio::time::timeout_at(deadline, &mut granted).await {
            Ok(Ok(task)) => Ok(Some(task)),
            Ok(Err(_)) | Err(_) => self.stop_waiting(&request, &mut granted),
        }
    }

    /// Looks for a source of weights at every change until there is one that has room, or the caller has waited for long enough.
    async fn wait_for_source(&self, request: &SeekWeightsRequest) -> Result<Option<Source>, Refusal> {
        let deadline = tokio::time::Instant::now() + patience_of(request.wait_seconds);
        let mut changes = self.relay_changes.subscribe();
        loop {
            changes.mark_unchanged();
            let source = self.update(|state, now| state.seek_weights(request, now))?;
            if source.is_some() || tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                return Ok(source);
            }
            tokio::time::sleep(CHANGES_TOGETHER).await;
        }
    }
}

/// How long a worker that asks is to wait at most.
pub fn waits(request: &NextTaskRequest) -> Duration {
    patience_of(request.wait_seconds)
}

fn patience_of(wait_seconds: f64) -> Duration {
    Duration::try_from_secs_f64(wait_seconds).unwrap_or_default().min(LONGEST_WAIT)
}

#[tonic::async_trait]
impl Coordinator for ControlPlane {
    type RunFilesStream = FileParts;
    type KeepResultsStream = KeptParts;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let peer = peer_role(&request);
        let request = request.into_inner();
        check_role(peer, request.role())?;
        if request.role() == Role::Learner {
            check_reachable(&request.address, self.is_local)?;
        }
        let reply = self.admit(&request)?;
        if request.role() == Role::Learner {
            self.record_learner().await.map_err(|error| {
                let reason = with_causes(&error);
                Status::unavailable(format!(
                    "that this learner may change the run cannot be recorded: {reason}"
                ))
            })?;
        }
        self.record_kinds().await.map_err(|error| {
            let reason = with_causes(&error);
            Status::unavailable(format!("what this member computes on cannot be recorded: {reason}"))
        })?;
        Ok(Response::new(reply))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let peer = peer_role(&request);
        let mut request = request.into_inner();
        self.check_caller(peer, request.caller.as_ref())?;
        let problem = request.weights.as_mut().and_then(|weights| check_relay(weights, self.is_local).err());
        request.troubles.extend(problem);
        Ok(Response::new(self.update(|state, now| state.heartbeat(request, now))?))
    }

    async fn next_task(&self, request: Request<NextTaskRequest>) -> Result<Response<NextTaskReply>, Status> {
        self.check_caller(peer_role(&request), request.get_ref().caller.as_ref())?;
        let task = self.wait_for_task(request.into_inner()).await?;
        Ok(Response::new(NextTaskReply { task }))
    }

    async fn seek_weights(
        &self,
        request: Request<SeekWeightsRequest>,
    ) -> Result<Response<SeekWeightsReply>, Status> {
        self.check_caller(peer_role(&request), request.get_ref().caller.as_ref())?;
        let source = self.wait_for_source(request.get_ref()).await?;
        Ok(Response::new(SeekWeightsReply { source }))
    }

    async fn finish_task(
        &self,
        request: Request<FinishTaskRequest>,
    ) -> Result<Response<FinishTaskReply>, Status> {
        self.check_caller(peer_role(&request), request.get_ref().caller.as_ref())?;
        let request = request.into_inner();
        self.update(|state, now| state.finish_task(&request, now))?;
        Ok(Response::new(FinishTaskReply {}))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportReply>, Status> {
        self.check_caller(peer_role(&request), request.get_ref().caller.as_ref())?;
        let drain = self.update(|state, now| state.report(request.into_inner(), now))?;
        Ok(Response::new(ReportReply { drain }))
    }

    async fn run_files(&self, request: Request<RunFilesRequest>) -> Result<Response<FileParts>, Status> {
        self.check_caller(peer_role(&request), request.get_ref().caller.as_ref())?;
        self.send_run_files(request.get_ref())
    }

    async fn keep_results(
        &self,
        request: Request<Streaming<KeepResultsRequest>>,
    ) -> Result<Response<KeptParts>, Status> {
        let peer = peer_role(&request);
        self.receive_results(peer, request.into_inner()).await
    }

    async fn tell_log(&self, request: Request<TellLogRequest>) -> Result<Response<TellLogReply>, Status> {
        self.check_caller(peer_role(&request), request.get_ref().caller.as_ref())?;
        self.update(|state, now| state.log_told(request.into_inner(), now))?;
        Ok(Response::new(TellLogReply {}))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        self.check_caller(peer_role(&request), request.get_ref().caller.as_ref())?;
        self.update(|state, now| state.leave(request.get_ref().caller.as_ref(), now))?;
        Ok(Response::new(LeaveReply {}))
    }
}

impl ControlPlane {
    /// A member speaks for members of its own role only: a worker does not send the learner away.
    fn check_caller(&self, peer: Option<PeerRole>, caller: Option<&Caller>) -> Result<(), Status> {
        let role_of =
            |caller: &Caller| self.read(|state| Some(state.members.get(&caller.member_id)?.applicant.role));
        // Who is none is told so elsewhere.
        caller.and_then(role_of).map_or(Ok(()), |role| check_role(peer, role))
    }
}

/// Connects the commands of an operator to a living coordinator.
///
/// # Errors
/// If nobody answers.
pub async fn connect_admin(
    address: &str,
    trust: &Trust,
) -> Result<proto::admin_client::AdminClient<tonic::transport::Channel>, ServiceError> {
    let channel = service::connect(address, PeerRole::Coordinator, trust, Duration::from_secs(1)).await?;
    Ok(proto::admin_client::AdminClient::new(channel).max_decoding_message_size(STATUS_LIMIT))
}
