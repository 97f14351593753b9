//! What can go wrong with a scorer in another process.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use pickle::{NumberError, PickleError};
use service::trust::TrustError;
use thiserror::Error;
use tonic::Code;

use super::exchange::Exchange;

/// No scores came back, or not what they must be.
#[derive(Debug, Error)]
pub enum RemoteError {
    /// Nobody is there, or the connection broke.
    #[error("unreachable: {}", Chain(&**cause))]
    Unreachable {
        /// Why.
        cause: Box<dyn Error + Send + Sync>,
    },
    /// The server is not trusted, does not trust this process, or one side speaks TLS and the other does not.
    #[error("{}", trouble(problem))]
    Untrusted {
        /// What is wrong, and the remedy.
        #[source]
        problem: Box<TrustError>,
    },
    /// There is no secure connection to be had.
    #[error("no secure connection: {}; check the server's certificate and `tls_ca`", Chain(&**cause))]
    Tls {
        /// Why.
        cause: Box<dyn Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("no answer within {} s (`timeout_seconds`)", allowed.as_secs_f64())]
    Deadline {
        /// How long an answer may take.
        allowed: Duration,
    },
    /// An HTTP status that says no.
    #[error("HTTP status {status}: {reason}{}{}", beside(*status, exchange), key_remedy(is_unknown(*status)))]
    Status {
        /// Of HTTP, 100 to 599.
        status: u16,
        /// The last line of what came with it, such as that of a Python traceback.
        reason: String,
        /// How long the server asks to be left alone.
        retry_after: Option<Duration>,
        /// What was sent, and what came back.
        exchange: Box<Exchange>,
    },
    /// A gRPC status that says no.
    #[error("{code:?}: {message}{}", key_remedy(*code == Code::Unauthenticated))]
    Grpc {
        /// The status.
        code: Code,
        /// What the server says.
        message: String,
    },
    /// A gRPC status about one image.
    #[error("image {index}: {code:?}: {message}")]
    Image {
        /// Position in the batch.
        index: usize,
        /// The status.
        code: Code,
        /// What the server says.
        message: String,
    },
    /// A reply that says no in the place of scores.
    #[error("the server says: {message}")]
    Refused {
        /// What the server says.
        message: String,
    },
    /// Whoever is there speaks something else.
    #[error("{problem}; {exchange}")]
    WrongProtocol {
        /// What shows it.
        problem: String,
        /// What was sent, and what came back.
        exchange: Box<Exchange>,
    },
    /// A server of other scorers, whose scores would pass for those that were asked for.
    #[error("{}; there are: {}; name one of these by `reward`, or the right server by `url`", missing(asked), hosted.join(", "))]
    NotHosted {
        /// The scorer that was asked for; empty for the only one.
        asked: String,
        /// Names of those that the server has, the first few.
        hosted: Vec<String>,
    },
    /// Not one score for each image.
    #[error("sent {sent} images, got {got} of `{key}`")]
    Count {
        /// Number of images.
        sent: usize,
        /// Number of scores.
        got: usize,
        /// Which scores.
        key: String,
    },
    /// More bytes than are read.
    #[error("the reply has more than {allowed} bytes (`max_reply_bytes`)")]
    TooLarge {
        /// How many are read.
        allowed: u64,
    },
    /// A reply that is no pickle, or a hostile one.
    #[error("{problem}; {exchange}")]
    Pickle {
        /// What is wrong with it.
        problem: PickleError,
        /// What was sent, and what came back.
        exchange: Box<Exchange>,
    },
    /// A reply whose scores are something else, among them calls that were refused.
    #[error("`{key}` of the reply: {problem}")]
    Number {
        /// Which scores.
        key: String,
        /// What is wrong with them.
        problem: NumberError,
    },
    /// An answer in words that holds no score.
    #[error("image {index}: no score in the answer `{answer}`; a score is what `{pattern}` finds")]
    NoScore {
        /// Position in the batch.
        index: usize,
        /// The beginning of the answer.
        answer: String,
        /// What was looked for.
        pattern: String,
    },
}

impl RemoteError {
    /// Whether the same request may be answered if it is made again later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Deadline { .. } => true,
            Self::Status { status, .. } => status_may_pass(*status),
            Self::Grpc { code, .. } | Self::Image { code, .. } => {
                matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted)
            }
            _ => false,
        }
    }

    /// How long to wait before the same request is worth another attempt at once; none where that would not help.
    pub(super) fn soon(&self) -> Option<Duration> {
        match self {
            Self::Unreachable { .. } => Some(Duration::ZERO),
            Self::Status { status, retry_after, .. } if status_may_pass(*status) => {
                Some(retry_after.unwrap_or_default())
            }
            _ => None,
        }
    }

    /// Position among all images of the one that it is about, if it is about one.
    pub fn image(&self) -> Option<usize> {
        match self {
            Self::Image { index, .. } | Self::NoScore { index, .. } => Some(*index),
            _ => None,
        }
    }

    /// The same about an image of a batch that begins at `start`, by its position among all images.
    pub(super) fn after(self, start: usize) -> Self {
        match self {
            Self::Image { index, code, message } => Self::Image { index: start + index, code, message },
            other => other,
        }
    }
}

/// Whether an HTTP status speaks of the moment.
fn status_may_pass(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}

/// Whether an HTTP status says that the server wants to know who asks, or knows and does not want him.
fn is_unknown(status: u16) -> bool {
    matches!(status, 401 | 403)
}

fn key_remedy(is_wanted: bool) -> &'static str {
    match is_wanted {
        true => {
            "; the server does not take who asks: give it a key that it knows by `api_key_env` or `api_key_file`"
        }
        false => "",
    }
}

/// What there is to say of a server that is not trusted, in the words of a reward's options.
fn trouble(problem: &TrustError) -> String {
    match problem {
        TrustError::PlainServer => {
            "the server does not speak TLS, and `url` asks for it: start it with a certificate \
                                    (`rollout-worker serve-reward --token-file`), or write `http://`"
                .to_owned()
        }
        TrustError::SecureServer => {
            "the server speaks TLS, and `url` asks for plain text: write `https://`".to_owned()
        }
        TrustError::Foreign(_) => {
            format!("{problem}; a server of others is named with its authority by `tls_ca`")
        }
        _ => problem.to_string(),
    }
}

fn missing(asked: &str) -> String {
    match asked {
        "" => "the server hosts several rewards, and none is chosen".to_owned(),
        asked => format!("the server hosts no reward `{asked}`"),
    }
}

/// The exchange behind a status that says no for good: then it may well be the wrong server that was asked.
fn beside(status: u16, exchange: &Exchange) -> String {
    if status_may_pass(status) { String::new() } else { format!("; {exchange}") }
}

/// An error with its causes.
pub(super) struct Chain<'a>(pub(super) &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut last = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            // Wrappers that repeat what they wrap add nothing.
            let text = error.to_string();
            if !last.contains(&text) {
                write!(formatter, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}
