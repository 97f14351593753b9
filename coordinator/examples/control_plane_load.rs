//! What many workers cost the coordinator: its services in a process of their own, over real connections, with workers that only
//! pretend to sample and a learner that only reports.
//!
//! `cargo run --release -p coordinator --example control_plane_load -- --seconds 30 --workers 10,30,100,300,1000,3000` prints a
//! table; with `--at PORT,PID` it is the coordinator of a run started with `--set resources.workers=0` that is put under load. Its
//! learner never gets what the workers say they delivered, so that tasks are granted over and over.
//!
//! A worker sends a heartbeat a second, with the weights that it has, and takes 2 to 10 s for a task; an iteration has four tasks for
//! each. What a call takes is measured by who calls, whose own process needs a core besides.

use clap::Parser;
use config::RunConfig;
use coordinator::catalog::Catalog;
use coordinator::entrance::Entrance;
use coordinator::events::EventLog;
use coordinator::membership::{Members, Patience};
use coordinator::run_state::RunState;
use coordinator::server::ControlPlane;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proto::{
    Caller, FinishTaskRequest, HeartbeatRequest, JoinRequest, NextTaskRequest, ReportRequest, Role,
    Standstill, WeightsStanding, Work,
};
use protocol::WeightsName;
use service::output::print_line;
use service::{Insecure, Ownership, PeerRole, RunDirectory, Trust};
use std::collections::BTreeSet;
use std::io::{BufRead, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tonic::transport::Channel;

/// Shortest and longest time that a pretended task takes.
const TASK: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
const HEARTBEAT: Duration = Duration::from_secs(1);
const TASKS_PER_WORKER: u64 = 4;
/// Workers that share a connection: delays that one message waits for another of are seen only where there are several.
const WORKERS_PER_CONNECTION: u64 = 10;
const PATIENCE: Duration = Duration::from_secs(60);
/// Connections and first grants aside.
const SETTLING: Duration = Duration::from_secs(5);

#[derive(Parser)]
struct Arguments {
    /// How long each number of workers is measured.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Numbers of workers, one after the other.
    #[arg(long, value_delimiter = ',', default_value = "10,30,100,300,1000,3000")]
    workers: Vec<u64>,
    /// Port and process of a living coordinator; without them one is started for each number of workers.
    #[arg(long, value_delimiter = ',', num_args = 2)]
    at: Vec<u32>,
    /// Be the coordinator that is put under load.
    #[arg(long, hide = true)]
    serve: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
    if arguments.serve {
        return serve(arguments.workers[0]);
    }
    print_line(
        "| workers | coordinator, cores | a second: heartbeats, grants, reports | heartbeat (ms): median, 99 of 100, longest \
         | grant (ms): median, 99 of 100, longest | memory (MiB) | a worker (KiB) | growth (KiB/min) |",
    );
    print_line("|---|---|---|---|---|---|---|---|");
    for n_workers in &arguments.workers {
        let (target, _process) = match arguments.at[..] {
            [port, pid] => (Target { address: format!("127.0.0.1:{port}"), pid, n_tasks: None }, None),
            _ => {
                let process = Process::start(*n_workers);
                let n_tasks = Some((TASKS_PER_WORKER * n_workers) as u32);
                (Target { address: process.address.clone(), pid: process.child.id(), n_tasks }, Some(process))
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(load(&target, *n_workers, Duration::from_secs(arguments.seconds)));
    }
}

/// The coordinator that is put under load.
struct Target {
    address: String,
    pid: u32,
    /// Of an iteration; absent where it has a learner already.
    n_tasks: Option<u32>,
}

impl Target {
    /// Time that all its threads have run.
    fn processor_time(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid)).expect("a living process");
        let of_thread = |thread: std::fs::DirEntry| -> Option<u64> {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse().ok()
        };
        Duration::from_nanos(threads.flatten().filter_map(of_thread).sum())
    }

    /// Memory that it has resident, in KiB.
    fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("a living process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a Linux");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

/// A coordinator in a process of its own, which ends with this one.
struct Process {
    child: Child,
    address: String,
}

impl Process {
    fn start(n_workers: u64) -> Self {
        let program = std::env::current_exe().expect("a program");
        let mut child = Command::new(program)
            .args(["--serve", "--workers", &n_workers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut address = String::new();
        let output = child.stdout.take().expect("piped");
        std::io::BufReader::new(output).read_line(&mut address).expect("it says where it listens");
        Self { child, address: address.trim().to_owned() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // At the end of its input it removes what it wrote, and ends.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Serves as `coordinator up` does, and writes events, until whoever started it is gone.
fn serve(n_workers: u64) {
    let home = tempfile::tempdir().expect("a directory");
    let config = config(home.path(), (TASKS_PER_WORKER * n_workers) as usize);
    let patience = Patience {
        lease: Duration::from_secs(5),
        task_deadline: PATIENCE,
        opening_deadline: PATIENCE,
        drain: PATIENCE,
    };
    let members = Members::new("run".to_owned(), 1, patience);
    let catalog = Catalog::open(config).expect("prompts");
    let plane = ControlPlane::new(RunState::new(members, catalog, String::new(), Instant::now()));
    let owned = Ownership::claim(&RunDirectory::new(home.path()), 0, None).expect("claimed");
    plane.write_events(EventLog::start(owned.directory().clone()));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.spawn(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        print_line(listener.local_addr().expect("bound"));
        plane.serve(listener, Entrance::local(), std::future::pending()).await.expect("served");
    });
    // Nothing comes; the end does once the other side is gone.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn config(home: &Path, n_tasks: usize) -> RunConfig {
    let file = home.join("prompts.txt");
    std::fs::write(&file, "a scene\nanother\n").expect("written");
    let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
    config.data.train = file.clone();
    config.data.validation = file.clone();
    config.data.test = file;
    config.rewards[0].name = "jpeg_compressibility".to_owned();
    config.sampling.prompts_per_iteration = n_tasks;
    (config.sampling.seeds_per_prompt, config.sampling.seeds_per_task) = (1, 1);
    config
}

#[derive(Default)]
struct Counts {
    heartbeats: AtomicU64,
    /// How long each took, in seconds.
    answered_after: Mutex<Vec<f64>>,
    /// Likewise each question for a task that one was free for.
    granted_after: Mutex<Vec<f64>>,
    grants: AtomicU64,
    reports: AtomicU64,
}

impl Counts {
    fn read(&self) -> [u64; 3] {
        [&self.heartbeats, &self.grants, &self.reports].map(|count| count.load(Relaxed))
    }

    fn forget_times(&self) {
        for times in [&self.answered_after, &self.granted_after] {
            times.lock().expect("unpoisoned").clear();
        }
    }
}

/// The task that a worker has in hand.
type Running = Mutex<Option<proto::TaskId>>;

/// The iteration at work and which of its tasks were delivered.
type Learner = Mutex<(u32, BTreeSet<u32>)>;

async fn load(target: &Target, n_workers: u64, length: Duration) {
    let (counts, learner) = (Arc::new(Counts::default()), Arc::new(Learner::default()));
    if let Some(n_tasks) = target.n_tasks {
        let (client, caller) = join(connect(&target.address).await, Role::Learner, "learner").await;
        tokio::spawn(report((client, caller), n_tasks, counts.clone(), learner.clone()));
    }
    let memory_without = target.memory();
    let mut channel = connect(&target.address).await;
    for number in 0..n_workers {
        if number.is_multiple_of(WORKERS_PER_CONNECTION) {
            channel = connect(&target.address).await;
        }
        tokio::spawn(worker(channel.clone(), number, counts.clone(), learner.clone()));
    }
    tokio::time::sleep(SETTLING).await;
    let (start, before, counted) = (Instant::now(), target.processor_time(), counts.read());
    let memory_before = target.memory();
    counts.forget_times();
    tokio::time::sleep(length).await;
    let (wall, memory) = (start.elapsed().as_secs_f64(), target.memory());
    let cores = (target.processor_time() - before).as_secs_f64() / wall;
    let now = counts.read();
    let rate = |position: usize| (now[position] - counted[position]) as f64 / wall;
    print_line(format_args!(
        "| {n_workers} | {cores:.3} | {:.0}, {:.0}, {:.0} | {} | {} | {:.1} | {:.1} | {:.0} |",
        rate(0),
        rate(1),
        rate(2),
        in_milliseconds(&counts.answered_after),
        in_milliseconds(&counts.granted_after),
        memory / 1024.0,
        (memory - memory_without) / n_workers as f64,
        (memory - memory_before) / wall * 60.0,
    ));
}

/// Median, the time after which 99 of 100 are done, and the longest.
fn in_milliseconds(times: &Mutex<Vec<f64>>) -> String {
    let mut times = std::mem::take(&mut *times.lock().expect("unpoisoned"));
    times.sort_by(f64::total_cmp);
    let Some(last) = times.len().checked_sub(1) else { return "none".to_owned() };
    let after = |share: f64| 1e3 * times[(share * last as f64) as usize];
    format!("{:.2}, {:.2}, {:.2}", after(0.5), after(0.99), after(1.0))
}

async fn connect(address: &str) -> Channel {
    service::connect(
        &format!("http://{address}"),
        PeerRole::Coordinator,
        &Trust::Plain(Insecure::Loopback),
        PATIENCE,
    )
    .await
    .expect("connected")
}

async fn report(
    (mut client, caller): (Client, Option<Caller>),
    n_tasks: u32,
    counts: Arc<Counts>,
    learner: Arc<Learner>,
) {
    loop {
        let (iteration, held) = {
            let mut learner = learner.lock().expect("unpoisoned");
            if learner.1.len() == n_tasks as usize {
                *learner = (learner.0 + 1, BTreeSet::new());
            }
            (learner.0, learner.1.iter().copied().collect())
        };
        let kind = proto::TaskKind::Train.into();
        let wanted =
            vec![proto::Wanted { kind, iteration, version: iteration, held, rank: 0, open_below: None }];
        let request = ReportRequest { caller: caller.clone(), wanted, ..ReportRequest::default() };
        client.report(request).await.expect("reported");
        counts.reports.fetch_add(1, Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

type Client = proto::coordinator_client::CoordinatorClient<Channel>;

async fn join(channel: Channel, role: Role, member_id: &str) -> (Client, Option<Caller>) {
    let mut client = service::coordinator_client(channel);
    // All of them are this one process.
    let process = Some(protocol::process([1; protocol::NONCE_BYTES], "here", std::process::id()));
    let member_id = member_id.to_owned();
    let request = JoinRequest { role: role.into(), member_id, process, ..JoinRequest::default() };
    let reply = client.join(request).await.expect("joined").into_inner();
    if role == Role::Learner {
        let (mut client, caller) = (client.clone(), reply.identity.clone());
        let nothing = Running::default();
        tokio::spawn(async move { heartbeats(&mut client, caller, (&Counts::default(), &nothing)).await });
    }
    (client, reply.identity)
}

async fn heartbeats(client: &mut Client, caller: Option<Caller>, (counts, running): (&Counts, &Running)) {
    let held = [WeightsName::policy(0), WeightsName::average(0)].map(proto::WeightsId::from).to_vec();
    let weights = WeightsStanding { address: "127.0.0.1:7102".to_owned(), held, fetching: None };
    loop {
        let request = HeartbeatRequest {
            caller: caller.clone(),
            standstills: vec![Standstill { work: Work::Computing.into(), seconds: 0.5 }],
            running: running.lock().expect("unpoisoned").into_iter().collect(),
            device: "a card of some kind".to_owned(),
            card: "0".to_owned(),
            weights: Some(weights.clone()),
            ..HeartbeatRequest::default()
        };
        let start = Instant::now();
        client.heartbeat(request).await.expect("a member");
        counts.answered_after.lock().expect("unpoisoned").push(start.elapsed().as_secs_f64());
        counts.heartbeats.fetch_add(1, Relaxed);
        tokio::time::sleep(HEARTBEAT).await;
    }
}

async fn worker(channel: Channel, number: u64, counts: Arc<Counts>, learner: Arc<Learner>) {
    let (mut client, caller) = join(channel, Role::RolloutWorker, &format!("pretender-{number}")).await;
    let (mut beating, beats, identity) = (client.clone(), counts.clone(), caller.clone());
    let running = Arc::new(Running::default());
    let told = running.clone();
    tokio::spawn(async move { heartbeats(&mut beating, identity, (&beats, &told)).await });
    let (mut state, mut wait_seconds) = (number, 0.0);
    loop {
        let request = NextTaskRequest { caller: caller.clone(), wait_seconds, ..NextTaskRequest::default() };
        let start = Instant::now();
        let task = client.next_task(request).await.expect("a member").into_inner().task;
        let was_free = wait_seconds == 0.0;
        wait_seconds = if task.is_some() { 0.0 } else { 10.0 };
        let Some(task) = task else { continue };
        if was_free {
            counts.granted_after.lock().expect("unpoisoned").push(start.elapsed().as_secs_f64());
        }
        counts.grants.fetch_add(1, Relaxed);
        *running.lock().expect("unpoisoned") = task.id;
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (state >> 33) as f64 / (1_u64 << 31) as f64;
        tokio::time::sleep(TASK.0 + (TASK.1 - TASK.0).mul_f64(share)).await;
        let id = task.id.expect("an id");
        *running.lock().expect("unpoisoned") = None;
        {
            let mut learner = learner.lock().expect("unpoisoned");
            if learner.0 == id.iteration {
                learner.1.insert(id.index);
            }
        }
        let request =
            FinishTaskRequest { caller: caller.clone(), task: Some(id), ..FinishTaskRequest::default() };
        client.finish_task(request).await.expect("a member");
    }
}
