//! Workers that wait for a task, in the order in which they began to. A task that becomes free goes to the first of them
//! that may have it; nobody else is woken.

use crate::run_state::RunState;
use proto::NextTaskRequest;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;
use tokio::sync::oneshot;

/// Callers that may have hung up and are still here, however few others there are.
const FEW: usize = 16;

/// Who waits; a worker waits once.
#[derive(Default)]
pub(crate) struct WaitingRoom {
    /// By number; the lowest came first.
    waiting: BTreeMap<u64, Waiting>,
    numbers: HashMap<String, u64>,
    n_came: u64,
    /// Once so many wait, those are looked for that have hung up.
    looked_for_at: usize,
}

struct Waiting {
    request: NextTaskRequest,
    /// Dropped without an answer, it sends the caller back to ask how it stands.
    answer: oneshot::Sender<proto::Task>,
}

impl WaitingRoom {
    /// Lets a worker wait, in place of an earlier call of its own.
    pub(crate) fn enter(&mut self, request: NextTaskRequest) -> oneshot::Receiver<proto::Task> {
        let member_id = member_id_of(&request).to_owned();
        self.dismiss(&member_id);
        if self.waiting.len() >= self.looked_for_at.max(FEW) {
            self.dismiss_those_gone();
        }
        let (answer, granted) = oneshot::channel();
        self.n_came += 1;
        self.numbers.insert(member_id, self.n_came);
        self.waiting.insert(self.n_came, Waiting { request, answer });
        granted
    }

    /// Sends a worker back, if it waits.
    pub(crate) fn dismiss(&mut self, member_id: &str) {
        if let Some(number) = self.numbers.remove(member_id) {
            self.waiting.remove(&number);
        }
    }

    /// Forgets callers that have hung up; looks at all, and so only when twice as many may wait as after the last time. Thus coming
    /// in costs no more where many wait.
    fn dismiss_those_gone(&mut self) {
        self.waiting.retain(|_, waiting| !waiting.answer.is_closed());
        self.numbers.retain(|_, number| self.waiting.contains_key(number));
        self.looked_for_at = 2 * self.waiting.len();
    }

    /// Gives free tasks to those who wait, as long as there are both.
    pub(crate) fn serve(&mut self, state: &mut RunState, now: Instant) {
        let mut number = 0;
        while state.has_grantable_tasks() {
            let next = self.waiting.range(number + 1..).next();
            let Some((&next, Waiting { request, answer })) = next else { break };
            number = next;
            // A caller that has hung up gets nothing; one that is fenced comes back to hear so.
            let granted = if answer.is_closed() { Ok(None) } else { state.next_task(request, now) };
            if let (Ok(None), false) = (&granted, answer.is_closed()) {
                continue;
            }
            let Some(Waiting { request, answer }) = self.waiting.remove(&number) else { return };
            self.numbers.remove(member_id_of(&request));
            if let Ok(Some(task)) = granted {
                // Should the caller hang up just now, it gets the same task when it asks again.
                let _ = answer.send(task);
            }
        }
        state.note_offered();
    }

    /// Takes out a worker whose time is up; whoever waits in its place stays.
    pub(crate) fn leave(&mut self, granted: &mut oneshot::Receiver<proto::Task>, member_id: &str) {
        granted.close();
        let is_over =
            |number: &u64| self.waiting.get(number).is_none_or(|waiting| waiting.answer.is_closed());
        if self.numbers.get(member_id).is_some_and(is_over) {
            self.dismiss(member_id);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        assert_eq!(self.waiting.len(), self.numbers.len());
        self.waiting.len()
    }
}

fn member_id_of(request: &NextTaskRequest) -> &str {
    request.caller.as_ref().map_or("", |caller| &caller.member_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Caller;

    fn request(member_id: &str) -> NextTaskRequest {
        let caller = Some(Caller { member_id: member_id.to_owned(), ..Caller::default() });
        NextTaskRequest { caller, ..NextTaskRequest::default() }
    }

    #[test]
    fn a_worker_waits_once_and_leaves_nothing_behind() {
        let mut room = WaitingRoom::default();
        let mut first = room.enter(request("a"));
        let mut second = room.enter(request("a"));
        assert_eq!(room.len(), 1);
        assert!(first.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        room.leave(&mut first, "a");
        assert_eq!(room.len(), 1, "the second call waits on");
        room.leave(&mut second, "a");
        assert_eq!(room.len(), 0);
    }

    #[test]
    fn callers_that_hung_up_are_forgotten_before_they_are_more_than_the_others() {
        let mut room = WaitingRoom::default();
        let come = |room: &mut WaitingRoom, name: String| room.enter(request(&name));
        let mut waiting: Vec<_> = (0..100).map(|number| come(&mut room, format!("stays-{number}"))).collect();
        for number in 0..10_000 {
            drop(come(&mut room, format!("goes-{number}")));
            assert!(room.len() <= 2 * waiting.len() + FEW, "{} wait", room.len());
        }
        assert!(
            waiting.iter_mut().all(|answer| answer.try_recv() == Err(oneshot::error::TryRecvError::Empty))
        );
        drop(waiting);
        for number in 0..1_000 {
            drop(come(&mut room, format!("last-{number}")));
        }
        assert!(room.len() <= FEW, "nobody waits any more: {}", room.len());
    }
}
