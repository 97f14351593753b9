//! Rewards that live in other processes: a client for each protocol that their servers speak.
//!
//! | scorer | wire |
//! |---|---|
//! | `flow_grpo_server`, `deqa`, `geneval` | HTTP, pickle, JPEG |
//! | `flow_factory` | HTTP, JSON, PNG in base64 |
//! | `vlm_judge`, `unifiedreward` | HTTP, OpenAI's chat completions, PNG in base64 |
//! | `grpc` | gRPC, `proto/reward.proto`, raw pixels |
//!
//! Invariants:
//! 1. A failure is an error and never a score. [`RemoteError::may_pass`] says which ones may be cured by waiting; trying
//!    again is the caller's.
//! 2. No request and no reply is waited for beyond its deadline, or read beyond `max_reply_bytes`.
//! 3. User names, passwords and keys are in no error.
//! 4. Nothing is sent to a server that is to be reached by TLS before it is known who it is.

mod batch;
mod chat;
mod error;
mod exchange;
mod flow_factory;
mod flow_grpo;
mod geneval;
mod grpc;
mod http;
mod options;
mod pickle_server;
mod security;
mod server_url;
mod unfinished;
mod vlm_judge;

pub use error::RemoteError;
pub use exchange::{Exchange, Reply, Sent};
pub use flow_factory::FlowFactoryReward;
pub use flow_grpo::FlowGrpoReward;
pub use geneval::GenevalReward;
pub use grpc::{GrpcReward, PROTOCOL_VERSION};
pub use vlm_judge::VlmJudge;
