//! What this system reads of a certificate: whom it names, and from when to when.

use super::{PeerName, TrustError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

/// Of a certificate, what decides who its holder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Whom it names.
    pub name: PeerName,
    /// When it begins to hold.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

impl PeerCertificate {
    /// Reads a certificate; who signed it is not looked at.
    ///
    /// # Errors
    /// If it is none, or does not name exactly one role.
    pub fn parse(der: &[u8]) -> Result<Self, TrustError> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| TrustError::Certificate(format!("it is not an X.509 certificate: {error}")))?;
        let validity = certificate.validity();
        Ok(Self {
            name: name(&certificate).map_err(TrustError::Certificate)?,
            not_before: system_time(validity.not_before),
            not_after: system_time(validity.not_after),
        })
    }

    /// How long it holds in all.
    pub fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// Whether it holds at `now`.
    ///
    /// # Errors
    /// Its bounds and this host's time, and what to do.
    pub fn check_time(&self, now: SystemTime) -> Result<(), TrustError> {
        let is_early = now < self.not_before;
        if !is_early && now < self.not_after {
            return Ok(());
        }
        Err(TrustError::Time {
            name: Box::new(self.name.clone()),
            is_early,
            bound: shown_time(if is_early { self.not_before } else { self.not_after }),
            now: shown_time(now),
        })
    }

    /// The time within its bounds that is nearest to `now`.
    pub(super) fn nearest(&self, now: SystemTime) -> SystemTime {
        let last = self.not_after - Duration::from_secs(1);
        now.min(last).max(self.not_before)
    }
}

fn name(certificate: &X509Certificate<'_>) -> Result<PeerName, String> {
    let names = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    let names = names.iter().flat_map(|extension| &extension.value.general_names);
    let uris: Vec<&str> = names
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris[..] {
        [uri] => uri.parse(),
        _ => Err(format!(
            "it has {} URIs among its alternative names, not one; it should have `tempflow://DOMAIN/ROLE`",
            uris.len()
        )),
    }
}

fn system_time(time: ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}

/// A time for people, in UTC.
pub(crate) fn shown_time(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = i64::try_from(seconds).ok().and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
    time.map_or_else(|| format!("{seconds} s after 1970"), |time| time.to_string())
}
