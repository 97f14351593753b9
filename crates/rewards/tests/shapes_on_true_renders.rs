//! The shapes scorer accepts what the scenes crate draws, clean or a little noisy, and refuses pictures of other prompts.

use rewards::{PromptRecord, Reward, RgbImage, Score, ShapesOptions, ShapesReward};
use scenes::{PromptSpec, Scene, all_prompts};

/// Numbers in `[0, 1)` from a small linear congruential generator.
fn uniform_source(mut state: u64) -> impl FnMut() -> f32 {
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 24) as f32
    }
}

/// A standard normal number, as the centred sum of twelve uniform ones.
fn normal(uniform: &mut impl FnMut() -> f32) -> f32 {
    (0..12).map(|_| uniform()).sum::<f32>() - 6.0
}

fn record(spec: &PromptSpec) -> PromptRecord {
    PromptRecord { prompt: spec.prompt.clone(), metadata: serde_json::to_value(spec).expect("plain data") }
}

fn score(images: &[RgbImage], prompts: &[PromptRecord]) -> Vec<Score> {
    let reward = ShapesReward::new(ShapesOptions::default()).expect("defaults are in range");
    reward.score(images, prompts).expect("good input")
}

fn mean(values: impl Iterator<Item = f32>) -> f32 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / count as f32
}

/// Mean value and mean strict accuracy over pictures of every prompt, each changed by `spoil`.
fn accuracy(size: usize, rounds: usize, mut spoil: impl FnMut(&mut RgbImage)) -> (f32, f32) {
    let mut uniform = uniform_source(size as u64);
    let specs: Vec<PromptSpec> = std::iter::repeat_n(all_prompts(), rounds).flatten().collect();
    let images: Vec<RgbImage> = specs
        .iter()
        .map(|spec| {
            let mut image = Scene::sample(spec, &mut uniform, size).expect("prompt of this world").render();
            spoil(&mut image);
            image
        })
        .collect();
    let scores = score(&images, &specs.iter().map(record).collect::<Vec<_>>());
    (mean(scores.iter().map(|s| s.value)), mean(scores.iter().map(|s| s.extras["strict_accuracy"])))
}

fn add_noise(deviation: f32) -> impl FnMut(&mut RgbImage) {
    let mut uniform = uniform_source(7);
    move |image| {
        for value in &mut image.pixels {
            *value = (f32::from(*value) + 255.0 * deviation * normal(&mut uniform)).round().clamp(0.0, 255.0)
                as u8;
        }
    }
}

#[test]
fn every_true_render_is_strictly_correct() {
    for size in [16, 24, 32] {
        assert_eq!(accuracy(size, 4, |_| ()), (1.0, 1.0), "size {size}");
    }
}

#[test]
fn noise_of_a_decoder_is_forgiven_and_strong_noise_is_not() {
    let (value, strict) = accuracy(16, 2, add_noise(0.05));
    assert!(value > 0.99 && strict > 0.98, "deviation 0.05: value {value}, strict {strict}");
    let (value, strict) = accuracy(16, 1, add_noise(0.1));
    assert!(value > 0.9 && strict > 0.9, "deviation 0.1: value {value}, strict {strict}");
    let (value, strict) = accuracy(16, 1, add_noise(0.5));
    assert!(value < 0.3 && strict < 0.01, "deviation 0.5: value {value}, strict {strict}");
}

#[test]
fn gradient_of_light_is_forgiven() {
    let shade = |image: &mut RgbImage| {
        for y in 0..image.height {
            for x in 0..image.width {
                let shift = 24 * (x + y) / (image.width + image.height);
                image.set_pixel(x, y, image.pixel(x, y).map(|value| value.saturating_add(shift as u8)));
            }
        }
    };
    let (value, strict) = accuracy(16, 1, shade);
    assert!(value == 1.0 && strict == 1.0, "value {value}, strict {strict}");
}

#[test]
fn pictures_of_other_prompts_are_refused() {
    let mut uniform = uniform_source(5);
    let specs = all_prompts();
    // A colour left open matches by luck, so only prompts that name everything can be told apart without fail.
    let named = |spec: &&PromptSpec| spec.include.iter().all(|want| want.color.is_some());
    let specs: Vec<&PromptSpec> = specs.iter().filter(named).step_by(5).collect();
    for (idx, spec) in specs.iter().enumerate() {
        let image = Scene::sample(spec, &mut uniform, 16).expect("prompt of this world").render();
        let others: Vec<&&PromptSpec> =
            specs.iter().enumerate().filter(|&(other, _)| other != idx).map(|(_, spec)| spec).collect();
        let records: Vec<PromptRecord> = others.iter().map(|spec| record(spec)).collect();
        let scores = score(&vec![image; records.len()], &records);
        for (other, score) in others.iter().zip(scores) {
            let same = other.include.len() == spec.include.len()
                && other.include.iter().all(|want| spec.include.contains(want));
            assert_eq!(score.extras["strict_accuracy"] == 1.0, same, "{} for {}", spec.prompt, other.prompt);
            assert_eq!(score.value == 1.0, same, "{} for {}", spec.prompt, other.prompt);
        }
    }
}
