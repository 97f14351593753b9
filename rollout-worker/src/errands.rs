//! What a worker does from task to task: fetch weights, draw, score, push, tell.

pub mod device;
pub mod hands;
pub mod learner_link;
pub mod measured;
pub mod push;
pub mod weights;
