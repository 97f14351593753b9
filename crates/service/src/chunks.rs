//! Bytes of any length as the chunks of a stream, and back: nothing lost, swapped, cut or flipped goes unnoticed.

use bytes::Bytes;
use proto::Chunk;

use crate::CHUNK_BYTES;

/// The most that is set aside at first for bytes that are only announced yet.
const TRUSTED_LENGTH: usize = 1024 * 1024;

/// Cuts bytes into chunks, in order; the chunks share the memory of `bytes`.
pub fn chunks(bytes: Bytes) -> impl Iterator<Item = Chunk> + Send + 'static {
    chunks_of(bytes, CHUNK_BYTES)
}

/// The same with chunks of another length, by which that of [`chunks`] was chosen.
///
/// # Panics
/// If the length is 0.
pub fn chunks_of(bytes: Bytes, length: usize) -> impl Iterator<Item = Chunk> + Send + 'static {
    (0..bytes.len()).step_by(length).map(move |start| {
        let data = bytes.slice(start..bytes.len().min(start + length));
        Chunk { offset: start as u64, crc32: crc32fast::hash(&data), data }
    })
}

/// Checks the chunks of a stream one by one, and keeps none of them.
#[derive(Debug)]
pub struct ChunkCheck {
    expected: u64,
    received: u64,
    hasher: blake3::Hasher,
}

impl ChunkCheck {
    /// Of a stream of as many bytes as were announced.
    pub fn new(expected: u64) -> Self {
        Self { expected, received: 0, hasher: blake3::Hasher::new() }
    }

    /// Looks at the next chunk.
    ///
    /// # Errors
    /// If the chunk is damaged, is not the next one, or holds more than was announced.
    pub fn accept(&mut self, chunk: &Chunk) -> Result<(), ChunkError> {
        let (offset, expected) = (chunk.offset, self.received);
        if offset != expected {
            return Err(ChunkError::OutOfOrder { offset, expected });
        }
        // A stream of nothing would never end.
        if chunk.data.is_empty() {
            return Err(ChunkError::Empty { offset });
        }
        if crc32fast::hash(&chunk.data) != chunk.crc32 {
            return Err(ChunkError::Corrupt { offset });
        }
        let n_bytes = chunk.data.len() as u64;
        if n_bytes > self.expected - self.received {
            return Err(ChunkError::TooLong { expected: self.expected });
        }
        self.hasher.update(&chunk.data);
        self.received += n_bytes;
        Ok(())
    }

    /// Whether all came, and its BLAKE3 digest is `digest`.
    ///
    /// # Errors
    /// If bytes are missing or the digest differs.
    pub fn finish(&self, digest: &[u8]) -> Result<(), ChunkError> {
        if self.received != self.expected {
            return Err(ChunkError::TooShort { got: self.received, expected: self.expected });
        }
        match self.hasher.finalize().as_bytes() == digest {
            true => Ok(()),
            false => Err(ChunkError::Digest),
        }
    }
}

/// Puts the chunks of a stream together again.
#[derive(Debug)]
pub struct Assembly {
    expected: usize,
    bytes: Vec<u8>,
    check: ChunkCheck,
}

impl Assembly {
    /// An assembly of as many bytes as were announced.
    pub fn new(expected: usize) -> Self {
        let bytes = Vec::with_capacity(expected.min(TRUSTED_LENGTH));
        Self { expected, bytes, check: ChunkCheck::new(expected as u64) }
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    /// If the chunk is damaged, is not the next one, or holds more than was announced.
    pub fn accept(&mut self, chunk: &Chunk) -> Result<(), ChunkError> {
        self.check.accept(chunk)?;
        self.make_room(chunk.data.len());
        self.bytes.extend_from_slice(&chunk.data);
        Ok(())
    }

    /// Memory grows with what has come, to twice as much each time, but not beyond what was announced.
    fn make_room(&mut self, n_bytes: usize) {
        let n_free = self.bytes.capacity() - self.bytes.len();
        if n_free < n_bytes {
            let n_left = self.expected - self.bytes.len();
            self.bytes.reserve_exact(n_bytes.max(self.bytes.len()).min(n_left));
        }
    }

    /// All bytes, if their BLAKE3 digest is `digest`.
    ///
    /// # Errors
    /// If bytes are missing or the digest differs.
    pub fn finish(self, digest: &[u8]) -> Result<Vec<u8>, ChunkError> {
        self.check.finish(digest)?;
        Ok(self.bytes)
    }
}

/// What is wrong with a stream of chunks; sending it again is the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// A chunk is missing, repeated or early.
    #[error("a chunk begins at byte {offset}, but byte {expected} is next")]
    OutOfOrder {
        /// Where it begins.
        offset: u64,
        /// Where it should.
        expected: u64,
    },
    /// A chunk has no bytes.
    #[error("the chunk at byte {offset} is empty")]
    Empty {
        /// Where it begins.
        offset: u64,
    },
    /// A chunk's checksum does not hold.
    #[error("the chunk at byte {offset} is damaged")]
    Corrupt {
        /// Where it begins.
        offset: u64,
    },
    /// More came than was announced.
    #[error("the stream goes on after the {expected} bytes that were announced")]
    TooLong {
        /// Bytes announced.
        expected: u64,
    },
    /// Less came than was announced.
    #[error("the stream ends after {got} of {expected} bytes")]
    TooShort {
        /// Bytes received.
        got: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// The digest of everything does not hold.
    #[error("the bytes of the stream have another digest than announced")]
    Digest,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Bytes {
        (0..CHUNK_BYTES * 2 + 5).map(|position| (position % 251) as u8).collect()
    }

    fn assemble(expected: usize, chunks: &[Chunk]) -> Result<Vec<u8>, ChunkError> {
        let mut assembly = Assembly::new(expected);
        chunks.iter().try_for_each(|chunk| assembly.accept(chunk))?;
        assembly.finish(blake3::hash(&message()).as_bytes())
    }

    #[test]
    fn chunks_make_up_the_bytes_they_were_cut_from() {
        let chunks: Vec<_> = chunks(message()).collect();
        assert_eq!(
            chunks.iter().map(|chunk| chunk.data.len()).collect::<Vec<_>>(),
            [CHUNK_BYTES, CHUNK_BYTES, 5]
        );
        assert_eq!(assemble(message().len(), &chunks), Ok(message().to_vec()));
        assert_eq!(super::chunks(Bytes::new()).count(), 0);
    }

    #[test]
    fn memory_is_taken_by_bytes_that_came_and_no_more_than_was_announced() {
        let length = 40 * CHUNK_BYTES + 5;
        let mut assembly = Assembly::new(length);
        assert!(assembly.bytes.capacity() <= TRUSTED_LENGTH, "nothing has come");
        for chunk in chunks(vec![1; length].into()) {
            assembly.accept(&chunk).expect("the next chunk");
            assert!(assembly.bytes.capacity() <= length.min(TRUSTED_LENGTH + 2 * assembly.bytes.len()));
        }
        assert_eq!(assembly.bytes.len(), length);
    }

    #[test]
    fn every_damage_is_noticed() {
        let length = message().len();
        let good: Vec<_> = chunks(message()).collect();
        let second = CHUNK_BYTES as u64;
        let swapped = [good[1].clone()];
        assert_eq!(assemble(length, &swapped), Err(ChunkError::OutOfOrder { offset: second, expected: 0 }));
        let repeated = [good[0].clone(), good[0].clone()];
        assert_eq!(assemble(length, &repeated), Err(ChunkError::OutOfOrder { offset: 0, expected: second }));
        let mut flipped = good.clone();
        flipped[1].crc32 ^= 1;
        assert_eq!(assemble(length, &flipped), Err(ChunkError::Corrupt { offset: second }));
        let empty = [Chunk::default()];
        assert_eq!(assemble(length, &empty), Err(ChunkError::Empty { offset: 0 }));
        let too_short = ChunkError::TooShort { got: length as u64 - 5, expected: length as u64 };
        assert_eq!(assemble(length, &good[..2]), Err(too_short));
        assert_eq!(assemble(length - 1, &good), Err(ChunkError::TooLong { expected: length as u64 - 1 }));
        let other: Vec<_> = chunks(vec![0; length].into()).collect();
        assert_eq!(assemble(length, &other), Err(ChunkError::Digest));
    }
}
