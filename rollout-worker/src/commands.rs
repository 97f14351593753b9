//! What the program does besides working for a run.

pub mod argument_parsers;
pub mod image_file;
pub mod inspect;
pub mod inspect_rewards;
pub mod parity;
pub mod recorded_run;
pub mod sample;
pub mod score;
pub mod serve_reward;
