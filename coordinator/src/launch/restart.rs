//! Whether and when a process that ended is started again: a decision without I/O.

use std::time::Duration;

/// Deaths in a row without finished work after which a member is given up.
const MAX_IDLE_DEATHS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessEnd {
    /// Whether it got something done.
    pub has_worked: bool,
    /// Whether it said goodbye and ended in good order, because it was told to.
    pub is_announced: bool,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
}

/// What follows from the end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartDecision {
    /// Start it again after a pause.
    After(Duration),
    /// Starting it again does not help: it was given bad input.
    GiveUp,
    /// Starting it again has not helped so often that it will not.
    SetAside,
}

/// The recent ends of one member's processes.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestartHistory {
    idle_deaths: u32,
}

impl RestartHistory {
    /// Whether another end without work sets the member aside at once.
    pub fn is_exhausted(&self) -> bool {
        self.idle_deaths >= MAX_IDLE_DEATHS
    }

    /// Takes note of an end and decides. How long the process lived is no sign of its health: loading a large model takes
    /// longer than many a life.
    pub fn decide(&mut self, end: ProcessEnd) -> RestartDecision {
        if end.code == Some(service::exit_code::BAD_USAGE.into()) {
            return RestartDecision::GiveUp;
        }
        if end.has_worked {
            self.idle_deaths = 0;
        }
        self.idle_deaths += u32::from(!end.is_announced);
        if self.is_exhausted() {
            return RestartDecision::SetAside;
        }
        let doublings = self.idle_deaths.saturating_sub(1);
        RestartDecision::After((FIRST_PAUSE * 2u32.pow(doublings)).min(LONGEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEATH: ProcessEnd = ProcessEnd { has_worked: false, is_announced: false, code: Some(1) };

    #[test]
    fn pauses_grow_until_a_member_is_set_aside() {
        let mut history = RestartHistory::default();
        let mut pauses = Vec::new();
        while let RestartDecision::After(pause) = history.decide(DEATH) {
            pauses.push(pause);
        }
        assert_eq!(pauses.len() as u32, MAX_IDLE_DEATHS - 1);
        assert!(pauses.windows(2).all(|pair| pair[1] == pair[0] * 2), "{pauses:?}");
        assert_eq!(history.decide(DEATH), RestartDecision::SetAside);
    }

    #[test]
    fn a_member_that_works_or_was_told_to_end_is_started_for_ever() {
        let mut history = RestartHistory::default();
        for _ in 0..100 {
            let worked = ProcessEnd { has_worked: true, code: None, ..DEATH };
            assert_eq!(history.decide(worked), RestartDecision::After(FIRST_PAUSE));
            let told = ProcessEnd { is_announced: true, code: Some(75), ..DEATH };
            assert_eq!(history.decide(told), RestartDecision::After(FIRST_PAUSE));
        }
    }

    #[test]
    fn bad_input_is_not_tried_twice() {
        let end = ProcessEnd { has_worked: true, code: Some(2), ..DEATH };
        assert_eq!(RestartHistory::default().decide(end), RestartDecision::GiveUp);
    }
}
