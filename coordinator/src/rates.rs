//! How fast a run goes and when it will be done, from what was seen of it: pure, with the clock given.

use crate::results::RunProgress;
use crate::tasks::TaskCounts;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Rates are those of the last minutes.
const WINDOW: Duration = Duration::from_secs(120);
/// Time between two samples that are kept.
const SPACING: Duration = Duration::from_secs(1);

/// Samples of a run's progress.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    images: u64,
    network_evaluations: u64,
    /// In iterations, with the part of the one at work.
    position: f64,
}

impl Rates {
    /// Takes note of how far the run is.
    pub fn observe(&mut self, progress: &RunProgress, tasks: TaskCounts, now: Instant) {
        if self.samples.back().is_some_and(|last| now.duration_since(last.at) < SPACING) {
            return;
        }
        let n_tasks = tasks.waiting + tasks.leased + tasks.held;
        let part = if n_tasks > 0 { f64::from(tasks.held) / f64::from(n_tasks) } else { 0.0 };
        let sample = Sample {
            at: now,
            images: progress.images,
            network_evaluations: progress.network_evaluations,
            position: f64::from(progress.iteration) + part,
        };
        // A learner that came back from a checkpoint counts from there: what was seen before says nothing now.
        if self.samples.back().is_some_and(|last| sample.images < last.images) {
            self.samples.clear();
        }
        self.samples.push_back(sample);
        while self.samples.front().is_some_and(|first| now.duration_since(first.at) > WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Images per second.
    pub fn images_per_second(&self) -> f64 {
        self.per_second(|sample| sample.images as f64)
    }

    /// Guided network evaluations per second.
    pub fn network_evaluations_per_second(&self) -> f64 {
        self.per_second(|sample| sample.network_evaluations as f64)
    }

    /// Time until all iterations are trained; `None` while nobody can tell.
    pub fn time_left(&self, iterations: u32) -> Option<Duration> {
        let speed = self.per_second(|sample| sample.position);
        let left = f64::from(iterations) - self.samples.back()?.position;
        if speed > 0.0 { Duration::try_from_secs_f64(left.max(0.0) / speed).ok() } else { None }
    }

    fn per_second(&self, value: impl Fn(&Sample) -> f64) -> f64 {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return 0.0;
        };
        let seconds = last.at.duration_since(first.at).as_secs_f64();
        if seconds > 0.0 { ((value(last) - value(first)) / seconds).max(0.0) } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(rates: &mut Rates, (iteration, held, images): (u32, u32, u64), now: Instant) {
        let progress =
            RunProgress { iteration, images, network_evaluations: images * 5, ..RunProgress::default() };
        rates.observe(&progress, TaskCounts { waiting: 10 - held, leased: 0, held }, now);
    }

    #[test]
    fn rates_and_time_left_follow_the_samples() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        assert_eq!(rates.time_left(4), None);
        observe(&mut rates, (0, 0, 0), start);
        observe(&mut rates, (1, 5, 300), start + Duration::from_secs(30));
        assert_eq!(rates.images_per_second(), 10.0);
        assert_eq!(rates.network_evaluations_per_second(), 50.0);
        assert_eq!(rates.time_left(4), Some(Duration::from_secs(50)));
    }

    #[test]
    fn only_the_last_minutes_count() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        observe(&mut rates, (0, 0, 0), start);
        observe(&mut rates, (0, 0, 0), start + WINDOW);
        observe(&mut rates, (0, 0, 100), start + WINDOW + Duration::from_secs(10));
        assert_eq!(rates.images_per_second(), 10.0);
    }

    #[test]
    fn a_learner_that_went_back_starts_the_count_over() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        observe(&mut rates, (5, 0, 900), start);
        observe(&mut rates, (4, 0, 700), start + Duration::from_secs(10));
        observe(&mut rates, (4, 0, 800), start + Duration::from_secs(20));
        assert_eq!(rates.images_per_second(), 10.0);
    }
}
