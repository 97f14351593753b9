//! What was sent and what came back, for errors that only make sense beside it.

use std::fmt;

use serde::de::DeserializeOwned;

use super::error::RemoteError;

/// How much of a reply is quoted, in bytes.
const QUOTED_BYTES: usize = 200;

/// A request and its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// What was sent.
    pub sent: Sent,
    /// What came back; nothing where it could not even be read as a reply.
    pub reply: Option<Reply>,
}

/// What was sent, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Where to, without credentials.
    pub url: String,
    /// Of the body.
    pub content_type: &'static str,
    /// Size of the body.
    pub n_bytes: usize,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Of the body.
    pub content_type: String,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Exchange {
    /// The error that whoever is there speaks another protocol, which `problem` shows.
    pub(super) fn wrong(self, problem: String) -> RemoteError {
        RemoteError::WrongProtocol { problem, exchange: Box::new(self) }
    }

    /// The bytes of the reply.
    pub(super) fn body(&self) -> &[u8] {
        self.reply.as_ref().map_or(&[], |reply| &reply.body)
    }

    /// The reply, read as JSON.
    ///
    /// # Errors
    /// If it is not, or not of this form.
    pub(super) fn json<T: DeserializeOwned>(self) -> Result<(T, Self), RemoteError> {
        match serde_json::from_slice(self.body()) {
            Ok(value) => Ok((value, self)),
            Err(error) => Err(self.wrong(format!("the reply is not the JSON of this protocol ({error})"))),
        }
    }
}

impl fmt::Display for Exchange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sent { url, content_type, n_bytes } = &self.sent;
        write!(formatter, "sent POST {url} ({content_type}, {n_bytes} bytes), ")?;
        match &self.reply {
            None => write!(formatter, "got nothing that reads as a reply"),
            Some(Reply { status, content_type, body }) => {
                let content_type = if content_type.is_empty() { "no content type" } else { content_type };
                let content_type = content_type.escape_debug();
                write!(formatter, "got status {status} ({content_type}, {} bytes): ", body.len())?;
                write!(formatter, "`{}`", quoted(body))
            }
        }
    }
}

/// The beginning of some bytes, printable.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let beginning = &bytes[..bytes.len().min(QUOTED_BYTES)];
    let dots = if beginning.len() < bytes.len() { "…" } else { "" };
    format!("{}{dots}", String::from_utf8_lossy(beginning).escape_debug())
}

/// The last line of a text that is not blank: of a Python traceback, what went wrong.
pub(super) fn last_line(text: &[u8]) -> String {
    let line = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).rfind(|line| !line.is_empty());
    line.map_or_else(|| "without a word".to_owned(), quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_traceback_is_what_went_wrong() {
        let traceback = b"Traceback (most recent call last):\n  File \"app.py\", line 3\nKeyError: 'tag'\n\n";
        assert_eq!(last_line(traceback), "KeyError: \\'tag\\'");
        assert_eq!(last_line(b""), "without a word");
        assert_eq!(last_line(b" \r\n"), "without a word");
    }

    #[test]
    fn quotes_are_short_and_printable() {
        assert_eq!(quoted(b"\x1b[31m\x00\xff"), "\\u{1b}[31m\\0\u{fffd}");
        assert_eq!(quoted(&[b'x'; 300]), format!("{}…", "x".repeat(200)));
    }
}
