//! A certificate with its key: what a process shows.

use super::secret_file::check_private;
use super::{PeerCertificate, TrustError, provider};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most bytes of a file of keys or certificates.
const MOST_BYTES: u64 = 1024 * 1024;

/// Who a process is, for as long as the certificate holds.
#[derive(Debug)]
pub struct Identity {
    pub(super) certified: Arc<CertifiedKey>,
    /// What the certificate says.
    pub certificate: PeerCertificate,
}

impl Identity {
    /// Puts a certificate, with those between it and the authority behind it, and its key together.
    ///
    /// # Errors
    /// If they do not belong together or the certificate names no role.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, TrustError> {
        let first = chain.first().ok_or_else(|| TrustError::Certificate("there is none".to_owned()))?;
        let certificate = PeerCertificate::parse(first)?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
            TrustError::Certificate(format!("it and its key do not go together: {error}"))
        })?;
        Ok(Self { certified: Arc::new(certified), certificate })
    }

    /// The same for a key that was made here.
    pub(crate) fn of_key(
        certificate: CertificateDer<'static>,
        key: &rcgen::KeyPair,
    ) -> Result<Self, TrustError> {
        Self::new(vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    pub(crate) fn der(&self) -> &[u8] {
        self.certified.cert.first().map_or(&[], |certificate| certificate.as_ref())
    }
}

/// Certificate, key and authority that the user keeps, or has somebody keep, such as cert-manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// Certificates of the authorities that peers are verified by, PEM.
    pub authority: PathBuf,
    /// This process's certificate, those between it and the authority behind it, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

impl CertificateFiles {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// If a file cannot be used, or others may read the key, with its name.
    pub fn identity(&self) -> Result<Identity, TrustError> {
        let chain = certificates(&self.certificate)?;
        check_private(&self.key)?;
        let bytes = read(&self.key)?;
        let key = private_key_in(&bytes).map_err(|problem| unusable(&self.key, problem))?;
        Identity::new(chain, key)
            .map_err(|error| unusable(&self.certificate, format!("does not do: {error}")))
    }

    /// Reads the authorities.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub fn roots(&self) -> Result<RootCertStore, TrustError> {
        roots(certificates(&self.authority)?).map_err(|error| unusable(&self.authority, error.to_string()))
    }
}

pub(super) fn roots(certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate)
            .map_err(|error| TrustError::Certificate(format!("as an authority: {error}")))?;
    }
    Ok(roots)
}

pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    certificates_in(&read(path)?).map_err(|problem| unusable(path, problem))
}

/// The private key of a PEM text.
///
/// # Errors
/// If there is none.
pub fn private_key_in(text: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| format!("holds no private key in PEM: {error}"))
}

/// The certificates of a PEM text.
///
/// # Errors
/// If there is none, or one is damaged.
pub fn certificates_in(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match found {
        Ok(found) if found.is_empty() => Err("holds no certificate in PEM".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("holds no certificate in PEM: {error}")),
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    config::read_whole(path, MOST_BYTES).map_err(|error| unusable(path, format!("cannot be read: {error}")))
}

pub(super) fn unusable(path: &Path, problem: String) -> TrustError {
    TrustError::File { path: path.to_owned(), problem }
}
