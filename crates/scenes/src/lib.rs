//! The small world of the shipped task: prompts about coloured shapes, and pictures that satisfy them.
//!
//! A scene has at most four objects, one per cell of a 2 × 2 grid, on a dark ground. It holds little chance on purpose:
//! a network of a million parameters has to learn it nearly perfectly on a CPU.

mod image;
mod prompt;
mod scene;
mod split;
mod universe;
mod world;

pub use image::{ImageError, RgbImage};
pub use prompt::{Exclude, Include, PromptSpec, Relation, Tag};
pub use scene::{Object, Scene, SceneError};
pub use split::{Split, split, to_jsonl};
pub use universe::{all_prompts, vocabulary};
pub use world::{BACKGROUND, Color, DEFAULT_IMAGE_SIZE, Shape, object_side};
