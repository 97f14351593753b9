//! Which card (GPU) each member of a run computes on, and beside which CPUs: [`Seating`] decides, [`Card`]s are what is
//! known of this machine's, [`Places`] puts both together for a launcher.
//!
//! Nothing here has been run where a GPU is.

mod affinity;
mod places;
mod seating;

pub use affinity::Cpus;
pub use places::{Places, Seat};
pub(crate) use seating::environment as worker_environment;
pub use seating::{Seating, SeatingError};
pub use service::cuda::{Card, CardMemory, Inventory};
