//! What this machine's environment makes of paths: variables and home directories.

use config::Lookup;
use nix::unistd::{User, getuid};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A path with what `~` and `$NAME` in it stand for; what is not known stays as it is.
pub fn expand_path(path: &Path) -> PathBuf {
    expand_path_by(path, |name| std::env::var_os(name))
}

/// The same with variables from elsewhere.
pub(crate) fn expand_path_by(path: &Path, variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let Some(text) = path.to_str() else { return path.to_owned() };
    let variable = |name: &str| variable(name).and_then(|value| value.into_string().ok());
    PathBuf::from(config::expand(text, &Lookup { variable: &variable, home_of: &home_of }))
}

/// The home directory of a user, or of this process's, in the system's database.
fn home_of(user: Option<&str>) -> Option<String> {
    let user = match user {
        Some(name) => User::from_name(name),
        None => User::from_uid(getuid()),
    };
    user.ok().flatten().and_then(|user| user.dir.into_os_string().into_string().ok())
}
