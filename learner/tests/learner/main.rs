//! A learner in this process on a tiny real model: what it trains, and what it serves.

mod lab;
mod service;
mod training;
