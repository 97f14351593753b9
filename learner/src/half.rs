//! The learner's half of a run: the coordinator's directory where both reach it, else one of its own, which is filled by the
//! wire and whose results go back by it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use config::RunConfig;
use proto::JoinReply;
use protocol::with_causes;
use service::{Membership, OwnedDirectory, PromptCopies, RunDirectory, ServiceError, received_start};

use crate::progress::ProgressBoard;

/// Names the trouble of results that do not reach the coordinator.
const TROUBLE: &str = "results";
/// Between two tries to send them.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Where the learner reads and writes what is the run's.
#[derive(Clone)]
pub struct Half {
    /// To be changed by this process alone; a rank that shares the coordinator's and is not the first changes none.
    pub directory: Option<OwnedDirectory>,
    /// The prompts there.
    pub prompts: PromptCopies,
    /// What training goes on from, where it is not where the config says.
    pub start_from: Option<PathBuf>,
    /// Whether the coordinator is sent what there is to show.
    is_own: bool,
}

/// A directory that cannot be a learner's own.
#[derive(Debug, thiserror::Error)]
#[error(
    "`--run-directory {}` is a coordinator's: where both are on one host or file system, leave `--run-directory` out; of a copy of a \
     run's directory, remove `run.json` and `owner.json` first", .0.display()
)]
pub struct CoordinatorsDirectory(PathBuf);

/// Whether a directory may become a learner's own, before anything is said of it.
///
/// # Errors
/// If it is that of a coordinator.
pub fn check(own: Option<&RunDirectory>) -> Result<(), CoordinatorsDirectory> {
    match own.filter(|own| own.run_file().exists()) {
        Some(own) => Err(CoordinatorsDirectory(own.path().to_owned())),
        None => Ok(()),
    }
}

impl Half {
    /// The half of a learner that has joined: `own`, filled anew with what it reads, or else the coordinator's directory.
    ///
    /// # Errors
    /// If another process has it, it cannot be written, or what belongs in it does not come.
    pub async fn open(
        (rank, own): (u32, Option<RunDirectory>),
        membership: &Membership,
        reply: &JoinReply,
        config: &RunConfig,
    ) -> Result<Self, ServiceError> {
        let Some(own) = own else {
            let directory = RunDirectory::new(&reply.run_directory);
            let directory = (rank == 0).then(|| OwnedDirectory::of_learner(directory)).transpose()?;
            return Ok(Self { directory, prompts: PromptCopies::of(reply), start_from: None, is_own: false });
        };
        let directory = OwnedDirectory::of_own_half(own, &membership.caller().run_id, &reply.config)?;
        membership.fetch_inputs(&directory).await?;
        let (inputs, start_from) = (directory.inputs_received(), &config.adapter.start_from);
        let is_new = start_from.as_os_str().is_empty();
        Ok(Self {
            prompts: PromptCopies::below(inputs.clone(), reply),
            start_from: (!is_new).then(|| received_start(&inputs, start_from)),
            directory: Some(directory),
            is_own: rank == 0,
        })
    }

    /// The config by which the policy is opened: what training goes on from is where it has come to.
    pub fn config_to_open(&self, config: &RunConfig) -> RunConfig {
        let mut config = config.clone();
        config.adapter.start_from = self.start_from.clone().unwrap_or(config.adapter.start_from);
        config
    }

    /// Sends the coordinator what there is to show whenever it asks, and after every evaluation; for as long as the process
    /// lives. Of a half that is the coordinator's there is nothing to send.
    pub async fn show(self, membership: Membership, progress: Arc<ProgressBoard>) {
        if !self.is_own {
            return std::future::pending().await;
        }
        let (mut standing, mut changes) = (membership.standing(), progress.changes());
        let (mut answered, mut shown) = (None, None);
        loop {
            let asked = standing.borrow_and_update().results_asked;
            let evaluated = progress.get().held_out.map(|held_out| held_out.version);
            if evaluated > shown || asked.is_some() && asked != answered {
                if !self.send(&membership, asked.map_or(0, |asked| asked.number)).await {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
                (answered, shown) = (asked, evaluated);
            }
            tokio::select! {
                _ = standing.changed() => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// The same once, before the process ends.
    pub async fn show_last(&self, membership: &Membership) {
        if self.is_own {
            self.send(membership, 0).await;
        }
    }

    /// Whether it was kept; training does not depend on it, so it ends nothing.
    async fn send(&self, membership: &Membership, number: u64) -> bool {
        let Some(directory) = &self.directory else { return true };
        let sent = membership.send_results(directory, number).await;
        match &sent {
            Ok(()) => membership.relieved(TROUBLE),
            Err(error) => {
                let trouble =
                    format!("what is trained does not reach the coordinator: {}", with_causes(error));
                tracing::warn!("{trouble}");
                membership.troubled(TROUBLE, trouble);
            }
        }
        sent.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinators_directory_is_no_learners_own() {
        let home = tempfile::tempdir().expect("a folder");
        let own = RunDirectory::new(home.path());
        check(None).expect("the coordinator's is used");
        check(Some(&own)).expect("new");
        std::fs::write(own.run_file(), "{}").expect("written");
        let told = check(Some(&own)).expect_err("refused").to_string();
        assert!(
            told.contains("is a coordinator's") && told.contains("leave `--run-directory` out"),
            "{told}"
        );
    }
}
