//! Bytes on their way between ranks: all of an operation's at once, by one thread, without blocking.

use super::link::Link;
use super::message::{HEADER, Operation};
use super::switch::Switch;
use crate::{CollectiveError, Peer};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Where a flow's bytes lie.
pub(super) enum Bytes<'a> {
    Sent(&'a [u8]),
    Received(&'a mut [u8]),
}

/// One end of a flow: the header, then the bytes.
struct End {
    rank: usize,
    header: [u8; HEADER],
    n_moved: usize,
}

/// Bytes that come from a rank, go to one, or both: then they are passed on as they come.
pub(super) struct Flow<'a> {
    bytes: Bytes<'a>,
    from: Option<End>,
    to: Option<End>,
}

impl<'a> Flow<'a> {
    /// Bytes of this rank for another one.
    pub fn send(operation: Operation, to: usize, bytes: &'a [u8]) -> Self {
        let header = operation.header(bytes.len());
        Self { bytes: Bytes::Sent(bytes), from: None, to: Some(End { rank: to, header, n_moved: 0 }) }
    }

    /// Bytes of another rank, which go on to a third one if there is one.
    pub fn receive(operation: Operation, from: usize, to: Option<usize>, bytes: &'a mut [u8]) -> Self {
        let header = operation.header(bytes.len());
        let to = to.map(|rank| End { rank, header, n_moved: 0 });
        let from = Some(End { rank: from, header: [0; HEADER], n_moved: 0 });
        Self { bytes: Bytes::Received(bytes), from, to }
    }

    fn n_bytes(&self) -> usize {
        match &self.bytes {
            Bytes::Sent(bytes) => bytes.len(),
            Bytes::Received(bytes) => bytes.len(),
        }
    }

    /// Bytes that have to go through each end.
    fn n_total(&self) -> usize {
        HEADER + self.n_bytes()
    }

    /// Bytes that can be sent by now, the header included.
    fn n_ready(&self) -> usize {
        self.from.as_ref().map_or(self.n_total(), |from| from.n_moved)
    }

    fn is_received(&self) -> bool {
        self.from.as_ref().is_none_or(|from| from.n_moved == self.n_total())
    }

    fn is_sent(&self) -> bool {
        self.to.as_ref().is_none_or(|to| to.n_moved == self.n_total())
    }

    /// Receives what is there; returns how much that was.
    fn receive_some(&mut self, links: &mut Links, operation: Operation) -> Result<usize, CollectiveError> {
        let n_total = self.n_total();
        let (Some(from), Bytes::Received(bytes)) = (&mut self.from, &mut self.bytes) else { return Ok(0) };
        if from.n_moved == n_total {
            return Ok(0);
        }
        let link = links.to(from.rank);
        let place = match from.n_moved.checked_sub(HEADER) {
            None => &mut from.header[from.n_moved..],
            Some(start) => &mut bytes[start..],
        };
        let n_came = link.receive_some(place).map_err(|error| gone(link.peer, operation, &error))?;
        from.n_moved += n_came;
        if n_came > 0 && from.n_moved == HEADER {
            operation.check(link.peer, bytes.len(), &from.header)?;
        }
        Ok(n_came)
    }

    /// Sends what can be sent; returns how much that was.
    fn send_some(&mut self, links: &mut Links, operation: Operation) -> Result<usize, CollectiveError> {
        let n_ready = self.n_ready();
        let Some(to) = &mut self.to else { return Ok(0) };
        if to.n_moved >= n_ready {
            return Ok(0);
        }
        let bytes = match &self.bytes {
            Bytes::Sent(bytes) => *bytes,
            Bytes::Received(bytes) => &**bytes,
        };
        let rest = match to.n_moved.checked_sub(HEADER) {
            None => &to.header[to.n_moved..],
            Some(start) => &bytes[start..n_ready - HEADER],
        };
        let link = links.to(to.rank);
        let n_taken = link.send_some(rest).map_err(|error| gone(link.peer, operation, &error))?;
        to.n_moved += n_taken;
        Ok(n_taken)
    }
}

/// The connections to all other ranks.
pub(super) struct Links(Vec<Option<Link>>);

impl Links {
    /// Of rank i's connection in place i; this rank has none.
    pub fn new(links: Vec<Option<Link>>) -> Self {
        Self(links)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.0.iter().flatten()
    }

    pub fn n_ranks(&self) -> usize {
        self.0.len()
    }

    /// Closes all connections so that the ranks at their other ends see that this one failed, even those that wait for
    /// nothing from it now.
    pub fn fail(&mut self) {
        for link in self.0.iter_mut().filter_map(Option::take) {
            link.reset();
        }
    }

    fn to(&mut self, rank: usize) -> &mut Link {
        self.0[rank].as_mut().expect("operations make no flow to their own rank")
    }
}

/// Moves all flows to their ends.
///
/// # Errors
/// By the deadline, naming who is waited for; at once if a connection breaks or the group is aborted.
pub(super) fn run(
    links: &mut Links,
    mut flows: Vec<Flow<'_>>,
    operation: Operation,
    switch: &Switch,
    deadline: Instant,
) -> Result<(), CollectiveError> {
    let start = Instant::now();
    let mut has_spoken = vec![false; links.n_ranks()];
    loop {
        let step = advance(links, &mut flows, operation);
        // An abort closes the connections: it is the cause, and their breaking is not.
        switch.check()?;
        match step? {
            Step::Done => return Ok(()),
            Step::Moved if Instant::now() < deadline => {}
            Step::Blocked if Instant::now() < deadline => {
                wait(links, &flows, &mut has_spoken, deadline)
                    .map_err(|problem| problem.into_error(operation))?;
            }
            Step::Moved | Step::Blocked => return Err(late(links, &flows, operation, start.elapsed())),
        }
    }
}

enum Step {
    Done,
    Moved,
    Blocked,
}

fn advance(links: &mut Links, flows: &mut [Flow], operation: Operation) -> Result<Step, CollectiveError> {
    let mut n_moved = 0;
    for flow in flows.iter_mut() {
        n_moved += flow.receive_some(links, operation)?;
        n_moved += flow.send_some(links, operation)?;
    }
    let mut is_done = true;
    for flow in flows.iter() {
        is_done &= flow.is_received() && flow.is_sent();
        if let Some(to) = &flow.to {
            let link = links.to(to.rank);
            is_done &= link.flush().map_err(|error| gone(link.peer, operation, &error))?;
        }
    }
    Ok(match (is_done, n_moved) {
        (true, _) => Step::Done,
        (false, 0) => Step::Blocked,
        (false, _) => Step::Moved,
    })
}

/// Waits until a connection can go on, or the deadline.
///
/// A rank whose part is done is listened to as well: one that fails meanwhile resets its connections, and what it would
/// have passed on never comes. One that goes on or leaves in order has spoken (`has_spoken`), and is left alone.
fn wait(
    links: &mut Links,
    flows: &[Flow<'_>],
    has_spoken: &mut [bool],
    deadline: Instant,
) -> Result<(), Trouble> {
    let mut interests = vec![PollFlags::empty(); links.n_ranks()];
    for flow in flows {
        if let Some(from) = flow.from.as_ref().filter(|_| !flow.is_received()) {
            interests[from.rank] |= PollFlags::POLLIN;
        }
        let Some(to) = &flow.to else { continue };
        if to.n_moved < flow.n_ready() || links.to(to.rank).has_unsent() {
            interests[to.rank] |= PollFlags::POLLOUT;
        }
    }
    let is_idle: Vec<bool> = interests.iter().map(|interest| !interest.contains(PollFlags::POLLIN)).collect();
    for rank in (0..interests.len()).filter(|&rank| is_idle[rank] && !has_spoken[rank]) {
        interests[rank] |= PollFlags::POLLIN;
    }
    // That a connection was reset is reported even where nothing is asked for.
    let mut descriptors: Vec<PollFd> =
        links.iter().map(|link| PollFd::new(link.as_fd(), interests[link.peer.rank])).collect();
    // Rounded up, so that a last part of a millisecond is not spun away.
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut descriptors, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(Trouble::System(error.to_string())),
    }
    for (link, descriptor) in links.iter().zip(&descriptors).filter(|(link, _)| is_idle[link.peer.rank]) {
        let seen = descriptor.revents().unwrap_or(PollFlags::empty());
        if seen.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
            return Err(Trouble::Gone(link.peer, link.failure()));
        }
        has_spoken[link.peer.rank] |= seen.contains(PollFlags::POLLIN);
    }
    Ok(())
}

/// Why waiting failed.
enum Trouble {
    Gone(Peer, io::Error),
    System(String),
}

impl Trouble {
    fn into_error(self, operation: Operation) -> CollectiveError {
        match self {
            Self::Gone(peer, error) => gone(peer, operation, &error),
            Self::System(problem) => CollectiveError::System {
                doing: "wait for the connections to other ranks".to_owned(),
                problem,
            },
        }
    }
}

fn gone(peer: Peer, operation: Operation, error: &io::Error) -> CollectiveError {
    CollectiveError::Gone { peer, operation: operation.to_string(), problem: error.to_string() }
}

/// Names the rank of which the least came, or if all came, the one that takes the least.
fn late(links: &mut Links, flows: &[Flow<'_>], operation: Operation, waited: Duration) -> CollectiveError {
    let of_end = |flow: &Flow, end: &Option<End>| {
        let moved = end.as_ref().map(|end| (end.n_moved.saturating_sub(HEADER), end.rank));
        moved.filter(|_| end.as_ref().is_some_and(|end| end.n_moved < flow.n_total()))
    };
    let received = flows.iter().filter_map(|flow| Some((of_end(flow, &flow.from)?, flow.n_bytes()))).min();
    let sent = flows.iter().filter_map(|flow| Some((of_end(flow, &flow.to)?, flow.n_bytes()))).min();
    let (((n_moved, rank), n_bytes), verb, end) = match (received, sent) {
        (Some(received), _) => (received, "send", "came"),
        (None, Some(sent)) => (sent, "take", "were taken"),
        // All bytes are taken over, and some wait to be encrypted or sent.
        (None, None) => {
            let rank = flows.iter().find_map(|flow| Some(flow.to.as_ref()?.rank)).unwrap_or(0);
            (((0, rank), 0), "take", "were taken at last")
        }
    };
    let part = format!("{verb} its part of {operation}: {n_moved} of {n_bytes} bytes {end}");
    CollectiveError::Late { peer: links.to(rank).peer, part, waited }
}
