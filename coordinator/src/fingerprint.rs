//! What files are, told by reading a little of them: a model may have 50 GB, and is looked at whenever a run starts.
//!
//! Small files count byte for byte. Of larger ones count the size, the announcement of the tensors that a safetensors file
//! begins with, and blocks spread evenly over the rest. Weights that were trained, cast, pruned or swapped are noticed; a
//! change of a few tensors that keeps names, shapes and size may lie between the blocks.

use crate::error::CoordinatorError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Files up to this size are read whole.
const WHOLE_BYTES: u64 = 4 << 20;
/// Blocks that are read of a larger file, and their size.
const N_BLOCKS: u64 = 32;
const BLOCK_BYTES: u64 = 64 << 10;
/// Longest announcement of tensors that is believed.
const HEADER_LIMIT: u64 = 100 << 20;
/// Folders within folders that are looked into.
const DEPTH: usize = 4;

/// A file as far as it was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of what was read of it.
    pub blake3: String,
}

/// The files of a folder by their paths below it, or a single file under an empty name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(BTreeMap<String, FileMark>);

impl Fingerprint {
    /// Looks at a file, or at all files of a folder whose names do not begin with a dot.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn of(path: &Path) -> Result<Self, CoordinatorError> {
        if path.is_dir() { Self::of_those(path, |_| true) } else { Ok(Self([mark(path, "")?].into())) }
    }

    /// Looks at what a pipeline in the diffusers layout is made of: its index and the folders that are named there. Other
    /// files in its folder, such as pictures and checkpoints for other programs, are nothing to a run.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn of_pipeline(folder: &Path) -> Result<Self, CoordinatorError> {
        const INDEX: &str = "model_index.json";
        let index = config::read_whole(&folder.join(INDEX), config::MOST_SETTINGS_BYTES)
            .map_err(unreadable(&folder.join(INDEX)))?;
        let index: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&index).unwrap_or_default();
        Self::of_those(folder, |name| name == INDEX || index.contains_key(name))
    }

    fn of_those(folder: &Path, is_meant: impl Fn(&str) -> bool) -> Result<Self, CoordinatorError> {
        let mut marks = BTreeMap::new();
        for (name, path) in entries(folder)?.into_iter().filter(|(name, _)| is_meant(name)) {
            add(&mut marks, &path, &name, DEPTH)?;
        }
        Ok(Self(marks))
    }

    /// What is different about the files now, each in words.
    pub fn changes(&self, now: &Self) -> Vec<String> {
        let names: std::collections::BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        let change = |name: &String| match (self.0.get(name), now.0.get(name)) {
            (Some(then), Some(now)) if then.bytes != now.bytes => {
                Some(format!("{name} had {} bytes and has {}", then.bytes, now.bytes))
            }
            (Some(then), Some(now)) => {
                (then != now).then(|| format!("{name} has other content of the same size"))
            }
            (Some(_), None) => Some(format!("{name} is gone")),
            (None, _) => Some(format!("{name} is new")),
        };
        names.into_iter().filter_map(change).map(|change| change.trim_start().to_owned()).collect()
    }
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> CoordinatorError {
    let path = path.to_owned();
    move |source| CoordinatorError::File { action: "read", path, source }
}

/// What is in a folder by name, in order, without what is hidden.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, CoordinatorError> {
    let listed = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut entries: Vec<(String, PathBuf)> = listed
        .map_err(unreadable(folder))?
        .into_iter()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();
    // A cache may link to files that it does not have.
    entries.retain(|(name, path)| !name.starts_with('.') && path.exists());
    entries.sort();
    Ok(entries)
}

fn add(
    marks: &mut BTreeMap<String, FileMark>,
    path: &Path,
    name: &str,
    depth: usize,
) -> Result<(), CoordinatorError> {
    if !path.is_dir() {
        marks.extend([mark(path, name)?]);
        return Ok(());
    }
    for (below, path) in if depth > 0 { entries(path)? } else { Vec::new() } {
        add(marks, &path, &format!("{name}/{below}"), depth - 1)?;
    }
    Ok(())
}

fn mark(path: &Path, name: &str) -> Result<(String, FileMark), CoordinatorError> {
    let mark = config::open_regular(path).and_then(look_at).map_err(unreadable(path))?;
    Ok((name.to_owned(), mark))
}

fn look_at(mut file: File) -> io::Result<FileMark> {
    let bytes = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    if bytes <= WHOLE_BYTES {
        io::copy(&mut file, &mut hasher)?;
    } else {
        for (start, length) in parts(bytes, header_bytes(&mut file)?) {
            file.seek(SeekFrom::Start(start))?;
            io::copy(&mut (&file).take(length), &mut hasher)?;
        }
    }
    Ok(FileMark { bytes, blake3: hasher.finalize().to_hex().to_string() })
}

/// How long the announcement of tensors is, if this is a safetensors file.
fn header_bytes(file: &mut File) -> io::Result<u64> {
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    Ok(if length <= HEADER_LIMIT { 8 + length } else { 0 })
}

/// Start and length of what is read of a large file: its announcement, and blocks from the first byte to the last.
fn parts(bytes: u64, header: u64) -> impl Iterator<Item = (u64, u64)> {
    let last = bytes - BLOCK_BYTES;
    let block = move |idx: u64| {
        (last / (N_BLOCKS - 1) * idx + last % (N_BLOCKS - 1) * idx / (N_BLOCKS - 1), BLOCK_BYTES)
    };
    std::iter::once((0, header.min(bytes))).chain((0..N_BLOCKS).map(block))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn large(header: &[u8], fill: u8) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.resize(WHOLE_BYTES as usize * 4, fill);
        bytes
    }

    #[test]
    fn a_large_file_is_known_by_size_announcement_and_blocks() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        let print = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("written");
            Fingerprint::of(&path).expect("readable")
        };
        // Longer than the first block, so that nothing but the announcement tells the two apart.
        let header = vec![b' '; 300_000];
        let base = print(&large(&header, 1));
        assert_eq!(base, print(&large(&header, 1)));
        assert_eq!(base.changes(&print(&large(&header, 2))), ["has other content of the same size"]);
        let mut other_header = header.clone();
        other_header[200_000] = b'\n';
        assert_eq!(base.changes(&print(&large(&other_header, 1))).len(), 1);
        let mut longer = large(&header, 1);
        longer.push(1);
        assert_eq!(base.changes(&print(&longer)), ["had 16777216 bytes and has 16777217"]);
        let mut last_byte = large(&header, 1);
        last_byte[WHOLE_BYTES as usize * 4 - 1] = 0;
        assert_eq!(base.changes(&print(&last_byte)).len(), 1);
    }

    #[test]
    fn a_file_that_begins_with_any_number_is_read_within_its_bounds() {
        for header in [0, 8, HEADER_LIMIT, u64::MAX] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("model.bin");
            let mut bytes = vec![0; WHOLE_BYTES as usize + 1];
            bytes[..8].copy_from_slice(&header.to_le_bytes());
            fs::write(&path, &bytes).expect("written");
            assert_eq!(Fingerprint::of(&path).expect("readable").0[""].bytes, WHOLE_BYTES + 1, "{header}");
        }
        assert!(parts(WHOLE_BYTES + 1, 0).all(|(start, length)| start + length <= WHOLE_BYTES + 1));
        assert_eq!(parts(1 << 40, 9).last(), Some(((1 << 40) - BLOCK_BYTES, BLOCK_BYTES)));
    }

    #[test]
    fn a_pipeline_is_its_index_and_the_folders_named_there() {
        let home = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = home.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("created");
            fs::write(path, text).expect("written");
        };
        write("model_index.json", r#"{"_class_name": "X", "vae": ["a", "b"], "transformer": ["a", "b"]}"#);
        write("vae/config.json", "{}");
        write("transformer/model.safetensors", "abc");
        let before = Fingerprint::of_pipeline(home.path()).expect("readable");
        for name in ["README.md", "x/all.safetensors", "vae/.cache"] {
            write(name, "something");
        }
        assert_eq!(before, Fingerprint::of_pipeline(home.path()).expect("readable"));
        write("vae/config.json", "{ }");
        write("transformer/model.safetensors", "abd");
        write("transformer/more.json", "{}");
        let after = Fingerprint::of_pipeline(home.path()).expect("readable");
        let expected = [
            "transformer/model.safetensors has other content of the same size",
            "transformer/more.json is new",
            "vae/config.json had 2 bytes and has 3",
        ];
        assert_eq!(before.changes(&after), expected);
        assert_eq!(after.changes(&before)[1], "transformer/more.json is gone");
    }
}
