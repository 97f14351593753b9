//! A connection ends with the certificates that it was made with.

use super::{Credentials, PeerCertificate};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How often the clock is asked, which may be set and which a suspended host passes over.
const LOOK: Duration = Duration::from_secs(30);

/// A stream that breaks once `end` resolves, with the reason that it gives.
pub(crate) struct Ending<S> {
    stream: S,
    end: Pin<Box<dyn Future<Output = &'static str> + Send>>,
    /// What was read before, and not handed on.
    first: Vec<u8>,
}

impl<S> Ending<S> {
    pub(crate) fn new(
        stream: S,
        first: Vec<u8>,
        end: impl Future<Output = &'static str> + Send + 'static,
    ) -> Self {
        Self { stream, end: Box::pin(end), first }
    }
}

/// A peer whose certificate has ended is heard for so long, to be told.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Resolves when the peer's certificate ends.
pub(crate) async fn expiry(certificate: PeerCertificate) -> &'static str {
    let end = certificate.not_after.max(SystemTime::now() + LAST_WORDS);
    while let Ok(left) = end.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(LOOK) + Duration::from_millis(1)).await;
    }
    "the certificate of the other side has ended"
}

/// Resolves when a process shows another certificate than now.
pub(crate) fn own_renewal(credentials: &Credentials) -> impl Future<Output = &'static str> + Send + 'static {
    let mut changes = credentials.changes();
    changes.mark_unchanged();
    async move {
        match changes.changed().await {
            Ok(()) => "this process has a new certificate",
            // Nobody is left who could renew it.
            Err(_) => std::future::pending().await,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ending<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let n = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first[..n]);
            self.first.drain(..n);
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(reason) = self.end.as_mut().poll(context) {
            // Never again, in case it is read once more.
            self.end = Box::pin(std::future::ready(reason));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason)));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ending<S> {
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
