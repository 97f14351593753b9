//! What can be wrong between processes that are to trust each other, and what to do about it.

use super::PeerName;
use std::error::Error;
use std::io;
use std::path::PathBuf;

/// What a plain client is told by a server that speaks TLS, in a frame of HTTP/2.
pub(crate) const SPEAKS_TLS: &str =
    "this server speaks TLS; write `https://` and give a token file by `--token-file`";

/// Why a process is not trusted, or cannot show who it is.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrustError {
    /// A certificate does not say what it should.
    #[error("the certificate cannot be used: {0}")]
    Certificate(String),
    /// It does not hold at this time.
    #[error(
        "the certificate of {name} {} {bound}, and the clock here says {now}: {}",
        if *is_early { "begins to hold only at" } else { "ended at" },
        if *is_early { "set the clocks of both hosts, as by NTP" }
        else { "set the clocks of both hosts, as by NTP, or find out why it was not renewed" }
    )]
    Time {
        /// Whose.
        name: Box<PeerName>,
        /// Not yet, rather than no more.
        is_early: bool,
        /// When it begins or ended.
        bound: String,
        /// The clock of this host.
        now: String,
    },
    /// It was signed by somebody else.
    #[error(
        "the certificate of the other side is not of the authority that this process trusts ({0}): it is another run's, or \
         the run's authority was made anew; use the token file or the `ca` of this run"
    )]
    Foreign(String),
    /// It is of another run.
    #[error(
        "the other side is {found}, not of `{domain}`, which this process belongs to; use the token file of that run"
    )]
    OtherDomain {
        /// Who it is.
        found: PeerName,
        /// Who it should be of.
        domain: String,
    },
    /// It is somebody else of the run.
    #[error("the other side is {found}, not the {wanted} that should answer there; check the address")]
    OtherRole {
        /// Who it is.
        found: PeerName,
        /// Who it should be.
        wanted: super::PeerRole,
    },
    /// A server that is known by the name of its host shows a certificate that does not do.
    #[error("the certificate of `{host}` {problem}")]
    NamedServer {
        /// By what name it was called.
        host: String,
        /// Why not, and what to do.
        problem: String,
    },
    /// The other side ended the handshake.
    #[error(
        "the other side does not accept this process's certificate: {0}; use the token file of that run, or its `ca`"
    )]
    Rejected(String),
    /// Somebody answers who does not speak TLS.
    #[error(
        "the other side does not speak TLS: the run is served in plain text, so write `http://` and give no token file, or \
         nothing of this system listens there"
    )]
    PlainServer,
    /// A server that speaks TLS was called in plain text.
    #[error("{SPEAKS_TLS}")]
    SecureServer,
    /// A token does not let its holder in.
    #[error("{0}")]
    Token(String),
    /// A file of keys, certificates or tokens cannot be used.
    #[error("{} {problem}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not, and what to do.
        problem: String,
    },
    /// Settings contradict each other.
    #[error("{0}")]
    Usage(String),
    /// The handshake broke in another way.
    #[error("the handshake failed: {0}")]
    Handshake(String),
}

impl TrustError {
    /// What a failed handshake means.
    pub(crate) fn of_handshake(error: &io::Error) -> Self {
        use rustls::{CertificateError, Error as TlsError};
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
        match inner {
            Some(TlsError::InvalidCertificate(CertificateError::Other(other))) => {
                let own = other.0.downcast_ref::<Self>().cloned();
                own.unwrap_or_else(|| Self::Handshake(other.0.to_string()))
            }
            Some(TlsError::InvalidCertificate(error)) => Self::Foreign(error.to_string()),
            Some(TlsError::AlertReceived(alert)) => Self::Rejected(format!("{alert:?}")),
            Some(TlsError::InvalidMessage(_)) => Self::PlainServer,
            Some(other) => Self::Handshake(other.to_string()),
            None => Self::Handshake(error.to_string()),
        }
    }
}

/// The trust problem that is at the bottom of an error, if one is.
pub fn trust_problem(error: &(dyn Error + 'static)) -> Option<TrustError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<TrustError>() {
            return Some(found.clone());
        }
        // All that the layers between keep of it is its text.
        if error.to_string().contains(SPEAKS_TLS) {
            return Some(TrustError::SecureServer);
        }
        // Its source is that of what is in it, which itself would be passed over.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
