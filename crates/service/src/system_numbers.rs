//! Numbers that the system tells in small files, and the memory that they say is free.

use std::fs;

/// Bytes of memory that a program on this machine could still have, in its container if it runs in one; `None` where the
/// system does not tell.
pub fn free_memory() -> Option<u64> {
    [memory_of_system(), memory_of_group()].into_iter().flatten().min()
}

fn memory_of_system() -> Option<u64> {
    Some(number_after(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")? * 1024)
}

/// What the control group of a container leaves; files that were read are given up when memory is short.
fn memory_of_group() -> Option<u64> {
    let (limit, used) =
        (number_in("/sys/fs/cgroup/memory.max")?, number_in("/sys/fs/cgroup/memory.current")?);
    let statistics = fs::read_to_string("/sys/fs/cgroup/memory.stat").unwrap_or_default();
    let reclaimable = number_after(&statistics, "inactive_file").unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(reclaimable)))
}

/// The number that a file holds.
pub fn number_in(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number after a key that begins a line.
pub fn number_after(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_after_their_keys() {
        let status = "Name:\tworker\nRssAnon:\t  204800 kB\nThreads:\t9\n";
        assert_eq!(number_after(status, "RssAnon:"), Some(204_800));
        assert_eq!((number_after(status, "Threads:"), number_after(status, "VmSwap:")), (Some(9), None));
        assert!(free_memory().is_some_and(|bytes| bytes > 0));
    }
}
