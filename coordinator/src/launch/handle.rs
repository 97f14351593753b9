//! How a launcher finds a member again.

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

/// By what a launcher finds a member again, as `run.json` keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handle {
    /// A process id of this host; a mere number in `run.json`.
    Process(u32),
    /// A start of a member on another host.
    Remote(RemoteStart),
}

/// One start of a member on a host that is reached by `ssh`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteStart {
    /// The host, as `ssh` takes it.
    pub host: String,
    /// Tells this start from all others of the run: the name of its folder there.
    pub life: String,
    /// Its process there, once it is known: the host's own name, and the process id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<(String, u32)>,
}

impl Serialize for Handle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Process(pid) => serializer.serialize_u32(*pid),
            Self::Remote(start) => start.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Handle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Handle;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a process id, or a host and a life")
            }

            fn visit_u64<E: Error>(self, pid: u64) -> Result<Handle, E> {
                u32::try_from(pid).map(Handle::Process).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Handle, A::Error> {
                RemoteStart::deserialize(MapAccessDeserializer::new(map)).map(Handle::Remote)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_a_number_or_a_start_elsewhere() {
        let (host, life) = ("gpu1".to_owned(), "worker-0.000001-000002".to_owned());
        let asked = RemoteStart { host, life, process: None };
        let running = RemoteStart { process: Some(("node-1".to_owned(), 7)), ..asked.clone() };
        for (handle, text) in [
            (Handle::Process(7), "7"),
            (Handle::Remote(asked), r#"{"host":"gpu1","life":"worker-0.000001-000002"}"#),
            (
                Handle::Remote(running),
                r#"{"host":"gpu1","life":"worker-0.000001-000002","process":["node-1",7]}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&handle).expect("JSON"), text);
            assert_eq!(serde_json::from_str::<Handle>(text).expect("read"), handle);
        }
        for odd in ["-1", "5000000000", "\"7\"", "{\"host\":\"a\"}"] {
            assert!(serde_json::from_str::<Handle>(odd).is_err(), "{odd}");
        }
    }
}
