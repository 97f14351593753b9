//! Finding them: by the run's record, by this host's processes, by `ssh`.

use crate::launch::ssh::{self, SshCommand};
use crate::launch::{Handle, is_member_process, living_processes};
use crate::living_members::LivingMembers;
use crate::run_record::RunRecord;
use service::RunDirectory;
use std::collections::BTreeSet;

impl LivingMembers {
    /// Those of the run in a directory on this host: what its record tells, and what writes to its logs.
    pub fn of(directory: &RunDirectory) -> Self {
        let recorded = RunRecord::read(directory).map(|record| record.members).unwrap_or_default();
        let here = recorded.into_iter().filter_map(|(member_id, handle)| match handle {
            Handle::Process(pid) if is_member_process(pid, &member_id) => Some((member_id, pid)),
            Handle::Process(_) | Handle::Remote(_) => None,
        });
        Self { here: here.chain(living_processes(directory)).collect(), elsewhere: Vec::new() }
    }

    /// The same with those on hosts that `ssh` reaches, which are waited for; who may live there counts.
    pub fn everywhere(directory: &RunDirectory, ssh: &SshCommand) -> Self {
        let record = RunRecord::read(directory);
        let elsewhere = record.map(|record| Self::elsewhere(&record, ssh)).unwrap_or_default();
        Self { elsewhere: elsewhere.elsewhere, ..Self::of(directory) }
    }

    /// Those on hosts that `ssh` reaches alone.
    pub fn elsewhere(record: &RunRecord, ssh: &SshCommand) -> Self {
        Self { here: BTreeSet::new(), elsewhere: ssh::living(ssh, &record.run_id, &record.members) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::RemoteStart;
    use crate::stand_ins::{StandIn, write_record};

    #[test]
    fn members_on_hosts_that_do_not_tell_count_where_they_are_asked_for() {
        let home = tempfile::tempdir().expect("a folder");
        let directory = RunDirectory::new(home.path());
        let start =
            RemoteStart { host: "gpu1".to_owned(), life: "worker-0.000001-000001".to_owned(), process: None };
        let mut record = RunRecord::new("a");
        record.members.insert("worker-0".to_owned(), Handle::Remote(start));
        write_record(&record, &directory);
        assert!(LivingMembers::of(&directory).is_empty());
        let ssh = "false".parse().expect("a command");
        let living = LivingMembers::everywhere(&directory, &ssh);
        assert_eq!(living, LivingMembers::elsewhere(&record, &ssh));
        let told = "worker-0 (on gpu1, which does not tell: the connection ended)";
        assert_eq!((living.to_string().as_str(), living.end_command().as_str()), (told, "ssh gpu1 kill PID"));
    }

    #[test]
    fn members_that_live_are_named_with_their_processes_and_the_command_that_ends_them() {
        let home = tempfile::tempdir().expect("a folder");
        let directory = RunDirectory::new(home.path());
        write_record(&RunRecord::new("a"), &directory);
        assert!(LivingMembers::of(&directory).is_empty());
        assert_eq!(LivingMembers::of(&directory).left_behind(), "");
        let member = StandIn::start("worker-0");
        member.record(&directory, "worker-0");
        let living = LivingMembers::of(&directory);
        assert_eq!(living.to_string(), format!("worker-0 (process {})", member.pid()));
        assert_eq!(living.end_command(), format!("kill {}", member.pid()));
        drop(member);
        assert!(LivingMembers::of(&directory).is_empty());
    }
}
