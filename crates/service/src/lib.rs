//! What every process of a run needs: connecting and serving, membership of the run, shutdown on signals, logs, the
//! layout of the run directory, files that survive a power cut, models by name. Never links libtorch.

// Printing panics where nobody reads; `output` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod arguments;
mod backoff;
mod chunks;
mod connect;
pub mod cuda;
mod device_kind;
mod duplex;
pub mod durable;
mod enrolment;
mod environment;
mod error;
pub mod exit_code;
mod file_stream;
mod hub;
mod incoming;
mod limited_log;
pub mod logging;
mod membership;
pub mod metrics;
pub mod network;
pub mod output;
mod own_half;
mod ownership;
mod prompt_copies;
mod provenance;
mod recent_log;
mod run_directory;
mod shown;
pub mod shutdown;
pub mod system_numbers;
mod timely;
pub mod trust;
pub mod weights;

pub use arguments::{
    ComputeArguments, MEMBER_VARIABLES, MemberArguments, OperatorArguments, RewardServerArguments,
    model_folder, parse_arguments, parse_seconds, path_argument, typed_path, unprefixed_variables,
};
pub use backoff::backoff;
pub use chunks::{Assembly, ChunkCheck, ChunkError, chunks, chunks_of};
pub use connect::{
    Address, CHUNK_BYTES, MESSAGE_LIMIT, Router, connect, connect_member, connect_named, coordinator_client,
    greet, is_place, learner_client, request, reward_client, server, speaks_tls, weights_relay_client,
};
pub use enrolment::{EnrolmentService, Security, Source, enrolment_client, trust_by};
pub use environment::expand_path;
pub use error::ServiceError;
pub use file_stream::{ReceiveError, SentFile, files_below, files_end, receive_files, send_files};
pub use hub::{Hub, ModelNotFound};
pub use incoming::serve;
pub use membership::{
    JoinDetails, Membership, ResultsQuestion, Standing, WorkInHand, call_end, host_name, join_end,
};
pub use own_half::{received_start, start_files};
pub use ownership::{
    Fenced, Holder, OWNER_LEASE, OwnedDirectory, OwnerRecord, Ownership, Seen, Vigil, incumbent,
    is_of_this_machine, sign_of_life, utc,
};
pub use prompt_copies::{PromptCopies, PromptCopyError, prompt_digest, write_prompts};
pub use provenance::{EXPORTED_FOLDERS, Provenance};
pub use recent_log::{RECENT_LOG_BYTES, RecentLog, ToldLog};
pub use run_directory::RunDirectory;
pub use shown::{shown, visible};
pub use system_numbers::free_memory;
pub use timely::{NEXT_MESSAGE, Timely, taken_in_time};
pub use trust::{Insecure, PeerRole, PeerTls, Trust};
