//! Parts of what a process holds in memory, and their sums.

use crate::RunConfig;

/// Where a part of a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryPlace {
    /// On the accelerator; in host memory where the device is the CPU.
    Device,
    /// In host memory.
    Host,
}

/// One part of what a process holds.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPart {
    /// What it is.
    pub name: String,
    /// Bytes at the fullest moment.
    pub bytes: f64,
    /// Where.
    pub place: MemoryPlace,
    /// Whether it rests on a number that has never been measured on the device it is reckoned for.
    pub is_estimate: bool,
}

impl MemoryPart {
    /// A part on the device whose bytes are counted.
    pub(crate) fn device(name: impl Into<String>, bytes: f64) -> Self {
        Self { name: name.into(), bytes, place: MemoryPlace::Device, is_estimate: false }
    }

    /// A part in host memory whose bytes are counted.
    pub(crate) fn host(name: impl Into<String>, bytes: f64) -> Self {
        Self { place: MemoryPlace::Host, ..Self::device(name, bytes) }
    }

    /// The same part, marked where the device is a card: what is calibrated was so on CPUs alone.
    pub(crate) fn estimated_on_card(self, config: &RunConfig) -> Self {
        Self { is_estimate: !config.resources.device.is_cpu(), ..self }
    }
}

/// What one process of each kind holds.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPlan {
    /// Parts of the learner.
    pub learner: Vec<MemoryPart>,
    /// Parts of one rollout worker that samples.
    pub worker: Vec<MemoryPart>,
    /// Parts of one rollout worker while it embeds prompts before it samples; none where text encoders stay beside the
    /// rest.
    pub embedding: Vec<MemoryPart>,
}

impl MemoryPlan {
    /// Bytes of the learner in a place.
    pub fn learner_bytes(&self, place: MemoryPlace) -> f64 {
        total_bytes(&self.learner, place)
    }

    /// Bytes of one rollout worker in a place, at the fuller of its two times.
    pub fn worker_bytes(&self, place: MemoryPlace) -> f64 {
        total_bytes(&self.worker, place).max(total_bytes(&self.embedding, place))
    }
}

/// Bytes of all parts in a place.
pub fn total_bytes(parts: &[MemoryPart], place: MemoryPlace) -> f64 {
    parts.iter().filter(|part| part.place == place).map(|part| part.bytes).sum()
}
