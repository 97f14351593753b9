//! Following the logs of members elsewhere, for whoever prints them: round after round, each once the one before is printed.

use crate::log_questions::FollowedLogs;
use proto::{MemberLog, MemberLogsRequest};
use std::future::Future;
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TryRecvError};

/// Between two rounds. Members answer with their heartbeats, about every second.
const PAUSE: Duration = Duration::from_millis(500);

/// What is asked about the logs of members elsewhere.
pub trait TellsLogs: Send + 'static {
    /// What they log; `None` once the run has ended.
    fn tell(&mut self, request: MemberLogsRequest) -> impl Future<Output = Option<Vec<MemberLog>>> + Send;
}

/// What members elsewhere log from now on.
pub struct LogsElsewhere {
    // One round waits, so that who prints slowly has no more than that in memory.
    rounds: Receiver<Vec<MemberLog>>,
}

impl LogsElsewhere {
    /// Follows them after what has been read, on the runtime that this is called on.
    pub fn follow(source: impl TellsLogs, read: FollowedLogs) -> Self {
        let (sender, rounds) = channel(1);
        tokio::spawn(ask(source, read, sender));
        Self { rounds }
    }

    /// What has come since the last look; `None` once nothing will come any more.
    pub fn look(&mut self) -> Option<Vec<MemberLog>> {
        match self.rounds.try_recv() {
            Ok(logs) => Some(logs),
            Err(TryRecvError::Empty) => Some(Vec::new()),
            Err(TryRecvError::Disconnected) => None,
        }
    }
}

async fn ask(mut source: impl TellsLogs, mut read: FollowedLogs, sender: Sender<Vec<MemberLog>>) {
    while !sender.is_closed() {
        let Some(logs) = source.tell(read.request()).await else { return };
        let news = read.read(logs);
        if !news.is_empty() && sender.send(news).await.is_err() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Logs a line a round, and ends after so many.
    struct Logging {
        rounds: Arc<AtomicUsize>,
        most: usize,
    }

    impl TellsLogs for Logging {
        async fn tell(&mut self, _: MemberLogsRequest) -> Option<Vec<MemberLog>> {
            let round = self.rounds.fetch_add(1, Ordering::Relaxed);
            let log = MemberLog { text: format!("{round}\n").into(), ..MemberLog::default() };
            (round < self.most).then(|| vec![log])
        }
    }

    #[tokio::test]
    async fn what_is_not_printed_holds_up_the_next_round_and_an_end_is_seen() {
        let rounds = Arc::<AtomicUsize>::default();
        let logging = |most| Logging { rounds: rounds.clone(), most };
        let mut elsewhere = LogsElsewhere::follow(logging(3), FollowedLogs::from_last(0));
        while rounds.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(PAUSE).await;
        }
        tokio::time::sleep(PAUSE * 3).await;
        assert_eq!(rounds.load(Ordering::Relaxed), 2, "one waits, and one is there to be sent");
        let mut printed = Vec::new();
        while let Some(logs) = elsewhere.look() {
            printed.extend(logs.into_iter().map(|log| log.text));
            tokio::time::sleep(PAUSE).await;
        }
        assert_eq!(printed, ["0\n", "1\n", "2\n"]);
        rounds.store(0, Ordering::Relaxed);
        drop(LogsElsewhere::follow(logging(usize::MAX), FollowedLogs::from_last(0)));
        tokio::time::sleep(PAUSE * 3).await;
        assert!(rounds.load(Ordering::Relaxed) < 2, "nobody asks for nobody");
    }
}
