//! How far a user wants plain text.

use super::{Trust, TrustError};
use crate::ServiceError;
use std::net::IpAddr;
use std::str::FromStr;
use tokio::net::TcpListener;

/// How far plain text may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insecure {
    /// On this host alone.
    Loopback,
    /// Beyond it, as the user has said in so many words.
    Anywhere,
}

impl FromStr for Insecure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "loopback" => Ok(Self::Loopback),
            "i-know" => Ok(Self::Anywhere),
            other => Err(format!("is `{other}`; write `--insecure`, or `--insecure=i-know` for other hosts")),
        }
    }
}

impl Trust {
    /// Whether a listener may be served so.
    ///
    /// # Errors
    /// If others reach it, connections are not secured, and nobody has wished for that.
    pub fn check_listener(&self, listener: &TcpListener) -> Result<(), ServiceError> {
        match listener.local_addr() {
            Ok(bound) => Ok(self.check_listening(bound.ip())?),
            // Nobody reaches what has no address.
            Err(_) => Ok(()),
        }
    }

    fn check_listening(&self, bound: IpAddr) -> Result<(), TrustError> {
        match self {
            Self::Plain(Insecure::Loopback) if !bound.to_canonical().is_loopback() => {
                Err(TrustError::Usage(format!(
                    "this process listens at {bound} for others, too, and would speak plain text: give it a token file by \
                     `--token-file`, have it listen at 127.0.0.1, or say `--insecure=i-know`"
                )))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_beyond_this_host_is_served_only_where_it_was_wished_for() {
        for (bound, insecure, is_served) in [
            ("127.0.0.1", Insecure::Loopback, true),
            ("::1", Insecure::Loopback, true),
            ("10.0.0.2", Insecure::Loopback, false),
            ("0.0.0.0", Insecure::Loopback, false),
            ("10.0.0.2", Insecure::Anywhere, true),
        ] {
            let outcome = Trust::Plain(insecure).check_listening(bound.parse().expect("a number"));
            assert_eq!(outcome.is_ok(), is_served, "{bound} {insecure:?}");
        }
    }
}
