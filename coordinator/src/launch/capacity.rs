//! How many more workers are too many: for the config, or for the machine they would run on. What is not known of the
//! machine bounds nothing.

use nix::sys::resource::{Resource, getrlimit};
use service::system_numbers::{number_after, number_in};
use std::fs;

/// Descriptors that a worker takes in the coordinator, or in the learner, which inherits its limit.
const DESCRIPTORS_OF_WORKER: u64 = 2;
/// Descriptors and processes that are left for everything else.
const RESERVE: u64 = 32;
/// Threads of a process of which nothing is known.
const THREADS_OF_WORKER: u64 = 16;

/// What a machine has left, and what one more worker takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Bytes.
    pub free_memory: Option<u64>,
    /// Bytes of the largest living member.
    pub memory_of_worker: Option<u64>,
    /// Processes and threads.
    pub free_threads: Option<u64>,
    /// Of the living member with most; a guess where none lives.
    pub threads_of_worker: u64,
    /// Open files of one process.
    pub free_descriptors: Option<u64>,
}

/// Why the config does not take so many workers.
pub fn of_config(workers: u32, most: u32) -> Option<String> {
    (workers > most).then(|| {
        format!(
            "{workers} workers are more than `resources.max_workers` = {most} allows; stop the run and go on with more by `coordinator resume RUN --set resources.max_workers=N`"
        )
    })
}

/// Why a machine does not take so many workers more.
pub fn of_machine(more: u32, machine: &Machine) -> Option<String> {
    let threads = machine.threads_of_worker;
    let bounds = [
        (machine.free_memory.zip(machine.memory_of_worker), "memory", "bytes of memory"),
        (
            machine.free_threads.map(|free| (free.saturating_sub(RESERVE), threads)),
            "processes",
            "processes and threads (`ulimit -u`, the pids of the control group, kernel.threads-max)",
        ),
        (
            machine.free_descriptors.map(|free| (free.saturating_sub(RESERVE), DESCRIPTORS_OF_WORKER)),
            "descriptors",
            "file descriptors (`ulimit -n`)",
        ),
    ];
    let fits = |(bound, kind, unit): (Option<(u64, u64)>, &'static str, &'static str)| {
        let (free, each) = bound?;
        Some((free / each.max(1), free, each, kind, unit))
    };
    let (takes, free, each, kind, unit) = bounds.into_iter().filter_map(fits).min_by_key(|fit| fit.0)?;
    (u64::from(more) > takes).then(|| {
        let (free, each) = match kind {
            "memory" => (gigabytes(free), gigabytes(each)),
            _ => (free.to_string(), each.to_string()),
        };
        let unit = if kind == "memory" { "of memory" } else { unit };
        format!("{more} more workers do not fit on this machine, {takes} do: {free} {unit} are left, and each takes {each}")
    })
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

/// What bounds the workers of a run besides its config.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Room {
    /// What is left on the machine of the coordinator.
    #[default]
    ThisMachine,
    /// So many slots of other hosts.
    Slots(u32),
}

impl Room {
    /// Why so many workers are too many, where `current` are wanted already and `members` are those of this machine, by their
    /// process ids.
    pub fn refusal(self, current: u32, wanted: u32, members: &[u32]) -> Option<String> {
        match self {
            Self::ThisMachine => of_machine(wanted.saturating_sub(current), &Machine::look(members)),
            Self::Slots(slots) => (wanted > slots).then(|| {
                format!(
                    "{wanted} workers are more than the {slots} slot(s) of `[[hosts]]`; add hosts or slots to the run's config, and \
                     go on with that by `coordinator resume RUN`"
                )
            }),
        }
    }
}

impl Machine {
    /// Looks at this machine, and at those of `members`, by their process ids, that live on it.
    pub fn look(members: &[u32]) -> Self {
        let status = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let statuses: Vec<String> = members.iter().map(status).collect();
        let most = |key: &str| statuses.iter().filter_map(|status| number_after(status, key)).max();
        Self {
            free_memory: service::free_memory(),
            // Pages of files, such as the programs' own, are shared.
            memory_of_worker: most("RssAnon:").map(|kibibytes| kibibytes * 1024),
            free_threads: free_threads(),
            threads_of_worker: most("Threads:").unwrap_or(THREADS_OF_WORKER),
            free_descriptors: free_descriptors(),
        }
    }
}

fn free_threads() -> Option<u64> {
    let running = threads_of_system();
    let system = ["/proc/sys/kernel/threads-max", "/proc/sys/kernel/pid_max"].map(number_in);
    let system = system.into_iter().flatten().min().zip(running);
    let group = number_in("/sys/fs/cgroup/pids.max").zip(number_in("/sys/fs/cgroup/pids.current"));
    let own = number_after(&fs::read_to_string("/proc/self/status").unwrap_or_default(), "Uid:");
    // Root has no such limit.
    let user = own.filter(|user| *user != 0).and_then(|user| {
        let threads = threads_of_user(&process_statuses(), user);
        limit(Resource::RLIMIT_NPROC).zip(Some(threads))
    });
    least([system, group, user].map(|bound| bound.map(|(limit, used)| limit.saturating_sub(used))))
}

/// What the system tells of each process.
fn process_statuses() -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered = processes.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    numbered.filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok()).collect()
}

/// Threads of a user's processes, which are what his limit counts.
fn threads_of_user(statuses: &[String], user: u64) -> u64 {
    let own = statuses.iter().filter(|status| number_after(status, "Uid:") == Some(user));
    own.filter_map(|status| number_after(status, "Threads:")).sum()
}

/// `/proc/loadavg` ends in `running/threads newest`.
fn threads_of_system() -> Option<u64> {
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

fn free_descriptors() -> Option<u64> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    Some(limit(Resource::RLIMIT_NOFILE)?.saturating_sub(open))
}

fn limit(resource: Resource) -> Option<u64> {
    getrlimit(resource).ok().map(|(soft, _)| soft)
}

fn least(bounds: impl IntoIterator<Item = Option<u64>>) -> Option<u64> {
    bounds.into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcest_of_a_machine_bounds_its_workers_and_is_named() {
        let roomy = Machine {
            free_memory: Some(10_000_000_000),
            memory_of_worker: Some(1_000_000_000),
            free_threads: Some(1032),
            threads_of_worker: 10,
            free_descriptors: Some(1056),
        };
        assert_eq!(of_machine(10, &roomy), None);
        let told = of_machine(11, &roomy).expect("too many");
        assert_eq!(
            told,
            "11 more workers do not fit on this machine, 10 do: 10.00 GB of memory are left, and each takes 1.00 GB"
        );
        let told = of_machine(10, &Machine { free_threads: Some(62), ..roomy }).expect("too many");
        assert!(told.contains("3 do: 30 processes and threads (`ulimit -u`"), "{told}");
        let told = of_machine(10, &Machine { free_descriptors: Some(40), ..roomy }).expect("too many");
        assert!(told.contains("4 do: 8 file descriptors (`ulimit -n`) are left, and each takes 2"), "{told}");
        assert_eq!(of_machine(1_000_000, &Machine::default()), None, "nothing is known");
    }

    #[test]
    fn the_slots_of_hosts_bound_workers_whatever_this_machine_has() {
        assert_eq!(Room::Slots(8).refusal(0, 8, &[]), None);
        let told = Room::Slots(8).refusal(8, 9, &[]).expect("too many");
        assert!(
            told.starts_with("9 workers are more than the 8 slot(s) of `[[hosts]]`; add hosts or slots"),
            "{told}"
        );
    }

    #[test]
    fn the_config_bounds_workers_too() {
        assert_eq!(of_config(8, 8), None);
        assert!(of_config(9, 8).expect("too many").contains("`resources.max_workers` = 8"));
    }

    #[test]
    fn this_machine_has_room_for_a_worker() {
        let machine = Machine::look(&[std::process::id()]);
        assert!(machine.memory_of_worker.is_some_and(|bytes| bytes > 0) && machine.threads_of_worker > 0);
        assert!(machine.free_memory.is_some() && machine.free_descriptors.is_some(), "{machine:?}");
        assert_eq!(of_machine(1, &machine), None, "{machine:?}");
    }

    #[test]
    fn the_limit_of_a_user_counts_his_own_threads() {
        let status =
            |user: u64, threads: u64| format!("Name:\tx\nUid:\t{user}\t{user}\nThreads:\t{threads}\n");
        let statuses = [status(7, 3), status(0, 4000), status(7, 2), "gone".to_owned()];
        assert_eq!(threads_of_user(&statuses, 7), 5);
        assert!(!process_statuses().is_empty());
    }
}
