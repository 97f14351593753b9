//! How a server finds out who is at the other end of a connection, many at a time and each in time.

use super::introduced::Introduced;
use super::room::{Place, Room};
use super::{Connection, Incoming, let_in};
use crate::duplex::Duplex;
use crate::limited_log::LimitedLog;
use crate::trust::{Credentials, Ending, Peer, PeerCertificate, SPEAKS_TLS, TrustError, expiry};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tonic::transport::server::Connected;

/// How long a handshake may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Handshakes at a time; further connections wait.
const MOST: usize = 256;
/// How long a connection without a certificate may last: it asks for one, and the next has it.
const STRANGERS_TIME: Duration = Duration::from_secs(60);
/// Connections that were refused.
static REFUSED: LimitedLog = LimitedLog::new();
/// The first byte of a TLS record with a handshake in it.
const TLS_HANDSHAKE: u8 = 22;

/// A connection of which is known who is at the other end.
pub(crate) struct Known {
    stream: Box<dyn Duplex>,
    peer: Peer,
    /// Free for others once the connection is gone.
    _place: Place,
}

impl Known {
    /// One that is not secured.
    pub(super) fn plain(connection: Connection, place: Place) -> Self {
        let peer = Peer { is_secure: false, certificate: None, address: connection.address() };
        Self { stream: Box::new(connection), peer, _place: place }
    }
}

impl Connected for Known {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Known {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Known {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Secures what comes in and hands it on; never ends by itself.
pub(super) async fn secure(
    (mut incoming, room): (Incoming, Room),
    acceptor: TlsAcceptor,
    known: mpsc::Sender<io::Result<Known>>,
) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            Some(Ok(connection)) = incoming.next(), if handshakes.len() < MOST => {
                if let Some(place) = let_in(&room) {
                    handshakes.spawn(shake_hands(connection, (room.clone(), place), acceptor.clone(), known.clone()));
                }
            }
            Some(_) = handshakes.join_next() => {}
        }
    }
}

pub(crate) fn acceptor(credentials: &Arc<Credentials>) -> Result<TlsAcceptor, TrustError> {
    Ok(TlsAcceptor::from(Arc::new(credentials.server_config()?)))
}

async fn shake_hands(
    connection: Connection,
    place: (Room, Place),
    acceptor: TlsAcceptor,
    known: mpsc::Sender<io::Result<Known>>,
) {
    let address = connection.address();
    match tokio::time::timeout(DEADLINE, handshake(connection, place, acceptor)).await {
        Ok(Ok(connection)) => {
            // The server has ended if nobody takes it.
            let _ = known.send(Ok(connection)).await;
        }
        Ok(Err(error)) => REFUSED.warn(|| format!("connection of {} refused: {error}", told(address))),
        Err(_) => tracing::debug!(peer = ?address, "connection given up: the handshake takes too long"),
    }
}

/// Where a connection comes from, for people.
fn told(address: Option<SocketAddr>) -> String {
    address.map_or("somebody".to_owned(), |address| address.to_string())
}

async fn handshake(
    mut connection: Connection,
    (room, place): (Room, Place),
    acceptor: TlsAcceptor,
) -> Result<Known, TrustError> {
    let address = connection.address();
    let first = connection.first_byte().await;
    let first = first.map_err(|error| TrustError::Handshake(error.to_string()))?;
    if first != TLS_HANDSHAKE {
        // Who speaks plain HTTP/2 can be told what is wrong; to anybody else it is noise.
        let _ = say_farewell(&mut connection).await;
        return Err(TrustError::Handshake("the other side does not speak TLS, and this run does".to_owned()));
    }
    let stream = acceptor.accept(connection).await.map_err(|error| TrustError::of_handshake(&error))?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = shown.map(|der| PeerCertificate::parse(der)).transpose()?;
    let place = match certificate {
        Some(_) => place,
        None => room
            .as_stranger(place, address.map(|address| address.ip()))
            .map_err(|full| TrustError::Handshake(full.to_string()))?,
    };
    let end = certificate.clone();
    let end = async move {
        match end {
            Some(certificate) => expiry(certificate).await,
            None => {
                tokio::time::sleep(STRANGERS_TIME).await;
                "who shows no certificate has a minute"
            }
        }
    };
    let peer = Peer { is_secure: true, certificate: certificate.map(Arc::new), address };
    let stream = Ending::new(Introduced::new(stream), Vec::new(), end);
    Ok(Known { stream: Box::new(stream), peer, _place: place })
}

/// Lets a plain client of HTTP/2 make one call, which then fails with the reason; before it makes one, it would only see that
/// the connection is gone.
async fn say_farewell(connection: &mut Connection) -> io::Result<()> {
    const PREFACE_BYTES: usize = 24;
    const MOST_FRAME_BYTES: usize = 16 * 1024;
    const HEADERS: u8 = 1;
    let mut buffer = vec![0; MOST_FRAME_BYTES];
    connection.write_all(&frame(SETTINGS, &[])).await?;
    connection.read_exact(&mut buffer[..PREFACE_BYTES]).await?;
    loop {
        let mut header = [0; 9];
        connection.read_exact(&mut header).await?;
        let [a, b, c, kind, ..] = header;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let payload = buffer.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
        connection.read_exact(payload).await?;
        if kind == HEADERS {
            break;
        }
    }
    connection.write_all(&frame(GOAWAY, &farewell())).await?;
    connection.shutdown().await?;
    // What is still coming would have the system take back what was said.
    while connection.read(&mut buffer).await? > 0 {}
    Ok(())
}

const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// A frame of HTTP/2 about the connection.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(payload);
    frame
}

/// The end of a connection on which no call was served, and the reason.
fn farewell() -> Vec<u8> {
    const INADEQUATE_SECURITY: u32 = 12;
    let mut payload = vec![0; 4];
    payload.extend_from_slice(&INADEQUATE_SECURITY.to_be_bytes());
    payload.extend_from_slice(SPEAKS_TLS.as_bytes());
    payload
}
