//! Where certificates come from, and how they are renewed before they end.

use super::{enrol, unenrolled};
use crate::connect::Address;
use crate::trust::{
    Authority, CertificateFiles, Credentials, Identity, Insecure, PeerRole, TokenSource, Trust, TrustError,
    shown_time,
};
use crate::{ServiceError, backoff};
use protocol::with_causes;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

/// Clocks are looked at so often, since they may be set and hosts may sleep; files of the user, too.
const LOOK: Duration = Duration::from_secs(20);
/// A certificate is renewed once this part of its lifetime is over.
const SPENT: f64 = 0.6;

/// Where a process has its certificates from.
#[derive(Clone, Debug)]
pub enum Source {
    /// It signs them itself: the coordinator.
    Authority(Arc<Authority>),
    /// The coordinator signs them for the holder of a token.
    Token {
        /// Where the coordinator is.
        coordinator: Address,
        /// Where the token is.
        token: TokenSource,
    },
    /// The user keeps them.
    Files(CertificateFiles),
}

/// How a process is told to secure its connections.
#[derive(Clone, Debug)]
pub enum Security {
    /// Not at all, and how far that may go.
    PlainText(Insecure),
    /// By certificates.
    Certificates(Source),
}

/// The trust of a process of that role that is told so, as [`Source::trust`].
///
/// # Errors
/// As [`Source::trust`].
pub async fn trust_by(security: Security, role: PeerRole, patience: Duration) -> Result<Trust, ServiceError> {
    match security {
        Security::PlainText(insecure) => Ok(Trust::Plain(insecure)),
        Security::Certificates(source) => source.trust(role, patience).await,
    }
}

impl Source {
    /// A trust by which a process of that role connects and serves; its certificate is renewed for as long as any clone of
    /// it lives. A coordinator that does not answer is waited for, for `patience` at most.
    ///
    /// # Errors
    /// If there is no certificate to be had.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn trust(self, role: PeerRole, patience: Duration) -> Result<Trust, ServiceError> {
        let credentials = match &self {
            Self::Authority(authority) => {
                Arc::new(Credentials::of_nobody(authority.roots()?, authority.domain()))
            }
            Self::Token { token, .. } => unenrolled(&token.read(role)?)?,
            Self::Files(files) => Arc::new(Credentials::of(files.roots()?, files.identity()?)),
        };
        credentials.renew(self.first(role, patience).await?);
        tokio::spawn(self.renew_forever(role, Arc::downgrade(&credentials)));
        Ok(Trust::Mutual(credentials))
    }

    async fn first(&self, role: PeerRole, patience: Duration) -> Result<Identity, ServiceError> {
        let start = Instant::now();
        let mut pauses = backoff(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            match self.fresh(role).await {
                Err(error) if error.is_outage() && start.elapsed() < patience => {
                    tracing::debug!("no certificate yet: {}", with_causes(&error));
                    tokio::time::sleep(pauses.next_pause()).await;
                }
                Err(ServiceError::Unreachable { address, source, .. }) => {
                    return Err(ServiceError::Unreachable { address, patience, source });
                }
                outcome => return outcome,
            }
        }
    }

    async fn fresh(&self, role: PeerRole) -> Result<Identity, ServiceError> {
        let identity = match self {
            Self::Authority(authority) => authority.issue(role, SystemTime::now())?,
            Self::Token { coordinator, token } => enrol(coordinator, token, role).await?,
            Self::Files(files) => {
                let identity = files.identity()?;
                // Said here, before others say it; of one that is put in place early the one before is shown until then.
                identity.certificate.check_time(SystemTime::now())?;
                identity
            }
        };
        let found = identity.certificate.name.role;
        match found == role {
            true => Ok(identity),
            false => Err(TrustError::Usage(format!(
                "the certificate is for the role `{found}`, and this is a process of the role `{role}`"
            ))
            .into()),
        }
    }

    async fn renew_forever(self, role: PeerRole, credentials: Weak<Credentials>) {
        loop {
            let Some(current) = credentials.upgrade().and_then(|credentials| credentials.identity()) else {
                return;
            };
            let lifetime = current.certificate.lifetime();
            // Of a short one, as tests have, a part.
            tokio::time::sleep(LOOK.min(lifetime / 50).max(Duration::from_millis(20))).await;
            if !self.is_due(&current, SystemTime::now()) {
                continue;
            }
            let fresh = self.fresh(role).await;
            let Some(credentials) = credentials.upgrade() else { return };
            match fresh {
                Ok(fresh) if fresh.der() == current.der() => {}
                Ok(fresh) => {
                    tracing::info!(until = shown_time(fresh.certificate.not_after), "new certificate");
                    credentials.renew(fresh);
                }
                Err(error) => {
                    let until = shown_time(current.certificate.not_after);
                    tracing::warn!("the certificate is not renewed yet, and ends at {until}: {error}");
                    tokio::time::sleep(LOOK.min(lifetime / 50)).await;
                }
            }
        }
    }

    /// Files may be exchanged at any time, by those who keep them.
    fn is_due(&self, current: &Identity, now: SystemTime) -> bool {
        let certificate = &current.certificate;
        let spent = now.duration_since(certificate.not_before).unwrap_or_default();
        matches!(self, Self::Files(_)) || spent >= certificate.lifetime().mul_f64(SPENT)
    }
}
