//! All chance of a simulated world, from one seed.

use std::time::Duration;

/// Numbers that look random: SplitMix64.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that fall the same way for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(mixed(seed))
    }

    /// Dice of their own, whose throws do not depend on how often others are thrown.
    pub fn apart(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// A number below `sides`; 0 if there are none.
    pub fn below(&mut self, sides: u64) -> u64 {
        self.next() % sides.max(1)
    }

    /// A number from `least` to `most`.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// Whether something happens that does so many times in a thousand.
    pub fn happens(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// A time from `least` to `most` milliseconds.
    pub fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(1000 * self.between(least, most) + self.below(1000))
    }

    /// One of some.
    ///
    /// # Panics
    /// If there are none.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// The output function of SplitMix64: neighbouring numbers give unrelated ones.
pub fn mixed(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// A number that stands for all of `parts` in their order.
pub fn digest(parts: &[u64]) -> u64 {
    parts.iter().fold(0x243f_6a88_85a3_08d3, |chain, part| mixed(chain.rotate_left(17) ^ mixed(*part)))
}

/// Likewise of a text.
pub fn digest_of_text(text: &str) -> u64 {
    text.bytes().fold(0x1319_8a2e_0370_7344, |chain: u64, byte| mixed(chain.rotate_left(9) ^ u64::from(byte)))
}
