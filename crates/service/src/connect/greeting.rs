//! Looking in on servers: whether somebody is there, speaks TLS, and is who he should be. Nothing is asked.

use crate::trust::{NamedServers, TrustError, provider};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::io::{self, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

/// First bytes of TLS records: an alert, a handshake.
const TLS_RECORDS: [u8; 2] = [21, 22];

/// Connects to a host and, where it should be known by its name, sees that it is. Every step may take `patience`.
///
/// # Errors
/// If nobody answers, or who answers is not trusted: a [`TrustError`] is inside, then.
pub fn greet(
    (host, port): (&str, u16),
    servers: Option<&NamedServers>,
    patience: Duration,
) -> io::Result<()> {
    let mut stream = reach((host, port), patience)?;
    let Some(servers) = servers else { return Ok(()) };
    let mut connection = client(servers.config(), host)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).map_err(|error| {
            match TrustError::of_named_server(&error, host) {
                Some(problem) => io::Error::other(problem),
                None => error,
            }
        })?;
    }
    Ok(())
}

/// Whether who listens there answers a greeting of TLS with one. Every step may take `patience`.
pub fn speaks_tls((host, port): (&str, u16), patience: Duration) -> bool {
    first_byte((host, port), patience).is_ok_and(|first| TLS_RECORDS.contains(&first))
}

/// The first byte of the answer to a greeting.
fn first_byte((host, port): (&str, u16), patience: Duration) -> io::Result<u8> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(io::Error::other)?;
    // Nobody is believed; it does not come to that.
    let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut stream = reach((host, port), patience)?;
    client(Arc::new(config), host)?.write_tls(&mut stream)?;
    let mut first = [0];
    stream.read_exact(&mut first)?;
    Ok(first[0])
}

fn client(config: Arc<ClientConfig>, host: &str) -> io::Result<ClientConnection> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    ClientConnection::new(config, name).map_err(io::Error::other)
}

fn reach((host, port): (&str, u16), patience: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
