//! `coordinator logs`: the logs of all processes of a run as one, by the time of each line.
//!
//! Lines of a log are in the order of time already, so the logs are merged as they are read. A line without a time, such as
//! the rest of a message, goes with the line before it; one at the head of a log with the first that has a time.

use crate::admin::MemberLogs;
use crate::error::CoordinatorError;
use crate::log_questions::FollowedLogs;
use crate::logs_elsewhere::LogsElsewhere;
use crate::run_record::find_run;
use proto::MemberLog;
use service::RunDirectory;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);
/// Read at once when the last lines of a log are looked for.
const BLOCK_BYTES: u64 = 64 * 1024;
/// Where the time of a line can be: the whole of `2026-11-29T01:22:24.123456Z`, alone or as a JSON field.
const JSON_TIME: &str = "{\"timestamp\":\"";

/// How long logs are read on as they grow.
pub enum Following<'a> {
    /// Not at all: to their end.
    Nothing,
    /// Until this tells nothing any more; what it tells is what members elsewhere have logged since it was asked before.
    While(&'a mut dyn FnMut() -> Option<Vec<MemberLog>>),
}

/// What there is of the logs of a run.
pub struct ShownLogs<'a> {
    /// Where the logs of this host lie.
    pub directory: &'a RunDirectory,
    /// What members elsewhere have told of theirs.
    pub elsewhere: &'a [MemberLog],
}

/// Prints the logs of a run, each line with the name of its process: all, or the last `tail` lines; with `follow`, goes on
/// as they grow until the run's coordinator ends.
///
/// # Errors
/// If the run is unknown, a log cannot be read, or `output` fails.
pub async fn logs(
    run: &str,
    follow: bool,
    tail: Option<usize>,
    output: &mut impl Write,
) -> Result<(), CoordinatorError> {
    let directory = find_run(run)?;
    let lines = tail.map_or(u32::MAX, |tail| u32::try_from(tail).unwrap_or(u32::MAX));
    let (mut members, mut read) = (MemberLogs::of(run, &directory), FollowedLogs::from_last(lines));
    let elsewhere = read.read(members.ask(read.request()).await);
    let mut following = follow.then(|| LogsElsewhere::follow(members, read));
    let mut look = following.as_mut().map(|elsewhere| move || elsewhere.look());
    let following = look.as_mut().map_or(Following::Nothing, |look| Following::While(look));
    print_logs(&ShownLogs { directory: &directory, elsewhere: &elsewhere }, tail, following, output)
}

/// Prints logs on this thread, which it holds up while it waits for them to grow.
///
/// # Errors
/// If a log cannot be read, or `output` fails.
pub fn print_logs(
    logs: &ShownLogs<'_>,
    tail: Option<usize>,
    following: Following<'_>,
    output: &mut impl Write,
) -> Result<(), CoordinatorError> {
    let mut merged = MergedLogs::default();
    merged.open_new(logs.directory, tail)?;
    merged.take_in(logs.elsewhere, tail);
    let mut last = VecDeque::new();
    while let Some(line) = merged.next_line(matches!(following, Following::Nothing))? {
        match tail {
            None => print(output, &line)?,
            Some(tail) => {
                last.push_back(line);
                if last.len() > tail {
                    last.pop_front();
                }
            }
        }
    }
    last.iter().try_for_each(|line| print(output, line))?;
    output.flush().map_err(unwritten)?;
    match following {
        Following::Nothing => Ok(()),
        Following::While(look) => follow_on(merged, logs.directory, look, output),
    }
}

/// Prints what comes to the logs, for as long as something may come.
fn follow_on(
    mut merged: MergedLogs,
    directory: &RunDirectory,
    look: &mut dyn FnMut() -> Option<Vec<MemberLog>>,
    output: &mut impl Write,
) -> Result<(), CoordinatorError> {
    loop {
        std::thread::sleep(FOLLOW_INTERVAL);
        // Before the files, so that what they hold at the end is printed as well.
        let news = look();
        merged.open_new(directory, None)?;
        merged.take_in(news.as_deref().unwrap_or_default(), None);
        while let Some(line) = merged.next_line(news.is_none())? {
            print(output, &line)?;
        }
        output.flush().map_err(unwritten)?;
        if news.is_none() {
            return Ok(());
        }
    }
}

fn unwritten(source: io::Error) -> CoordinatorError {
    CoordinatorError::File { action: "write to", path: "standard output".into(), source }
}

fn print(output: &mut impl Write, line: &str) -> Result<(), CoordinatorError> {
    output.write_all(line.as_bytes()).map_err(unwritten)
}

/// The open logs of a run.
#[derive(Default)]
struct MergedLogs {
    logs: BTreeMap<PathBuf, Log>,
}

impl MergedLogs {
    /// Opens the logs that are not open yet, from their last `tail` lines on.
    fn open_new(&mut self, directory: &RunDirectory, tail: Option<usize>) -> Result<(), CoordinatorError> {
        let path = directory.logs();
        let failed = |source| CoordinatorError::File { action: "list", path: path.clone(), source };
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "log") && !self.logs.contains_key(&path)
            {
                let log = Log::open(&path, tail).map_err(unreadable(&path))?;
                self.logs.insert(path, log);
            }
        }
        Ok(())
    }

    /// Takes in what members elsewhere told of their logs, after what has been read of them.
    fn take_in(&mut self, elsewhere: &[MemberLog], tail: Option<usize>) {
        for told in elsewhere {
            let text = Cursor::new(text_of(told, tail));
            // No file has such a name: there is none of it in the run's directory.
            match self.logs.entry(PathBuf::from(&told.member_id)) {
                Entry::Occupied(log) => log.into_mut().reader = BufReader::new(Box::new(text)),
                Entry::Vacant(place) => {
                    place.insert(Log::new(told.member_id.clone(), text));
                }
            }
        }
    }

    /// The next line of all, with the name of its process and its end; at the `last` reading, half a line counts as one.
    fn next_line(&mut self, last: bool) -> Result<Option<String>, CoordinatorError> {
        for (path, log) in &mut self.logs {
            log.read_ahead(last).map_err(unreadable(path))?;
        }
        let waiting = self.logs.values_mut().filter(|log| !log.lines.is_empty());
        // A log without any time comes last: it is that of a process that died at once.
        let earliest = waiting.min_by(|a, b| (a.time.is_empty(), &a.time).cmp(&(b.time.is_empty(), &b.time)));
        let Some(earliest) = earliest else { return Ok(None) };
        let line = earliest.lines.pop_front().unwrap_or_default();
        Ok(Some(format!("{:<12} {line}\n", earliest.name)))
    }
}

/// What is shown of what a member told: the last lines, which end with it.
fn text_of(told: &MemberLog, tail: Option<usize>) -> Vec<u8> {
    let MemberLog { member_id, text, missed, .. } = told;
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let lines = lines[lines.len().saturating_sub(tail.unwrap_or(usize::MAX))..].concat();
    let gap = match missed {
        0 => String::new(),
        missed => {
            format!("({missed} bytes of this log did not come; they are where {member_id} writes it)\n")
        }
    };
    // A terminal is to show what others say, and not to obey it.
    let mut shown = gap + &service::visible(&String::from_utf8_lossy(&lines));
    if !shown.is_empty() && !shown.ends_with('\n') {
        shown.push('\n');
    }
    shown.into_bytes()
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> CoordinatorError {
    move |source| CoordinatorError::File { action: "read", path: path.to_owned(), source }
}

/// One log, and what has been read of it but not printed.
struct Log {
    name: String,
    reader: BufReader<Box<dyn Read + Send>>,
    /// A line whose end is not there yet.
    half: Vec<u8>,
    /// Time of the lines that wait, as text, which sorts as the times do; empty before there is one.
    time: String,
    lines: VecDeque<String>,
}

impl Log {
    fn open(path: &Path, tail: Option<usize>) -> io::Result<Self> {
        let mut file = config::open_regular(path)?;
        if let Some(tail) = tail {
            let start = start_of_last_lines(&mut file, tail)?;
            file.seek(SeekFrom::Start(start))?;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self::new(name, file))
    }

    fn new(name: String, text: impl Read + Send + 'static) -> Self {
        let reader = BufReader::new(Box::new(text) as Box<dyn Read + Send>);
        Self { name, reader, half: Vec::new(), time: String::new(), lines: VecDeque::new() }
    }

    /// Makes sure that a line waits, if there is one.
    fn read_ahead(&mut self, last: bool) -> io::Result<()> {
        while self.lines.is_empty() || self.time.is_empty() {
            let Some(line) = self.read_line(last)? else { return Ok(()) };
            if let Some(time) = time_of(&line) {
                time.clone_into(&mut self.time);
            }
            self.lines.push_back(line);
        }
        Ok(())
    }

    fn read_line(&mut self, last: bool) -> io::Result<Option<String>> {
        self.reader.read_until(b'\n', &mut self.half)?;
        let is_whole = self.half.ends_with(b"\n");
        if self.half.is_empty() || !is_whole && !last {
            return Ok(None);
        }
        let bytes = std::mem::take(&mut self.half);
        let text = String::from_utf8_lossy(&bytes);
        Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()))
    }
}

/// The time that a line begins with, `None` for the rest of a message.
fn time_of(line: &str) -> Option<&str> {
    let text = line.strip_prefix(JSON_TIME).unwrap_or(line);
    let end = text.find('Z')? + 1;
    let (time, bytes) = (text.get(..end)?, text.as_bytes());
    let is_time = end >= 20 && bytes[4] == b'-' && bytes[10] == b'T' && bytes[13] == b':';
    (is_time && bytes[0].is_ascii_digit()).then_some(time)
}

/// Where the last `n` whole lines of a file begin.
fn start_of_last_lines(file: &mut File, n: usize) -> io::Result<u64> {
    let mut start = file.seek(SeekFrom::End(0))?;
    // The end of the line before the first that is wanted.
    let mut ends_to_pass = n as u64 + 1;
    while start > 0 {
        let length = start.min(BLOCK_BYTES);
        start -= length;
        file.seek(SeekFrom::Start(start))?;
        let mut block = vec![0; length as usize];
        file.read_exact(&mut block)?;
        for (position, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            ends_to_pass -= 1;
            if ends_to_pass == 0 {
                return Ok(start + position as u64 + 1);
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_record::RunRecord;
    use std::fs;

    struct Home(tempfile::TempDir);

    impl Home {
        fn new(logs: &[(&str, &str)]) -> Self {
            let home = Self(tempfile::tempdir().expect("a directory"));
            let run = RunDirectory::new(home.0.path());
            let owner = service::Ownership::claim(&run, 0, None).expect("claimed");
            RunRecord::new("demo").write(owner.directory()).expect("written");
            fs::create_dir(home.0.path().join("logs")).expect("created");
            logs.iter().for_each(|(name, text)| fs::write(home.path(name), text).expect("written"));
            home
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join("logs").join(name)
        }

        async fn printed(&self, tail: Option<usize>) -> Vec<String> {
            let mut output = Vec::new();
            let run = self.0.path().to_str().expect("text");
            logs(run, false, tail, &mut output).await.expect("readable");
            String::from_utf8(output).expect("text").lines().map(str::to_owned).collect()
        }
    }

    fn at(second: u32, text: &str) -> String {
        format!("2026-11-29T01:22:{second:02}.123456Z  INFO {text}")
    }

    fn two_logs() -> Home {
        let json = "{\"timestamp\":\"2026-11-29T01:22:03.000001Z\",\"level\":\"INFO\"}";
        let learner = [at(1, "a"), at(4, "d"), "  the rest of d".to_owned(), at(6, "f")].join("\n") + "\n";
        let worker = ["loading".to_owned(), at(2, "b"), json.to_owned(), at(5, "e")].join("\n") + "\n";
        Home::new(&[("learner.log", &learner), ("worker-0.log", &worker), ("notes.txt", "not a log\n")])
    }

    #[tokio::test]
    async fn lines_of_all_processes_come_in_the_order_of_time() {
        let printed = two_logs().printed(None).await;
        let expected = [" a", "loading", " b", "03.000001Z", " d", "the rest of d", " e", " f"];
        assert_eq!(printed.len(), expected.len(), "{printed:#?}");
        for (line, end) in printed.iter().zip(expected) {
            assert!(line.contains(end), "{end} is not in {line}");
        }
        assert!(
            printed[0].starts_with("learner      2026") && printed[1].starts_with("worker-0     loading")
        );
    }

    #[tokio::test]
    async fn the_tail_is_the_end_of_them_all() {
        let home = two_logs();
        let all = home.printed(None).await;
        for n in [0, 1, 3, 7, 8, 100] {
            let tail = home.printed(Some(n)).await;
            assert_eq!(tail, all[all.len().saturating_sub(n)..], "the last {n}");
        }
    }

    #[test]
    fn what_members_elsewhere_log_is_added_as_it_comes() {
        let home = Home::new(&[("learner.log", &(at(1, "x") + "\n"))]);
        let told = |text: &'static str, missed| MemberLog {
            member_id: "gpu7".to_owned(),
            text: text.as_bytes().into(),
            missed,
            ..MemberLog::default()
        };
        let mut rounds = vec![None, Some(vec![told("c\n\u{1b}d", 7)]), Some(vec![told("b\n", 0)])];
        let mut look = || rounds.pop().flatten();
        let directory = RunDirectory::new(home.0.path());
        let logs = ShownLogs { directory: &directory, elsewhere: &[told("a\n", 0)] };
        let mut output = Vec::new();
        print_logs(&logs, None, Following::While(&mut look), &mut output).expect("readable");
        let text = String::from_utf8(output).expect("text");
        let lines: Vec<&str> = text.lines().map(|line| line.split_at(13).1).collect();
        let gap = "(7 bytes of this log did not come; they are where gpu7 writes it)";
        assert_eq!(lines, [at(1, "x").as_str(), "a", "b", gap, "c", "\\u{1b}d"]);
    }

    #[test]
    fn the_last_lines_are_found_across_blocks() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("long.log");
        let line = "x".repeat(99);
        fs::write(&path, format!("{line}\n").repeat(5000)).expect("written");
        let mut file = File::open(&path).expect("there");
        for (n, start) in [(0, 500_000), (1, 499_900), (3000, 200_000), (5000, 0), (9999, 0)] {
            assert_eq!(start_of_last_lines(&mut file, n).expect("readable"), start, "{n}");
        }
    }

    #[test]
    fn half_a_line_waits_for_its_end_unless_nothing_follows() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("learner.log");
        fs::write(&path, "one\ntw").expect("written");
        let mut log = Log::open(&path, None).expect("there");
        let mut read = |last| log.read_line(last).expect("readable");
        assert_eq!((read(false).as_deref(), read(false)), (Some("one"), None));
        let mut file = File::options().append(true).open(&path).expect("there");
        file.write_all(b"o\nthr").expect("written");
        assert_eq!((read(false).as_deref(), read(false)), (Some("two"), None));
        assert_eq!(read(true).as_deref(), Some("thr"));
    }

    #[test]
    fn times_are_told_from_other_words() {
        assert_eq!(time_of(&at(1, "a")), Some("2026-11-29T01:22:01.123456Z"));
        for line in ["", "error: no Zebra", "2026 was a year of Zeal and more", "é".repeat(30).as_str()] {
            assert_eq!(time_of(line), None, "{line}");
        }
    }
}
