//! Groups of ranks as threads of one process.

use collective::tcp::{GroupId, TcpGathering, TcpGroup, TcpSettings, TcpTls};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

/// Far more than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The deadline of what is to succeed, or to fail long before.
pub fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// How ranks are connected.
#[derive(Clone, Copy, Debug)]
pub enum Security {
    Plain,
    /// By mutual TLS, with certificates of one authority.
    Mutual,
    /// With a certificate of an authority of one's own.
    Stranger,
}

impl Security {
    /// Those by which a group comes to be.
    pub const ALL: [Self; 2] = [Self::Plain, Self::Mutual];

    fn tls(self) -> Option<TcpTls> {
        static MEMBER: LazyLock<Authority> = LazyLock::new(Authority::new);
        static STRANGER: LazyLock<Authority> = LazyLock::new(Authority::new);
        match self {
            Self::Plain => None,
            Self::Mutual => Some(MEMBER.tls(&MEMBER)),
            Self::Stranger => Some(STRANGER.tls(&MEMBER)),
        }
    }
}

struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate").der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A rank with a certificate of this authority, which trusts those of `trusted`.
    fn tls(&self, trusted: &Self) -> TcpTls {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["rank.test".to_owned()]).expect("parameters");
        let chain = vec![params.signed_by(&key, &self.issuer).expect("a certificate").der().clone()];
        let key = || PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let mut roots = RootCertStore::empty();
        roots.add(trusted.certificate.clone()).expect("a root");
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(chain.clone(), key())
            .expect("a server");
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key())
            .expect("a client");
        let server_name = ServerName::try_from("rank.test").expect("a name");
        TcpTls { server: Arc::new(server), client: Arc::new(client), server_name }
    }
}

/// The group of an epoch.
pub fn id(epoch: u64) -> GroupId {
    GroupId { unique: [7; 16], epoch }
}

/// Ports of this machine for so many ranks.
pub fn listeners(n_ranks: usize) -> (Vec<TcpListener>, Vec<SocketAddr>) {
    let listeners: Vec<TcpListener> =
        (0..n_ranks).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let addresses = listeners.iter().map(|listener| listener.local_addr().expect("an address")).collect();
    (listeners, addresses)
}

/// What a rank knows.
pub fn settings(rank: usize, addresses: &[SocketAddr], id: GroupId, security: Security) -> TcpSettings {
    TcpSettings { rank, addresses: addresses.to_vec(), id, tls: security.tls() }
}

/// A complete group, in the order of ranks.
pub fn groups(n_ranks: usize, security: Security) -> Vec<TcpGroup> {
    let (listeners, addresses) = listeners(n_ranks);
    thread::scope(|scope| {
        let meetings: Vec<_> = listeners
            .iter()
            .enumerate()
            .map(|(rank, listener)| {
                let gathering =
                    TcpGathering::new(settings(rank, &addresses, id(1), security)).expect("valid");
                scope.spawn(move || gathering.meet(listener, deadline()).expect("all meet"))
            })
            .collect();
        meetings.into_iter().map(|meeting| meeting.join().expect("no panic")).collect()
    })
}

/// What every rank comes to, each in a thread of its own.
pub fn on_all<T: Send>(groups: Vec<TcpGroup>, work: impl Fn(&mut TcpGroup) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> =
            groups.into_iter().map(|mut group| scope.spawn(move || work(&mut group))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}
