//! Weights as bytes: received and checked, held, and sent on to other workers.

mod held;
mod receive;
mod relay;

pub use held::{HeldWeights, KEPT_VERSIONS, WeightsCopy};
pub use receive::{ReceiveError, fetch, fetch_from_worker, fetch_manifest};
pub use relay::{RelayPlace, WeightsRelayService, weights_replies};
