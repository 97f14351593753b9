//! What many workers cost the coordinator: its services over real connections, with workers that only pretend to sample.
//!
//! `cargo run --release -p coordinator --example control_plane_load -- [WORKERS] [SECONDS]` prints the share of a core that
//! the serving thread takes, and what it did for it. With `PORT PID` behind them it is the coordinator of a run started with
//! `--set resources.workers=0` that is put under load; its learner never gets what the workers say they delivered, so that
//! tasks are granted over and over.

use config::RunConfig;
use coordinator::catalog::Catalog;
use coordinator::entrance::Entrance;
use coordinator::membership::{Members, Patience};
use coordinator::run_state::RunState;
use coordinator::server::ControlPlane;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proto::{
    Caller, FinishTaskRequest, HeartbeatRequest, JoinRequest, NextTaskRequest, ReportRequest, Role,
    Standstill, Work,
};
use service::{Insecure, PeerRole, Trust};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tonic::transport::Channel;

/// Shortest and longest time that a pretended task takes.
const TASK: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Workers that share a connection: delays that one message waits for another of are seen only where there are several.
const WORKERS_PER_CONNECTION: u64 = 10;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Counts {
    heartbeats: AtomicU64,
    /// How long each took, in seconds.
    answered_after: Mutex<Vec<f64>>,
    /// Likewise each question for a task that is answered at once, by one or by none.
    asked: Mutex<Vec<f64>>,
    grants: AtomicU64,
    reports: AtomicU64,
}

/// The task that a worker has in hand.
type Running = Mutex<Option<proto::TaskId>>;

/// The iteration at work and which of its tasks were delivered.
type Learner = Mutex<(u32, BTreeSet<u32>)>;

fn main() {
    let number = |position, default| {
        std::env::args().nth(position).map_or(default, |text| text.parse().expect("a number"))
    };
    let (n_workers, seconds) = (number(1, 1000), number(2, 30));
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
    let home = tempfile::tempdir().expect("a directory");
    let config = config(home.path(), n_workers as usize);
    let n_tasks = config.n_train_tasks() as u32;
    let (address, threads, learner) = match (std::env::args().nth(3), std::env::args().nth(4)) {
        (Some(port), Some(pid)) => (format!("127.0.0.1:{port}"), threads_of(&pid), None),
        _ => {
            let (address, thread) = serve(config);
            (address, vec![thread], Some(n_tasks))
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(load(address, &threads, (n_workers, learner), Duration::from_secs(seconds)));
}

fn config(home: &std::path::Path, n_tasks: usize) -> RunConfig {
    let file = home.join("prompts.txt");
    std::fs::write(&file, "a scene\nanother\n").expect("written");
    let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
    (config.data.train, config.data.test) = (file.clone(), file);
    config.rewards[0].name = "jpeg_compressibility".to_owned();
    config.sampling.prompts_per_iteration = n_tasks;
    (config.sampling.seeds_per_prompt, config.sampling.seeds_per_task) = (1, 1);
    config
}

/// Serves on a thread of its own; its address and the file that tells how long the thread has run.
fn serve(config: RunConfig) -> (String, String) {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let patience = Patience {
            lease: Duration::from_secs(5),
            task_deadline: PATIENCE,
            opening_deadline: PATIENCE,
            drain: PATIENCE,
        };
        let members = Members::new("run".to_owned(), 1, patience);
        let catalog = Catalog::open(config).expect("prompts");
        let plane = ControlPlane::new(RunState::new(members, catalog, String::new(), Instant::now()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("bound").to_string();
            let thread = format!("/proc/self/task/{}/schedstat", nix::unistd::gettid());
            sender.send((address, thread)).expect("awaited");
            plane.serve(listener, Entrance::local(), std::future::pending()).await.expect("served");
        });
    });
    receiver.recv().expect("a server")
}

fn threads_of(pid: &str) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a living process");
    threads.flatten().map(|thread| thread.path().join("schedstat").display().to_string()).collect()
}

fn processor_time(threads: &[String]) -> Duration {
    let of_thread = |thread: &String| -> u64 {
        let text = std::fs::read_to_string(thread).expect("a Linux with schedstat");
        text.split(' ').next().and_then(|number| number.parse().ok()).expect("nanoseconds")
    };
    Duration::from_nanos(threads.iter().map(of_thread).sum())
}

async fn load(
    address: String,
    threads: &[String],
    (n_workers, n_tasks): (u64, Option<u32>),
    length: Duration,
) {
    let (counts, learner) = (Arc::new(Counts::default()), Arc::new(Learner::default()));
    if let Some(n_tasks) = n_tasks {
        let (client, caller) = join(connect(&address).await, Role::Learner, "learner").await;
        tokio::spawn(report((client, caller), n_tasks, counts.clone(), learner.clone()));
    }
    let mut channel = connect(&address).await;
    for number in 0..n_workers {
        if number.is_multiple_of(WORKERS_PER_CONNECTION) {
            channel = connect(&address).await;
        }
        tokio::spawn(worker(channel.clone(), number, counts.clone(), learner.clone()));
    }
    // Connections and first grants aside.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let read = || {
        let of = |count: &AtomicU64| count.load(Relaxed) as f64;
        [of(&counts.heartbeats), of(&counts.grants), of(&counts.reports)]
    };
    let (start, before, counted) = (Instant::now(), processor_time(threads), read());
    for times in [&counts.answered_after, &counts.asked] {
        times.lock().expect("unpoisoned").clear();
    }
    tokio::time::sleep(length).await;
    let (wall, used, now) = (start.elapsed().as_secs_f64(), processor_time(threads) - before, read());
    let rate = |position: usize| (now[position] - counted[position]) / wall;
    println!(
        "{n_workers} workers: {:.3} of a core; each second {:.0} heartbeats, {:.0} grants, \
         {:.0} reports",
        used.as_secs_f64() / wall,
        rate(0),
        rate(1),
        rate(2)
    );
    for (what, times) in [("a heartbeat", &counts.answered_after), ("a question for a task", &counts.asked)] {
        let mut times = std::mem::take(&mut *times.lock().expect("unpoisoned"));
        times.sort_by(f64::total_cmp);
        let after = |share: f64| 1e3 * times[(share * (times.len() - 1) as f64) as usize];
        println!(
            "{what} is answered after {:.2} ms (median), {:.2} ms (99 of 100), {:.2} ms (longest)",
            after(0.5),
            after(0.99),
            after(1.0)
        );
    }
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
    loop {
        let standstills = vec![Standstill { work: Work::Computing.into(), seconds: 0.5 }];
        let running = running.lock().expect("unpoisoned").into_iter().collect();
        let caller = caller.clone();
        let request = HeartbeatRequest { caller, standstills, running, ..HeartbeatRequest::default() };
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
        if wait_seconds == 0.0 {
            counts.asked.lock().expect("unpoisoned").push(start.elapsed().as_secs_f64());
        }
        wait_seconds = if task.is_some() { 0.0 } else { 10.0 };
        let Some(task) = task else { continue };
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
