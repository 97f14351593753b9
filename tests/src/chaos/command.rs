//! Commands of the system that are waited for.

use std::process::Command;

/// Runs a command to its end.
///
/// # Errors
/// If it does not start or fails, with what it said.
pub(super) fn done(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?} does not start: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?} fails: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
