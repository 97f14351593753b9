//! Files and directories that are either there as a whole or not at all, also after a power cut.
//!
//! Invariants: (1) a name appears only when all bytes below it are on disk; (2) what stood under the name before is
//! kept until then; (3) leftovers of an interrupted write are called `.NAME.partial` and are overwritten by the next.

use crate::ServiceError;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes a whole file: to a temporary name beside it, to disk, then renamed over `path`.
///
/// # Errors
/// If any step fails; what stood at `path` is then untouched.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ServiceError> {
    let partial = partial_name(path);
    let write = || -> io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(failed("write", &partial))?;
    fs::rename(&partial, path).map_err(failed("rename a new file to", path))?;
    sync_directory(parent(path))
}

/// Appends one line to a file, creating it if need be, and waits until it is on disk. A last line that an interrupted
/// append left without its end is ended first, so that it spoils itself only.
///
/// # Errors
/// If the file cannot be written.
pub fn append_line(path: &Path, line: &str) -> Result<(), ServiceError> {
    let existed = path.exists();
    let append = || -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut text = format!("{line}\n");
        if !ends_with_newline(&file)? {
            text.insert(0, '\n');
        }
        file.write_all(text.as_bytes())?;
        file.sync_data()
    };
    append().map_err(failed("append to", path))?;
    if existed { Ok(()) } else { sync_directory(parent(path)) }
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

/// Writes a whole directory: `fill` gets an empty one under a temporary name; its files then go to disk and it takes
/// the name `path`, in place of what stood there.
///
/// # Errors
/// Those of `fill`, and if any step fails; what stood at `path` is then untouched.
pub fn write_directory<E: From<ServiceError>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let partial = partial_name(path);
    remove_directory(&partial)?;
    fs::create_dir_all(&partial).map_err(failed("create", &partial))?;
    fill(&partial)?;
    sync_tree(&partial)?;
    take_place(&partial, path)?;
    sync_directory(parent(path))?;
    // What stood at `path` now has the temporary name, if anything did.
    remove_directory(&partial)?;
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

/// Makes names created, renamed or removed in a directory durable.
///
/// # Errors
/// If the directory cannot be opened or flushed.
pub fn sync_directory(path: &Path) -> Result<(), ServiceError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("flush", path))
}

/// Renames, or exchanges the two where `path` exists already.
fn take_place(partial: &Path, path: &Path) -> Result<(), ServiceError> {
    if !path.exists() {
        return fs::rename(partial, path).map_err(failed("rename a new directory to", path));
    }
    let exchange = renameat2(AT_FDCWD, partial, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE);
    exchange.map_err(|errno| failed("replace", path)(errno.into()))
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

fn partial_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServiceError {
    let path = path.to_owned();
    move |source| ServiceError::File { action, path, source }
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
    fn a_torn_last_line_spoils_only_itself() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("metrics.jsonl");
        append_line(&path, "{}").expect("appended");
        OpenOptions::new().append(true).open(&path).expect("opens").write_all(b"{\"torn").expect("written");
        append_line(&path, "[]").expect("appended");
        assert_eq!(fs::read_to_string(&path).expect("readable"), "{}\n{\"torn\n[]\n");
    }
}
