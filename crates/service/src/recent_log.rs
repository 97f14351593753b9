//! The last lines that a process has logged, for who asks from another host.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing_subscriber::fmt::MakeWriter;

/// Most bytes that are kept, and told.
pub const RECENT_LOG_BYTES: usize = 64 * 1024;

/// The last lines of a log, kept beside wherever they go.
#[derive(Clone, Debug, Default)]
pub struct RecentLog {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Each what was written at once: a line, or several of one message.
    messages: VecDeque<Vec<u8>>,
    n_bytes: usize,
    /// Bytes of all messages so far, those that are kept no more included.
    end: u64,
}

/// What is told of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToldLog {
    /// At most [`RECENT_LOG_BYTES`].
    pub text: Vec<u8>,
    /// Bytes that were logged up to the end of the text.
    pub end: u64,
    /// Bytes before the text that were asked for and are kept no more.
    pub missed: u64,
}

impl RecentLog {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a message, without colours; of a very long one its beginning.
    fn keep(&self, message: &[u8]) {
        let mut message = without_colours(message);
        message.truncate(RECENT_LOG_BYTES);
        let mut kept = self.kept();
        kept.n_bytes += message.len();
        kept.end += message.len() as u64;
        kept.messages.push_back(message);
        while kept.n_bytes > RECENT_LOG_BYTES {
            let Some(oldest) = kept.messages.pop_front() else { return };
            kept.n_bytes -= oldest.len();
        }
    }

    /// The last lines, `n` at most.
    pub fn last_lines(&self, n: usize) -> ToldLog {
        let ToldLog { text, end, .. } = self.since(0);
        let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
        ToldLog { text: lines[lines.len().saturating_sub(n)..].concat(), end, missed: 0 }
    }

    /// What was logged from byte `from` on; all that is kept where there are not so many.
    pub fn since(&self, from: u64) -> ToldLog {
        let kept = self.kept();
        let begin = kept.end - kept.n_bytes as u64;
        let from = if from > kept.end { begin } else { from };
        let n_known = from.saturating_sub(begin) as usize;
        let text = kept.messages.iter().flatten().skip(n_known).copied().collect();
        ToldLog { text, end: kept.end, missed: begin.saturating_sub(from) }
    }
}

/// Takes out the sequences by which a terminal is told of colours, `ESC [ … letter`.
fn without_colours(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            0x1b => {
                let _letter = bytes.by_ref().find(u8::is_ascii_alphabetic);
            }
            byte => plain.push(byte),
        }
    }
    plain
}

/// Writes to both.
pub(crate) struct Keeping<W> {
    pub(crate) recent: RecentLog,
    pub(crate) output: W,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Keeping<W> {
    type Writer = KeepingWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        KeepingWriter { recent: self.recent.clone(), output: self.output.make_writer() }
    }
}

/// One message on its way to both.
pub(crate) struct KeepingWriter<W> {
    recent: RecentLog,
    output: W,
}

impl<W: Write> Write for KeepingWriter<W> {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        // Kept first: where standard error is closed, others may still ask.
        self.recent.keep(message);
        self.output.write_all(message)?;
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_without_colours_and_never_too_many() {
        let log = RecentLog::default();
        assert_eq!(log.last_lines(3), ToldLog::default());
        log.keep(b"\x1b[2m2026\x1b[0m one\n");
        log.keep(b"two\nof two lines\n");
        assert_eq!(log.last_lines(9).text, b"2026 one\ntwo\nof two lines\n");
        assert_eq!(log.last_lines(1).text, b"of two lines\n");
        (0..10_000).for_each(|count| log.keep(format!("line {count} of many\n").as_bytes()));
        let kept = log.last_lines(usize::MAX).text;
        assert!(kept.len() <= RECENT_LOG_BYTES && kept.ends_with(b"line 9999 of many\n"));
        log.keep(&vec![b'x'; 2 * RECENT_LOG_BYTES]);
        assert_eq!(log.last_lines(usize::MAX).text.len(), RECENT_LOG_BYTES);
    }

    #[test]
    fn who_follows_a_log_is_told_what_came_since_and_how_much_is_gone() {
        let log = RecentLog::default();
        log.keep(b"one\n");
        let ToldLog { text, end, missed } = log.last_lines(0);
        assert_eq!((text.as_slice(), end, missed), (&b""[..], 4, 0));
        assert_eq!(log.since(end), ToldLog { end, ..ToldLog::default() });
        log.keep(b"two\n");
        assert_eq!(log.since(end), ToldLog { text: b"two\n".to_vec(), end: 8, missed: 0 });
        assert_eq!(log.since(9).text, b"one\ntwo\n", "of a process before");
        (0..20_000).for_each(|_| log.keep(b"many\n"));
        let told = log.since(8);
        assert_eq!((told.end, told.missed + told.text.len() as u64), (100_008, 100_000));
        assert!(told.missed > 0 && told.text.starts_with(b"many\n"));
    }
}
