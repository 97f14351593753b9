//! Ranks connected by TCP on the host, each to each, in the clear or by mutual TLS.
//!
//! One thread per rank moves all bytes of an operation at once, without blocking, so nobody waits for a peer that waits
//! for it. A broadcast goes along a chain of ranks as it arrives, so the root sends its bytes once. Gathering and exchanging
//! go directly.

mod flow;
mod hello;
mod link;
mod message;
mod patient_stream;
mod rendezvous;
mod switch;

pub use hello::GroupId;

use crate::tree::are_bounds;
use crate::{Aborter, Collective, CollectiveError};
use flow::{Flow, Links};
use message::{Kind, Operation};
use rendezvous::Rendezvous;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Instant;
use switch::Switch;

/// How connections between ranks are secured. Both configs must ask for a certificate, and be ones of the run.
#[derive(Clone, Debug)]
pub struct TcpTls {
    /// For ranks that call this one.
    pub server: Arc<ServerConfig>,
    /// For calling other ranks.
    pub client: Arc<ClientConfig>,
    /// What the certificates of the ranks that are called are for, as far as the config's verifier looks at that.
    pub server_name: ServerName<'static>,
}

/// What one rank has to know of its group.
#[derive(Clone, Debug)]
pub struct TcpSettings {
    /// This process's number.
    pub rank: usize,
    /// Where every rank listens, this one included.
    pub addresses: Vec<SocketAddr>,
    /// The group: the same on all ranks.
    pub id: GroupId,
    /// In the clear if there is none.
    pub tls: Option<TcpTls>,
}

/// A group that is to be made.
pub struct TcpGathering {
    settings: TcpSettings,
    switch: Switch,
}

impl TcpGathering {
    /// A group before its ranks have met.
    ///
    /// # Errors
    /// If the rank has no address.
    pub fn new(settings: TcpSettings) -> Result<Self, CollectiveError> {
        let (rank, n_ranks) = (settings.rank, settings.addresses.len());
        if rank >= n_ranks {
            let problem = format!("rank {rank} has no address: there are {n_ranks}, for ranks from 0 on");
            return Err(CollectiveError::Argument(problem));
        }
        Ok(Self { settings, switch: Switch::default() })
    }

    /// What ends the gathering, and the group that it makes, from another thread.
    pub fn aborter(&self) -> Aborter {
        self.switch.aborter()
    }

    /// Connects to all other ranks; returns when each is connected to all, and knows that.
    ///
    /// # Errors
    /// By the deadline, naming who is missing; at once if another rank refuses this one or the group is aborted.
    pub fn meet(self, listener: &TcpListener, deadline: Instant) -> Result<TcpGroup, CollectiveError> {
        let links = Rendezvous::new(&self.settings, &self.switch, deadline).meet(listener);
        let links = links.inspect_err(|_| self.switch.close())?;
        let rank = self.settings.rank;
        let mut group =
            TcpGroup { rank, links: Links::new(links), n_operations: 0, failure: None, switch: self.switch };
        group.barrier(deadline)?;
        Ok(group)
    }
}

/// A group of ranks that are connected.
pub struct TcpGroup {
    rank: usize,
    links: Links,
    n_operations: u64,
    failure: Option<String>,
    switch: Switch,
}

impl TcpGroup {
    /// The next operation.
    ///
    /// # Errors
    /// If an earlier one failed.
    fn begin(&mut self, kind: Kind) -> Result<Operation, CollectiveError> {
        if let Some(failure) = &self.failure {
            return Err(CollectiveError::Spent(failure.clone()));
        }
        let operation = Operation { kind, number: self.n_operations };
        self.n_operations += 1;
        Ok(operation)
    }

    /// Runs an operation, and leaves the group for good if it fails.
    fn run(
        &mut self,
        operation: Operation,
        flows: Vec<Flow<'_>>,
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        flow::run(&mut self.links, flows, operation, &self.switch, deadline).inspect_err(|error| {
            self.failure = Some(error.to_string());
            self.switch.forget();
            self.links.fail();
        })
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.links.n_ranks()).filter(move |&other| other != rank)
    }
}

impl Drop for TcpGroup {
    fn drop(&mut self) {
        self.switch.close();
    }
}

impl Collective for TcpGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn n_ranks(&self) -> usize {
        self.links.n_ranks()
    }

    fn broadcast(&mut self, root: usize, bytes: &mut [u8], deadline: Instant) -> Result<(), CollectiveError> {
        let n_ranks = self.n_ranks();
        if root >= n_ranks {
            let problem = format!("rank {root} cannot broadcast: there are {n_ranks} ranks");
            return Err(CollectiveError::Argument(problem));
        }
        // The chain begins at the root and goes round.
        let next = Some((self.rank + 1) % n_ranks).filter(|&next| next != root);
        let previous = (self.rank + n_ranks - 1) % n_ranks;
        let operation = self.begin(Kind::Broadcast)?;
        let flows = match (self.rank == root, next) {
            (false, next) => vec![Flow::receive(operation, previous, next, bytes)],
            (true, Some(next)) => vec![Flow::send(operation, next, bytes)],
            (true, None) => Vec::new(),
        };
        self.run(operation, flows, deadline)
    }

    fn all_gather(
        &mut self,
        bytes: &mut [u8],
        bounds: &[usize],
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let (rank, n_ranks) = (self.rank, self.n_ranks());
        if !are_bounds(bounds, n_ranks, bytes.len()) {
            let problem = format!("{bounds:?} do not divide {} bytes among {n_ranks} ranks", bytes.len());
            return Err(CollectiveError::Argument(problem));
        }
        let operation = self.begin(Kind::AllGather)?;
        let mut flows = Vec::new();
        let mut own: &[u8] = &[];
        let mut rest = bytes;
        for (other, pair) in bounds.windows(2).enumerate() {
            let (part, after) = rest.split_at_mut(pair[1] - pair[0]);
            rest = after;
            if other == rank {
                own = part;
            } else {
                flows.push(Flow::receive(operation, other, None, part));
            }
        }
        flows.extend(self.others().map(|other| Flow::send(operation, other, own)));
        self.run(operation, flows, deadline)
    }

    fn all_to_all(
        &mut self,
        outgoing: &[&[u8]],
        incoming: &mut [&mut [u8]],
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let (rank, n_ranks) = (self.rank, self.n_ranks());
        if outgoing.len() != n_ranks || incoming.len() != n_ranks {
            let (n_out, n_in) = (outgoing.len(), incoming.len());
            let problem =
                format!("{n_out} outgoing and {n_in} incoming parts are not one for each of {n_ranks} ranks");
            return Err(CollectiveError::Argument(problem));
        }
        let operation = self.begin(Kind::AllToAll)?;
        let mut flows = Vec::new();
        for (other, (sent, received)) in outgoing.iter().zip(incoming).enumerate() {
            if other != rank {
                flows.push(Flow::receive(operation, other, None, received));
                flows.push(Flow::send(operation, other, sent));
            }
        }
        self.run(operation, flows, deadline)
    }

    fn barrier(&mut self, deadline: Instant) -> Result<(), CollectiveError> {
        let operation = self.begin(Kind::Barrier)?;
        let both =
            |other| [Flow::receive(operation, other, None, &mut []), Flow::send(operation, other, &[])];
        let flows = self.others().flat_map(both).collect();
        self.run(operation, flows, deadline)
    }

    fn aborter(&self) -> Aborter {
        self.switch.aborter()
    }
}
