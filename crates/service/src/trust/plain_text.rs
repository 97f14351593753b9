//! How far a user wants plain text.

use super::{Trust, TrustError};
use crate::ServiceError;
use crate::network::is_loopback;
use config::RewardSection;
use std::net::IpAddr;
use std::str::FromStr;
use tokio::net::TcpListener;

/// Characters of a place that are shown.
const LONGEST_PLACE: usize = 100;

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
            Ok(bound) => self.check_listening(bound.ip()),
            // Nobody reaches what has no address.
            Err(_) => Ok(()),
        }
    }

    /// The same of an address that is yet to be listened at.
    ///
    /// # Errors
    /// As [`Trust::check_listener`].
    pub fn check_listening(&self, bound: IpAddr) -> Result<(), ServiceError> {
        match self {
            Self::Plain(Insecure::Loopback) if !bound.to_canonical().is_loopback() => {
                Err(TrustError::Usage(format!(
                    "this process listens at {bound} for others, too, and would speak plain text: give it a token file by \
                     `--token-file`, have it listen at 127.0.0.1, or say `--insecure=i-know`"
                ))
                .into())
            }
            _ => Ok(()),
        }
    }
}

/// What there is to say of rewards whose servers are on other hosts and spoken to in plain text; `None` where no server is.
pub fn plain_text_rewards<'a>(rewards: impl IntoIterator<Item = &'a RewardSection>) -> Option<String> {
    let mut places: Vec<String> = rewards.into_iter().filter_map(plain_text_place).collect();
    places.sort();
    places.dedup();
    let (servers, are) = match places.len() {
        0 => return None,
        1 => ("the reward server", "is"),
        _ => ("the reward servers", "are"),
    };
    Some(format!(
        "{servers} {} {are} spoken to in plain text beyond this host, so that whoever is on the way can read and change prompts, \
         images, scores and keys; write `https://` in `url`, or keep to a network that is secured in another way",
        places.join(", ")
    ))
}

/// `host:port` of a reward's server, where plain text goes to another host. Of its address nothing else is shown: there may
/// be passwords in it.
fn plain_text_place(reward: &RewardSection) -> Option<String> {
    let url = reward.options.get("url")?.as_str()?;
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("grpc://"))?;
    // A password may hold any character that should have been written as an escape.
    let rest = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let place = rest.split(['/', '?', '#']).next()?;
    let host = match place.strip_prefix('[') {
        Some(number) => number.split(']').next()?,
        None => place.split(':').next()?,
    };
    (!host.is_empty() && !is_loopback(host)).then(|| crate::shown(place, LONGEST_PLACE))
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

    #[test]
    fn reward_servers_in_plain_text_on_other_hosts_are_named_once_and_without_passwords() {
        let told = |urls: &[&str]| {
            let section = |url: &&str| {
                config::reward_from_settings("flow_factory", &[format!("url={url}")]).expect("well-formed")
            };
            plain_text_rewards(&urls.iter().map(section).collect::<Vec<_>>())
        };
        let quiet =
            ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost/x", "https://a:1", "grpcs://a:1"];
        assert_eq!(told(&quiet), None);
        assert_eq!(told(&[]), None);
        let several = told(&["http://ada:se/cret@b:1/v1", "grpc://[fd00::2]:7", "http://b:1"]).expect("two");
        assert!(
            several.starts_with("the reward servers [fd00::2]:7, b:1 are spoken to in plain text"),
            "{several}"
        );
        assert!(!several.contains("cret") && several.contains("write `https://`"), "{several}");
        let one = told(&["http://10.0.0.2", "https://a:1"]).expect("one");
        assert!(one.starts_with("the reward server 10.0.0.2 is spoken to in plain text"), "{one}");
    }
}
