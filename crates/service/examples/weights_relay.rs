//! How long a version of the weights takes to reach many workers, from the learner alone and by way of each other:
//! `cargo run --release -p service --example weights_relay -- 7500000 10` (bytes of a version, MB/s of each source's link).
//!
//! Without the second number everybody sends as fast as this machine can. All of them share its cores and its loopback then, so that
//! what is sent in all costs the same either way, and only the bytes that the learner sends show what the relay takes off it. With
//! it, whatever a source sends goes through a link of that rate of its own, as through the network card of a host of its own: then
//! the time is that of the topology, as long as this machine has the cores for all links at once. A version a tenth as large over links
//! a tenth as fast takes as long, and a tenth of the cores.

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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
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
    let n_bytes = std::env::args().nth(1).map_or(Ok(7_500_000), |text| text.parse::<usize>())?;
    let rate = std::env::args().nth(2).map(|text| text.parse::<f64>()).transpose()?;
    if rate.is_some_and(|rate| rate.is_nan() || rate <= 0.0) {
        return Err("the rate of a link is a number of MB/s above 0; leave it out for none".into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let links = match rate {
        Some(rate) => format!("each source's link limited to {rate} MB/s, on one machine"),
        None => "all on one machine and its loopback, no link limited".to_owned(),
    };
    print_line(format_args!(
        "{:.1} MB a version, {links}; until the last worker has it:\n",
        n_bytes as f64 / 1e6
    ));
    print_line(
        "| workers | learner alone (s) | it sent (MB) | relayed (s) | the learner sent (MB) | times as fast |",
    );
    print_line("|---|---|---|---|---|---|");
    for n_workers in N_WORKERS {
        let spread = |is_relayed| runtime.block_on(spread((n_bytes, rate), n_workers, is_relayed));
        let ((alone, sent_alone), (relayed, sent_relayed)) = (spread(false)?, spread(true)?);
        let (alone, relayed) = (alone.as_secs_f64(), relayed.as_secs_f64());
        let [sent_alone, sent_relayed] = [sent_alone, sent_relayed].map(|sent| sent as f64 / 1e6);
        print_line(format_args!(
            "| {n_workers} | {alone:.2} | {sent_alone:.0} | {relayed:.2} | {sent_relayed:.0} | {:.1} |",
            alone / relayed
        ));
    }
    Ok(())
}

/// Bytes of a version, and MB/s of links.
type Sizes = (usize, Option<f64>);

/// What all workers of one spread share.
struct Shared {
    plan: Mutex<RelayPlan>,
    addresses: Mutex<BTreeMap<String, String>>,
    changed: Notify,
    learner: String,
    n_workers: usize,
    is_relayed: bool,
    rate: Option<f64>,
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, RelayPlan> {
        self.plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn addresses(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.addresses.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Spreads a version over workers that all ask at once: how long that takes, and how many bytes the learner sent.
async fn spread((n_bytes, rate): Sizes, n_workers: usize, is_relayed: bool) -> Outcome<(Duration, u64)> {
    let (learner, n_sent) = serve_learner(n_bytes).await?;
    let learner = behind_link(learner, rate).await?;
    let shared = Arc::new(Shared {
        plan: Mutex::default(),
        addresses: Mutex::default(),
        changed: Notify::new(),
        learner,
        n_workers,
        is_relayed,
        rate,
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
    let address = behind_link(listener.local_addr()?.to_string(), shared.rate).await?;
    shared.addresses().insert(worker.clone(), address);
    let mut plan = shared.plan();
    plan.end(&worker);
    plan.holds(&worker, &[NAME]);
    Ok((WeightsRelayService::new("run".to_owned(), held, Counts::new([], [[]])), listener))
}

/// The learner's side of one version.
struct Source {
    copy: WeightsCopy,
    n_sent: Arc<AtomicU64>,
}

async fn serve_learner(n_bytes: usize) -> Outcome<(String, Arc<AtomicU64>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let n_sent = Arc::new(AtomicU64::new(0));
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
        let bytes = if request.get_ref().only_manifest { Bytes::new() } else { self.copy.bytes.clone() };
        let n_sent = self.n_sent.clone();
        let count = move |n_bytes: usize| {
            n_sent.fetch_add(n_bytes as u64, Ordering::Relaxed);
        };
        Ok(Response::new(Box::pin(weights_replies(self.copy.manifest.clone(), bytes, count))))
    }
}

/// The link of one source: all that it sends, to whomever, takes its turn here.
struct Link {
    /// Bytes a second.
    rate: f64,
    /// When what was let through so far has passed.
    free_at: Mutex<Instant>,
}

impl Link {
    /// Timers are late; what a link stood idle for that long it makes up for.
    const LATENESS: Duration = Duration::from_millis(5);

    /// When the next bytes have passed.
    fn pass(&self, n_bytes: usize) -> Instant {
        let earliest = Instant::now().checked_sub(Self::LATENESS);
        let mut free_at = self.free_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let start = earliest.map_or(*free_at, |earliest| earliest.max(*free_at));
        *free_at = start + Duration::from_secs_f64(n_bytes as f64 / self.rate);
        *free_at
    }
}

/// Where a source is reached by way of a link of so many MB/s; without one, where it is.
async fn behind_link(source: String, rate: Option<f64>) -> Outcome<String> {
    let Some(rate) = rate else { return Ok(source) };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let link = Arc::new(Link { rate: rate * 1e6, free_at: Mutex::new(Instant::now()) });
    tokio::spawn(async move {
        while let Ok((asker, _)) = listener.accept().await {
            tokio::spawn(connect_through(asker, source.clone(), link.clone()));
        }
    });
    Ok(address)
}

/// Connects an asker with a source; whose connection breaks, the other's does, too, and who fetches says so.
async fn connect_through(asker: TcpStream, source: String, link: Arc<Link>) -> std::io::Result<()> {
    let source = TcpStream::connect(source).await?;
    source.set_nodelay(true)?;
    asker.set_nodelay(true)?;
    let ((mut from_source, mut to_source), (mut from_asker, mut to_asker)) =
        (source.into_split(), asker.into_split());
    let asking = async move { tokio::io::copy(&mut from_asker, &mut to_source).await.map(drop) };
    let sending = async move {
        let mut piece = vec![0; 64 * 1024];
        loop {
            let n_bytes = from_source.read(&mut piece).await?;
            if n_bytes == 0 {
                return Ok(());
            }
            tokio::time::sleep_until(link.pass(n_bytes).into()).await;
            to_asker.write_all(&piece[..n_bytes]).await?;
        }
    };
    tokio::select! {
        ended = asking => ended,
        ended = sending => ended,
    }
}
