//! `devices.json`: the kinds of device that a run was computed on. Bits hold for one kind of learner and one of workers; the
//! two may differ, since a task is a function of the workers' kind and an update of the learner's.

use crate::error::CoordinatorError;
use config::ComputeDevice;
use proto::{Process, Role};
use serde::{Deserialize, Serialize};
use service::{OwnedDirectory, RunDirectory, ServiceError, shown};
use std::collections::BTreeSet;
use std::io;

/// Longest name of a kind, in characters.
const LONGEST_KIND: usize = 300;

/// The kinds that have taken part so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceKinds {
    /// Of the learner.
    pub learner: BTreeSet<String>,
    /// Of the workers.
    pub workers: BTreeSet<String>,
}

/// What comes of a member's kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KindStanding {
    /// It has taken part before, or is not known.
    Known,
    /// It is the first of its role.
    First(String),
    /// It is another one than those before.
    Further(String),
}

/// The kind of device that a process computes on; empty where it is not known.
pub fn kind_of(process: &Process, device: ComputeDevice) -> &str {
    if device.is_cpu() { &process.host_kind } else { &process.card_kind }
}

impl DeviceKinds {
    /// How the kind of a process stands, as it told it.
    pub fn standing(&self, role: Role, kind: &str) -> KindStanding {
        let (kind, before) = (shown(kind, LONGEST_KIND), self.of(role));
        match (kind.is_empty() || before.contains(&kind), before.is_empty()) {
            (true, _) => KindStanding::Known,
            (false, true) => KindStanding::First(kind),
            (false, false) => KindStanding::Further(kind),
        }
    }

    /// The kinds of a role.
    pub fn of(&self, role: Role) -> &BTreeSet<String> {
        if role == Role::Learner { &self.learner } else { &self.workers }
    }

    /// Counts a kind in.
    pub fn add(&mut self, role: Role, kind: String) {
        let kinds = if role == Role::Learner { &mut self.learner } else { &mut self.workers };
        kinds.insert(kind);
    }

    /// Reads those of a run; none where it has no such file.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged, with the remedy.
    pub fn read(directory: &RunDirectory) -> Result<Self, CoordinatorError> {
        let path = directory.devices();
        let bytes = match config::read_whole(&path, config::MOST_SETTINGS_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => {
                return Err(CoordinatorError::Usage(format!("{} cannot be read: {error}", path.display())));
            }
        };
        serde_json::from_slice(&bytes).map_err(|error| {
            CoordinatorError::Usage(format!(
                "{} is damaged: {error}; remove it, and the kinds of device that join first become the run's anew",
                path.display()
            ))
        })
    }

    /// Writes them, whole or not at all.
    ///
    /// # Errors
    /// If they cannot be written, or the run is another coordinator's.
    pub fn write(&self, directory: &OwnedDirectory) -> Result<(), ServiceError> {
        let text = serde_json::to_vec_pretty(self).expect("names are plain data; else this is a bug");
        directory.write_file(&directory.devices(), &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_kind_of_each_role_is_the_runs_and_others_are_further_ones() {
        let process =
            Process { host_kind: "AVX2".to_owned(), card_kind: "H200".to_owned(), ..Process::default() };
        let [on_host, on_card] =
            [ComputeDevice::Cpu, ComputeDevice::Cuda].map(|device| kind_of(&process, device));
        let mut kinds = DeviceKinds::default();
        assert_eq!(kinds.standing(Role::Learner, on_host), KindStanding::First("AVX2".to_owned()));
        kinds.add(Role::Learner, "AVX512".to_owned());
        assert_eq!(kinds.standing(Role::Learner, on_host), KindStanding::Further("AVX2".to_owned()));
        assert_eq!(kinds.standing(Role::RolloutWorker, on_host), KindStanding::First("AVX2".to_owned()));
        kinds.add(Role::RolloutWorker, "H200".to_owned());
        assert_eq!(kinds.standing(Role::RolloutWorker, on_card), KindStanding::Known);
        assert_eq!(kinds.standing(Role::Learner, ""), KindStanding::Known, "it tells no kind");
    }
}
