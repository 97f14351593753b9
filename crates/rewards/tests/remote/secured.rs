//! Servers that are reached by TLS: of others, known by their hosts' names, and of a run, known by their role.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rewards::{Resources, RewardError, RunIdentity, Score, build};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use service::trust::{Authority, Credentials};
use service::{PeerRole, Trust};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::example_server::ExampleServer;
use crate::grpc::{Server, score};
use crate::{failure, geneval_prompts, pictures, scorer};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long a greeting may take here.
const PATIENCE: Duration = Duration::from_secs(10);

/// Speaks TLS before a server in plain text, with a certificate of an authority of its own.
struct Front {
    home: tempfile::TempDir,
    port: u16,
    _runtime: tokio::runtime::Runtime,
}

impl Front {
    fn before(address: &str) -> Self {
        Self::certified(address, &["localhost"], SystemTime::now())
    }

    /// One whose certificate has these names and holds for a day from `begin`.
    fn certified(address: &str, names: &[&str], begin: SystemTime) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let acceptor = acceptor(&home.path().join("ca.pem"), names, begin);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let address = address.to_owned();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, address) = (acceptor.clone(), address.clone());
                tokio::spawn(async move {
                    let mut client = acceptor.accept(stream).await?;
                    let mut server = TcpStream::connect(address).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Self { home, port, _runtime: runtime }
    }

    fn ca(&self) -> PathBuf {
        self.home.path().join("ca.pem")
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    fn options(&self) -> Value {
        json!({"url": self.url(), "tls_ca": self.ca()})
    }
}

fn acceptor(ca: &Path, names: &[&str], begin: SystemTime) -> TlsAcceptor {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).expect("signed");
    std::fs::write(ca, authority.pem()).expect("written");
    let issuer = Issuer::from_ca_cert_der(authority.der(), key).expect("an authority");
    let mut params = CertificateParams::default();
    let name = |name: &&str| SanType::DnsName((*name).try_into().expect("a name"));
    params.subject_alt_names = names.iter().map(name).collect();
    (params.not_before, params.not_after) = (begin.into(), (begin + DAY).into());
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &issuer).expect("signed").der().clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config = builder.expect("versions").with_no_client_auth().with_single_cert(vec![certificate], key);
    let mut config = config.expect("they go together");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// A gRPC server that gives every image 0.5.
fn scoring(trust: Trust) -> Server {
    Server::secured_by(trust, 1, |_| Ok(vec![score(0, 0.5), score(1, 0.5)]))
}

fn plain() -> Trust {
    Trust::Plain(service::Insecure::Loopback)
}

fn scored(name: &str, options: &Value, resources: &Resources) -> Result<Vec<Score>, RewardError> {
    let scorer = build(name, options, resources).unwrap_or_else(|error| panic!("{name}: {error}"));
    scorer.score(&pictures(), &geneval_prompts())
}

/// The message of a failure that waiting does not cure.
fn lasting(name: &str, options: &Value, resources: &Resources) -> String {
    let (told, may_pass) = failure(scored(name, options, resources));
    assert!(!may_pass, "{told}");
    told
}

/// A scorer of every protocol over HTTP and over gRPC, and a server in plain text for it.
struct Protocols {
    pickle: ExampleServer,
    json: ExampleServer,
    chat: ExampleServer,
    grpc: Server,
}

impl Protocols {
    fn start() -> Self {
        let [pickle, json, chat] = ["flow_grpo_server", "flow_factory_server", "openai_chat_server"]
            .map(|name| ExampleServer::start(name, &[]));
        Self { pickle, json, chat, grpc: scoring(plain()) }
    }

    fn each(&self) -> Vec<(&'static str, String)> {
        let place = |server: &ExampleServer| server.url.trim_start_matches("http://").to_owned();
        let pickle = place(&self.pickle);
        vec![
            ("flow_grpo_server", pickle.clone()),
            ("geneval", pickle.clone()),
            ("deqa", pickle),
            ("flow_factory", place(&self.json)),
            ("unifiedreward", place(&self.chat)),
            ("vlm_judge", place(&self.chat)),
            ("grpc", self.grpc.address.to_string()),
        ]
    }
}

fn with(options: Value, name: &str) -> Value {
    let mut options = options;
    if name == "vlm_judge" {
        options["model"] = "judge".into();
        options["question"] = "How bright is {prompt}?".into();
        options["pattern"] = "Score: ([0-9.]+)".into();
    }
    if ["vlm_judge", "unifiedreward"].contains(&name) {
        options["url"] = format!("{}/v1", options["url"].as_str().expect("text")).into();
    }
    options
}

#[test]
fn every_protocol_is_spoken_by_tls_to_a_server_that_is_known_by_its_hosts_name() {
    let protocols = Protocols::start();
    for (name, place) in protocols.each() {
        let front = Front::before(&place);
        let options = with(front.options(), name);
        let reward = scorer(name, &options);
        reward.greet_server(PATIENCE).unwrap_or_else(|error| panic!("{name}: {error}"));
        let scores = reward.score(&pictures(), &geneval_prompts());
        // The example server answers one judge's question, not the other's.
        match name {
            "unifiedreward" => {
                assert!(scores.is_ok() || failure(scores).0.contains("no score in the answer"))
            }
            _ => assert_eq!(scores.unwrap_or_else(|error| panic!("{name}: {error}")).len(), 2, "{name}"),
        }
    }
}

#[test]
fn every_protocol_tells_what_is_wrong_with_a_server_and_the_remedy() {
    let (protocols, now) = (Protocols::start(), SystemTime::now());
    for (name, place) in protocols.each() {
        let by = |names: &[&str], begin| Front::certified(&place, names, begin);
        let (good, other) = (by(&["localhost"], now), by(&["localhost"], now));
        let elsewhere = by(&["scores.example"], now);
        let (expired, early) = (by(&["localhost"], now - 2 * DAY), by(&["localhost"], now + DAY));
        let foreign = json!({"url": good.url(), "tls_ca": other.ca()});
        let plain = json!({"url": format!("https://{place}"), "tls_ca": good.ca()});
        let secure = json!({"url": good.url().replace("https://", "http://")});
        for (options, words) in [
            (elsewhere.options(), ["is for scores.example and not for that name", "in `url`"]),
            (expired.options(), ["ended at", "have it renewed, or set the clocks of both hosts"]),
            (early.options(), ["begins to hold only later at", "set the clocks of both hosts"]),
            (foreign, ["is of no authority that is trusted here", "by `tls_ca`"]),
            (plain, ["the server does not speak TLS", "write `http://`"]),
            (secure, ["the server speaks TLS", "write `https://`"]),
        ] {
            let options = with(options, name);
            let is_plain = options.get("tls_ca").is_none();
            let told = lasting(name, &options, &Resources::local());
            assert!(words.iter().all(|words| told.contains(words)), "{name}: {told}");
            let greeted = scorer(name, &options).greet_server(PATIENCE);
            // Somebody is there; what he speaks only a call tells.
            assert_eq!(greeted.is_ok(), is_plain, "{name} {options}");
        }
    }
}

#[test]
fn without_an_authority_of_its_own_a_server_is_judged_by_the_systems() {
    let http = ExampleServer::start("flow_grpo_server", &[]);
    let front = Front::before(http.url.trim_start_matches("http://"));
    for options in [json!({"url": front.url()}), json!({"url": front.url(), "tls_ca": "system"})] {
        let told = lasting("deqa", &options, &Resources::local());
        assert!(told.contains("is of no authority that is trusted here"), "{told}");
    }
    let grpc = scoring(plain());
    let front = Front::before(&grpc.address.to_string());
    let told = lasting("grpc", &json!({"url": front.url(), "tls_ca": "system"}), &Resources::local());
    assert!(told.contains("is of no authority that is trusted here"), "{told}");
}

#[test]
fn a_key_of_a_variable_or_a_file_is_shown_to_a_server() {
    let server = scoring(plain());
    let front = Front::before(&server.address.to_string());
    let file = front.home.path().join("key");
    service::durable::write_private_file(&file, b"sk-file\n").expect("written");
    let variable = Box::new(|name: &str| (name == "KEY").then(|| "sk-variable".to_owned()));
    let resources = Resources { variable, ..Resources::local() };
    for (option, value, key) in
        [("api_key_file", json!(file), "Bearer sk-file"), ("api_key_env", json!("KEY"), "Bearer sk-variable")]
    {
        let mut options = front.options();
        options[option] = value;
        scored("grpc", &options, &resources).expect("scores");
        let received = server.received.lock().expect("not poisoned").pop().expect("a batch");
        assert_eq!(received.authorization.as_deref(), Some(key));
    }
    let told = |options: Value| build("deqa", &options, &resources).err().expect("refused").to_string();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("set");
    let loose = told(json!({"api_key_file": file}));
    assert!(loose.contains("may be read by others") && loose.contains("`chmod 600 "), "{loose}");
    service::durable::write_private_file(&file, b"two\nlines").expect("written");
    let odd = told(json!({"api_key_file": file}));
    assert!(odd.contains("does not hold a key, which is one line of ASCII") && !odd.contains("two"), "{odd}");
}

#[test]
fn a_key_that_a_server_does_not_take_is_told_with_where_keys_are_given() {
    let server = Server::start(|_| Err(tonic::Status::unauthenticated("who are you?")));
    let options = json!({"url": format!("grpc://{}", server.address)});
    let told = lasting("grpc", &options, &Resources::local());
    assert!(told.contains("who are you?") && told.contains("by `api_key_env` or `api_key_file`"), "{told}");
}

/// A run with an authority of its own.
struct Run {
    home: tempfile::TempDir,
    authority: Authority,
}

impl Run {
    fn new(name: &str) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let authority = Authority::open(home.path(), name).expect("made");
        Self { home, authority }
    }

    fn trust(&self, role: PeerRole, made: SystemTime) -> Trust {
        let identity = self.authority.issue(role, made).expect("issued");
        Trust::Mutual(Arc::new(Credentials::of(self.authority.roots().expect("an authority"), identity)))
    }

    fn resources(&self, role: PeerRole) -> Resources {
        self.resources_of(role, SystemTime::now())
    }

    fn resources_of(&self, role: PeerRole, made: SystemTime) -> Resources {
        Resources { run: RunIdentity::from(&self.trust(role, made)), ..Resources::local() }
    }

    /// Certificate and key of a role, as a user's own tools would write them.
    fn files(&self, role: PeerRole) -> Value {
        let key = KeyPair::generate().expect("a key");
        let request = CertificateParams::default().serialize_request(&key).expect("a request");
        let answer = self.authority.answer(request.der(), role, SystemTime::now()).expect("signed");
        let path = |end: &str| self.home.path().join(format!("{role}.{end}"));
        std::fs::write(path("crt"), pem(&answer)).expect("written");
        service::durable::write_private_file(&path("key"), key.serialize_pem().as_bytes()).expect("written");
        json!({
            "tls_ca": self.home.path().join("ca.pem"), "tls_certificate": path("crt"), "tls_key": path("key"),
        })
    }
}

fn pem(der: &[u8]) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64_STANDARD.encode(der))
}

fn of_run(server: &Server) -> Value {
    json!({"url": format!("grpcs://{}", server.address)})
}

#[test]
fn a_server_of_the_run_serves_its_workers_and_operators_and_nobody_else() {
    let (run, now) = (Run::new("run-a"), SystemTime::now());
    let server = scoring(run.trust(PeerRole::Reward, now));
    for role in [PeerRole::Worker, PeerRole::Admin] {
        scored("grpc", &of_run(&server), &run.resources(role))
            .unwrap_or_else(|error| panic!("{role}: {error}"));
    }
    for role in [PeerRole::Learner, PeerRole::Coordinator, PeerRole::Reward] {
        let told = lasting("grpc", &of_run(&server), &run.resources(role));
        assert!(
            told.contains(&format!("role `{role}` may not call Describe, only `worker` or `admin` may")),
            "{told}"
        );
    }
}

#[test]
fn what_keeps_a_worker_and_a_server_of_a_run_apart_is_told_with_the_remedy() {
    let (run, other, now) = (Run::new("run-a"), Run::new("run-b"), SystemTime::now());
    let good = scoring(run.trust(PeerRole::Reward, now));
    let worker = || run.resources(PeerRole::Worker);
    let late = run.resources_of(PeerRole::Worker, now - 2 * DAY);
    let early = run.resources_of(PeerRole::Worker, now + DAY + DAY / 12);
    let foreign = other.resources(PeerRole::Worker);
    for (resources, words) in [
        (&late, ["tempflow://run-a/worker ended at", "set the clocks of both hosts"]),
        (&early, ["tempflow://run-a/worker begins to hold only at", "set the clocks of both hosts"]),
        (&foreign, ["is not of the authority that this process trusts", "by `tls_ca`"]),
    ] {
        let told = lasting("grpc", &of_run(&good), resources);
        assert!(words.iter().all(|words| told.contains(words)), "{told}");
    }
    for (trust, words) in [
        (run.trust(PeerRole::Reward, now - 2 * DAY), ["tempflow://run-a/reward ended at", "set the clocks"]),
        (run.trust(PeerRole::Reward, now + DAY + DAY / 12), ["begins to hold only at", "set the clocks"]),
        (run.trust(PeerRole::Learner, now), ["not the reward that should answer there", "check the address"]),
        (plain(), ["the server does not speak TLS", "write `http://`"]),
    ] {
        let server = scoring(trust);
        let told = lasting("grpc", &of_run(&server), &worker());
        assert!(words.iter().all(|words| told.contains(words)), "{told}");
    }
    let told = lasting("grpc", &json!({"url": format!("grpc://{}", good.address)}), &worker());
    assert!(told.contains("the server speaks TLS") && told.contains("write `https://`"), "{told}");
    let mut named = of_run(&good);
    named["tls_ca"] = json!(run.home.path().join("ca.pem"));
    let told = lasting("grpc", &named, &worker());
    assert!(told.contains("`tls_ca` is left out"), "{told}");
}

#[test]
fn a_server_that_outlives_runs_is_reached_by_a_certificate_of_its_own_domain() {
    let (servers, run) = (Run::new("scores"), Run::new("run-a"));
    let server = scoring(servers.trust(PeerRole::Reward, SystemTime::now()));
    let merged = |files: Value| {
        let mut options = of_run(&server);
        options.as_object_mut().expect("an object").extend(files.as_object().expect("an object").clone());
        options
    };
    let options = merged(servers.files(PeerRole::Worker));
    scored("grpc", &options, &run.resources(PeerRole::Worker)).expect("scores");
    scored("grpc", &options, &Resources::local()).expect("scores, of whatever run");
    let refused =
        |options: &Value| build("grpc", options, &Resources::local()).err().expect("refused").to_string();
    let told = refused(&merged(servers.files(PeerRole::Learner)));
    assert!(
        told.contains("`tls_certificate` of reward `grpc`: it names tempflow://scores/learner"),
        "{told}"
    );
    for (key, value, words) in [
        ("tls_key", None, "`tls_key` of reward `grpc`: it is missing, and `tls_certificate` is given"),
        (
            "tls_certificate",
            None,
            "`tls_certificate` of reward `grpc`: it is missing, and `tls_key` is given",
        ),
        ("tls_ca", None, "`tls_ca` of reward `grpc`: it names no file"),
        ("tls_ca", Some(json!("system")), "`tls_ca` of reward `grpc`: it names no file"),
        ("tls_key", Some(json!("/nowhere/tls.key")), "/nowhere/tls.key cannot be read"),
        ("url", Some(json!("http://127.0.0.1:1")), "`url` of reward `grpc`: it asks for plain text"),
    ] {
        let mut options = options.clone();
        match value {
            Some(value) => options[key] = value,
            None => drop(options.as_object_mut().expect("an object").remove(key)),
        }
        let told = refused(&options);
        assert!(told.contains(words), "{told}");
    }
}
