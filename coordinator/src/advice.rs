//! Commands that a user is told to type: whole, as a shell takes them, and true in whatever directory they are typed.

use crate::cli::{DRAIN_GRACE, TASK_DEADLINE, UpOptions};
use service::RunDirectory;
use std::path::Path;

/// Goes on with a run. Its settings stand in its own config; only what is told to `up` alone is told again.
pub fn resume_with(run: &Path, options: &UpOptions) -> String {
    let mut command = resume(run);
    let told = [
        ("--task-deadline", options.task_deadline, TASK_DEADLINE),
        ("--drain-grace", options.drain_grace, DRAIN_GRACE),
    ];
    for (flag, value, _) in told.iter().filter(|(_, value, default)| value != default) {
        command.push_str(&format!(" {flag} {value}"));
    }
    command
}

/// Goes on with a run.
pub fn resume(run: &Path) -> String {
    format!("coordinator resume {}", quoted_path(run))
}

/// Shows the curves of a run.
pub fn tensorboard(run: &RunDirectory) -> String {
    format!("tensorboard --logdir {}", quoted_path(&run.tensorboard()))
}

/// How to follow and stop a run that no terminal shows.
pub fn follow(run: &RunDirectory) -> String {
    let path = quoted_path(run.path());
    format!(
        "follow it by `coordinator status {path}` and `coordinator logs {path} --follow`, stop it by `coordinator down \
         {path}`"
    )
}

/// What a run that starts no workers waits for.
pub fn without_workers(run: &RunDirectory, port: u16) -> String {
    format!(
        "resources.workers is 0, so no worker is started here: `coordinator scale {} --workers N` starts some, others \
         join by `rollout-worker serve --coordinator http://127.0.0.1:{port} --member-id NAME`",
        quoted_path(run.path())
    )
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// A word as a shell takes it back.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@,+%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    #[test]
    fn words_come_back_from_a_shell_as_they_were() {
        for word in ["runs/a.toml", "my run.toml", "it's", "a=\"b\"", "", "$HOME;ls"] {
            let mut shell = std::process::Command::new("sh");
            shell.arg("-c").arg(format!("printf %s {}", quoted(word)));
            let output = shell.output().expect("a shell");
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
        assert_eq!(quoted("run.seed=7"), "run.seed=7");
    }

    #[test]
    fn what_was_told_to_up_alone_is_told_again() {
        let options = |flags: &[&str]| {
            let line = ["coordinator", "up", "run.toml"].iter().chain(flags);
            match Cli::try_parse_from(line).expect("valid flags").command {
                Command::Up(args) => args.options,
                other => panic!("not `up`: {other:?}"),
            }
        };
        let run = Path::new("/runs/my run");
        let flags = ["--workers", "3", "--drain-grace", "5"];
        assert_eq!(resume_with(run, &options(&flags)), "coordinator resume '/runs/my run' --drain-grace 5");
        assert_eq!(resume_with(run, &options(&[])), resume(run));
    }
}
