//! Why a member, or who wants to be one, is refused.

use super::MOST_LIVING;
use protocol::{PROGRAM_VERSION, PROTOCOL_VERSION};

/// Why a message is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The message lacks something.
    #[error("{0}")]
    Malformed(&'static str),
    /// The message is of another run.
    #[error(
        "this is run `{run_id}`, not `{theirs}`, of which this process is: start it anew to have it join this one, or give it the \
         address of its own run's coordinator"
    )]
    OtherRun {
        /// The run of this coordinator.
        run_id: String,
        /// What the message says.
        theirs: String,
    },
    /// The name is another living process's.
    #[error(
        "another process with this id, `{member_id}`, joined from {host} (process {pid}) and lives: end it, or give each its \
         own `--member-id`"
    )]
    Taken {
        /// Whose place.
        member_id: String,
        /// Who has it.
        pid: u32,
        /// And where.
        host: String,
    },
    /// There is a learner of another name.
    #[error(
        "the learner of this run is `{member_id}`, which joined from {host} (process {pid}) and lives: end that one first"
    )]
    OtherLearner {
        /// Whose place.
        member_id: String,
        /// Who has it.
        pid: u32,
        /// And where.
        host: String,
    },
    /// The run's learner has no such rank.
    #[error(
        "`{member_id}` joins as rank {rank} of the learner, which has {n_learners} in this run: ranks count from 0, and \
         `resources.learners` says how many there are"
    )]
    NoSuchRank {
        /// The sender.
        member_id: String,
        /// What it says.
        rank: u32,
        /// How many there are.
        n_learners: u32,
    },
    /// The process was lost with work that stood still; a new one must take its place.
    #[error("process {pid} of member `{member_id}` got stuck and is replaced")]
    Stuck {
        /// The sender.
        member_id: String,
        /// Its process.
        pid: u32,
    },
    /// The name is another role's.
    #[error("member id `{member_id}` is that of a {theirs}; give this process another by `--member-id`")]
    OtherRole {
        /// The name.
        member_id: String,
        /// Whose it is.
        theirs: &'static str,
    },
    /// The process computes on another kind of device than those before it.
    #[error(
        "member `{member_id}` computes on `{kind}`, and {who} of this run on `{before}`: other kinds round otherwise, so the \
         result would depend on who did what. Use the same kind everywhere, or set `resources.mixed_devices = true`, with \
         which bits are not promised"
    )]
    OtherKind {
        /// The sender.
        member_id: String,
        /// Its own kind.
        kind: String,
        /// Learner or workers.
        who: &'static str,
        /// Theirs.
        before: String,
    },
    /// The process is of another build, which may round otherwise or misunderstand.
    #[error(
        "member `{member_id}` is version {theirs_program} and speaks protocol {theirs_protocol}; this coordinator is version \
         {PROGRAM_VERSION} and speaks {PROTOCOL_VERSION}: start all programs of a run from one build"
    )]
    OtherBuild {
        /// The sender.
        member_id: String,
        /// Its version.
        theirs_program: String,
        /// Its protocol's.
        theirs_protocol: u32,
    },
    /// The learner would not go on with what the run has trained.
    #[error("{0}")]
    OtherHalf(String),
    /// There are too many members.
    #[error(
        "{MOST_LIVING} members are here already, which is all that a coordinator takes: end some, or start another run"
    )]
    Full,
    /// The sender is not, or no longer, a member.
    #[error("member `{member_id}` with incarnation {incarnation} is fenced; join again")]
    Fenced {
        /// The sender.
        member_id: String,
        /// Not, or no longer, that of a member.
        incarnation: u64,
    },
}

impl Refusal {
    /// Why, in a word that can be counted.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::OtherRun { .. } => "other_run",
            Self::Taken { .. } => "taken",
            Self::Stuck { .. } => "stuck",
            Self::OtherRole { .. } => "other_role",
            Self::OtherBuild { .. } => "other_build",
            Self::OtherKind { .. } => "other_kind",
            Self::OtherLearner { .. } => "other_learner",
            Self::NoSuchRank { .. } => "no_such_rank",
            Self::OtherHalf(_) => "other_half",
            Self::Full => "full",
            Self::Fenced { .. } => "fenced",
        }
    }
}
