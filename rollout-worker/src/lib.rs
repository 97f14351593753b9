//! Samples trajectories and images for a run: takes tasks, rolls them out, scores the images, pushes the outcome.
//!
//! Read [`sampling::wavefront`] first, the rollout as a pure function; then [`sampling::task`], which makes one of a task's
//! name; then [`scoring`]; then [`errands`], what is done from task to task, and [`serve`], the life around it.
//!
//! Each knows those before it in this list, never those after. [`commands`] are what else the program can do.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod bad_input;
pub mod commands;
pub mod errands;
pub mod metrics;
pub mod sampling;
pub mod scoring;
pub mod serve;
