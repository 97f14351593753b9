//! What a process shows and whom it believes; both sides of a handshake ask here, so that a renewed certificate counts at once.

use super::verifiers::{ClientVerifier, ServerVerifier};
use super::{Identity, PeerRole, TrustError, provider};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;

const HTTP2: &[u8] = b"h2";
/// So that nobody takes such a connection for one with calls, which are checked one by one.
const NO_CALLS: &[u8] = b"tempflow-ranks";

/// One process's place in a domain; its identity is replaced while it lives.
pub struct Credentials {
    roots: Arc<RootCertStore>,
    domain: String,
    /// `None` until it has a certificate.
    identity: watch::Sender<Option<Arc<Identity>>>,
}

impl Credentials {
    /// Credentials of somebody who has yet to get a certificate of `domain`.
    pub fn of_nobody(roots: RootCertStore, domain: &str) -> Self {
        Self { roots: Arc::new(roots), domain: domain.to_owned(), identity: watch::Sender::new(None) }
    }

    /// Credentials of who has a certificate; the domain is the certificate's.
    pub fn of(roots: RootCertStore, identity: Identity) -> Self {
        let credentials = Self::of_nobody(roots, &identity.certificate.name.domain);
        credentials.renew(identity);
        credentials
    }

    /// Shows another certificate from now on. Connections of this process end, to be made again with the new one.
    pub fn renew(&self, identity: Identity) {
        self.identity.send_replace(Some(Arc::new(identity)));
    }

    /// Whose this process is and whose its peers must be.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The certificate that is shown now.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.borrow().clone()
    }

    pub(super) fn changes(&self) -> watch::Receiver<Option<Arc<Identity>>> {
        self.identity.subscribe()
    }

    /// How connections are accepted.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<ServerConfig, TrustError> {
        self.server_config_for(None)
    }

    /// Both sides of connections that carry no calls, between processes of one role.
    pub(super) fn configs_among(
        self: &Arc<Self>,
        role: PeerRole,
    ) -> Result<(ServerConfig, ClientConfig), TrustError> {
        let (mut server, mut client) = (self.server_config_for(Some(role))?, self.client_config(role)?);
        server.alpn_protocols = vec![NO_CALLS.to_vec()];
        client.alpn_protocols = server.alpn_protocols.clone();
        Ok((server, client))
    }

    fn server_config_for(self: &Arc<Self>, only: Option<PeerRole>) -> Result<ServerConfig, TrustError> {
        let verifier = ClientVerifier::new(self.roots.clone(), self.domain.clone(), only)?;
        let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
        let builder = builder.map_err(|error| TrustError::Handshake(error.to_string()))?;
        let mut config = builder
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(Shown(self.clone())));
        config.alpn_protocols = vec![HTTP2.to_vec()];
        // Every connection shows the newest certificates.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// How a process of that role is connected to.
    pub(crate) fn client_config(self: &Arc<Self>, role: PeerRole) -> Result<ClientConfig, TrustError> {
        let verifier = ServerVerifier::new(self.roots.clone(), self.domain.clone(), role);
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
        let builder = builder.map_err(|error| TrustError::Handshake(error.to_string()))?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = builder.with_client_cert_resolver(Arc::new(Shown(self.clone())));
        config.alpn_protocols = vec![HTTP2.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.identity().map(|identity| identity.certificate.name.to_string());
        f.debug_struct("Credentials")
            .field("domain", &self.domain)
            .field("name", &name)
            .finish_non_exhaustive()
    }
}

/// Shows the certificate of the moment.
#[derive(Debug)]
struct Shown(Arc<Credentials>);

impl Shown {
    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        self.0.identity().map(|identity| identity.certified.clone())
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }

    fn has_certs(&self) -> bool {
        self.0.identity.borrow().is_some()
    }
}
