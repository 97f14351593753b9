//! What has to be told of each fault, and what was told so far. Pure.

use std::collections::BTreeMap;

use super::lies::LIES;
use super::schedule::Fault;

/// How often each event was told, by event and cause.
pub type EventCounts = BTreeMap<(String, String), usize>;

/// What has to be found of a fault.
pub(super) enum Evidence {
    /// One of these events with one of these causes, in `events.jsonl` and among the coordinator's metrics.
    Event(&'static [(&'static str, &'static str)]),
    /// All of these, once more than before, in what a process says or `events.jsonl` gives as a reason.
    Words(Vec<&'static str>),
    /// Nothing: who bears a fault without losing anything has nothing to tell. That the fault was there is seen to where it
    /// is made.
    Nothing,
}

/// What a worker that asks for scores in vain is said to be over, once it does no longer.
const SCORES_AGAIN: &str = "this is over: tasks wait for reward `shapes`";
/// What is said of it before.
pub(super) const NO_SCORES: &str = ": tasks wait for reward `shapes`";

pub(super) fn evidence(fault: Fault) -> Evidence {
    const LOST: &[(&str, &str)] = &[("member_lost", "silent")];
    match fault {
        Fault::KillWorker => Evidence::Event(&[("member_joined", "replaced"), ("member_lost", "silent")]),
        Fault::StopWorker | Fault::Cut | Fault::CutTowardsHost | Fault::CutFromHost => Evidence::Event(LOST),
        Fault::KillLearner | Fault::StopLearner => Evidence::Event(&[("process_ended", "restarted")]),
        Fault::KillCoordinator => Evidence::Event(&[("member_joined", "new")]),
        Fault::SlowNetwork | Fault::DamagedPackets | Fault::DamagedStream | Fault::FrozenDisk => {
            Evidence::Nothing
        }
        Fault::FullDisk => Evidence::Words(vec!["No space left"]),
        Fault::ReadOnlyDisk => Evidence::Words(vec!["Read-only file system"]),
        Fault::DamagedCheckpoint => Evidence::Words(vec!["damaged checkpoint passed over"]),
        Fault::RewardServerDown | Fault::RewardServerHung => Evidence::Words(vec![SCORES_AGAIN]),
        Fault::RewardServerLies => {
            Evidence::Words(LIES.iter().map(|lie| lie.refusal()).chain([SCORES_AGAIN]).collect())
        }
    }
}

/// All that was told until some moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// Rows of `events.jsonl`.
    pub events: EventCounts,
    /// The coordinator's page of metrics.
    pub page: String,
    /// What processes said, and the text of `events.jsonl`.
    pub words: String,
}

impl Told {
    /// What is missing of a fault beyond what was told `before` it; nothing once it is told where it has to be.
    pub(super) fn missing(&self, fault: Fault, before: &Self) -> Vec<String> {
        match evidence(fault) {
            Evidence::Nothing => Vec::new(),
            Evidence::Words(words) => {
                let grew =
                    |words: &str| self.words.matches(words).count() > before.words.matches(words).count();
                words.into_iter().filter(|words| !grew(words)).map(str::to_owned).collect()
            }
            Evidence::Event(known) => {
                // What a coordinator that was started again counts, it counts from nothing.
                let counted = |event: &str, cause: &str| match fault {
                    Fault::KillCoordinator => 0.0,
                    _ => before.counted(event, cause),
                };
                let is_told = |(event, cause): &(&str, &str)| {
                    let key = ((*event).to_owned(), (*cause).to_owned());
                    self.events.get(&key) > before.events.get(&key)
                        && self.counted(event, cause) > counted(event, cause)
                };
                match known.iter().any(is_told) {
                    true => Vec::new(),
                    false => known.iter().map(|(event, cause)| format!("{event} {cause}")).collect(),
                }
            }
        }
    }

    /// How often a metric says that something was decided.
    fn counted(&self, event: &str, cause: &str) -> f64 {
        let series = format!("tempflow_events_total{{event=\"{event}\",cause=\"{cause}\"}} ");
        let value = self.page.lines().find_map(|line| line.strip_prefix(series.as_str()));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::FAULTS;
    use super::*;

    fn told(n_events: usize, page: usize, words: &str) -> Told {
        let key = |event: &str, cause: &str| (event.to_owned(), cause.to_owned());
        let events = [("member_lost", "silent"), ("process_ended", "restarted"), ("member_joined", "new")];
        Told {
            events: events.map(|(event, cause)| (key(event, cause), n_events)).into(),
            page: events
                .map(|(event, cause)| {
                    format!("tempflow_events_total{{event=\"{event}\",cause=\"{cause}\"}} {page}\n")
                })
                .concat(),
            words: words.to_owned(),
        }
    }

    #[test]
    fn what_was_told_before_a_fault_is_no_evidence_of_it() {
        let all = "No space left; Read-only file system; damaged checkpoint passed over; this is over: tasks wait for reward \
                   `shapes`";
        let before = told(3, 3, all);
        for fault in FAULTS {
            let is_silent = matches!(evidence(fault), Evidence::Nothing);
            // A coordinator that starts anew counts from nothing; then only the file tells what is new.
            assert_eq!(before.missing(fault, &before).is_empty(), is_silent, "{fault:?}");
        }
    }

    #[test]
    fn an_event_has_to_be_in_the_file_and_among_the_metrics() {
        let before = told(3, 3, "");
        let missing = |now: Told| now.missing(Fault::Cut, &before).len();
        assert_eq!([told(4, 4, ""), told(4, 3, ""), told(3, 4, "")].map(missing), [0, 1, 1]);
        assert!(told(4, 1, "").missing(Fault::KillCoordinator, &before).is_empty());
    }

    #[test]
    fn every_lie_has_to_be_refused_in_its_own_words() {
        let mut words: Vec<&str> = LIES.iter().map(|lie| lie.refusal()).collect();
        words.push(SCORES_AGAIN);
        let missing = |words: &[&str]| {
            told(0, 0, &words.join("\n")).missing(Fault::RewardServerLies, &Told::default()).len()
        };
        assert_eq!((missing(&words), missing(&words[1..]), missing(&[])), (0, 1, LIES.len() + 1));
    }
}
