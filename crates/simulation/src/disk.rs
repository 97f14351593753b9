//! A disk: names and bytes that a process sees, and what of them is left after a power cut.
//!
//! What is modelled, as strictly as POSIX lets a file system be that keeps a journal of names:
//! 1. Bytes written to a file are safe once the file was flushed. Of others a power cut leaves all, none, or a part.
//! 2. Names made, changed or removed are safe once their own directory was flushed. Of the changes since, in all directories, a
//!    power cut keeps a first part, in their order.
//! 3. A process that is stopped before an operation does that one much later, and nothing after it.
//! 4. A killed process loses nothing of what it wrote; whatever it was about to do does not happen.

pub mod fence;
mod names;

use crate::dice::Dice;
use crate::process::ProcessId;
use names::{Change, Inode, Names, apply};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Why an operation did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// No space is left.
    Full,
    /// The disk failed to write.
    Broken,
    /// There is no such name.
    Absent,
    /// The process is no more.
    Died,
    /// The process may not change anything, for now.
    Withdrawn,
    /// The process may not change anything any more.
    Superseded,
}

/// How a process ends in the middle of what it does to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// It is killed.
    Kill,
    /// The power is cut.
    PowerCut,
    /// It is stopped, and goes on when much has happened: what it was about to do is done then.
    Stall,
}

/// What a process that is stopped was about to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Late {
    /// To give something another name.
    Move(String, String),
    /// To exchange two names.
    Exchange(String, String),
    /// To add bytes to a file that it has open.
    Add(Inode, Vec<u8>),
    /// To remove a name.
    Unlink(String),
}

/// From when on operations are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Now.
    Now,
    /// The next time that a row is appended.
    Append,
    /// The next time that a directory takes its name.
    Naming,
}

/// What writing meets for a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing special.
    #[default]
    Sound,
    /// No space is left for bytes.
    Full,
    /// Every fourth write or flush fails.
    Failing,
}

#[derive(Clone, Debug, Default)]
struct Bytes {
    seen: Vec<u8>,
    safe: Vec<u8>,
}

/// One disk, written to by one process at a time.
#[derive(Clone, Debug)]
pub struct Disk {
    names: Names,
    safe_names: Names,
    /// Of names, that are not safe yet.
    changes: Vec<Change>,
    bytes: BTreeMap<Inode, Bytes>,
    n_files: u64,
    /// Operations so far.
    n_done: u64,
    /// What the process meets after so many more operations.
    death: Option<(u64, Death)>,
    /// Likewise, from a moment on that has yet to come.
    later_death: Option<(Moment, u64, Death)>,
    /// What writing meets.
    pub condition: Condition,
    /// What one operation takes.
    pub pace: Duration,
    /// The learner that works on it now.
    pub at_work: Option<ProcessId>,
    /// What a learner changed that may not.
    forbidden: Option<String>,
    /// What one that was stopped was about to do.
    late: Option<Late>,
    dice: Dice,
}

impl Disk {
    /// An empty disk.
    pub fn new(dice: Dice) -> Self {
        Self {
            names: Names::new(),
            safe_names: Names::new(),
            changes: Vec::new(),
            bytes: BTreeMap::new(),
            n_files: 0,
            n_done: 0,
            death: None,
            later_death: None,
            condition: Condition::Sound,
            pace: Duration::ZERO,
            at_work: None,
            forbidden: None,
            late: None,
            dice,
        }
    }

    /// Operations since the beginning.
    pub fn n_operations(&self) -> u64 {
        self.n_done
    }

    /// Has the process end before its operation of that number from a moment on, 0 being the next.
    pub fn die_after(&mut self, moment: Moment, n_operations: u64, death: Death) {
        match moment {
            Moment::Now => self.death = Some((n_operations, death)),
            _ => self.later_death = Some((moment, n_operations, death)),
        }
    }

    /// A moment has come from which on operations may be counted.
    pub fn note(&mut self, now: Moment) {
        if let Some((_, n_operations, death)) = self.later_death.take_if(|(moment, ..)| *moment == now) {
            self.death = Some((n_operations, death));
        }
    }

    /// Takes back what [`Self::die_after`] did.
    pub fn live_on(&mut self) {
        (self.death, self.later_death) = (None, None);
    }

    /// What a learner changed that may not, by its path.
    pub fn take_forbidden(&mut self) -> Option<String> {
        self.forbidden.take()
    }

    /// What a learner that was stopped was about to do.
    pub fn take_late(&mut self) -> Option<Late> {
        self.late.take()
    }

    /// Does what a process was about to do when it was stopped, if the file system takes it.
    pub fn do_late(&mut self, late: Late) {
        let is_directory = |name: &str| self.names.get(name) == Some(&None);
        match late {
            Late::Move(from, to) if self.exists(&from) && !is_directory(&to) => {
                self.change(Change::Move(from, to));
            }
            Late::Exchange(one, other) if self.exists(&one) && self.exists(&other) => {
                self.change(Change::Exchange(one, other));
            }
            Late::Unlink(name) if self.exists(&name) => self.change(Change::Unlink(name)),
            Late::Add(inode, bytes) => {
                if let Some(file) = self.bytes.get_mut(&inode) {
                    file.seen.extend(bytes);
                }
            }
            Late::Move(..) | Late::Exchange(..) | Late::Unlink(_) => {}
        }
    }

    /// Writes a whole file, safely, in one step.
    pub fn put(&mut self, path: &str, bytes: &[u8]) {
        self.n_files += 1;
        let inode = self.n_files;
        self.bytes.insert(inode, Bytes { seen: bytes.to_vec(), safe: bytes.to_vec() });
        for names in [&mut self.names, &mut self.safe_names] {
            names.insert(path.to_owned(), Some(inode));
        }
        self.forget_nameless();
    }

    /// Something that others see is about to change.
    fn seen_to_change(&mut self, path: &str) {
        let is_hidden = path.split('/').any(|name| name.starts_with('.'));
        if !is_hidden && fence::check(self).is_err() {
            self.forbidden.get_or_insert(path.to_owned());
        }
    }

    fn operate(&mut self) -> Result<(), DiskFault> {
        self.operate_or(|_| None)
    }

    /// Likewise, where a process that is stopped before does it later.
    fn operate_or(&mut self, late: impl FnOnce(&Self) -> Option<Late>) -> Result<(), DiskFault> {
        self.n_done += 1;
        match &mut self.death {
            Some((0, Death::Stall)) => {
                self.late = late(self);
                Err(DiskFault::Died)
            }
            Some((0, _)) => Err(DiskFault::Died),
            Some((n_left, _)) => {
                *n_left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// How the process ended, if an operation said so.
    pub fn take_death(&mut self) -> Option<Death> {
        match self.death {
            Some((0, death)) => {
                self.death = None;
                Some(death)
            }
            _ => None,
        }
    }

    /// Leaves what a power cut leaves.
    pub fn cut_power(&mut self) {
        let n_kept = self.dice.below(self.changes.len() as u64 + 1) as usize;
        let changes = std::mem::take(&mut self.changes);
        for change in changes.into_iter().take(n_kept) {
            apply(&mut self.safe_names, change);
        }
        self.names = self.safe_names.clone();
        for bytes in self.bytes.values_mut() {
            if bytes.seen != bytes.safe {
                bytes.safe = match self.dice.below(3) {
                    0 => bytes.safe.clone(),
                    1 => bytes.seen.clone(),
                    _ => {
                        // What both begin with was safe already.
                        let same = bytes
                            .safe
                            .iter()
                            .zip(&bytes.seen)
                            .take_while(|(one, other)| one == other)
                            .count();
                        let (safe, rest) = bytes.seen.split_at(same);
                        [safe, torn(rest, &mut self.dice).as_slice()].concat()
                    }
                };
                bytes.seen.clone_from(&bytes.safe);
            }
        }
        self.forget_nameless();
    }

    fn forget_nameless(&mut self) {
        let named: BTreeSet<Inode> =
            self.names.values().chain(self.safe_names.values()).flatten().copied().collect();
        self.bytes.retain(|inode, _| named.contains(inode));
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, change.clone());
        self.changes.push(change);
    }

    fn inode(&self, path: &str) -> Result<Inode, DiskFault> {
        self.names.get(path).copied().flatten().ok_or(DiskFault::Absent)
    }

    /// Whether there is a file or directory of that name.
    pub fn exists(&self, path: &str) -> bool {
        self.names.contains_key(path)
    }

    /// The bytes of a file, as a process sees them.
    pub fn read(&self, path: &str) -> Option<&[u8]> {
        self.inode(path).ok().and_then(|inode| self.bytes.get(&inode)).map(|bytes| bytes.seen.as_slice())
    }

    /// Names of what is right below a directory.
    pub fn list(&self, directory: &str) -> Vec<String> {
        let prefix = format!("{directory}/");
        let below = self.names.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix));
        let own = below.map(|(name, _)| &name[prefix.len()..]).filter(|name| !name.contains('/'));
        own.map(str::to_owned).collect()
    }

    /// Makes a directory, if it is not there.
    pub fn make_directory(&mut self, path: &str) -> Result<(), DiskFault> {
        self.operate()?;
        if !self.exists(path) {
            self.seen_to_change(path);
            self.change(Change::Link(path.to_owned(), None));
        }
        Ok(())
    }

    /// Empties a file, or makes an empty one.
    pub fn create(&mut self, path: &str) -> Result<(), DiskFault> {
        self.operate()?;
        self.seen_to_change(path);
        self.n_files += 1;
        let inode = self.n_files;
        match self.inode(path) {
            Ok(inode) => self.bytes.entry(inode).or_default().seen.clear(),
            Err(_) => {
                self.bytes.insert(inode, Bytes::default());
                self.change(Change::Link(path.to_owned(), Some(inode)));
            }
        }
        Ok(())
    }

    /// Adds bytes to a file. Where they do not all fit, a part of them is there all the same.
    pub fn write(&mut self, path: &str, added: &[u8]) -> Result<(), DiskFault> {
        self.operate_or(|disk| Some(Late::Add(disk.inode(path).ok()?, added.to_vec())))?;
        self.seen_to_change(path);
        let inode = self.inode(path)?;
        let fails = self.fails();
        let n_written = match self.condition {
            Condition::Full => self.dice.below(added.len() as u64) as usize,
            _ if fails => self.dice.below(added.len() as u64) as usize,
            _ => added.len(),
        };
        self.bytes.entry(inode).or_default().seen.extend(&added[..n_written]);
        match self.condition {
            Condition::Full => Err(DiskFault::Full),
            _ if fails => Err(DiskFault::Broken),
            _ => Ok(()),
        }
    }

    fn fails(&mut self) -> bool {
        self.condition == Condition::Failing && self.dice.below(4) == 0
    }

    /// Cuts a file off.
    pub fn cut_off(&mut self, path: &str, length: usize) -> Result<(), DiskFault> {
        self.operate()?;
        self.seen_to_change(path);
        let inode = self.inode(path)?;
        self.bytes.entry(inode).or_default().seen.truncate(length);
        Ok(())
    }

    /// Makes the bytes of a file safe.
    pub fn flush(&mut self, path: &str) -> Result<(), DiskFault> {
        self.operate()?;
        let inode = self.inode(path)?;
        if self.fails() {
            return Err(DiskFault::Broken);
        }
        let bytes = self.bytes.entry(inode).or_default();
        bytes.safe.clone_from(&bytes.seen);
        Ok(())
    }

    /// Makes the names right below a directory safe.
    pub fn flush_names(&mut self, directory: &str) -> Result<(), DiskFault> {
        self.operate()?;
        let mut waiting: Vec<Change> = Vec::new();
        for change in std::mem::take(&mut self.changes) {
            if change.directory() == directory {
                waiting.iter_mut().for_each(|earlier| earlier.follow(&change));
                apply(&mut self.safe_names, change);
            } else {
                waiting.push(change);
            }
        }
        self.changes = waiting;
        self.forget_nameless();
        Ok(())
    }

    /// Gives a file or a directory another name, in place of the file that has it.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskFault> {
        self.operate_or(|_| Some(Late::Move(from.to_owned(), to.to_owned())))?;
        if !self.exists(from) {
            return Err(DiskFault::Absent);
        }
        [from, to].iter().for_each(|path| self.seen_to_change(path));
        self.change(Change::Move(from.to_owned(), to.to_owned()));
        Ok(())
    }

    /// Exchanges two names.
    pub fn exchange(&mut self, one: &str, other: &str) -> Result<(), DiskFault> {
        self.operate_or(|_| Some(Late::Exchange(one.to_owned(), other.to_owned())))?;
        [one, other].iter().for_each(|path| self.seen_to_change(path));
        self.change(Change::Exchange(one.to_owned(), other.to_owned()));
        Ok(())
    }

    /// Removes a file or a directory with all below it, one name after the other; nothing there is fine.
    pub fn remove_all(&mut self, path: &str) -> Result<(), DiskFault> {
        let prefix = format!("{path}/");
        let below: Vec<String> =
            self.names.keys().filter(|name| name.starts_with(&prefix)).cloned().collect();
        for name in below.into_iter().rev().chain(self.exists(path).then(|| path.to_owned())) {
            self.operate_or(|_| Some(Late::Unlink(name.clone())))?;
            self.seen_to_change(&name);
            self.change(Change::Unlink(name));
        }
        Ok(())
    }

    /// Spoils the bytes of a file for good, as a bad sector does; whether there is such a file.
    pub fn spoil(&mut self, path: &str) -> bool {
        let Ok(inode) = self.inode(path) else { return false };
        let bytes = self.bytes.entry(inode).or_default();
        bytes.seen = torn(&bytes.seen, &mut self.dice);
        bytes.safe.clone_from(&bytes.seen);
        true
    }
}

/// The first bytes of some, the last of them damaged.
fn torn(bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut left = bytes[..dice.below(bytes.len() as u64) as usize].to_vec();
    if let Some(last) = left.last_mut().filter(|_| dice.below(2) == 0) {
        *last = 0;
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        Disk::new(Dice::new(1))
    }

    #[test]
    fn what_was_flushed_survives_a_power_cut_and_nothing_else_need() {
        let mut losses = 0;
        for seed in 0..100 {
            let mut disk = Disk::new(Dice::new(seed));
            disk.create("a").expect("made");
            disk.write("a", b"safe").expect("written");
            disk.flush("a").expect("flushed");
            disk.flush_names("").expect("flushed");
            disk.write("a", b" or not").expect("written");
            disk.create("b").expect("made");
            disk.cut_power();
            let left = disk.read("a").expect("its name was flushed");
            losses += u32::from(left != b"safe or not") + u32::from(!disk.exists("b"));
        }
        assert!(losses > 50, "{losses}");
    }

    #[test]
    fn a_directory_is_moved_and_exchanged_with_what_is_below_it() {
        let mut disk = disk();
        for (directory, file) in [("new", "new/x"), ("old", "old/y")] {
            disk.make_directory(directory).expect("made");
            disk.create(file).expect("made");
        }
        disk.exchange("new", "old").expect("exchanged");
        assert_eq!((disk.list("old"), disk.list("new")), (vec!["x".to_owned()], vec!["y".to_owned()]));
        disk.rename("old", "gone").expect("renamed");
        assert!(!disk.exists("old/x") && disk.exists("gone/x"));
        disk.remove_all("gone").expect("removed");
        assert!(disk.list("gone").is_empty());
    }

    #[test]
    fn a_process_dies_before_the_operation_that_was_named() {
        let mut disk = disk();
        disk.die_after(Moment::Now, 1, Death::Kill);
        disk.create("a").expect("made");
        assert_eq!(disk.write("a", b"1"), Err(DiskFault::Died));
        assert_eq!(disk.take_death(), Some(Death::Kill));
        disk.write("a", b"1").expect("another process");
    }
}
