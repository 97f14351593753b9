//! The machines of a run in a simulated world: its network, clocks and disk, and all that goes wrong with them, from one seed.
//!
//! What is real, that is the code which the processes run: the coordinator's `ControlPlane` with `RunState`, `TaskBook`, `Members`,
//! leases and waiting room; its `Supervisor` with `Keeper`; `Catalog` and the task lists of `RunConfig`; `protocol`'s `Intake`,
//! `Errands`, `Pushing`, `Fetching`, `MemberLink`, `InHand`, `Backoff`; what a status means to a member.
//!
//! What is modelled, each in a file that says after which it is made: sockets (`network`), the file system and how durable
//! files are written (`disk`, `durable`, `checkpoints`), who owns the run (`ownership`), the learner's training thread (`training`) and service
//! (`learner`), a worker's driver of its hands (`worker`), the loops of calls to the coordinator (`line`), the order in which
//! `up` ticks and stops a run (`hub`). Tensors are digests.
//!
//! Plain machines in a loop, and not the services on a simulated runtime: a world takes a millisecond or two, nothing but the
//! seed decides, and no libtorch is linked.

mod agenda;
mod bug;
mod checkpoints;
mod dice;
mod disk;
mod durable;
mod faults;
mod hands;
mod hub;
mod launcher;
mod laws;
mod learner;
mod line;
mod messages;
mod network;
mod ownership;
pub mod pace;
mod process;
mod reference;
mod scenario;
mod sizes;
mod stage;
mod story;
mod training;
mod worker;
mod world;

pub use bug::Bug;
pub use world::{Outcome, run};
