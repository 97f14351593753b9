//! Files of a run as the streams by which an operator elsewhere gets them. Sends from a thread that may wait.

use crate::error::CoordinatorError;
use crate::exported;
use crate::logs::{Following, print_logs};
use proto::export_reply::Part;
use proto::{Chunk, ExportEnd, ExportReply, ExportedFile, ExportedFileEnd, LogsReply};
use protocol::with_causes;
use service::{CHUNK_BYTES, RunDirectory};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use tokio::sync::mpsc::Sender;
use tonic::Status;

/// Most lines of a tail, which are held until the last of them is known.
pub const MOST_TAIL_LINES: u32 = 10_000;
/// Most bytes of one part of the logs.
const LOG_PART_BYTES: usize = 64 * 1024;

type Parts<T> = Sender<Result<T, Status>>;

/// Sends the logs of a run, and goes on as they grow where they are followed, for as long as somebody reads.
///
/// # Errors
/// If a log cannot be read.
pub fn send_logs(
    directory: &RunDirectory,
    tail: Option<usize>,
    follow: bool,
    sender: &Parts<LogsReply>,
) -> Result<(), Status> {
    let mut output = BufWriter::with_capacity(LOG_PART_BYTES, LogParts { sender });
    let is_read = || !sender.is_closed();
    let following = if follow { Following::While(&is_read) } else { Following::Nothing };
    let sent = print_logs(directory, tail, following, &mut output);
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
pub fn send_export(directory: &RunDirectory, sender: &Parts<ExportReply>) -> Result<(), Status> {
    let adapter = directory.adapter();
    if !adapter.is_dir() {
        let told = format!(
            "{} does not exist yet; the learner writes it with its first checkpoint",
            adapter.display()
        );
        return Err(Status::failed_precondition(told));
    }
    // First, so that an export that begins between the two is noticed.
    let before = exported::provenances(directory);
    let is_changing = |told: String| Status::aborted(told);
    exported::check(directory, true).map_err(|error| is_changing(error.to_string()))?;
    let files = exported::files(&adapter).map_err(unreadable)?;
    for name in &files {
        if send_file(&adapter, name, sender)?.is_none() {
            return Ok(());
        }
    }
    if exported::provenances(directory) != before {
        return Err(is_changing(format!("{} changed while it was copied; try again", adapter.display())));
    }
    let _ = send(sender, Part::End(ExportEnd { files: files.len() as u32 }));
    Ok(())
}

fn unreadable(error: CoordinatorError) -> Status {
    Status::internal(with_causes(&error))
}

/// Sends a file, a chunk in memory at a time; `None` once nobody reads any more.
fn send_file(folder: &Path, name: &Path, sender: &Parts<ExportReply>) -> Result<Option<()>, Status> {
    let path = folder.join(name);
    let failed = |source| unreadable(CoordinatorError::File { action: "read", path: path.clone(), source });
    let mut file = File::open(&path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let wire_name: Vec<_> = name.iter().map(|part| part.to_string_lossy()).collect();
    if send(sender, Part::File(ExportedFile { name: wire_name.join("/"), bytes })).is_none() {
        return Ok(None);
    }
    let (mut hasher, mut offset) = (blake3::Hasher::new(), 0);
    loop {
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut data).map_err(failed)?;
        if data.is_empty() {
            break;
        }
        hasher.update(&data);
        let n_bytes = data.len() as u64;
        let chunk = Chunk { offset, crc32: crc32fast::hash(&data), data: data.into() };
        if send(sender, Part::Chunk(chunk)).is_none() {
            return Ok(None);
        }
        offset += n_bytes;
    }
    let digest = hasher.finalize().as_bytes().to_vec().into();
    Ok(send(sender, Part::FileEnd(ExportedFileEnd { digest })))
}

fn send(sender: &Parts<ExportReply>, part: Part) -> Option<()> {
    sender.blocking_send(Ok(ExportReply { part: Some(part) })).ok()
}
