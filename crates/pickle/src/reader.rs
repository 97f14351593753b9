//! Reads pickles of protocols 0 to 5, as Python 3 writes them.
//!
//! Out-of-band buffers, the extension registry, and Python 2's strings and classic classes are refused.

mod arena;
mod input;
mod machine;

use crate::error::PickleError;
use crate::value::Value;
use machine::Machine;

/// What a pickle may take at most, whatever it claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the pickle, and of all the tree's texts and byte strings together.
    pub bytes: usize,
    /// Values in the tree, and entries in the memo.
    pub values: usize,
    /// Levels of the tree; each takes some of the thread's stack.
    pub depth: usize,
}

impl Default for Limits {
    /// 64 MiB, a million values, 100 levels.
    fn default() -> Self {
        Self { bytes: 64 << 20, values: 1 << 20, depth: 100 }
    }
}

/// Reads a pickle that fills `bytes`.
///
/// # Errors
/// If the bytes are not exactly one pickle, or it goes beyond a limit.
pub fn read(bytes: &[u8], limits: &Limits) -> Result<Value, PickleError> {
    Machine::new(bytes, limits).run().and_then(|machine| {
        machine.end_of_input()?;
        machine.result()
    })
}

/// Reads the pickle that `bytes` begin with, and tells how many bytes it takes.
///
/// # Errors
/// If the bytes do not begin with a pickle, or it goes beyond a limit.
pub fn read_prefix(bytes: &[u8], limits: &Limits) -> Result<(Value, usize), PickleError> {
    let machine = Machine::new(bytes, limits).run()?;
    Ok((machine.result()?, machine.n_bytes_read()))
}
