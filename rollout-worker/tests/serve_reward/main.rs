//! `serve-reward` as a real process, asked by the reward `grpc`.

mod trust;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rewards::{PromptRecord, Resources, Reward, RewardError, RgbImage, Score, build};
use serde_json::{Value, json};
use service::{Insecure, PeerRole, Trust};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// How long anything here may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still waiting for this: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A running `serve-reward`; dropping it kills it.
struct Server {
    child: Child,
    url: String,
}

fn serve_reward(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollout-worker"));
    command.arg("serve-reward").args(arguments).stdin(Stdio::null());
    command
}

impl Server {
    fn start(rewards: &str, arguments: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", rewards, arguments)
    }

    fn start_at(listen: &str, rewards: &str, arguments: &[&str]) -> Self {
        let mut command = serve_reward(&["--listen", listen]);
        command.args(rewards.split(", ").flat_map(|reward| ["--reward", reward]));
        let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().expect("the binary starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let url =
            line.trim().strip_prefix(&format!("serving {rewards} at ")).unwrap_or_else(|| panic!("{line}"));
        Self { child, url: url.to_owned() }
    }

    fn client(&self, options: Value) -> Box<dyn Reward + Send> {
        let mut all = json!({"url": self.url});
        all.as_object_mut().expect("an object").extend(options.as_object().expect("an object").clone());
        build("grpc", &all, &Resources::local()).expect("good options")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it lives");
    }

    fn exit_code(mut self) -> Option<i32> {
        let mut code = None;
        until("the server ends", || {
            code = self.child.try_wait().expect("a child").map(|status| status.code());
            code.is_some()
        });
        code.flatten()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server of Flow-Factory's kind that answers each request only when it is let, so that batches can be held in hand.
struct Gate {
    address: SocketAddr,
    /// The first prompt of every request that has come.
    arrived: mpsc::Receiver<String>,
    /// Each message lets one request be answered.
    open: mpsc::Sender<()>,
}

impl Gate {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (arriving, arrived) = mpsc::channel();
        let (open, opened) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let request = read_request(&stream);
                let _ = arriving.send(request["prompt"][0].as_str().unwrap_or_default().to_owned());
                if opened.recv().is_err() {
                    return;
                }
                let n_images = request["image"].as_array().map_or(0, Vec::len);
                let reply = json!({"rewards": vec![0.5; n_images]}).to_string();
                let _ = write!(&stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{reply}", reply.len());
            }
        });
        Self { address, arrived, open }
    }

    /// The first prompt of the next request.
    fn next(&self) -> String {
        self.arrived.recv_timeout(PATIENCE).expect("a request in time")
    }

    /// A server that hosts what is behind this gate.
    fn serve(&self, arguments: &[&str]) -> Server {
        self.serve_at("127.0.0.1:0", arguments)
    }

    fn serve_at(&self, listen: &str, arguments: &[&str]) -> Server {
        let option = format!("url=http://{}", self.address);
        Server::start_at(listen, "flow_factory", &[&["--option", &option], arguments].concat())
    }
}

fn read_request(stream: &TcpStream) -> Value {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a head");
        if line.trim().is_empty() {
            break;
        }
        let name_and_value =
            line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        length = name_and_value.map_or(length, |(_, value)| value.trim().parse().expect("a length"));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    serde_json::from_slice(&body).expect("JSON")
}

fn record(prompt: &str) -> PromptRecord {
    PromptRecord { prompt: prompt.to_owned(), metadata: Value::Null }
}

fn image() -> RgbImage {
    let pixels = (0..32 * 32 * 3).map(|value: u32| (value * value % 251) as u8).collect();
    RgbImage::new(32, 32, pixels).expect("a full buffer")
}

fn score_one(client: Box<dyn Reward + Send>, prompt: &str) -> JoinHandle<Result<Vec<Score>, RewardError>> {
    let record = record(prompt);
    std::thread::spawn(move || client.score(&[image()], &[record]))
}

#[test]
fn a_hosted_scorer_scores_as_it_does_here() {
    let server =
        Server::start("jpeg_compressibility, shapes", &["--option", "jpeg_compressibility.quality=40"]);
    let images = [image(), RgbImage::filled(300, 200, [9, 99, 199]), RgbImage::filled(1, 1, [0; 3])];
    let prompts = vec![record("anything"); 3];
    let here =
        build("jpeg_compressibility", &json!({"quality": 40}), &Resources::local()).expect("good options");
    let there = server.client(json!({"reward": "jpeg_compressibility", "batch_size": 2}));
    let expected = here.score(&images, &prompts).expect("scores");
    assert_eq!(there.score(&images, &prompts).expect("scores"), expected);
    assert_eq!(there.score(&images, &prompts).expect("scores"), expected);

    // Metadata and extras cross the wire too.
    let spec = &scenes::all_prompts()[0];
    let drawn = [scenes::Scene::sample(spec, &mut || 0.3, 32).expect("one object").render()];
    let metadata = serde_json::to_value(spec).expect("plain data");
    let records = [PromptRecord { prompt: spec.prompt.clone(), metadata }];
    let here = build("shapes", &Value::Null, &Resources::local()).expect("no options");
    let there = server.client(json!({"reward": "shapes"}));
    let expected = here.score(&drawn, &records).expect("scores");
    assert!(!expected[0].extras.is_empty());
    assert_eq!(there.score(&drawn, &records).expect("scores"), expected);
}

#[test]
fn what_a_scorer_refuses_is_told_with_the_image() {
    let server = Server::start("shapes", &[]);
    let spec = &scenes::all_prompts()[0];
    let metadata = serde_json::to_value(spec).expect("plain data");
    let records = vec![PromptRecord { prompt: spec.prompt.clone(), metadata }; 2];
    let images = [RgbImage::filled(32, 32, [0; 3]), RgbImage::filled(100, 50, [0; 3])];
    let error = server.client(json!({})).score(&images, &records).expect_err("too large");
    let told = error.to_string();
    assert!(told.contains("image 1: InvalidArgument: image 1 is 100 x 50; reward `shapes` takes"), "{told}");
    assert!(!error.may_pass());
    assert_eq!(error.image(), Some(1));
}

#[test]
fn an_unknown_reward_is_told_with_those_there_are() {
    let server = Server::start("shapes, jpeg_compressibility", &[]);
    for (name, message) in [
        ("hpsv9", "the server hosts no reward `hpsv9`"),
        ("", "the server hosts several rewards, and none is chosen"),
    ] {
        let error = server.client(json!({"reward": name})).score(&[image()], &[record("x")]).expect_err(name);
        let told = error.to_string();
        assert!(told.contains(message) && told.contains("there are: shapes, jpeg_compressibility"), "{told}");
        assert!(!error.may_pass());
    }
}

#[tokio::test]
async fn health_is_told_in_the_standard_way() {
    let server = tokio::task::spawn_blocking(|| Server::start("shapes", &[])).await.expect("started");
    let mut health = HealthClient::new(
        service::connect(&server.url, PeerRole::Reward, &Trust::Plain(Insecure::Loopback), Duration::ZERO)
            .await
            .expect("connected"),
    );
    for service in ["", "tempflow.v1.Reward"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.expect("an answer").into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
}

#[test]
fn a_batch_in_hand_is_answered_after_sigterm() {
    let gate = Gate::start();
    let server = gate.serve(&[]);
    let scores = score_one(server.client(json!({})), "first");
    assert_eq!(gate.next(), "first");
    server.signal(Signal::SIGTERM);
    // Once nobody new is let in, the signal has arrived.
    let address = server.url.trim_start_matches("http://").to_owned();
    until("nobody is let in", || TcpStream::connect(&address).is_err());
    gate.open.send(()).expect("the gate lives");
    let scores = scores.join().expect("joined").expect("scores");
    assert_eq!(scores[0].value, 0.5);
    assert_eq!(server.exit_code(), Some(0));
}

#[tokio::test]
async fn a_server_that_is_going_away_says_so_to_probes() {
    let blocking = |work: fn() -> (Gate, Server)| tokio::task::spawn_blocking(work);
    let (gate, server) = blocking(|| {
        let gate = Gate::start();
        let server = gate.serve(&[]);
        (gate, server)
    })
    .await
    .expect("started");
    let channel =
        service::connect(&server.url, PeerRole::Reward, &Trust::Plain(Insecure::Loopback), Duration::ZERO)
            .await
            .expect("connected");
    let mut watched = Vec::new();
    for service in ["", "tempflow.v1.Reward"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut statuses =
            HealthClient::new(channel.clone()).watch(request).await.expect("an answer").into_inner();
        let first = statuses.message().await.expect("a status").expect("one").status();
        assert_eq!(first, ServingStatus::Serving, "{service}");
        watched.push((service, statuses));
    }
    // Until the batch is answered the server stays.
    let scores = score_one(server.client(json!({})), "in hand");
    let gate = tokio::task::spawn_blocking(move || {
        assert_eq!(gate.next(), "in hand");
        gate
    });
    let gate = gate.await.expect("joined");
    server.signal(Signal::SIGTERM);
    for (service, mut statuses) in watched {
        let status = statuses.message().await.expect("a status").expect("one").status();
        assert_eq!(status, ServingStatus::NotServing, "{service}");
    }
    gate.open.send(()).expect("the gate lives");
    tokio::task::spawn_blocking(move || scores.join())
        .await
        .expect("joined")
        .expect("joined")
        .expect("scores");
}

#[test]
fn a_full_queue_refuses_for_the_time_being() {
    let gate = Gate::start();
    let server = gate.serve(&["--max-queue", "1"]);
    let in_hand = score_one(server.client(json!({})), "in hand");
    assert_eq!(gate.next(), "in hand");
    let others = ["second", "third"].map(|prompt| score_one(server.client(json!({})), prompt));
    // One of them has the place; the other is refused while that one waits.
    until("one is refused", || others.iter().any(JoinHandle::is_finished));
    (0..2).for_each(|_| gate.open.send(()).expect("the gate lives"));
    assert!(in_hand.join().expect("joined").is_ok());
    let outcomes = others.map(|other| other.join().expect("joined"));
    let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(refused.len(), 1, "{outcomes:?}");
    assert!(
        refused[0].to_string().contains("ResourceExhausted: too many batches are waiting"),
        "{outcomes:?}"
    );
    assert!(refused[0].may_pass());
}

#[test]
fn a_batch_whose_deadline_has_passed_is_not_scored() {
    let gate = Gate::start();
    let server = gate.serve(&[]);
    let in_hand = score_one(server.client(json!({})), "in hand");
    assert_eq!(gate.next(), "in hand");
    for prompt in ["late", "later"] {
        let late = score_one(server.client(json!({"timeout_seconds": 0.5})), prompt);
        let error = late.join().expect("joined").expect_err("too late");
        assert!(error.to_string().contains("no answer within 0.5 s"), "{error}");
        assert!(error.may_pass());
    }
    let last = score_one(server.client(json!({})), "last");
    (0..4).for_each(|_| gate.open.send(()).expect("the gate lives"));
    assert!(in_hand.join().expect("joined").is_ok());
    assert!(last.join().expect("joined").is_ok());
    // The deadline of the second may have passed here, and not yet over there.
    let arrived: Vec<_> = gate.arrived.try_iter().filter(|prompt| prompt != "later").collect();
    assert_eq!(arrived, ["last"]);
}

#[test]
fn a_killed_server_may_pass_and_is_used_again_when_it_is_back() {
    let gate = Gate::start();
    // An address of the loopback at which nobody else takes the port while the server is away.
    let server = gate.serve_at("127.0.77.1:0", &[]);
    let address = server.url.trim_start_matches("http://").to_owned();
    let client = server.client(json!({}));
    let lost = score_one(server.client(json!({})), "lost");
    assert_eq!(gate.next(), "lost");
    server.signal(Signal::SIGKILL);
    assert_eq!(server.exit_code(), None);
    let error = lost.join().expect("joined").expect_err("killed");
    assert!(error.may_pass(), "{error}");
    let error = client.score(&[image()], &[record("absent")]).expect_err("nobody is there");
    assert!(error.to_string().contains("unreachable"), "{error}");
    assert!(error.may_pass());

    let _server = Server::start_at(&address, "jpeg_compressibility", &[]);
    let scores = client.score(&[image()], &[record("again")]).expect("scores");
    assert!(scores[0].value < 0.0);
}

#[track_caller]
fn refused(arguments: &[&str]) -> String {
    let Output { status, stderr, .. } = serve_reward(arguments).output().expect("the binary starts");
    assert_eq!(status.code(), Some(2), "{arguments:?}");
    String::from_utf8(stderr).expect("text")
}

#[test]
fn bad_input_ends_with_code_2_and_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = listener.local_addr().expect("bound").to_string();
    let free = ["--listen", "127.0.0.1:0"];
    let with = |arguments: &[&'static str]| refused(&[&free, arguments].concat());
    assert!(with(&["--reward", "shape"]).contains("unknown reward `shape`; did you mean `shapes`?"));
    assert!(with(&[]).contains("--reward"));
    assert!(with(&["--reward", "shapes", "--option", "threshold"]).contains("malformed option `threshold`"));
    let told = with(&["--reward", "shapes", "--option", "treshold=1"]);
    assert!(told.contains("unknown field `treshold`"), "{told}");
    assert!(with(&["--reward", "grpc"]).contains("option `url` of reward `grpc`: it is missing"));
    assert!(with(&["--reward", "shapes", "--device", "tpu"]).contains("unknown device `tpu`"));
    assert!(with(&["--reward", "shapes", "--max-queue", "0"]).contains("--max-queue"));
    assert!(with(&["--reward", "shapes", "--reward", "shapes"]).contains("reward `shapes` is given twice"));
    assert!(refused(&["--reward", "shapes", "--listen", "nowhere"]).contains("--listen"));
    let told = refused(&["--reward", "shapes", "--listen", &taken]);
    assert!(told.contains(&format!("cannot listen at {taken}")), "{told}");
}
