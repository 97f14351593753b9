//! Workers that send weights to each other, over real connections, some of them false.

use bytes::Bytes;
use proto::learner_server::{Learner, LearnerServer};
use proto::{
    Caller, ElementType, MissingConditioningReply, MissingConditioningRequest, PushReply, PushRequest,
    TensorInfo, WeightsManifest, WeightsReply, WeightsRequest,
};
use protocol::WeightsName;
use service::metrics::{Counts, Exposition};
use service::network::ListenAddress;
use service::trust::{Authority, Credentials};
use service::weights::{
    HeldWeights, ReceiveError, RelayPlace, WeightsCopy, WeightsRelayService, fetch, fetch_from_worker,
    fetch_manifest, weights_replies,
};
use service::{Insecure, PeerRole, ServiceError, Trust};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request, Response, Status, Streaming};

const NAME: WeightsName = WeightsName { version: 4, role: protocol::WeightsRole::Policy };
/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn plain() -> Trust {
    Trust::Plain(Insecure::Loopback)
}

fn caller(run_id: &str) -> Caller {
    Caller { run_id: run_id.to_owned(), member_id: "worker-1".to_owned(), incarnation: 1 }
}

/// Weights of two tensors, whose bytes depend on `salt`.
fn version(salt: usize) -> WeightsCopy {
    let length = 300_000;
    let bytes: Bytes = (0..2 * length).map(|position| ((position * 7 + salt) % 251) as u8).collect();
    let tensor = |name: &str| TensorInfo {
        name: name.to_owned(),
        shape: vec![3, length as i64 / 3],
        element_type: ElementType::U8.into(),
    };
    let digest = Bytes::copy_from_slice(blake3::hash(&bytes).as_bytes());
    let role = proto::WeightsRole::from(NAME.role).into();
    let tensors = vec![tensor("a"), tensor("b")];
    let manifest = WeightsManifest { version: NAME.version, role, tensors, digest };
    WeightsCopy { name: NAME, manifest, bytes }
}

type Serving = AbortOnDropHandle<Result<(), ServiceError>>;

/// A worker that serves these weights, where, and what it counts.
async fn worker(copy: WeightsCopy, trust: Trust) -> (String, Counts<0>, Serving) {
    let (held, sent) = (HeldWeights::default(), Counts::new([], [[]]));
    held.keep(Arc::new(copy));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let service = WeightsRelayService::new("run".to_owned(), held, sent.clone());
    (address, sent, AbortOnDropHandle::new(tokio::spawn(service.serve(listener, trust))))
}

async fn received(address: &str, trust: &Trust) -> Result<WeightsCopy, ReceiveError> {
    fetch_from_worker((address, trust), caller("run"), (NAME, version(0).manifest), || ()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_sends_on_is_what_the_learner_made() {
    let (first, sent, _first) = worker(version(0), plain()).await;
    let of_first = received(&first, &plain()).await.expect("sent on");
    assert_eq!(of_first, version(0));
    let (second, _, _second) = worker(of_first, plain()).await;
    assert_eq!(received(&second, &plain()).await.expect("sent on"), version(0));
    let mut exposition = Exposition::default();
    exposition.counts("tempflow_sent_total", "Bytes", &sent);
    assert!(exposition.text().contains("tempflow_sent_total 600000.0\n"), "{}", exposition.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_worker_says_of_weights_is_believed() {
    let honest = version(0);
    let other = version(1);
    let mut renamed = honest.clone();
    renamed.manifest.tensors.swap(0, 1);
    let mut newer = honest.clone();
    newer.manifest.version += 1;
    let cut = WeightsCopy { bytes: honest.bytes.slice(..400_000), ..honest.clone() };
    let longer = WeightsCopy { bytes: [&*honest.bytes, b"more"].concat().into(), ..honest.clone() };
    let swapped = WeightsCopy { bytes: other.bytes.clone(), ..honest };
    for (copy, words) in [
        (other, "not the learner's"),
        (renamed, "not the learner's"),
        (newer, "version 5 came instead"),
        (cut, "ends after 400000 of 600000"),
        (longer, "goes on after"),
        (swapped, "another digest"),
    ] {
        let (address, _, _serving) = worker(copy, plain()).await;
        let error = received(&address, &plain()).await.expect_err("false");
        assert!(matches!(&error, ReceiveError::Damaged(told) if told.contains(words)), "{words}: {error:?}");
    }
}

fn code(error: ReceiveError) -> Code {
    match error {
        ReceiveError::Call(status) => status.code(),
        other => panic!("no status: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_refuses_what_it_does_not_hold_and_who_is_of_another_run() {
    let (address, _, _serving) = worker(version(0), plain()).await;
    let trust = plain();
    let of = |run_id: &'static str, name: WeightsName| {
        let manifest = WeightsManifest { version: name.version, ..version(0).manifest };
        fetch_from_worker((&*address, &trust), caller(run_id), (name, manifest), || ())
    };
    let missing = of("run", WeightsName { version: 5, ..NAME }).await.expect_err("not held");
    assert_eq!(code(missing), Code::NotFound);
    assert_eq!(code(of("run-b", NAME).await.expect_err("fenced")), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_serves_a_few_at_a_time_and_is_free_again_when_they_are_done() {
    let many = WeightsCopy { bytes: vec![0; 200 << 20].into(), ..version(0) };
    let (address, _, _serving) = worker(many, plain()).await;
    let mut client = service::weights_relay_client(
        service::connect(&address, PeerRole::Worker, &plain(), PATIENCE).await.expect("connected"),
    );
    let role = proto::WeightsRole::Policy.into();
    let message = || WeightsRequest { caller: Some(caller("run")), version: 4, role, only_manifest: false };
    let mut open = Vec::new();
    let refused = loop {
        match client.weights(message()).await {
            Ok(stream) => open.push(stream),
            Err(status) => break status,
        }
        assert!(open.len() < 100, "whoever asks is served");
    };
    assert_eq!((refused.code(), open.len()), (Code::ResourceExhausted, 2 * protocol::FAN_OUT));
    drop(open);
    let free = async {
        while client.weights(message()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_not_there_is_given_up_soon() {
    // A port that nobody gets who takes any free one.
    let fetched = tokio::time::timeout(PATIENCE, received("127.0.0.1:1", &plain())).await.expect("soon");
    assert!(matches!(fetched, Err(ReceiveError::Connect(_))), "{fetched:?}");
    // Takes connections, and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = mute.local_addr().expect("bound").to_string();
    let fetched = tokio::time::timeout(2 * PATIENCE, received(&address, &plain())).await;
    assert!(fetched.is_ok_and(|fetched| fetched.is_err()));
}

#[tokio::test(flavor = "multi_thread")]
async fn between_hosts_workers_show_each_other_certificates_of_workers() {
    let home = tempfile::tempdir().expect("a folder");
    let authority = Authority::open(home.path(), "run").expect("made");
    let trust_of = |role| {
        let identity = authority.issue(role, SystemTime::now()).expect("issued");
        Trust::Mutual(Arc::new(Credentials::of(authority.roots().expect("an authority"), identity)))
    };
    let (address, _, _serving) = worker(version(0), trust_of(PeerRole::Worker)).await;
    assert_eq!(received(&address, &trust_of(PeerRole::Worker)).await.expect("let in"), version(0));
    for role in [PeerRole::Learner, PeerRole::Admin, PeerRole::Coordinator] {
        let refused = received(&address, &trust_of(role)).await.expect_err("not its call");
        assert_eq!(code(refused), Code::PermissionDenied, "{role}");
    }
    let in_plain_text = received(&address, &plain()).await;
    assert!(
        matches!(in_plain_text, Err(ReceiveError::Connect(_) | ReceiveError::Call(_))),
        "{in_plain_text:?}"
    );
    // Who serves has to be a worker, too.
    let (address, _, _serving) = worker(version(0), trust_of(PeerRole::Learner)).await;
    let error = received(&address, &trust_of(PeerRole::Worker)).await.expect_err("an impostor");
    let causes = protocol::with_causes(&error);
    assert!(causes.contains("not the worker that should answer"), "{causes}");
}

/// A learner that has one version.
struct Source(WeightsCopy);

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
        let bytes = if request.get_ref().only_manifest { Bytes::new() } else { self.0.bytes.clone() };
        Ok(Response::new(Box::pin(weights_replies(self.0.manifest.clone(), bytes, |_| ()))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_learner_says_what_weights_consist_of_without_sending_them() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let router = service::server(PATIENCE).add_service(LearnerServer::new(Source(version(0))));
    let serving = service::serve(router, listener, plain(), std::future::pending());
    let _serving = AbortOnDropHandle::new(tokio::spawn(serving));
    let channel = service::connect(&address, PeerRole::Learner, &plain(), PATIENCE).await.expect("connected");
    let mut client = service::learner_client(channel);
    let manifest = fetch_manifest(&mut client, caller("run"), NAME).await.expect("told");
    assert_eq!(manifest, version(0).manifest);
    assert_eq!(fetch(&mut client, caller("run"), NAME, || ()).await.expect("sent"), version(0));
}

#[tokio::test]
async fn a_worker_listens_where_it_speaks_to_the_coordinator_unless_it_is_told_otherwise() {
    let listen = async |listen: Option<&str>, advertise: &str| {
        let place = RelayPlace {
            listen: listen.map(|text| text.parse::<ListenAddress>().expect("well-formed")),
            advertise: advertise.to_owned(),
            ports: "7100".parse().expect("a port"),
        };
        let opened = place.listen("http://127.0.0.1:7100", &plain()).await;
        opened.map(|(listener, address)| (listener.local_addr().expect("bound").to_string(), address))
    };
    let (bound, address) = listen(None, "").await.expect("any port");
    assert!(address == bound && bound.starts_with("127.0.0.1:") && !bound.ends_with(":7100"), "{address}");
    let (bound, address) = listen(Some("127.0.0.1:0"), "localhost").await.expect("as told");
    assert_eq!(address, bound.replace("127.0.0.1", "localhost"));
    let error = listen(Some("192.0.2.1:0"), "").await.expect_err("not here");
    assert!(error.to_string().contains("`192.0.2.1` is no address"), "{error}");
    let error = listen(Some("0.0.0.0:0"), "node-1").await.expect_err("plain text for others");
    assert!(error.to_string().contains("--insecure=i-know"), "{error}");
}
