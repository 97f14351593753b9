//! Files and directories that are either there as a whole or not at all, also after a power cut.
//!
//! Invariants: (1) a name appears only when all bytes below it are on disk; (2) what stood under the name before is
//! kept until then, under the name itself wherever the file system can exchange two directories, else for a moment as
//! `.NAME.replaced`; (3) leftovers of an interrupted write are called `.NAME.partial` and are overwritten by the next, or
//! cleared by [`clear_leftovers`].
//!
//! The functions here are for places that no other process changes. A run directory is changed through
//! [`OwnedDirectory`](crate::OwnedDirectory), which does the same and asks a `Permit` right before every change that
//! others see.

use crate::ServiceError;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Ends the name of what is being written.
const PARTIAL_SUFFIX: &str = ".partial";
/// Ends the name of a directory that is being replaced where two cannot be exchanged.
const REPLACED_SUFFIX: &str = ".replaced";

/// The right to change files, which may be lost at any moment.
pub(crate) trait Permit {
    /// Asked right before every change that others see.
    fn check(&self) -> Result<(), ServiceError>;

    /// Stands in temporary names, so that two processes that believe to have the right do not write to one file.
    fn tag(&self) -> &str;
}

/// The right to change what no other process changes.
pub(crate) struct Unshared;

impl Permit for Unshared {
    fn check(&self) -> Result<(), ServiceError> {
        Ok(())
    }

    fn tag(&self) -> &str {
        ""
    }
}

/// Writes a whole file: to a temporary name beside it, to disk, then renamed over `path`.
///
/// # Errors
/// If any step fails; what stood at `path` is then untouched.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ServiceError> {
    write_file_by(&Unshared, path, bytes)
}

pub(crate) fn write_file_by(permit: &dyn Permit, path: &Path, bytes: &[u8]) -> Result<(), ServiceError> {
    write_with_mode(permit, path, bytes, 0o666)
}

/// The same for a secret: only the user of this process may read it, from its first byte on.
///
/// # Errors
/// As [`write_file`].
pub fn write_private_file(path: &Path, bytes: &[u8]) -> Result<(), ServiceError> {
    write_with_mode(&Unshared, path, bytes, 0o600)
}

/// `mode` as of a new file, before the user's mask is taken off.
fn write_with_mode(permit: &dyn Permit, path: &Path, bytes: &[u8], mode: u32) -> Result<(), ServiceError> {
    let partial = partial_file_name(permit, path);
    let write = || -> io::Result<()> {
        // What an interrupted write left would keep its mode.
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let take_place = || {
        write().map_err(failed("write", &partial))?;
        permit.check()?;
        fs::rename(&partial, path)
            .map_err(|error| failed("rename a new file to", path)(in_the_way(path, error)))
    };
    // The next write has another name; the first error is the one to tell.
    take_place().inspect_err(|_| drop(fs::remove_file(&partial)))?;
    sync_directory(parent(path))
}

/// Appends one line to a file, creating it if need be, and waits until it is on disk. A last line that an interrupted
/// append left without its end is ended first, so that it spoils itself only.
///
/// # Errors
/// If the file cannot be written.
pub fn append_line(path: &Path, line: &str) -> Result<(), ServiceError> {
    append_line_by(&Unshared, path, line)
}

pub(crate) fn append_line_by(permit: &dyn Permit, path: &Path, line: &str) -> Result<(), ServiceError> {
    let open = || OpenOptions::new().read(true).append(true).create(true).open(path);
    let mut file = open().map_err(failed("append to", path))?;
    // Asked once the file is open: who has the right next puts another file in its place before adding to it, so that a
    // line that comes late ends in one that nobody reads.
    permit.check()?;
    let mut append = || -> io::Result<u64> {
        let mut text = format!("{line}\n");
        if !ends_with_newline(&file)? {
            text.insert(0, '\n');
        }
        let length = file.metadata()?.len();
        file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).inspect_err(|_| {
            // Half a line would stay in the file for good; the first error is the one to tell.
            let _ = file.set_len(length);
        })?;
        Ok(length)
    };
    // An append that failed may have made the file: its name is on disk only once a first line is.
    let is_first = append().map_err(failed("append to", path))? == 0;
    if is_first { sync_directory(parent(path)) } else { Ok(()) }
}

/// Makes durable what is read of a file, and its name: whoever wrote it may have been killed before that. No file is fine.
///
/// # Errors
/// If it cannot be opened or flushed.
pub fn flush_file(path: &Path) -> Result<(), ServiceError> {
    match File::open(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        file => {
            file.and_then(|file| file.sync_all()).map_err(failed("flush", path))?;
            sync_directory(parent(path))
        }
    }
}

fn ends_with_newline(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    Ok(last == [b'\n'])
}

/// Creates a directory and its parents, all on disk.
///
/// # Errors
/// If one cannot be created.
pub fn create_directory(path: &Path) -> Result<(), ServiceError> {
    fs::create_dir_all(path).map_err(failed("create", path))?;
    sync_directory(parent(path))
}

/// Creates a directory that only the user of this process may enter, where there is none.
///
/// # Errors
/// If it cannot be created.
pub fn create_private_directory(path: &Path) -> Result<(), ServiceError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).map_err(failed("create", path))?;
    sync_directory(parent(path))
}

/// Writes a whole directory: `fill` gets an empty one under a temporary name; its files then go to disk and it takes
/// the name `path`, in place of what stood there.
///
/// # Errors
/// Those of `fill`, and if any step fails, as where `path` is no directory; what stood at `path` is then untouched.
pub fn write_directory<E: From<ServiceError>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    write_directory_by(&Unshared, path, fill)
}

pub(crate) fn write_directory_by<E: From<ServiceError>>(
    permit: &dyn Permit,
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let partial = partial_name(permit, path);
    clear(&partial)?;
    fs::create_dir_all(&partial).map_err(failed("create", &partial))?;
    let write = || {
        fill(&partial)?;
        sync_tree(&partial)?;
        permit.check()?;
        Ok(take_place(&partial, path)?)
    };
    let replaced = write().inspect_err(|_: &E| {
        // The disk may be full; the first error is the one to tell.
        let _ = remove_directory(&partial);
    })?;
    sync_directory(parent(path))?;
    // The new directory has its name, whatever becomes of the old one.
    if let Some(replaced) = replaced {
        remove_or_leave(&replaced);
    }
    Ok(())
}

/// Removes what has no name that counts. It does no harm where it cannot be removed yet, as where it is still read over a
/// network file system.
fn remove_or_leave(path: &Path) {
    if let Err(error) = remove_directory(path) {
        tracing::warn!("a leftover cannot be removed yet: {error}");
    }
}

/// Frees a hidden name. What cannot be removed, as where a file of it is still read over NFS, takes another one, under which
/// [`clear_leftovers`] finds it.
fn clear(path: &Path) -> Result<(), ServiceError> {
    let Err(error) = remove_directory(path) else { return Ok(()) };
    if !path.is_dir() {
        return Err(error);
    }
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = format!("{name}.{}{PARTIAL_SUFFIX}", since_epoch.as_nanos());
    fs::rename(path, path.with_file_name(aside)).map_err(|_| error)
}

/// Removes what interrupted writes left in a directory, and puts back what was moved aside and not replaced; no such
/// directory is fine.
///
/// # Errors
/// If the file system refuses.
pub fn clear_leftovers(directory: &Path) -> Result<(), ServiceError> {
    clear_leftovers_by(&Unshared, directory, "")
}

/// Clears those leftovers alone whose names begin, after the dot, as given.
pub(crate) fn clear_leftovers_by(
    permit: &dyn Permit,
    directory: &Path,
    beginning: &str,
) -> Result<(), ServiceError> {
    if !directory.is_dir() {
        return Ok(());
    }
    let names = fs::read_dir(directory).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()
    });
    for name in names.map_err(failed("list", directory))? {
        let path = directory.join(&name);
        let hidden = name.strip_prefix('.').filter(|hidden| hidden.starts_with(beginning));
        let Some(hidden) = hidden else { continue };
        let place = hidden.strip_suffix(REPLACED_SUFFIX).map(|name| directory.join(name));
        if place.is_none() && !hidden.ends_with(PARTIAL_SUFFIX) {
            continue;
        }
        permit.check()?;
        match place {
            Some(place) if !place.exists() => {
                fs::rename(&path, &place).map_err(failed("put back", &place))?;
            }
            None if !path.is_dir() => fs::remove_file(&path).map_err(failed("remove", &path))?,
            Some(_) | None => {
                // Its writer may be stopped right before giving it its place: what is half removed must not get there.
                let own = partial_name(permit, &path);
                match own == path || fs::rename(&path, &own).is_err() {
                    true => remove_or_leave(&path),
                    false => remove_or_leave(&own),
                }
            }
        }
        sync_directory(directory)?;
    }
    Ok(())
}

/// Removes a directory with all below it; none there is fine.
///
/// # Errors
/// If it cannot be removed.
pub fn remove_directory(path: &Path) -> Result<(), ServiceError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(source)),
        _ => Ok(()),
    }
}

/// Takes a directory away at once, then removes it with all below it.
///
/// # Errors
/// If the file system refuses.
pub fn discard_directory(path: &Path) -> Result<(), ServiceError> {
    discard_directory_by(&Unshared, path)
}

pub(crate) fn discard_directory_by(permit: &dyn Permit, path: &Path) -> Result<(), ServiceError> {
    let partial = partial_name(permit, path);
    remove_directory(&partial)?;
    permit.check()?;
    fs::rename(path, &partial).map_err(failed("remove", path))?;
    sync_directory(parent(path))?;
    remove_directory(&partial)
}

/// Makes names created, renamed or removed in a directory durable, where the file system can flush directories.
///
/// # Errors
/// If the directory cannot be opened or flushed.
pub fn sync_directory(path: &Path) -> Result<(), ServiceError> {
    let flush = |directory: File| match directory.sync_all() {
        // Several network and FUSE file systems have no such operation.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Ok(())
        }
        flushed => flushed,
    };
    File::open(path).and_then(flush).map_err(failed("flush", path))
}

/// Gives a new directory its name. Returns where the one lies that had it before, if one had.
fn take_place(partial: &Path, path: &Path) -> Result<Option<PathBuf>, ServiceError> {
    match fs::symlink_metadata(path) {
        Err(_) => {
            fs::rename(partial, path).map_err(failed("rename a new directory to", path))?;
            Ok(None)
        }
        Ok(metadata) if !metadata.is_dir() => Err(failed("replace", path)(Errno::ENOTDIR.into())),
        Ok(_) => match renameat2(AT_FDCWD, partial, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => Ok(Some(partial.to_owned())),
            // Kernel NFS and many FUSE file systems cannot exchange; what else is wrong, renaming meets as well.
            Err(_) => replace_by_renaming(partial, path).map(Some),
        },
    }
}

/// Moves the old directory aside and the new one into its place; for a moment neither has the name.
fn replace_by_renaming(partial: &Path, path: &Path) -> Result<PathBuf, ServiceError> {
    let replaced = hidden_name(path, REPLACED_SUFFIX);
    clear(&replaced)?;
    fs::rename(path, &replaced).map_err(failed("move aside", path))?;
    fs::rename(partial, path).map_err(|source| {
        // The error that matters is the first one.
        let _ = fs::rename(&replaced, path);
        failed("replace", path)(source)
    })?;
    Ok(replaced)
}

fn sync_tree(path: &Path) -> Result<(), ServiceError> {
    for entry in fs::read_dir(path).map_err(failed("list", path))? {
        let entry = entry.map_err(failed("list", path))?.path();
        if entry.is_dir() {
            sync_tree(&entry)?;
        } else {
            File::open(&entry).and_then(|file| file.sync_all()).map_err(failed("flush", &entry))?;
        }
    }
    sync_directory(path)
}

/// `.NAME.partial`, or `.NAME.TAG.partial` where others may write the same.
pub(crate) fn partial_name(permit: &dyn Permit, path: &Path) -> PathBuf {
    match permit.tag() {
        "" => hidden_name(path, PARTIAL_SUFFIX),
        tag => hidden_name(path, &format!(".{tag}{PARTIAL_SUFFIX}")),
    }
}

/// The same for a file, of which threads of one process may write one at the same time.
fn partial_file_name(permit: &dyn Permit, path: &Path) -> PathBuf {
    static N_WRITTEN: AtomicU64 = AtomicU64::new(0);
    match permit.tag() {
        "" => partial_name(permit, path),
        tag => {
            let number = N_WRITTEN.fetch_add(1, Ordering::Relaxed);
            hidden_name(path, &format!(".{tag}-{number}{PARTIAL_SUFFIX}"))
        }
    }
}

fn hidden_name(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{suffix}"))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServiceError {
    let path = path.to_owned();
    move |source| ServiceError::File { action, path, source }
}

/// Names what stands where a file is to be; the system's word for it is all but clear.
fn in_the_way(path: &Path, error: io::Error) -> io::Error {
    match path.is_dir() {
        true => io::Error::new(
            io::ErrorKind::IsADirectory,
            "a folder stands where this file should; move it away, and try again",
        ),
        false => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_in(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).expect("a directory");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("run.json");
        write_file(&path, b"one").expect("written");
        write_file(&path, b"two").expect("written");
        assert_eq!(fs::read(&path).expect("readable"), b"two");
        assert_eq!(names_in(directory.path()), ["run.json"]);
    }

    #[test]
    fn a_folder_in_place_of_a_file_is_said_to_be_in_the_way() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("inputs.json");
        fs::create_dir(&path).expect("created");
        let error = write_file(&path, b"{}").expect_err("refused");
        let source = std::error::Error::source(&error).expect("a reason").to_string();
        assert!(source.contains("a folder stands where this file should; move it away"), "{source}");
        assert!(error.to_string().contains("inputs.json"), "{error}");
    }

    #[test]
    fn a_directory_is_replaced_as_a_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("adapter");
        let fill = |name: &'static str| move |path: &Path| write_file(&path.join(name), name.as_bytes());
        write_directory(&path, fill("old")).expect("written");
        write_directory(&path, fill("new")).expect("written");
        assert_eq!(names_in(&path), ["new"]);
        assert_eq!(names_in(directory.path()), ["adapter"]);
    }

    #[test]
    fn a_failed_fill_keeps_what_was_there_and_the_next_one_starts_empty() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("checkpoint");
        write_directory(&path, |path| write_file(&path.join("good"), b"1")).expect("written");
        let outcome = write_directory(&path, |path| {
            write_file(&path.join("half"), b"2")?;
            write_file(&path.join("missing/half"), b"2")
        });
        assert!(outcome.is_err());
        assert_eq!(names_in(&path), ["good"]);
        write_directory(&path, |path| write_file(&path.join("better"), b"3")).expect("written");
        assert_eq!(names_in(&path), ["better"]);
    }

    #[test]
    fn a_directory_is_replaced_where_two_cannot_be_exchanged() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, partial) = (directory.path().join("adapter"), directory.path().join(".adapter.partial"));
        for (place, name) in [(&path, "old"), (&partial, "new")] {
            write_file(&place.join(name), b"1").expect_err("no directory yet");
            fs::create_dir(place).expect("created");
            write_file(&place.join(name), b"1").expect("written");
        }
        let replaced = replace_by_renaming(&partial, &path).expect("replaced");
        assert_eq!((names_in(&path), names_in(&replaced)), (vec!["new".to_owned()], vec!["old".to_owned()]));
        // Killed before the new one has taken its place.
        fs::rename(&path, &partial).expect("renamed");
        clear_leftovers(directory.path()).expect("cleared");
        assert_eq!(
            (names_in(directory.path()), names_in(&path)),
            (vec!["adapter".to_owned()], vec!["old".to_owned()])
        );
        // Killed after it.
        fs::create_dir(&replaced).expect("created");
        clear_leftovers(directory.path()).expect("cleared");
        assert_eq!(names_in(directory.path()), ["adapter"]);
    }

    #[test]
    fn a_file_in_the_place_of_a_directory_is_named_and_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("adapter");
        fs::write(&path, "notes").expect("written");
        let error = write_directory::<ServiceError>(&path, |_| Ok(())).expect_err("refused");
        let ServiceError::File { action: "replace", source, .. } = &error else { panic!("{error:?}") };
        assert_eq!(source.kind(), io::ErrorKind::NotADirectory);
        assert_eq!(fs::read(&path).expect("readable"), b"notes");
    }

    #[test]
    fn what_is_flushed_stays_as_it_is_and_nothing_is_made() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("rows.jsonl");
        flush_file(&path).expect("nothing to flush");
        assert!(names_in(directory.path()).is_empty());
        append_line(&path, "{}").expect("appended");
        flush_file(&path).expect("flushed");
        assert_eq!(fs::read(&path).expect("readable"), b"{}\n");
        let file_in_the_way = path.join("rows.jsonl");
        assert!(flush_file(&file_in_the_way).is_err(), "a file is no directory");
    }

    #[test]
    fn a_discarded_directory_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("checkpoint");
        write_directory(&path, |path| write_file(&path.join("a"), b"1")).expect("written");
        discard_directory(&path).expect("discarded");
        assert!(names_in(directory.path()).is_empty());
        assert!(discard_directory(&path).is_err(), "it is gone");
    }

    #[test]
    fn leftovers_are_cleared_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        clear_leftovers(&directory.path().join("absent")).expect("nothing to do");
        for name in [".lock", "run.json", ".run.json.partial", "notes.partial"] {
            fs::write(directory.path().join(name), "").expect("written");
        }
        fs::create_dir(directory.path().join(".adapter.partial")).expect("created");
        clear_leftovers(directory.path()).expect("cleared");
        assert_eq!(names_in(directory.path()), [".lock", "notes.partial", "run.json"]);
    }

    #[test]
    fn a_torn_last_line_spoils_only_itself() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("metrics.jsonl");
        append_line(&path, "{}").expect("appended");
        OpenOptions::new().append(true).open(&path).expect("opens").write_all(b"{\"torn").expect("written");
        append_line(&path, "[]").expect("appended");
        assert_eq!(fs::read_to_string(&path).expect("readable"), "{}\n{\"torn\n[]\n");
    }
}
