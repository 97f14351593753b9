//! Namespaces of processes and mounts for all that a disturbed run needs. When the first process in them ends, however it
//! does, the kernel ends the others, and mounts, disks and hosts go with them.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Set for processes inside.
const MARK: &str = "CHAOS_ENCLOSED";
/// What the folder of a disk is called that may have to be thawed.
pub(super) const DISK: &str = "chaos-disk";

/// The first process inside, which waits for another one and for all whose parents are gone. `/run` is a file system of its
/// own, with the names of hosts and all temporary files. Writers on a frozen disk do not even end when they are killed: the disk is
/// thawed before. The shell has those that it starts in the background ignore SIGINT, which therefore ends it alone.
const FIRST: &str = r#"
mount -t tmpfs tmpfs /run && mkdir /run/netns /run/chaos || exit 1
thaw() {
  while read -r _ folder _; do
    case "$folder" in */chaos-disk) fsfreeze --unfreeze "$folder" 2>/dev/null ;; esac
  done </proc/mounts
}
trap 'thaw; exit 130' INT TERM HUP
TMPDIR=/run/chaos CHAOS_ENCLOSED=yes "$@" &
wait $!
status=$?
thaw
exit $status
"#;

/// Whether this process is inside.
pub fn is_inside() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Goes on inside: this process becomes one that waits for itself, started anew. Inside already, it does nothing.
///
/// # Errors
/// What this machine lacks for it, in words.
pub fn enter() -> Result<(), String> {
    if is_inside() {
        return Ok(());
    }
    check()?;
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let arguments = std::iter::once(own.into_os_string()).chain(std::env::args_os().skip(1));
    Err(format!("`unshare` does not start: {}", enclosing("unshare", &[], arguments).exec()))
}

/// Has a test of this program run inside, by a process of its own; `test` is what it does there.
///
/// # Errors
/// What this machine lacks for it, in words.
///
/// # Panics
/// If it fails.
pub fn test_inside(name: &str, test: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    if is_inside() {
        return test();
    }
    check()?;
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let arguments = ["--exact", name, "--nocapture"].map(OsString::from);
    // It has to end with whoever ends this process.
    let dying_along = ["--pdeathsig", "KILL", "unshare"];
    let mut command =
        enclosing("setpriv", &dying_along, std::iter::once(own.into_os_string()).chain(arguments));
    let status = command.status().map_err(|error| format!("`setpriv` does not start: {error}"))?;
    assert!(status.success(), "{name}: {status}");
    Ok(())
}

/// `unshare`, by itself or by a program that becomes it; what is inside dies with it.
fn enclosing(program: &str, words: &[&str], arguments: impl Iterator<Item = OsString>) -> Command {
    let mut command = Command::new(program);
    command.args(words).args(NAMESPACES).args(["sh", "-c", FIRST, "sh"]).args(arguments);
    command
}

const NAMESPACES: [&str; 5] = ["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"];

fn check() -> Result<(), String> {
    super::command::done(Command::new("unshare").args(NAMESPACES).arg("true")).map_err(|problem| {
        format!("{problem}; mounts and processes of its own need root (CAP_SYS_ADMIN) and util-linux")
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    /// As many as have an argument that nobody else has.
    fn living(mark: &str) -> usize {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let commands = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        // Each process is the last one of its kind: `sleep MARK`, not those that only hand the words on.
        commands.filter(|words| words.starts_with(b"sleep\0") && has(words, mark)).count()
    }

    fn has(words: &[u8], mark: &str) -> bool {
        words.split(|&byte| byte == 0).any(|word| word == mark.as_bytes())
    }

    fn until(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !holds() {
            assert!(Instant::now() < deadline, "still waiting for this: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn nothing_outlives_the_outermost_process_however_it_ends() {
        if let Err(missing) = check() {
            eprintln!("skipped: {missing}");
            return;
        }
        // Who starts tests in the background of a script may have them ignore SIGINT.
        for (signal, seconds) in [("TERM", "86412"), ("KILL", "86413")] {
            let mark = format!("{seconds}.{}", std::process::id());
            // One that is waited for, and one that was left alone.
            let script = format!("mkdir /run/netns/here; setsid sleep {mark} & exec sleep {mark}");
            let arguments = ["sh", "-c", &script].map(OsString::from);
            let mut outermost = enclosing("unshare", &[], arguments.into_iter()).spawn().expect("it starts");
            until("two processes live", || living(&mark) == 2);
            // A terminal signals all of its processes; `unshare` itself leaves signals to those inside.
            let children = format!("/proc/{0}/task/{0}/children", outermost.id());
            let child = std::fs::read_to_string(children).expect("it has a child");
            let target = if signal == "KILL" { outermost.id().to_string() } else { child.trim().to_owned() };
            let sent = Command::new("kill").args(["-s", signal, &target]).status().expect("`kill` starts");
            assert!(sent.success());
            until("all are gone", || living(&mark) == 0);
            assert!(!outermost.wait().expect("waited for").success());
            assert!(!Path::new("/run/netns/here").exists(), "names of hosts stay inside");
        }
    }
}
