//! What callers are refused for before the state decides, and how its refusals are told over the wire.

use crate::membership::Refusal;
use proto::{Role, WeightsStanding};
use service::{PeerRole, network, shown};
use std::net::IpAddr;
use tonic::Status;

/// Characters of an address that are shown.
const LONGEST_ADDRESS: usize = 300;

/// Whether a peer may be a member of that role; anybody may where connections are not secured.
pub(super) fn check_role(peer: Option<PeerRole>, role: Role) -> Result<(), Status> {
    let wanted = match role {
        Role::Learner => PeerRole::Learner,
        Role::RolloutWorker => PeerRole::Worker,
        Role::Unspecified => return Ok(()),
    };
    match peer {
        Some(peer) if peer != wanted => Err(Status::permission_denied(format!(
            "its certificate is for the role `{peer}`, and it speaks as a member of the role `{wanted}`; start it with {wanted}.token"
        ))),
        _ => Ok(()),
    }
}

fn is_reachable(address: &str, is_local: bool) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let is_anywhere = host.parse::<IpAddr>().is_ok_and(|number| number.is_unspecified());
    !is_anywhere && (is_local || !network::is_loopback(host))
}

/// A worker that others cannot reach where it says serves nobody, and hears why.
pub(super) fn check_relay(weights: &mut WeightsStanding, is_local: bool) -> Result<(), String> {
    if weights.address.is_empty() {
        return Ok(());
    }
    let is_place = service::is_place(&weights.address);
    if is_place && is_reachable(&weights.address, is_local) {
        return Ok(());
    }
    let address = shown(&std::mem::take(&mut weights.address), LONGEST_ADDRESS);
    if !is_place {
        return Err(format!(
            "no weights are relayed from here: `{address}` is no `host:port` where others reach it"
        ));
    }
    Err(format!(
        "no weights are relayed from here: {address} is where others would find themselves; start the worker with `--listen` and \
         `--advertise` at an address that they can reach"
    ))
}

/// Whether workers of this run can reach a learner where it says.
pub(super) fn check_reachable(address: &str, is_local: bool) -> Result<(), Status> {
    match is_reachable(address, is_local) {
        true => Ok(()),
        false => Err(Status::failed_precondition(format!(
            "the learner says that workers reach it at {address}, where those on other hosts would find themselves; start it \
             with `--listen` and `--advertise` (or `network.bind` and `network.advertise`) at an address that they can reach"
        ))),
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Malformed(_) => Self::invalid_argument(message),
            Refusal::Full => Self::unavailable(message),
            // Its place may be free in a moment, see `service::join_end`.
            Refusal::Taken { .. } | Refusal::OtherLearner { .. } => Self::already_exists(message),
            // The process's time is up, that of the next begins.
            Refusal::Stuck { .. } => Self::resource_exhausted(message),
            Refusal::OtherRun { .. }
            | Refusal::OtherRole { .. }
            | Refusal::OtherBuild { .. }
            | Refusal::OtherKind { .. }
            | Refusal::NoSuchRank { .. }
            | Refusal::OtherHalf(_)
            | Refusal::Fenced { .. } => Self::failed_precondition(message),
        }
    }
}
