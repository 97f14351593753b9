//! What tasks and weights are called, here and on the wire.

use config::TaskKind;
use std::fmt;

/// Name of a task; names sort in the order in which tasks are granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskName {
    /// Train: the iteration it feeds. Evaluate and test: the version they measure.
    pub iteration: u32,
    /// What it is for.
    pub kind: TaskKind,
    /// Position among its kind and iteration.
    pub index: u32,
}

/// Name of trained weights; what has a name never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightsName {
    /// Updates that they have seen.
    pub version: u32,
    /// Which of that version's weights.
    pub role: WeightsRole,
}

/// What weights are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightsRole {
    /// The policy, which training tasks are sampled with.
    Policy,
    /// Its moving average, for held-out images.
    Average,
}

/// A name that this version of the program does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// There is no name.
    #[error("it has no id")]
    Missing,
    /// A task of no kind, or of an unknown one.
    #[error("it has no kind")]
    Kind,
    /// Weights in no role, or in an unknown one.
    #[error("the weights have no role")]
    Role,
}

impl WeightsName {
    /// The policy of a version.
    pub fn policy(version: u32) -> Self {
        Self { version, role: WeightsRole::Policy }
    }

    /// The moving average of a version.
    pub fn average(version: u32) -> Self {
        Self { version, role: WeightsRole::Average }
    }

    /// The wire's number and role.
    ///
    /// # Errors
    /// If the role is unknown.
    pub fn from_wire(version: u32, role: proto::WeightsRole) -> Result<Self, NameFault> {
        match role {
            proto::WeightsRole::Policy => Ok(Self::policy(version)),
            proto::WeightsRole::Average => Ok(Self::average(version)),
            proto::WeightsRole::Unspecified => Err(NameFault::Role),
        }
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TaskKind::Evaluate => write!(f, "evaluation task {} of version {}", self.index, self.iteration),
            TaskKind::Test => write!(f, "test task {} of version {}", self.index, self.iteration),
            TaskKind::Train => write!(f, "training task {} of iteration {}", self.index, self.iteration),
        }
    }
}

impl From<TaskName> for proto::TaskId {
    fn from(name: TaskName) -> Self {
        Self { kind: kind_to_wire(name.kind).into(), iteration: name.iteration, index: name.index }
    }
}

impl TryFrom<&proto::TaskId> for TaskName {
    type Error = NameFault;

    fn try_from(id: &proto::TaskId) -> Result<Self, NameFault> {
        let kind = kind_from_wire(id.kind()).ok_or(NameFault::Kind)?;
        Ok(Self { iteration: id.iteration, kind, index: id.index })
    }
}

impl From<WeightsName> for proto::WeightsId {
    fn from(name: WeightsName) -> Self {
        Self { version: name.version, role: proto::WeightsRole::from(name.role).into() }
    }
}

impl TryFrom<&proto::WeightsId> for WeightsName {
    type Error = NameFault;

    fn try_from(id: &proto::WeightsId) -> Result<Self, NameFault> {
        Self::from_wire(id.version, id.role())
    }
}

impl fmt::Display for WeightsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            WeightsRole::Policy => write!(f, "version {}", self.version),
            WeightsRole::Average => write!(f, "average of version {}", self.version),
        }
    }
}

impl From<WeightsRole> for proto::WeightsRole {
    fn from(role: WeightsRole) -> Self {
        match role {
            WeightsRole::Policy => Self::Policy,
            WeightsRole::Average => Self::Average,
        }
    }
}

/// A task's kind as it travels.
pub fn kind_to_wire(kind: TaskKind) -> proto::TaskKind {
    match kind {
        TaskKind::Train => proto::TaskKind::Train,
        TaskKind::Evaluate => proto::TaskKind::Evaluate,
        TaskKind::Test => proto::TaskKind::Test,
    }
}

/// A task's kind from the wire; `None` if it is unknown.
pub fn kind_from_wire(kind: proto::TaskKind) -> Option<TaskKind> {
    match kind {
        proto::TaskKind::Train => Some(TaskKind::Train),
        proto::TaskKind::Evaluate => Some(TaskKind::Evaluate),
        proto::TaskKind::Test => Some(TaskKind::Test),
        proto::TaskKind::Unspecified => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_from_the_wire() {
        for kind in [TaskKind::Train, TaskKind::Evaluate, TaskKind::Test] {
            let name = TaskName { iteration: 7, kind, index: 3 };
            assert_eq!(TaskName::try_from(&proto::TaskId::from(name)), Ok(name));
        }
        for role in [WeightsRole::Policy, WeightsRole::Average] {
            let name = WeightsName { version: 4, role };
            assert_eq!(WeightsName::from_wire(4, role.into()), Ok(name));
            assert_eq!(WeightsName::try_from(&proto::WeightsId::from(name)), Ok(name));
        }
    }

    #[test]
    fn unknown_kinds_and_roles_are_refused() {
        for kind in [0, 99] {
            let id = proto::TaskId { kind, iteration: 7, index: 3 };
            assert_eq!(TaskName::try_from(&id), Err(NameFault::Kind));
        }
        assert_eq!(WeightsName::from_wire(4, proto::WeightsRole::Unspecified), Err(NameFault::Role));
    }

    #[test]
    fn names_sort_by_iteration_and_then_evaluation_first() {
        let name = |iteration, kind, index| TaskName { iteration, kind, index };
        let sorted = [
            name(1, TaskKind::Train, 5),
            name(2, TaskKind::Evaluate, 1),
            name(2, TaskKind::Test, 0),
            name(2, TaskKind::Train, 0),
            name(2, TaskKind::Train, 1),
        ];
        assert!(sorted.is_sorted());
        let words = sorted.map(|name| name.to_string());
        assert_eq!(words[0], "training task 5 of iteration 1");
        assert_eq!(words[1], "evaluation task 1 of version 2");
        assert_eq!(words[2], "test task 0 of version 2");
    }
}
