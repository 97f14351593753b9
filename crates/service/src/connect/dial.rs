//! One way for every connection that a process makes: address looked up, TCP, and TLS where the trust says so.

use super::address::{Address, HostPort};
use super::{endpoint, is_waited_for};
use crate::duplex::Duplex;
use crate::trust::{
    Credentials, Ending, NamedServers, PeerCertificate, PeerRole, Trust, TrustError, own_renewal,
    trust_problem,
};
use crate::{ServiceError, backoff};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How one process is reached, again and again.
#[derive(Clone)]
pub(crate) struct Dial {
    address: Address,
    peer: Peer,
}

/// How it is known who answers.
#[derive(Clone)]
enum Peer {
    /// Not at all, or by its role in a domain.
    OfDomain { trust: Trust, tls: Option<Arc<ClientConfig>> },
    /// By the name of its host.
    Named(NamedServers),
}

impl Dial {
    /// The way to a process of that role.
    pub(crate) fn new(address: Address, role: PeerRole, trust: &Trust) -> Result<Self, ServiceError> {
        let tls = match trust {
            Trust::Plain(_) => None,
            Trust::Mutual(credentials) => Some(Arc::new(credentials.client_config(role)?)),
        };
        Ok(Self { address, peer: Peer::OfDomain { trust: trust.clone(), tls } })
    }

    /// The way to a server that is known by the name of its host.
    pub(crate) fn to_named(address: Address, servers: NamedServers) -> Self {
        Self { address, peer: Peer::Named(servers) }
    }

    /// Calls to a server that is known by its host's name say that they are secured, which others' servers may look at.
    fn endpoint(&self) -> Endpoint {
        let endpoint = endpoint(&self.address);
        let place = match &self.peer {
            Peer::Named(_) => self.address.resolve().ok(),
            Peer::OfDomain { .. } => None,
        };
        match place.and_then(|place| format!("https://{place}").parse().ok()) {
            Some(origin) => endpoint.origin(origin),
            None => endpoint,
        }
    }

    /// A channel that connects when it is first used, and again whenever it broke.
    pub(crate) fn channel(&self) -> Channel {
        self.endpoint().connect_with_connector_lazy(self.clone())
    }

    /// A channel that is connected, within `patience`.
    ///
    /// # Errors
    /// If nobody answers in time, or who answers is not trusted.
    pub(crate) async fn connect(&self, patience: Duration) -> Result<Channel, ServiceError> {
        let start = Instant::now();
        let mut pauses = backoff(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let source = match self.endpoint().connect_with_connector(self.clone()).await {
                Ok(channel) => return Ok(channel),
                Err(source) => source,
            };
            let address = self.address.to_string();
            if let Some(problem) = trust_problem(&source).filter(|problem| !is_waited_for(problem)) {
                return Err(ServiceError::Untrusted { address, problem: Box::new(problem) });
            }
            if start.elapsed() >= patience {
                return Err(ServiceError::Unreachable { address, patience, source });
            }
            tokio::time::sleep(pauses.next_pause()).await;
        }
    }

    async fn open(self) -> Result<TokioIo<Box<dyn Duplex>>, Failure> {
        let place = match &self.peer {
            Peer::OfDomain { trust, .. } => self.address.resolve_for(trust),
            Peer::Named(_) => self.address.resolve(),
        };
        let place = place.map_err(|error| match error {
            // So that it is found at the bottom of whatever it is wrapped in.
            ServiceError::Untrusted { problem, .. } => Failure::from(*problem),
            other => other.into(),
        })?;
        let stream = TcpStream::connect((place.host.as_str(), place.port))
            .await
            .map_err(|error| named(&place, &error))?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Duplex> = match self.peer {
            Peer::OfDomain { tls: Some(tls), trust: Trust::Mutual(credentials) } => {
                Box::new(secured(stream, tls, &credentials).await?)
            }
            Peer::OfDomain { .. } => Box::new(stream),
            Peer::Named(servers) => Box::new(secured_by_name(stream, &servers, &place.host).await?),
        };
        Ok(TokioIo::new(stream))
    }
}

/// Says where it was tried, which a name or a file does not tell.
fn named(place: &HostPort, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} port {}: {error}", place.host, place.port))
}

async fn secured_by_name(
    stream: TcpStream,
    servers: &NamedServers,
    host: &str,
) -> Result<impl Duplex + use<>, TrustError> {
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|error| TrustError::Usage(format!("`{host}` is no name of a host: {error}")))?;
    let connected = TlsConnector::from(servers.config()).connect(name, stream).await;
    connected.map_err(|error| {
        TrustError::of_named_server(&error, host).unwrap_or_else(|| TrustError::Handshake(error.to_string()))
    })
}

async fn secured(
    stream: TcpStream,
    tls: Arc<ClientConfig>,
    credentials: &Credentials,
) -> Result<impl Duplex + use<>, TrustError> {
    let renewal = own_renewal(credentials);
    // Peers are not known by their address; the name only has to be one.
    let name = ServerName::try_from("tempflow").map_err(|error| TrustError::Handshake(error.to_string()))?;
    let connected = TlsConnector::from(tls).connect(name, stream).await;
    let mut stream = connected.map_err(|error| TrustError::of_handshake(&error))?;
    // Only now does the server look at this side's certificate; its first bytes say that it took it, or why not.
    let mut first = vec![0; 256];
    let n = stream.read(&mut first).await.map_err(|error| TrustError::of_handshake(&error))?;
    if n == 0 {
        return Err(TrustError::Handshake("the other side hung up".to_owned()));
    }
    first.truncate(n);
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let server = shown.map(|der| PeerCertificate::parse(der)).transpose()?;
    let end = async move {
        let expiry = async {
            match server {
                Some(certificate) => crate::trust::expiry(certificate).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            reason = renewal => reason,
            reason = expiry => reason,
        }
    };
    Ok(Ending::new(stream, first, end))
}

impl Service<Uri> for Dial {
    type Response = TokioIo<Box<dyn Duplex>>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().open())
    }
}
