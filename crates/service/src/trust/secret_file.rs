//! Files that nobody but their owner may read.

use super::TrustError;
use super::identity::{read, unusable};
use nix::unistd::geteuid;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// The text of a file that nobody but its owner may read.
///
/// # Errors
/// If it cannot be read, is no text, or others may read it.
pub fn read_secret(path: &Path) -> Result<String, TrustError> {
    check_private(path)?;
    String::from_utf8(read(path)?).map_err(|_| unusable(path, "is not text".to_owned()))
}

/// Checks that a secret can be read by nobody but whom it is for.
///
/// # Errors
/// If it cannot be looked at, or may be read or changed by others.
pub(super) fn check_private(path: &Path) -> Result<(), TrustError> {
    let metadata = std::fs::metadata(path);
    let metadata = metadata.map_err(|error| unusable(path, format!("cannot be read: {error}")))?;
    let is_own = metadata.uid() == geteuid().as_raw();
    match is_exposed(metadata.permissions().mode(), is_own) {
        false => Ok(()),
        true => Err(unusable(
            path,
            format!(
                "may be read by others than its owner: `chmod 600 {}`, and replace what it holds if they may have",
                path.display()
            ),
        )),
    }
}

/// Whether others have rights. What another user, as systemd or a cluster, hands to this process may be readable for a group:
/// it is this process's, or the mask of a list of rights that has this process alone.
fn is_exposed(mode: u32, is_own: bool) -> bool {
    let others = if is_own { 0o077 } else { 0o037 };
    mode & others != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_for_its_owner_alone_or_for_a_group_that_was_given_it() {
        for (mode, is_own, is_refused) in [
            (0o600, true, false),
            (0o400, true, false),
            (0o640, true, true),
            (0o604, true, true),
            (0o610, true, true),
            (0o440, false, false),
            (0o460, false, true),
            (0o444, false, true),
        ] {
            assert_eq!(is_exposed(0o100_000 | mode, is_own), is_refused, "{mode:o} {is_own}");
        }
    }

    #[test]
    fn a_loose_file_is_named_with_the_command() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("worker.token");
        std::fs::write(&path, "secret").expect("written");
        for (mode, is_refused) in [(0o644, true), (0o600, false)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("set");
            let outcome = check_private(&path).map_err(|error| error.to_string());
            let told = outcome.err().unwrap_or_default();
            assert_eq!(told.contains(&format!("`chmod 600 {}`", path.display())), is_refused, "{told}");
        }
    }
}
