//! What was trained so far, as it comes from a coordinator by the wire.

use crate::error::CoordinatorError;
use proto::admin_client::AdminClient;
use proto::{ExportRequest, FilePart};
use service::output::print_line;
use service::{ReceiveError, durable};
use std::path::Path;
use tokio::runtime::Handle;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Copies what was trained so far to a place that is free, by a coordinator that has been reached at an address.
///
/// # Errors
/// A usage error if the run has nothing yet or the destination exists; another if the stream breaks.
pub(crate) async fn export_by(
    mut client: AdminClient<Channel>,
    address: String,
    to: &Path,
) -> Result<(), CoordinatorError> {
    prepare_destination(to)?;
    let exported = client.export(ExportRequest {}).await;
    let parts = exported.map_err(|status| refusal(&address, status))?.into_inner();
    let (handle, folder) = (Handle::current(), to.to_owned());
    let mut incoming = Incoming { parts, handle, address };
    let received = tokio::task::spawn_blocking(move || {
        durable::write_directory(&folder, |partial| incoming.receive_all(partial))
    });
    received.await.expect("receiving does not panic; else this is a bug")?;
    print_line(to.display());
    Ok(())
}

/// What a coordinator's refusal, or the end of the way to it, comes to for who typed the command.
pub(crate) fn refusal(address: &str, status: Status) -> CoordinatorError {
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted => {
            CoordinatorError::Usage(status.message().to_owned())
        }
        Code::Aborted => CoordinatorError::NotExported(status.message().to_owned()),
        Code::PermissionDenied | Code::Unauthenticated | Code::Internal if !is_broken(&status) => {
            status.into()
        }
        _ => CoordinatorError::Lost { address: address.to_owned(), source: Box::new(status) },
    }
}

/// Whether the connection failed rather than the coordinator refused.
fn is_broken(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// The files of an export as they come, one chunk in memory at a time.
struct Incoming {
    parts: Streaming<FilePart>,
    handle: Handle,
    address: String,
}

impl Incoming {
    fn receive_all(&mut self, folder: &Path) -> Result<(), CoordinatorError> {
        let Self { parts, handle, address } = self;
        service::receive_files(folder, &mut || handle.block_on(parts.message())).map_err(
            |error| match error {
                ReceiveError::Stream(status) => refusal(address, status),
                ReceiveError::File(error) => error.into(),
                ReceiveError::Damaged(what) => CoordinatorError::NotExported(format!(
                    "what {address} sends is damaged: {what}; try again"
                )),
            },
        )
    }
}

/// Checks that a place for a copy is free, and makes the folder that it is to be in.
///
/// # Errors
/// A usage error if something is there.
pub(crate) fn prepare_destination(to: &Path) -> Result<(), CoordinatorError> {
    if to.exists() {
        return Err(CoordinatorError::Usage(format!(
            "{} exists; remove it or choose another name",
            to.display()
        )));
    }
    match to.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => Ok(durable::create_directory(parent)?),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_whether_the_command_the_moment_or_the_way_is_at_fault() {
        for (code, exit_code) in [
            (Code::FailedPrecondition, 2),
            (Code::InvalidArgument, 2),
            (Code::Aborted, 75),
            (Code::PermissionDenied, 1),
            (Code::Unavailable, 75),
        ] {
            let error = refusal("https://a:1", Status::new(code, "why"));
            assert_eq!(error.exit_code(), exit_code, "{error}");
            let told = format!("{:#}", anyhow::Error::from(error));
            assert!(told.contains("why"), "{told}");
        }
    }
}
