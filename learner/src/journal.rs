//! Files of one JSON object per line that a resumed run continues without repeating a row.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use service::{ServiceError, durable};

/// One such file.
pub struct Journal<T> {
    path: PathBuf,
    rows: Vec<T>,
    /// How many of the rows are in the file; fewer than all while the disk is full.
    written: usize,
}

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// Opens a file, or starts one, keeping the rows that `is_kept` accepts.
    ///
    /// A checkpoint is older than what was logged after it, and a crash can tear a line; both are removed.
    ///
    /// # Errors
    /// If the file cannot be read or rewritten.
    pub fn open(path: &Path, is_kept: impl Fn(&T) -> bool) -> Result<Self, ServiceError> {
        let bytes = match path.exists() {
            true => std::fs::read(path),
            false => Ok(Vec::new()),
        };
        let bytes =
            bytes.map_err(|source| ServiceError::File { action: "read", path: path.to_owned(), source })?;
        let (mut rows, mut kept) = (Vec::new(), Vec::new());
        for line in bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            if let Some(row) = serde_json::from_slice(line).ok().filter(&is_kept) {
                rows.push(row);
                kept.extend_from_slice(line);
            }
        }
        if kept != bytes {
            durable::write_file(path, &kept)?;
        }
        Ok(Self { path: path.to_owned(), written: rows.len(), rows })
    }

    /// All rows.
    pub fn rows(&self) -> &[T] {
        &self.rows
    }

    /// Adds a row and waits until it is on the disk, together with those that an earlier call could not write.
    ///
    /// # Errors
    /// If the file cannot be written; the row is kept for the next call.
    pub fn append(&mut self, row: T) -> Result<(), ServiceError> {
        self.rows.push(row);
        while let Some(row) = self.rows.get(self.written) {
            let text = serde_json::to_string(row).expect("rows are plain data; else this is a bug");
            durable::append_line(&self.path, &text)?;
            self.written += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(path: &Path, limit: u32) -> Vec<u32> {
        Journal::<u32>::open(path, |row| *row < limit).unwrap().rows().to_vec()
    }

    #[test]
    fn rows_after_the_checkpoint_are_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        let mut journal = Journal::<u32>::open(&path, |_| true).unwrap();
        for row in 0..4 {
            journal.append(row).unwrap();
        }
        assert_eq!(rows(&path, 9), [0, 1, 2, 3]);
        assert_eq!(rows(&path, 2), [0, 1]);
        assert_eq!(rows(&path, 9), [0, 1], "they are gone from the file");
    }

    #[test]
    fn torn_lines_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        std::fs::write(&path, "1\n[2\n3\n[4").unwrap();
        let mut journal = Journal::<u32>::open(&path, |_| true).unwrap();
        journal.append(7).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n3\n7\n");
    }

    #[test]
    fn rows_that_could_not_be_written_are_written_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("there/metrics.jsonl");
        let mut journal = Journal::<u32>::open(&path, |_| true).unwrap();
        assert!(journal.append(1).is_err(), "the directory is missing");
        std::fs::create_dir(directory.path().join("there")).unwrap();
        journal.append(2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n2\n");
    }
}
