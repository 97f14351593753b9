//! Samples trajectories and images for a run: takes tasks, rolls them out, scores the images, pushes the outcome.
//!
//! Read [`wavefront`] first, the rollout as a pure function; then [`task`], which makes one of a task's name; then
//! [`serve`], the life around it.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod argument_parsers;
pub mod bad_input;
pub mod delivery;
pub mod device;
pub mod embedding_cache;
pub mod guided_model;
pub mod hands;
pub mod image_file;
pub mod inspect;
pub mod inspect_rewards;
pub mod learner_link;
pub mod parity;
pub mod push;
pub mod recorded_run;
pub mod reward_resources;
pub mod reward_thread;
pub mod sample;
pub mod score;
pub mod scoring;
pub mod scoring_report;
pub mod serve;
pub mod serve_reward;
pub mod task;
pub mod task_noise;
pub mod truncated_prompts;
pub mod wavefront;
pub mod weights;
