//! Whether and when a process that ended is started again: a decision without I/O.

use std::time::Duration;

/// A process that lived that long counts as sound, whatever it died of.
const SOUND_LIFE: Duration = Duration::from_secs(30);
/// Short lives in a row after which a member is given up.
const MAX_SHORT_LIVES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What follows from the end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartDecision {
    /// Start it again after a pause.
    After(Duration),
    /// Starting it again does not help.
    GiveUp,
}

/// The recent ends of one member's processes.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestartHistory {
    short_lives: u32,
}

impl RestartHistory {
    /// Takes note of an end and decides; `worked` if the process got something done, `code` is its exit code unless a
    /// signal ended it.
    pub fn decide(&mut self, lived: Duration, worked: bool, code: Option<i32>) -> RestartDecision {
        if code == Some(service::exit_code::BAD_USAGE.into()) {
            return RestartDecision::GiveUp;
        }
        if worked || lived >= SOUND_LIFE {
            self.short_lives = 0;
        }
        self.short_lives += 1;
        if self.short_lives >= MAX_SHORT_LIVES {
            return RestartDecision::GiveUp;
        }
        RestartDecision::After((FIRST_PAUSE * 2u32.pow(self.short_lives - 1)).min(LONGEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_grow_until_a_member_is_given_up() {
        let mut history = RestartHistory::default();
        let mut pauses = Vec::new();
        while let RestartDecision::After(pause) = history.decide(SHORT, false, Some(1)) {
            pauses.push(pause);
        }
        assert_eq!(pauses.len() as u32, MAX_SHORT_LIVES - 1);
        assert!(pauses.windows(2).all(|pair| pair[1] == pair[0] * 2), "{pauses:?}");
    }

    #[test]
    fn a_member_that_works_or_lives_long_is_started_for_ever() {
        let mut history = RestartHistory::default();
        for _ in 0..100 {
            assert_eq!(history.decide(SHORT, true, None), RestartDecision::After(FIRST_PAUSE));
            assert_eq!(history.decide(SOUND_LIFE, false, Some(75)), RestartDecision::After(FIRST_PAUSE));
        }
    }

    #[test]
    fn bad_input_is_not_tried_twice() {
        assert_eq!(RestartHistory::default().decide(SOUND_LIFE, true, Some(2)), RestartDecision::GiveUp);
    }
}
