//! Python's pickles as data: reads them into an inert tree, writes plain values, never runs anything.
//!
//! Invariants:
//! 1. Nothing is imported or called. A pickle that asks for a call is read into a [`Call`] that says so; who interprets
//!    the tree allows what it knows by name and refuses the rest.
//! 2. A tree is at most as large as [`Limits`] say, however often the pickle repeats a part of it by reference.
//! 3. Bytes that are not a whole pickle are an error that names the opcode and its offset, never a panic.

mod error;
mod numbers;
mod opcode;
mod reader;
mod text;
mod value;
mod writer;

pub use error::{PickleError, Problem};
pub use numbers::{NumberError, byte_string, number, numbers};
pub use reader::{Limits, read, read_prefix};
pub use value::{Call, Global, Value};
pub use writer::{NotPlain, write};
