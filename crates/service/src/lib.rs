//! What every process of a run needs: connecting and serving, membership of the run, shutdown on signals, logs, the
//! layout of the run directory, files that survive a power cut, models by name. Never links libtorch.

// Printing panics where nobody reads; `output` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod arguments;
mod backoff;
mod chunks;
mod connect;
pub mod cuda;
pub mod durable;
mod environment;
mod error;
pub mod exit_code;
mod hub;
mod incoming;
pub mod logging;
mod membership;
pub mod output;
mod prompt_copies;
mod provenance;
mod run_directory;
mod shown;
pub mod shutdown;
mod timely;

pub use arguments::{
    MemberArguments, model_folder, parse_arguments, path_argument, typed_path, unprefixed_variables,
};
pub use backoff::backoff;
pub use chunks::{Assembly, ChunkError, chunks};
pub use connect::{
    CHUNK_BYTES, MESSAGE_LIMIT, connect, coordinator_client, learner_client, request, reward_client, server,
};
pub use environment::expand_path;
pub use error::ServiceError;
pub use hub::{Hub, ModelNotFound};
pub use incoming::serve;
pub use membership::{JoinDetails, Membership, Standing, WorkInHand, host_name};
pub use prompt_copies::{PromptCopies, PromptCopyError, prompt_digest, write_prompts};
pub use provenance::Provenance;
pub use run_directory::RunDirectory;
pub use shown::{shown, visible};
pub use timely::{NEXT_MESSAGE, Timely, taken_in_time};
