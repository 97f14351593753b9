//! The wire: messages and services generated from `common.proto`, `coordinator.proto`, `learner.proto`, `reward.proto`
//! and `trust.proto`.

#[expect(missing_docs, reason = "the .proto files hold the documentation")]
#[expect(clippy::allow_attributes, reason = "the generator writes them")]
mod generated {
    tonic::include_proto!("tempflow.v1");
}

pub use generated::*;

/// The files as a `FileDescriptorSet`, for what is checked of every service and call.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
