//! Where a run is, as ranks tell each other.

/// Where a run is: the policy after so many updates, the last of them in this iteration or before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The iteration that is trained, or to be trained next.
    pub iteration: u32,
    /// Updates since the start of the run.
    pub updates: u64,
}

impl Position {
    /// Bytes of a position.
    pub const BYTES: usize = 12;

    /// As it is sent.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.iteration.to_le_bytes());
        bytes[4..].copy_from_slice(&self.updates.to_le_bytes());
        bytes
    }

    /// As it was sent.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [a, b, c, d, updates @ ..] = bytes;
        Self { iteration: u32::from_le_bytes([a, b, c, d]), updates: u64::from_le_bytes(updates) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_heard_as_it_is_told() {
        let position = Position { iteration: 7, updates: u64::MAX - 1 };
        assert_eq!(Position::from_bytes(position.to_bytes()), position);
    }
}
