//! Who owns a run directory, and which learner may change it: what `owner.json` holds, and what follows from it. Pure.

use proto::Process;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A process, as others know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The host that it runs on.
    pub host: String,
    /// Its id there.
    pub pid: u32,
    /// Drawn when it began, in hexadecimal; unlike that of any other process.
    pub nonce: String,
}

/// What `owner.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRecord {
    /// Counts the owners; it only grows, and no two owners have the same.
    pub epoch: u64,
    /// The coordinator that owns the run.
    pub owner: Holder,
    /// Tells the boot of the owner's machine from any other; empty where the system does not tell.
    pub machine: String,
    /// When it became the owner, in seconds since 1970, by its clock.
    pub since: u64,
    /// Whether it has ended in good order.
    pub is_released: bool,
    /// The learner that may change what a learner changes: none while the owner knows of no living one.
    pub learner: Option<Holder>,
}

/// Why a process may not change a run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// Another process has its place, for good.
    Superseded {
        /// Which one.
        by: Holder,
        /// The owner's epoch.
        epoch: u64,
        /// Since when the run has that owner, in seconds since 1970.
        since: u64,
    },
    /// A learner that the owner has not heard of for a lease, until it has joined again.
    Withdrawn {
        /// The owner.
        owner: Holder,
    },
}

impl Holder {
    /// A process by what it says of itself when it joins.
    pub fn of(process: &Process) -> Self {
        let nonce = process.nonce.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { host: process.host.clone(), pid: process.pid, nonce }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on {}", self.pid, if self.host.is_empty() { "?" } else { &self.host })
    }
}

impl OwnerRecord {
    /// Whether the coordinator that owned the run from `epoch` on still does.
    ///
    /// # Errors
    /// If another does. A lower epoch than the own one is what an earlier owner wrote too late, and no error.
    pub fn check_owner(&self, epoch: u64, own: &Holder) -> Result<(), Fenced> {
        let is_own = self.epoch < epoch || self.epoch == epoch && self.owner.nonce == own.nonce;
        if is_own { Ok(()) } else { Err(self.superseded_by(&self.owner)) }
    }

    /// Whether a learner may change the run. `newest_epoch` is the highest one that it has seen here.
    ///
    /// # Errors
    /// If another learner may, or none.
    pub fn check_learner(&self, newest_epoch: u64, own: &Holder) -> Result<(), Fenced> {
        match &self.learner {
            // What an earlier owner wrote too late says nothing, until the newest one puts it right.
            Some(learner) if self.epoch >= newest_epoch => match learner.nonce == own.nonce {
                true => Ok(()),
                false => Err(self.superseded_by(learner)),
            },
            Some(_) | None => Err(Fenced::Withdrawn { owner: self.owner.clone() }),
        }
    }

    fn superseded_by(&self, by: &Holder) -> Fenced {
        Fenced::Superseded { by: by.clone(), epoch: self.epoch, since: self.since }
    }

    /// Where the owner is and since when, in words.
    pub fn whereabouts(&self) -> String {
        format!("{} owns it since {}", self.owner, utc(self.since))
    }
}

impl fmt::Display for Fenced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superseded { by, epoch, since } => write!(
                f,
                "{by} has the place of this process now (epoch {epoch}, since {}); this one changes nothing any more \
                 and is not to be started again",
                utc(*since)
            ),
            Self::Withdrawn { owner } => write!(
                f,
                "the coordinator, {owner}, has not heard of this learner for a lease and lets it change nothing until it \
                 has joined again; see that it reaches the coordinator"
            ),
        }
    }
}

/// A time in words, as `2026-11-30 02:36:44 UTC`.
pub fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from March, so that a leap day is the last of its year, in cycles of 400 years.
    let day_of_era = days + 719_468;
    let (era, day) = (day_of_era / 146_097, day_of_era % 146_097);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!("{year}-{month:02}-{day_of_month:02} {hour:02}:{minute:02}:{:02} UTC", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(name: &str) -> Holder {
        Holder { host: format!("host-{name}"), pid: 7, nonce: name.to_owned() }
    }

    fn record(epoch: u64, owner: &str, learner: Option<&str>) -> OwnerRecord {
        OwnerRecord {
            epoch,
            owner: holder(owner),
            machine: "m".to_owned(),
            since: 0,
            is_released: false,
            learner: learner.map(holder),
        }
    }

    #[test]
    fn the_owner_is_whoever_has_the_highest_epoch() {
        for (found, is_own) in [
            (record(3, "a", None), true),
            (record(2, "b", None), true),
            (record(4, "b", None), false),
            (record(3, "b", None), false),
        ] {
            assert_eq!(found.check_owner(3, &holder("a")).is_ok(), is_own, "{found:?}");
        }
    }

    #[test]
    fn a_learner_changes_a_run_while_the_newest_owner_names_it() {
        let check = |record: OwnerRecord, newest| record.check_learner(newest, &holder("l"));
        assert_eq!(check(record(3, "a", Some("l")), 3), Ok(()));
        assert_eq!(check(record(4, "b", Some("l")), 3), Ok(()), "another coordinator took it over");
        let withdrawn = Err(Fenced::Withdrawn { owner: holder("a") });
        assert_eq!(check(record(3, "a", None), 3), withdrawn);
        assert_eq!(check(record(3, "a", Some("l")), 4), withdrawn, "an earlier owner wrote too late");
        let by = holder("m");
        let superseded = Err(Fenced::Superseded { by, epoch: 4, since: 0 });
        assert_eq!(check(record(4, "b", Some("m")), 3), superseded);
        assert_eq!(check(record(3, "a", Some("m")), 4), withdrawn, "likewise");
    }

    #[test]
    fn who_is_fenced_is_told_by_whom_and_since_when() {
        let fenced = record(4, "b", None).check_owner(3, &holder("a")).expect_err("fenced");
        let told = fenced.to_string();
        assert!(told.contains("process 7 on host-b has the place of this process now (epoch 4"), "{told}");
        assert!(told.contains("since 1970-01-01 00:00:00 UTC"), "{told}");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, words) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_827_696, "2000-02-29 12:34:56 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (1_798_761_599, "2026-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(utc(seconds), words);
        }
    }
}
