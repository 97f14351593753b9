//! The wire: messages and services generated from `common.proto`, `coordinator.proto`, `learner.proto` and `reward.proto`.

#[expect(missing_docs, reason = "the .proto files hold the documentation")]
#[expect(clippy::allow_attributes, reason = "the generator writes them")]
mod generated {
    tonic::include_proto!("tempflow.v1");
}

pub use generated::*;
