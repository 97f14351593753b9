//! A thread for each host, which asks it what its book says and takes note of the answers. Nobody else waits for a host.

use super::book::{HostBook, Order, Reach};
use super::script;
use super::session::{Failure, Session, SshCommand};
use crate::launch::{MemberName, Observed, Signal};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Tries to reach a host are this many pauses apart in the end.
const MOST_PAUSES: u32 = 10;

/// A host, and the thread that speaks to it; the thread ends when this is dropped.
pub(super) struct HostLink {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    book: HostBook,
    /// Whether something is to be asked at once.
    is_urgent: bool,
    is_closed: bool,
}

/// Which host of which run.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub ssh: SshCommand,
    pub address: String,
    pub run_id: String,
    pub reach: Reach,
}

impl Line {
    /// Opens a shell on the host, and returns the name that it goes by there.
    pub(super) fn open(&self) -> Result<(Session, String), Failure> {
        Session::open(&self.ssh, &self.address, &self.run_id, self.reach.answer)
    }
}

impl HostLink {
    /// A host that is not spoken to before there is a worker on it.
    pub(super) fn new(line: Line) -> Self {
        let book = HostBook::new(&line.address, &line.run_id, line.reach, Instant::now());
        let state = Mutex::new(State { book, is_urgent: false, is_closed: false });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        let own = shared.clone();
        std::thread::spawn(move || own.follow(&line));
        Self { shared }
    }

    /// Looks into the book.
    pub(super) fn read<T>(&self, look: impl FnOnce(&HostBook) -> T) -> T {
        look(&self.shared.lock().book)
    }

    /// What is seen of the workers there now.
    pub(super) fn observe(&self) -> Vec<(MemberName, Observed)> {
        let mut state = self.shared.lock();
        state.book.expire(Instant::now());
        state.book.observed().collect()
    }

    /// Changes the book, and has the host asked at once what follows from that.
    pub(super) fn change(&self, change: impl FnOnce(&mut HostBook)) {
        let mut state = self.shared.lock();
        let before = state.book.orders();
        change(&mut state.book);
        // What is asked anyway is not asked sooner: a wish that is repeated would be asked without a pause.
        if state.book.orders() != before {
            state.is_urgent = true;
            self.shared.changed.notify_all();
        }
    }
}

impl Drop for HostLink {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Speaks to the host until the link is closed.
    fn follow(&self, line: &Line) {
        let (mut session, mut n_failures) = (None, 0);
        while let Some(orders) = self.next_orders() {
            match self.give(line, &mut session, &orders) {
                Ok(()) => n_failures = 0,
                Err(failure) => {
                    session = None;
                    n_failures += 1;
                    self.lock().book.failed(failure, Instant::now());
                }
            }
            self.rest(line.reach.pause * n_failures.clamp(1, MOST_PAUSES));
        }
    }

    /// Waits until there is something to ask; `None` once the link is closed.
    fn next_orders(&self) -> Option<Vec<Order>> {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return None;
            }
            state.is_urgent = false;
            let orders = state.book.orders();
            if !orders.is_empty() {
                return Some(orders);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn rest(&self, pause: Duration) {
        let state = self.lock();
        let is_quiet = |state: &mut State| !state.is_urgent && !state.is_closed;
        let rested = self.changed.wait_timeout_while(state, pause, is_quiet);
        drop(rested.unwrap_or_else(PoisonError::into_inner));
    }

    fn give(&self, line: &Line, session: &mut Option<Session>, orders: &[Order]) -> Result<(), Failure> {
        if session.is_none() {
            let (opened, name) = line.open()?;
            self.lock().book.reached(name);
            *session = Some(opened);
        }
        let Some(session) = session else { unreachable!("it was just opened; anything else is a bug") };
        for order in orders {
            let text = match order {
                Order::Start(id, launch) => script::start(id, launch, session.mark()),
                Order::Signal(id, Signal::Terminate) => script::end(id, "TERM"),
                Order::Signal(id, Signal::Kill) => script::end(id, "KILL"),
                Order::Look(ids) => ids.iter().map(|id| script::look(id)).collect(),
            };
            let answers = session.ask(&text, line.reach.answer)?;
            self.lock().book.answered(order, answers);
        }
        Ok(())
    }
}
