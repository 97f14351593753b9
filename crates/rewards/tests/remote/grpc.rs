//! `proto/reward.proto` against servers in this process.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::reward_server::{Reward as RewardService, RewardServer};
use proto::score_reply::Outcome;
use proto::score_request::Part;
use proto::{DescribeReply, DescribeRequest, ImageError, ImageScore, ScoreReply, ScoreRequest};
use rewards::RgbImage;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::example_server::ExampleServer;
use crate::{failure, geneval_prompts, pictures, prompts, scorer, values};

pub type Replies = Vec<Result<ScoreReply, Status>>;

/// What a server does with a batch.
type Behaviour = dyn Fn(&Received) -> Result<Replies, Status> + Send + Sync;

/// A batch as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Received {
    parts: Vec<Part>,
    grpc_timeout: Option<String>,
    /// The header `authorization`.
    pub authorization: Option<String>,
}

struct Service {
    version: u32,
    behaviour: Box<Behaviour>,
    received: Arc<Mutex<Vec<Received>>>,
}

#[tonic::async_trait]
impl RewardService for Service {
    type ScoreStream = tokio_stream::Iter<std::vec::IntoIter<Result<ScoreReply, Status>>>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeReply>, Status> {
        Ok(Response::new(DescribeReply { protocol_version: self.version, rewards: vec!["fake".to_owned()] }))
    }

    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let timeout = request.metadata().get("grpc-timeout");
        let grpc_timeout = timeout.and_then(|timeout| timeout.to_str().ok()).map(str::to_owned);
        let authorization = request.metadata().get("authorization");
        let authorization = authorization.and_then(|key| key.to_str().ok()).map(str::to_owned);
        let mut received = Received { parts: Vec::new(), grpc_timeout, authorization };
        let mut requests = request.into_inner();
        while let Some(request) = requests.message().await? {
            received.parts.extend(request.part);
        }
        self.received.lock().expect("not poisoned").push(received.clone());
        let replies = (self.behaviour)(&received)?;
        Ok(Response::new(tokio_stream::iter(replies)))
    }
}

/// A server in this process; dropping it ends it.
pub struct Server {
    pub address: SocketAddr,
    pub received: Arc<Mutex<Vec<Received>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub fn start(behaviour: impl Fn(&Received) -> Result<Replies, Status> + Send + Sync + 'static) -> Self {
        Self::of_version(1, behaviour)
    }

    fn of_version(
        version: u32,
        behaviour: impl Fn(&Received) -> Result<Replies, Status> + Send + Sync + 'static,
    ) -> Self {
        Self::secured_by(service::Trust::Plain(service::Insecure::Loopback), version, behaviour)
    }

    pub fn secured_by(
        trust: service::Trust,
        version: u32,
        behaviour: impl Fn(&Received) -> Result<Replies, Status> + Send + Sync + 'static,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let received = Arc::default();
        let service = Service { version, behaviour: Box::new(behaviour), received: Arc::clone(&received) };
        let server = service::server(Duration::from_secs(600)).add_service(RewardServer::new(service));
        runtime.spawn(service::serve(server, listener, trust, std::future::pending()));
        Self { address, received, _runtime: runtime }
    }

    fn options(&self) -> Value {
        json!({"url": format!("http://{}", self.address)})
    }

    fn failure(&self) -> (String, bool) {
        failure(scorer("grpc", &self.options()).score(&pictures(), &prompts()))
    }
}

pub fn score(id: u64, value: f32) -> Result<ScoreReply, Status> {
    let extras = [("half".to_owned(), value / 2.0)].into();
    Ok(ScoreReply { id, outcome: Some(Outcome::Score(ImageScore { value, extras })) })
}

fn error(id: u64, code: Code, message: &str) -> Result<ScoreReply, Status> {
    let error = ImageError { code: code as u32, message: message.to_owned() };
    Ok(ScoreReply { id, outcome: Some(Outcome::Error(error)) })
}

#[test]
fn a_batch_arrives_whole_and_scores_come_back_in_its_order() {
    let server = Server::start(|_| Ok(vec![score(1, 8.0), score(0, 4.0)]));
    let mut options = server.options();
    options["reward"] = "fake".into();
    let large = RgbImage::filled(1024, 700, [1, 2, 3]);
    let images = [large.clone(), pictures().remove(1)];
    let scores = scorer("grpc", &options).score(&images, &geneval_prompts()).expect("scores");
    assert_eq!(scores.iter().map(|score| score.value).collect::<Vec<_>>(), [4.0, 8.0]);
    assert_eq!(scores[1].extras["half"], 4.0);

    let received = server.received.lock().expect("not poisoned").remove(0);
    let mut parts = received.parts.into_iter();
    let header = proto::Batch { reward: "fake".to_owned(), n_images: 2 };
    assert_eq!(parts.next(), Some(Part::Batch(header)));
    let mut headers = Vec::new();
    let mut pixels: Vec<Vec<u8>> = Vec::new();
    for part in parts {
        match part {
            Part::Image(header) => {
                headers.push(header);
                pixels.push(Vec::new());
            }
            Part::Pixels(piece) => {
                assert!(piece.len() <= 1 << 20, "a piece of {} bytes", piece.len());
                pixels.last_mut().expect("announced").extend(piece);
            }
            Part::Batch(_) => panic!("a second batch"),
        }
    }
    assert!(pixels == images.map(|image| image.pixels), "other pixels");
    let record = &geneval_prompts()[0];
    assert_eq!((headers[0].id, headers[0].width, headers[0].height), (0, 1024, 700));
    assert_eq!(headers[0].prompt, record.prompt);
    assert_eq!(serde_json::from_str::<Value>(&headers[0].metadata).expect("JSON"), record.metadata);
    // 120 s, less what went by since.
    let timeout = received.grpc_timeout.expect("a deadline");
    let (number, unit) = timeout.split_at(timeout.len() - 1);
    let per_second = match unit {
        "m" => 1e3,
        "u" => 1e6,
        _ => panic!("{timeout}"),
    };
    let seconds = number.parse::<f64>().expect("a number") / per_second;
    assert!((60.0..=120.0).contains(&seconds), "{timeout}");
}

#[test]
fn batches_are_calls_of_their_own() {
    let server = Server::start(|received| {
        let n_images = received.parts.iter().filter(|part| matches!(part, Part::Image(_))).count() as u64;
        Ok((0..n_images).map(|id| score(id, id as f32)).collect())
    });
    let mut options = server.options();
    options["batch_size"] = 2.into();
    let images = vec![pictures().remove(1); 5];
    let prompts = vec![prompts().remove(0); 5];
    assert_eq!(values(scorer("grpc", &options).score(&images, &prompts)), [0.0, 1.0, 0.0, 1.0, 0.0]);
    assert_eq!(server.received.lock().expect("not poisoned").len(), 3);
}

#[test]
fn an_error_of_one_image_fails_all_and_names_its_place_among_all() {
    let server = Server::start(|received| match received.parts.get(1) {
        Some(Part::Image(header)) if header.width == 17 => {
            Ok(vec![error(0, Code::InvalidArgument, "too small")])
        }
        _ => Ok(vec![score(0, 1.0)]),
    });
    let mut options = server.options();
    options["batch_size"] = 1.into();
    let (told, may_pass) = failure(scorer("grpc", &options).score(&pictures(), &prompts()));
    assert!(
        told.ends_with(&format!("at http://{}: image 1: InvalidArgument: too small", server.address)),
        "{told}"
    );
    assert!(!may_pass);
    let server = Server::start(|_| Ok(vec![score(1, 1.0), error(0, Code::Unavailable, "the judge sleeps")]));
    let (told, may_pass) = server.failure();
    assert!(told.contains("image 0: Unavailable: the judge sleeps"), "{told}");
    assert!(may_pass);
}

#[test]
fn statuses_are_told_and_may_pass_or_not() {
    for (code, passes) in [
        (Code::Unavailable, true),
        (Code::ResourceExhausted, true),
        (Code::DeadlineExceeded, true),
        (Code::NotFound, false),
        (Code::InvalidArgument, false),
        (Code::Internal, false),
    ] {
        let server = Server::start(move |_| Err(Status::new(code, "for a reason")));
        let (told, may_pass) = server.failure();
        assert!(told.ends_with(&format!("{code:?}: for a reason")), "{told}");
        assert_eq!(may_pass, passes, "{told}");
        let server = Server::start(move |_| Ok(vec![score(0, 1.0), Err(Status::new(code, "half way"))]));
        let (told, may_pass) = server.failure();
        assert!(told.ends_with(&format!("{code:?}: half way")), "{told}");
        assert_eq!(may_pass, passes, "{told}");
    }
}

#[test]
fn scores_that_are_missing_doubled_or_no_numbers_are_refused() {
    for (replies, message) in [
        (vec![score(0, 1.0)], "sent 2 images, got 1 of `score`"),
        (vec![], "sent 2 images, got 0 of `score`"),
        (vec![score(0, 1.0), score(0, 1.0)], "image 0 was not sent, or is answered twice"),
        (vec![score(0, 1.0), score(2, 1.0)], "image 2 was not sent, or is answered twice"),
        (vec![score(0, 1.0), Ok(ScoreReply { id: 1, outcome: None })], "image 1 has neither score nor error"),
        (vec![score(0, 1.0), score(1, f32::NAN)], "reward `grpc` of image 1 is NaN"),
        (vec![score(0, f32::INFINITY), score(1, 1.0)], "reward `grpc` of image 0 is inf"),
        // Another batch's.
        (vec![score(1 << 40, 1.0), score(1 + (1 << 40), 1.0)], "image 1099511627776 was not sent"),
    ] {
        let server = Server::start(move |_| Ok(replies.clone()));
        let (told, may_pass) = server.failure();
        assert!(told.contains(message), "{told}");
        assert!(!may_pass);
    }
}

#[test]
fn a_reply_beyond_the_limit_is_refused() {
    let server = Server::start(|_| Ok(vec![error(0, Code::Internal, &"x".repeat(100_000))]));
    let mut options = server.options();
    options["max_reply_bytes"] = 10_000.into();
    let (told, may_pass) = failure(scorer("grpc", &options).score(&pictures(), &prompts()));
    assert!(told.contains("the reply has more than 10000 bytes (`max_reply_bytes`)"), "{told}");
    assert!(!may_pass);
    // Small messages that add up are a large reply all the same.
    let server = Server::start(|received| {
        let n_images = received.parts.iter().filter(|part| matches!(part, Part::Image(_))).count() as u64;
        Ok((0..n_images).map(|id| score(id, 1.0)).collect())
    });
    options = server.options();
    options["max_reply_bytes"] = 1_000.into();
    let (images, prompts) = (vec![pictures().remove(1); 64], vec![prompts().remove(0); 64]);
    let (told, _) = failure(scorer("grpc", &options).score(&images, &prompts));
    assert!(told.contains("the reply has more than 1000 bytes"), "{told}");
}

#[test]
fn a_server_of_another_version_is_refused() {
    let server = Server::of_version(2, |_| Ok(Vec::new()));
    let (told, may_pass) = server.failure();
    assert!(told.contains("the server speaks version 2 of this protocol, not 1"), "{told}");
    assert!(!may_pass);
}

/// Its scores would be taken for those of the scorer that was meant.
#[test]
fn a_server_of_other_scorers_is_refused_before_anything_is_sent() {
    let server = Server::start(|_| Ok(vec![score(0, 1.0), score(1, 1.0)]));
    let mut options = server.options();
    options["reward"] = "other".into();
    let (told, may_pass) = failure(scorer("grpc", &options).score(&pictures(), &prompts()));
    assert!(told.contains("the server hosts no reward `other`; there are: fake; name one"), "{told}");
    assert!(!may_pass);
    assert!(server.received.lock().expect("not poisoned").is_empty());
}

#[test]
fn a_stalled_server_is_not_waited_for_beyond_the_deadline() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let server = Server::start(move |_| {
        let _ = held.lock().expect("not poisoned").recv_timeout(Duration::from_secs(60));
        Ok(Vec::new())
    });
    let mut options = server.options();
    options["timeout_seconds"] = 0.3.into();
    let start = Instant::now();
    let (told, may_pass) = failure(scorer("grpc", &options).score(&pictures(), &prompts()));
    assert!(start.elapsed() < Duration::from_secs(30));
    drop(release);
    assert!(told.ends_with("no answer within 0.3 s (`timeout_seconds`)"), "{told}");
    assert!(may_pass);
}

#[test]
fn nobody_there_may_pass() {
    // A port that nobody gets who takes any free one.
    let url = "http://127.0.0.1:1";
    let (told, may_pass) = failure(scorer("grpc", &json!({"url": url})).score(&pictures(), &prompts()));
    assert!(told.contains(&format!("at {url}: unreachable: ")) && told.contains("refused"), "{told}");
    assert!(may_pass);
}

#[test]
fn a_connection_that_breaks_may_pass() {
    for hear_first in [false, true] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            if hear_first {
                let _ = stream.read(&mut [0; 1024]);
            }
        });
        let (told, may_pass) = failure(scorer("grpc", &json!({"url": url})).score(&pictures(), &prompts()));
        assert!(told.contains("unreachable: "), "{told}");
        assert!(may_pass, "{told}");
        server.join().expect("ended");
    }
}

/// Passes one connection on to `server` and breaks it after so many bytes of replies; gives the number passed.
fn break_after(server: SocketAddr, n_bytes: usize) -> (String, std::thread::JoinHandle<usize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let proxy = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let mut server = TcpStream::connect(server).expect("it listens");
        let (mut requests, mut to_server) =
            (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
        let upwards = std::thread::spawn(move || {
            let _ = std::io::copy(&mut requests, &mut to_server);
            let _ = to_server.shutdown(Shutdown::Both);
        });
        let mut replies = Vec::new();
        let mut byte = [0];
        while replies.len() < n_bytes
            && server.read_exact(&mut byte).is_ok()
            && client.write_all(&byte).is_ok()
        {
            replies.extend(byte);
        }
        let _ = client.shutdown(Shutdown::Both);
        upwards.join().expect("ended");
        replies.len()
    });
    (url, proxy)
}

#[test]
fn a_connection_that_breaks_anywhere_may_pass() {
    let server = Server::start(|_| Ok((0..4).map(|id| score(id, 0.5)).collect()));
    let (images, prompts) = (vec![RgbImage::filled(4, 4, [0; 3]); 4], vec![prompts().remove(0); 4]);
    let score_through = |n_bytes| {
        let (url, proxy) = break_after(server.address, n_bytes);
        let outcome = scorer("grpc", &json!({"url": url})).score(&images, &prompts);
        (outcome, proxy.join().expect("ended"))
    };
    let (whole, n_bytes) = score_through(usize::MAX);
    assert_eq!(values(whole), [0.5; 4]);
    assert!(n_bytes > 200, "{n_bytes}");
    let mut n_broken = 0;
    for cut in (0..n_bytes).step_by(5) {
        let (outcome, _) = score_through(cut);
        // The last bytes belong to no reply.
        if outcome.is_err() {
            n_broken += 1;
            let (told, may_pass) = failure(outcome);
            assert!(may_pass, "after {cut} of {n_bytes} bytes: {told}");
        }
    }
    assert!(n_broken > 20, "{n_broken}");
}

/// The first failure that will not pass. A server of another protocol may hang up while it is still written to; then
/// nothing tells it from one that went away, until it is asked again.
fn lasting_failure(url: &str) -> (String, bool) {
    let ask = || failure(scorer("grpc", &json!({"url": url})).score(&pictures(), &prompts()));
    let mut failures = (0..20).map(|_| ask());
    failures.find(|(_, may_pass)| !may_pass).expect("asked often enough, it shows what it is")
}

#[test]
fn a_server_of_another_protocol_is_told_as_such() {
    let http = ExampleServer::start("flow_grpo_server", &[]);
    let (told, may_pass) = lasting_failure(&http.url);
    assert!(told.contains("this is not gRPC"), "{told}");
    assert!(!may_pass, "{told}");

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    // It outlives its first client, which may try once more.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client");
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n");
            // Until the client hangs up.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let (told, may_pass) = lasting_failure(&url);
    assert!(told.contains("this is not gRPC"), "{told}");
    assert!(!may_pass, "{told}");

    let grpc = Server::start(|_| Ok(Vec::new()));
    let (told, may_pass) = failure(scorer("deqa", &grpc.options()).score(&pictures(), &prompts()));
    // The server may reset the connection before what it sent is read; then nothing tells it from one that went away.
    assert!(told.contains("this is not HTTP") || told.contains("Connection reset"), "{told}");
    assert_eq!(may_pass, told.contains("Connection reset"), "{told}");
}
