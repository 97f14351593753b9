//! Where a process is reached: an address, or a file that holds one, looked up anew for every connection.

use crate::ServiceError;
use crate::trust::{Insecure, Trust, TrustError};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tonic::codegen::http::Uri;

const FILE: &str = "file:";
/// Longest address.
const MOST_BYTES: u64 = 4096;
/// How addresses are written.
const FORMS: &str = "write `http://host:port`, `https://host:port` or `file:PATH`";

/// `http://host:port`, `https://host:port`, `host:port`, or `file:PATH` of a file whose first line is one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// As given; a host name is looked up for every connection.
    Given(String),
    /// Read for every connection.
    File(PathBuf),
}

/// An address as sockets take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPort {
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Whether TLS was asked for; `None` where nothing was said.
    pub(super) is_secure: Option<bool>,
}

impl FromStr for Address {
    type Err = ServiceError;

    fn from_str(text: &str) -> Result<Self, ServiceError> {
        if let Some(path) = text.strip_prefix(FILE) {
            return Ok(Self::File(Path::new(path).to_owned()));
        }
        HostPort::parse(text)?;
        Ok(Self::Given(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(text) => f.write_str(text),
            Self::File(path) => write!(f, "{FILE}{}", path.display()),
        }
    }
}

/// Whether another process may say that it is reached there: `host:port` and nothing else, least of all a file of this host.
pub fn is_place(text: &str) -> bool {
    HostPort::parse(text).is_ok_and(|place| place.is_secure.is_none())
}

impl Address {
    /// What another process says of where it is reached, see [`is_place`].
    ///
    /// # Errors
    /// If it is anything else.
    pub(crate) fn of_process(text: &str) -> Result<Self, ServiceError> {
        match is_place(text) {
            true => Ok(Self::Given(text.to_owned())),
            false => Err(ServiceError::Address {
                address: without_user(text),
                remedy: "a process says as `host:port` where others reach it",
            }),
        }
    }

    /// Finds out early whether a process that shows nothing may connect there; a file may come to hold another address, or any,
    /// later on.
    ///
    /// # Errors
    /// If it asks for TLS, or leads beyond this host and that was not wished for.
    pub(crate) fn check_plain(&self, insecure: Insecure) -> Result<(), ServiceError> {
        match self.resolve_for(&Trust::Plain(insecure)) {
            Err(ServiceError::File { .. }) => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// The number that its host has at this moment, if it can be told.
    pub async fn number(&self) -> Option<IpAddr> {
        let place = self.resolve().ok()?;
        let mut numbers = tokio::net::lookup_host((place.host.as_str(), place.port)).await.ok()?;
        numbers.next().map(|number| number.ip())
    }

    /// What it is at this moment.
    pub(super) fn resolve(&self) -> Result<HostPort, ServiceError> {
        match self {
            Self::Given(text) => HostPort::parse(text),
            Self::File(path) => {
                let failed =
                    |source| ServiceError::File { action: "read the address in", path: path.clone(), source };
                let bytes = config::read_whole(path, MOST_BYTES).map_err(failed)?;
                let text = String::from_utf8_lossy(&bytes);
                HostPort::parse(text.lines().next().unwrap_or_default().trim())
            }
        }
    }

    /// What it is at this moment, if it goes with how it is to be reached.
    pub(super) fn resolve_for(&self, trust: &Trust) -> Result<HostPort, ServiceError> {
        let found = self.resolve()?;
        let problem = match (found.is_secure, trust) {
            (Some(true), Trust::Plain(_)) => format!(
                "{found} asks for TLS (`https://`), and this process has nothing to show: give it a token file by \
                 `--token-file`, from the `tls` folder of the run's directory"
            ),
            (_, Trust::Plain(Insecure::Loopback)) if !crate::network::is_loopback(&found.host) => format!(
                "{found} is on another host and would be spoken to in plain text, so that anybody on the way could read and \
                 change what is said: write `https://` and give a token file by `--token-file`, or say `--insecure=i-know`"
            ),
            (Some(false), Trust::Mutual(_)) => format!(
                "{found} asks for plain text (`http://`), and this process has a token file or certificate: write \
                 `https://`"
            ),
            _ => return Ok(found),
        };
        let (address, problem) = (self.to_string(), Box::new(TrustError::Usage(problem)));
        Err(ServiceError::Untrusted { address, problem })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::network::joined(&self.host, &self.port.to_string()))
    }
}

impl HostPort {
    fn parse(text: &str) -> Result<Self, ServiceError> {
        let unreadable = |remedy| ServiceError::Address { address: without_user(text), remedy };
        let (is_secure, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some(false), rest),
            Some(("https", rest)) => (Some(true), rest),
            Some(_) => return Err(unreadable(FORMS)),
            None => (None, text),
        };
        if rest.contains('@') {
            return Err(unreadable(
                "it has a user's name or password in it, which nobody here asks for: leave out what is before and with the `@`; \
                 a token file (`--token-file`) says who a process is",
            ));
        }
        let place = rest.trim_end_matches('/');
        if place.contains(['/', '?', '#']) {
            return Err(unreadable("a process has no paths or queries: leave out what is behind the port"));
        }
        let uri: Uri = format!("http://{place}").parse().map_err(|_| unreadable(FORMS))?;
        let default = match is_secure {
            Some(true) => Some(443),
            Some(false) => Some(80),
            None => None,
        };
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        match uri.port_u16().or(default) {
            Some(port) if !host.is_empty() => Ok(Self { host, port, is_secure }),
            _ => Err(unreadable(FORMS)),
        }
    }
}

/// An address that can be shown: what stands before an `@` may be a password.
fn without_user(text: &str) -> String {
    let Some((before, place)) = text.rsplit_once('@') else { return text.to_owned() };
    let scheme = before.split_once("://").map(|(scheme, _)| format!("{scheme}://")).unwrap_or_default();
    format!("{scheme}…@{place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(String, u16, Option<bool>)> {
        HostPort::parse(text).ok().map(|found| (found.host, found.port, found.is_secure))
    }

    #[test]
    fn names_and_both_kinds_of_numbers_are_addresses() {
        for (text, host, port, is_secure) in [
            ("http://10.0.0.1:17", "10.0.0.1", 17, Some(false)),
            ("https://node-1.cluster:17/", "node-1.cluster", 17, Some(true)),
            ("[fd00::2]:17", "fd00::2", 17, None),
            ("https://[fd00::2]:17", "fd00::2", 17, Some(true)),
            ("node-1:17", "node-1", 17, None),
            ("http://score.example", "score.example", 80, Some(false)),
        ] {
            assert_eq!(parsed(text), Some((host.to_owned(), port, is_secure)), "{text}");
        }
        for odd in ["", "node-1", "http://not an address", "ftp://a:1", "a:70000", "http://:1"] {
            assert_eq!(parsed(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_is_no_part_of_an_address_is_refused_with_the_remedy_and_passwords_are_not_shown() {
        for (text, words) in [
            ("http://ada:secret@node-1:17", "`http://…@node-1:17`: it has a user's name or password in it"),
            ("ada:secret@node-1:17", "`…@node-1:17`: it has a user's name"),
            ("https://node-1:17/api", "leave out what is behind the port"),
            ("node-1:17/api", "leave out what is behind the port"),
            ("http://node-1:17?a=b", "leave out what is behind the port"),
            ("node-1", "write `http://host:port`"),
        ] {
            let told = text.parse::<Address>().expect_err("refused").to_string();
            assert!(told.contains(words) && !told.contains("secret"), "{told}");
        }
    }

    #[test]
    fn another_process_is_reached_at_a_host_and_port_and_in_no_other_way() {
        for place in ["10.0.0.1:17", "[fd00::2]:17", "node-1:17"] {
            assert!(is_place(place) && Address::of_process(place).is_ok(), "{place}");
        }
        for odd in
            ["", "file:/etc/passwd", "file:7", "file:7/", "https://node-1:17", "ada@node-1:17", "node-1"]
        {
            let is_file = matches!(Address::of_process(odd), Ok(Address::File(_)));
            assert!(!is_file, "{odd}");
            // A host may be called so.
            assert_eq!(is_place(odd), odd.starts_with("file:7"), "{odd}");
        }
    }

    #[test]
    fn an_address_in_a_file_is_looked_at_for_plain_text_each_time_it_is_read() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("address");
        let address: Address = format!("file:{}", path.display()).parse().expect("well-formed");
        let here = Trust::Plain(Insecure::Loopback);
        address.check_plain(Insecure::Loopback).expect("it is not there yet");
        std::fs::write(&path, "http://127.0.0.1:7\n").expect("written");
        address.check_plain(Insecure::Loopback).expect("this host");
        address.resolve_for(&here).expect("this host");
        std::fs::write(&path, "10.0.0.2:7\n").expect("written");
        for outcome in [address.check_plain(Insecure::Loopback), address.resolve_for(&here).map(drop)] {
            let told = outcome.expect_err("another host").to_string();
            assert!(
                told.contains("10.0.0.2:7 is on another host") && told.contains("--insecure=i-know"),
                "{told}"
            );
        }
        address.resolve_for(&Trust::Plain(Insecure::Anywhere)).expect("it was wished for");
    }

    #[test]
    fn a_file_is_read_each_time() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("address");
        let address: Address = format!("file:{}", path.display()).parse().expect("well-formed");
        let told = address.resolve().expect_err("not there yet").to_string();
        assert!(told.contains("failed to read the address in") && told.contains("address"), "{told}");
        for port in [7, 8] {
            std::fs::write(&path, format!("https://a:{port}\n")).expect("written");
            assert_eq!(address.resolve().expect("there").port, port);
        }
    }
}
