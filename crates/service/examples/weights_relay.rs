//! How long a version of the weights takes to reach many workers over the loopback, from the learner alone and by way of each
//! other: `cargo run --release -p service --example weights_relay -- 75000000`.
//!
//! All of them share this machine's cores and its loopback, so that what is sent in all costs the same either way. What the relay
//! takes off the learner is in the last column; on hosts with network cards of their own that is where the time goes.

use bytes::Bytes;
use proto::learner_server::{Learner, LearnerServer};
use proto::{
    Caller, ElementType, MissingConditioningReply, MissingConditioningRequest, PushReply, PushRequest,
    TensorInfo, WeightsManifest, WeightsReply, WeightsRequest,
};
use protocol::{RelayPlan, SourceAdvice, SourceSought, WeightsName, WeightsSource};
use service::metrics::Counts;
use service::output::print_line;
use service::weights::{
    HeldWeights, WeightsCopy, WeightsRelayService, fetch, fetch_from_worker, fetch_manifest, weights_replies,
};
use service::{Insecure, PeerRole, Trust};
use std::collections::BTreeMap;
use std::error::Error;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

const NAME: WeightsName = WeightsName { version: 1, role: protocol::WeightsRole::Policy };
const N_WORKERS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const PATIENCE: Duration = Duration::from_secs(20);
const LONGEST_CALL: Duration = Duration::from_secs(600);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn trust() -> Trust {
    Trust::Plain(Insecure::Loopback)
}

fn caller() -> Caller {
    Caller { run_id: "run".to_owned(), member_id: "worker".to_owned(), incarnation: 1 }
}

fn main() -> Outcome<()> {
    let n_bytes = std::env::args().nth(1).map_or(Ok(75_000_000), |text| text.parse::<usize>())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    print_line(format_args!(
        "{n_bytes} bytes; seconds until the last worker has them, streams of the learner"
    ));
    print_line("workers   alone   learner's   relayed   learner's");
    for n_workers in N_WORKERS {
        let (alone, n_alone) = runtime.block_on(spread(n_bytes, n_workers, false))?;
        let (relayed, n_relayed) = runtime.block_on(spread(n_bytes, n_workers, true))?;
        let (alone, relayed) = (alone.as_secs_f64(), relayed.as_secs_f64());
        print_line(format_args!("{n_workers:7} {alone:7.2} {n_alone:11} {relayed:9.2} {n_relayed:11}"));
    }
    Ok(())
}

/// What all workers of one spread share.
struct Shared {
    plan: Mutex<RelayPlan>,
    addresses: Mutex<BTreeMap<String, String>>,
    changed: Notify,
    learner: String,
    n_workers: usize,
    is_relayed: bool,
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, RelayPlan> {
        self.plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn addresses(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.addresses.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Spreads a version over workers that all ask at once: how long that takes, and how often the learner sent it.
async fn spread(n_bytes: usize, n_workers: usize, is_relayed: bool) -> Outcome<(Duration, usize)> {
    let (learner, n_sent) = serve_learner(n_bytes).await?;
    let shared = Arc::new(Shared {
        plan: Mutex::default(),
        addresses: Mutex::default(),
        changed: Notify::new(),
        learner,
        n_workers,
        is_relayed,
    });
    let start = Instant::now();
    let (mut workers, mut serving) = (JoinSet::new(), JoinSet::new());
    for number in 0..n_workers {
        workers.spawn(receive(shared.clone(), format!("worker-{number}")));
    }
    while let Some(received) = workers.join_next().await {
        let (service, listener) = received??;
        serving.spawn(service.serve(listener, trust()));
        shared.changed.notify_waiters();
    }
    Ok((start.elapsed(), n_sent.load(Ordering::Relaxed)))
}

/// One worker: finds a source, fetches, and is one itself from then on.
async fn receive(shared: Arc<Shared>, worker: String) -> Outcome<(WeightsRelayService, TcpListener)> {
    let source = loop {
        let changed = shared.changed.notified();
        if !shared.is_relayed {
            break WeightsSource::Learner;
        }
        let sought = SourceSought { worker: &worker, name: NAME, failed: &[], n_workers: shared.n_workers };
        if let SourceAdvice::Fetch(source) = shared.plan().seek(sought) {
            break source;
        }
        // Somebody may have finished in between.
        let _ = tokio::time::timeout(Duration::from_millis(20), changed).await;
    };
    let channel = service::connect(&shared.learner, PeerRole::Learner, &trust(), PATIENCE).await?;
    let mut client = service::learner_client(channel);
    let copy = match source {
        WeightsSource::Learner => fetch(&mut client, caller(), NAME, || ()).await?,
        WeightsSource::Worker(holder) => {
            let address = shared.addresses().get(&holder).cloned().unwrap_or_default();
            let manifest = fetch_manifest(&mut client, caller(), NAME).await?;
            fetch_from_worker((&address, &trust()), caller(), (NAME, manifest), || ()).await?
        }
    };
    let (held, listener) = (HeldWeights::default(), TcpListener::bind("127.0.0.1:0").await?);
    held.keep(Arc::new(copy));
    shared.addresses().insert(worker.clone(), listener.local_addr()?.to_string());
    let mut plan = shared.plan();
    plan.end(&worker);
    plan.holds(&worker, &[NAME]);
    Ok((WeightsRelayService::new("run".to_owned(), held, Counts::new([], [[]])), listener))
}

/// The learner's side of one version.
struct Source {
    copy: WeightsCopy,
    n_sent: Arc<AtomicUsize>,
}

async fn serve_learner(n_bytes: usize) -> Outcome<(String, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let n_sent = Arc::new(AtomicUsize::new(0));
    let learner = Source { copy: version(n_bytes), n_sent: n_sent.clone() };
    let router = service::server(LONGEST_CALL).add_service(LearnerServer::new(learner));
    tokio::spawn(service::serve(router, listener, trust(), std::future::pending()));
    Ok((address, n_sent))
}

fn version(n_bytes: usize) -> WeightsCopy {
    let bytes: Bytes = (0..n_bytes).map(|position| (position % 251) as u8).collect();
    let (name, element_type) = ("weights".to_owned(), ElementType::U8.into());
    let tensor = TensorInfo { name, shape: vec![n_bytes as i64], element_type };
    let digest = Bytes::copy_from_slice(blake3::hash(&bytes).as_bytes());
    let role = proto::WeightsRole::from(NAME.role).into();
    let manifest = WeightsManifest { version: NAME.version, role, tensors: vec![tensor], digest };
    WeightsCopy { name: NAME, manifest, bytes }
}

#[tonic::async_trait]
impl Learner for Source {
    async fn missing_conditioning(
        &self,
        _: Request<MissingConditioningRequest>,
    ) -> Result<Response<MissingConditioningReply>, Status> {
        Err(Status::unimplemented("nothing is pushed here"))
    }

    async fn push(&self, _: Request<Streaming<PushRequest>>) -> Result<Response<PushReply>, Status> {
        Err(Status::unimplemented("nothing is pushed here"))
    }

    type WeightsStream = Pin<Box<dyn Stream<Item = Result<WeightsReply, Status>> + Send>>;

    async fn weights(
        &self,
        request: Request<WeightsRequest>,
    ) -> Result<Response<Self::WeightsStream>, Status> {
        let bytes = match request.get_ref().only_manifest {
            true => Bytes::new(),
            false => {
                self.n_sent.fetch_add(1, Ordering::Relaxed);
                self.copy.bytes.clone()
            }
        };
        Ok(Response::new(Box::pin(weights_replies(self.copy.manifest.clone(), bytes, |_| ()))))
    }
}
