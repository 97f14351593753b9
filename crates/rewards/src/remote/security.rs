//! How it is known who a server is, and what it is shown of who asks.
//!
//! | options | the server is known by |
//! |---|---|
//! | `https://` in `url`, HTTP's protocols | the name of its host, certified by the system's authorities, or those of `tls_ca` |
//! | `grpcs://` or `https://` in `url` | its role in this process's own run |
//! | the same with `tls_ca` | the name of its host |
//! | the same with `tls_ca`, `tls_certificate`, `tls_key` | its role in the domain of that certificate |

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use service::trust::{
    Authorities, CertificateDer, CertificateFiles, Credentials, NamedServers, TrustError, read_secret,
    trust_problem,
};
use service::{Insecure, PeerRole, ServiceError, Trust, connect, connect_named, speaks_tls};
use tonic::transport::Channel;

use super::error::RemoteError;
use super::options::OptionKeys;
use super::server_url::ServerUrl;
use crate::error::RewardError;
use crate::resources::{Resources, RunIdentity};

/// How long it may take to find out that a server speaks TLS which is called in plain text.
const LOOK: Duration = Duration::from_secs(3);

/// How a server of our own protocol is known.
#[derive(Clone)]
pub(super) enum GrpcSecurity {
    /// Not at all.
    Plain,
    /// By its role in this process's own run; which certificate that is by is known once the run has begun.
    OfRun(Option<Trust>),
    /// By its role in the domain of a certificate of the user's own, whose files may be replaced at any time.
    OfFiles(CertificateFiles),
    /// By the name of its host.
    Named(NamedServers),
}

/// The user's own certificate for reward servers, by its options.
#[derive(Clone, Copy, Default)]
pub(super) struct OwnCertificate<'a> {
    pub(super) certificate: Option<&'a Path>,
    pub(super) key: Option<&'a Path>,
}

impl GrpcSecurity {
    /// What the options come to.
    ///
    /// # Errors
    /// If they contradict each other, or a file cannot be used.
    pub(super) fn of(
        keys: &OptionKeys,
        (url, authorities): (&ServerUrl, Option<&Authorities>),
        own: OwnCertificate,
        resources: &Resources,
    ) -> Result<Self, RewardError> {
        let own = match (own.certificate, own.key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (None, _) => return Err(keys.refuse("tls_certificate", lacks("tls_key"))),
            (_, None) => return Err(keys.refuse("tls_key", lacks("tls_certificate"))),
        };
        match (url.is_secure(), authorities, own) {
            (false, _, None) => Ok(Self::Plain),
            (false, _, Some(_)) => Err(keys.refuse("url", plain_in_spite_of("tls_certificate"))),
            (true, Some(authorities), None) => {
                named(keys, trusted(keys, authorities)?, &["h2"]).map(Self::Named)
            }
            (true, None, None) => of_run(keys, &resources.run),
            (true, Some(Authorities::File(authority)), Some((certificate, key))) => {
                let (authority, certificate, key) =
                    (authority.clone(), certificate.to_owned(), key.to_owned());
                let files = CertificateFiles { authority, certificate, key };
                check_files(&files).map_err(|problem| keys.refuse("tls_certificate", problem))?;
                Ok(Self::OfFiles(files))
            }
            (true, _, Some(_)) => {
                let problem = "it names no file, and `tls_certificate` is given: name the file of the authority that certifies \
                               the server's role";
                Err(keys.refuse("tls_ca", problem.to_owned()))
            }
        }
    }

    /// A channel to the server, connected by one attempt.
    ///
    /// # Errors
    /// If nobody answers, or who answers is not trusted.
    pub(super) async fn connect(&self, url: &ServerUrl) -> Result<Channel, RemoteError> {
        let by_role = async |trust: &Trust| {
            connect(&url.join(""), PeerRole::Reward, trust, Duration::ZERO).await.map_err(failure)
        };
        match self {
            // Reward servers are spoken to as their address says, wherever they are.
            Self::Plain => by_role(&Trust::Plain(Insecure::Anywhere)).await,
            Self::OfRun(Some(trust)) => by_role(trust).await,
            Self::OfRun(None) => {
                Err(RemoteError::Unreachable { cause: "the run has not begun, and certifies nobody".into() })
            }
            Self::OfFiles(files) => by_role(&trust(files).map_err(untrusted)?).await,
            Self::Named(servers) => {
                connect_named(&url.join(""), servers, Duration::ZERO).await.map_err(failure)
            }
        }
    }

    /// Whether somebody is there and is who he should be, as far as that can be seen now.
    ///
    /// # Errors
    /// If not.
    pub(super) fn greet(&self, url: &ServerUrl, patience: Duration) -> Result<(), RemoteError> {
        match self {
            Self::Named(servers) => greet(url, Some(servers), patience),
            Self::Plain => greet(url, None, patience),
            Self::OfRun(_) | Self::OfFiles(_) => {
                greet(url, None, patience)?;
                match speaks_tls(url.place(), patience) {
                    true => Ok(()),
                    false => Err(untrusted(TrustError::PlainServer)),
                }
            }
        }
    }
}

fn lacks(other: &str) -> String {
    format!("it is missing, and `{other}` is given; a certificate and its key go together")
}

/// What is said of a `url` that asks for plain text where an option only makes sense with TLS.
pub(super) fn plain_in_spite_of(option: &str) -> String {
    format!("it asks for plain text, and `{option}` is given; write `https://`, or leave `{option}` out")
}

fn of_run(keys: &OptionKeys, run: &RunIdentity) -> Result<GrpcSecurity, RewardError> {
    match run {
        RunIdentity::Certified(trust) => Ok(GrpcSecurity::OfRun(Some(trust.clone()))),
        RunIdentity::ToBeCertified => Ok(GrpcSecurity::OfRun(None)),
        RunIdentity::None => Err(keys.refuse(
            "url",
            "it asks for TLS, and this process is of no run that is secured, whose certificates would tell who is who: secure \
             the run (`network.tls.mode = \"always\"`, or `network.bind` beyond the loopback), or name by `tls_ca` who certifies \
             a server of others (`system` for those that the system trusts)"
                .to_owned(),
        )),
    }
}

/// The certificates of those who certify a server.
///
/// # Errors
/// If there are none that can be used.
pub(super) fn trusted(
    keys: &OptionKeys,
    authorities: &Authorities,
) -> Result<Vec<CertificateDer<'static>>, RewardError> {
    authorities.certificates().map_err(|problem| keys.refuse("tls_ca", problem.to_string()))
}

/// Servers that are known by the names of their hosts.
///
/// # Errors
/// If the certificates are of no authorities.
pub(super) fn named(
    keys: &OptionKeys,
    trusted: Vec<CertificateDer<'static>>,
    protocols: &[&str],
) -> Result<NamedServers, RewardError> {
    let servers = NamedServers::certified_by(trusted, protocols);
    servers.map_err(|problem| keys.refuse("tls_ca", problem.to_string()))
}

/// Finds out early what is wrong with files of the user's own.
fn check_files(files: &CertificateFiles) -> Result<(), String> {
    files.roots().map_err(|problem| problem.to_string())?;
    let found = files.identity().map_err(|problem| problem.to_string())?.certificate.name;
    match found.role {
        PeerRole::Worker | PeerRole::Admin => Ok(()),
        _ => Err(format!(
            "it names {found}, and rewards are asked for by the roles `worker` and `admin` alone; give it a certificate of one of \
             these"
        )),
    }
}

fn trust(files: &CertificateFiles) -> Result<Trust, TrustError> {
    Ok(Trust::Mutual(Arc::new(Credentials::of(files.roots()?, files.identity()?))))
}

/// Knocks at a server, and sees who it is where it is known by its host's name.
///
/// # Errors
/// If nobody is there, or somebody else.
pub(super) fn greet(
    url: &ServerUrl,
    servers: Option<&NamedServers>,
    patience: Duration,
) -> Result<(), RemoteError> {
    let greeted = service::greet(url.place(), servers, patience);
    greeted.map_err(|error| match trust_problem(&error) {
        Some(problem) => untrusted(problem),
        None => RemoteError::Unreachable { cause: error.into() },
    })
}

/// A failure of a call in plain text, or that its server speaks TLS, where it does.
pub(super) fn unless_tls(url: &ServerUrl, failure: RemoteError) -> RemoteError {
    let may_be = matches!(failure, RemoteError::Unreachable { .. } | RemoteError::WrongProtocol { .. });
    match may_be && !url.is_secure() && speaks_tls(url.place(), LOOK) {
        true => untrusted(TrustError::SecureServer),
        false => failure,
    }
}

pub(super) fn untrusted(problem: TrustError) -> RemoteError {
    RemoteError::Untrusted { problem: Box::new(problem) }
}

/// Why there is no channel. A handshake that breaks may be that of a server which is going away.
fn failure(error: ServiceError) -> RemoteError {
    match error {
        ServiceError::Untrusted { problem, .. } => RemoteError::Untrusted { problem },
        ServiceError::Trust(problem) => untrusted(problem),
        ServiceError::Unreachable { source, .. } => RemoteError::Unreachable { cause: source.into() },
        other => RemoteError::Unreachable { cause: other.into() },
    }
}

/// The key that a server is shown, from a variable of the environment or a file.
///
/// # Errors
/// If both are given, or there is none.
pub(super) fn key(
    keys: &OptionKeys,
    (variable, file): (Option<&str>, Option<&Path>),
    resources: &Resources,
) -> Result<Option<String>, RewardError> {
    match (variable, file) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => {
            let problem = "`api_key_env` is given, too; leave one of them out".to_owned();
            Err(keys.refuse("api_key_file", problem))
        }
        (Some(variable), None) => {
            let key = (resources.variable)(variable).filter(|key| is_header_text(key)).ok_or_else(|| {
                let problem = format!("no usable key is in the environment variable `{variable}`; set it");
                keys.refuse("api_key_env", problem)
            })?;
            Ok(Some(key))
        }
        (None, Some(path)) => {
            let text =
                read_secret(path).map_err(|problem| keys.refuse("api_key_file", problem.to_string()))?;
            let key = text.trim();
            match is_header_text(key) {
                true => Ok(Some(key.to_owned())),
                false => {
                    let path = path.display();
                    let problem = format!("{path} does not hold a key, which is one line of ASCII");
                    Err(keys.refuse("api_key_file", problem))
                }
            }
        }
    }
}

/// Whether a text can stand in an HTTP header.
fn is_header_text(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}
