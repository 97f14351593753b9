//! Files of a run as the streams by which an operator elsewhere gets them. Sends from a thread that may wait.

use crate::exported;
use crate::logs::{Following, ShownLogs, print_logs};
use crate::logs_elsewhere::LogsElsewhere;
use proto::{FilePart, LogsReply};
use protocol::with_causes;
use service::{Provenance, RunDirectory, SentFile, ServiceError, files_end, send_files};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use tokio::sync::mpsc::Sender;
use tonic::Status;

/// Most lines of a tail, which are held until the last of them is known.
pub const MOST_TAIL_LINES: u32 = 10_000;
/// Most bytes of one part of the logs.
const LOG_PART_BYTES: usize = 64 * 1024;

type Parts<T> = Sender<Result<T, Status>>;

/// Sends the logs of a run: all, or the last `tail` lines, and what is `following` them until that ends or nobody reads.
///
/// # Errors
/// If a log cannot be read.
pub fn send_logs(
    logs: &ShownLogs<'_>,
    tail: Option<usize>,
    following: Option<&mut LogsElsewhere>,
    sender: &Parts<LogsReply>,
) -> Result<(), Status> {
    let mut output = BufWriter::with_capacity(LOG_PART_BYTES, LogParts { sender });
    let mut look =
        following.map(|elsewhere| move || if sender.is_closed() { None } else { elsewhere.look() });
    let following = look.as_mut().map_or(Following::Nothing, |look| Following::While(look));
    let sent = print_logs(logs, tail, following, &mut output);
    let (_, _unsent_once_hung_up) = output.into_parts();
    match sent {
        Err(_) if sender.is_closed() => Ok(()),
        sent => sent.map_err(|error| Status::internal(with_causes(&error))),
    }
}

/// Sends what is written, in parts.
struct LogParts<'a> {
    sender: &'a Parts<LogsReply>,
}

impl Write for LogParts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(LOG_PART_BYTES)];
        let reply = LogsReply { text: part.to_vec().into() };
        let sent = self.sender.blocking_send(Ok(reply));
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends what a run has exported, if it is whole and stays the same meanwhile.
///
/// # Errors
/// If there is nothing yet, or it is being written.
pub fn send_export(directory: &RunDirectory, sender: &Parts<FilePart>) -> Result<(), Status> {
    let adapter = directory.adapter();
    if !adapter.is_dir() {
        let told = format!(
            "{} does not exist yet; the learner writes it with its first checkpoint",
            adapter.display()
        );
        return Err(Status::failed_precondition(told));
    }
    // First, so that an export that begins between the two is noticed.
    let before = Provenance::of_exports(directory);
    let is_changing = |told: String| Status::aborted(told);
    exported::check(directory, true).map_err(|error| is_changing(error.to_string()))?;
    let files = SentFile::below(&adapter, Path::new("")).map_err(unreadable)?;
    if !send_files(&files, |part| sender.blocking_send(Ok(part)).is_ok()).map_err(unreadable)? {
        return Ok(());
    }
    if Provenance::of_exports(directory) != before {
        return Err(is_changing(format!("{} changed while it was copied; try again", adapter.display())));
    }
    // Who has hung up needs no end.
    let _ = sender.blocking_send(Ok(files_end(&files)));
    Ok(())
}

fn unreadable(error: ServiceError) -> Status {
    Status::internal(with_causes(&error))
}
