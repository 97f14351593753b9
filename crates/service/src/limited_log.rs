//! Lines of the log that strangers cause: so many a minute, and a count of those that were left out. A log has no size at which it
//! ends, and the disk that it is on is the run's.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines of one cause in a minute.
const MOST: u32 = 30;
const MINUTE: Duration = Duration::from_secs(60);

/// Counts the lines of one cause.
pub(crate) struct LimitedLog {
    minute: Mutex<Option<Minute>>,
}

struct Minute {
    since: Instant,
    n_lines: u32,
    n_left_out: u64,
}

impl LimitedLog {
    /// No line yet.
    pub(crate) const fn new() -> Self {
        Self { minute: Mutex::new(None) }
    }

    /// Whether a line may be written now, and if so how many were left out since the last that was.
    pub(crate) fn turn(&self, now: Instant) -> Option<u64> {
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        let minute = minute.get_or_insert(Minute { since: now, n_lines: 0, n_left_out: 0 });
        if now.saturating_duration_since(minute.since) >= MINUTE {
            (minute.since, minute.n_lines) = (now, 0);
        }
        if minute.n_lines == MOST {
            minute.n_left_out += 1;
            return None;
        }
        minute.n_lines += 1;
        Some(std::mem::take(&mut minute.n_left_out))
    }

    /// Writes a warning if one may be written now.
    pub(crate) fn warn(&self, message: impl FnOnce() -> String) {
        match self.turn(Instant::now()) {
            Some(0) => tracing::warn!("{}", message()),
            Some(n_left_out) => tracing::warn!(n_left_out, "{}", message()),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_so_many_lines_and_the_next_says_how_many_were_left_out() {
        let (log, start) = (LimitedLog::new(), Instant::now());
        let written = (0..1000).filter(|_| log.turn(start) == Some(0)).count();
        assert_eq!(written, MOST as usize);
        assert_eq!(log.turn(start + MINUTE - Duration::from_millis(1)), None);
        assert_eq!(log.turn(start + MINUTE), Some(1000 - u64::from(MOST) + 1));
        assert_eq!(log.turn(start + MINUTE), Some(0));
    }
}
