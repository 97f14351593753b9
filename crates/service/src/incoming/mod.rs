//! How servers take connections: each without Nagle's delay, none that says nothing, and with pauses while there are no
//! more file descriptors.

mod handshake;

use crate::ServiceError;
use crate::backoff;
use crate::connect::Router;
use crate::trust::Trust;
use handshake::{Known, acceptor, secure};
use protocol::Backoff;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

/// Bytes by which a client of HTTP/2 introduces itself.
const PREFACE_BYTES: usize = 24;
/// How long that may take; afterwards keep-alive finds out who is gone.
const PREFACE_DEADLINE: Duration = Duration::from_secs(20);
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Serves what comes to `listener`, secured by `trust`, until `stop` resolves and all calls are answered.
///
/// # Errors
/// If the server breaks, cannot show who it is, or would serve others in plain text unwished; a connection that cannot be taken does not break it.
pub async fn serve(
    router: Router,
    listener: TcpListener,
    trust: Trust,
    stop: impl Future<Output = ()>,
) -> Result<(), ServiceError> {
    trust.check_listener(&listener)?;
    let incoming = Incoming::new(listener);
    let served = match trust {
        Trust::Plain(_) => {
            let known = incoming.map(|connection| connection.map(Known::plain));
            router.serve_with_incoming_shutdown(known, stop).await
        }
        Trust::Mutual(credentials) => {
            let (sender, receiver) = mpsc::channel(1);
            let securing = secure(incoming, acceptor(&credentials)?, sender);
            let serving = router.serve_with_incoming_shutdown(ReceiverStream::new(receiver), stop);
            tokio::select! {
                served = serving => served,
                () = securing => unreachable!("connections come for ever; anything else is a bug"),
            }
        }
    };
    Ok(served?)
}

/// The connections that come to a listener; never ends.
pub(crate) struct Incoming {
    listener: TcpListener,
    backoff: Backoff,
    /// Until then nothing is accepted, since the last attempt failed.
    pause: Option<Pin<Box<Sleep>>>,
    is_failing: bool,
}

impl Incoming {
    pub(crate) fn new(listener: TcpListener) -> Self {
        Self { listener, backoff: patience(), pause: None, is_failing: false }
    }

    fn accepted(&mut self, stream: TcpStream) -> Connection {
        if std::mem::take(&mut self.is_failing) {
            tracing::info!("connections are accepted again");
            self.backoff = patience();
        }
        if let Err(error) = stream.set_nodelay(true) {
            // The peer is gone already, as reading will tell.
            tracing::debug!("TCP_NODELAY: {error}");
        }
        Connection::new(stream)
    }

    /// The listener stays readable, so that trying again at once would keep a core busy.
    fn failed(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(
                "cannot accept connections, trying on: {error}; where files are too many, raise `ulimit -n`"
            );
        }
        self.pause = Some(Box::pin(tokio::time::sleep(self.backoff.next_pause())));
    }
}

fn patience() -> Backoff {
    backoff(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// Whether only the connection that was next is lost.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(context)) {
                Ok((stream, _)) => return Poll::Ready(Some(Ok(self.accepted(stream)))),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => self.failed(&error),
            }
        }
    }
}

/// A connection whose other side has to introduce itself in time.
pub(crate) struct Connection {
    stream: TcpStream,
    /// When it is given up; `None` once enough has come.
    deadline: Option<Pin<Box<Sleep>>>,
    n_bytes: usize,
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        let deadline = Some(Box::pin(tokio::time::sleep(PREFACE_DEADLINE)));
        Self { stream, deadline, n_bytes: 0 }
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }

    /// The first byte, which is read again afterwards.
    pub(crate) async fn first_byte(&self) -> io::Result<u8> {
        let mut first = [0];
        match self.stream.peek(&mut first).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(first[0]),
        }
    }

    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the other side says nothing")))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n_before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending => self.poll_deadline(context),
            done => {
                self.n_bytes = self.n_bytes.saturating_add(buffer.filled().len() - n_before);
                if self.n_bytes >= PREFACE_BYTES {
                    self.deadline = None;
                }
                done
            }
        }
    }
}

impl AsyncWrite for Connection {
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn accepted() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let server = Incoming::new(listener).next().await.expect("never ends").expect("accepted");
        (server, client)
    }

    #[tokio::test]
    async fn accepted_connections_send_at_once() {
        let (server, client) = accepted().await;
        assert!(server.stream.nodelay().expect("an option of the socket"));
        assert!(!client.nodelay().expect("an option of the socket"), "by default they do not");
    }

    #[tokio::test]
    async fn who_says_too_little_is_given_up_and_who_introduced_himself_is_not() {
        for (greeting, is_given_up) in [(&[][..], true), (&[7; 23], true), (&[7; 24], false)] {
            let (mut server, mut client) = accepted().await;
            client.write_all(greeting).await.expect("sent");
            client.flush().await.expect("sent");
            let mut bytes = [0; 24];
            server.read_exact(&mut bytes[..greeting.len()]).await.expect("what was sent");
            tokio::time::pause();
            let more = tokio::time::timeout(PREFACE_DEADLINE * 2, server.read(&mut bytes)).await;
            let error = more.ok().and_then(Result::err);
            assert_eq!(error.map(|error| error.kind()), is_given_up.then_some(io::ErrorKind::TimedOut));
            tokio::time::resume();
        }
    }
}
