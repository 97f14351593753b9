//! What ends a group from any thread.

use crate::{Aborter, CollectiveError};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whether the group was aborted, and the sockets that are closed then.
#[derive(Clone, Default)]
pub(super) struct Switch(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    reason: Option<String>,
    sockets: Vec<TcpStream>,
}

impl Switch {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock leaves the state half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handle of it that callers get.
    pub fn aborter(&self) -> Aborter {
        let switch = self.clone();
        Aborter::new(move |reason| switch.abort(reason))
    }

    /// Closes all sockets, which wakes this rank and the others. The first reason counts.
    fn abort(&self, reason: &str) {
        let mut state = self.state();
        state.reason.get_or_insert_with(|| reason.to_owned());
        close(&mut state.sockets);
    }

    /// Adds a socket, which is closed at once if the group is aborted already.
    pub fn add(&self, socket: TcpStream) {
        let mut state = self.state();
        state.sockets.push(socket);
        if state.reason.is_some() {
            close(&mut state.sockets);
        }
    }

    /// Closes all sockets because the group is done or never came to be.
    pub fn close(&self) {
        close(&mut self.state().sockets);
    }

    /// Lets go of all sockets, so that who else holds them decides how they are closed.
    pub fn forget(&self) {
        self.state().sockets.clear();
    }

    /// # Errors
    /// If the group was aborted.
    pub fn check(&self) -> Result<(), CollectiveError> {
        self.state().reason.clone().map_or(Ok(()), |reason| Err(CollectiveError::Aborted(reason)))
    }
}

fn close(sockets: &mut Vec<TcpStream>) {
    for socket in sockets.drain(..) {
        // A socket that the other end closed already cannot be shut down, and need not be.
        let _ = socket.shutdown(Shutdown::Both);
    }
}
