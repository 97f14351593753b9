//! On what kinds of device the run is computed.

use super::{LONGEST_DEVICE, RunState};
use crate::device_kinds::{self, DeviceKinds, KindStanding};
use crate::membership::{Applicant, Refusal};
use proto::{Process, Role};
use service::shown;

impl RunState {
    /// Refuses a further kind of device, unless the run may have several.
    pub(super) fn check_kind(&self, applicant: &Applicant, kind: &KindStanding) -> Result<(), Refusal> {
        match kind {
            KindStanding::Further(kind) if !self.catalog.config().resources.mixed_devices => {
                let before: Vec<String> = self.kinds.of(applicant.role).iter().cloned().collect();
                Err(Refusal::OtherKind {
                    member_id: shown(&applicant.member_id, LONGEST_DEVICE),
                    kind: kind.clone(),
                    who: if applicant.role == Role::Learner { "the learner" } else { "the workers" },
                    before: before.join("` and `"),
                })
            }
            _ => Ok(()),
        }
    }

    /// Counts in the kind of a member that was let in.
    pub(super) fn count_kind(&mut self, role: Role, member_id: &str, kind: KindStanding) {
        match kind {
            KindStanding::Known => {}
            KindStanding::First(kind) => self.kinds.add(role, kind),
            KindStanding::Further(kind) => {
                let member_id = shown(member_id, LONGEST_DEVICE);
                self.note(&format!(
                    "{member_id} computes on a further kind of device, `{kind}` (resources.mixed_devices): the bits of this run \
                     are not promised any more"
                ));
                self.kinds.add(role, kind);
            }
        }
    }

    /// The kind of device that a process computes on; empty where it is not known.
    pub fn kind_of<'a>(&self, process: &'a Process) -> &'a str {
        device_kinds::kind_of(process, self.catalog.config().resources.device)
    }

    /// Goes on with what earlier coordinators of the run recorded.
    pub fn inherit_kinds(&mut self, kinds: DeviceKinds) {
        (self.kinds, self.recorded_kinds) = (kinds.clone(), kinds);
    }

    /// On what the run is computed, where that is not recorded yet.
    pub fn kinds_to_record(&self) -> Option<DeviceKinds> {
        (self.kinds != self.recorded_kinds).then(|| self.kinds.clone())
    }

    /// These are recorded now.
    pub fn kinds_recorded(&mut self, kinds: DeviceKinds) {
        self.recorded_kinds = kinds;
    }
}
