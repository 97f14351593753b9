//! What a process may say of itself: names that can be logged, kept and shown.

use super::{Applicant, Refusal};
use crate::member_name::MemberName;
use proto::{Process, Role};
use protocol::{NONCE_BYTES, PROGRAM_VERSION, PROTOCOL_VERSION, is_printable};
use service::shown;

pub(super) const LONGEST_MEMBER_ID: usize = 100;
/// Of hosts and addresses.
pub(super) const LONGEST_PLACE: usize = 300;

/// Checks what a process says of itself, before any of it is kept or logged.
pub(super) fn check_words(applicant: &Applicant) -> Result<(), Refusal> {
    if applicant.role == Role::Unspecified {
        return Err(Refusal::Malformed("a member needs a role"));
    }
    let is_in_names = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    let member_id = &applicant.member_id;
    if !(1..=LONGEST_MEMBER_ID).contains(&member_id.len()) || !member_id.bytes().all(is_in_names) {
        return Err(Refusal::Malformed(
            "a member id is 1 to 100 ASCII letters, digits and signs, but no `/`",
        ));
    }
    check_address(&applicant.address)?;
    let process = &applicant.process;
    if process.nonce.len() != NONCE_BYTES {
        return Err(Refusal::Malformed("a process has a nonce of 16 bytes"));
    }
    if process.metrics_address.len() > LONGEST_PLACE || !process.metrics_address.chars().all(is_printable) {
        return Err(Refusal::Malformed("a metrics address is `host:port`, of at most 300 bytes"));
    }
    Ok(())
}

/// Checks where a process says that it is reached.
pub(super) fn check_address(address: &str) -> Result<(), Refusal> {
    match address.is_empty() || address.len() <= LONGEST_PLACE && service::is_place(address) {
        true => Ok(()),
        false => Err(Refusal::Malformed("an address is `host:port`, of at most 300 bytes")),
    }
}

/// Checks that a process is of this build.
pub(super) fn check_build(applicant: &Applicant) -> Result<(), Refusal> {
    let Process { program_version, protocol_version, .. } = &applicant.process;
    if (program_version.as_str(), *protocol_version) == (PROGRAM_VERSION, PROTOCOL_VERSION) {
        return Ok(());
    }
    Err(Refusal::OtherBuild {
        member_id: applicant.member_id.clone(),
        theirs_program: shown(program_version, LONGEST_MEMBER_ID),
        theirs_protocol: *protocol_version,
    })
}

/// Whose a name is that the launcher gives.
pub(super) fn role_named(member_id: &str) -> Option<Role> {
    MemberName::parse(member_id).map(MemberName::role)
}

/// A role for people.
pub(crate) fn role_in_words(role: Role) -> &'static str {
    match role {
        Role::Learner => "learner",
        Role::RolloutWorker | Role::Unspecified => "rollout worker",
    }
}
