//! Which role may call what, in one table; and the layer of every server that asks it.

use super::{Peer, PeerRole, TrustError};
use crate::limited_log::LimitedLog;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;
use tower_layer::Layer;
use tower_service::Service;

/// Who may make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callers {
    /// Who has a certificate or not.
    Anybody,
    /// Who has one of these.
    Roles(&'static [PeerRole]),
}

const MEMBERS: Callers = Callers::Roles(&[PeerRole::Worker, PeerRole::Learner]);
const WORKERS: Callers = Callers::Roles(&[PeerRole::Worker]);
const LEARNERS: Callers = Callers::Roles(&[PeerRole::Learner]);
/// With certificates of the user's own, an operator at the coordinator's host shows the coordinator's.
const OPERATORS: Callers = Callers::Roles(&[PeerRole::Admin, PeerRole::Coordinator]);
/// Images are also scored for an operator who tries a reward out.
const SCORED: Callers = Callers::Roles(&[PeerRole::Worker, PeerRole::Admin]);

/// Every call of every service. One that is not here is refused.
const TABLE: [(&str, Callers); 25] = [
    ("/tempflow.v1.Coordinator/Join", MEMBERS),
    ("/tempflow.v1.Coordinator/Heartbeat", MEMBERS),
    ("/tempflow.v1.Coordinator/NextTask", WORKERS),
    ("/tempflow.v1.Coordinator/FinishTask", WORKERS),
    ("/tempflow.v1.Coordinator/SeekWeights", WORKERS),
    ("/tempflow.v1.Coordinator/Report", LEARNERS),
    ("/tempflow.v1.Coordinator/Leave", MEMBERS),
    ("/tempflow.v1.Coordinator/RunFiles", LEARNERS),
    ("/tempflow.v1.Coordinator/KeepResults", LEARNERS),
    ("/tempflow.v1.Coordinator/TellLog", MEMBERS),
    ("/tempflow.v1.Admin/Status", OPERATORS),
    ("/tempflow.v1.Admin/Scale", OPERATORS),
    ("/tempflow.v1.Admin/Down", OPERATORS),
    ("/tempflow.v1.Admin/Logs", OPERATORS),
    ("/tempflow.v1.Admin/MemberLogs", OPERATORS),
    ("/tempflow.v1.Admin/Export", OPERATORS),
    ("/tempflow.v1.Learner/MissingConditioning", WORKERS),
    ("/tempflow.v1.Learner/Push", WORKERS),
    ("/tempflow.v1.Learner/Weights", WORKERS),
    ("/tempflow.v1.WeightsRelay/Weights", WORKERS),
    ("/tempflow.v1.Reward/Describe", SCORED),
    ("/tempflow.v1.Reward/Score", SCORED),
    ("/tempflow.v1.Enrolment/Enrol", Callers::Anybody),
    // Probes have no certificate, and learn whether the process is up.
    ("/grpc.health.v1.Health/Check", Callers::Anybody),
    ("/grpc.health.v1.Health/Watch", Callers::Anybody),
];

pub(crate) fn callers(path: &str) -> Option<Callers> {
    TABLE.iter().find(|(known, _)| *known == path).map(|(_, callers)| *callers)
}

/// Whether a peer may make a call now.
fn check(peer: &Peer, path: &str, now: SystemTime) -> Result<(), Status> {
    if !peer.is_secure {
        return Ok(());
    }
    let call = path.rsplit('/').next().unwrap_or(path);
    match callers(path) {
        None => Err(Status::unimplemented(format!("nobody may call {}", crate::shown(path, 100)))),
        Some(Callers::Anybody) => Ok(()),
        Some(Callers::Roles(roles)) => {
            let certificate = peer.certificate.as_deref().ok_or_else(|| {
                Status::unauthenticated(format!(
                    "{call} needs a certificate of this run; join by a token file first"
                ))
            })?;
            certificate
                .check_time(now)
                .map_err(|error: TrustError| Status::unauthenticated(error.to_string()))?;
            let role = certificate.name.role;
            match roles.contains(&role) {
                true => Ok(()),
                false => Err(Status::permission_denied(format!(
                    "a process of the role `{role}` may not call {call}, only {} may; use the token file of that role",
                    roles.iter().map(|role| format!("`{role}`")).collect::<Vec<_>>().join(" or ")
                ))),
            }
        }
    }
}

/// The role of who made a call; `None` where connections are not secured.
pub fn peer_role<T>(request: &tonic::Request<T>) -> Option<PeerRole> {
    let peer = request.extensions().get::<Peer>()?;
    peer.certificate.as_deref().map(|certificate| certificate.name.role)
}

/// Calls that were refused.
static REFUSED: LimitedLog = LimitedLog::new();

/// Checks every call of a server.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccessLayer;

impl<S> Layer<S> for AccessLayer {
    type Service = AccessService<S>;

    fn layer(&self, inner: S) -> AccessService<S> {
        AccessService { inner }
    }
}

/// A service whose calls are checked.
#[derive(Clone, Debug)]
pub struct AccessService<S> {
    inner: S,
}

impl<S> Service<http::Request<Body>> for AccessService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // Nothing is served but what `service::serve` accepted, which says who it is.
        let stranger = Peer::stranger();
        let peer = request.extensions().get::<Peer>().unwrap_or(&stranger);
        match check(peer, request.uri().path(), SystemTime::now()) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => {
                REFUSED.warn(|| match peer.address {
                    Some(address) => format!("refused a call of {address}: {}", status.message()),
                    None => format!("refused a call: {}", status.message()),
                });
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PeerCertificate, PeerName};
    use super::*;
    use prost::Message;
    use prost_types::FileDescriptorSet;
    use std::sync::Arc;
    use std::time::Duration;
    use tonic::Code;

    /// Every call of the wire, as HTTP/2 names it.
    fn calls() -> Vec<String> {
        let files = FileDescriptorSet::decode(proto::DESCRIPTORS).expect("descriptors").file;
        let of_file = |file: prost_types::FileDescriptorProto| {
            let package = file.package().to_owned();
            file.service.into_iter().flat_map(move |service| {
                let name = format!("/{package}.{}", service.name());
                service.method.into_iter().map(move |method| format!("{name}/{}", method.name()))
            })
        };
        files.into_iter().flat_map(of_file).collect()
    }

    fn peer(role: PeerRole, now: SystemTime) -> Peer {
        let name = PeerName { domain: "run-a".to_owned(), role };
        let hour = Duration::from_secs(3600);
        let certificate = PeerCertificate { name, not_before: now - hour, not_after: now + hour };
        Peer { is_secure: true, certificate: Some(Arc::new(certificate)), address: None }
    }

    #[test]
    fn every_call_of_the_wire_has_its_callers_and_nothing_else_has() {
        let calls = calls();
        assert!(calls.len() > 12, "{calls:?}");
        let bare: Vec<_> = calls.iter().filter(|call| callers(call).is_none()).collect();
        assert!(bare.is_empty(), "nobody may call {bare:?}: say who may, in the table");
        let health = |path: &str| path.starts_with("/grpc.health.v1.");
        let gone: Vec<_> = TABLE
            .iter()
            .filter(|(path, _)| !health(path) && !calls.iter().any(|call| call == path))
            .collect();
        assert!(gone.is_empty(), "the wire has no {gone:?} any more");
        let open: Vec<_> = calls.iter().filter(|call| callers(call) == Some(Callers::Anybody)).collect();
        assert_eq!(open, ["/tempflow.v1.Enrolment/Enrol"]);
    }

    #[test]
    fn a_role_may_call_what_the_table_says_and_nothing_else() {
        let now = SystemTime::now();
        for (path, callers) in TABLE {
            for role in PeerRole::ALL {
                let may = match callers {
                    Callers::Anybody => true,
                    Callers::Roles(roles) => roles.contains(&role),
                };
                assert_eq!(check(&peer(role, now), path, now).is_ok(), may, "{role} {path}");
            }
        }
        let refused =
            check(&peer(PeerRole::Worker, now), "/tempflow.v1.Admin/Down", now).expect_err("refused");
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("role `worker` may not call Down, only `admin` or"), "{refused}");
        let unknown =
            check(&peer(PeerRole::Admin, now), "/tempflow.v1.Admin/Burn", now).expect_err("refused");
        assert_eq!(unknown.code(), Code::Unimplemented);
    }

    #[test]
    fn a_certificate_is_looked_at_anew_at_every_call() {
        let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
        let (peer, path) = (peer(PeerRole::Worker, now), "/tempflow.v1.Coordinator/NextTask");
        check(&peer, path, now).expect("it holds");
        for (clock, words) in [(now + day, "ended at"), (now - day, "begins to hold only at")] {
            let told = check(&peer, path, clock).expect_err("refused");
            assert_eq!(told.code(), Code::Unauthenticated);
            assert!(told.message().contains(words) && told.message().contains("set the clocks"), "{told}");
        }
        let nobody = Peer { certificate: None, ..peer };
        assert_eq!(check(&nobody, path, now).expect_err("refused").code(), Code::Unauthenticated);
        check(&nobody, "/tempflow.v1.Enrolment/Enrol", now).expect("that is how one gets a certificate");
        check(&Peer { is_secure: false, ..nobody }, path, now).expect("nothing is checked without TLS");
    }
}
