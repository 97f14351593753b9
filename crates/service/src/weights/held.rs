//! The newest few versions that a worker has, for its own use and for others that fetch them from it.

use bytes::Bytes;
use proto::WeightsManifest;
use protocol::WeightsName;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

/// With lag 1, two policies take turns with one average.
pub const KEPT_VERSIONS: usize = 3;

/// One version in one role, whole and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightsCopy {
    /// Version and role.
    pub name: WeightsName,
    /// What it consists of, by the learner's word.
    pub manifest: WeightsManifest,
    /// The bytes of all its tensors, in the manifest's order.
    pub bytes: Bytes,
}

/// Versions that are kept; clones keep the same ones.
#[derive(Clone, Debug, Default)]
pub struct HeldWeights {
    /// Least recently used first.
    kept: Arc<Mutex<VecDeque<Arc<WeightsCopy>>>>,
}

impl HeldWeights {
    /// A version for this worker's own use, which keeps it for longer.
    pub fn take(&self, name: WeightsName) -> Option<Arc<WeightsCopy>> {
        let mut kept = self.lock();
        let position = kept.iter().position(|copy| copy.name == name)?;
        let copy = kept.remove(position)?;
        kept.push_back(copy.clone());
        Some(copy)
    }

    /// A version for another worker.
    pub fn get(&self, name: WeightsName) -> Option<Arc<WeightsCopy>> {
        self.lock().iter().find(|copy| copy.name == name).cloned()
    }

    /// Keeps a version, and forgets the least recently used one where that is too many.
    pub fn keep(&self, copy: Arc<WeightsCopy>) {
        let mut kept = self.lock();
        kept.retain(|earlier| earlier.name != copy.name);
        kept.push_back(copy);
        if kept.len() > KEPT_VERSIONS {
            kept.pop_front();
        }
    }

    /// What is kept.
    pub fn names(&self) -> Vec<WeightsName> {
        self.lock().iter().map(|copy| copy.name).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<WeightsCopy>>> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(version: u32) -> Arc<WeightsCopy> {
        let name = WeightsName::policy(version);
        Arc::new(WeightsCopy { name, manifest: WeightsManifest::default(), bytes: Bytes::new() })
    }

    #[test]
    fn what_is_used_is_kept_for_longest_and_what_is_only_sent_on_is_not() {
        let held = HeldWeights::default();
        (0..3).for_each(|version| held.keep(copy(version)));
        assert!(held.take(WeightsName::policy(0)).is_some() && held.get(WeightsName::policy(1)).is_some());
        held.keep(copy(3));
        assert_eq!(held.names(), [2, 0, 3].map(WeightsName::policy));
        assert!(held.take(WeightsName::policy(1)).is_none() && held.get(WeightsName::average(3)).is_none());
    }
}
