//! What members elsewhere log, by way of their heartbeats.

use super::ControlPlane;
use crate::log_questions::{LOG_PATIENCE, MOST_LOGS};
use crate::logs_elsewhere::TellsLogs;
use proto::{MemberLog, MemberLogsRequest};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tonic::Status;

/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(50);
/// How long those who read files of the run may take to come to their end.
const READERS_PATIENCE: Duration = Duration::from_secs(2);

/// Questions that nobody waits for any more once this is dropped, as when who asked has hung up.
struct Questions {
    plane: ControlPlane,
    numbers: Vec<u64>,
}

impl Questions {
    fn are_open(&self) -> bool {
        self.plane.read(|state| state.halves().logs().is_waiting(&self.numbers))
    }

    fn close(&mut self) -> Vec<MemberLog> {
        let numbers = std::mem::take(&mut self.numbers);
        self.plane.update(|state, _| {
            let questions = state.halves_mut().logs_mut();
            numbers.into_iter().filter_map(|number| questions.close(number)).collect()
        })
    }
}

impl Drop for Questions {
    fn drop(&mut self) {
        drop(self.close());
    }
}

impl ControlPlane {
    /// What members log whose logs are not in the run's directory, as far as they answer in time.
    pub(super) async fn logs_of_members_elsewhere(
        &self,
        request: &MemberLogsRequest,
    ) -> Result<Vec<MemberLog>, Status> {
        let directory = self.run_directory()?;
        let has_log = |member_id: &str| directory.log_of(member_id).exists();
        let mut members = self.read(|state| state.members_without_logs(&service::host_name(), has_log));
        members.truncate(MOST_LOGS);
        let numbers = self.update(|state, _| {
            let questions = state.halves_mut().logs_mut();
            members.into_iter().map(|member| questions.ask(member, request)).collect()
        });
        let mut questions = Questions { plane: self.clone(), numbers };
        let until = Instant::now() + LOG_PATIENCE;
        while Instant::now() < until && questions.are_open() && !self.is_closing() {
            tokio::time::sleep(LOOK).await;
        }
        Ok(questions.close())
    }

    /// Whether who follows logs is to come to an end.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    /// Ends what follows logs, and waits a moment until all has been sent.
    pub async fn finish_reading(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
        let until = Instant::now() + READERS_PATIENCE;
        let mut is_sending = self.readers.available_permits() < super::MOST_READERS;
        while is_sending && Instant::now() < until {
            is_sending = self.readers.available_permits() < super::MOST_READERS;
            // Once more after the last has read: what it sent is on its way yet.
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl TellsLogs for ControlPlane {
    async fn tell(&mut self, request: MemberLogsRequest) -> Option<Vec<MemberLog>> {
        let told = self.logs_of_members_elsewhere(&request).await;
        (!self.is_closing()).then(|| told.unwrap_or_default())
    }
}
