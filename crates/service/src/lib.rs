//! What every process of a run needs: connecting and serving, membership of the run, shutdown on signals, logs, the
//! layout of the run directory, files that survive a power cut, models by name. Never links libtorch.

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
pub mod logging;
mod membership;
mod prompt_copies;
mod run_directory;
pub mod shutdown;

pub use arguments::MemberArguments;
pub use backoff::Backoff;
pub use chunks::{Assembly, ChunkError, chunks};
pub use connect::{
    CHUNK_BYTES, MESSAGE_LIMIT, connect, coordinator_client, learner_client, request, reward_client, server,
};
pub use environment::expand_path;
pub use error::ServiceError;
pub use hub::{Hub, ModelNotFound};
pub use membership::{JoinDetails, Membership, Standing, WorkInHand};
pub use prompt_copies::{PromptCopies, PromptCopyError, prompt_digest, write_prompts};
pub use run_directory::RunDirectory;
