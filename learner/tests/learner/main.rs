//! A learner in this process on a tiny real model: what it trains, and what it serves.

mod full_fine_tuning;
mod held_out;
mod killed_anywhere;
mod lab;
mod precision;
mod remains;
mod service;
mod several_rewards;
mod starting_adapter;
mod training;
mod waits;
