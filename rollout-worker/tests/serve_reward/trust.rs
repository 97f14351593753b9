//! Whom `serve-reward` lets ask, and how it shows who it is.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proto::enrolment_server::EnrolmentServer;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rewards::{Resources, RewardError, RunIdentity, Score, build};
use serde_json::{Value, json};
use service::trust::{Authority, Credentials, Tokens};
use service::{EnrolmentService, PeerRole, Source, Trust};

use super::{Server, image, record, refused, serve_reward};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Everywhere, and so beyond this host.
const EVERYWHERE: &str = "0.0.0.0:0";

/// A run of which there is a coordinator that certifies, and nothing else.
struct Run {
    home: tempfile::TempDir,
    authority: Arc<Authority>,
    tokens: Tokens,
    coordinator: String,
    _runtime: tokio::runtime::Runtime,
}

impl Run {
    fn start(name: &str) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let authority = Arc::new(Authority::open(home.path(), name).expect("made"));
        let tokens = Tokens::open(home.path(), &authority).expect("drawn");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let coordinator = format!("https://{}", listener.local_addr().expect("bound"));
        let enrolment = EnrolmentServer::new(EnrolmentService::new(authority.clone(), tokens.clone()));
        let source = Source::Authority(authority.clone());
        runtime.spawn(async move {
            let trust = source.trust(PeerRole::Coordinator, Duration::ZERO).await.expect("issued");
            let router = service::server(Duration::from_secs(60)).add_service(enrolment);
            service::serve(router, listener, trust, std::future::pending()).await
        });
        Self { home, authority, tokens, coordinator, _runtime: runtime }
    }

    fn token(&self, role: PeerRole) -> String {
        Tokens::path(self.home.path(), role).display().to_string()
    }

    fn joining(&self) -> Vec<String> {
        ["--coordinator", &self.coordinator, "--token-file", &self.token(PeerRole::Reward)]
            .map(str::to_owned)
            .to_vec()
    }

    /// What a process of that role shows whose certificate was made then.
    fn resources(&self, role: PeerRole, made: SystemTime) -> Resources {
        let identity = self.authority.issue(role, made).expect("issued");
        let roots = self.authority.roots().expect("an authority");
        let trust = Trust::Mutual(Arc::new(Credentials::of(roots, identity)));
        Resources { run: RunIdentity::from(&trust), ..Resources::local() }
    }
}

/// The address of a server that listens everywhere, as its own host may call it.
fn here(url: &str) -> String {
    at("127.0.0.1", url)
}

fn at(host: &str, url: &str) -> String {
    let (scheme, place) = url.split_once("://").expect("a URL");
    let (_, port) = place.rsplit_once(':').expect("a port");
    format!("{scheme}://{host}:{port}")
}

fn serve(listen: &str, arguments: &[String]) -> Server {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Server::start_at(listen, "jpeg_compressibility", &arguments)
}

/// Arguments that are refused beside a scorer that can be served.
#[track_caller]
fn told(listen: &str, arguments: &[&str]) -> String {
    refused(&[&["--reward", "shapes", "--listen", listen], arguments].concat())
}

fn scored(url: &str, more: Value, resources: &Resources) -> Result<Vec<Score>, RewardError> {
    let mut options = json!({"url": here(url)});
    options.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    build("grpc", &options, resources).expect("good options").score(&[image()], &[record("anything")])
}

#[test]
fn others_are_served_in_plain_text_only_where_that_was_said_in_so_many_words() {
    for arguments in [&[][..], &["--insecure"]] {
        let told = told(EVERYWHERE, arguments);
        assert!(told.contains("say `--insecure=i-know`") && told.contains("by `--token-file`"), "{told}");
    }
    assert!(told(EVERYWHERE, &["--insecure=yes"]).contains("`--insecure=i-know` for other hosts"));
    let server = serve(EVERYWHERE, &["--insecure=i-know".to_owned()]);
    assert!(server.url.starts_with("http://") && !server.url.contains("0.0.0.0"), "{}", server.url);
    scored(&server.url, json!({}), &Resources::local()).expect("scores");
    let here = serve("127.0.0.1:0", &["--insecure".to_owned()]);
    scored(&here.url, json!({}), &Resources::local()).expect("scores");
}

#[test]
fn by_a_token_a_server_serves_the_workers_and_operators_of_the_run() {
    let (run, other, now) = (Run::start("run-a"), Run::start("run-b"), SystemTime::now());
    let server = serve(EVERYWHERE, &run.joining());
    assert!(server.url.starts_with("https://") && !server.url.contains("0.0.0.0"), "{}", server.url);
    for role in [PeerRole::Worker, PeerRole::Admin] {
        scored(&server.url, json!({}), &run.resources(role, now))
            .unwrap_or_else(|error| panic!("{role}: {error}"));
    }
    for (resources, words) in [
        (run.resources(PeerRole::Learner, now), "role `learner` may not call Describe"),
        (run.resources(PeerRole::Worker, now - 2 * DAY), "ended at"),
        (other.resources(PeerRole::Worker, now), "is not of the authority that this process trusts"),
    ] {
        let error = scored(&server.url, json!({}), &resources).expect_err("refused");
        assert!(error.to_string().contains(words) && !error.may_pass(), "{error}");
    }
    let plain = server.url.replace("https://", "http://");
    let error = scored(&plain, json!({}), &Resources::local()).expect_err("refused");
    assert!(error.to_string().contains("the server speaks TLS") && !error.may_pass(), "{error}");
}

#[test]
fn a_token_that_does_not_do_is_told_with_the_file_to_take() {
    let (run, other) = (Run::start("run-a"), Run::start("run-b"));
    let with = |token: &str| told(EVERYWHERE, &["--coordinator", &run.coordinator, "--token-file", token]);
    let of_worker = with(&run.token(PeerRole::Worker));
    assert!(
        of_worker.contains("token for the role `worker`") && of_worker.contains("give it reward.token"),
        "{of_worker}"
    );
    let foreign = with(&other.token(PeerRole::Reward));
    assert!(foreign.contains("not of the authority that this process trusts"), "{foreign}");
    let old = run.home.path().join("old.token");
    let text = std::fs::read(run.token(PeerRole::Reward)).expect("a token file");
    service::durable::write_private_file(&old, &text).expect("written");
    run.tokens.rotate(PeerRole::Reward).expect("rotated");
    let rotated = with(&old.display().to_string());
    assert!(rotated.contains("not any more: take a new copy of reward.token"), "{rotated}");
    let without = told(EVERYWHERE, &["--coordinator", &run.coordinator]);
    assert!(without.contains("give this server `--token-file`, a copy of `reward.token`"), "{without}");
}

#[test]
fn a_coordinator_that_is_away_is_waited_for_and_the_server_started_again() {
    let run = Run::start("run-a");
    let nobody = "https://127.0.0.1:1";
    let token = run.token(PeerRole::Reward);
    let mut command = serve_reward(&["--reward", "shapes", "--listen", EVERYWHERE, "--coordinator", nobody]);
    command.args(["--token-file", &token, "--coordinator-grace", "0.2"]);
    let Output { status, stderr, .. } = command.output().expect("the binary starts");
    let told = String::from_utf8(stderr).expect("text");
    assert!(status.code() == Some(75) && told.contains("nobody answered at https://127.0.0.1:1"), "{told}");
}

/// An authority of the user's own.
struct Own {
    home: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Own {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("signed");
        std::fs::write(home.path().join("ca.pem"), certificate.pem()).expect("written");
        let issuer = Issuer::from_ca_cert_der(certificate.der(), key).expect("an authority");
        Self { home, issuer }
    }

    /// Authority, certificate of a role that holds from `begin` for a day, and its key.
    fn files(&self, role: PeerRole, begin: SystemTime) -> [PathBuf; 3] {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        let name = format!("tempflow://scores/{role}").try_into().expect("text");
        params.subject_alt_names = vec![SanType::URI(name)];
        (params.not_before, params.not_after) = (begin.into(), (begin + DAY).into());
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let path = |end: &str| self.home.path().join(format!("{role}.{end}"));
        std::fs::write(path("crt"), certificate.pem()).expect("written");
        service::durable::write_private_file(&path("key"), key.serialize_pem().as_bytes()).expect("written");
        [self.home.path().join("ca.pem"), path("crt"), path("key")]
    }
}

fn arguments(files: &[PathBuf; 3]) -> Vec<String> {
    let flags = ["--tls-ca", "--tls-certificate", "--tls-key"];
    let said = |(flag, file): (&str, &PathBuf)| [flag.to_owned(), file.display().to_string()];
    flags.into_iter().zip(files).flat_map(said).collect()
}

#[test]
fn a_server_that_outlives_runs_has_files_of_its_own_and_serves_whoever_was_given_the_like() {
    let (own, run, now) = (Own::new(), Run::start("run-a"), SystemTime::now());
    let server = serve(EVERYWHERE, &arguments(&own.files(PeerRole::Reward, now)));
    let options =
        |files: [PathBuf; 3]| json!({"tls_ca": files[0], "tls_certificate": files[1], "tls_key": files[2]});
    let worker = options(own.files(PeerRole::Worker, now));
    for resources in [run.resources(PeerRole::Worker, now), Resources::local()] {
        scored(&server.url, worker.clone(), &resources).expect("scores");
    }
    let error =
        scored(&server.url, json!({}), &run.resources(PeerRole::Worker, now)).expect_err("not its run");
    assert!(error.to_string().contains("by `tls_ca`") && !error.may_pass(), "{error}");
    let error = scored(&server.url, options(Own::new().files(PeerRole::Worker, now)), &Resources::local());
    assert!(error.expect_err("a stranger").to_string().contains("not of the authority"));
}

#[test]
fn files_that_do_not_do_are_told_before_anything_is_served() {
    let (own, now) = (Own::new(), SystemTime::now());
    let with = |files: &[PathBuf; 3]| {
        let arguments = arguments(files);
        told(EVERYWHERE, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let of_worker = with(&own.files(PeerRole::Worker, now));
    assert!(
        of_worker.contains("for the role `worker`, and this is a process of the role `reward`"),
        "{of_worker}"
    );
    let expired = with(&own.files(PeerRole::Reward, now - 2 * DAY));
    assert!(expired.contains("ended at") && expired.contains("set the clocks"), "{expired}");
    let early = with(&own.files(PeerRole::Reward, now + DAY));
    assert!(early.contains("begins to hold only at") && early.contains("set the clocks"), "{early}");
    let [ca, certificate, _] = own.files(PeerRole::Reward, now);
    let missing = with(&[ca, certificate, Path::new("/nowhere/tls.key").to_owned()]);
    assert!(missing.contains("/nowhere/tls.key cannot be read"), "{missing}");
}

/// A folder with two images and their prompts.
fn images() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let rewards::RgbImage { width, height, pixels } = image();
    let image = image::RgbImage::from_raw(width as u32, height as u32, pixels).expect("a full buffer");
    for number in 0..2 {
        image.save(folder.path().join(format!("{number:05}.png"))).expect("written");
    }
    std::fs::write(folder.path().join("prompts.txt"), "one\ntwo\n").expect("written");
    folder
}

fn score(folder: &Path, options: &[&str], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollout-worker"));
    command.args(["score", "--reward", "grpc", "--images", ".", "--prompts", "prompts.txt"]);
    command.args(options.iter().flat_map(|option| ["--option", option])).args(arguments);
    command.current_dir(folder).stdin(Stdio::null()).output().expect("the binary starts")
}

#[test]
fn an_operator_tries_the_runs_server_out_by_the_admins_token() {
    let (run, folder) = (Run::start("run-a"), images());
    let server = serve(EVERYWHERE, &run.joining());
    let url = format!("url={}", here(&server.url).replace("https://", "grpcs://"));
    let token = run.token(PeerRole::Admin);
    let operator = ["--coordinator", &run.coordinator, "--token-file", &token];
    let Output { status, stderr, .. } = score(folder.path(), &[&url], &operator);
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    let Output { status, stderr, .. } = score(folder.path(), &[&url], &[]);
    let told = String::from_utf8(stderr).expect("text");
    assert!(!status.success() && told.contains("of no run that is secured"), "{told}");
}

/// Everywhere is this host as well, and no loopback.
#[test]
fn plain_text_to_another_host_is_warned_of_once_however_many_requests_there_are() {
    let (server, folder) = (serve(EVERYWHERE, &["--insecure=i-know".to_owned()]), images());
    let url = format!("url={}", at("0.0.0.0", &server.url));
    let Output { status, stderr, .. } = score(folder.path(), &[&url, "batch_size=1"], &[]);
    let told = String::from_utf8(stderr).expect("text");
    assert!(status.success(), "{told}");
    assert_eq!(told.matches("spoken to in plain text beyond this host").count(), 1, "{told}");
    let here = format!("url={}", here(&server.url));
    let Output { stderr, .. } = score(folder.path(), &[&here], &[]);
    assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
}
