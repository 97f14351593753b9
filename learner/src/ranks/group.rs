//! The group of ranks as one of them has it: formed, brought to where the first rank is, and formed anew when it breaks.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use collective::tcp::{GroupId, TcpGathering, TcpGroup, TcpSettings, TcpTls};
use collective::{Alone, Collective, CollectiveError};
use proto::RankGroup;

use crate::error::LearnerError;
use crate::exchange::inbox::Stopped;
use crate::progress::ProgressBoard;
use crate::ranks::orders::RankOrders;
use crate::ranks::position::Position;

/// How long a rank waits for another one: as long as tasks may take to be sampled. Who dies or hangs is noticed much sooner, by
/// its connection or by the coordinator, which then orders another group.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// What is brought to where the first rank is.
pub trait TakesOver {
    /// Where it is.
    fn position(&self) -> Position;

    /// All that another rank needs to be there.
    ///
    /// # Errors
    /// If it cannot be put into bytes.
    fn give(&self) -> Result<Vec<u8>, LearnerError>;

    /// Goes where the first rank is, by what that gave.
    ///
    /// # Errors
    /// If it is of another run.
    fn take_over(&mut self, position: Position, given: &[u8]) -> Result<(), LearnerError>;
}

/// What one rank needs to meet the others.
pub struct RankDoor {
    /// Where other ranks call.
    pub listener: TcpListener,
    /// How they know each other; in the clear if there is none.
    pub tls: Option<TcpTls>,
    /// What the coordinator says.
    pub orders: Arc<RankOrders>,
    /// Where it is told that this rank waits.
    pub progress: Arc<ProgressBoard>,
}

/// A rank's place among all ranks.
pub struct Ranks {
    rank: usize,
    n_ranks: usize,
    door: Option<RankDoor>,
    group: Option<(u64, TcpGroup)>,
}

/// Why what was to be done together was not.
enum Parted {
    /// The group works no more.
    Broken(CollectiveError),
    /// This rank cannot go on, or goes on elsewhere.
    Error(LearnerError),
}

impl From<CollectiveError> for Parted {
    fn from(error: CollectiveError) -> Self {
        Self::Broken(error)
    }
}

impl From<LearnerError> for Parted {
    fn from(error: LearnerError) -> Self {
        Self::Error(error)
    }
}

impl Ranks {
    /// The only rank.
    pub fn alone() -> Self {
        Self { rank: 0, n_ranks: 1, door: None, group: None }
    }

    /// One of several.
    pub fn of(rank: usize, n_ranks: usize, door: RankDoor) -> Self {
        Self { rank, n_ranks, door: Some(door), group: None }
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    /// Whether this is the rank that evaluates, publishes, records and saves.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Makes sure that there is a group, and that `state` is where the first rank is.
    ///
    /// # Errors
    /// As [`Self::together`].
    pub fn meet(&mut self, state: &mut dyn TakesOver) -> Result<(), LearnerError> {
        self.together(state, |_, _| Ok(()))
    }

    /// Does something that all ranks do, again and again until all of it has succeeded. `work` gets the group and its epoch.
    ///
    /// # Errors
    /// If this rank is told to leave, has taken over where the first rank is ([`LearnerError::TakenOver`]), or cannot go on.
    pub fn together<T>(
        &mut self,
        state: &mut dyn TakesOver,
        mut work: impl FnMut(&mut dyn Collective, u64) -> Result<T, CollectiveError>,
    ) -> Result<T, LearnerError> {
        let Some(door) = &self.door else {
            return work(&mut Alone, 0).map_err(LearnerError::Ranks);
        };
        let (orders, progress) = (door.orders.clone(), door.progress.clone());
        loop {
            progress.waits();
            let order = match &self.group {
                Some((epoch, _)) if !orders.is_over(*epoch) => None,
                _ => Some(orders.wait()?),
            };
            let epoch = order.as_ref().map_or_else(|| self.epoch(), |order| order.epoch);
            let done = self.try_together(state, order, &mut work);
            progress.gets_on();
            match done {
                Ok(done) => return Ok(done),
                Err(Parted::Error(error)) => return Err(error),
                Err(Parted::Broken(error @ CollectiveError::Argument(_))) => return Err(error.into()),
                Err(Parted::Broken(_)) if orders.is_stopped() => return Err(Stopped.into()),
                Err(Parted::Broken(error)) => {
                    tracing::warn!(epoch, "the group of ranks is over: {error}");
                    self.group = None;
                    orders.broke(epoch);
                }
            }
        }
    }

    /// Waits until the coordinator orders another group than this one, and takes part in that.
    ///
    /// # Errors
    /// As [`Self::together`].
    pub fn rest(&mut self, state: &mut dyn TakesOver) -> Result<(), LearnerError> {
        if let Some(door) = &self.door {
            door.progress.waits();
            door.orders.wait_after(self.epoch())?;
        }
        self.meet(state)
    }

    fn epoch(&self) -> u64 {
        self.group.as_ref().map_or(0, |(epoch, _)| *epoch)
    }

    fn try_together<T>(
        &mut self,
        state: &mut dyn TakesOver,
        order: Option<RankGroup>,
        work: &mut impl FnMut(&mut dyn Collective, u64) -> Result<T, CollectiveError>,
    ) -> Result<T, Parted> {
        if let Some(order) = order {
            // The one before is closed first, so that nobody waits in it.
            self.group = None;
            let mut group = self.form(&order)?;
            tracing::info!(epoch = order.epoch, n_ranks = self.n_ranks, "the ranks have formed a group");
            let synced = synchronize(&mut group, state);
            self.group = Some((order.epoch, group));
            synced?;
        }
        let Some((epoch, group)) = &mut self.group else {
            unreachable!("a group that is not over is there, else one is ordered; else this is a bug")
        };
        Ok(work(group, *epoch)?)
    }

    fn form(&self, order: &RankGroup) -> Result<TcpGroup, CollectiveError> {
        let Some(door) = &self.door else { unreachable!("who is alone forms no group; else this is a bug") };
        let addresses = order.addresses.iter().map(|address| resolved(address));
        let no_id = |_| CollectiveError::Argument("the coordinator's group has no id of 16 bytes".to_owned());
        let unique = <[u8; 16]>::try_from(&order.id[..]).map_err(no_id)?;
        let settings = TcpSettings {
            rank: self.rank,
            addresses: addresses.collect::<Result<_, _>>()?,
            id: GroupId { unique, epoch: order.epoch },
            tls: door.tls.clone(),
        };
        let gathering = TcpGathering::new(settings)?;
        door.orders.forming(order.epoch, gathering.aborter());
        gathering.meet(&door.listener, deadline())
    }
}

/// When a rank is given up for which nothing else speaks.
pub fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

fn resolved(address: &str) -> Result<SocketAddr, CollectiveError> {
    let problem =
        |problem: String| CollectiveError::System { doing: format!("find the rank at {address}"), problem };
    let mut found = address.to_socket_addrs().map_err(|error| problem(error.to_string()))?;
    found.next().ok_or_else(|| problem("the name has no address".to_owned()))
}

/// Brings all ranks to where the first one is.
fn synchronize(group: &mut TcpGroup, state: &mut dyn TakesOver) -> Result<(), Parted> {
    let (own, is_first) = (state.position(), group.rank() == 0);
    let mut position = own.to_bytes();
    group.broadcast(0, &mut position, deadline())?;
    let position = Position::from_bytes(position);
    let is_elsewhere = position != own;
    let mut who_is_elsewhere = vec![0; group.n_ranks()];
    who_is_elsewhere[group.rank()] = u8::from(is_elsewhere);
    let bounds: Vec<usize> = (0..=group.n_ranks()).collect();
    group.all_gather(&mut who_is_elsewhere, &bounds, deadline())?;
    if who_is_elsewhere.iter().all(|elsewhere| *elsewhere == 0) {
        return Ok(());
    }
    let given = broadcast_bytes(group, if is_first { state.give()? } else { Vec::new() })?;
    if !is_elsewhere {
        return Ok(());
    }
    tracing::info!(?own, ?position, "taking over from the first rank");
    state.take_over(position, &given)?;
    Err(Parted::Error(LearnerError::TakenOver))
}

/// What the first rank has, on all.
fn broadcast_bytes(group: &mut dyn Collective, own: Vec<u8>) -> Result<Vec<u8>, CollectiveError> {
    let mut length = (own.len() as u64).to_le_bytes();
    group.broadcast(0, &mut length, deadline())?;
    let mut bytes = own;
    bytes.resize(u64::from_le_bytes(length) as usize, 0);
    group.broadcast(0, &mut bytes, deadline())?;
    Ok(bytes)
}

/// What every rank has, on all, by rank.
///
/// # Errors
/// See [`CollectiveError`].
pub fn gather_bytes(group: &mut dyn Collective, own: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
    const LENGTH: usize = size_of::<u64>();
    let (rank, n_ranks) = (group.rank(), group.n_ranks());
    let mut lengths = vec![0; n_ranks * LENGTH];
    lengths[rank * LENGTH..(rank + 1) * LENGTH].copy_from_slice(&(own.len() as u64).to_le_bytes());
    let bounds: Vec<usize> = (0..=n_ranks).map(|rank| rank * LENGTH).collect();
    group.all_gather(&mut lengths, &bounds, deadline())?;
    let mut bounds = vec![0];
    for length in lengths.chunks_exact(LENGTH) {
        let length = length.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        bounds.push(bounds[bounds.len() - 1] + length as usize);
    }
    let mut all = vec![0; bounds[n_ranks]];
    all[bounds[rank]..bounds[rank + 1]].copy_from_slice(own);
    group.all_gather(&mut all, &bounds, deadline())?;
    Ok(bounds.windows(2).map(|pair| all[pair[0]..pair[1]].to_vec()).collect())
}
