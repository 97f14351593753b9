//! The authority of a run: made when the run is, kept by the coordinator.

use super::identity::{certificates_in, read, roots, unusable};
use super::secret_file::check_private;
use super::{Identity, PeerName, PeerRole, TrustError};
use crate::{ServiceError, durable};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How long a member's certificate holds.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Clocks may differ by this part of a lifetime, an hour, before anybody notices.
const TOLERANCE: u32 = 24;
/// How long the authority itself does: longer than any run.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Of the authority, the files: its certificate, which everybody may read, and its key, which only its owner may.
const CERTIFICATE_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("domain", &self.domain).finish_non_exhaustive()
    }
}

/// Signs who may be what in one run. ECDSA on P-256.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    domain: String,
    lifetime: Duration,
}

impl Authority {
    /// The authority that is kept in a folder, made there if there is none yet, for peers of one domain.
    ///
    /// # Errors
    /// If its files cannot be used or written, or others than their owner may read the key.
    pub fn open(folder: &Path, domain: &str) -> Result<Self, ServiceError> {
        let key = folder.join(KEY_FILE);
        let is_there = key.try_exists();
        // Made anew, an authority locks out every member of the one before.
        if !is_there.map_err(|source| ServiceError::File { action: "look for", path: key, source })? {
            durable::create_private_directory(folder)?;
            make(folder, domain)?;
        }
        Self::read(folder, domain)
    }

    /// The authority that is kept in a folder.
    ///
    /// # Errors
    /// If its files cannot be used, or others than their owner may read the key.
    pub fn read(folder: &Path, domain: &str) -> Result<Self, ServiceError> {
        let (certificate, key) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
        check_private(&key)?;
        let pem = text(&certificate)?;
        let key_pair = KeyPair::from_pem(&text(&key)?)
            .map_err(|error| unusable(&key, format!("holds no key of an authority: {error}; {REMEDY}")))?;
        let der =
            certificates_in(pem.as_bytes()).map_err(|problem| unusable(&certificate, problem))?.remove(0);
        let issuer = Issuer::from_ca_cert_der(&der, key_pair)
            .map_err(|error| unusable(&certificate, format!("is no authority: {error}; {REMEDY}")))?;
        Ok(Self { issuer, certificate: der, pem, domain: domain.to_owned(), lifetime: LIFETIME })
    }

    /// The same with certificates that hold for another time.
    pub fn with_lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime, ..self }
    }

    /// The run that it speaks for.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// What peers are verified by.
    ///
    /// # Errors
    /// If its certificate is none of an authority.
    pub fn roots(&self) -> Result<RootCertStore, TrustError> {
        roots(vec![self.certificate.clone()])
    }

    /// A key and a certificate for a process of this host.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn issue(&self, role: PeerRole, now: SystemTime) -> Result<Identity, TrustError> {
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        Identity::of_key(self.sign(&key, role, now)?, &key)
    }

    /// A certificate for the key of a signing request (PKCS #10, DER), whatever else the request asks for.
    ///
    /// # Errors
    /// If it is malformed or was not signed by that key.
    pub fn answer(
        &self,
        request: &[u8],
        role: PeerRole,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, TrustError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(|error| TrustError::Certificate(format!("the signing request is malformed: {error}")))?;
        self.sign(&request.public_key, role, now)
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        role: PeerRole,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, TrustError> {
        let name = PeerName { domain: self.domain.clone(), role };
        let mut params = CertificateParams::default();
        params.distinguished_name = called(role.name());
        let uri = name.to_string().try_into().map_err(|error: rcgen::Error| failed(&error))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.not_before = (now - self.lifetime / TOLERANCE).into();
        params.not_after = (now + self.lifetime).into();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if role.serves() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let certificate = params.signed_by(key, &self.issuer).map_err(|error| failed(&error))?;
        Ok(certificate.der().clone())
    }
}

const REMEDY: &str = "restore it, or remove the folder for the next start to make another authority, whose tokens members need anew";

/// Its certificate is written first: without a key it is made again.
fn make(folder: &Path, domain: &str) -> Result<(), ServiceError> {
    let key = KeyPair::generate().map_err(|error| failed(&error))?;
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = called(&format!("authority of {domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // Clocks of members may be behind by more than is tolerated; their own certificates tell that better.
    params.not_before = (now - AUTHORITY_LIFETIME).into();
    params.not_after = (now + AUTHORITY_LIFETIME).into();
    let certificate = params.self_signed(&key).map_err(|error| failed(&error))?;
    durable::write_file(&folder.join(CERTIFICATE_FILE), certificate.pem().as_bytes())?;
    durable::write_private_file(&folder.join(KEY_FILE), key.serialize_pem().as_bytes())
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

fn text(path: &Path) -> Result<String, TrustError> {
    String::from_utf8(read(path)?).map_err(|_| unusable(path, format!("is not text; {REMEDY}")))
}

fn failed(error: &rcgen::Error) -> TrustError {
    TrustError::Certificate(format!("it cannot be made: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_authority_is_made_once_and_its_key_is_its_owners_alone() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = home.path().join("tls");
        let first = Authority::open(&folder, "run-a").expect("made").pem().to_owned();
        assert_eq!(Authority::open(&folder, "run-a").expect("found").pem(), first);
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join(KEY_FILE))), (0o700, 0o600));
        std::fs::set_permissions(folder.join(KEY_FILE), std::fs::Permissions::from_mode(0o640))
            .expect("ours");
        let told = Authority::open(&folder, "run-a").expect_err("no secret").to_string();
        assert!(told.contains("may be read by others") && told.contains("`chmod 600 "), "{told}");
    }

    #[test]
    fn an_authority_that_is_only_read_is_never_made() {
        let home = tempfile::tempdir().expect("a folder");
        assert!(Authority::read(home.path(), "run-a").is_err());
        assert!(!home.path().join(KEY_FILE).exists());
    }

    #[test]
    fn a_signing_request_gets_no_more_than_its_role() {
        let home = tempfile::tempdir().expect("a folder");
        let authority = Authority::open(home.path(), "run-a").expect("made");
        let key = KeyPair::generate().expect("a key");
        let mut wishes = CertificateParams::default();
        wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let uri = "tempflow://run-a/admin".try_into().expect("text");
        wishes.subject_alt_names = vec![SanType::URI(uri)];
        let request = wishes.serialize_request(&key).expect("signed");
        let answer = authority.answer(request.der(), PeerRole::Worker, SystemTime::now()).expect("signed");
        let identity = Identity::of_key(answer, &key).expect("they go together");
        assert_eq!(identity.certificate.name.to_string(), "tempflow://run-a/worker");
        let mut torn = request.der().to_vec();
        let last = torn.len() - 1;
        torn[last] ^= 1;
        let told =
            authority.answer(&torn, PeerRole::Worker, SystemTime::now()).expect_err("refused").to_string();
        assert!(told.contains("the signing request is malformed"), "{told}");
    }

    #[test]
    fn a_damaged_authority_says_how_to_get_another() {
        let home = tempfile::tempdir().expect("a folder");
        drop(Authority::open(home.path(), "run-a").expect("made"));
        std::fs::write(home.path().join(KEY_FILE), "no key").expect("written");
        let told = Authority::open(home.path(), "run-a").expect_err("refused").to_string();
        assert!(told.contains("ca.key holds no key") && told.contains("remove the folder"), "{told}");
    }
}
