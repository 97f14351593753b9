//! The coordinator's services over gRPC: reads the clock, asks the state, waits where a caller is to wait.

use crate::launch::capacity::{self, Machine};
use crate::membership::{Members, Refusal};
use crate::rates::Rates;
use crate::run_state::{Ending, RunState};
use crate::view::{LivingRun, Overview};
use crate::waiting_room::WaitingRoom;
use proto::admin_server::{Admin, AdminServer};
use proto::coordinator_server::{Coordinator, CoordinatorServer};
use proto::{
    DownReply, DownRequest, FinishTaskReply, FinishTaskRequest, HeartbeatReply, HeartbeatRequest, JoinReply,
    JoinRequest, LeaveReply, LeaveRequest, NextTaskReply, NextTaskRequest, ReportReply, ReportRequest, Role,
    ScaleReply, ScaleRequest, StatusReply, StatusRequest,
};
use service::ServiceError;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// How often silent members are looked for, as a part of the lease.
const LOOKS_PER_LEASE: u32 = 10;
/// Longest wait of one `NextTask`.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Longest call, `NextTask` included.
const LONGEST_CALL: Duration = Duration::from_secs(70);
/// Largest message that a member or an operator may send, in bytes.
const REQUEST_LIMIT: usize = 1024 * 1024;
/// Largest answer to an operator, in bytes: the status of as many members as there may be.
const STATUS_LIMIT: usize = 512 * 1024 * 1024;

/// The living state of a run, shared between the services, the supervisor and the display.
#[derive(Clone)]
pub struct ControlPlane {
    // A std mutex: held for a decision, never across an await.
    shared: Arc<Mutex<Shared>>,
    /// Whether the run has ended or members are asked to leave.
    is_ending: watch::Sender<bool>,
}

struct Shared {
    state: RunState,
    waiting: WaitingRoom,
    /// How fast the run has been seen to go.
    rates: Rates,
}

impl ControlPlane {
    /// Shares a state.
    pub fn new(state: RunState) -> Self {
        let shared = Shared { state, waiting: WaitingRoom::default(), rates: Rates::default() };
        Self { shared: Arc::new(Mutex::new(shared)), is_ending: watch::Sender::new(false) }
    }

    /// Serves until `shutdown` resolves; connections still open then are given up by the process's end.
    ///
    /// # Errors
    /// If the listener breaks.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let coordinator = CoordinatorServer::new(self.clone()).max_decoding_message_size(REQUEST_LIMIT);
        let admin = AdminServer::new(self.clone()).max_decoding_message_size(REQUEST_LIMIT);
        let router = service::server(LONGEST_CALL).add_service(coordinator).add_service(admin);
        tokio::select! {
            outcome = service::serve(router, listener, std::future::pending()) => outcome,
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
        }
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
        let now = Instant::now();
        let outcome = change(state, now);
        waiting.serve(state, now);
        let is_ending = state.is_ending();
        drop(shared);
        self.is_ending.send_if_modified(|known| std::mem::replace(known, is_ending) != is_ending);
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

    /// Waits until the run has ended or members are asked to leave.
    pub async fn ending(&self) -> Option<Ending> {
        let mut is_ending = self.is_ending.subscribe();
        // The sender lives in `self`.
        let _ = is_ending.wait_for(|is_ending| *is_ending).await;
        self.read(|state| state.ending().cloned())
    }

    async fn wait_for_task(&self, request: NextTaskRequest) -> Result<Option<proto::Task>, Refusal> {
        let wait = Duration::try_from_secs_f64(request.wait_seconds).unwrap_or_default().min(LONGEST_WAIT);
        let deadline = tokio::time::Instant::now() + wait;
        let mut granted = {
            let mut shared = self.lock();
            let now = Instant::now();
            shared.state.members.admit(request.caller.as_ref(), now)?;
            match shared.state.next_task(&request, now)? {
                Some(task) => return Ok(Some(task)),
                None if wait.is_zero() => return Ok(None),
                None => shared.waiting.enter(request.clone()),
            }
        };
        if let Ok(Ok(task)) = tokio::time::timeout_at(deadline, &mut granted).await {
            return Ok(Some(task));
        }
        // The time is up, or the worker was sent back. It may be none any more, or have been given a task just now.
        let mut shared = self.lock();
        let member_id = request.caller.as_ref().map_or("", |caller| &caller.member_id);
        shared.waiting.leave(&mut granted, member_id);
        shared.state.next_task(&request, Instant::now())
    }
}

#[tonic::async_trait]
impl Coordinator for ControlPlane {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let request = request.into_inner();
        let reply = self.update(|state, now| state.join(&request, now))?;
        // A call of its earlier incarnation comes back to hear that it is fenced.
        self.lock().waiting.dismiss(&request.member_id);
        Ok(Response::new(reply))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.update(|state, now| state.heartbeat(request, now))?))
    }

    async fn next_task(&self, request: Request<NextTaskRequest>) -> Result<Response<NextTaskReply>, Status> {
        let task = self.wait_for_task(request.into_inner()).await?;
        Ok(Response::new(NextTaskReply { task }))
    }

    async fn finish_task(
        &self,
        request: Request<FinishTaskRequest>,
    ) -> Result<Response<FinishTaskReply>, Status> {
        let request = request.into_inner();
        self.update(|state, now| state.finish_task(&request, now))?;
        Ok(Response::new(FinishTaskReply {}))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportReply>, Status> {
        let drain = self.update(|state, now| state.report(request.into_inner(), now))?;
        Ok(Response::new(ReportReply { drain }))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        self.update(|state, now| state.leave(request.get_ref().caller.as_ref(), now))?;
        Ok(Response::new(LeaveReply {}))
    }
}

#[tonic::async_trait]
impl Admin for ControlPlane {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let shared = self.lock();
        let run = LivingRun::of(&shared.state, &shared.rates, Instant::now());
        drop(shared);
        Ok(Response::new(run.into()))
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Result<Response<ScaleReply>, Status> {
        let workers = request.get_ref().workers;
        let (current, most, pids) =
            self.read(|state| (state.workers_wanted(), state.most_workers(), living_workers(&state.members)));
        if workers > current {
            let refusal = capacity::of_config(workers, most)
                .or_else(|| capacity::of_machine(workers - current, &Machine::look(&pids)));
            if let Some(refusal) = refusal {
                return Err(Status::resource_exhausted(refusal));
            }
        }
        self.update(|state, _| state.scale(workers));
        Ok(Response::new(ScaleReply {}))
    }

    async fn down(&self, _: Request<DownRequest>) -> Result<Response<DownReply>, Status> {
        self.update(|state, _| state.drain());
        Ok(Response::new(DownReply {}))
    }
}

/// Process ids of the living workers.
fn living_workers(members: &Members) -> Vec<u32> {
    let living = members.iter().filter(|member| member.is_living());
    let workers = living.filter(|member| member.applicant.role == Role::RolloutWorker);
    workers.map(|member| member.applicant.process.pid).collect()
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Malformed(_) => Self::invalid_argument(message),
            Refusal::Full => Self::unavailable(message),
            Refusal::OtherRun { .. }
            | Refusal::OtherRole { .. }
            | Refusal::OtherBuild { .. }
            | Refusal::Taken { .. }
            | Refusal::Stuck { .. }
            | Refusal::Fenced { .. } => Self::failed_precondition(message),
        }
    }
}

/// Binds the loopback port that members and commands reach the coordinator at; 0 is any free one.
///
/// # Errors
/// If it is taken.
pub async fn bind(port: u16) -> Result<TcpListener, std::io::Error> {
    TcpListener::bind(("127.0.0.1", port)).await
}

/// Connects the commands of an operator to a living coordinator.
///
/// # Errors
/// If nobody answers.
pub async fn connect_admin(
    port: u16,
) -> Result<proto::admin_client::AdminClient<tonic::transport::Channel>, ServiceError> {
    let channel = service::connect(&format!("http://127.0.0.1:{port}"), Duration::from_secs(1)).await?;
    Ok(proto::admin_client::AdminClient::new(channel).max_decoding_message_size(STATUS_LIMIT))
}
