//! How many connections a server takes: in all as many as leave descriptors for its files, and of those that show no certificate
//! so few that members always find room.

use nix::sys::resource::{Resource, getrlimit};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Descriptors that connections leave to files.
const KEPT_FOR_FILES: u64 = 128;
/// Connections without a certificate where the others have one: they ask for theirs, which takes a moment.
const MOST_STRANGERS: usize = 256;
/// And of these, from one address: that of many workers, where they share a host.
const MOST_STRANGERS_OF_ADDRESS: usize = 64;

/// Room for the connections of one server.
#[derive(Clone)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    most: usize,
    strangers: Arc<Strangers>,
}

/// The place of one connection, free again once it is dropped.
pub(super) struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_strangers: Option<StrangersPlace>,
}

/// Connections without a certificate, by where they come from.
#[derive(Default)]
struct Strangers {
    by_address: Mutex<BTreeMap<Option<IpAddr>, usize>>,
}

struct StrangersPlace {
    strangers: Arc<Strangers>,
    address: Option<IpAddr>,
}

/// A connection more than there is room for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoRoom {
    #[error(
        "there are {0} connections already, which is all that leaves descriptors for files; raise `ulimit -n` where they are members'"
    )]
    InAll(usize),
    #[error("{0} connections without a certificate are open already; members that have one are let in")]
    Strangers(usize),
}

impl Room {
    /// Room in this process.
    pub(super) fn of_process() -> Self {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        let kept = KEPT_FOR_FILES.min(limit / 2);
        Self::new(usize::try_from(limit - kept).unwrap_or(usize::MAX))
    }

    fn new(most: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        Self { all: Arc::new(Semaphore::new(most)), most, strangers: Arc::default() }
    }

    /// A place for a connection of which nothing is known yet.
    pub(super) fn enter(&self) -> Result<Place, NoRoom> {
        let of_all = self.all.clone().try_acquire_owned().map_err(|_| NoRoom::InAll(self.most))?;
        Ok(Place { _of_all: of_all, _of_strangers: None })
    }

    /// The same place, of a connection that shows no certificate where others do.
    pub(super) fn as_stranger(&self, place: Place, address: Option<IpAddr>) -> Result<Place, NoRoom> {
        let mut by_address = self.strangers.lock();
        let (n_in_all, n_there) =
            (by_address.values().sum::<usize>(), by_address.get(&address).copied().unwrap_or(0));
        if n_in_all >= MOST_STRANGERS || n_there >= MOST_STRANGERS_OF_ADDRESS {
            return Err(NoRoom::Strangers(n_in_all));
        }
        by_address.insert(address, n_there + 1);
        let strangers = self.strangers.clone();
        Ok(Place { _of_strangers: Some(StrangersPlace { strangers, address }), ..place })
    }
}

impl Strangers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Option<IpAddr>, usize>> {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StrangersPlace {
    fn drop(&mut self) {
        let mut by_address = self.strangers.lock();
        if let Some(n_there) = by_address.get_mut(&self.address) {
            *n_there -= 1;
            if *n_there == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: usize) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, number as u8]))
    }

    #[test]
    fn strangers_leave_room_for_members_and_one_address_for_others() {
        let room = Room::new(1000);
        let enter = |number| room.as_stranger(room.enter()?, address(number));
        let mut places: Vec<Place> = Vec::new();
        for _ in 0..MOST_STRANGERS_OF_ADDRESS {
            places.push(enter(1).expect("room"));
        }
        assert!(matches!(enter(1), Err(NoRoom::Strangers(64))));
        let others = 2..=MOST_STRANGERS / MOST_STRANGERS_OF_ADDRESS;
        places.extend(
            others
                .flat_map(|number| (0..MOST_STRANGERS_OF_ADDRESS).map(move |_| number))
                .map(|number| enter(number).expect("room")),
        );
        assert!(matches!(enter(9), Err(NoRoom::Strangers(MOST_STRANGERS))));
        assert!(room.enter().is_ok(), "a member");
        drop(places);
        assert!(enter(1).is_ok() && room.strangers.lock().is_empty(), "nothing is remembered");
    }

    #[test]
    fn connections_leave_descriptors_for_files() {
        let room = Room::new(2);
        let _places = [room.enter().expect("room"), room.enter().expect("room")];
        assert!(matches!(room.enter(), Err(NoRoom::InAll(2))));
        assert!(Room::of_process().most > 0);
    }
}
