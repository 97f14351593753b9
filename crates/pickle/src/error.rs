//! What is wrong with a pickle.

use thiserror::Error;

use crate::opcode::opcode_name;

/// A pickle that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("pickle, opcode {} at byte {offset}: {problem}", opcode.map_or_else(|| "missing".to_owned(), opcode_name))]
pub struct PickleError {
    /// The opcode; none where the bytes end before one.
    pub opcode: Option<u8>,
    /// Where the opcode is.
    pub offset: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong at an opcode.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// The bytes end too early.
    #[error("needs {needed} bytes, {left} are left")]
    Truncated {
        /// How many the opcode claims.
        needed: u64,
        /// How many there are.
        left: usize,
    },
    /// The bytes end inside of a line.
    #[error("its line does not end")]
    UnendedLine,
    /// No opcode that is read here.
    #[error("not an opcode that is read here")]
    UnknownOpcode,
    /// A protocol from the future.
    #[error("protocol {0} is not known; there are 0 to 5")]
    Protocol(u8),
    /// Text that is no UTF-8, or an escape that is none.
    #[error("its text is not valid")]
    Text,
    /// A number that does not read as one, or needs more than 64 bits.
    #[error("its number is none, or needs more than 64 bits")]
    Number,
    /// The stack is empty, or cut off by a mark.
    #[error("takes a value from the stack where there is none")]
    EmptyStack,
    /// No mark to go back to.
    #[error("goes back to a mark where there is none")]
    NoMark,
    /// A reference to what was not stored.
    #[error("refers to memo entry {0}, which was not stored")]
    NotInMemo(u64),
    /// A value of another kind than the opcode works on.
    #[error("works on {needed}, and got another kind of value")]
    Kind {
        /// What it works on.
        needed: &'static str,
    },
    /// A dictionary's key without a value.
    #[error("an odd number of keys and values")]
    OddItems,
    /// More on the stack than the result.
    #[error("leaves {0} more values than the result")]
    LeftOver(usize),
    /// Bytes after the end.
    #[error("{0} bytes follow the end")]
    Trailing(usize),
    /// Beyond a limit.
    #[error("more than {allowed} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much is allowed.
        allowed: usize,
    },
}
