//! A run on several hosts: over mutual TLS, by the addresses that are advertised, and what is told where that fails.
//!
//! Members are the ones of the library that real ones use, without models. Skipped where hosts cannot be made, with what is
//! missing on standard error.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use config::RunConfig;
use coordinator::catalog::Catalog;
use coordinator::cli::{Cli, Command, UpOptions};
use coordinator::entrance::{Entrance, NetworkPlan};
use coordinator::membership::{Members, Patience};
use coordinator::run_state::RunState;
use coordinator::server::{ControlPlane, connect_admin};
use proto::learner_server::{Learner, LearnerServer};
use proto::{
    DownRequest, MissingConditioningReply, MissingConditioningRequest, PushReply, PushRequest, Role,
    WeightsReply, WeightsRequest,
};
use service::network::{self, ListenAddress};
use service::trust::{TokenSource, Tokens};
use service::{Insecure, JoinDetails, Membership, PeerRole, RunDirectory, ServiceError, Source, Trust};
use tests::hosts::{Host, Hosts};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

/// How long anything here may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(120);
const RUN_ID: &str = "tiny-0123";

/// Hosts, or a word why the test is skipped.
fn hosts(n: usize) -> Option<Hosts> {
    Hosts::make(n).inspect_err(|missing| eprintln!("skipped: {missing}")).ok()
}

/// Work of a host, in a runtime of its own.
fn on<T: Send + 'static, F: Future<Output = T>>(
    host: &Host,
    work: impl FnOnce() -> F + Send + 'static,
) -> JoinHandle<T> {
    host.run(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let outcome = runtime.block_on(async { tokio::time::timeout(PATIENCE, work()).await });
        runtime.shutdown_background();
        outcome.expect("in time")
    })
}

fn config(home: &Path, network: &[&str]) -> RunConfig {
    let prompts = home.join("prompts.txt");
    std::fs::write(&prompts, "a scene\nanother\n").expect("written");
    let text = config::preset("tempflow-tiny-cpu").expect("a preset").text;
    let settings: Vec<String> = network.iter().map(|setting| format!("network.{setting}")).collect();
    let mut config = RunConfig::from_toml_with(&text, &settings).expect("valid");
    config.data.train = prompts.clone();
    config.data.validation = prompts.clone();
    config.data.test = prompts;
    config.rewards[0].name = "jpeg_compressibility".to_owned();
    config
}

fn options() -> UpOptions {
    let parsed = <Cli as clap::Parser>::try_parse_from(["coordinator", "up", "run.toml"]);
    match parsed.expect("valid").command {
        Command::Up(args) => args.options,
        other => panic!("not `up`: {other:?}"),
    }
}

/// The coordinator's services on a host, of a run whose directory is `home`.
struct Coordinator {
    address: String,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Coordinator {
    fn start(host: &Host, home: &Path, network: &[&str]) -> Self {
        Self::start_again(1, host, home, network)
    }

    /// The so many-th one of the run.
    fn start_again(generation: u64, host: &Host, home: &Path, network: &[&str]) -> Self {
        let (home, config) = (home.to_owned(), config(home, network));
        let stop = CancellationToken::new();
        let token = stop.clone();
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = host.run(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(async {
                let plan = NetworkPlan::of(&config, &options()).expect("this host has it");
                let listener = plan.listen(None, &options()).await.expect("free");
                let port = listener.local_addr().expect("bound").port();
                let directory = RunDirectory::new(&home);
                let entrance = Entrance::open(&plan, RUN_ID, &directory).await.expect("made");
                let patience = Patience {
                    lease: Duration::from_secs(5),
                    task_deadline: PATIENCE,
                    opening_deadline: PATIENCE,
                    drain: PATIENCE,
                };
                let members = Members::new(RUN_ID.to_owned(), generation, patience);
                let catalog = Catalog::open(config).expect("prompts");
                let state = RunState::new(members, catalog, home.display().to_string(), Instant::now());
                sender.send(plan.advertised_address(port)).expect("waited for");
                let served = ControlPlane::new(state).serve(listener, entrance, token.cancelled_owned());
                served.await.expect("served");
            });
            runtime.shutdown_background();
        });
        let address = receiver.recv_timeout(PATIENCE).expect("it listens");
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A process of that role, as any is that was given the role's token.
async fn trust(coordinator: &str, home: &Path, role: PeerRole) -> Result<Trust, ServiceError> {
    let token = TokenSource::File(Tokens::path(&RunDirectory::new(home).secrets(), role));
    let source = Source::Token { coordinator: coordinator.parse()?, token };
    source.trust(role, PATIENCE).await
}

fn details(role: Role, member_id: &str, address: &str) -> JoinDetails {
    let (member_id, address) = (member_id.to_owned(), address.to_owned());
    JoinDetails {
        role,
        member_id,
        rank: 0,
        address,
        metrics_address: String::new(),
        grace: PATIENCE,
        own_directory: None,
    }
}

async fn join_worker(coordinator: &str, home: &Path) -> Result<Membership, ServiceError> {
    let trust = trust(coordinator, home, PeerRole::Worker).await?;
    Ok(Membership::join(coordinator, &trust, details(Role::RolloutWorker, "far-away", "")).await?.0)
}

/// A learner that says which embeddings it lacks, and nothing else.
struct Lacking;

#[tonic::async_trait]
impl Learner for Lacking {
    type WeightsStream = tokio_stream::Empty<Result<WeightsReply, Status>>;

    async fn missing_conditioning(
        &self,
        request: Request<MissingConditioningRequest>,
    ) -> Result<Response<MissingConditioningReply>, Status> {
        Ok(Response::new(MissingConditioningReply { missing: request.into_inner().digests }))
    }

    async fn push(&self, _: Request<Streaming<PushRequest>>) -> Result<Response<PushReply>, Status> {
        Err(Status::unimplemented("nobody pushes"))
    }

    async fn weights(&self, _: Request<WeightsRequest>) -> Result<Response<Self::WeightsStream>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

/// Joins as a learner that listens where it is told and lives until `stop`.
async fn learner(coordinator: String, home: Arc<Path>, listen: ListenAddress, stop: CancellationToken) {
    let listener = listen.bind().await.expect("this host has it");
    let bound = listener.local_addr().expect("bound");
    let way = coordinator.parse::<service::Address>().expect("an address").number().await;
    let host = network::advertised(bound.ip(), "", way).expect("reachable");
    let address = network::joined(&host, &bound.port().to_string());
    let trust = trust(&coordinator, &home, PeerRole::Learner).await.expect("certified");
    let router = service::server(PATIENCE).add_service(LearnerServer::new(Lacking));
    let joined = Membership::join(&coordinator, &trust, details(Role::Learner, "learner", &address)).await;
    let _member = joined.expect("joined");
    service::serve(router, listener, trust, stop.cancelled_owned()).await.expect("served");
}

/// Asks the learner where the coordinator says that it is, which may take so long to be reached.
async fn ask_learner(worker: &Membership, patience: Duration) -> Result<usize, String> {
    let mut standing = worker.standing();
    let known =
        standing.wait_for(|standing| standing.learner_addresses.iter().any(|address| !address.is_empty()));
    let address = known.await.expect("it lives").learner_addresses[0].clone();
    let channel = service::connect(&address, PeerRole::Learner, worker.trust(), patience).await;
    let channel = channel.map_err(|error| network::unreachable("learner", &address, &error))?;
    let digests = vec![vec![7; 32].into()];
    let message = MissingConditioningRequest { caller: Some(worker.caller()), digests };
    let reply =
        service::learner_client(channel).missing_conditioning(service::request(message, PATIENCE)).await;
    reply.map(|reply| reply.into_inner().missing.len()).map_err(|status| status.to_string())
}

#[test]
fn a_run_spans_hosts_over_tls_by_the_addresses_that_are_advertised() {
    let Some(hosts) = hosts(3) else { return };
    let everywhere = [
        (
            ["bind=0.0.0.0", "advertise=10.77.0.0/24", "port=7100-7109"],
            "https://10.77.0.1:7100",
            "0.0.0.0:7200-7209",
        ),
        (["bind=::", "advertise=fd77::/64", "port=7100-7109"], "https://[fd77::1]:7100", "[::]:0"),
        (["bind=eth0", "advertise=", "port=0"], "https://10.77.0.1:", "eth0:0"),
    ];
    for (network, advertised, listen) in everywhere {
        let home = tempfile::tempdir().expect("a folder");
        let coordinator = Coordinator::start(&hosts.get(0), home.path(), &network);
        assert!(coordinator.address.starts_with(advertised), "{}", coordinator.address);
        let stop = CancellationToken::new();
        let (address, folder): (_, Arc<Path>) = (coordinator.address.clone(), home.path().into());
        let listen: ListenAddress = listen.parse().expect("well-formed");
        let (token, home_of_learner, to) = (stop.clone(), folder.clone(), address.clone());
        let learner = on(&hosts.get(1), move || learner(to, home_of_learner, listen, token));
        let worker = on(&hosts.get(2), move || async move {
            let worker = join_worker(&address, &folder).await.expect("joined");
            ask_learner(&worker, PATIENCE).await
        });
        assert_eq!(worker.join().expect("no panic"), Ok(1));
        stop.cancel();
        learner.join().expect("no panic");
    }
}

#[test]
fn a_worker_of_another_host_may_not_do_what_is_not_a_workers() {
    let Some(hosts) = hosts(2) else { return };
    let home = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(&hosts.get(0), home.path(), &["bind=0.0.0.0", "advertise=eth0"]);
    let (address, home) = (coordinator.address.clone(), home.path().to_owned());
    let told = on(&hosts.get(1), move || async move {
        let worker = trust(&address, &home, PeerRole::Worker).await.expect("certified");
        let mut admin = connect_admin(&address, &worker).await.expect("connected");
        let down = admin.down(service::request(DownRequest {}, PATIENCE)).await.expect_err("not an admin");
        let as_learner = details(Role::Learner, "learner", "10.77.0.2:7200");
        let promoted = Membership::join(&address, &worker, as_learner).await.err().expect("not a learner");
        let plain = Trust::Plain(Insecure::Anywhere);
        let nobody =
            connect_admin(&address.replace("https", "http"), &plain).await.expect("connected, to be told");
        let unknown = { nobody }.down(service::request(DownRequest {}, PATIENCE)).await.expect_err("nobody");
        let admin = trust(&address, &home, PeerRole::Admin).await.expect("certified");
        let mut admin = connect_admin(&address, &admin).await.expect("connected");
        admin.down(service::request(DownRequest {}, PATIENCE)).await.expect("an admin may");
        (down, promoted.to_string(), format!("{unknown:?}"))
    });
    let (down, promoted, unknown) = told.join().expect("no panic");
    assert_eq!(down.code(), Code::PermissionDenied);
    assert!(down.message().contains("role `worker` may not call Down"), "{down}");
    assert!(promoted.contains("start it with learner.token"), "{promoted}");
    assert!(unknown.contains("this server speaks TLS"), "{unknown}");
}

#[test]
fn an_address_that_cannot_be_reached_is_told_with_from_where_and_what_to_set() {
    let Some(hosts) = hosts(2) else { return };
    let home = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(&hosts.get(0), home.path(), &["bind=10.77.0.1"]);
    let (address, home) = (coordinator.address.clone(), home.path().to_owned());
    let told = on(&hosts.get(1), move || async move {
        let learner = trust(&address, &home, PeerRole::Learner).await.expect("certified");
        let alone = details(Role::Learner, "learner", "127.0.0.1:7200");
        let loopback =
            Membership::join(&address, &learner, alone).await.err().expect("workers would find themselves");
        let elsewhere = details(Role::Learner, "learner", "10.77.0.99:7200");
        let _learner = Membership::join(&address, &learner, elsewhere).await.expect("joined");
        let worker = join_worker(&address, &home).await.expect("joined");
        (
            loopback.to_string(),
            ask_learner(&worker, Duration::from_secs(5)).await.expect_err("nobody is there"),
        )
    });
    let (loopback, unreachable) = told.join().expect("no panic");
    assert!(loopback.contains("127.0.0.1:7200") && loopback.contains("`--advertise`"), "{loopback}");
    let from = format!("cannot be reached at 10.77.0.99:7200 from {}", service::host_name());
    assert!(unreachable.contains(&from) && unreachable.contains("set `network.advertise`"), "{unreachable}");
}

#[test]
fn a_coordinator_that_comes_back_elsewhere_is_found_by_its_file() {
    let Some(hosts) = hosts(3) else { return };
    let home = tempfile::tempdir().expect("a folder");
    let network = ["bind=0.0.0.0", "advertise=eth0"];
    let first = Coordinator::start(&hosts.get(0), home.path(), &network);
    let file = home.path().join("address");
    std::fs::write(&file, &first.address).expect("written");
    let (address, folder) = (format!("file:{}", file.display()), home.path().to_owned());
    let (sender, joined) = std::sync::mpsc::channel();
    let worker = on(&hosts.get(2), move || async move {
        let worker = join_worker(&address, &folder).await.expect("joined");
        let before = worker.caller().incarnation;
        sender.send(()).expect("waited for");
        while worker.caller().incarnation == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    joined.recv_timeout(PATIENCE).expect("joined");
    drop(first);
    let second = Coordinator::start_again(2, &hosts.get(1), home.path(), &network);
    assert!(second.address.contains("10.77.0.2"), "{}", second.address);
    std::fs::write(&file, &second.address).expect("written");
    worker.join().expect("it joins again");
}
