//! The CPUs beside a card, and processes that are started on them.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

/// CPUs by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpus(BTreeSet<usize>);

impl Cpus {
    /// Reads a list as the system writes it, `0-3,8`; `None` where it is another one. CPUs beyond those that a process can be
    /// kept to are left out.
    pub fn parse(list: &str) -> Option<Self> {
        let mut cpus = BTreeSet::new();
        for part in list.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            if first > last {
                return None;
            }
            // One by one: a list that repeats itself takes no more memory than what it lists.
            (first..=last.min(CpuSet::count() - 1)).for_each(|cpu| {
                cpus.insert(cpu);
            });
        }
        Some(Self(cpus))
    }
}

/// As the system writes them: `0-3,8`.
impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            match last == first {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

/// The CPUs beside a card at a place on the PCI bus, `devices` being the system's folder of those, that a process of so many
/// threads is to keep to. `None` where the system does not tell, all are alike, or too few are allowed.
pub fn cpus_beside(devices: &Path, place: &str, allowed: &Cpus, n_threads: usize) -> Option<Cpus> {
    // An empty place would be the folder itself.
    let file = devices.join(Some(place).filter(|place| !place.is_empty())?).join("local_cpulist");
    let beside = Cpus::parse(fs::read_to_string(file).ok()?.trim())?;
    let own = Cpus(beside.0.intersection(&allowed.0).copied().collect());
    (own != *allowed && own.0.len() >= n_threads.max(1)).then_some(own)
}

/// The CPUs that this thread may run on; none if the system does not tell.
pub fn allowed() -> Cpus {
    let set = sched_getaffinity(Pid::from_raw(0));
    let is_set = |set: &CpuSet, cpu: usize| set.is_set(cpu).unwrap_or(false);
    Cpus(set.map_or(BTreeSet::new(), |set| (0..CpuSet::count()).filter(|&cpu| is_set(&set, cpu)).collect()))
}

/// Does something on these CPUs: a process that is started meanwhile stays on them. What cannot be done for that is left.
pub fn on<T>(cpus: Option<&Cpus>, work: impl FnOnce() -> T) -> T {
    let Some(cpus) = cpus else { return work() };
    let before = allowed();
    if let Err(error) = keep_to(cpus) {
        tracing::warn!("cannot keep to CPUs {cpus}: {error}");
        return work();
    }
    let outcome = work();
    if let Err(error) = keep_to(&before) {
        tracing::warn!("cannot come back to CPUs {before}: {error}");
    }
    outcome
}

/// Keeps this thread, and what it starts, to these CPUs.
fn keep_to(cpus: &Cpus) -> nix::Result<()> {
    let mut set = CpuSet::new();
    cpus.0.iter().try_for_each(|&cpu| set.set(cpu))?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn cpus(list: &str) -> Cpus {
        Cpus::parse(list).expect("a list")
    }

    #[test]
    fn lists_of_cpus_are_read_as_they_are_written() {
        for list in ["0", "0-3,8", "1,3,5-6", "0-1023"] {
            assert_eq!(cpus(list).to_string(), list);
        }
        for other in ["", "a", "1-", "3-1", "-1", "1-2-3"] {
            assert_eq!(Cpus::parse(other), None, "{other}");
        }
        assert_eq!(cpus("1022-1030").to_string(), "1022-1023");
    }

    #[test]
    fn a_process_keeps_to_the_cpus_beside_its_card_that_it_may_have() {
        let home = tempfile::tempdir().expect("a directory");
        fs::create_dir(home.path().join("0000:17:00.0")).expect("created");
        fs::write(home.path().join("0000:17:00.0/local_cpulist"), "0-3,8-11\n").expect("written");
        let beside = |place, allowed, n_threads| {
            cpus_beside(home.path(), place, &cpus(allowed), n_threads).map(|cpus| cpus.to_string())
        };
        let place = "0000:17:00.0";
        assert_eq!(beside(place, "0-15", 8), Some("0-3,8-11".to_owned()));
        assert_eq!(beside(place, "2-5", 2), Some("2-3".to_owned()));
        assert_eq!(beside(place, "2-5", 3), None, "threads of the config would crowd on two CPUs");
        assert_eq!(beside(place, "4-7", 1), None, "none of them is allowed");
        assert_eq!(beside(place, "0-3", 1), None, "all that are allowed are beside it");
        assert_eq!([beside("0000:18:00.0", "0-15", 1), beside("", "0-15", 1)], [None, None]);
    }

    #[test]
    fn what_is_started_on_cpus_stays_there_and_the_thread_comes_back() {
        let before = allowed();
        let one = Cpus(before.0.iter().take(1).copied().collect());
        let output = on(Some(&one), || Command::new("sh").args(["-c", "cat /proc/self/status"]).output());
        let status = String::from_utf8(output.expect("a shell").stdout).expect("text");
        let told = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a line");
        assert_eq!((told.trim(), allowed()), (one.to_string().as_str(), before));
    }
}
