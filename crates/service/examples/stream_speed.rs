//! How fast outcomes are pushed and weights streamed over the loopback, beside a plain TCP copy of the same bytes, in turns:
//! `cargo run --release -p service --example stream_speed -- 100000000 7` (bytes of a stream, rounds). With
//! `LD_PRELOAD=libmimalloc.so` (or `libjemalloc.so.2`) before it the same with another allocator than the system's.
//!
//! What is timed begins where a worker has the tensors of an outcome, or the learner a version that is published, and ends where
//! all bytes lie checked in memory of their own. The copy goes by blocking threads into memory of its own, too. Both ends share
//! this machine's cores, and both are in its processor seconds.

use bytes::Bytes;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use proto::learner_client::LearnerClient;
use proto::learner_server::{Learner, LearnerServer};
use proto::push_reply::Status as PushStatus;
use proto::{
    Caller, Chunk, ElementType, MissingConditioningReply, MissingConditioningRequest, PushHeader, PushReply,
    PushRequest, TensorInfo, WeightsManifest, WeightsReply, WeightsRequest, push_request, weights_reply,
};
use protocol::WeightsName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use service::output::print_line;
use service::trust::{Authority, Credentials};
use service::weights::fetch;
use service::{
    Assembly, CHUNK_BYTES, Insecure, MESSAGE_LIMIT, PeerRole, PeerTls, Timely, Trust, chunks_of,
    taken_in_time,
};
use std::error::Error;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Runtime;
use tokio_stream::Stream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

const KIB: usize = 1024;
/// The wire allows 1 MiB; longer ones are here to see whether that costs something.
const CHUNK_LENGTHS: [usize; 5] = [256 * KIB, 512 * KIB, 1024 * KIB, 2048 * KIB, 4096 * KIB];
/// Bytes that the plain copy writes at once.
const PIECE: usize = 1024 * KIB;
const PATIENCE: Duration = Duration::from_secs(20);
const LONGEST_CALL: Duration = Duration::from_secs(600);
const NAME: WeightsName = WeightsName { version: 1, role: protocol::WeightsRole::Policy };

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let number = |position, default| -> Outcome<usize> {
        Ok(std::env::args().nth(position).map_or(Ok(default), |text| text.parse())?)
    };
    let (n_bytes, n_rounds) = (number(1, 100_000_000)?, number(2, 7)?.max(1));
    let source: Bytes = (0..n_bytes).map(|position| (position % 251) as u8).collect();
    let home = tempfile::tempdir()?;
    let trusts = Trusts::new(home.path())?;
    print_floor(&source, &trusts, n_rounds)?;

    // Threads as learner and worker have them.
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let (learner, worker) = (runtime()?, runtime()?);
    let mut cases = Vec::new();
    for is_secured in [false, true] {
        for chunk_bytes in CHUNK_LENGTHS {
            let client =
                trusts.client(is_secured, (&learner, &worker), StandIn::new(&source, chunk_bytes))?;
            for way in [Way::Push, Way::Weights] {
                cases.push(Case { way, is_secured, chunk_bytes, client: client.clone(), rounds: Vec::new() });
            }
        }
    }
    // The first round is to make memory and connections warm.
    for round in 0..=n_rounds {
        for case in &mut cases {
            let plain = measured(|| plain_copy(&source, None))?;
            let stream = measured(|| worker.block_on(case.send(&source)))?;
            if round > 0 {
                case.rounds.push((plain, stream));
            }
        }
    }
    print_line(format_args!(
        "\n{n_bytes} bytes, medians of {n_rounds} rounds, least and largest ratio of a round.\n"
    ));
    print_line(
        "| stream | secured | chunks (KiB) | plain TCP (MB/s) | stream (MB/s) | ratio | processor s/GB: plain, stream |",
    );
    print_line("|---|---|---|---|---|---|---|");
    cases.sort_by_key(|case| (case.way as u8, case.is_secured, case.chunk_bytes));
    cases.iter().for_each(|case| print_line(case.row(n_bytes)));
    Ok(())
}

/// Time that passed, and processor time of this process, in seconds.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    processor: f64,
}

fn measured(work: impl FnOnce() -> Outcome<()>) -> Outcome<Cost> {
    let (before, start) = (processor_seconds()?, Instant::now());
    work()?;
    let wall = start.elapsed().as_secs_f64();
    Ok(Cost { wall, processor: processor_seconds()? - before })
}

fn processor_seconds() -> Outcome<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What touches every byte once, each alone on one thread, but for TLS.
fn print_floor(source: &Bytes, trusts: &Trusts, n_rounds: usize) -> Outcome<()> {
    print_line("| what is done to every byte | MB/s |");
    print_line("|---|---|");
    let tls = trusts.learner.among(PeerRole::Learner)?;
    let works: [(&str, &dyn Fn() -> Outcome<()>); 5] = [
        ("copied into memory of its own", &|| {
            black_box(source.to_vec());
            Ok(())
        }),
        ("CRC-32, chunk by chunk", &|| {
            for chunk in source.chunks(CHUNK_BYTES) {
                black_box(crc32fast::hash(chunk));
            }
            Ok(())
        }),
        ("BLAKE3", &|| {
            black_box(blake3::hash(source));
            Ok(())
        }),
        ("sent by plain TCP, both ends at once", &|| plain_copy(source, None)),
        ("the same by TLS alone", &|| plain_copy(source, tls.as_ref())),
    ];
    for (what, work) in works {
        work()?;
        let times = (0..n_rounds).map(|_| Ok(measured(work)?.wall)).collect::<Outcome<Vec<f64>>>()?;
        let speed = source.len() as f64 / 1e6 / median(times.into_iter());
        print_line(format_args!("| {what} | {speed:.0} |"));
    }
    Ok(())
}

/// Copies bytes over a connection of its own into new memory; making the connection is timed with it, and takes no time to speak of.
fn plain_copy(source: &[u8], tls: Option<&PeerTls>) -> Outcome<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = TcpStream::connect(listener.local_addr()?)?;
    let (from, _) = listener.accept()?;
    to.set_nodelay(true)?;
    match tls {
        None => copy(source, to, from)?,
        Some(PeerTls { server, client, server_name }) => {
            let client = ClientConnection::new(client.clone(), server_name.clone())?;
            let server = ServerConnection::new(server.clone())?;
            copy(source, StreamOwned::new(client, to), StreamOwned::new(server, from))?;
        }
    }
    Ok(())
}

fn copy(source: &[u8], mut to: impl Write + Send, from: impl Read) -> io::Result<()> {
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            source.chunks(PIECE).try_for_each(|piece| to.write_all(piece))?;
            to.flush()
        });
        let mut place = Vec::with_capacity(source.len());
        from.take(source.len() as u64).read_to_end(&mut place)?;
        black_box(&place);
        writer.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked")))
    })
}

/// Credentials of a run of its own.
struct Trusts {
    learner: Trust,
    worker: Trust,
}

impl Trusts {
    fn new(home: &std::path::Path) -> Outcome<Self> {
        let authority = Authority::open(home, "bench")?;
        let of = |role| -> Outcome<Trust> {
            let identity = authority.issue(role, SystemTime::now())?;
            Ok(Trust::Mutual(Arc::new(Credentials::of(authority.roots()?, identity))))
        };
        Ok(Self { learner: of(PeerRole::Learner)?, worker: of(PeerRole::Worker)? })
    }

    /// Serves a stand-in for the learner, and connects to it as a worker does.
    fn client(
        &self,
        is_secured: bool,
        (learner, worker): (&Runtime, &Runtime),
        stand_in: StandIn,
    ) -> Outcome<LearnerClient<Channel>> {
        let plain = Trust::Plain(Insecure::Loopback);
        let (ours, theirs) = if is_secured { (&self.learner, &self.worker) } else { (&plain, &plain) };
        let listener = learner.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let address = format!("{}://{}", ours.scheme(), listener.local_addr()?);
        let service = LearnerServer::new(stand_in).max_decoding_message_size(MESSAGE_LIMIT);
        let router = service::server(LONGEST_CALL).add_service(service);
        learner.spawn(service::serve(router, listener, ours.clone(), std::future::pending()));
        let channel = worker.block_on(service::connect(&address, PeerRole::Learner, theirs, PATIENCE))?;
        Ok(service::learner_client(channel))
    }
}

#[derive(Clone, Copy)]
enum Way {
    /// From a worker to the learner.
    Push,
    /// From the learner to a worker.
    Weights,
}

/// One line of the table.
struct Case {
    way: Way,
    is_secured: bool,
    chunk_bytes: usize,
    client: LearnerClient<Channel>,
    /// What the plain copy cost, and the stream.
    rounds: Vec<(Cost, Cost)>,
}

impl Case {
    async fn send(&mut self, source: &[u8]) -> Outcome<()> {
        match self.way {
            Way::Push => {
                let messages = tokio_stream::iter(push_messages(source, self.chunk_bytes));
                let reply = self.client.push(service::request(messages, LONGEST_CALL)).await?;
                match reply.into_inner().status() {
                    PushStatus::Held => Ok(()),
                    other => Err(format!("the push was answered by {}", other.as_str_name()).into()),
                }
            }
            Way::Weights => {
                let copy = fetch(&mut self.client, caller(), NAME, || ()).await?;
                black_box(copy.bytes);
                Ok(())
            }
        }
    }

    fn row(&self, n_bytes: usize) -> String {
        let way = match self.way {
            Way::Push => "push",
            Way::Weights => "weights",
        };
        let secured = if self.is_secured { "TLS" } else { "no" };
        let (megabytes, gigabytes) = (n_bytes as f64 / 1e6, n_bytes as f64 / 1e9);
        let plain = |value: fn(&Cost) -> f64| median(self.rounds.iter().map(|(plain, _)| value(plain)));
        let stream = |value: fn(&Cost) -> f64| median(self.rounds.iter().map(|(_, stream)| value(stream)));
        let ratios = self.rounds.iter().map(|(plain, stream)| 100.0 * plain.wall / stream.wall);
        let (least, most) = (ratios.clone().fold(f64::MAX, f64::min), ratios.clone().fold(0.0, f64::max));
        format!(
            "| {way} | {secured} | {} | {:.0} | {:.0} | {:.0} % ({least:.0} to {most:.0}) | {:.2}, {:.2} |",
            self.chunk_bytes / KIB,
            megabytes / plain(|cost| cost.wall),
            megabytes / stream(|cost| cost.wall),
            median(ratios),
            plain(|cost| cost.processor) / gigabytes,
            stream(|cost| cost.processor) / gigabytes,
        )
    }
}

fn caller() -> Caller {
    Caller { run_id: "run".to_owned(), member_id: "worker".to_owned(), incarnation: 1 }
}

fn announced(n_bytes: usize) -> Vec<TensorInfo> {
    let (name, element_type) = ("all".to_owned(), ElementType::U8.into());
    vec![TensorInfo { name, shape: vec![n_bytes as i64], element_type }]
}

/// The messages of a push, as a worker makes them of several tensors.
fn push_messages(
    source: &[u8],
    chunk_bytes: usize,
) -> impl Iterator<Item = PushRequest> + Send + 'static + use<> {
    let (first, second) = source.split_at(source.len() / 2);
    let bytes = [first, second].concat();
    let digest = Bytes::copy_from_slice(blake3::hash(&bytes).as_bytes());
    let tensors = announced(bytes.len());
    let header = PushHeader { caller: Some(caller()), tensors, ..PushHeader::default() };
    std::iter::once(push_request::Part::Header(header))
        .chain(chunks_of(bytes.into(), chunk_bytes).map(push_request::Part::Chunk))
        .chain(std::iter::once(push_request::Part::Digest(digest)))
        .map(|part| PushRequest { part: Some(part) })
}

/// What the learner does with the bytes of streams, and nothing else.
struct StandIn {
    manifest: WeightsManifest,
    bytes: Bytes,
    chunk_bytes: usize,
}

impl StandIn {
    fn new(bytes: &Bytes, chunk_bytes: usize) -> Self {
        let digest = Bytes::copy_from_slice(blake3::hash(bytes).as_bytes());
        let role = proto::WeightsRole::from(NAME.role).into();
        let tensors = announced(bytes.len());
        let manifest = WeightsManifest { version: NAME.version, role, tensors, digest };
        Self { manifest, bytes: bytes.clone(), chunk_bytes }
    }
}

#[tonic::async_trait]
impl Learner for StandIn {
    async fn missing_conditioning(
        &self,
        _: Request<MissingConditioningRequest>,
    ) -> Result<Response<MissingConditioningReply>, Status> {
        Err(Status::unimplemented("nothing is left out here"))
    }

    async fn push(&self, request: Request<Streaming<PushRequest>>) -> Result<Response<PushReply>, Status> {
        let mut messages = Timely::new(request.into_inner());
        let mut assembly = Assembly::new(self.bytes.len());
        let damaged = |error: service::ChunkError| Status::data_loss(error.to_string());
        while let Some(message) = messages.next().await? {
            match message.part {
                Some(push_request::Part::Header(_)) => {}
                Some(push_request::Part::Chunk(chunk)) => assembly.accept(&chunk).map_err(damaged)?,
                Some(push_request::Part::Digest(digest)) => {
                    black_box(assembly.finish(&digest).map_err(damaged)?);
                    return Ok(Response::new(PushReply { status: PushStatus::Held.into() }));
                }
                None => return Err(Status::invalid_argument("a push message is empty")),
            }
        }
        Err(Status::data_loss("the push ends without a digest"))
    }

    type WeightsStream = Pin<Box<dyn Stream<Item = Result<WeightsReply, Status>> + Send>>;

    /// As [`service::weights::weights_replies`], but for the length of the chunks.
    async fn weights(&self, _: Request<WeightsRequest>) -> Result<Response<Self::WeightsStream>, Status> {
        let chunks = chunks_of(self.bytes.clone(), self.chunk_bytes).map(|chunk| {
            let data = Bytes::copy_from_slice(&chunk.data);
            weights_reply::Part::Chunk(Chunk { data, ..chunk })
        });
        let parts = std::iter::once(weights_reply::Part::Manifest(self.manifest.clone())).chain(chunks);
        let replies = parts.map(|part| WeightsReply { part: Some(part) });
        Ok(Response::new(Box::pin(taken_in_time(replies, PATIENCE))))
    }
}
