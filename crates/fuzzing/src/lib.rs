//! What every decoder of bytes from elsewhere must hold, for a bounded run in the tests and for a fuzzer that is guided
//! by coverage.
//!
//! A [`Target`] gives one decoder bytes and panics where the decoder breaks what it promises. Both ways of running
//! call [`Target::check`], so that they cannot come to check different things. Targets of crates that link libtorch stand in
//! `tests/fuzz.rs` of those crates and are [`run`] from there.

mod bounded;
mod mutator;
mod target;
mod targets;

pub use bounded::{CountingAllocator, fault_of, run};
pub use mutator::Mutator;
pub use peakmem_alloc::INSTRUMENTED_SYSTEM;
pub use target::{MemoryBound, Target, is_read, parts};
pub use targets::TARGETS;
