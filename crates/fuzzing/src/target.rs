//! One decoder under test.

use std::fmt::Display;

/// Parts the files of an input; no text in UTF-8 holds it.
const SEPARATOR: u8 = 0xff;

/// One decoder, and what it is tried with.
pub struct Target {
    /// What it is called on a command line.
    pub name: &'static str,
    /// Valid inputs, which others are made from.
    pub examples: fn() -> Vec<Vec<u8>>,
    /// Decodes the bytes, and says whether they were accepted.
    ///
    /// # Panics
    /// If the decoder does not hold what it promises.
    pub check: fn(&[u8]) -> bool,
    /// The most memory that it may hold at a time.
    pub memory: MemoryBound,
}

/// The most memory that decoding may take, beyond the input itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBound {
    /// Bytes for every byte of the input.
    pub per_byte: usize,
    /// Bytes whatever the input.
    pub fixed: usize,
}

impl MemoryBound {
    /// 64 bytes for every byte, and 1 MiB.
    pub const USUAL: Self = Self { per_byte: 64, fixed: 1 << 20 };

    /// The bound for an input, in bytes.
    pub fn of(self, n_bytes: usize) -> usize {
        self.per_byte * n_bytes + self.fixed
    }
}

impl Target {
    /// The target of a name.
    ///
    /// # Panics
    /// If there is none.
    pub fn named(name: &str) -> &'static Self {
        let found = crate::TARGETS.iter().find(|target| target.name == name);
        found.unwrap_or_else(|| panic!("no fuzz target is called `{name}`"))
    }
}

/// The `N` files that an input stands for, parted by a byte that no text holds; what is missing is empty.
pub fn parts<const N: usize>(input: &[u8]) -> [&[u8]; N] {
    let mut rest = input.splitn(N, |byte| *byte == SEPARATOR);
    std::array::from_fn(|_| rest.next().unwrap_or_default())
}

/// Whether something was read; if not, why not must be told.
///
/// # Panics
/// If an error says nothing.
pub fn is_read<T, E: Display>(outcome: Result<T, E>) -> bool {
    if let Err(error) = &outcome {
        assert!(!error.to_string().is_empty(), "an error without a message");
    }
    outcome.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_stands_for_as_many_files_as_are_asked_for() {
        assert_eq!(parts::<2>(b"a\xffb\xffc"), [&b"a"[..], b"b\xffc"]);
        assert_eq!(parts::<3>(b"a"), [&b"a"[..], b"", b""]);
    }
}
