//! Commands that a user is told to type: whole, as a shell takes them, and true in whatever directory they are typed.

use crate::cli::{DRAIN_GRACE, OPENING_DEADLINE, SSH, TASK_DEADLINE, UpOptions};
use crate::learner_half::LearnerHalf;
use service::RunDirectory;
use std::path::Path;

/// Goes on with a run. Its settings stand in its own config; only what is told to `up` alone is told again.
pub fn resume_with(run: &Path, options: &UpOptions) -> String {
    let mut command = resume(run);
    let told = [
        ("--task-deadline", options.task_deadline, TASK_DEADLINE),
        ("--opening-deadline", options.opening_deadline, OPENING_DEADLINE),
        ("--drain-grace", options.drain_grace, DRAIN_GRACE),
    ];
    for (flag, value, _) in told.iter().filter(|(_, value, default)| value != default) {
        command.push_str(&format!(" {flag} {value}"));
    }
    if options.ssh.to_string() != SSH {
        command.push_str(&format!(" --ssh {}", quoted(&options.ssh.to_string())));
    }
    command
}

/// Goes on with a run.
pub fn resume(run: &Path) -> String {
    on("resume", run)
}

/// What is said of a run that has failed.
pub fn once_mended(resume_command: &str) -> String {
    format!("once what is wrong is mended, go on with `{resume_command}`")
}

/// Goes on with a run that is done, beyond its end.
pub fn lengthen(run: &Path) -> String {
    format!("{} --set run.iterations=N", resume(run))
}

/// Branches off a run, with further words before the file that is to be written.
pub fn branch_off(run: &Path, words: &str) -> String {
    format!("{}{words} FILE", on("init --from", run))
}

/// The same with the file that is to be written.
pub fn branch_off_to(run: &Path, words: &[String], file: &Path) -> String {
    let words: String = words.iter().map(|word| format!(" {}", quoted(word))).collect();
    format!("{}{words} {}", on("init --from", run), quoted_path(file))
}

/// A command of the coordinator about one run or file. All that are advised are made here.
pub fn on(command: &str, path: &Path) -> String {
    format!("coordinator {command} {}", quoted_path(path))
}

/// Shows the curves of a run.
pub fn tensorboard(run: &RunDirectory) -> String {
    format!("tensorboard --logdir {}", quoted_path(&run.tensorboard()))
}

/// How to follow and stop a run that no terminal shows.
pub fn follow(run: &RunDirectory) -> String {
    let on = |command| on(command, run.path());
    format!("follow it by `{}` and `{} --follow`, stop it by `{}`", on("status"), on("logs"), on("down"))
}

/// What a run that starts no workers waits for.
pub fn without_workers(run: &RunDirectory, join_command: &str) -> String {
    format!(
        "resources.workers is 0, so no worker is started here: `{} --workers N` starts some, others join by \
         `{join_command}`",
        on("scale", run.path())
    )
}

/// What a run waits for whose learner somebody else starts.
pub fn learner_by_hand(command: &str, half: Option<&LearnerHalf>) -> String {
    match half.filter(|half| half.has_begun) {
        Some(half) => {
            format!("the learner has its files in {half}; it joins again, or is started there by `{command}`")
        }
        None => format!("the learner is started by hand, on any host that has the model: `{command}`"),
    }
}

fn quoted_path(path: &Path) -> String {
    let text = path.display().to_string();
    // It would be taken for a flag.
    if text.starts_with('-') { quoted(&format!("./{text}")) } else { quoted(&text) }
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
    fn what_is_advised_about_a_path_is_quoted() {
        let run = Path::new("my runs/a");
        assert_eq!(on("plan", Path::new("-a.toml")), "coordinator plan ./-a.toml");
        assert_eq!(lengthen(run), "coordinator resume 'my runs/a' --set run.iterations=N");
        let branched = branch_off(run, " --checkpoint N");
        assert_eq!(branched, "coordinator init --from 'my runs/a' --checkpoint N FILE");
        let followed = follow(&RunDirectory::new(run));
        assert_eq!(followed.matches("'my runs/a'").count(), 3, "{followed}");
    }

    #[test]
    fn nobody_else_makes_commands_of_paths() {
        let sources = [
            include_str!("main.rs"),
            include_str!("config_file.rs"),
            include_str!("error.rs"),
            include_str!("exported.rs"),
            include_str!("opening.rs"),
            include_str!("resume.rs"),
            include_str!("run_record.rs"),
            include_str!("up.rs"),
        ];
        let makes = |line: &&str| {
            let command = line.split("`coordinator ").nth(1).and_then(|rest| rest.split('`').next());
            command.is_some_and(|command| command.contains('{'))
        };
        let found: Vec<&str> = sources.iter().flat_map(|source| source.lines().filter(makes)).collect();
        assert_eq!(found, Vec::<&str>::new());
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
        let told = resume_with(run, &options(&["--ssh", "ssh -F my.conf"]));
        assert_eq!(told, "coordinator resume '/runs/my run' --ssh 'ssh -F my.conf'");
        assert_eq!(resume_with(run, &options(&[])), resume(run));
    }
}
