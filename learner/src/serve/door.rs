//! How other ranks of the learner reach this one, and what the coordinator says of them.

use std::sync::Arc;

use collective::tcp::TcpTls;
use config::RunConfig;
use service::{Membership, PeerRole, PeerTls, ServiceError, Trust};

use super::{ServeError, ServeOptions, Shared};
use crate::ranks::group::{RankDoor, Ranks};
use crate::ranks::orders::RankOrders;

/// Where other ranks reach this one, if there are any.
pub(super) async fn open_door(
    options: &ServeOptions,
    config: &RunConfig,
    address: &str,
    trust: &Trust,
) -> Result<Option<(Door, String)>, ServeError> {
    if config.resources.learners == 1 {
        return Ok(None);
    }
    let unusable = |problem: String| ServeError::ListenToRanks { address: options.listen.clone(), problem };
    let listener = options.listen.bind().await.map_err(|error| unusable(error.to_string()))?;
    let listener = listener.into_std().map_err(|error| unusable(error.to_string()))?;
    let bound = listener.local_addr().map_err(|error| unusable(error.to_string()))?;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let tls = trust.among(PeerRole::Learner).map_err(ServiceError::from)?;
    let tls = tls.map(|PeerTls { server, client, server_name }| TcpTls { server, client, server_name });
    Ok(Some(((listener, tls), format!("{host}:{}", bound.port()))))
}

/// Where other ranks call, and how they know each other.
pub(super) type Door = (std::net::TcpListener, Option<TcpTls>);

pub(super) fn ranks_of(config: &RunConfig, rank: u32, door: Option<Door>, shared: &Shared) -> Ranks {
    let Some((listener, tls)) = door else { return Ranks::alone() };
    let (orders, progress) = (shared.orders.clone(), shared.progress.clone());
    Ranks::of(rank as usize, config.resources.learners, RankDoor { listener, tls, orders, progress })
}

/// Hands on what the coordinator says of the group of ranks.
pub(super) async fn follow_orders(membership: Membership, orders: Arc<RankOrders>) {
    let mut standing = membership.standing();
    loop {
        let order = standing.borrow_and_update().ranks.clone();
        if let Some(order) = order {
            orders.order(order);
        }
        // It ends with the membership.
        if standing.changed().await.is_err() {
            return;
        }
    }
}
