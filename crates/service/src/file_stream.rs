//! Files as the parts of a stream, and back: file by file in chunks, with a digest after each.
//!
//! For threads that may wait. Neither side holds more than a chunk; whatever is damaged, missing or misplaced is noticed before
//! the folder that is received counts.

use crate::durable::failed;
use crate::{CHUNK_BYTES, ChunkCheck, ChunkError, ServiceError, shown};
use nix::sys::statvfs::statvfs;
use proto::file_part::Part;
use proto::{Chunk, FileBegin, FileEnd, FilePart, FilesEnd};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

/// Files that are taken from one stream; what a run sends has a few dozen.
const MOST_FILES: u32 = 10_000;

/// The part of a disk that what is received leaves free, as its denominator, and the most that this is in bytes.
const RESERVED_PART: u64 = 20;
const MOST_RESERVED: u64 = 1 << 30;

/// A file that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentFile {
    /// What the receiver calls it, relative to the folder that it receives.
    pub name: PathBuf,
    /// Where it is here.
    pub path: PathBuf,
}

impl SentFile {
    /// All files below a folder, under names below `name`.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub fn below(folder: &Path, name: &Path) -> Result<Vec<Self>, ServiceError> {
        let files = files_below(folder)?.into_iter();
        Ok(files.map(|file| Self { path: folder.join(&file), name: name.join(file) }).collect())
    }
}

/// The files below a folder, by their names relative to it, in order. What is being written, or what an interrupted write left,
/// has a name that begins with a dot and is none of them.
///
/// # Errors
/// If a folder cannot be read.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>, ServiceError> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(relative) = folders.pop() {
        let path = folder.join(&relative);
        for entry in fs::read_dir(&path).map_err(failed("list", &path))? {
            let entry = entry.map_err(failed("list", &path))?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let name = relative.join(entry.file_name());
            match entry.path().is_dir() {
                true => folders.push(name),
                false => found.push(name),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Sends files, a chunk in memory at a time. `false` once `send` says that nobody reads any more. [`files_end`] is the caller's,
/// who may still find that what was sent changed meanwhile.
///
/// # Errors
/// If a file cannot be read.
pub fn send_files(files: &[SentFile], mut send: impl FnMut(FilePart) -> bool) -> Result<bool, ServiceError> {
    for file in files {
        if !send_file(file, &mut |part| send(FilePart { part: Some(part) }))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Says that these were all.
pub fn files_end(files: &[SentFile]) -> FilePart {
    FilePart { part: Some(Part::End(FilesEnd { files: files.len() as u32 })) }
}

fn send_file(sent: &SentFile, send: &mut dyn FnMut(Part) -> bool) -> Result<bool, ServiceError> {
    let unreadable = || failed("read", &sent.path);
    let file = File::open(&sent.path).map_err(unreadable())?;
    let bytes = file.metadata().map_err(unreadable())?.len();
    // Records grow while they are sent: what comes after this is for the next time.
    let mut file = file.take(bytes);
    let name: Vec<_> = sent.name.iter().map(|part| part.to_string_lossy()).collect();
    if !send(Part::File(FileBegin { name: name.join("/"), bytes })) {
        return Ok(false);
    }
    let (mut hasher, mut offset) = (blake3::Hasher::new(), 0);
    loop {
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut data).map_err(unreadable())?;
        if data.is_empty() {
            break;
        }
        hasher.update(&data);
        let n_bytes = data.len() as u64;
        if !send(Part::Chunk(Chunk { offset, crc32: crc32fast::hash(&data), data: data.into() })) {
            return Ok(false);
        }
        offset += n_bytes;
    }
    let digest = hasher.finalize().as_bytes().to_vec().into();
    Ok(send(Part::FileEnd(FileEnd { digest })))
}

/// Why files were not received.
#[derive(Debug)]
pub enum ReceiveError<E> {
    /// The stream failed.
    Stream(E),
    /// It is not what a sender sends; sending it again may help.
    Damaged(String),
    /// What came cannot be written.
    File(ServiceError),
}

/// Receives files into a folder, which is empty, until the stream says that they were all; `next` is its next part.
///
/// # Errors
/// If it fails, ends early, is damaged or names a file outside the folder, or a file cannot be written.
pub fn receive_files<E>(
    folder: &Path,
    next: &mut dyn FnMut() -> Result<Option<FilePart>, E>,
) -> Result<(), ReceiveError<E>> {
    let mut count = 0;
    loop {
        match next_part(next)? {
            Part::File(file) => {
                let name = file_name(&file.name).ok_or_else(|| {
                    ReceiveError::Damaged(format!("`{}` is no name of a file in it", shown(&file.name, 200)))
                })?;
                receive_file(&folder.join(name), file.bytes, next)?;
                count += 1;
                if count > MOST_FILES {
                    return Err(ReceiveError::Damaged(format!("it holds more than {MOST_FILES} files")));
                }
            }
            Part::End(end) if end.files == count => return Ok(()),
            Part::End(end) => {
                return Err(ReceiveError::Damaged(format!("{count} of {} files came", end.files)));
            }
            Part::Chunk(_) | Part::FileEnd(_) => {
                return Err(ReceiveError::Damaged("a part is of no file".to_owned()));
            }
        }
    }
}

fn receive_file<E>(
    path: &Path,
    n_bytes: u64,
    next: &mut dyn FnMut() -> Result<Option<FilePart>, E>,
) -> Result<(), ReceiveError<E>> {
    let unwritable = |source| ReceiveError::File(failed("write", path)(source));
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).and_then(|()| check_room(folder, n_bytes)).map_err(unwritable)?;
    let mut file = File::create_new(path).map_err(unwritable)?;
    let mut check = ChunkCheck::new(n_bytes);
    let name = path.file_name().unwrap_or_default().display();
    let damaged = |error: ChunkError| ReceiveError::Damaged(format!("{name}: {error}"));
    loop {
        match next_part(next)? {
            Part::Chunk(chunk) => {
                check.accept(&chunk).map_err(damaged)?;
                file.write_all(&chunk.data).map_err(unwritable)?;
            }
            Part::FileEnd(end) => return check.finish(&end.digest).map_err(damaged),
            Part::File(_) | Part::End(_) => return Err(ReceiveError::Damaged(format!("{name} has no end"))),
        }
    }
}

/// Whether a disk has room for what is announced and keeps some for others: who sends must not fill it.
fn check_room(folder: &Path, n_bytes: u64) -> io::Result<()> {
    let disk = statvfs(folder)?;
    let [free, whole] = [disk.blocks_available(), disk.blocks()].map(|blocks| blocks * disk.fragment_size());
    let reserve = (whole / RESERVED_PART).min(MOST_RESERVED);
    match n_bytes <= free.saturating_sub(reserve) {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!(
                "{n_bytes} bytes are announced and {free} are free, of which {reserve} are kept for others: make room there"
            ),
        )),
    }
}

fn next_part<E>(next: &mut dyn FnMut() -> Result<Option<FilePart>, E>) -> Result<Part, ReceiveError<E>> {
    let part = next().map_err(ReceiveError::Stream)?;
    let part = part.ok_or_else(|| ReceiveError::Damaged("it ends before its end".to_owned()))?.part;
    part.ok_or_else(|| ReceiveError::Damaged("a part of it is empty".to_owned()))
}

/// The path of a file below a folder, if the name leads nowhere else and hides nothing.
fn file_name(name: &str) -> Option<PathBuf> {
    let is_plain = |part: Component<'_>| match part {
        Component::Normal(part) => !part.to_string_lossy().starts_with('.'),
        _ => false,
    };
    let path = Path::new(name);
    (!name.is_empty() && path.components().all(is_plain)).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn sent(folder: &Path) -> VecDeque<FilePart> {
        let files = SentFile::below(folder, Path::new("a")).expect("listed");
        let mut parts = VecDeque::new();
        assert!(
            send_files(&files, |part| {
                parts.push_back(part);
                true
            })
            .expect("read")
        );
        parts.push_back(files_end(&files));
        parts
    }

    fn receive(mut parts: VecDeque<FilePart>) -> (tempfile::TempDir, Result<(), String>) {
        let home = tempfile::tempdir().expect("a folder");
        let received = receive_files::<()>(home.path(), &mut || Ok(parts.pop_front()));
        let told = received.map_err(|error| match error {
            ReceiveError::Damaged(what) => what,
            other => format!("{other:?}"),
        });
        (home, told)
    }

    fn folder() -> tempfile::TempDir {
        let home = tempfile::tempdir().expect("a folder");
        for folder in ["peft", ".hidden"] {
            fs::create_dir(home.path().join(folder)).expect("made");
            fs::write(home.path().join(folder).join("weights"), vec![7; CHUNK_BYTES + 3]).expect("written");
        }
        fs::write(home.path().join("empty"), "").expect("written");
        home
    }

    #[test]
    fn files_arrive_as_they_were_sent_without_what_is_hidden() {
        let (home, told) = receive(sent(folder().path()));
        assert_eq!(told, Ok(()));
        let found = files_below(home.path()).expect("listed");
        assert_eq!(found, [PathBuf::from("a/empty"), PathBuf::from("a/peft/weights")]);
        assert_eq!(fs::read(home.path().join("a/peft/weights")).expect("read"), vec![7; CHUNK_BYTES + 3]);
    }

    #[test]
    fn what_a_disk_has_no_room_for_is_refused_before_it_comes() {
        let begin = FileBegin { name: "huge".to_owned(), bytes: u64::MAX / 2 };
        let (home, told) = receive([FilePart { part: Some(Part::File(begin)) }].into());
        let told = told.expect_err("refused");
        assert!(told.contains("are announced and") && told.contains("make room there"), "{told}");
        assert!(files_below(home.path()).expect("listed").is_empty());
    }

    #[test]
    fn nothing_that_is_cut_swapped_or_flipped_is_taken() {
        let whole = sent(folder().path());
        let changed = |change: &dyn Fn(&mut VecDeque<FilePart>)| {
            let mut parts = whole.clone();
            change(&mut parts);
            receive(parts).1.expect_err("refused")
        };
        assert_eq!(changed(&|parts| drop(parts.pop_back())), "it ends before its end");
        assert_eq!(changed(&|parts| parts.clear()), "it ends before its end");
        assert_eq!(changed(&|parts| drop(parts.pop_front())), "a part is of no file");
        assert!(changed(&|parts| parts.swap(3, 4)).contains("weights: a chunk begins at byte"));
        let flip = |parts: &mut VecDeque<FilePart>| {
            if let Some(Part::Chunk(chunk)) = &mut parts[3].part {
                chunk.crc32 ^= 1;
            }
        };
        assert!(changed(&flip).contains("weights: the chunk at byte 0 is damaged"));
        let fewer = |parts: &mut VecDeque<FilePart>| drop(parts.drain(..2));
        assert_eq!(changed(&fewer), "1 of 2 files came");
        for name in ["../a", "/etc/a", ".a", ""] {
            let named = |parts: &mut VecDeque<FilePart>| {
                parts[0].part = Some(Part::File(FileBegin { name: name.to_owned(), bytes: 0 }));
            };
            assert!(changed(&named).contains("is no name of a file in it"), "{name}");
        }
    }

    #[test]
    fn a_name_that_leads_out_of_the_folder_is_none() {
        assert_eq!(file_name("peft/a.json"), Some(PathBuf::from("peft/a.json")));
        for name in ["", "..", "../a", "/etc/a", "peft/../../a", ".hidden", "peft/.a", "."] {
            assert_eq!(file_name(name), None, "{name}");
        }
    }
}
