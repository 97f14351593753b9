//! How servers take connections: each without Nagle's delay, none that says nothing, no more than there is room for, and with
//! pauses while there are no more file descriptors.

mod handshake;
mod introduced;
mod room;

use crate::ServiceError;
use crate::backoff;
use crate::connect::Router;
use crate::limited_log::LimitedLog;
use crate::trust::Trust;
use handshake::{Known, acceptor, secure};
use protocol::Backoff;
use room::{Place, Room};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub(crate) use introduced::Connection;

/// Connections for which there was no room.
static NO_ROOM: LimitedLog = LimitedLog::new();

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
    let (incoming, room) = (Incoming::new(listener), Room::of_process());
    let served = match trust {
        Trust::Plain(_) => {
            let known = incoming.filter_map(|connection| match connection {
                Ok(connection) => let_in(&room).map(|place| Ok(Known::plain(connection, place))),
                Err(error) => Some(Err(error)),
            });
            router.serve_with_incoming_shutdown(known, stop).await
        }
        Trust::Mutual(credentials) => {
            let (sender, receiver) = mpsc::channel(1);
            let securing = secure((incoming, room), acceptor(&credentials)?, sender);
            let serving = router.serve_with_incoming_shutdown(ReceiverStream::new(receiver), stop);
            tokio::select! {
                served = serving => served,
                () = securing => unreachable!("connections come for ever; anything else is a bug"),
            }
        }
    };
    Ok(served?)
}

/// A place for one more connection; where there is none, whoever reads the log hears of it.
fn let_in(room: &Room) -> Option<Place> {
    room.enter().inspect_err(|full| NO_ROOM.warn(|| format!("connection refused: {full}"))).ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn accepted() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let server = Incoming::new(listener).next().await.expect("never ends").expect("accepted");
        (server, client)
    }

    #[tokio::test]
    async fn accepted_connections_send_at_once() {
        let (server, client) = accepted().await;
        assert!(server.get_ref().nodelay().expect("an option of the socket"));
        assert!(!client.nodelay().expect("an option of the socket"), "by default they do not");
    }
}
