//! What passes between workers and the learner: outcomes in, embeddings in, weights out.
//!
//! A push goes through [`push_gate`] and [`receive`] into [`inbox`], where training takes it. Nothing here knows what
//! training makes of it.

pub mod embeddings;
pub mod inbox;
mod numbers;
pub mod outcome;
pub mod publications;
pub mod push_gate;
pub mod receive;
pub mod server;
