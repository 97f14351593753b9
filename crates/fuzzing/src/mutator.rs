//! Inputs made from valid ones by small damage, the same ones for the same seed.

/// The longest input that is made.
const LONGEST: usize = 16 * 1024;
/// The most repetitions of an opening that are put in at once.
const MOST_NESTING: usize = 2_000;
/// Numbers at which decoders break: lengths, counts and varints that claim more than there is.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];
/// What opens a level in one of the formats.
const OPENINGS: [&[u8]; 8] = [b"[", b"{\"a\":", b"(", b"a.", b"[[a]]\n", b"- ", b"{a: ", b"\"\""];
/// Texts that mean something in one of the formats.
const WORDS: [&[u8]; 14] = [
    b"NaN",
    b"-0",
    b"1e999",
    b"99999999999999999999",
    b"null",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\\ud800",
    b"&a [*a,*a]",
    b"\r\n",
    b"\0",
    b"://",
    b"::",
    b"${HOME}",
];

/// Makes inputs, by a seed alone.
#[derive(Clone, Debug)]
pub struct Mutator {
    examples: Vec<Vec<u8>>,
    state: u64,
}

impl Mutator {
    /// A mutator of valid inputs.
    ///
    /// # Panics
    /// If there are no examples.
    pub fn new(examples: Vec<Vec<u8>>, seed: u64) -> Self {
        assert!(!examples.is_empty(), "inputs are made from examples, and there are none");
        Self { examples, state: seed }
    }

    /// The next input: an example with one to four damages.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut input = self.example().to_vec();
        for _ in 0..=self.below(4) {
            self.damage(&mut input);
        }
        input.truncate(LONGEST);
        input
    }

    fn damage(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        match self.below(10) {
            0 => self.flip_bit(input),
            1 => self.change_byte(input),
            2 => input.truncate(at),
            3 => put(input, at, OPENINGS[self.below(OPENINGS.len())]),
            4 => put(input, at, WORDS[self.below(WORDS.len())]),
            5 => self.put_number(input, at),
            6 => self.repeat_part(input, at),
            7 => self.splice(input, at),
            8 => self.remove_part(input, at),
            _ => self.nest(input, at),
        }
    }

    fn flip_bit(&mut self, input: &mut [u8]) {
        let bit = 1 << self.below(8);
        let at = self.below(input.len().max(1));
        if let Some(byte) = input.get_mut(at) {
            *byte ^= bit;
        }
    }

    fn change_byte(&mut self, input: &mut [u8]) {
        let value = self.below(256) as u8;
        let at = self.below(input.len().max(1));
        if let Some(byte) = input.get_mut(at) {
            *byte = value;
        }
    }

    /// As a varint, as 1, 2, 4 or 8 bytes in either order, or as digits.
    fn put_number(&mut self, input: &mut Vec<u8>, at: usize) {
        let number = NUMBERS[self.below(NUMBERS.len())];
        let width = 1 << self.below(4);
        let bytes = match self.below(4) {
            0 => varint(number),
            1 => number.to_le_bytes()[..width].to_vec(),
            2 => number.to_be_bytes()[8 - width..].to_vec(),
            _ => number.to_string().into_bytes(),
        };
        if self.below(2) == 0 {
            let end = input.len().min(at + bytes.len());
            input.drain(at..end);
        }
        put(input, at, &bytes);
    }

    fn repeat_part(&mut self, input: &mut Vec<u8>, at: usize) {
        let end = at + self.below(input.len() - at + 1);
        let part = input[at..end].to_vec();
        let n_times = 1 + self.below(8);
        put(input, at, &part.repeat(n_times));
    }

    /// Ends as another example ends.
    fn splice(&mut self, input: &mut Vec<u8>, at: usize) {
        let other = self.example().to_vec();
        let start = self.below(other.len() + 1);
        input.truncate(at);
        input.extend_from_slice(&other[start..]);
    }

    fn remove_part(&mut self, input: &mut Vec<u8>, at: usize) {
        let n_bytes = self.below(16);
        let end = input.len().min(at + n_bytes);
        input.drain(at..end);
    }

    fn nest(&mut self, input: &mut Vec<u8>, at: usize) {
        let opening = OPENINGS[self.below(OPENINGS.len())];
        let n_levels = self.below(MOST_NESTING);
        put(input, at, &opening.repeat(n_levels));
    }

    fn example(&mut self) -> &[u8] {
        let position = self.below(self.examples.len());
        &self.examples[position]
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next_number() % bound as u64) as usize
    }

    /// SplitMix64.
    fn next_number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn put(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs_and_another_one_others() {
        let inputs = |seed| {
            let mut mutator = Mutator::new(vec![b"steps = 10".to_vec(), b"{}".to_vec()], seed);
            (0..100).map(|_| mutator.next_input()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
    }

    #[test]
    fn an_input_is_never_longer_than_the_longest() {
        let mut mutator = Mutator::new(vec![vec![7; LONGEST]], 3);
        assert!((0..1_000).all(|_| mutator.next_input().len() <= LONGEST));
    }
}
