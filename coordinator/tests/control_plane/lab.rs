//! A coordinator and its members, over real connections.

use config::{RunConfig, TaskKind};
use coordinator::catalog::Catalog;
use coordinator::entrance::Entrance;
use coordinator::membership::{Members, Patience};
use coordinator::run_state::RunState;
use coordinator::server::ControlPlane;
use proto::coordinator_client::CoordinatorClient;
use proto::{
    Blame, Caller, FinishTaskRequest, HeartbeatRequest, JoinRequest, NextTaskRequest, ReportRequest, Role,
    Wanted,
};
use protocol::TaskName;
use service::{Insecure, JoinDetails, PeerRole, Trust};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::Channel;

/// A lease whose end a test can wait for.
pub(crate) const LEASE: Duration = Duration::from_secs(1);
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// A coordinator in a runtime of its own, so that dropping it ends its connections as a kill does.
pub(crate) struct Server {
    pub(crate) plane: ControlPlane,
    pub(crate) port: u16,
    pub(crate) runtime: Option<Runtime>,
}

pub(crate) fn process(pid: u32) -> Option<proto::Process> {
    Some(protocol::process(u128::from(pid).to_le_bytes(), "here", pid))
}

impl Server {
    /// Four training tasks an iteration, two evaluation tasks. Nobody is lost for being slow.
    pub(crate) fn start(home: &Path, port: u16, generation: u64) -> Self {
        Self::with_lease(LONG, home, port, generation)
    }

    /// The same with another lease: who is silent for as long is lost.
    pub(crate) fn with_lease(lease: Duration, home: &Path, port: u16, generation: u64) -> Self {
        let patience = Patience { lease, task_deadline: LONG, opening_deadline: LONG, drain: LONG };
        let members = Members::new("run-a".to_owned(), generation, patience);
        let catalog = Catalog::open(config(home)).expect("prompts");
        let plane =
            ControlPlane::new(RunState::new(members, catalog, home.display().to_string(), Instant::now()));
        let deadline = Instant::now() + LONG;
        let listener = loop {
            match std::net::TcpListener::bind(("127.0.0.1", port)) {
                Ok(listener) => break listener,
                // The coordinator before this one is closing its sockets.
                Err(error) => assert!(Instant::now() < deadline, "port {port}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        listener.set_nonblocking(true).expect("nonblocking");
        let port = listener.local_addr().expect("bound").port();
        let runtime = Runtime::new().expect("a runtime");
        let served = plane.clone();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("registered with this runtime");
            served.serve(listener, Entrance::local(), std::future::pending()).await
        });
        Self { plane, port, runtime: Some(runtime) }
    }

    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn member(&self, role: Role, member_id: &str, pid: u32) -> Member {
        let channel =
            service::connect(&self.address(), PeerRole::Coordinator, &Trust::Plain(Insecure::Loopback), LONG)
                .await
                .expect("connected");
        let mut client = service::coordinator_client(channel);
        let request = JoinRequest {
            process: process(pid),
            role: role.into(),
            member_id: member_id.to_owned(),
            ..JoinRequest::default()
        };
        let reply = client.join(request).await.expect("joined").into_inner();
        Member { client, caller: reply.identity }
    }

    /// A process that the launcher has started in place of another.
    pub(crate) async fn replacement(&self, role: Role, member_id: &str, pid: u32) -> Member {
        self.plane.update(|state, _| state.members.await_process(member_id));
        self.member(role, member_id, pid).await
    }

    pub(crate) async fn worker(&self, member_id: &str) -> Member {
        self.member(Role::RolloutWorker, member_id, 1).await
    }

    pub(crate) async fn learner(&self) -> Member {
        self.member(Role::Learner, "learner", 1).await
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("still waiting for this: {what}"));
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) fn config(home: &Path) -> RunConfig {
    let prompts: Vec<String> = (0..8).map(|number| format!("scene {number}\n")).collect();
    let file = home.join("prompts.txt");
    std::fs::write(&file, prompts.concat()).expect("written");
    let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
    config.data.train = file.clone();
    config.data.validation = file.clone();
    config.data.test = file;
    config.rewards[0].name = "jpeg_compressibility".to_owned();
    config.sampling.prompts_per_iteration = 4;
    config.sampling.seeds_per_prompt = 1;
    config.sampling.seeds_per_task = 1;
    config.evaluation.prompts = 4;
    config.evaluation.prompts_per_task = 2;
    config
}

/// A member that speaks the wire and does nothing by itself.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) client: CoordinatorClient<Channel>,
    pub(crate) caller: Option<Caller>,
}

impl Member {
    pub(crate) async fn next(&mut self, wait: Duration) -> Result<Option<TaskName>, Status> {
        self.next_beside(&[], wait).await
    }

    pub(crate) async fn next_beside(
        &mut self,
        finishing: &[TaskName],
        wait: Duration,
    ) -> Result<Option<TaskName>, Status> {
        let finishing = finishing.iter().map(|task| (*task).into()).collect();
        let request =
            NextTaskRequest { caller: self.caller.clone(), wait_seconds: wait.as_secs_f64(), finishing };
        let task = self.client.next_task(request).await?.into_inner().task;
        Ok(task.and_then(|task| task.id).map(|id| TaskName::try_from(&id).expect("a known kind")))
    }

    pub(crate) async fn finish(&mut self, task: TaskName, failure: &str) -> Result<(), Status> {
        let request = FinishTaskRequest {
            caller: self.caller.clone(),
            task: Some(task.into()),
            failure: failure.to_owned(),
            blame: Blame::Task.into(),
            given_back: false,
        };
        self.client.finish_task(request).await.map(drop)
    }

    pub(crate) async fn report(&mut self, wanted: Vec<Wanted>) -> bool {
        let request = ReportRequest { caller: self.caller.clone(), wanted, ..ReportRequest::default() };
        self.client.report(request).await.expect("reported").into_inner().drain
    }

    /// Whether the member is told to leave.
    pub(crate) async fn heartbeat(&mut self) -> Result<bool, Status> {
        self.seconds_to_deliver().await.map(|seconds| seconds.is_some())
    }

    /// How long the member may deliver, if it is told to leave.
    pub(crate) async fn seconds_to_deliver(&mut self) -> Result<Option<f64>, Status> {
        let request = HeartbeatRequest { caller: self.caller.clone(), ..HeartbeatRequest::default() };
        let seconds = |order: &proto::Order| match &order.order {
            Some(proto::order::Order::Drain(drain)) => Some(drain.seconds),
            _ => None,
        };
        self.client.heartbeat(request).await.map(|reply| reply.into_inner().orders.iter().find_map(seconds))
    }

    /// Lives, and does nothing else, until dropped.
    pub(crate) fn keep_alive(&self) -> tokio_util::task::AbortOnDropHandle<()> {
        let mut member = self.clone();
        tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
            while member.heartbeat().await.is_ok() {
                tokio::time::sleep(LEASE / 10).await;
            }
        }))
    }
}

pub(crate) fn train(iteration: u32, index: u32) -> TaskName {
    TaskName { iteration, kind: TaskKind::Train, index }
}

pub(crate) fn evaluate(version: u32, index: u32) -> TaskName {
    TaskName { iteration: version, kind: TaskKind::Evaluate, index }
}

pub(crate) fn wants(kind: proto::TaskKind, iteration: u32, held: &[u32]) -> Wanted {
    Wanted {
        kind: kind.into(),
        iteration,
        version: iteration,
        held: held.to_vec(),
        rank: 0,
        open_below: None,
    }
}

pub(crate) fn wants_training(iteration: u32, held: &[u32]) -> Vec<Wanted> {
    vec![wants(proto::TaskKind::Train, iteration, held)]
}

/// What a worker says of itself when it joins by the library.
pub(crate) fn details(role: Role, member_id: &str, address: &str) -> JoinDetails {
    let (member_id, address) = (member_id.to_owned(), address.to_owned());
    let metrics_address = String::new();
    JoinDetails { role, member_id, rank: 0, address, metrics_address, grace: LONG, own_directory: None }
}
