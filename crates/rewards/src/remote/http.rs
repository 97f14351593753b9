//! Requests over HTTP, one connection each, so that a server may be restarted between two of them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pickle::{Limits, Value};
use service::trust::{Authorities, NamedServers, TrustError};
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::error::RemoteError;
use super::exchange::{Exchange, Reply, Sent, last_line, quoted};
use super::options::{Connection, OptionKeys};
use super::security::{greet, named, trusted, unless_tls, untrusted};
use crate::error::RewardError;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a reply is read to find out why a request failed.
const REASON_BYTES: u64 = 1 << 20;

/// A client of one server.
pub(super) struct HttpClient {
    agent: Agent,
    connection: Connection,
    /// Whom the server has to be certified by, where it is spoken to by TLS.
    servers: Option<NamedServers>,
    /// The header `Authorization`.
    authorization: Option<String>,
}

impl HttpClient {
    /// A client that authorises itself by the connection's key, else by the URL's user name and password, if it has them.
    ///
    /// Redirects are not followed, since images and keys were meant for this server alone; proxies are not used.
    ///
    /// # Errors
    /// If there is nobody by whom a server could be certified that is to be spoken to by TLS.
    pub(super) fn new(keys: &OptionKeys, connection: Connection) -> Result<Self, RewardError> {
        let authorities = connection.authorities.as_ref().unwrap_or(&Authorities::System);
        let (mut roots, mut servers) = (Vec::new(), None);
        if connection.url.is_secure() {
            let trusted = trusted(keys, authorities)?;
            roots = trusted.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
            servers = Some(named(keys, trusted, &[])?);
        }
        let roots = RootCerts::Specific(Arc::new(roots));
        let config = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_global(Some(connection.timeout))
            .timeout_connect(Some(CONNECT_TIMEOUT.min(connection.timeout)))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::Never)
            .max_idle_connections(0)
            .proxy(None)
            .user_agent(concat!("tempflow/", env!("CARGO_PKG_VERSION")))
            .build();
        let key = connection.key.as_ref().map(|key| format!("Bearer {key}"));
        let authorization = key.or_else(|| connection.url.credentials().map(str::to_owned));
        Ok(Self { agent: config.into(), connection, servers, authorization })
    }

    /// Whether somebody is there and is who he should be.
    ///
    /// # Errors
    /// If not.
    pub(super) fn greet(&self, patience: Duration) -> Result<(), RemoteError> {
        greet(&self.connection.url, self.servers.as_ref(), patience)
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Posts `body` to `path` below the URL; the exchange has a reply with a status that says yes.
    ///
    /// # Errors
    /// If there is no such reply, in time, within the limit of bytes.
    pub(super) fn post(
        &self,
        path: &str,
        content_type: &'static str,
        body: &[u8],
    ) -> Result<Exchange, RemoteError> {
        let sent = Sent { url: self.connection.url.shown(path), content_type, n_bytes: body.len() };
        let mut request = self.agent.post(self.connection.url.join(path)).content_type(content_type);
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let response = request.send(body).map_err(|error| self.failure(error, &sent));
        let mut response = response.map_err(|failure| unless_tls(&self.connection.url, failure))?;
        let status = response.status();
        let allowed = self.connection.max_reply_bytes;
        let allowed = if status.is_success() { allowed } else { allowed.min(REASON_BYTES) };
        let body = response.body_mut().with_config().limit(allowed).read_to_vec();
        let retry_after =
            response.headers().get("retry-after").and_then(|text| text.to_str().ok()?.parse().ok());
        let retry_after = retry_after.map(Duration::from_secs);
        let content_type = response.headers().get("content-type");
        let content_type = content_type.map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
        let reply =
            |body| Reply { status: status.as_u16(), content_type: content_type.unwrap_or_default(), body };
        if status.is_success() {
            let body = body.map_err(|error| self.failure(error, &sent))?;
            return Ok(Exchange { sent, reply: Some(reply(body)) });
        }
        let body = body.unwrap_or_default();
        if status.is_redirection() || status.is_informational() {
            let problem = "the server sends elsewhere; give the URL where it answers itself".to_owned();
            return Err(Exchange { sent, reply: Some(reply(body)) }.wrong(problem));
        }
        let (status, reason) = (status.as_u16(), reason(&body));
        let exchange = Box::new(Exchange { sent, reply: Some(reply(body)) });
        Err(RemoteError::Status { status, reason, retry_after, exchange })
    }

    fn failure(&self, error: ureq::Error, sent: &Sent) -> RemoteError {
        use io::ErrorKind;
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed => RemoteError::Unreachable { cause: error.into() },
            ureq::Error::Timeout(_) => RemoteError::Deadline { allowed: self.connection.timeout },
            ureq::Error::BodyExceedsLimit(allowed) => RemoteError::TooLarge { allowed },
            ureq::Error::Rustls(error) => self.untrusted(io::Error::other(error)),
            ureq::Error::Tls(_) => RemoteError::Tls { cause: error.into() },
            ureq::Error::Io(io) if io.kind() == ErrorKind::InvalidData => self.untrusted(io),
            ureq::Error::Io(io) => RemoteError::Unreachable { cause: io.into() },
            other => {
                Exchange { sent: sent.clone(), reply: None }.wrong(format!("this is not HTTP ({other})"))
            }
        }
    }

    fn untrusted(&self, error: io::Error) -> RemoteError {
        match TrustError::of_named_server(&error, self.connection.url.place().0) {
            Some(TrustError::Handshake(_)) | None => RemoteError::Tls { cause: error.into() },
            Some(problem) => untrusted(problem),
        }
    }
}

/// Why a server said no: the `error` of a pickled dictionary, else the last line of a text.
fn reason(body: &[u8]) -> String {
    match pickle::read(body, &Limits::default()).as_ref().map(|reply| reply.get("error")) {
        Ok(Some(Value::String(error))) => quoted(error.as_bytes()),
        _ => last_line(body),
    }
}
