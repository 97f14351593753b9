//! How long something took the last few times.

use std::collections::VecDeque;
use std::time::Duration;

/// So many that one odd time moves neither the median nor, for long, the longest.
const KEPT: usize = 7;

/// The last few times; older ones are forgotten, since cards throttle, hosts get neighbours, and a config's tasks change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecentTimes {
    /// Oldest first.
    times: VecDeque<Duration>,
}

impl RecentTimes {
    /// Takes note of another time.
    pub fn note(&mut self, took: Duration) {
        if self.times.len() == KEPT {
            self.times.pop_front();
        }
        self.times.push_back(took);
    }

    /// How many are remembered.
    pub fn n_noted(&self) -> usize {
        self.times.len()
    }

    /// The usual time; `None` before there is any.
    pub fn median(&self) -> Option<Duration> {
        lower_median(self.times.iter().copied())
    }

    /// The longest of them; `None` before there is any.
    pub fn longest(&self) -> Option<Duration> {
        self.times.iter().copied().max()
    }
}

/// The median, of two in the middle the lower: of two workers the faster one is what is usual.
pub fn lower_median<T: Ord>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    let middle = values.len().checked_sub(1)? / 2;
    values.sort_unstable();
    Some(values.swap_remove(middle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_odd_time_is_not_usual_and_old_ones_are_forgotten() {
        let second = Duration::from_secs(1);
        let mut times = RecentTimes::default();
        assert_eq!((times.median(), times.longest()), (None, None));
        times.note(second * 100);
        assert_eq!(times.median(), Some(second * 100));
        (1..=4).for_each(|seconds| times.note(second * seconds));
        assert_eq!((times.median(), times.longest()), (Some(second * 3), Some(second * 100)));
        (1..=7).for_each(|seconds| times.note(second * seconds));
        assert_eq!(
            (times.median(), times.longest(), times.n_noted()),
            (Some(second * 4), Some(second * 7), 7)
        );
    }

    #[test]
    fn of_two_in_the_middle_the_lower_is_the_median() {
        for (values, median) in [(&[][..], None), (&[5], Some(5)), (&[9, 1], Some(1)), (&[3, 9, 1], Some(3))]
        {
            assert_eq!(lower_median(values.iter().copied()), median, "{values:?}");
        }
    }
}
