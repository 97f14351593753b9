//! From a token to a certificate: the coordinator's side and the member's.

mod renewal;

use crate::connect::{Address, Dial};
use crate::limited_log::LimitedLog;
use crate::trust::{
    Authority, Credentials, Identity, Peer, PeerRole, TokenFile, TokenSource, Tokens, Trust, TrustError,
};
use crate::{MESSAGE_LIMIT, ServiceError, request};
use proto::enrolment_client::EnrolmentClient;
use proto::enrolment_server::Enrolment;
use proto::{EnrolReply, EnrolRequest};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

pub use renewal::{Security, Source, trust_by};

const DEADLINE: Duration = Duration::from_secs(5);

/// The coordinator's side: signs for who has a token.
pub struct EnrolmentService {
    authority: Arc<Authority>,
    tokens: Tokens,
}

/// Tokens that were not taken.
static NO_CERTIFICATE: LimitedLog = LimitedLog::new();

impl EnrolmentService {
    /// Signs by that authority for the holders of those tokens.
    pub fn new(authority: Arc<Authority>, tokens: Tokens) -> Self {
        Self { authority, tokens }
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolReply>, Status> {
        let from = request.extensions().get::<Peer>().and_then(|peer| peer.address);
        let request = request.into_inner();
        let role = self.tokens.role_of(&request.token).map_err(|error| {
            NO_CERTIFICATE.warn(|| match from {
                Some(from) => format!("no certificate for {from}: {error}"),
                None => format!("no certificate: {error}"),
            });
            Status::unauthenticated(error.to_string())
        })?;
        let answer = self.authority.answer(&request.signing_request, role, SystemTime::now());
        let certificate = answer.map_err(|error| Status::invalid_argument(error.to_string()))?;
        tracing::debug!(peer = ?from, "certified: {role}");
        Ok(Response::new(EnrolReply { certificate: certificate.to_vec().into() }))
    }
}

/// A client of the coordinator's enrolment.
pub fn enrolment_client(channel: Channel) -> EnrolmentClient<Channel> {
    EnrolmentClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// Credentials of a process that holds a token, without a certificate yet.
fn unenrolled(file: &TokenFile) -> Result<Arc<Credentials>, TrustError> {
    Ok(Arc::new(Credentials::of_nobody(file.roots()?, &file.token.domain)))
}

/// Gets a certificate from the coordinator, trying once.
///
/// # Errors
/// If it cannot be reached, is not the one of the token's run, or does not take the token.
async fn enrol(
    coordinator: &Address,
    source: &TokenSource,
    role: PeerRole,
) -> Result<Identity, ServiceError> {
    let file = source.read(role)?;
    // As nobody, so that a certificate that has ended is no obstacle.
    let trust = Trust::Mutual(unenrolled(&file)?);
    let dial = Dial::new(coordinator.clone(), PeerRole::Coordinator, &trust)?;
    let channel = dial.connect(Duration::ZERO).await?;
    let made_here = |error: rcgen::Error| TrustError::Certificate(format!("it cannot be asked for: {error}"));
    let key = KeyPair::generate().map_err(made_here)?;
    let signing_request = CertificateParams::default().serialize_request(&key).map_err(made_here)?;
    let message =
        EnrolRequest { token: file.token.reveal(), signing_request: signing_request.der().to_vec().into() };
    let reply = enrolment_client(channel).enrol(request(message, DEADLINE)).await;
    let reply = reply.map_err(|status| refusal(coordinator, status))?.into_inner();
    let identity = Identity::of_key(CertificateDer::from(reply.certificate.to_vec()), &key)?;
    // Before anything else fails by it.
    identity.certificate.check_time(SystemTime::now())?;
    Ok(identity)
}

fn refusal(coordinator: &Address, status: Status) -> ServiceError {
    match status.code() {
        Code::Unauthenticated => TrustError::Token(status.message().to_owned()).into(),
        Code::Unimplemented => TrustError::Usage(format!(
            "the coordinator at {coordinator} signs no certificates: its run has an authority of its own; give \
             `--tls-ca`, `--tls-certificate` and `--tls-key` in place of a token file"
        ))
        .into(),
        _ => ServiceError::Call { address: coordinator.to_string(), source: Box::new(status) },
    }
}
