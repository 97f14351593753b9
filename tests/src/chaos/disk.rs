//! The small disk of a run: an ext4 in a file, and on half of the seeds a FUSE file system between it and the run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::command::done;
use super::enclosure::DISK;

const DISK_MIB: u64 = 64;
/// How long what stood still may take to get on.
const THAWING: Duration = Duration::from_secs(60);

/// A file system, mounted; gone when dropped.
pub(super) struct Disk {
    /// Where the ext4 is. Faults are made here, and reach a run by way of what is above.
    beneath: PathBuf,
    /// Where FUSE shows it, if it does.
    view: Option<PathBuf>,
}

impl Disk {
    /// Makes one below `home`.
    ///
    /// # Errors
    /// What this machine lacks for it, in words.
    pub(super) fn mount(home: &Path, is_fuse: bool) -> Result<Self, String> {
        let (image, beneath) = (home.join("image"), home.join(DISK));
        let file = File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(DISK_MIB << 20).map_err(|error| error.to_string())?;
        std::fs::create_dir(&beneath).map_err(|error| error.to_string())?;
        done(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))?;
        done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&beneath))?;
        // Made before there is a view, so that what was mounted so far goes whatever fails.
        let mut disk = Self { beneath, view: None };
        if is_fuse {
            let view = home.join("view");
            std::fs::create_dir(&view).map_err(|error| error.to_string())?;
            // With one thread, a write that stands still would keep everybody from reading.
            let shown = done(Command::new("bindfs").arg("--multithreaded").arg(&disk.beneath).arg(&view));
            shown.map_err(|problem| format!("{problem}; a FUSE file system needs bindfs and /dev/fuse"))?;
            disk.view = Some(view);
        }
        Ok(disk)
    }

    /// Where a run has it.
    pub(super) fn folder(&self) -> &Path {
        self.view.as_deref().unwrap_or(&self.beneath)
    }

    /// Takes all space.
    ///
    /// # Errors
    /// If there is room left.
    pub(super) fn fill(&self) -> Result<Disturbed, String> {
        let ballast = self.beneath.join("ballast").display().to_string();
        let filled = Disturbed { undo: ["rm", "-f", &ballast].map(str::to_owned).to_vec() };
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=64k", &format!("of={ballast}")]);
        match done(&mut dd) {
            Err(problem) if problem.contains("No space left") => Ok(filled),
            other => Err(format!("the disk is not full: {other:?}")),
        }
    }

    /// Lets nobody write to a folder of the disk.
    ///
    /// # Errors
    /// If it cannot be covered.
    pub(super) fn make_read_only(&self, folder: &str) -> Result<Disturbed, String> {
        let folder = self.beneath.join(folder).display().to_string();
        // A view of the directory over itself: what is open for writing would keep the disk from being remounted.
        done(Command::new("mount").args(["--bind", &folder, &folder]))?;
        let covered = Disturbed { undo: ["umount", "--lazy", &folder].map(str::to_owned).to_vec() };
        done(Command::new("mount").args(["-o", "remount,bind,ro", &folder]))?;
        Ok(covered)
    }

    /// Lets every write stand still.
    ///
    /// # Errors
    /// If it cannot be frozen.
    pub(super) fn freeze(&self) -> Result<Frozen, String> {
        let folder = self.beneath.display().to_string();
        done(Command::new("fsfreeze").args(["--freeze", &folder]))?;
        let frozen = Disturbed { undo: ["fsfreeze", "--unfreeze", &folder].map(str::to_owned).to_vec() };
        let mut writer = Command::new("touch");
        writer.arg(self.beneath.join("probe")).stdin(Stdio::null());
        let writer = writer.spawn().map_err(|error| format!("`touch` does not start: {error}"))?;
        Ok(Frozen { frozen, writer })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that was killed may not be gone yet.
        for folder in self.view.iter().chain([&self.beneath]) {
            let _ = done(Command::new("umount").arg("--lazy").arg(folder));
        }
    }
}

/// A disk that is as it was once this is ended, or dropped.
pub(super) struct Disturbed {
    /// A command; empty once it was given.
    undo: Vec<String>,
}

impl Disturbed {
    /// Has the disk as it was.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn end(mut self) -> Result<(), String> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), String> {
        match std::mem::take(&mut self.undo).split_first() {
            Some((program, arguments)) => done(Command::new(program).args(arguments)),
            None => Ok(()),
        }
    }
}

impl Drop for Disturbed {
    fn drop(&mut self) {
        if let Err(problem) = self.undo() {
            eprintln!("the disk stays disturbed: {problem}");
        }
    }
}

/// A disk on which a process waits for a write of its own.
pub(super) struct Frozen {
    frozen: Disturbed,
    writer: Child,
}

impl Frozen {
    /// Has writes go on.
    ///
    /// # Errors
    /// If the writer did not stand still, or does not get on.
    pub(super) fn end(mut self) -> Result<(), String> {
        let early = self.writer.try_wait().map_err(|error| error.to_string())?;
        self.frozen.end()?;
        if let Some(status) = early {
            return Err(format!("the disk was not frozen: a write ended with {status}"));
        }
        let deadline = Instant::now() + THAWING;
        while self.writer.try_wait().map_err(|error| error.to_string())?.is_none() {
            if Instant::now() > deadline {
                return Err(format!("a write stands still {THAWING:?} after the disk was thawed"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Disk;
    use crate::chaos::enclosure;

    /// Each fault of a disk as a run meets it, with FUSE and without.
    fn meet_faults(is_fuse: bool) -> Result<(), String> {
        let home = tempfile::tempdir().expect("a folder");
        let disk = Disk::mount(home.path(), is_fuse)?;
        let law = disk.folder().join("law");
        std::fs::create_dir(&law).expect("room");
        let write = |name: &str| service::durable::write_file(&law.join(name), &[7; 100_000]);
        let refused =
            |name: &str| std::error::Error::source(&write(name).expect_err(name)).map(ToString::to_string);

        let filled = disk.fill().expect("it fills");
        assert!(refused("full").is_some_and(|told| told.contains("No space left")));
        filled.end().expect("emptied");
        write("full").expect("room again");

        let covered = disk.make_read_only("law").expect("covered");
        assert!(refused("read-only").is_some_and(|told| told.contains("Read-only file system")));
        covered.end().expect("uncovered");
        write("read-only").expect("writable again");

        let frozen = disk.freeze().expect("frozen");
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(
            std::fs::read(law.join("full")).expect("readable while nothing is written").len(),
            100_000
        );
        frozen.end().expect("a write stood still, and went on");
        Ok(())
    }

    #[test]
    fn faults_of_a_disk_reach_those_who_write_with_fuse_and_without() {
        const NAME: &str = "chaos::disk::tests::faults_of_a_disk_reach_those_who_write_with_fuse_and_without";
        let met = enclosure::test_inside(NAME, || meet_faults(false).and_then(|()| meet_faults(true)));
        if let Err(missing) = met {
            eprintln!("skipped: {missing}");
        }
    }
}
