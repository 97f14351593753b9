//! Options that all remote scorers have, beside their own.

use std::path::PathBuf;
use std::time::Duration;

use config::SERVER_OPTIONS;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::{Map, Value};
use service::trust::Authorities;

use super::security::{key, plain_in_spite_of};
use super::server_url::ServerUrl;
use crate::error::RewardError;
use crate::options::parse_options;
use crate::resources::Resources;

/// How a server is reached.
#[derive(Clone)]
pub(super) struct Connection {
    /// Where it is.
    pub(super) url: ServerUrl,
    /// How long one request may take, from connecting to the last byte of the reply.
    pub(super) timeout: Duration,
    /// How long an absent server is waited for before a task is given up.
    pub(super) patience: Duration,
    /// Largest reply, in bytes.
    pub(super) max_reply_bytes: u64,
    /// Who certifies it, where that is said.
    pub(super) authorities: Option<Authorities>,
    /// The key that it is shown, if any.
    pub(super) key: Option<String>,
}

#[derive(Deserialize)]
#[serde(default)]
struct ConnectionOptions {
    url: Option<String>,
    timeout_seconds: f64,
    patience_seconds: f64,
    max_reply_bytes: u64,
    tls_ca: Option<String>,
    api_key_env: Option<String>,
    api_key_file: Option<PathBuf>,
}

/// A week: longer is a mistake.
const MOST_SECONDS: f64 = 604_800.0;

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            url: None,
            timeout_seconds: 120.0,
            patience_seconds: 1800.0,
            max_reply_bytes: 16 << 20,
            tls_ca: None,
            api_key_env: None,
            api_key_file: None,
        }
    }
}

/// What sets one protocol's options apart from another's.
pub(super) struct OptionKeys {
    /// Name of the scorer.
    pub(super) name: &'static str,
    /// Where its server is by default; none where there is no custom.
    pub(super) default_url: Option<&'static str>,
    /// Its own options.
    pub(super) own: &'static [&'static str],
}

impl OptionKeys {
    /// Reads the options of the connection, and the scorer's own.
    ///
    /// # Errors
    /// If a key is unknown, or a value of the wrong kind or out of range, or there is no URL.
    pub(super) fn parse<T: DeserializeOwned>(
        &self,
        options: &Value,
        resources: &Resources,
    ) -> Result<(Connection, T), RewardError> {
        let (connection, own) = self.split(options)?;
        let connection = self.connection(parse_options(self.name, &connection)?, resources)?;
        Ok((connection, parse_options(self.name, &own)?))
    }

    fn split(&self, options: &Value) -> Result<(Value, Value), RewardError> {
        let options = match options {
            Value::Null => Map::new(),
            options => parse_options::<Map<String, Value>>(self.name, options)?,
        };
        let known = || SERVER_OPTIONS.iter().chain(self.own).copied();
        if let Some(unknown) = options.keys().find(|key| !known().any(|known| known == *key)) {
            let nearest = config::nearest(unknown, known()).unwrap_or_default();
            let known = known().collect::<Vec<_>>().join(", ");
            let problem = format!("unknown option; did you mean `{nearest}`? (there are: {known})");
            let problem = serde_json::Error::custom(problem);
            return Err(RewardError::Options { name: self.name.to_owned(), key: unknown.clone(), problem });
        }
        let (connection, own): (Map<_, _>, Map<_, _>) =
            options.into_iter().partition(|(key, _)| SERVER_OPTIONS.contains(&key.as_str()));
        Ok((Value::Object(connection), Value::Object(own)))
    }

    fn connection(
        &self,
        options: ConnectionOptions,
        resources: &Resources,
    ) -> Result<Connection, RewardError> {
        let ConnectionOptions { url, timeout_seconds, patience_seconds, max_reply_bytes, .. } = options;
        let Some(url) = url.as_deref().or(self.default_url) else {
            let problem = "it is missing; give `http://host:port`".to_owned();
            return Err(self.refuse("url", problem));
        };
        if timeout_seconds <= 0.0 {
            return Err(self.out_of_range("timeout_seconds", timeout_seconds, "more than 0"));
        }
        let seconds = |key, value: f64| match (0.0..=MOST_SECONDS).contains(&value) {
            true => Ok(Duration::from_secs_f64(value)),
            false => Err(self.out_of_range(key, value, "0 to 604800")),
        };
        let url = ServerUrl::parse(self.name, url)?;
        if options.tls_ca.is_some() && !url.is_secure() {
            return Err(self.refuse("url", plain_in_spite_of("tls_ca")));
        }
        let keys = (options.api_key_env.as_deref(), options.api_key_file.as_deref());
        Ok(Connection {
            url,
            timeout: seconds("timeout_seconds", timeout_seconds)?,
            patience: seconds("patience_seconds", patience_seconds)?,
            max_reply_bytes: self.at_least_one("max_reply_bytes", max_reply_bytes)?,
            authorities: options.tls_ca.as_deref().map(Authorities::from),
            key: key(self, keys, resources)?,
        })
    }

    /// Lets a number pass that is not 0.
    pub(super) fn at_least_one<N: PartialEq + From<u8>>(
        &self,
        key: &'static str,
        value: N,
    ) -> Result<N, RewardError> {
        if value == N::from(0) { Err(self.out_of_range(key, 0.0, "1 or more")) } else { Ok(value) }
    }

    /// An option out of its range.
    pub(super) fn out_of_range(&self, key: &'static str, value: f64, allowed: &'static str) -> RewardError {
        RewardError::OptionRange { name: self.name.to_owned(), key, value: value as f32, allowed }
    }

    /// An option that is wrong in words.
    pub(super) fn refuse(&self, key: &'static str, problem: String) -> RewardError {
        RewardError::OptionValue { name: self.name.to_owned(), key, problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Deserialize)]
    struct Own {
        batch_size: Option<usize>,
    }

    const KEYS: OptionKeys =
        OptionKeys { name: "deqa", default_url: Some("http://127.0.0.1:18086"), own: &["batch_size"] };

    #[test]
    fn options_are_the_connections_and_the_scorers_own() {
        let (connection, own) = KEYS
            .parse::<Own>(&json!({"timeout_seconds": 0.5, "batch_size": 3}), &Resources::local())
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(connection.url.shown(""), "http://127.0.0.1:18086");
        assert_eq!(connection.timeout, Duration::from_millis(500));
        assert_eq!(connection.patience, Duration::from_secs(1800));
        assert_eq!(connection.max_reply_bytes, 16 << 20);
        assert_eq!(own.batch_size, Some(3));
        assert!(KEYS.parse::<Own>(&Value::Null, &Resources::local()).is_ok());
    }

    #[test]
    fn wrong_options_are_told_with_what_would_be_right() {
        let told = |options: Value| {
            KEYS.parse::<Own>(&options, &Resources::local()).err().map(|error| error.to_string())
        };
        for (options, message) in [
            (
                json!({"timout_seconds": 1}),
                "did you mean `timeout_seconds`? (there are: url, timeout_seconds,",
            ),
            (json!({"timeout_seconds": 0}), "`timeout_seconds` of reward `deqa` is 0; use more than 0"),
            (json!({"timeout_seconds": 1e300}), "use 0 to 604800"),
            (json!({"patience_seconds": -1}), "`patience_seconds` of reward `deqa` is -1; use 0 to 604800"),
            (json!({"max_reply_bytes": 0}), "`max_reply_bytes` of reward `deqa` is 0; use 1 or more"),
            (json!({"batch_size": "many"}), "`batch_size` of reward `deqa`"),
            (json!({"url": 7}), "`url` of reward `deqa`"),
            (json!([]), "of reward `deqa`"),
            (
                json!({"tls_ca": "ca.pem"}),
                "`url` of reward `deqa`: it asks for plain text, and `tls_ca` is given",
            ),
            (
                json!({"url": "https://h", "tls_ca": "/no/ca.pem", "api_key_file": "/no/key"}),
                "`api_key_file` of reward `deqa`: /no/key cannot be read",
            ),
            (
                json!({"api_key_env": "A", "api_key_file": "a"}),
                "`api_key_file` of reward `deqa`: `api_key_env` is given, too; leave one of them out",
            ),
        ] {
            let told = told(options.clone()).unwrap_or_else(|| panic!("{options} is accepted"));
            assert!(told.contains(message), "{told}");
        }
        let missing = OptionKeys { default_url: None, ..KEYS };
        let missing = missing.parse::<Own>(&Value::Null, &Resources::local()).err();
        let missing = missing.map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(missing, "option `url` of reward `deqa`: it is missing; give `http://host:port`");
    }
}
