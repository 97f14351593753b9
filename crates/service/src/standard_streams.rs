//! Words for whoever started a program, and may stop reading: `PROGRAM | head`.

use std::fmt::Display;
use std::io::{self, Write};

/// Writes a line to standard output. A reader that has gone has seen enough, which is no error.
///
/// # Errors
/// If the line cannot be written for another reason, such as a full disk.
pub fn say(line: impl Display) -> io::Result<()> {
    unless_reader_is_gone(writeln!(io::stdout().lock(), "{line}"))
}

/// Writes a line to standard error, if anybody reads it.
pub fn complain(line: impl Display) {
    // There is nowhere left to say that this failed.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn unless_reader_is_gone(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => {
            other.map_err(|e| io::Error::new(e.kind(), format!("cannot write to the standard output: {e}")))
        }
    }
}
