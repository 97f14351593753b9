//! Who is believed: by the authority, the domain and the role in a certificate, never by the address.

use super::{PeerCertificate, PeerRole, TrustError, provider};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn refused(error: TrustError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn of_domain(certificate: &CertificateDer<'_>, domain: &str) -> Result<PeerCertificate, TrustError> {
    let peer = PeerCertificate::parse(certificate)?;
    match peer.name.domain == domain {
        true => Ok(peer),
        false => Err(TrustError::OtherDomain { found: peer.name, domain: domain.to_owned() }),
    }
}

fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn system(time: UnixTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

/// A server's: clients show a certificate of the authority, or none.
///
/// Whether it still holds is asked at every call, where there are words for the answer; a handshake only has alerts. A client
/// without a certificate may do what the table of calls lets anybody do. Where there are no calls, the handshake has to
/// decide all of it: then only a role is let in, with a certificate that holds.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    domain: String,
    only: Option<PeerRole>,
}

impl ClientVerifier {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        domain: String,
        only: Option<PeerRole>,
    ) -> Result<Self, TrustError> {
        let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let builder = if only.is_some() { builder } else { builder.allow_unauthenticated() };
        let chain = builder.build().map_err(|error| TrustError::Certificate(error.to_string()))?;
        Ok(Self { chain, domain, only })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.only.is_some()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let peer = PeerCertificate::parse(end_entity).map_err(refused)?;
        let verified =
            self.chain.verify_client_cert(end_entity, intermediates, unix(peer.nearest(system(now))))?;
        let peer = of_domain(end_entity, &self.domain).map_err(refused)?;
        if let Some(only) = self.only {
            if peer.name.role != only {
                return Err(refused(TrustError::OtherRole { found: peer.name, wanted: only }));
            }
            peer.check_time(system(now)).map_err(refused)?;
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// A client's: the server is of the authority and the domain, has the role that is called, and its certificate holds.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    roots: Arc<RootCertStore>,
    domain: String,
    role: PeerRole,
}

impl ServerVerifier {
    pub(super) fn new(roots: Arc<RootCertStore>, domain: String, role: PeerRole) -> Self {
        Self { roots, domain, role }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (parsed, peer) =
            (ParsedCertificate::try_from(end_entity)?, PeerCertificate::parse(end_entity).map_err(refused)?);
        let nearest = unix(peer.nearest(system(now)));
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            nearest,
            algorithms().all,
        )?;
        let peer = of_domain(end_entity, &self.domain).map_err(refused)?;
        if peer.name.role != self.role {
            return Err(refused(TrustError::OtherRole { found: peer.name, wanted: self.role }));
        }
        peer.check_time(system(now)).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}
