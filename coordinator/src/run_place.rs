//! Whether the directory of a run can be made, found out before anything else of the run is.

use crate::error::CoordinatorError;
use config::RunConfig;
use nix::unistd::{AccessFlags, access};
use service::RunDirectory;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::path::Path;

/// Bytes of one name in a path, on every file system that Linux has.
const LONGEST_NAME: usize = 255;

/// Checks that the directory of a config's run can be written to, or made where it is not there. Leaves nothing behind.
///
/// # Errors
/// A usage error that names the directory and why not.
pub fn check(config: &RunConfig) -> Result<(), CoordinatorError> {
    let directory = run_directory(config)?;
    try_out(directory.path()).map_err(|error| {
        CoordinatorError::Usage(format!(
            "`run.directory`: the run directory {} cannot be used: {error}; name a place that can be written to, as by \
             `--set run.directory=DIRECTORY`",
            config::place(directory.path())
        ))
    })
}

fn try_out(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_dir() => {
            Err(io::Error::new(ErrorKind::NotADirectory, "something else has that name"))
        }
        Ok(_) => Ok(access(path, AccessFlags::W_OK | AccessFlags::X_OK)?),
        Err(_) => make_beside(path),
    }
}

/// Makes a directory for a moment where the first one that is missing would be: whether the system refuses cannot be told
/// from permissions alone, since it has places where nobody makes a directory.
fn make_beside(path: &Path) -> io::Result<()> {
    if path.iter().any(|name| name.len() > LONGEST_NAME) {
        return Err(io::Error::from(ErrorKind::InvalidFilename));
    }
    let there = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let trial = there.join(format!(".trial-{:016x}", RandomState::new().build_hasher().finish()));
    let tried = std::fs::create_dir(&trial).and_then(|()| std::fs::remove_dir(&trial));
    tried.map_err(|error| {
        io::Error::new(error.kind(), format!("no directory can be made in {} ({error})", there.display()))
    })
}

/// The directory of a config's run, absolute.
///
/// # Errors
/// If the working directory is gone.
pub fn run_directory(config: &RunConfig) -> Result<RunDirectory, CoordinatorError> {
    let path = config.run.directory.join(&config.run.name);
    let failed = |source| CoordinatorError::File { action: "resolve", path: path.clone(), source };
    Ok(RunDirectory::new(std::path::absolute(&path).map_err(failed)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(directory: &Path) -> Result<(), String> {
        let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        config.run.directory = directory.to_owned();
        check(&config).map_err(|error| {
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        })
    }

    #[test]
    fn a_place_that_can_be_written_to_is_left_as_it_was() {
        let home = tempfile::tempdir().expect("a directory");
        assert_eq!(checked(&home.path().join("a/b")), Ok(()));
        assert_eq!(std::fs::read_dir(home.path()).expect("there").count(), 0);
        assert_eq!(checked(home.path()), Ok(()));
    }

    #[test]
    fn a_place_where_no_directory_can_be_made_is_named_with_the_reason() {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::write(home.path().join("file"), "").expect("written");
        let long = home.path().join("a").join("b".repeat(300));
        for place in [Path::new("/proc/x"), &home.path().join("file"), &long] {
            let told = checked(place).expect_err("refused");
            assert!(
                told.starts_with(&format!("`run.directory`: the run directory {}/", place.display())),
                "{told}"
            );
        }
        let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        (config.run.directory, config.run.name) = (home.path().to_owned(), "file".to_owned());
        assert!(check(&config).expect_err("a file").to_string().contains("something else has that name"));
    }
}
