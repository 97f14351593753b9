//! Streams of which every message has a deadline.
//!
//! Whoever opens a stream and sends nothing, or next to nothing, must not keep what the other side set aside for it. Only
//! the time that is spent waiting for the sender counts, not the time that the receiver takes between two messages.

use prost::Message;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

/// How long the first message, and each one after it, may take.
pub const NEXT_MESSAGE: Duration = Duration::from_secs(20);
/// Bytes a second that a stream must come to, over its whole length and beyond the time for one message.
const SLOWEST: f64 = 128.0 * 1024.0;

/// The messages of a stream, each of which must come in time.
#[derive(Debug)]
pub struct Timely<S> {
    messages: S,
    waited: Duration,
    n_bytes: usize,
}

impl<S, T> Timely<S>
where
    S: Stream<Item = Result<T, Status>> + Unpin,
    T: Message,
{
    /// A stream that has just been opened.
    pub fn new(messages: S) -> Self {
        Self { messages, waited: Duration::ZERO, n_bytes: 0 }
    }

    /// The next message, or `None` at the end of the stream. May be dropped while it waits; then nothing is lost.
    ///
    /// # Errors
    /// The stream's own, or `DEADLINE_EXCEEDED` if it stands still or is too slow.
    pub async fn next(&mut self) -> Result<Option<T>, Status> {
        let start = Instant::now();
        let message = tokio::time::timeout(self.allowed(), self.messages.next()).await;
        self.waited += start.elapsed();
        let message = message.map_err(|_| self.too_slow())?.transpose()?;
        self.n_bytes += message.as_ref().map_or(0, Message::encoded_len);
        Ok(message)
    }

    /// How long the next message may take: less than usual if those before it were slow.
    fn allowed(&self) -> Duration {
        let earned = NEXT_MESSAGE + Duration::from_secs_f64(self.n_bytes as f64 / SLOWEST);
        earned.saturating_sub(self.waited).min(NEXT_MESSAGE)
    }

    fn too_slow(&self) -> Status {
        Status::deadline_exceeded(format!(
            "the stream stands still: {} bytes came in {:.0} s",
            self.n_bytes,
            self.waited.as_secs_f64()
        ))
    }
}

/// The messages of an answer. Whoever does not take the next within `patience` gets no more of them, and they and what they
/// hold on to are dropped, all but one.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn taken_in_time<T: Send + 'static>(
    mut messages: impl Iterator<Item = T> + Send + 'static,
    patience: Duration,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
    // One message ahead of the network, which has buffers of its own.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let Some(message) = messages.next() else { return };
            match tokio::time::timeout(patience, sender.send(Ok(message))).await {
                Ok(Ok(())) => {}
                // The call has ended.
                Ok(Err(_)) => return,
                Err(_) => break,
            }
        }
        drop(messages);
        let reason = format!("nothing was taken for {} s", patience.as_secs_f64());
        let _ = sender.send(Err(Status::deadline_exceeded(reason))).await;
    });
    ReceiverStream::new(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Chunk;
    use std::sync::Arc;
    use tonic::Code;

    fn chunk(n_bytes: usize) -> Chunk {
        Chunk { data: vec![0; n_bytes].into(), ..Chunk::default() }
    }

    /// Messages of that many bytes, each after a pause.
    fn stream(pause: Duration, n_bytes: usize) -> impl Stream<Item = Result<Chunk, Status>> + Unpin {
        let messages = tokio_stream::iter(std::iter::repeat_with(move || Ok(chunk(n_bytes))));
        Box::pin(messages.then(move |message| async move {
            tokio::time::sleep(pause).await;
            message
        }))
    }

    /// How long a stream is listened to, and what ends it, an hour at most.
    async fn life(messages: impl Stream<Item = Result<Chunk, Status>> + Unpin) -> (f64, Option<Code>) {
        let (start, mut timely) = (Instant::now(), Timely::new(messages));
        while start.elapsed() < Duration::from_secs(3600) {
            match timely.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return (start.elapsed().as_secs_f64(), None),
                Err(status) => return (start.elapsed().as_secs_f64(), Some(status.code())),
            }
        }
        (3600.0, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_stands_still_ends() {
        let (seconds, code) = life(tokio_stream::pending()).await;
        assert_eq!((seconds.round(), code), (20.0, Some(Code::DeadlineExceeded)));
        let one = tokio_stream::once(Ok(chunk(9))).chain(tokio_stream::pending());
        assert_eq!(life(one).await.1, Some(Code::DeadlineExceeded));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_trickles_ends_and_one_that_flows_does_not() {
        let (seconds, code) = life(stream(Duration::from_secs(5), 1)).await;
        assert!(seconds <= 25.0 && code == Some(Code::DeadlineExceeded), "{seconds} {code:?}");
        assert_eq!(life(stream(Duration::from_secs(5), 1 << 20)).await, (3600.0, None));
        assert_eq!(life(tokio_stream::empty()).await, (0.0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn the_receivers_own_time_does_not_count() {
        let mut timely = Timely::new(stream(Duration::from_millis(1), 1));
        for _ in 0..5 {
            timely.next().await.expect("in time").expect("a message");
            tokio::time::sleep(NEXT_MESSAGE).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_taken_in_time_is_dropped() {
        let kept = Arc::new(());
        let holding = kept.clone();
        let messages = (0..9).map(move |number| (number, holding.clone()).0);
        let mut stream = Box::pin(taken_in_time(messages, Duration::from_secs(60)));
        assert_eq!(stream.next().await.expect("a message").expect("in time"), 0);
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert_eq!(stream.next().await.expect("a message").expect("in time"), 1);
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(Arc::strong_count(&kept), 1, "nothing holds on to the rest");
        let rest: Vec<_> = stream.collect().await;
        assert!(rest[0].is_ok() && rest.len() == 2, "{rest:?}");
        assert_eq!(rest[1].as_ref().expect_err("too late").code(), Code::DeadlineExceeded);
        let all: Vec<_> = taken_in_time(0..9, Duration::from_secs(60)).collect().await;
        assert_eq!(
            all.into_iter().collect::<Result<Vec<_>, _>>().expect("taken"),
            (0..9).collect::<Vec<_>>()
        );
    }
}
