//! What every decoder of bytes from elsewhere must hold, for a bounded run in the tests and for a fuzzer that is guided
//! by coverage.
//!
//! A [`Target`] gives one decoder bytes and panics where the decoder breaks what it promises. Both ways of running
//! call [`Target::check`], so that they cannot come to check different things.

mod mutator;
mod target;
mod targets;

pub use mutator::Mutator;
pub use target::{MemoryBound, Target};
pub use targets::TARGETS;
