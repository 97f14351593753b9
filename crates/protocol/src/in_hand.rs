//! What a worker has in hand, as it tells the coordinator: its tasks, and for how long a piece of its work has stood still.
//!
//! A task is in hand from the moment that it is granted until the coordinator has heard how it ended: who joins again in
//! between says so, and nobody else is given the task.

use proto::{Standstill, TaskId, Work};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Tasks and pieces of work in hand.
#[derive(Clone, Debug, Default)]
pub struct InHand {
    tasks: Vec<TaskId>,
    /// What each piece of work is, and when it last got anywhere.
    pieces: BTreeMap<u64, (Work, Instant)>,
    n_begun: u64,
}

impl InHand {
    /// The tasks, in the order in which they were granted.
    pub fn tasks(&self) -> &[TaskId] {
        &self.tasks
    }

    /// The coordinator answered who asked for a task beside those that are being finished. Some of them may be held by now,
    /// and are gone already.
    pub fn answered(&mut self, finishing: &[TaskId], granted: Option<TaskId>) {
        self.tasks.retain(|task| finishing.contains(task));
        self.tasks.extend(granted);
    }

    /// The coordinator heard how a task ended.
    pub fn told(&mut self, task: Option<TaskId>) {
        self.tasks.retain(|known| Some(*known) != task);
    }

    /// A piece of work begins; returns its number.
    pub fn begin(&mut self, work: Work, now: Instant) -> u64 {
        self.n_begun += 1;
        self.pieces.insert(self.n_begun, (work, now));
        self.n_begun
    }

    /// A piece of work got somewhere.
    pub fn progressed(&mut self, number: u64, now: Instant) {
        if let Some((_, progressed)) = self.pieces.get_mut(&number) {
            *progressed = now;
        }
    }

    /// A piece of work is over.
    pub fn end(&mut self, number: u64) {
        self.pieces.remove(&number);
    }

    /// How long work has stood still: of each kind that is in hand, the piece that has for longest.
    pub fn standstills(&self, now: Instant) -> Vec<Standstill> {
        let mut longest: BTreeMap<Work, Duration> = BTreeMap::new();
        for (work, progressed) in self.pieces.values() {
            let standstill = longest.entry(*work).or_default();
            *standstill = now.saturating_duration_since(*progressed).max(*standstill);
        }
        let told = |(work, standstill): (Work, Duration)| Standstill {
            work: work.into(),
            seconds: standstill.as_secs_f64(),
        };
        longest.into_iter().map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_kind_of_work_the_piece_that_stands_still_for_longest_counts() {
        let (mut in_hand, start) = (InHand::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let told = |in_hand: &InHand, now| {
            let standstills = in_hand.standstills(now).into_iter();
            standstills.map(|told| (told.work(), told.seconds)).collect::<Vec<_>>()
        };
        assert_eq!(told(&in_hand, after(9)), [], "nothing is in hand");
        let sampling = in_hand.begin(Work::Computing, after(0));
        let finishing = in_hand.begin(Work::Waiting, after(1));
        in_hand.begin(Work::Computing, after(4));
        in_hand.progressed(sampling, after(5));
        assert_eq!(told(&in_hand, after(6)), [(Work::Computing, 2.0), (Work::Waiting, 5.0)]);
        in_hand.end(finishing);
        in_hand.progressed(finishing, after(6));
        assert_eq!(told(&in_hand, after(6)), [(Work::Computing, 2.0)], "what is over does not come back");
    }

    #[test]
    fn a_task_is_in_hand_until_the_coordinator_heard_of_its_end() {
        let task = |index| TaskId { index, ..TaskId::default() };
        let mut in_hand = InHand::default();
        in_hand.answered(&[], Some(task(0)));
        in_hand.answered(&[task(0)], Some(task(1)));
        assert_eq!(in_hand.tasks(), [task(0), task(1)]);
        in_hand.told(Some(task(0)));
        in_hand.answered(&[task(0)], None);
        assert_eq!(in_hand.tasks(), [], "what was asked beside is over, and nothing was granted");
    }
}
