//! TensorBoard event files: length-prefixed, checksummed records of protobuf messages.
//!
//! Source: tensorflow/core/util/event.proto, summary.proto and lib/io/record_writer.h (formats only).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use service::{OwnedDirectory, ServiceError};

/// In the name of every event file that this program writes.
const WRITER: &str = ".learner.";

/// Appends events to one file.
pub struct EventWriter {
    file: File,
}

/// All that is known of a step.
#[derive(Debug)]
pub struct Step {
    /// Its number.
    pub step: u32,
    /// When it was recorded, in seconds since 1970.
    pub wall_time: f64,
    /// Values by their tags.
    pub values: Vec<(String, EventValue)>,
}

/// One value of a step.
#[derive(Debug)]
pub enum EventValue {
    /// A point of a curve.
    Scalar(f32),
    /// A PNG image.
    Png {
        /// Encoded bytes.
        bytes: Vec<u8>,
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
    },
}

impl EventWriter {
    /// Writes a new event file with all `steps` so far, in place of those that earlier lives of the learner left in the
    /// run; whoever has read them begins again.
    ///
    /// # Errors
    /// If the file system refuses, or the run is another learner's.
    pub fn rewrite(run: &OwnedDirectory, steps: impl Iterator<Item = Step>) -> Result<Self, ServiceError> {
        let directory = run.tensorboard();
        run.create_directory(&directory)?;
        let failed = |action| {
            let path = directory.clone();
            move |source| ServiceError::File { action, path, source }
        };
        let earlier = event_files(&directory).map_err(failed("list"))?;
        let now = unix_seconds();
        // Readers take the files of a directory in the order of their names.
        let name = format!("events.out.tfevents.{now:017.6}{WRITER}{}", std::process::id());
        let path = directory.join(name);
        // What is being written has no name that a reader would take for events.
        let partial = run.partial_name(&path);
        let writer = Self::create(&partial, now, steps).map_err(failed("write events to"))?;
        run.rename(&partial, &path)?;
        for path in earlier.iter().filter(|earlier| **earlier != path) {
            run.remove_file(path)?;
        }
        Ok(writer)
    }

    fn create(path: &Path, now: f64, steps: impl Iterator<Item = Step>) -> io::Result<Self> {
        let file = OpenOptions::new().create_new(true).append(true).open(path)?;
        let mut writer = Self { file };
        writer.append(0, now, What::FileVersion("brain.Event:2".to_owned()))?;
        // Voids what was read from earlier files at this step or later.
        writer.append(0, now, What::SessionLog(SessionLog { status: SESSION_START }))?;
        for step in steps {
            writer.write(step)?;
        }
        writer.file.sync_all()?;
        Ok(writer)
    }

    /// Appends the values of one step in a single record.
    ///
    /// # Errors
    /// If the file system refuses; a reader may then find nothing of what is appended later.
    pub fn write(&mut self, step: Step) -> io::Result<()> {
        let value =
            step.values.into_iter().map(|(tag, value)| Value { tag, value: Some(value.into()) }).collect();
        self.append(step.step, step.wall_time, What::Summary(Summary { value }))
    }

    fn append(&mut self, step: u32, wall_time: f64, what: What) -> io::Result<()> {
        let event = Event { wall_time, step: i64::from(step), what: Some(what) };
        self.file.write_all(&record(&event.encode_to_vec()))
    }
}

/// Event files of this program; others may have put theirs beside.
fn event_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("events.out.tfevents.") && name.contains(WRITER) {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// The time as events have it.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// Length, checksum of the length, data, checksum of the data.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(data.len() + 16);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&masked_crc32c(&length).to_le_bytes());
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(&masked_crc32c(data).to_le_bytes());
    bytes
}

/// The checksum is rotated and shifted, as checksums of data that holds checksums should be.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with Castagnoli's polynomial, reflected.
fn crc32c(data: &[u8]) -> u32 {
    const REFLECTED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let update_bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ REFLECTED_POLYNOMIAL } else { crc >> 1 };
    let update = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| update_bit(crc));
    !data.iter().fold(!0, update)
}

const SESSION_START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(oneof = "Payload", tags = "2, 4")]
    value: Option<Payload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Payload {
    #[prost(float, tag = "2")]
    SimpleValue(f32),
    #[prost(message, tag = "4")]
    Image(Image),
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded_image_string: Vec<u8>,
}

impl From<EventValue> for Payload {
    fn from(value: EventValue) -> Self {
        const RGB: i32 = 3;
        match value {
            EventValue::Scalar(number) => Self::SimpleValue(number),
            EventValue::Png { bytes, width, height } => Self::Image(Image {
                height: height as i32,
                width: width as i32,
                colorspace: RGB,
                encoded_image_string: bytes,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::{Ownership, RunDirectory};

    /// A run, and where its events are.
    fn run() -> (tempfile::TempDir, OwnedDirectory, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let owner = Ownership::claim(&RunDirectory::new(home.path()), 0, None).unwrap();
        let events = owner.directory().tensorboard();
        std::fs::create_dir(&events).unwrap();
        (home, owner.directory().clone(), events)
    }

    #[test]
    fn checksums_match_the_published_vectors() {
        // RFC 3720, section B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc32c(b""), 0xa282_ead8);
    }

    /// Reads a file back as TensorBoard would, refusing what it would refuse.
    fn events(bytes: &[u8]) -> Vec<Event> {
        let (mut rest, mut events) = (bytes, Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc32c(&rest[..8]).to_le_bytes());
            let data = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked_crc32c(data).to_le_bytes());
            events.push(Event::decode(data).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    fn step(step: u32, tag: &str, value: EventValue) -> Step {
        Step { step, wall_time: f64::from(step) + 0.5, values: vec![(tag.to_owned(), value)] }
    }

    /// The events of the only file in a directory.
    fn only_file(directory: &Path) -> Vec<Event> {
        let files = event_files(directory).unwrap();
        assert_eq!((files.len(), std::fs::read_dir(directory).unwrap().count()), (1, 1), "{files:?}");
        events(&std::fs::read(&files[0]).unwrap())
    }

    #[test]
    fn scalars_and_images_are_read_back() {
        let (_home, run, directory) = run();
        let mut writer = EventWriter::rewrite(&run, std::iter::empty()).unwrap();
        writer.write(step(3, "reward", EventValue::Scalar(0.5))).unwrap();
        let png = EventValue::Png { bytes: vec![1, 2, 3], width: 2, height: 1 };
        writer.write(step(4, "samples", png)).unwrap();

        let events = only_file(&directory);
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".to_owned())));
        assert_eq!((events[1].step, &events[1].what), (0, &Some(What::SessionLog(SessionLog { status: 1 }))));
        let Some(What::Summary(summary)) = &events[2].what else { panic!("a summary was written") };
        assert_eq!((events[2].step, events[2].wall_time), (3, 3.5));
        assert_eq!(summary.value[0].tag, "reward");
        assert_eq!(summary.value[0].value, Some(Payload::SimpleValue(0.5)));
        let Some(What::Summary(summary)) = &events[3].what else { panic!("a summary was written") };
        let Some(Payload::Image(image)) = &summary.value[0].value else { panic!("an image was written") };
        assert_eq!((image.width, image.height, image.encoded_image_string.len()), (2, 1, 3));
    }

    #[test]
    fn a_new_file_has_everything_so_far_and_is_the_only_one() {
        let (_home, run, directory) = run();
        let foreign = directory.join("events.out.tfevents.1.other");
        std::fs::write(&foreign, "").unwrap();
        let mut writer = EventWriter::rewrite(&run, std::iter::empty()).unwrap();
        writer.write(step(3, "reward", EventValue::Scalar(0.5))).unwrap();
        let rows = [1, 2].map(|number| step(number, "reward", EventValue::Scalar(0.25)));
        let mut writer = EventWriter::rewrite(&run, rows.into_iter()).unwrap();
        writer.write(step(3, "reward", EventValue::Scalar(0.75))).unwrap();
        std::fs::remove_file(&foreign).expect("it is left alone");
        let steps: Vec<_> = only_file(&directory).iter().map(|event| event.step).collect();
        assert_eq!(steps, [0, 0, 1, 2, 3]);
    }
}
