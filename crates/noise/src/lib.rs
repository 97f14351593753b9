//! Random numbers as a pure function of a key: who asks, and when, does not matter.
//!
//! A task may be run again by another worker, and the learner rebuilds latents from noise it never received. Both
//! need the same bits, so nothing here has a state that advances. A [`NoiseKey`] names a stream; the stream's numbers
//! come from Philox4x32-10, a counter-based generator: ten rounds of multiply and xor turn a 128-bit counter into 128
//! random bits, one-to-one for each 64-bit Philox key.
//!
//! A [`NoiseKey`] is wider than a Philox key, so three calls are chained, each absorbing a part of it:
//!
//! ```text
//! run seed ─▶ key ┐                  ┌▶ key ┐               ┌▶ key ┐
//!                 Philox ─▶ 128 bits ┤      Philox ─▶ 128 ──┤      Philox ─▶ 4 words of the stream
//! purpose,        │                  └▶ ctr │               └▶ ctr │
//! iteration,  ctr ┘           step, branch ─┘      block number ───┘
//! prompt slot, seed index
//! ```
//!
//! Within a run the chain up to the last call is one-to-one in everything but the two halves it re-keys with, so
//! streams of different keys collide with the probability of a 128-bit hash: never.
//!
//! Normal deviates are Box–Muller pairs in float64, with logarithm and sine from the `libm` crate, so that neither the
//! machine's C library nor its vector unit can change a bit. Reaching out to 6.7 standard deviations, they are then
//! rounded to float32.
//!
//! Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

/// What a stream is for; streams of different purposes never meet. The numbers are part of every stream's name and stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Purpose {
    /// Initial and transition noise of training trajectories.
    Rollout = 0,
    /// Initial noise of evaluation images.
    Evaluation = 1,
    /// Initial values of an adapter.
    AdapterInit = 2,
    /// Noise and times of flow-matching pre-training.
    Pretrain = 3,
    /// Which steps an iteration trains, where that is random.
    BranchSteps = 5,
    /// Drawing of procedural training scenes.
    Scenes = 7,
    /// Initial values of a network's own weights.
    ModelInit = 8,
}

/// The name of a stream of random numbers; fields that a purpose has no use for stay 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NoiseKey {
    /// Seed of the whole run.
    pub run_seed: u64,
    /// What the stream is for.
    pub purpose: Purpose,
    /// Training iteration, or whatever counts repetitions of the purpose.
    pub iteration: u32,
    /// Index of the prompt among those of the iteration.
    pub prompt_slot: u32,
    /// Index of the initial noise among those of the prompt.
    pub seed_index: u32,
    /// Sampling step of a transition, or [`NoiseKey::INITIAL_STEP`].
    pub step: u32,
    /// Exploration at that step.
    pub branch: u32,
}

impl NoiseKey {
    /// The step that stands for "before the first": it keys initial noise, and no transition.
    pub const INITIAL_STEP: u32 = u32::MAX;

    /// The stream of a task's initial noise.
    pub fn initial(
        run_seed: u64,
        purpose: Purpose,
        iteration: u32,
        prompt_slot: u32,
        seed_index: u32,
    ) -> Self {
        Self { run_seed, purpose, iteration, prompt_slot, seed_index, step: Self::INITIAL_STEP, branch: 0 }
    }

    /// The stream of the noise that `branch` adds at `step` of the same task.
    pub fn transition(self, step: u32, branch: u32) -> Self {
        Self { step, branch, ..self }
    }
}

/// `len` independent standard normal deviates.
pub fn standard_normal(key: &NoiseKey, len: usize) -> Vec<f32> {
    let stream = Stream::new(key);
    let mut normals = vec![0.0; len];
    let mut blocks = normals.chunks_exact_mut(4);
    let mut block_number = 0;
    for block in &mut blocks {
        block.copy_from_slice(&normals_of(stream.block(block_number)));
        block_number += 1;
    }
    let rest = blocks.into_remainder();
    let n_rest = rest.len();
    rest.copy_from_slice(&normals_of(stream.block(block_number))[..n_rest]);
    normals
}

/// `len` independent numbers, evenly distributed over the 2²⁴ multiples of 2⁻²⁴ in `[0, 1)`.
pub fn uniform(key: &NoiseKey, len: usize) -> Vec<f32> {
    let stream = Stream::new(key);
    let words = (0..).flat_map(|block_number| stream.block(block_number));
    words.take(len).map(|word| (word >> 8) as f32 / (1 << 24) as f32).collect()
}

/// The numbers `0..n` in random order, every order being equally likely up to a bias below `n·2⁻⁶⁴`.
pub fn permutation(key: &NoiseKey, n: usize) -> Vec<usize> {
    let stream = Stream::new(key);
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        let [low, high, ..] = stream.block(last as u64);
        let random = u128::from(high) << 32 | u128::from(low);
        let chosen = (random * (last as u128 + 1)) >> 64;
        order.swap(last, chosen as usize);
    }
    order
}

/// A key boiled down to what the last Philox call needs: its key and the upper half of its counter.
struct Stream {
    key: [u32; 2],
    counter_high: [u32; 2],
}

impl Stream {
    fn new(key: &NoiseKey) -> Self {
        let seed = [key.run_seed as u32, (key.run_seed >> 32) as u32];
        let task = philox([key.purpose as u32, key.iteration, key.prompt_slot, key.seed_index], seed);
        let place = philox([key.step, key.branch, task[2], task[3]], [task[0], task[1]]);
        Self { key: [place[0], place[1]], counter_high: [place[2], place[3]] }
    }

    fn block(&self, number: u64) -> [u32; 4] {
        let [high_0, high_1] = self.counter_high;
        philox([number as u32, (number >> 32) as u32, high_0, high_1], self.key)
    }
}

/// Philox4x32-10.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let product_0 = 0xD251_1F53_u64 * u64::from(counter[0]);
        let product_1 = 0xCD9E_8D57_u64 * u64::from(counter[2]);
        counter = [
            (product_1 >> 32) as u32 ^ counter[1] ^ key[0],
            product_1 as u32,
            (product_0 >> 32) as u32 ^ counter[3] ^ key[1],
            product_0 as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

fn normals_of(words: [u32; 4]) -> [f32; 4] {
    let [first, second] = box_muller(words[0], words[1]);
    let [third, fourth] = box_muller(words[2], words[3]);
    [first, second, third, fourth]
}

/// Two normal deviates from a radius and an angle; the half keeps the logarithm away from 0.
fn box_muller(radius_word: u32, angle_word: u32) -> [f32; 2] {
    let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    let radius = (-2.0 * libm::log(unit(radius_word))).sqrt();
    let (sine, cosine) = libm::sincos(std::f64::consts::TAU * unit(angle_word));
    [(radius * cosine) as f32, (radius * sine) as f32]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn key() -> NoiseKey {
        NoiseKey::initial(42, Purpose::Rollout, 3, 1, 2)
    }

    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn distinct_keys_give_distinct_streams() {
        let mut streams = HashSet::new();
        let mut n_keys = 0;
        for purpose in [Purpose::Rollout, Purpose::Evaluation, Purpose::Pretrain] {
            for run_seed in [0, 1, 1 << 32] {
                for place in 0..3_u32.pow(5) {
                    let digit = |position: u32| place / 3_u32.pow(position) % 3;
                    let key = NoiseKey::initial(run_seed, purpose, digit(0), digit(1), digit(2));
                    let streams_of_task = [key, key.transition(digit(3), digit(4))];
                    for key in &streams_of_task[usize::from(digit(3) + digit(4) > 0)..] {
                        n_keys += 1;
                        streams
                            .insert(standard_normal(key, 4).iter().map(|z| z.to_bits()).collect::<Vec<_>>());
                    }
                }
            }
        }
        assert_eq!(streams.len(), n_keys);
    }

    #[test]
    fn streams_of_neighbouring_keys_are_uncorrelated() {
        let len = 20_000;
        let base = standard_normal(&key().transition(0, 0), len);
        for other in [key(), key().transition(0, 1), key().transition(1, 0)] {
            let other = standard_normal(&other, len);
            let products = base.iter().zip(&other).map(|(a, b)| f64::from(a * b));
            let correlation = products.sum::<f64>() / len as f64;
            assert!(correlation.abs() < 5.0 / (len as f64).sqrt(), "correlation {correlation}");
        }
    }

    #[test]
    fn a_stream_does_not_depend_on_how_much_of_it_is_drawn() {
        let long = standard_normal(&key(), 1003);
        for len in [0, 1, 3, 4, 7, 1002] {
            assert_eq!(standard_normal(&key(), len), long[..len]);
        }
    }

    #[test]
    fn normals_have_the_moments_and_the_distribution_of_a_normal() {
        let len = 1_000_000;
        let mut normals = standard_normal(&key(), len);
        let moment = |power: i32| normals.iter().map(|z| f64::from(*z).powi(power)).sum::<f64>() / len as f64;
        for (power, expected, standard_error) in
            [(1, 0.0, 1e-3), (2, 1.0, 1.5e-3), (3, 0.0, 4e-3), (4, 3.0, 1e-2)]
        {
            let got = moment(power);
            assert!((got - expected).abs() < 5.0 * standard_error, "moment {power} is {got}");
        }
        normals.sort_by(f32::total_cmp);
        let distance = normals.iter().enumerate().map(|(rank, z)| {
            let below = 0.5 * libm::erfc(-f64::from(*z) / std::f64::consts::SQRT_2);
            (below - (rank as f64 + 0.5) / len as f64).abs()
        });
        let kolmogorov = distance.fold(0.0, f64::max) * (len as f64).sqrt();
        assert!(kolmogorov < 1.95, "Kolmogorov-Smirnov statistic {kolmogorov}, 0.1% point is 1.95");
        let beyond_four = normals.iter().filter(|z| z.abs() > 4.0).count();
        assert!((35..=95).contains(&beyond_four), "{beyond_four} beyond four sigma, 63 expected");
    }

    #[test]
    fn the_most_extreme_words_give_finite_normals() {
        for radius in [0, u32::MAX] {
            for angle in [0, 1 << 30, 1 << 31, u32::MAX] {
                assert!(box_muller(radius, angle).iter().all(|z| z.is_finite() && z.abs() < 6.77));
            }
        }
    }

    #[test]
    fn the_bits_of_a_stream_are_fixed_for_ever() {
        let bits: Vec<u32> = standard_normal(&key(), 4).iter().map(|z| z.to_bits()).collect();
        // From an independent implementation of the chain in Python. Integers and float64 operations one by one, libtorch
        // nowhere: workers on other processors must draw these very bits.
        assert_eq!(bits, [1055049750, 3212864109, 3215678797, 3207783880]);
        assert_eq!(permutation(&key(), 8), [1, 4, 3, 2, 6, 0, 5, 7]);
    }

    #[test]
    fn uniforms_fill_the_unit_interval() {
        let len = 100_000;
        let uniforms = uniform(&key(), len);
        assert!(uniforms.iter().all(|u| (0.0..1.0).contains(u)));
        let mut counts = [0_usize; 10];
        for u in &uniforms {
            counts[(u * 10.0) as usize] += 1;
        }
        let chi_squared: f64 = counts.iter().map(|count| (*count as f64 - 1e4).powi(2) / 1e4).sum();
        assert!(chi_squared < 27.9, "chi squared {chi_squared}, 0.1% point at 9 degrees is 27.9");
    }

    #[test]
    fn permutations_hold_every_number_once_and_vary_with_the_key() {
        let mut orders = HashSet::new();
        for iteration in 0..50 {
            let order = permutation(&NoiseKey::initial(1, Purpose::BranchSteps, iteration, 0, 0), 20);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..20).collect::<Vec<_>>());
            orders.insert(order);
        }
        assert_eq!(orders.len(), 50);
        assert!(permutation(&key(), 0).is_empty());
        assert_eq!(permutation(&key(), 1), [0]);
    }

    #[test]
    fn every_order_of_three_is_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        for iteration in 0..6000 {
            let order = permutation(&NoiseKey::initial(1, Purpose::BranchSteps, iteration, 0, 0), 3);
            *counts.entry(order).or_insert(0_i32) += 1;
        }
        assert_eq!(counts.len(), 6);
        let chi_squared: f64 = counts.values().map(|count| f64::from(count - 1000).powi(2) / 1000.0).sum();
        assert!(chi_squared < 20.5, "chi squared {chi_squared}, 0.1% point at 5 degrees is 20.5");
    }
}
