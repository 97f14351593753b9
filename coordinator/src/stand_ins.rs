//! For tests: small processes and programs in place of members and of the other programs.

use crate::launch::{Handle, is_member_process};
use crate::run_record::RunRecord;
use service::{Ownership, RunDirectory};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Makes a program of a script. Another process does it: a program that this process has open for writing, as tests in other
/// threads may inherit, cannot be started.
pub(crate) fn install_program(path: &Path, script: &str) {
    let text = path.with_extension("script");
    std::fs::write(&text, format!("#!/bin/sh\n{script}\n")).expect("written");
    let installed = Command::new("install").args(["-m", "755"]).args([text.as_path(), path]).status();
    assert!(installed.expect("started").success());
}

/// A process that looks like a member; it ends when dropped.
pub(crate) struct StandIn(Child);

impl StandIn {
    /// Starts one that is taken for that member, and for nothing of any run yet.
    pub(crate) fn start(member_id: &str) -> Self {
        let mut member = Command::new("sh");
        // It waits by itself: a child of it would outlive it.
        member.args(["-c", "read line", "member", "--member-id", member_id]).stdin(Stdio::piped());
        let member = Self(member.spawn().expect("a process"));
        // A process that has just begun another program has no arguments for a moment.
        let deadline = Instant::now() + Duration::from_secs(120);
        while !is_member_process(member.pid(), member_id) {
            assert!(Instant::now() < deadline, "the stand-in is not taken for a member");
            std::thread::sleep(Duration::from_millis(1));
        }
        member
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Has the record of a run name it.
    pub(crate) fn record(&self, directory: &RunDirectory, member_id: &str) {
        let mut record = RunRecord::read(directory).expect("a record");
        record.members.insert(member_id.to_owned(), Handle::Process(self.pid()));
        write_record(&record, directory);
    }
}

/// Writes the record of a run, as an owner of it that has nothing else to do.
pub(crate) fn write_record(record: &RunRecord, directory: &RunDirectory) {
    let owner = Ownership::claim(directory, 0, None).expect("claimed");
    record.write(owner.directory()).expect("written");
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
