//! Whether the owner of a run lives on another host: its sign of life is watched for as long as a living one never rests.
//! Pure; only changes count, so that the clocks of the two hosts may differ.

use std::time::{Duration, Instant, SystemTime};

/// Silence after which an owner elsewhere counts as dead. It gives a sign of life every second; what it is given beyond the
/// lease of a member is for file systems that stand still for a while.
pub const OWNER_LEASE: Duration = Duration::from_secs(15);

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing yet; it may still live.
    Nothing,
    /// A sign of life.
    Life,
    /// None for a whole lease.
    Silence,
}

/// Watches one owner.
#[derive(Clone, Copy, Debug)]
pub struct Vigil {
    began: Instant,
    /// As first seen; absent where there is none to see.
    first: Option<SystemTime>,
}

impl Vigil {
    /// Begins to watch. `sign` is when the owner last gave a sign, by its clock.
    pub fn new(sign: Option<SystemTime>, now: Instant) -> Self {
        Self { began: now, first: sign }
    }

    /// Looks once more.
    pub fn look(&self, sign: Option<SystemTime>, now: Instant) -> Seen {
        match sign != self.first {
            true => Seen::Life,
            false if now.saturating_duration_since(self.began) >= OWNER_LEASE => Seen::Silence,
            false => Seen::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_dead_only_after_a_lease_without_a_sign() {
        let (now, sign) = (Instant::now(), SystemTime::UNIX_EPOCH);
        for first in [None, Some(sign)] {
            let vigil = Vigil::new(first, now);
            assert_eq!(vigil.look(first, now + OWNER_LEASE - Duration::from_millis(1)), Seen::Nothing);
            assert_eq!(vigil.look(first, now + OWNER_LEASE), Seen::Silence);
            let later = Some(sign + Duration::from_secs(1));
            assert_eq!(vigil.look(later, now + Duration::from_secs(1)), Seen::Life);
        }
        let earlier = Some(sign - Duration::from_secs(9));
        assert_eq!(Vigil::new(Some(sign), now).look(earlier, now), Seen::Life, "its clock was set back");
    }
}
