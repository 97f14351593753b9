//! What programs print: what was asked for goes to standard output, what there is to say about it to standard error.
//!
//! `println!` panics where nobody reads any more (`coordinator status RUN | head -1`). These functions end the program
//! instead, without a word and with [`exit_code::READER_GONE`], as the system ends programs that do not look. What a
//! process has to say while it serves others is no reason to end it: see `logging`.

use crate::{exit_code, visible};
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// Prints a text and ends the line.
pub fn print_line(text: impl Display) {
    end_unless_written(write_now(&mut io::stdout().lock(), format_args!("{text}\n")));
}

/// Prints a text as it is.
pub fn print_text(text: impl Display) {
    end_unless_written(write_now(&mut io::stdout().lock(), format_args!("{text}")));
}

/// Says something on standard error, or to nobody where that is closed. It may hold what was typed or read: a terminal is
/// shown, not told, what is in it.
pub fn print_error_line(text: impl Display) {
    // There is no place left to tell of it.
    let _ = write_now(&mut io::stderr().lock(), format_args!("{}\n", visible(&text.to_string())));
}

/// Standard output for whatever takes a writer; writing never fails but ends the program.
#[derive(Clone, Copy, Debug, Default)]
pub struct StandardOutput;

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        end_unless_written(io::stdout().lock().write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        end_unless_written(io::stdout().lock().flush());
        Ok(())
    }
}

/// Writes all of it, past every buffer.
fn write_now(output: &mut impl Write, text: std::fmt::Arguments<'_>) -> io::Result<()> {
    output.write_fmt(text)?;
    output.flush()
}

/// Ends the process unless what it was asked for was written.
pub(crate) fn end_unless_written(outcome: io::Result<()>) {
    let Err(error) = outcome else { return };
    if error.kind() != ErrorKind::BrokenPipe {
        print_error_line(format_args!("error: cannot write to standard output: {error}"));
    }
    std::process::exit(code_of(&error).into());
}

/// What the exit code says of an output that takes no more.
fn code_of(error: &io::Error) -> u8 {
    if error.kind() == ErrorKind::BrokenPipe { exit_code::READER_GONE } else { exit_code::FAILED }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_gone_is_told_from_a_full_disk() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        drop(reader);
        let error = write_now(&mut writer, format_args!("text")).expect_err("nobody reads");
        assert_eq!(code_of(&error), exit_code::READER_GONE);
        let mut full = std::fs::File::options().write(true).open("/dev/full").expect("it is always there");
        let error = write_now(&mut full, format_args!("text")).expect_err("it is full");
        assert_eq!(code_of(&error), exit_code::FAILED);
    }
}
