//! What a run leaves on disk, without what differs from life to life and folder to folder: times, the names of event files,
//! paths, and who owned it.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;
use serde_json::Value;

/// Every file below a run directory with what it holds, in words.
pub type Remains = BTreeMap<String, String>;

/// Keys of times, and of a digest of paths.
const DIFFERING_KEYS: [&str; 5] = ["time", "seconds", "computing_seconds", "recorded_at", "config_digest"];

/// Looks at every file of a run, hidden ones too.
pub fn of(run: &Path) -> Remains {
    let mut remains = Remains::new();
    collect(run, run, &mut remains);
    remains
}

fn collect(run: &Path, folder: &Path, remains: &mut Remains) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(run).unwrap().display().to_string();
        if ["owner.json", "owners", ".owner.json."].iter().any(|owner| name.starts_with(owner)) {
            continue;
        }
        if path.is_dir() {
            remains.insert(format!("{name}/"), String::new());
            collect(run, &path, remains);
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let (place, text) = match path.extension().and_then(|extension| extension.to_str()) {
            _ if name.starts_with("tensorboard/events.out.tfevents.") => {
                ("tensorboard/events".to_owned(), events(&bytes))
            }
            _ if name.ends_with("manifest.json") => (name, confirmed(&path)),
            Some("json" | "jsonl") => (name, rows(&bytes)),
            Some("toml") => (name, without_folder(&bytes, run.parent().unwrap())),
            _ => (name, blake3::hash(&bytes).to_hex().to_string()),
        };
        assert!(!remains.contains_key(&place), "there is more than one {place}");
        remains.insert(place, text);
    }
}

/// A manifest has digests of files with times in them; all there is to say is that it confirms them.
fn confirmed(manifest: &Path) -> String {
    let manifest_of: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    for (name, record) in manifest_of["files"].as_object().unwrap() {
        let bytes = std::fs::read(manifest.with_file_name(name)).unwrap();
        assert_eq!(record["blake3"], blake3::hash(&bytes).to_hex().as_str(), "{name}");
    }
    "confirms its files".to_owned()
}

fn without_folder(bytes: &[u8], folder: &Path) -> String {
    String::from_utf8_lossy(bytes).replace(&folder.display().to_string(), "FOLDER")
}

fn rows(bytes: &[u8]) -> String {
    let rows = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>();
    let mut rows: Vec<Value> = rows.map(|row| row.unwrap()).collect();
    rows.iter_mut().for_each(without_differing);
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn without_differing(value: &mut Value) {
    let Some(fields) = value.as_object_mut() else { return };
    fields.retain(|key, _| !DIFFERING_KEYS.contains(&key.as_str()));
    fields.values_mut().for_each(without_differing);
}

#[derive(Message)]
struct Event {
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session: Option<Session>,
}

#[derive(Clone, PartialEq, Message)]
struct Session {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Tagged>,
}

#[derive(Clone, PartialEq, Message)]
struct Tagged {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    number: Option<f32>,
    #[prost(bytes = "vec", optional, tag = "4")]
    image: Option<Vec<u8>>,
}

/// What TensorBoard's reader in Python keeps of an event file: the start of a session voids what is of its step or later.
fn events(bytes: &[u8]) -> String {
    let (mut rest, mut kept) = (bytes, Vec::<(i64, String)>::new());
    while let Some((length, _)) = rest.split_first_chunk::<8>() {
        let length = u64::from_le_bytes(*length) as usize;
        let event = Event::decode(&rest[12..12 + length]).unwrap();
        rest = &rest[16 + length..];
        if event.session.is_some() {
            kept.retain(|(step, _)| *step < event.step);
        }
        for value in event.summary.into_iter().flat_map(|summary| summary.values) {
            let image = value.image.map(|image| blake3::hash(&image).to_hex().to_string());
            let number = value.number.filter(|_| !value.tag.starts_with("time/"));
            kept.push((event.step, format!("{} {} {number:?} {image:?}\n", event.step, value.tag)));
        }
    }
    assert!(rest.is_empty(), "a record is torn");
    kept.into_iter().map(|(_, text)| text).collect()
}
