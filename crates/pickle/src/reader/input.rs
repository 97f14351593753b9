//! The bytes of a pickle, read front to back.

use crate::error::Problem;

/// A position in the bytes.
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn n_left(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `length` bytes, after a check that they are there.
    pub(super) fn take(&mut self, length: u64) -> Result<&'a [u8], Problem> {
        let left = self.n_left();
        let length = usize::try_from(length)
            .ok()
            .filter(|&length| length <= left)
            .ok_or(Problem::Truncated { needed: length, left })?;
        let taken = &self.bytes[self.position..self.position + length];
        self.position += length;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        Ok(self.take(N as u64)?.try_into().expect("as many bytes as were asked for; else this is a bug"))
    }

    /// A little-endian number of `n_bytes` ≤ 8 bytes.
    pub(super) fn unsigned(&mut self, n_bytes: u64) -> Result<u64, Problem> {
        Ok(self.take(n_bytes)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// As many bytes as a number of `n_bytes` in front of them says.
    pub(super) fn counted(&mut self, n_bytes: u64) -> Result<&'a [u8], Problem> {
        let length = self.unsigned(n_bytes)?;
        self.take(length)
    }

    /// Text in UTF-8 with its length in front.
    pub(super) fn text(&mut self, n_bytes: u64) -> Result<String, Problem> {
        utf8(self.counted(n_bytes)?)
    }

    /// A little-endian two's complement number with its length in front.
    pub(super) fn long(&mut self, n_bytes: u64) -> Result<i64, Problem> {
        let bytes = self.counted(n_bytes)?;
        let Some(&last) = bytes.last() else { return Ok(0) };
        let sign = if last & 0x80 == 0 { 0 } else { 0xff };
        let mut number = [sign; 8];
        for (index, &byte) in bytes.iter().enumerate() {
            match number.get_mut(index) {
                Some(place) => *place = byte,
                None if byte == sign => {}
                None => return Err(Problem::Number),
            }
        }
        let number = i64::from_le_bytes(number);
        if (number < 0) == (sign != 0) { Ok(number) } else { Err(Problem::Number) }
    }

    /// The bytes up to the next line feed, which is taken too.
    pub(super) fn line(&mut self) -> Result<&'a [u8], Problem> {
        let rest = &self.bytes[self.position..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or(Problem::UnendedLine)?;
        self.position += length + 1;
        Ok(&rest[..length])
    }
}

pub(super) fn utf8(bytes: &[u8]) -> Result<String, Problem> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Problem::Text)
}
