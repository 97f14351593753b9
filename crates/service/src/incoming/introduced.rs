//! A stream whose other side has to introduce itself in time: whoever connects and says nothing would be kept for ever.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// Bytes by which a client of HTTP/2 introduces itself.
const PREFACE_BYTES: usize = 24;
/// How long that may take; afterwards keep-alive finds out who is gone.
const PREFACE_DEADLINE: Duration = Duration::from_secs(20);

/// A connection as it was accepted.
pub(crate) type Connection = Introduced<TcpStream>;

/// A stream, in plain text or decrypted: bytes of a handshake introduce nobody.
pub(crate) struct Introduced<S> {
    stream: S,
    /// When it is given up; `None` once enough has come.
    deadline: Option<Pin<Box<Sleep>>>,
    n_bytes: usize,
}

impl<S> Introduced<S> {
    /// A stream whose time begins now.
    pub(super) fn new(stream: S) -> Self {
        let deadline = Some(Box::pin(tokio::time::sleep(PREFACE_DEADLINE)));
        Self { stream, deadline, n_bytes: 0 }
    }

    #[cfg(test)]
    pub(super) fn get_ref(&self) -> &S {
        &self.stream
    }

    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the other side says nothing")))
    }
}

impl Introduced<TcpStream> {
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
}

impl<S: AsyncRead + Unpin> AsyncRead for Introduced<S> {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Introduced<S> {
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn who_says_too_little_is_given_up_and_who_introduced_himself_is_not() {
        for (greeting, is_given_up) in [(&[][..], true), (&[7; 23], true), (&[7; 24], false)] {
            let (server, mut client) = duplex(64);
            let mut server = Introduced::new(server);
            client.write_all(greeting).await.expect("sent");
            let mut bytes = [0; 24];
            server.read_exact(&mut bytes[..greeting.len()]).await.expect("what was sent");
            let more = tokio::time::timeout(PREFACE_DEADLINE * 2, server.read(&mut bytes)).await;
            let error = more.ok().and_then(Result::err);
            assert_eq!(error.map(|error| error.kind()), is_given_up.then_some(io::ErrorKind::TimedOut));
        }
    }
}
