//! What is asked of members about their logs, which lie where they run. Decisions only.
//!
//! A question is put with every heartbeat of its member until it is answered or closed, so that one that was lost does no harm.
//! It is about the log of one process: what another one of the same name answers is not taken.

use proto::{AskLog, LogPosition, MemberLog, MemberLogsRequest, TellLogRequest};
use std::collections::BTreeMap;
use std::time::Duration;

/// Members whose logs are asked for at a time.
pub const MOST_LOGS: usize = 100;
/// How long their answers are waited for: members ask what is wanted of them every second.
pub const LOG_PATIENCE: Duration = Duration::from_secs(3);
/// Questions that one heartbeat's answer has.
const MOST_AT_ONCE: usize = 16;
/// Processes whose positions are known at a time to one who follows logs.
const MOST_POSITIONS: usize = 1000;

/// Open questions about logs, by their numbers.
#[derive(Clone, Debug, Default)]
pub struct LogQuestions {
    newest: u64,
    open: BTreeMap<u64, LogQuestion>,
}

/// A process that is a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggingMember {
    /// Its name.
    pub member_id: String,
    /// Which process of that name it is.
    pub nonce: Vec<u8>,
}

#[derive(Clone, Debug)]
struct LogQuestion {
    member: LoggingMember,
    lines: u32,
    from: Option<u64>,
    answer: Option<MemberLog>,
}

impl LogQuestions {
    /// Asks a member for what `request` wants of its log, and returns the number of the question.
    pub fn ask(&mut self, member: LoggingMember, request: &MemberLogsRequest) -> u64 {
        self.newest += 1;
        let known = request.seen.iter().find(|seen| seen.member_id == member.member_id);
        // Of a process that nobody has seen anything of, in place of one that somebody has, everything is new.
        let from = known.map(|seen| if seen.nonce[..] == member.nonce[..] { seen.end } else { 0 });
        self.open.insert(self.newest, LogQuestion { member, lines: request.lines, from, answer: None });
        self.newest
    }

    /// Takes a member's answer.
    pub fn told(&mut self, member: &LoggingMember, told: TellLogRequest) {
        let is_asked = |asked: &&mut LogQuestion| asked.member == *member && asked.answer.is_none();
        let Some(asked) = self.open.get_mut(&told.number).filter(is_asked) else { return };
        let mut text = told.text;
        text.truncate(service::RECENT_LOG_BYTES);
        let LoggingMember { member_id, nonce } = member.clone();
        let TellLogRequest { end, missed, .. } = told;
        asked.answer = Some(MemberLog { member_id, text, nonce: nonce.into(), end, missed });
    }

    /// Whether one of these is open and has no answer.
    pub fn is_waiting(&self, numbers: &[u64]) -> bool {
        numbers.iter().any(|number| self.open.get(number).is_some_and(|asked| asked.answer.is_none()))
    }

    /// Closes a question, and returns its answer.
    pub fn close(&mut self, number: u64) -> Option<MemberLog> {
        self.open.remove(&number)?.answer
    }

    /// What a member is asked now.
    pub fn of(&self, member_id: &str) -> impl Iterator<Item = AskLog> {
        let is_open =
            move |asked: &LogQuestion| asked.member.member_id == member_id && asked.answer.is_none();
        let open = self.open.iter().filter(move |(_, asked)| is_open(asked)).take(MOST_AT_ONCE);
        open.map(|(number, asked)| AskLog { number: *number, lines: asked.lines, from: asked.from })
    }
}

/// How far one who follows the logs of members has read them.
#[derive(Clone, Debug)]
pub struct FollowedLogs {
    request: MemberLogsRequest,
}

impl FollowedLogs {
    /// Begins with the last `lines` of each.
    pub fn from_last(lines: u32) -> Self {
        Self { request: MemberLogsRequest { lines, seen: Vec::new() } }
    }

    /// What to ask for now.
    pub fn request(&self) -> MemberLogsRequest {
        self.request.clone()
    }

    /// Goes on after these, and returns those that say anything.
    pub fn read(&mut self, logs: Vec<MemberLog>) -> Vec<MemberLog> {
        // Who comes later is read from its beginning.
        self.request.lines = u32::MAX;
        let seen = &mut self.request.seen;
        seen.retain(|position| !logs.iter().any(|log| log.member_id == position.member_id));
        seen.extend(logs.iter().map(|MemberLog { member_id, nonce, end, .. }| LogPosition {
            member_id: member_id.clone(),
            nonce: nonce.clone(),
            end: *end,
        }));
        // Those that have been silent for longest stand first.
        seen.drain(..seen.len().saturating_sub(MOST_POSITIONS));
        logs.into_iter().filter(|log| !log.text.is_empty() || log.missed > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, nonce: u8) -> LoggingMember {
        LoggingMember { member_id: name.to_owned(), nonce: vec![nonce] }
    }

    fn last(lines: u32) -> MemberLogsRequest {
        MemberLogsRequest { lines, seen: Vec::new() }
    }

    fn answer(number: u64, text: &'static str, end: u64) -> TellLogRequest {
        TellLogRequest { number, text: text.as_bytes().into(), end, ..TellLogRequest::default() }
    }

    #[test]
    fn what_is_asked_is_asked_until_it_is_answered_by_the_process_that_is_meant() {
        let mut questions = LogQuestions::default();
        let worker = member("worker-0", 1);
        let asked = [questions.ask(worker.clone(), &last(7)), questions.ask(worker.clone(), &last(9))];
        let b = questions.ask(member("b", 1), &last(1));
        let open = |questions: &LogQuestions, name: &str| {
            questions.of(name).map(|asked| (asked.number, asked.lines, asked.from)).collect::<Vec<_>>()
        };
        assert_eq!(open(&questions, "worker-0"), [(asked[0], 7, None), (asked[1], 9, None)]);
        questions.told(&member("b", 1), answer(asked[0], "not b's", 1));
        questions.told(&member("worker-0", 2), answer(asked[0], "another process", 1));
        questions.told(&worker, answer(asked[0], "a line\n", 7));
        questions.told(&worker, answer(asked[0], "again", 9));
        assert_eq!(open(&questions, "worker-0"), [(asked[1], 9, None)]);
        assert!(questions.is_waiting(&[asked[0], b]) && !questions.is_waiting(&asked[..1]));
        let told = questions.close(asked[0]).expect("answered");
        assert_eq!((told.member_id.as_str(), &told.text[..], told.end), ("worker-0", &b"a line\n"[..], 7));
        assert_eq!([asked[1], b].into_iter().filter_map(|number| questions.close(number)).count(), 0);
        assert!(!questions.is_waiting(&[asked[1], b]) && open(&questions, "b").is_empty());
        for _ in 0..50 {
            questions.ask(worker.clone(), &last(1));
        }
        assert_eq!(open(&questions, "worker-0").len(), MOST_AT_ONCE);
    }

    #[test]
    fn a_member_that_comes_and_goes_is_followed_through_its_lives() {
        let (mut questions, mut followed) = (LogQuestions::default(), FollowedLogs::from_last(3));
        let mut round = |member: LoggingMember, text: &'static str, end: u64| {
            let number = questions.ask(member.clone(), &followed.request());
            let asked = questions.of(&member.member_id).next().expect("asked");
            questions.told(&member, answer(number, text, end));
            let news = followed.read(questions.close(number).into_iter().collect());
            (asked.lines, asked.from, news.len())
        };
        assert_eq!(round(member("a", 1), "one\n", 400), (3, None, 1));
        assert_eq!(round(member("a", 1), "", 400), (u32::MAX, Some(400), 0), "nothing new");
        assert_eq!(round(member("b", 1), "b\n", 2), (u32::MAX, None, 1), "who comes later");
        assert_eq!(round(member("a", 2), "again\n", 6), (u32::MAX, Some(0), 1), "its next life");
        assert_eq!(round(member("a", 2), "more\n", 11), (u32::MAX, Some(6), 1));
        for number in 0..3000 {
            assert_eq!(round(member(&format!("worker-{number}"), 1), "x\n", 2).2, 1);
        }
        assert_eq!(followed.request().seen.len(), MOST_POSITIONS);
    }
}
