//! Common graphics cards and what fits them.

use std::fmt;

/// A size of memory, and the cards that have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Memory in GB, as its maker calls it.
    pub gigabytes: u32,
    /// Cards of that size.
    pub names: &'static str,
}

/// The share of a card that a plan leaves free: what it cannot count, such as gaps between blocks of the allocator, and the
/// error of what is estimated (docs/measurements.md has up to 5 % on a CPU).
pub const HEADROOM: f64 = 0.1;

/// Common cards that the CUDA build of libtorch has kernels for, the smallest first. Sizes: the maker's data sheets.
pub const CARDS: [Card; 8] = [
    Card { gigabytes: 24, names: "RTX 3090, RTX 4090" },
    Card { gigabytes: 32, names: "RTX 5090" },
    Card { gigabytes: 40, names: "A100 40 GB" },
    Card { gigabytes: 48, names: "RTX A6000, L40S" },
    Card { gigabytes: 80, names: "A100 80 GB, H100" },
    Card { gigabytes: 96, names: "RTX PRO 6000" },
    Card { gigabytes: 141, names: "H200" },
    Card { gigabytes: 192, names: "B200" },
];

impl Card {
    /// Bytes that a process can have of it. A GB is read as 10⁹ bytes: the maker means 2³⁰ of most cards, and the driver
    /// and error correction keep some for themselves.
    pub fn bytes(&self) -> f64 {
        f64::from(self.gigabytes) * 1e9
    }

    /// Whether so many bytes fit with [`HEADROOM`].
    pub fn takes(&self, bytes: f64) -> bool {
        bytes <= self.bytes() * (1.0 - HEADROOM)
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} GB ({})", self.gigabytes, self.names)
    }
}
