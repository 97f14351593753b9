//! Who is at the other end of a connection.

use super::PeerCertificate;
use std::net::SocketAddr;
use std::sync::Arc;

/// Who is at the other end of a connection that was accepted; every call on it carries this.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Whether the connection is encrypted; if not, nobody is known.
    pub is_secure: bool,
    /// What was shown, if anything.
    pub certificate: Option<Arc<PeerCertificate>>,
    /// From where.
    pub address: Option<SocketAddr>,
}

impl Peer {
    /// Somebody of whom nothing is known and who may therefore do nothing.
    pub(super) fn stranger() -> Self {
        Self { is_secure: true, certificate: None, address: None }
    }
}
