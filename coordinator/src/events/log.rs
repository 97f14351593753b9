//! `events.jsonl` of a run: written by a thread of its own, bounded, and never a reason for the run to wait or to fail.
//!
//! It is a change of the run directory like any other: right before each batch of lines it is asked whether this coordinator
//! still owns the run. One that does not adds nothing.

use super::Event;
use protocol::with_causes;
use serde::Serialize;
use service::OwnedDirectory;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Events that may wait to be written.
const MOST_WAITING: usize = 8192;
/// Bytes after which a file is set aside as `events.jsonl.1`, in place of the one before.
const MOST_BYTES: u64 = 16 << 20;
/// Events that are written at once, where so many wait.
const MOST_TOGETHER: usize = 256;
/// How long the end of the process waits for what is not written yet.
const CLOSING: Duration = Duration::from_secs(2);

/// Where events are sent. Clones send to the same file.
#[derive(Clone)]
pub struct EventLog {
    sender: SyncSender<Message>,
    dropped: Arc<Dropped>,
}

/// Events that could not be written.
#[derive(Default)]
struct Dropped {
    total: AtomicU64,
    /// Those that the file does not say yet.
    unsaid: AtomicU64,
}

enum Message {
    Event(Box<Line<Event>>),
    Close(Sender<()>),
}

/// A line of the file.
#[derive(Serialize)]
struct Line<T> {
    /// Seconds since 1970.
    recorded_at: f64,
    #[serde(flatten)]
    event: T,
}

/// What stands in the file for events that are not there.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Gap {
    EventsDropped { count: u64, reason: &'static str },
}

impl EventLog {
    /// Appends to the file of a run from now on, which is made once there is an event.
    pub fn start(directory: OwnedDirectory) -> Self {
        let (log, messages) = Self::new(MOST_WAITING);
        let (dropped, file) = (log.dropped.clone(), EventFile::new(directory, MOST_BYTES));
        let started = std::thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || write_all(&messages, file, &dropped));
        if let Err(error) = started {
            tracing::warn!("events are not written: their thread cannot be started: {error}");
        }
        log
    }

    fn new(most_waiting: usize) -> (Self, Receiver<Message>) {
        let (sender, messages) = sync_channel(most_waiting);
        (Self { sender, dropped: Arc::default() }, messages)
    }

    /// Has events written, as many as there is room for; does not wait.
    pub fn record(&self, events: Vec<Event>) {
        for event in events {
            if self.sender.try_send(Message::Event(Box::new(Line { recorded_at: now(), event }))).is_err() {
                self.dropped.add(1);
            }
        }
    }

    /// Events so far that were not written, since too many waited or the file could not be written.
    pub fn n_dropped(&self) -> u64 {
        self.dropped.total.load(Ordering::Relaxed)
    }

    /// Waits a moment for what is not written yet.
    pub fn close(&self) {
        let (written, is_written) = channel();
        if self.sender.try_send(Message::Close(written)).is_ok() {
            // The disk may hang, and the process must end.
            let _ = is_written.recv_timeout(CLOSING);
        }
    }
}

impl Dropped {
    fn add(&self, count: u64) {
        self.total.fetch_add(count, Ordering::Relaxed);
        self.unsaid.fetch_add(count, Ordering::Relaxed);
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Writes until nobody can send any more.
fn write_all(messages: &Receiver<Message>, mut file: EventFile, dropped: &Dropped) {
    while let Ok(first) = messages.recv() {
        let mut batch = Batch::default();
        batch.take(first);
        while batch.lines.len() < MOST_TOGETHER
            && let Ok(next) = messages.try_recv()
        {
            batch.take(next);
        }
        batch.write(&mut file, dropped);
    }
}

/// What waits to be written, and who waits for that.
#[derive(Default)]
struct Batch {
    lines: Vec<Line<Event>>,
    closing: Vec<Sender<()>>,
}

impl Batch {
    fn take(&mut self, message: Message) {
        match message {
            Message::Event(line) => self.lines.push(*line),
            Message::Close(written) => self.closing.push(written),
        }
    }

    fn write(self, file: &mut EventFile, dropped: &Dropped) {
        if !self.lines.is_empty() {
            write_lines(file, &self.lines, dropped);
        }
        for written in self.closing {
            // Who waited may have given up.
            let _ = written.send(());
        }
    }
}

fn write_lines(file: &mut EventFile, lines: &[Line<Event>], dropped: &Dropped) {
    let count = dropped.unsaid.swap(0, Ordering::Relaxed);
    let gap = (count > 0).then(|| {
        tracing::warn!("{count} events are not in {}", file.path.display());
        let reason = "too many waited, or the file could not be written";
        Line { recorded_at: now(), event: Gap::EventsDropped { count, reason } }
    });
    let text = gap.map_or(Ok(Vec::new()), |gap| text_of(&[gap]));
    let text = text.and_then(|gap| Ok([gap, text_of(lines)?].concat()));
    if let Err(error) = text.and_then(|text| file.append(&text)) {
        file.say_failure(&error);
        dropped.unsaid.fetch_add(count, Ordering::Relaxed);
        dropped.add(lines.len() as u64);
    }
}

fn text_of(lines: &[impl Serialize]) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
    }
    Ok(text)
}

/// The file and how full it is.
struct EventFile {
    directory: OwnedDirectory,
    path: PathBuf,
    limit: u64,
    /// Once it is open, with its bytes so far.
    open: Option<(File, u64)>,
    has_failed: bool,
}

impl EventFile {
    fn new(directory: OwnedDirectory, limit: u64) -> Self {
        let path = directory.events();
        Self { directory, path, limit, open: None, has_failed: false }
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        // Whatever fails, the file is opened anew for the next lines.
        let (mut file, length) = match self.open.take() {
            Some(open) => open,
            None => self.open()?,
        };
        self.directory.check().map_err(io::Error::other)?;
        file.write_all(text)?;
        let length = length + text.len() as u64;
        match length >= self.limit {
            true => {
                let aside = self.path.with_added_extension("1");
                self.directory.rename(&self.path, &aside).map_err(io::Error::other)?;
            }
            false => self.open = Some((file, length)),
        }
        self.has_failed = false;
        Ok(())
    }

    /// Opens the file; a last line that was cut off is ended, so that it spoils itself only.
    fn open(&self) -> io::Result<(File, u64)> {
        self.directory.check().map_err(io::Error::other)?;
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&self.path)?;
        let length = file.metadata()?.len();
        let mut last = [b'\n'];
        if length > 0 {
            file.seek(SeekFrom::Start(length - 1))?;
            file.read_exact(&mut last)?;
        }
        if last != [b'\n'] {
            file.write_all(b"\n")?;
        }
        Ok((file, length))
    }

    /// Says once that it fails; the run goes on.
    fn say_failure(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.has_failed, true) {
            let path = self.path.display();
            tracing::warn!(
                "events cannot be written to {path}, the run goes on without: {}",
                with_causes(error)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use service::{Ownership, RunDirectory};

    fn left(member: &str) -> Event {
        Event::MemberLeft { member: member.to_owned() }
    }

    /// A run directory that this process owns, and its file of events.
    fn owned() -> (tempfile::TempDir, Ownership, PathBuf) {
        let home = tempfile::tempdir().expect("a directory");
        let directory = RunDirectory::new(home.path());
        let owner = Ownership::claim(&directory, 0, None).expect("claimed");
        (home, owner, directory.events())
    }

    fn line(member: &str) -> Line<Event> {
        Line { recorded_at: 0.0, event: left(member) }
    }

    fn rows(path: &std::path::Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn an_event_is_a_line_with_its_time_and_its_reason() {
        let (_home, owner, path) = owned();
        let log = EventLog::start(owner.directory().clone());
        let reason = "no sign of life for 5 s".to_owned();
        log.record(vec![Event::MemberLost { member: "worker-0".to_owned(), cause: "silent", reason }]);
        log.close();
        let deadline = std::time::Instant::now() + Duration::from_secs(120);
        while rows(&path).is_empty() {
            assert!(std::time::Instant::now() < deadline, "nothing is written");
        }
        let row = &rows(&path)[0];
        assert_eq!(
            (&row["event"], &row["member"], &row["cause"]),
            (&"member_lost".into(), &"worker-0".into(), &"silent".into())
        );
        assert!(
            row["reason"] == "no sign of life for 5 s" && row["recorded_at"].as_f64() > Some(1.5e9),
            "{row}"
        );
    }

    #[test]
    fn too_many_at_once_are_counted_and_the_file_says_so() {
        let (_home, owner, path) = owned();
        let (log, messages) = EventLog::new(2);
        log.record(["a", "b", "c", "d"].map(left).into());
        assert_eq!(log.n_dropped(), 2);
        let dropped = log.dropped.clone();
        drop(log);
        write_all(&messages, EventFile::new(owner.directory().clone(), MOST_BYTES), &dropped);
        let rows = rows(&path);
        assert_eq!((&rows[0]["event"], &rows[0]["count"]), (&"events_dropped".into(), &2.into()));
        assert_eq!((rows.len(), &rows[1]["member"], &rows[2]["member"]), (3, &"a".into(), &"b".into()));
    }

    #[test]
    fn a_full_file_is_set_aside_in_place_of_the_one_before() {
        let (home, owner, path) = owned();
        let mut file = EventFile::new(owner.directory().clone(), 200);
        for number in 0..102 {
            file.append(&text_of(&[line(&number.to_string())]).expect("JSON")).expect("written");
        }
        let names = std::fs::read_dir(home.path()).expect("a directory").flatten();
        let names = names.filter(|entry| entry.file_name().to_string_lossy().starts_with("events")).count();
        let aside = rows(&path.with_added_extension("1"));
        assert_eq!(names, 2);
        assert!((2..=5).contains(&aside.len()) && rows(&path).len() <= 4, "{}", aside.len());
    }

    #[test]
    fn a_file_that_cannot_be_written_is_counted_and_written_again_when_it_can() {
        let (_home, owner, path) = owned();
        let (mut file, dropped) = (EventFile::new(owner.directory().clone(), MOST_BYTES), Dropped::default());
        std::fs::create_dir(&path).expect("made");
        write_lines(&mut file, &[line("a")], &dropped);
        write_lines(&mut file, &[line("b")], &dropped);
        std::fs::remove_dir(&path).expect("removed");
        std::fs::write(&path, "{\"event\": \"cut o").expect("written");
        write_lines(&mut file, &[line("c")], &dropped);
        assert_eq!(dropped.total.load(Ordering::Relaxed), 2);
        let text = std::fs::read_to_string(&path).expect("there");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 3 && lines[1].contains("\"count\":2") && lines[2].contains("\"c\""), "{text}");
    }

    #[test]
    fn a_coordinator_that_owns_the_run_no_more_adds_nothing() {
        let (home, owner, path) = owned();
        let (mut file, dropped) = (EventFile::new(owner.directory().clone(), MOST_BYTES), Dropped::default());
        write_lines(&mut file, &[line("a"), line("b")], &dropped);
        let next = Ownership::claim(&RunDirectory::new(home.path()), 0, None).expect("claimed");
        write_lines(&mut file, &[line("c"), line("d")], &dropped);
        write_lines(&mut file, &[line("e")], &dropped);
        assert_eq!((rows(&path).len(), dropped.total.load(Ordering::Relaxed)), (2, 3));
        let mut file = EventFile::new(next.directory().clone(), MOST_BYTES);
        write_lines(&mut file, &[line("f")], &Dropped::default());
        assert_eq!(rows(&path)[2]["member"], "f");
    }
}
