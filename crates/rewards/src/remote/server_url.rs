//! The address of a server, with its secrets kept apart.

use base64::prelude::{BASE64_STANDARD, Engine};
use ureq::http::Uri;

use crate::error::RewardError;

/// The scorer of our own protocol, whose addresses may say so.
pub(super) const GRPC: &str = "grpc";

fn scheme_problem(name: &str) -> &'static str {
    match name {
        GRPC => "it begins with none of grpc://, grpcs://, http:// and https://",
        _ => "it begins with neither http:// nor https://",
    }
}

/// What is meant by an address of gRPC, which is spoken over HTTP.
fn of_grpc(text: &str) -> Option<String> {
    let plain = text.strip_prefix("grpc://").map(|rest| format!("http://{rest}"));
    plain.or_else(|| text.strip_prefix("grpcs://").map(|rest| format!("https://{rest}")))
}

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
        let known = if name == GRPC { of_grpc(text) } else { None };
        let uri: Uri = known
            .as_deref()
            .unwrap_or(text)
            .parse()
            .map_err(|error: ureq::http::uri::InvalidUri| refuse(&error.to_string()))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(refuse(scheme_problem(name)));
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

    /// Whether it is scheme, host and port and no more.
    pub(super) fn is_bare(&self) -> bool {
        !self.place_and_path().contains('/') && self.query.is_empty() && self.credentials.is_none()
    }

    /// Whether it asks for TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.address.starts_with("https://")
    }

    /// Its host, an IPv6 number without brackets, and its port, which is the scheme's where none is written.
    pub(super) fn place(&self) -> (&str, u16) {
        let authority = self.place_and_path().split('/').next().unwrap_or_default();
        let usual = if self.is_secure() { 443 } else { 80 };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().unwrap_or(usual)),
            _ => (authority, usual),
        };
        (host.trim_start_matches('[').trim_end_matches(']'), port)
    }

    fn place_and_path(&self) -> &str {
        self.address.split_once("://").map_or("", |(_, rest)| rest)
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
    fn addresses_have_a_port_even_where_none_is_written() {
        for (url, place) in [
            ("http://gpu-7:18085", ("gpu-7", 18085)),
            ("https://judge.example/v1", ("judge.example", 443)),
            ("http://[::1]:80/x", ("::1", 80)),
            ("http://[::1]", ("::1", 80)),
        ] {
            assert_eq!(parse(url).place(), place, "{url}");
        }
    }

    #[test]
    fn addresses_of_grpc_say_so_and_nobody_else_may() {
        let parse = |text: &str| ServerUrl::parse(GRPC, text).map(|url| (url.join(""), url.is_secure()));
        assert_eq!(parse("grpcs://h:1").expect("gRPC"), ("https://h:1".to_owned(), true));
        assert_eq!(parse("grpc://h:1").expect("gRPC"), ("http://h:1".to_owned(), false));
        let told = parse("ftp://h:1").expect_err("refused").to_string();
        assert!(told.contains("none of grpc://, grpcs://, http:// and https://"), "{told}");
        assert!(ServerUrl::parse("deqa", "grpcs://h:1").is_err());
        assert!(!ServerUrl::parse(GRPC, "grpcs://h:1/x").expect("parses").is_bare());
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
