//! Servers that are of no run, such as others' that score images: known by the names of their hosts, as on the web.

use super::identity::{certificates, roots, unusable};
use super::{TrustError, provider, shown_time};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, ClientConfig, Error as TlsError};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Characters of a name that are shown.
const LONGEST_NAME: usize = 100;
/// What stands for the system's authorities where a file of them can be named.
const SYSTEM: &str = "system";

/// Who is trusted to certify such servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorities {
    /// Those that this system trusts.
    System,
    /// Those in a file, PEM.
    File(PathBuf),
}

impl From<&str> for Authorities {
    fn from(text: &str) -> Self {
        match text {
            SYSTEM => Self::System,
            path => Self::File(path.into()),
        }
    }
}

impl Authorities {
    /// Their certificates.
    ///
    /// # Errors
    /// If there is none, or a file holds something else.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TrustError> {
        match self {
            Self::System => of_system(),
            Self::File(path) => of_file(path),
        }
    }
}

fn of_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let found = certificates(path)?;
    roots(found.clone()).map_err(|error| unusable(path, format!("does not do: {error}")))?;
    Ok(found)
}

fn of_system() -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let found = rustls_native_certs::load_native_certs();
    // Of some systems' bundles a certificate or two cannot be read; that is no reason to trust none of the others.
    match found.certs.is_empty() {
        false => Ok(found.certs),
        true => {
            let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
            Err(TrustError::Usage(format!(
                "this system has no certificates of authorities{why}: install its package `ca-certificates`, have SSL_CERT_FILE \
                 name a file of them, or give the server's authority by `tls_ca`"
            )))
        }
    }
}

/// How such servers are connected to.
#[derive(Clone)]
pub struct NamedServers(Arc<ClientConfig>);

impl fmt::Debug for NamedServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedServers").finish_non_exhaustive()
    }
}

impl NamedServers {
    /// Servers that are certified by one of these; `protocols` are offered, as ALPN names them, if there are any.
    ///
    /// # Errors
    /// If none of them is an authority.
    pub fn certified_by(
        authorities: Vec<CertificateDer<'static>>,
        protocols: &[&str],
    ) -> Result<Self, TrustError> {
        let mut roots = rustls::RootCertStore::empty();
        let (n_added, _) = roots.add_parsable_certificates(authorities);
        if n_added == 0 {
            return Err(TrustError::Certificate("none of the authorities' can be read".to_owned()));
        }
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| TrustError::Handshake(error.to_string()))?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Ok(Self(Arc::new(config)))
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        self.0.clone()
    }
}

impl TrustError {
    /// What a failed handshake with a server means that is known by the name of its host; `None` if the error is not of TLS.
    pub fn of_named_server(error: &io::Error, host: &str) -> Option<Self> {
        let problem = |problem| Self::NamedServer { host: host.to_owned(), problem };
        Some(match error.get_ref()?.downcast_ref::<TlsError>()? {
            TlsError::InvalidCertificate(error) => problem(certificate_problem(error)),
            TlsError::InvalidMessage(_) => Self::PlainServer,
            other => Self::Handshake(other.to_string()),
        })
    }
}

const CLOCKS: &str = "set the clocks of both hosts, as by NTP";

fn certificate_problem(error: &CertificateError) -> String {
    let now = shown_time(SystemTime::now());
    let at =
        |time: &UnixTime| format!(" at {}", shown_time(UNIX_EPOCH + Duration::from_secs(time.as_secs())));
    let ended =
        |at: String| format!("ended{at}, and the clock here says {now}: have it renewed, or {CLOCKS}");
    let begins =
        |at: String| format!("begins to hold only later{at}, and the clock here says {now}: {CLOCKS}");
    match error {
        CertificateError::ExpiredContext { not_after, .. } => ended(at(not_after)),
        CertificateError::Expired => ended(String::new()),
        CertificateError::NotValidYetContext { not_before, .. } => begins(at(not_before)),
        CertificateError::NotValidYet => begins(String::new()),
        CertificateError::NotValidForNameContext { presented, .. } => other_name(presented),
        CertificateError::NotValidForName => other_name(&[]),
        // An authority that was made anew has the name of the one before, and another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "is of no authority that is trusted here: name a file with the certificate of the server's authority by `tls_ca`, \
             or find out who answers there"
                .to_owned()
        }
        other => format!("does not do ({other}): have another made, and see that `tls_ca` names the authority that signs it"),
    }
}

fn other_name(presented: &[String]) -> String {
    let hosts: Vec<String> = presented.iter().filter_map(|name| host_of(name)).take(5).collect();
    match hosts[..] {
        [] => "names no host: have one made with the host's name in it; a server of this run has none, and is known by its \
               role where `tls_ca` is left out"
            .to_owned(),
        _ => format!(
            "is for {} and not for that name: write one of these in `url`, or have one made that has this name",
            hosts.join(", ")
        ),
    }
}

/// The host that a certificate names so, as `DnsName("scores.example")` or `IpAddress(10.0.0.7)`; anybody may have written it.
fn host_of(name: &str) -> Option<String> {
    let inner = name.strip_prefix("DnsName(").or_else(|| name.strip_prefix("IpAddress("))?;
    Some(crate::shown(inner.trim_end_matches(')').trim_matches('"'), LONGEST_NAME))
}
