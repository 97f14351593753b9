//! The address of a server, with its secrets kept apart.

use base64::prelude::{BASE64_STANDARD, Engine};
use ureq::http::Uri;

use crate::error::RewardError;

/// A URL whose user name and password are held where nothing prints them.
#[derive(Clone)]
pub(super) struct ServerUrl {
    /// Scheme, host, port and path without a slash at the end.
    address: String,
    /// The query, with its question mark; it may hold a key, and is not shown.
    query: String,
    credentials: Option<String>,
}

impl ServerUrl {
    /// Reads the URL of the reward called `name`.
    ///
    /// # Errors
    /// If it does not parse, or is not of HTTP.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self, RewardError> {
        let refuse = |problem: &str| RewardError::Url {
            name: name.to_owned(),
            url: without_secrets(text),
            problem: problem.to_owned(),
        };
        let uri: Uri =
            text.parse().map_err(|error: ureq::http::uri::InvalidUri| refuse(&error.to_string()))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(refuse("it begins with neither http:// nor https://"));
        }
        let Some(authority) = uri.authority() else { return Err(refuse("it names no host")) };
        let (user, host) = match authority.as_str().rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority.as_str()),
        };
        if uri.path().contains('@') {
            return Err(refuse(
                "there is an @ after its host; write / ? # and @ of a password as %2F %3F %23 and %40",
            ));
        }
        if authority.host().is_empty() {
            return Err(refuse("it names no host"));
        }
        if host.len() > authority.host().len() && authority.port_u16().is_none() {
            return Err(refuse("its port is no number from 0 to 65535"));
        }
        let scheme = uri.scheme_str().unwrap_or_default();
        Ok(Self {
            address: format!("{scheme}://{host}{}", uri.path().trim_end_matches('/')),
            query: uri.query().map(|query| format!("?{query}")).unwrap_or_default(),
            credentials: user.map(basic_credentials),
        })
    }

    /// Whether it is `http://host:port` and no more.
    pub(super) fn is_plain_http(&self) -> bool {
        let host = self.address.strip_prefix("http://");
        let bare = host.is_some_and(|host| !host.contains('/'));
        bare && self.query.is_empty() && self.credentials.is_none()
    }

    /// The URL to call, `path` below it.
    pub(super) fn join(&self, path: &str) -> String {
        format!("{}{path}{}", self.address, self.query)
    }

    /// The same, to be shown.
    pub(super) fn shown(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    /// The header `Authorization` that user name and password make.
    pub(super) fn credentials(&self) -> Option<&str> {
        self.credentials.as_deref()
    }
}

/// HTTP's basic authentication (RFC 7617).
fn basic_credentials(user: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(percent_decoded(user)))
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut position = 0;
    while let Some(&byte) = bytes.get(position) {
        let escape = bytes.get(position + 1..position + 3).filter(|_| byte == b'%');
        let code = escape.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(code) => {
                decoded.push(code);
                position += 3;
            }
            None => {
                decoded.push(byte);
                position += 1;
            }
        }
    }
    decoded
}

/// A URL as it was typed, whether it parses or not, without what may be secret in it.
fn without_secrets(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    // A password may hold any character that should have been written as an escape.
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    if scheme.is_empty() { rest.to_owned() } else { format!("{scheme}://{rest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ServerUrl {
        ServerUrl::parse("deqa", text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn secrets_are_sent_and_not_shown() {
        let url = parse("http://ada:p%40ss@[::1]:18086/v1/?key=secret");
        assert_eq!(url.join("/chat"), "http://[::1]:18086/v1/chat?key=secret");
        assert_eq!(url.shown("/chat"), "http://[::1]:18086/v1/chat");
        // python3 -c "import base64; print(base64.b64encode(b'ada:p@ss'))"
        assert_eq!(url.credentials(), Some("Basic YWRhOnBAc3M="));
        assert_eq!(parse("https://host").credentials(), None);
        assert_eq!(parse("https://host").join(""), "https://host");
    }

    #[test]
    fn urls_that_do_not_parse_are_told_without_their_secrets() {
        for (text, shown) in [
            ("127.0.0.1:18086", "127.0.0.1:18086"),
            ("http://", "http://"),
            ("http://:80", "http://:80"),
            ("ftp://ada:secret@host/x", "ftp://host/x"),
            ("http://ada:sec ret@host", "http://host"),
            ("ada:secret@host?key=secret", "host"),
            ("http://host:port", "http://host:port"),
            ("http://host:99999", "http://host:99999"),
        ] {
            let error = ServerUrl::parse("deqa", text).err().unwrap_or_else(|| panic!("{text} is accepted"));
            let error = error.to_string();
            assert!(error.starts_with(&format!("option `url` of reward `deqa` is `{shown}`: ")), "{error}");
            assert!(!error.contains("sec"), "{error}");
        }
    }
}
