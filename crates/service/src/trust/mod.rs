//! Who may speak to whom beyond this host: mutual TLS, with a role in every certificate.
//!
//! Invariants: (1) a peer is whom its certificate names, `tempflow://DOMAIN/ROLE`, signed by the authority that this
//! process trusts, and of the domain of this process's own; its address says nothing. (2) Roles and the end of a
//! certificate are checked at every call, in one table (`access.rs`). (3) Keys of members never leave their process;
//! tokens and the authority's key lie in files of mode 0600 and in no argument, environment or log.

pub(crate) mod access;
mod authority;
mod certificate;
mod connection_end;
mod credentials;
mod error;
mod identity;
mod named_servers;
mod peer;
mod peer_name;
mod plain_text;
mod secret_file;
mod tokens;
mod verifiers;

pub use access::{AccessLayer, peer_role};
pub use authority::Authority;
pub use certificate::PeerCertificate;
pub use credentials::Credentials;
pub use error::{TrustError, trust_problem};
pub use identity::{CertificateFiles, Identity, certificates_in, private_key_in};
pub use named_servers::{Authorities, NamedServers};
pub use peer::Peer;
pub use peer_name::{PeerName, PeerRole};
pub use plain_text::{Insecure, plain_text_rewards};
pub use secret_file::read_secret;
pub use tokens::{JoinToken, TOKEN_ROLES, TokenFile, TokenSource, Tokens};

pub(crate) use certificate::shown_time;
pub(crate) use connection_end::{Ending, expiry, own_renewal};
pub(crate) use error::SPEAKS_TLS;

pub use rustls::pki_types::CertificateDer;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use std::sync::{Arc, LazyLock};

/// How a process secures what it connects to and serves.
#[derive(Clone)]
pub enum Trust {
    /// Not at all, as far as the user wants that; looked at for every connection, since an address may lead elsewhere by then.
    Plain(Insecure),
    /// Mutual TLS.
    Mutual(Arc<Credentials>),
}

/// How processes of one role meet on connections that carry no calls: the handshake demands a certificate of that role on both
/// sides, which holds at that moment.
#[derive(Clone, Debug)]
pub struct PeerTls {
    /// For those that call this process.
    pub server: Arc<ServerConfig>,
    /// For those that it calls.
    pub client: Arc<ClientConfig>,
    /// A name, since there has to be one: peers are known by their certificates.
    pub server_name: ServerName<'static>,
}

impl Trust {
    /// How processes of `role`, this being one, meet without calls; in the clear if there is none.
    ///
    /// # Errors
    /// If the authority's certificates are of no use.
    pub fn among(&self, role: PeerRole) -> Result<Option<PeerTls>, TrustError> {
        let Self::Mutual(credentials) = self else { return Ok(None) };
        let (server, client) = credentials.configs_among(role)?;
        let server_name = ServerName::try_from("tempflow");
        let server_name = server_name.map_err(|error| TrustError::Handshake(error.to_string()))?;
        Ok(Some(PeerTls { server: Arc::new(server), client: Arc::new(client), server_name }))
    }

    /// Whether connections are encrypted and peers known.
    pub fn is_mutual(&self) -> bool {
        matches!(self, Self::Mutual(_))
    }

    /// What stands before an address that is reached so.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Plain(_) => "http",
            Self::Mutual(_) => "https",
        }
    }
}

/// The implementation of cryptography that everything here uses; none is installed for the whole process.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    PROVIDER.clone()
}
