//! The coordinator's services over gRPC: reads the clock, asks the state, waits where a caller is to wait.

use crate::launch::capacity::{self, Machine};
use crate::membership::{Members, Presence, Refusal};
use crate::rates::Rates;
use crate::run_state::{Ending, RunState, Snapshot};
use proto::admin_server::{Admin, AdminServer};
use proto::coordinator_server::{Coordinator, CoordinatorServer};
use proto::{
    DownReply, DownRequest, FinishTaskReply, FinishTaskRequest, HeartbeatReply, HeartbeatRequest, JoinReply,
    JoinRequest, LeaveReply, LeaveRequest, NextTaskReply, NextTaskRequest, ReportReply, ReportRequest,
    ScaleReply, ScaleRequest, StatusReply, StatusRequest,
};
use service::{MESSAGE_LIMIT, ServiceError};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// How often silent members are looked for, as a part of the lease.
const LOOKS_PER_LEASE: u32 = 10;
/// Longest wait of one `NextTask`.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The living state of a run, shared between the services, the supervisor and the display.
#[derive(Clone)]
pub struct ControlPlane {
    // A std mutex: held for a decision, never across an await.
    state: Arc<Mutex<RunState>>,
    /// Sent after every change that may give a waiting worker a task or end the run.
    changed: watch::Sender<()>,
    /// How fast the run has been seen to go.
    rates: Arc<Mutex<Rates>>,
}

impl ControlPlane {
    /// Shares a state.
    pub fn new(state: RunState) -> Self {
        Self { state: Arc::new(Mutex::new(state)), changed: watch::Sender::new(()), rates: Arc::default() }
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
        let coordinator = CoordinatorServer::new(self.clone()).max_decoding_message_size(MESSAGE_LIMIT);
        let admin = AdminServer::new(self.clone()).max_decoding_message_size(MESSAGE_LIMIT);
        let server = service::server()
            .add_service(coordinator)
            .add_service(admin)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::select! {
            outcome = server => outcome,
            () = self.expire_leases() => Ok(()),
            () = shutdown => Ok(()),
        }
    }

    async fn expire_leases(&self) {
        let lease = self.read(|state| state.members.patience().lease);
        let mut ticks = tokio::time::interval(lease / LOOKS_PER_LEASE);
        loop {
            ticks.tick().await;
            if self.lock().expire(Instant::now()) {
                self.changed.send_replace(());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, RunState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Looks at the state.
    pub fn read<T>(&self, look: impl FnOnce(&RunState) -> T) -> T {
        look(&self.lock())
    }

    /// Changes the state and wakes whoever waits for a change.
    pub fn update<T>(&self, change: impl FnOnce(&mut RunState, Instant) -> T) -> T {
        let outcome = change(&mut self.lock(), Instant::now());
        self.changed.send_replace(());
        outcome
    }

    /// What is shown of the run now.
    pub fn snapshot(&self) -> Snapshot {
        self.read(|state| state.snapshot(Instant::now()))
    }

    /// What is shown of the run now, and how fast it goes; to be asked again and again.
    pub fn observe(&self, now: Instant) -> (Snapshot, Rates) {
        let snapshot = self.read(|state| state.snapshot(now));
        let mut rates = self.rates();
        rates.observe(&snapshot, now);
        (snapshot, rates.clone())
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether and how the process of that id is a member.
    pub fn presence(&self, member_id: &str, pid: u32) -> Option<Presence> {
        let of_process = |members: &Members| {
            members.get(member_id).filter(|member| member.applicant.pid == pid).map(|member| member.presence)
        };
        self.read(|state| of_process(&state.members))
    }

    /// Waits until the run has ended or members are asked to leave.
    pub async fn ending(&self) -> Option<Ending> {
        let mut changed = self.changed.subscribe();
        loop {
            let (is_ending, ending) = self.read(|state| (state.is_ending(), state.ending().cloned()));
            if is_ending {
                return ending;
            }
            if changed.changed().await.is_err() {
                return None;
            }
        }
    }

    async fn wait_for_task(&self, request: &NextTaskRequest) -> Result<Option<proto::Task>, Refusal> {
        let wait = Duration::try_from_secs_f64(request.wait_seconds).unwrap_or_default().min(LONGEST_WAIT);
        let deadline = tokio::time::Instant::now() + wait;
        let mut changed = self.changed.subscribe();
        self.lock().members.admit(request.caller.as_ref(), Instant::now())?;
        loop {
            let task = self.lock().next_task(request, Instant::now())?;
            if task.is_some() {
                return Ok(task);
            }
            tokio::select! {
                outcome = changed.changed() => if outcome.is_err() { return Ok(None) },
                () = tokio::time::sleep_until(deadline) => return Ok(None),
            }
        }
    }
}

#[tonic::async_trait]
impl Coordinator for ControlPlane {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.update(|state, now| state.join(&request, now))?))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.update(|state, now| state.heartbeat(request, now))?))
    }

    async fn next_task(&self, request: Request<NextTaskRequest>) -> Result<Response<NextTaskReply>, Status> {
        let task = self.wait_for_task(request.get_ref()).await?;
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
        let reply = self.read(|state| state.status(Instant::now()));
        let rates = self.rates();
        let iterations = reply.progress.as_ref().map_or(0, |progress| progress.iterations);
        Ok(Response::new(StatusReply {
            images_per_second: rates.images_per_second(),
            network_evaluations_per_second: rates.network_evaluations_per_second(),
            seconds_left: rates.time_left(iterations).map(|left| left.as_secs_f64()),
            ..reply
        }))
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Result<Response<ScaleReply>, Status> {
        let workers = request.get_ref().workers;
        let (current, most, pids) =
            self.read(|state| (state.workers_wanted(), state.most_workers(), living(&state.members)));
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

/// Process ids of the living members.
fn living(members: &Members) -> Vec<u32> {
    members.iter().filter(|member| member.is_living()).map(|member| member.applicant.pid).collect()
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Malformed(_) => Self::invalid_argument(message),
            Refusal::OtherRun { .. }
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
    Ok(proto::admin_client::AdminClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT))
}
