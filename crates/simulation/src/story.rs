//! What happened in a simulated world, line by line, if anybody wants to read it.

use std::time::Duration;

/// The story of one seed.
#[derive(Debug, Default)]
pub struct Story {
    lines: Vec<String>,
    is_told: bool,
    /// Since the beginning.
    pub now: Duration,
}

impl Story {
    /// A story that is kept, or none.
    pub fn new(is_told: bool) -> Self {
        Self { lines: Vec::new(), is_told, now: Duration::ZERO }
    }

    /// Adds a line.
    pub fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.is_told {
            let line = format!("{:10.3} s  {}", self.now.as_secs_f64(), what());
            self.lines.push(line);
        }
    }

    /// All lines.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}
