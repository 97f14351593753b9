//! Certificates of a reward server that outlives runs, and of workers for it, as whoever keeps it makes them.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use service::trust::CertificateFiles;
use service::{PeerRole, Source};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// An authority's files in a folder.
pub(super) struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes an authority, and a certificate with its key for the reward server and one for workers.
    ///
    /// # Errors
    /// If they cannot be made or written.
    pub(super) fn make(folder: &Path) -> Result<Self, String> {
        let made = Self { folder: folder.to_owned() };
        let key = KeyPair::generate().map_err(in_words)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).map_err(in_words)?;
        std::fs::write(made.authority(), authority.pem()).map_err(in_words)?;
        let issuer = Issuer::from_ca_cert_der(authority.der(), key).map_err(in_words)?;
        [PeerRole::Reward, PeerRole::Worker].into_iter().try_for_each(|role| made.issue(role, &issuer))?;
        Ok(made)
    }

    fn issue(&self, role: PeerRole, issuer: &Issuer<'_, KeyPair>) -> Result<(), String> {
        let key = KeyPair::generate().map_err(in_words)?;
        let mut params = CertificateParams::default();
        let name = format!("tempflow://scores/{role}").try_into().map_err(in_words)?;
        params.subject_alt_names = vec![SanType::URI(name)];
        let now = SystemTime::now();
        (params.not_before, params.not_after) = ((now - DAY).into(), (now + DAY).into());
        let certificate = params.signed_by(&key, issuer).map_err(in_words)?;
        std::fs::write(self.certificate(role), certificate.pem()).map_err(in_words)?;
        let pem = key.serialize_pem();
        service::durable::write_private_file(&self.key(role), pem.as_bytes()).map_err(in_words)
    }

    pub(super) fn authority(&self) -> PathBuf {
        self.folder.join("scores-ca.pem")
    }

    pub(super) fn certificate(&self, role: PeerRole) -> PathBuf {
        self.folder.join(format!("scores-{role}.pem"))
    }

    pub(super) fn key(&self, role: PeerRole) -> PathBuf {
        self.folder.join(format!("scores-{role}.key"))
    }

    /// What a process of that role shows.
    pub(super) fn source(&self, role: PeerRole) -> Source {
        let (authority, certificate, key) = (self.authority(), self.certificate(role), self.key(role));
        Source::Files(CertificateFiles { authority, certificate, key })
    }
}

fn in_words(error: impl std::fmt::Display) -> String {
    error.to_string()
}
