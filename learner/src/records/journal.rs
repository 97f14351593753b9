//! Files of one JSON object per line that a resumed run continues without repeating a row.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use service::{OwnedDirectory, ServiceError, durable};

/// Ends the name of the file that damaged rows are moved to.
const DAMAGED_SUFFIX: &str = ".damaged";

/// One such file.
pub struct Journal<T> {
    run: OwnedDirectory,
    path: PathBuf,
    rows: Vec<T>,
    /// How many of the rows are in the file; fewer than all while the disk is full.
    written: usize,
    /// Whether this process has written the file as a whole: to one that an earlier learner has open nothing is added, since
    /// that learner might.
    is_own_file: bool,
    /// Lines, from 1, that were no rows when the file was opened.
    damaged: Vec<usize>,
}

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// Opens a file of a run, or starts one, keeping the rows that `is_kept` accepts.
    ///
    /// A checkpoint is older than what was logged after it, and a crash can leave half a last line; both are removed. Any
    /// other line that is no row is moved to a file beside.
    ///
    /// # Errors
    /// If the file cannot be read or rewritten, or the run is another learner's.
    pub fn open(
        run: &OwnedDirectory,
        path: &Path,
        is_kept: impl Fn(&T) -> bool,
    ) -> Result<Self, ServiceError> {
        run.clear_leftovers_of(path)?;
        let bytes = read_if_there(path)?;
        let (mut rows, mut kept, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
        for (number, line) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
            let is_whole = line.ends_with(b"\n");
            match serde_json::from_slice(line) {
                Ok(row) if is_kept(&row) => {
                    rows.push(row);
                    kept.extend_from_slice(line);
                    kept.extend((!is_whole).then_some(b'\n'));
                }
                Err(_) if is_whole && !line.trim_ascii().is_empty() => damaged.push((number, line)),
                Ok(_) | Err(_) => {}
            }
        }
        set_aside(run, path, damaged.iter().map(|(_, line)| *line))?;
        let is_as_it_was = kept == bytes;
        match is_as_it_was {
            // A process that was killed may have written rows and not have flushed them; they count from now on.
            true => durable::flush_file(path)?,
            false => run.write_file(path, &kept)?,
        }
        let damaged = damaged.into_iter().map(|(number, _)| number).collect();
        let (run, path, written) = (run.clone(), path.to_owned(), rows.len());
        Ok(Self { run, path, written, rows, is_own_file: !is_as_it_was, damaged })
    }

    /// All rows.
    pub fn rows(&self) -> &[T] {
        &self.rows
    }

    /// Which lines of the file were no rows when it was opened, and where they are now, in words.
    pub fn damage(&self) -> Option<String> {
        let lines: Vec<String> = self.damaged.iter().map(|number| format!("line {number}")).collect();
        let (path, beside) = (self.path.display(), damaged_path(&self.path));
        (!lines.is_empty())
            .then(|| format!("{path}: {} damaged, kept in {}", lines.join(", "), beside.display()))
    }

    /// Puts back rows that the file has lost: those of `copy` whose `key` no row has. Returns their keys.
    ///
    /// # Errors
    /// If the file cannot be rewritten.
    pub fn restore<K: Copy + Ord>(
        &mut self,
        copy: Vec<T>,
        key: impl Fn(&T) -> K,
    ) -> Result<Vec<K>, ServiceError> {
        let is_lost = |row: &T| !self.rows.iter().any(|known| key(known) == key(row));
        let lost: Vec<T> = copy.into_iter().filter(is_lost).collect();
        let keys: Vec<K> = lost.iter().map(&key).collect();
        if !keys.is_empty() {
            self.rows.extend(lost);
            self.rows.sort_by_key(&key);
            self.rewrite()?;
        }
        Ok(keys)
    }

    /// Adds a row and waits until it is on the disk, together with those that an earlier call could not write.
    ///
    /// # Errors
    /// If the file cannot be written; the row is kept for the next call.
    pub fn append(&mut self, row: T) -> Result<(), ServiceError> {
        self.rows.push(row);
        self.flush()
    }

    /// Writes the rows that earlier calls could not write.
    ///
    /// # Errors
    /// If the file cannot be written; they are kept for the next call.
    pub fn flush(&mut self) -> Result<(), ServiceError> {
        if self.written < self.rows.len() && !self.is_own_file {
            return self.rewrite();
        }
        while let Some(row) = self.rows.get(self.written) {
            self.run.append_line(&self.path, &to_line(row))?;
            self.written += 1;
        }
        Ok(())
    }

    fn rewrite(&mut self) -> Result<(), ServiceError> {
        self.run.write_file(&self.path, &to_lines(&self.rows))?;
        (self.written, self.is_own_file) = (self.rows.len(), true);
        Ok(())
    }
}

/// The text of a file with these rows.
pub fn to_lines<T: Serialize>(rows: &[T]) -> Vec<u8> {
    rows.iter().flat_map(|row| (to_line(row) + "\n").into_bytes()).collect()
}

fn to_line<T: Serialize>(row: &T) -> String {
    serde_json::to_string(row).expect("rows are plain data; else this is a bug")
}

/// Adds lines to the file of the damaged ones, but for those that an interrupted opening has added.
fn set_aside<'a>(
    run: &OwnedDirectory,
    path: &Path,
    lines: impl Iterator<Item = &'a [u8]>,
) -> Result<(), ServiceError> {
    let beside = damaged_path(path);
    let mut kept = read_if_there(&beside)?;
    let n_bytes = kept.len();
    for line in lines {
        if !kept.split_inclusive(|byte| *byte == b'\n').any(|known| known == line) {
            kept.extend_from_slice(line);
        }
    }
    if kept.len() > n_bytes { run.write_file(&beside, &kept) } else { Ok(()) }
}

fn damaged_path(path: &Path) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(DAMAGED_SUFFIX);
    name.into()
}

fn read_if_there(path: &Path) -> Result<Vec<u8>, ServiceError> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        bytes => bytes.map_err(|source| ServiceError::File { action: "read", path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::{Ownership, RunDirectory};
    use tempfile::TempDir;

    fn owned(directory: &TempDir) -> OwnedDirectory {
        Ownership::claim(&RunDirectory::new(directory.path()), 0, None).unwrap().directory().clone()
    }

    fn open(directory: &TempDir, path: &Path) -> Journal<u32> {
        Journal::open(&owned(directory), path, |_| true).unwrap()
    }

    /// What another learner finds below a limit, and keeps.
    fn rows(directory: &TempDir, path: &Path, limit: u32) -> Vec<u32> {
        Journal::<u32>::open(&owned(directory), path, |row| *row < limit).unwrap().rows().to_vec()
    }

    #[test]
    fn rows_after_the_checkpoint_are_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        let mut journal = open(&directory, &path);
        for row in 0..4 {
            journal.append(row).unwrap();
        }
        assert_eq!(rows(&directory, &path, 9), [0, 1, 2, 3]);
        assert_eq!(rows(&directory, &path, 2), [0, 1]);
        assert_eq!(rows(&directory, &path, 9), [0, 1], "they are gone from the file");
    }

    #[test]
    fn half_a_last_line_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        std::fs::write(&path, "1\n3\n[4").unwrap();
        let mut journal = open(&directory, &path);
        assert_eq!(journal.damage(), None, "a crash tears the line that is being written");
        journal.append(7).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n3\n7\n");
        std::fs::write(&path, "1\n3").unwrap();
        open(&directory, &path).append(7).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n3\n7\n", "only its end was missing");
    }

    #[test]
    fn damaged_lines_are_kept_beside_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        let text: &[u8] = b"1\n\xff2\n\n3\n{}\n";
        let beside = directory.path().join("metrics.jsonl.damaged");
        for _ in 0..2 {
            // The second time as after a crash between the two writes.
            std::fs::write(&path, text).unwrap();
            let journal = open(&directory, &path);
            let damage = journal.damage().unwrap();
            assert!(damage.contains("line 2, line 5 damaged, kept in"), "{damage}");
            assert_eq!(std::fs::read(&path).unwrap(), b"1\n3\n");
            assert_eq!(std::fs::read(&beside).unwrap(), b"\xff2\n{}\n");
        }
        assert_eq!(open(&directory, &path).damage(), None);
    }

    #[test]
    fn lost_rows_are_put_back_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("evaluations.jsonl");
        std::fs::write(&path, "20\n51\n").unwrap();
        let mut journal = open(&directory, &path);
        assert_eq!(journal.restore(vec![10, 22, 30], |row| row / 10).unwrap(), [1, 3]);
        assert_eq!(journal.rows(), [10, 20, 30, 51], "a row that is there is not replaced");
        journal.append(60).unwrap();
        assert_eq!(rows(&directory, &path, 99), [10, 20, 30, 51, 60]);
    }

    #[test]
    fn rows_that_could_not_be_written_are_written_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("there/metrics.jsonl");
        let mut journal = open(&directory, &path);
        assert!(journal.append(1).is_err(), "the directory is missing");
        std::fs::create_dir(directory.path().join("there")).unwrap();
        journal.append(2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n2\n");
    }

    #[test]
    fn a_row_of_a_learner_that_was_superseded_ends_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        let mut first = open(&directory, &path);
        first.append(1).unwrap();
        // As the first has opened its file, asked for its right, and is stopped.
        let mut late = std::fs::File::options().append(true).open(&path).unwrap();
        let mut second = open(&directory, &path);
        second.append(2).unwrap();
        std::io::Write::write_all(&mut late, b"2\n").unwrap();
        assert!(first.append(3).unwrap_err().is_superseded());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n2\n");
    }
}
