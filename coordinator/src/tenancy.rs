//! Whether a run lives, on this host or another, and waiting until it is clear that it does not.
//!
//! On one host a lock tells at once: the system frees it with the process that has it. On another host only signs of life do,
//! which a living coordinator gives every second.

use crate::advice;
use crate::error::CoordinatorError;
use crate::run_record::RunRecord;
use nix::fcntl::{Flock, FlockArg};
use service::output::print_error_line;
use service::{
    Holder, OWNER_LEASE, OwnerRecord, RunDirectory, Seen, Vigil, incumbent, is_of_this_machine, sign_of_life,
};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two looks for a sign of life.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Held by the living coordinator of a run; the system frees it when the process ends, however it ends.
pub struct RunLock {
    _file: Flock<File>,
}

/// Where a run lives, as far as can be told at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenancy {
    /// Nowhere.
    Nowhere,
    /// On this host.
    Here,
    /// Its owner was on another host and has not said that it ended.
    Elsewhere(OwnerRecord),
}

/// A run that lives nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vacancy {
    /// The learner that the last coordinator on this host let change the run, and that may live still.
    pub learner: Option<Holder>,
    /// Whether the last coordinator was on another host, so that the process ids that it noted mean nothing here.
    pub was_elsewhere: bool,
}

impl RunLock {
    /// Takes the lock of a run.
    ///
    /// # Errors
    /// A usage error if another coordinator on this host has it.
    pub fn take(directory: &RunDirectory) -> Result<Self, CoordinatorError> {
        let path = directory.lock_file();
        let failed = |source| CoordinatorError::File { action: "lock", path: path.clone(), source };
        let mut options = File::options();
        // Whoever may open it could hold it, and keep its owner out.
        options.create(true).truncate(false).write(true).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(CoordinatorError::Usage(living(directory))),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// Whether a living coordinator on this host has the lock of a run; of another user's, whether its process is there.
    fn is_taken(directory: &RunDirectory) -> bool {
        match Self::take(directory) {
            Err(CoordinatorError::Usage(_)) => true,
            Err(CoordinatorError::File { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                let is_there =
                    |record: RunRecord| Path::new("/proc").join(record.coordinator_pid.to_string()).exists();
                RunRecord::read(directory).is_ok_and(is_there)
            }
            _ => false,
        }
    }
}

impl Tenancy {
    /// Looks at a run.
    pub fn of(directory: &RunDirectory) -> Self {
        if RunLock::is_taken(directory) {
            return Self::Here;
        }
        match incumbent(directory).ok().flatten() {
            Some(owner) if !is_of_this_machine(&owner) => Self::Elsewhere(owner),
            _ => Self::Nowhere,
        }
    }
}

/// Waits until it is clear that no coordinator of a run lives, for whoever has its lock.
///
/// # Errors
/// A usage error if the run lives on another host, with where and since when.
pub async fn wait_for_vacancy(directory: &RunDirectory) -> Result<Vacancy, CoordinatorError> {
    let Some(owner) = incumbent(directory)? else { return Ok(Vacancy::default()) };
    if is_of_this_machine(&owner) {
        return Ok(Vacancy { learner: owner.learner, was_elsewhere: false });
    }
    print_error_line(format_args!(
        "note: in {}, {}; waiting for up to {} s to see whether it lives",
        directory.path().display(),
        owner.whereabouts(),
        OWNER_LEASE.as_secs()
    ));
    match watch(directory).await {
        true => Err(CoordinatorError::Usage(elsewhere(directory, &owner))),
        false => Ok(Vacancy { learner: None, was_elsewhere: true }),
    }
}

/// Whether the owner gives a sign of life within its lease.
async fn watch(directory: &RunDirectory) -> bool {
    let vigil = Vigil::new(sign_of_life(directory), Instant::now());
    loop {
        match vigil.look(sign_of_life(directory), Instant::now()) {
            Seen::Life => return true,
            Seen::Silence => return false,
            Seen::Nothing => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    }
}

/// Waits until a run lives nowhere any more.
pub async fn wait_for_end(directory: &RunDirectory) {
    loop {
        match Tenancy::of(directory) {
            Tenancy::Nowhere => return,
            Tenancy::Elsewhere(_) if !watch(directory).await => return,
            Tenancy::Here | Tenancy::Elsewhere(_) => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    }
}

fn living(directory: &RunDirectory) -> String {
    let process = match RunRecord::read(directory) {
        Ok(record) => format!(" (process {}, port {})", record.coordinator_pid, record.port),
        Err(_) => String::new(),
    };
    let since = incumbent(directory).ok().flatten();
    let since = since.map(|owner| format!(": {}", owner.whereabouts())).unwrap_or_default();
    let run = directory.path();
    format!(
        "{} has a living coordinator{process}{since}; see `{}`, stop it with `{}`",
        run.display(),
        advice::on("status", run),
        advice::on("down", run)
    )
}

/// What is said of a run that lives on another host.
pub fn elsewhere(directory: &RunDirectory, owner: &OwnerRecord) -> String {
    let run = directory.path();
    format!(
        "{} lives on another host: {}; see it there by `{}` and stop it there by `{}`. If that host cannot be reached, end \
         the process by whatever started it: {} s after its last sign of life the run may go on here",
        run.display(),
        owner.whereabouts(),
        advice::on("status", run),
        advice::on("down", run),
        OWNER_LEASE.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::Ownership;

    fn run() -> (tempfile::TempDir, RunDirectory) {
        let home = tempfile::tempdir().expect("a directory");
        let directory = RunDirectory::new(home.path());
        (home, directory)
    }

    #[test]
    fn a_second_coordinator_is_refused_until_the_first_is_gone() {
        let (_home, directory) = run();
        let owner = Ownership::claim(&directory, 0, None).expect("claimed");
        RunRecord::new("demo").write(owner.directory()).expect("written");
        let lock = RunLock::take(&directory).expect("free");
        let refusal = RunLock::take(&directory).err().expect("taken");
        let told = refusal.to_string();
        assert!(told.contains(&format!("process {}", std::process::id())), "{told}");
        assert!(told.contains("owns it since") && told.contains(&service::host_name()), "{told}");
        assert_eq!((refusal.exit_code(), Tenancy::of(&directory)), (2, Tenancy::Here));
        drop(lock);
        assert_eq!(Tenancy::of(&directory), Tenancy::Nowhere);
    }

    #[tokio::test]
    async fn a_run_of_another_host_is_taken_over_once_that_is_silent_and_not_before() {
        let (_home, directory) = run();
        let owner = Ownership::claim(&directory, 0, Some(Holder::of_this_process())).expect("claimed");
        assert_eq!(
            wait_for_vacancy(&directory).await.expect("dead, since the lock is free"),
            Vacancy { learner: Some(Holder::of_this_process()), was_elsewhere: false }
        );
        let text = std::fs::read_to_string(directory.owner_file()).expect("readable");
        let host = service::host_name();
        let far = text.replace(&format!("\"{host}\""), "\"far-away\"");
        std::fs::write(directory.owner_file(), far).expect("written");
        let Tenancy::Elsewhere(there) = Tenancy::of(&directory) else { panic!("it may live") };
        assert_eq!(there.owner.host, "far-away");
        // The second is polled once the first has begun to watch.
        let (refused, ()) = tokio::join!(biased; wait_for_vacancy(&directory), async {
            owner.beat().expect("it lives");
        });
        let told = refused.expect_err("it lives").to_string();
        assert!(told.contains("lives on another host: process") && told.contains("on far-away"), "{told}");
    }
}
