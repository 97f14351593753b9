//! Tensors that come from a seed in place of a file.

use std::f64::consts::TAU;

use tch::{Device, Kind, Tensor};

use super::{Init, WeightOptions};

/// A prime, so that the rows of a matrix meet the block at different places.
const BLOCK_LENGTH: i64 = 1_048_573;
/// Spread of matrices that a network trained from nothing starts with zeros in: with them nothing would flow.
const SPREAD_FOR_ZEROS: f64 = 0.02;

/// Draws tensors; each depends on the seed and its name alone.
pub(super) enum Generator {
    /// Every number is drawn: what a network trained from nothing starts with.
    Drawn,
    /// Stretches of one block of numbers, as fast as memory: what has the spread of weights, and the speed and memory.
    Repeated(Block),
}

impl Generator {
    /// Fills `target`, which is contiguous, with the values of a tensor whose seed is `seed`.
    pub(super) fn fill(&self, target: &mut Tensor, seed: u64, init: Init) {
        match self {
            Self::Drawn => target.copy_(&drawn(seed, &target.size(), init)),
            Self::Repeated(block) => block.fill(target, seed, init),
        }
    }
}

/// Uniform numbers of mean zero and variance one.
pub(super) struct Block(Tensor);

impl Block {
    pub(super) fn new(seed: u64, options: &WeightOptions) -> Self {
        let mut bits = SplitMix(seed);
        let values: Vec<f32> =
            (0..BLOCK_LENGTH).map(|_| (12_f64.sqrt() * (bits.uniform() - 0.5)) as f32).collect();
        Self(Tensor::from_slice(&values).to_device(options.device).to_kind(options.kind))
    }

    fn fill(&self, target: &mut Tensor, seed: u64, init: Init) {
        let shape = target.size();
        let spread = match init {
            Init::Ones => return drop(target.fill_(1.0)),
            Init::Zeros if shape.len() < 2 => return drop(target.zero_()),
            Init::Zeros => SPREAD_FOR_ZEROS,
            Init::Normal(spread) => spread,
            Init::Xavier => xavier_bound(&shape) / 3_f64.sqrt(),
        };
        let (target, scaled) = (target.view(-1), &self.0 * spread);
        let (length, mut written) = (target.size()[0], 0);
        let mut start = (seed % BLOCK_LENGTH as u64) as i64;
        while written < length {
            let count = (length - written).min(BLOCK_LENGTH - start);
            target.narrow(0, written, count).copy_(&scaled.narrow(0, start, count));
            (written, start) = (written + count, 0);
        }
    }
}

fn drawn(seed: u64, shape: &[i64], init: Init) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    let mut bits = SplitMix(seed);
    let values: Vec<f32> = match init {
        Init::Zeros => return Tensor::zeros(shape, (Kind::Float, Device::Cpu)),
        Init::Ones => return Tensor::ones(shape, (Kind::Float, Device::Cpu)),
        Init::Normal(std) => (0..count).map(|_| (std * bits.normal()) as f32).collect(),
        Init::Xavier => {
            let bound = xavier_bound(shape);
            (0..count).map(|_| (bound * (2.0 * bits.uniform() - 1.0)) as f32).collect()
        }
    };
    Tensor::from_slice(&values).view(shape)
}

fn xavier_bound(shape: &[i64]) -> f64 {
    let area: i64 = shape.iter().skip(2).product();
    let fans = shape.iter().take(2).sum::<i64>() * area;
    (6.0 / fans as f64).sqrt()
}

/// FNV-1a over a tensor's name.
pub(super) fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The SplitMix64 generator: enough for initial weights, which only need to be alike on every machine.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1).
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    /// Standard normal, by Box and Muller's method.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repeated(seed: u64, shape: &[i64], init: Init) -> Tensor {
        let options = WeightOptions::new(Kind::Float, Device::Cpu);
        let mut tensor = Tensor::empty(shape, (Kind::Float, Device::Cpu));
        Generator::Repeated(Block::new(7, &options)).fill(&mut tensor, seed, init);
        tensor
    }

    #[test]
    fn repeated_tensors_depend_on_the_seed_and_have_the_asked_spread() {
        let draw = |seed| repeated(seed, &[1500, 1000], Init::Normal(0.5));
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        assert!((draw(3).std(false).double_value(&[]) - 0.5).abs() < 2e-3);
        let xavier = repeated(3, &[300, 700], Init::Xavier).std(false).double_value(&[]);
        assert!((xavier - (2.0_f64 / 1000.0).sqrt()).abs() < 1e-3);
    }

    #[test]
    fn no_two_rows_of_a_repeated_matrix_are_alike() {
        let matrix = repeated(3, &[4096, 1024], Init::Normal(1.0));
        let first_column: Vec<f32> = Vec::try_from(matrix.select(1, 0)).unwrap();
        let distinct: std::collections::BTreeSet<u32> = first_column.iter().map(|x| x.to_bits()).collect();
        assert!(distinct.len() > 4000, "{}", distinct.len());
    }

    #[test]
    fn matrices_that_start_with_zeros_let_something_through_but_biases_stay_zero() {
        assert!(repeated(3, &[8, 8], Init::Zeros).std(false).double_value(&[]) > 0.0);
        assert_eq!(repeated(3, &[8], Init::Zeros), Tensor::zeros([8], (Kind::Float, Device::Cpu)));
        assert_eq!(repeated(3, &[8], Init::Ones), Tensor::ones([8], (Kind::Float, Device::Cpu)));
    }
}
