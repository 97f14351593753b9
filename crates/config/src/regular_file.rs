//! Files that are read whole. What a person names may be a pipe that nobody writes to, or a device without an end.

use nix::libc::O_NONBLOCK;
use std::fs::{File, FileType};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Bytes of a file of settings or records; none has more than a few thousand.
pub const MOST_SETTINGS_BYTES: u64 = 16 << 20;

/// Bytes of a file of prompts: a million of them with 256 bytes each, and every process of a run has them in memory.
pub const MOST_PROMPT_BYTES: u64 = 256 << 20;

/// Bytes of what a run records line by line, for years of a line a second.
pub const MOST_RECORD_BYTES: u64 = 4 << 30;

/// Opens a regular file, or one that a link leads to.
///
/// # Errors
/// If it cannot be opened, or is a folder, a pipe, a socket or a device: to open a pipe is to wait for who writes to it.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let kind = std::fs::metadata(path)?.file_type();
    match other_kind(kind) {
        // What the system makes up may be a regular file and have no end, as /proc/kmsg: reading it would wait for more.
        None => File::options().read(true).custom_flags(O_NONBLOCK).open(path),
        Some(other) => {
            let problem = format!("it is {other}, no file; copy what it holds into a file, and name that");
            Err(io::Error::new(ErrorKind::InvalidInput, problem))
        }
    }
}

/// Reads a regular file of at most `most` bytes.
///
/// # Errors
/// As [`open_regular`], and if it cannot be read or is larger.
pub fn read_whole(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // What the system makes up while it is read, as below /proc, tells no size before.
    open_regular(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(endless)?;
    match bytes.len() as u64 <= most {
        true => Ok(bytes),
        false => {
            let problem = format!("it has more than {most} bytes, the most that such a file may have");
            Err(io::Error::new(ErrorKind::FileTooLarge, problem))
        }
    }
}

/// Reads a regular file of settings or records as text.
///
/// # Errors
/// As [`read_whole`] with [`MOST_SETTINGS_BYTES`], and if it is not UTF-8.
pub fn read_settings(path: &Path) -> io::Result<String> {
    let not_text = |_| io::Error::new(ErrorKind::InvalidData, "it is no text in UTF-8; save it as UTF-8");
    String::from_utf8(read_whole(path, MOST_SETTINGS_BYTES)?).map_err(not_text)
}

/// What it means that there is more to come.
fn endless(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => {
            let problem = "it has no end, and who reads it waits for more; copy what it holds into a file, and name that";
            io::Error::new(ErrorKind::InvalidInput, problem)
        }
        _ => error,
    }
}

/// What a file is that is none.
fn other_kind(kind: FileType) -> Option<&'static str> {
    let kinds = [
        (kind.is_dir(), "a folder"),
        (kind.is_fifo(), "a pipe"),
        (kind.is_socket(), "a socket"),
        (kind.is_char_device() || kind.is_block_device(), "a device"),
    ];
    kinds.into_iter().find_map(|(is_it, name)| is_it.then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, fcntl};
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    #[test]
    fn pipes_sockets_devices_and_folders_are_named_and_not_waited_for() {
        let home = tempfile::tempdir().expect("a folder");
        let (pipe, socket) = (home.path().join("pipe"), home.path().join("socket"));
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("it starts").success());
        let _listener = UnixListener::bind(&socket).expect("bound");
        for (path, kind) in [
            (pipe.as_path(), "a pipe"),
            (&socket, "a socket"),
            (Path::new("/dev/zero"), "a device"),
            (home.path(), "a folder"),
        ] {
            let told = read_settings(path).expect_err("no file").to_string();
            assert!(told.starts_with(&format!("it is {kind}, no file")), "{told}");
        }
    }

    #[test]
    fn a_file_without_an_end_is_not_waited_for() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let opened = open_regular(file.path()).expect("a regular file");
        let flags = fcntl(&opened, FcntlArg::F_GETFL).expect("flags");
        assert_ne!(flags & O_NONBLOCK, 0, "a read that would wait comes back");
        let told = endless(ErrorKind::WouldBlock.into()).to_string();
        assert!(told.contains("it has no end") && told.contains("copy what it holds"), "{told}");
    }

    #[test]
    fn a_file_is_read_up_to_its_bound_and_through_a_link() {
        let home = tempfile::tempdir().expect("a folder");
        let (file, link) = (home.path().join("file"), home.path().join("link"));
        std::fs::write(&file, "1234").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        assert_eq!(read_whole(&link, 4).expect("small enough"), b"1234");
        let told = read_whole(&link, 3).expect_err("too large").to_string();
        assert!(told.contains("more than 3 bytes"), "{told}");
        std::fs::write(&file, [0xff]).expect("written");
        assert!(read_settings(&file).expect_err("no text").to_string().contains("UTF-8"));
    }
}
