//! From a task's name to images and numbers.

pub mod delivery;
pub mod embedding_cache;
pub mod guided_model;
pub mod task;
pub mod task_noise;
pub mod truncated_prompts;
pub mod wavefront;
