//! How messages travel between hosts: late, twice, out of order, not at all.

use crate::dice::Dice;
use crate::scenario::{Host, Weather};
use std::collections::BTreeMap;
use std::time::Duration;

/// What becomes of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives after each of these times.
    Arrives(Vec<Duration>),
    /// Nothing of it arrives, and nobody hears so.
    Vanishes,
    /// The connection breaks, which the caller hears after this time.
    Breaks(Duration),
}

/// The network.
#[derive(Debug)]
pub struct Network {
    weather: Weather,
    dice: Dice,
    is_calm: bool,
    /// Until when nothing gets from one host to another.
    cuts: BTreeMap<(Host, Host), Duration>,
}

impl Network {
    /// A network with this weather.
    pub fn new(weather: Weather, dice: Dice) -> Self {
        Self { weather, dice, is_calm: false, cuts: BTreeMap::new() }
    }

    /// From now on every message arrives once and in good time.
    pub fn calm_down(&mut self) {
        self.is_calm = true;
        self.cuts.clear();
    }

    /// Lets nothing get from one host to another until then.
    pub fn cut(&mut self, from: Host, to: Host, until: Duration) {
        self.cuts.insert((from, to), until);
    }

    /// Whether nothing gets from one host to another now.
    pub fn is_cut(&self, from: Host, to: Host, now: Duration) -> bool {
        self.cuts.get(&(from, to)).is_some_and(|until| now < *until)
    }

    /// What becomes of a message that is sent now.
    pub fn fate(&mut self, from: Host, to: Host, now: Duration) -> Fate {
        if self.is_cut(from, to, now) {
            return Fate::Vanishes;
        }
        let delay = self.delay();
        if self.is_calm {
            return Fate::Arrives(vec![delay]);
        }
        if self.dice.happens(self.weather.losses) {
            return Fate::Breaks(delay);
        }
        let mut arrivals = vec![delay];
        if self.dice.happens(self.weather.stragglers) {
            arrivals[0] += self.dice.millis(500, 30_000);
        }
        if self.dice.happens(self.weather.duplicates) {
            let again = self.dice.millis(0, 8_000);
            arrivals.push(delay + again);
        }
        Fate::Arrives(arrivals)
    }

    fn delay(&mut self) -> Duration {
        self.dice.millis(self.weather.delay / 2, 2 * self.weather.delay)
    }

    /// Whether what arrives is damaged on the way.
    pub fn damages(&mut self) -> bool {
        !self.is_calm && self.dice.happens(self.weather.damages)
    }
}
