//! Servers that are of no run and known by the names of their hosts.

use crate::lab::{DAY, PATIENCE, Run};
use crate::told;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use service::trust::{Authorities, NamedServers, TrustError};
use service::{PeerRole, Trust, greet, speaks_tls};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// An authority of the web's kind.
struct Web {
    home: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Web {
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

    fn file(&self) -> PathBuf {
        self.home.path().join("ca.pem")
    }

    fn trusting(&self) -> NamedServers {
        let certificates = Authorities::File(self.file()).certificates().expect("its own");
        NamedServers::certified_by(certificates, &[]).expect("an authority")
    }

    /// A server that shakes hands and says no more, with a certificate of those names that holds from `begin` for a day.
    async fn serve(&self, names: &[SanType], begin: SystemTime) -> u16 {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        (params.not_before, params.not_after) = (begin.into(), (begin + DAY).into());
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").der().clone();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = builder.expect("versions").with_no_client_auth();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let acceptor =
            TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate], key).expect("fit")));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(acceptor.accept(stream));
            }
        });
        port
    }
}

fn localhost() -> Vec<SanType> {
    vec![SanType::DnsName("localhost".try_into().expect("a name"))]
}

async fn greeted(host: &'static str, port: u16, servers: &NamedServers) -> Result<(), String> {
    let servers = servers.clone();
    let greeting = tokio::task::spawn_blocking(move || greet((host, port), Some(&servers), PATIENCE));
    greeting.await.expect("no panic").map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_known_by_the_name_of_its_host_and_whatever_is_wrong_is_told_with_the_remedy() {
    let (web, other, now) = (Web::new(), Web::new(), SystemTime::now());
    let port = web.serve(&localhost(), now).await;
    greeted("localhost", port, &web.trusting()).await.expect("all is well");
    let number = web.serve(&[SanType::IpAddress([127, 0, 0, 1].into())], now).await;
    greeted("127.0.0.1", number, &web.trusting()).await.expect("numbers are names, too");

    let expired = web.serve(&localhost(), now - 2 * DAY).await;
    let early = web.serve(&localhost(), now + DAY).await;
    let nameless = web.serve(&[], now).await;
    for (host, port, servers, words) in [
        ("127.0.0.1", port, &web, &["`127.0.0.1` is for localhost and not for that name", "in `url`"][..]),
        ("localhost", nameless, &web, &["names no host", "`tls_ca` is left out"]),
        ("localhost", port, &other, &["is of no authority that is trusted here", "by `tls_ca`"]),
        ("localhost", expired, &web, &["ended at", "have it renewed, or set the clocks of both hosts"]),
        ("localhost", early, &web, &["begins to hold only later at", "set the clocks of both hosts"]),
    ] {
        let told = greeted(host, port, &servers.trusting()).await.expect_err("refused");
        assert!(words.iter().all(|words| told.contains(words)), "{told}");
        let (address, trusting) = (format!("https://{host}:{port}"), servers.trusting());
        let called = service::connect_named(&address, &trusting, Duration::ZERO).await.expect_err("refused");
        assert!(words.iter().all(|words| crate::told(&called).contains(words)), "{}", crate::told(&called));
        assert!(!called.is_outage(), "waiting does not help");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_a_run_is_none_that_is_known_by_a_name() {
    let run = Run::new("run-a");
    let server = run.serve_as(run.trust_of(PeerRole::Reward, SystemTime::now())).await;
    let authorities = Authorities::File(run.home.path().join("ca.pem")).certificates().expect("the run's");
    let servers = NamedServers::certified_by(authorities, &["h2"]).expect("an authority");
    let error = service::connect_named(&server.address, &servers, Duration::ZERO).await.expect_err("refused");
    let told = told(&error);
    assert!(told.contains("`tls_ca` is left out"), "{told}");
    let worker = run.trust_of(PeerRole::Worker, SystemTime::now());
    service::connect(&server.address, PeerRole::Reward, &worker, Duration::ZERO).await.expect("by its role");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_plain_text_are_told_apart_from_outside() {
    let run = Run::new("run-a");
    let plain = crate::lab::serve(Trust::Plain(service::Insecure::Loopback), None).await;
    let (named, of_run) = (Web::new().serve(&localhost(), SystemTime::now()).await, run.serve().await);
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = |address: &str| {
        let place = address.split_once("//").expect("a scheme").1;
        place.parse::<SocketAddr>().expect("an address").port()
    };
    for (port, is_tls) in [
        (named, true),
        (port(&of_run.address), true),
        (port(&plain.address), false),
        (silent.local_addr().expect("bound").port(), false),
    ] {
        // Who is silent is waited for in vain.
        let patience = if is_tls { PATIENCE } else { Duration::from_millis(500) };
        let look = move || speaks_tls(("127.0.0.1", port), patience);
        assert_eq!(tokio::task::spawn_blocking(look).await.expect("no panic"), is_tls, "{port}");
    }
    let told = greeted("127.0.0.1", port(&plain.address), &Web::new().trusting()).await.expect_err("refused");
    assert!(told.contains("does not speak TLS"), "{told}");
}

#[test]
fn authorities_are_the_systems_or_of_a_file_that_says_what_is_wrong_with_it() {
    assert_eq!(Authorities::from("system"), Authorities::System);
    let home = tempfile::tempdir().expect("a folder");
    let path = home.path().join("ca.pem");
    let told = |path: &PathBuf| {
        let outcome = Authorities::File(path.clone()).certificates();
        outcome.expect_err("refused").to_string()
    };
    assert!(told(&path).contains("ca.pem cannot be read"), "{}", told(&path));
    std::fs::write(&path, "no certificate").expect("written");
    assert!(told(&path).contains("ca.pem holds no certificate in PEM"), "{}", told(&path));
    let error = NamedServers::certified_by(Vec::new(), &[]).expect_err("nobody");
    assert!(matches!(error, TrustError::Certificate(_)), "{error}");
}
