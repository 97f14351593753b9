//! TensorBoard event files: length-prefixed, checksummed records of protobuf messages.
//!
//! Source: tensorflow/core/util/event.proto, summary.proto and lib/io/record_writer.h (formats only).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

/// Appends events to one file.
pub struct EventWriter {
    file: File,
}

/// One value of a step.
#[derive(Debug)]
pub enum EventValue<'a> {
    /// A point of a curve.
    Scalar(f32),
    /// A PNG image.
    Png {
        /// Encoded bytes.
        bytes: &'a [u8],
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
    },
}

impl EventWriter {
    /// Starts a new event file in `directory`; points that older files hold at `first_step` or later are void, so that
    /// a resumed run draws one line.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn create(directory: &Path, first_step: u32) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let (now, pid) = (unix_seconds(), std::process::id());
        // Readers take the files of a directory in the order of their names.
        let name = format!("events.out.tfevents.{:017.6}.learner.{pid}", now);
        let file = OpenOptions::new().create_new(true).append(true).open(directory.join(name))?;
        let mut writer = Self { file };
        writer.append(0, What::FileVersion("brain.Event:2".to_owned()))?;
        writer.append(first_step, What::SessionLog(SessionLog { status: SESSION_START }))?;
        Ok(writer)
    }

    /// Appends the values of one step in a single record.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn write<'a>(
        &mut self,
        step: u32,
        values: impl IntoIterator<Item = (String, EventValue<'a>)>,
    ) -> io::Result<()> {
        let value = values.into_iter().map(|(tag, value)| Value { tag, value: Some(value.into()) }).collect();
        self.append(step, What::Summary(Summary { value }))
    }

    fn append(&mut self, step: u32, what: What) -> io::Result<()> {
        let event = Event { wall_time: unix_seconds(), step: i64::from(step), what: Some(what) };
        self.file.write_all(&record(&event.encode_to_vec()))
    }
}

fn unix_seconds() -> f64 {
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

impl From<EventValue<'_>> for Payload {
    fn from(value: EventValue<'_>) -> Self {
        const RGB: i32 = 3;
        match value {
            EventValue::Scalar(number) => Self::SimpleValue(number),
            EventValue::Png { bytes, width, height } => Self::Image(Image {
                height: height as i32,
                width: width as i32,
                colorspace: RGB,
                encoded_image_string: bytes.to_vec(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn scalars_and_images_are_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(directory.path(), 3).unwrap();
        writer.write(3, [("reward".to_owned(), EventValue::Scalar(0.5))]).unwrap();
        let png = EventValue::Png { bytes: &[1, 2, 3], width: 2, height: 1 };
        writer.write(4, [("samples".to_owned(), png)]).unwrap();

        let file = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
        let events = events(&std::fs::read(file).unwrap());
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".to_owned())));
        assert_eq!((events[1].step, &events[1].what), (3, &Some(What::SessionLog(SessionLog { status: 1 }))));
        let Some(What::Summary(summary)) = &events[2].what else { panic!("a summary was written") };
        assert_eq!((events[2].step, summary.value[0].tag.as_str()), (3, "reward"));
        assert_eq!(summary.value[0].value, Some(Payload::SimpleValue(0.5)));
        let Some(What::Summary(summary)) = &events[3].what else { panic!("a summary was written") };
        let Some(Payload::Image(image)) = &summary.value[0].value else { panic!("an image was written") };
        assert_eq!((image.width, image.height, image.encoded_image_string.len()), (2, 1, 3));
    }
}
