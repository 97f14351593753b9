//! The first words on a connection: who calls, and for which group. Nobody of another epoch gets in.

use std::io::{self, Read, Write};

/// What a group is known by: chosen anew for every attempt to make one, and told to its members alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GroupId {
    /// Random bytes.
    pub unique: [u8; 16],
    /// How many groups the same members-to-be made or tried to make before.
    pub epoch: u64,
}

impl std::fmt::Debug for GroupId {
    /// Without the bytes: who knows them may join where connections are not encrypted.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupId").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// Says what speaks here, and in which version.
const MAGIC: [u8; 8] = *b"ranks\x00\x00\x01";
const HELLO: usize = 8 + 16 + 4 * 8;

/// What who connects says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub id: GroupId,
    pub n_ranks: u64,
    /// Who calls.
    pub from: u64,
    /// Whom it means to reach.
    pub to: u64,
}

impl Hello {
    /// Says it.
    pub fn write(self, stream: &mut impl Write) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HELLO);
        bytes.extend(MAGIC);
        bytes.extend(self.id.unique);
        for number in [self.id.epoch, self.n_ranks, self.from, self.to] {
            bytes.extend(number.to_le_bytes());
        }
        stream.write_all(&bytes)?;
        stream.flush()
    }

    /// Hears it; nothing if something else speaks there.
    pub fn read(stream: &mut impl Read) -> io::Result<Option<Self>> {
        let mut bytes = [0; HELLO];
        stream.read_exact(&mut bytes[..8])?;
        if bytes[..8] != MAGIC {
            return Ok(None);
        }
        stream.read_exact(&mut bytes[8..])?;
        let (unique, numbers) = bytes[8..].split_at(16);
        let mut id = GroupId { unique: [0; 16], epoch: 0 };
        id.unique.copy_from_slice(unique);
        let number = |idx: usize| {
            let word = &numbers[8 * idx..8 * idx + 8];
            word.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
        };
        id.epoch = number(0);
        Ok(Some(Self { id, n_ranks: number(1), from: number(2), to: number(3) }))
    }

    /// Why the rank `to` of that group does not let the caller in.
    ///
    /// # Errors
    /// The reason, for the caller to read.
    pub fn check(self, id: &GroupId, n_ranks: usize, to: usize) -> Result<(), String> {
        let (n_ranks, to) = (n_ranks as u64, to as u64);
        if self.id.epoch != id.epoch {
            return Err(format!("the group is of epoch {}, not {}", id.epoch, self.id.epoch));
        }
        // As long for a first wrong byte as for a last one.
        let difference = self.id.unique.iter().zip(id.unique).fold(0, |all, (a, b)| all | (a ^ b));
        if difference != 0 {
            return Err(format!("the group of epoch {} has another unique id", id.epoch));
        }
        if self.n_ranks != n_ranks {
            return Err(format!("the group has {n_ranks} ranks, not {}", self.n_ranks));
        }
        if self.to != to {
            return Err(format!("this is rank {to}, not {}; are the addresses in order?", self.to));
        }
        if self.from <= to || self.from >= n_ranks {
            return Err(format!("rank {} does not connect to rank {to} of {n_ranks}", self.from));
        }
        Ok(())
    }
}

/// Lets a caller in, or says why not.
pub(super) fn answer(stream: &mut impl Write, verdict: &Result<(), String>) -> io::Result<()> {
    let words = verdict.as_ref().err().map_or("", String::as_str).as_bytes();
    let words = &words[..words.len().min(usize::from(u8::MAX))];
    let mut bytes = vec![words.len() as u8];
    bytes.extend(words);
    stream.write_all(&bytes)?;
    stream.flush()
}

/// Hears whether one is let in.
pub(super) fn hear_answer(stream: &mut impl Read) -> io::Result<Result<(), String>> {
    let mut length = [0];
    stream.read_exact(&mut length)?;
    if length == [0] {
        return Ok(Ok(()));
    }
    let mut words = vec![0; usize::from(length[0])];
    stream.read_exact(&mut words)?;
    let words = String::from_utf8_lossy(&words);
    Ok(Err(words.chars().filter(|letter| !letter.is_control()).collect()))
}
