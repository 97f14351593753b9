//! A model of the learner's durable protocol (`learner/src/run/checkpoint.rs`, `saved_state.rs`, `records/journal.rs`) on a
//! simulated disk. Tensors are one number, the digest of all that went into them.

use crate::bug::Bug;
use crate::dice::digest_of_text;
use crate::disk::fence;
use crate::disk::{Disk, DiskFault};
use crate::durable;
use std::collections::BTreeMap;

const DIRECTORY: &str = "run/checkpoints";
const MANIFEST: &str = "manifest.json";

/// An evaluation or test of a version, or the metrics of an iteration: its number, and the digest of what it measured.
pub type Row = (u32, u64);

/// What a checkpoint holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Iterations trained.
    pub version: u32,
    /// Optimizer updates.
    pub updates: u64,
    /// What stands for the policy.
    pub policy: u64,
    /// Earlier versions of the policy that later tasks are sampled with.
    pub earlier: BTreeMap<u32, u64>,
    /// Evaluations recorded so far.
    pub evaluations: Vec<Row>,
    /// Those on the test prompts.
    pub tests: Vec<Row>,
}

/// What opening the checkpoints came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Newest {
    /// There are none.
    Nothing,
    /// The newest whole one.
    Whole(Box<Saved>),
    /// There are some, and none is whole.
    NoneIntact,
}

fn path(version: u32) -> String {
    format!("{DIRECTORY}/iteration-{version:06}")
}

fn rows_to_lines(rows: &[Row]) -> Vec<u8> {
    rows.iter().flat_map(|row| format!("{}\n", line_of(row)).into_bytes()).collect()
}

fn line_of((number, digest): &Row) -> String {
    format!("[{number},{digest}]")
}

fn row_of(line: &[u8]) -> Option<Row> {
    serde_json::from_slice(line).ok()
}

fn rows_of(bytes: &[u8]) -> Vec<Row> {
    bytes.split(|byte| *byte == b'\n').filter_map(row_of).collect()
}

impl Saved {
    fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        let earlier: Vec<Row> = self.earlier.iter().map(|(version, policy)| (*version, *policy)).collect();
        let mut files = vec![
            ("policy", format!("{:020}", self.policy).into_bytes()),
            ("earlier", rows_to_lines(&earlier)),
            ("evaluations.jsonl", rows_to_lines(&self.evaluations)),
            ("tests.jsonl", rows_to_lines(&self.tests)),
            ("state.json", format!("[{},{}]", self.version, self.updates).into_bytes()),
        ];
        let record =
            |(name, bytes): &(&str, Vec<u8>)| format!("{name} {} {}\n", bytes.len(), digest_of(bytes));
        let manifest: String = files.iter().map(record).collect();
        files.push((MANIFEST, manifest.into_bytes()));
        files
    }

    fn read(disk: &Disk, path: &str) -> Option<Self> {
        let file = |name: &str| disk.read(&format!("{path}/{name}"));
        let (version, updates): (u32, u64) = serde_json::from_slice(file("state.json")?).ok()?;
        let policy = std::str::from_utf8(file("policy")?).ok()?.parse().ok()?;
        let earlier = rows_of(file("earlier")?).into_iter().collect();
        let [evaluations, tests] = ["evaluations.jsonl", "tests.jsonl"].map(|name| file(name).map(rows_of));
        Some(Self { version, updates, policy, earlier, evaluations: evaluations?, tests: tests? })
    }
}

fn digest_of(bytes: &[u8]) -> u64 {
    digest_of_text(&String::from_utf8_lossy(bytes))
}

/// Versions that have a checkpoint, in order.
pub fn versions(disk: &Disk) -> Vec<u32> {
    let names = disk.list(DIRECTORY);
    let mut versions: Vec<u32> =
        names.iter().filter_map(|name| name.strip_prefix("iteration-")?.parse().ok()).collect();
    versions.sort_unstable();
    versions
}

/// Makes the directory, and removes what an interrupted write left there.
pub fn open(disk: &mut Disk, bug: Option<Bug>) -> Result<(), DiskFault> {
    durable::create_directory(disk, "run")?;
    durable::create_directory(disk, DIRECTORY)?;
    if bug != Some(Bug::LeavesOthersUnfinished) {
        durable::clear_leftovers(disk, DIRECTORY)?;
    }
    if bug == Some(Bug::TrustsUnflushedNames) { Ok(()) } else { disk.flush_names(DIRECTORY) }
}

/// Writes a checkpoint, whole or not at all.
pub fn write(disk: &mut Disk, saved: &Saved, bug: Option<Bug>) -> Result<(), DiskFault> {
    durable::write_directory(disk, &path(saved.version), &saved.files(), bug)
}

/// Whether the files of a checkpoint are what its manifest says.
pub fn is_intact(disk: &Disk, version: u32) -> bool {
    let path = path(version);
    let manifest = disk.read(&format!("{path}/{MANIFEST}")).map(String::from_utf8_lossy);
    let is_so = |line: &str| {
        let [name, length, digest] = line.split(' ').collect::<Vec<_>>()[..] else { return false };
        let bytes = disk.read(&format!("{path}/{name}"));
        bytes.is_some_and(|bytes| bytes.len().to_string() == length && digest_of(bytes).to_string() == digest)
    };
    manifest.is_some_and(|manifest| manifest.lines().count() == 5 && manifest.lines().all(is_so))
}

/// The newest whole checkpoint; newer ones that are damaged are set aside.
pub fn newest(disk: &mut Disk, bug: Option<Bug>) -> Result<Newest, DiskFault> {
    let versions = versions(disk);
    let mut rejected = Vec::new();
    let is_turned = bug == Some(Bug::ResumesFromOldest);
    let order: Vec<u32> = if is_turned { versions.clone() } else { versions.iter().rev().copied().collect() };
    for version in &order {
        if !is_intact(disk, *version) && bug != Some(Bug::TrustsTornCheckpoints) {
            rejected.push(*version);
            continue;
        }
        let Some(saved) = Saved::read(disk, &path(*version)) else {
            rejected.push(*version);
            continue;
        };
        for version in rejected {
            set_aside(disk, version)?;
        }
        return Ok(Newest::Whole(Box::new(saved)));
    }
    Ok(if versions.is_empty() { Newest::Nothing } else { Newest::NoneIntact })
}

fn set_aside(disk: &mut Disk, version: u32) -> Result<(), DiskFault> {
    let (path, kept) = (path(version), format!("{}.damaged", path(version)));
    if disk.exists(&kept) {
        durable::discard_directory(disk, &kept)?;
    }
    fence::check(disk)?;
    disk.rename(&path, &kept)?;
    disk.flush_names(DIRECTORY)
}

/// Names a checkpoint the best one.
pub fn mark_best(disk: &mut Disk, version: u32) -> Result<(), DiskFault> {
    match best(disk) == Some(version) {
        true => Ok(()),
        false => {
            durable::write_file(disk, &format!("{DIRECTORY}/best"), version.to_string().as_bytes(), None)
        }
    }
}

/// The checkpoint marked as the best one.
pub fn best(disk: &Disk) -> Option<u32> {
    std::str::from_utf8(disk.read(&format!("{DIRECTORY}/best"))?).ok()?.parse().ok()
}

/// Removes all checkpoints but the newest few and the best.
pub fn prune(disk: &mut Disk, keep_last: usize, best: Option<u32>) -> Result<(), DiskFault> {
    let versions = versions(disk);
    let n_old = versions.len().saturating_sub(keep_last.max(1));
    for version in versions.into_iter().take(n_old).filter(|version| Some(*version) != best) {
        durable::discard_directory(disk, &path(version))?;
    }
    Ok(())
}

/// Spoils a file of a checkpoint.
pub fn spoil(disk: &mut Disk, version: u32) {
    disk.spoil(&format!("{}/policy", path(version)));
}

/// A file of rows that a resumed run continues without repeating one.
#[derive(Clone, Debug)]
pub struct Journal {
    path: &'static str,
    /// All rows.
    pub rows: Vec<Row>,
    written: usize,
    is_own_file: bool,
}

impl Journal {
    /// Opens a file, keeping the rows that `is_kept` accepts, and puts back those of a copy that it has lost.
    pub fn open(
        disk: &mut Disk,
        path: &'static str,
        (is_kept, copy): (impl Fn(u32) -> bool, &[Row]),
        bug: Option<Bug>,
    ) -> Result<Self, DiskFault> {
        if bug != Some(Bug::LeavesOthersUnfinished) {
            durable::clear_leftovers_of(disk, path)?;
        }
        let bytes = disk.read(path).unwrap_or_default().to_vec();
        let mut rows: Vec<Row> = rows_of(&bytes).into_iter().filter(|(number, _)| is_kept(*number)).collect();
        rows.extend(
            copy.iter()
                .filter(|(number, _)| !rows.iter().any(|(known, _)| known == number))
                .copied()
                .collect::<Vec<_>>(),
        );
        rows.sort_by_key(|(number, _)| *number);
        let kept = rows_to_lines(&rows);
        let is_own_file = kept != bytes || bug == Some(Bug::AppendsToOthersFiles);
        if kept != bytes {
            durable::write_file(disk, path, &kept, None)?;
        } else if bug != Some(Bug::TrustsUnflushedRows) {
            // Rows that a killed process did not get to flush are read all the same.
            durable::flush_file(disk, path)?;
        }
        Ok(Self { path, written: rows.len(), rows, is_own_file })
    }

    /// Adds a row; one that cannot be written is kept for the next call.
    pub fn append(&mut self, disk: &mut Disk, row: Row, bug: Option<Bug>) -> Result<(), DiskFault> {
        self.rows.push(row);
        self.flush(disk, bug)
    }

    /// Writes the rows that earlier calls could not write.
    pub fn flush(&mut self, disk: &mut Disk, bug: Option<Bug>) -> Result<(), DiskFault> {
        if self.written < self.rows.len() && !self.is_own_file {
            durable::write_file(disk, self.path, &rows_to_lines(&self.rows), bug)?;
            (self.written, self.is_own_file) = (self.rows.len(), true);
        }
        while let Some(row) = self.rows.get(self.written) {
            durable::append_line(disk, self.path, &line_of(row), bug)?;
            self.written += 1;
        }
        Ok(())
    }

    /// The rows of a file as they are on the disk.
    pub fn on_disk(disk: &Disk, path: &str) -> Vec<Row> {
        rows_of(disk.read(path).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use crate::disk::{Death, Moment};

    fn saved(version: u32) -> Saved {
        let evaluations = vec![(0, 7), (version, 9)];
        Saved { version, policy: u64::from(version) + 40, evaluations, ..Saved::default() }
    }

    #[test]
    fn a_checkpoint_comes_back_as_it_was_written() {
        let mut disk = Disk::new(Dice::new(1));
        open(&mut disk, None).expect("made");
        assert_eq!(newest(&mut disk, None), Ok(Newest::Nothing));
        for version in [1, 2, 2] {
            write(&mut disk, &saved(version), None).expect("written");
        }
        assert_eq!(newest(&mut disk, None), Ok(Newest::Whole(Box::new(saved(2)))));
        spoil(&mut disk, 2);
        assert_eq!(newest(&mut disk, None), Ok(Newest::Whole(Box::new(saved(1)))));
        spoil(&mut disk, 1);
        assert_eq!(newest(&mut disk, None), Ok(Newest::NoneIntact));
    }

    /// Before every operation of two writes and a pruning, by either death.
    #[test]
    fn whenever_the_process_dies_the_last_acknowledged_checkpoint_is_there() {
        let mut n_deaths = 0;
        for (death, n_operations, seed) in [Death::Kill, Death::PowerCut]
            .into_iter()
            .flat_map(|death| (0..90).flat_map(move |n| (0..4).map(move |seed| (death, n, seed))))
        {
            let mut disk = Disk::new(Dice::new(seed));
            open(&mut disk, None).expect("made");
            let mut acknowledged = None;
            disk.die_after(Moment::Now, n_operations, death);
            for version in 0..3 {
                if write(&mut disk, &saved(version), None).is_err() {
                    break;
                }
                acknowledged = Some(version);
                if prune(&mut disk, 1, None).is_err() {
                    break;
                }
            }
            let died = disk.take_death();
            disk.live_on();
            if died == Some(Death::PowerCut) {
                disk.cut_power();
            }
            n_deaths += u32::from(died.is_some());
            open(&mut disk, None).expect("opened");
            let found = match newest(&mut disk, None).expect("readable") {
                Newest::Whole(saved) => Some(saved.version),
                Newest::Nothing => None,
                Newest::NoneIntact => {
                    panic!("{death:?} before operation {n_operations} left a torn checkpoint")
                }
            };
            assert!(
                found >= acknowledged,
                "{death:?} before operation {n_operations}: {found:?}, {acknowledged:?}"
            );
        }
        assert!(n_deaths > 300, "{n_deaths}");
    }

    /// Rows that are found after a kill before the flush of one, an opening and a power cut.
    fn rows_after(bug: Option<Bug>, seed: u64) -> Vec<Row> {
        let mut disk = Disk::new(Dice::new(seed));
        durable::create_directory(&mut disk, "run").expect("made");
        let journal = |disk: &mut Disk| Journal::open(disk, "run/rows", (|_: u32| true, &[][..]), bug);
        let mut rows = journal(&mut disk).expect("opened");
        rows.append(&mut disk, (0, 7), bug).expect("written");
        disk.die_after(Moment::Append, 1, Death::Kill);
        assert_eq!(rows.append(&mut disk, (1, 8), bug), Err(DiskFault::Died));
        disk.live_on();
        assert_eq!(journal(&mut disk).expect("opened").rows, [(0, 7), (1, 8)], "it was written");
        disk.cut_power();
        Journal::on_disk(&disk, "run/rows")
    }

    #[test]
    fn a_row_that_a_resumed_learner_counts_on_survives_a_power_cut() {
        assert!((0..50).all(|seed| rows_after(None, seed).len() == 2));
        let n_lost =
            (0..50).filter(|seed| rows_after(Some(Bug::TrustsUnflushedRows), *seed).len() < 2).count();
        assert!(n_lost > 10, "{n_lost} of 50 show the bug");
    }
}
