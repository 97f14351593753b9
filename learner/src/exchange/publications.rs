//! Versions of the trained weights as workers fetch them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use models::{ModelError, tensor_bytes};
use proto::WeightsManifest;
use protocol::{WeightsName, WeightsRole};
use service::metrics::Durations;
use tch::Tensor;

/// One version in one role, ready to be streamed.
#[derive(Debug)]
pub struct Publication {
    /// What it consists of.
    pub manifest: WeightsManifest,
    /// The bytes of all its tensors, in the manifest's order.
    pub bytes: Bytes,
}

/// The versions that wanted tasks are sampled with.
pub struct Publications {
    versions: Mutex<BTreeMap<WeightsName, Arc<Publication>>>,
    /// How long publishing takes.
    pub seconds: Durations<1>,
}

impl Default for Publications {
    fn default() -> Self {
        Self { versions: Mutex::default(), seconds: Durations::new(["phase"]) }
    }
}

impl Publications {
    /// Makes a version available; a version never changes once it is.
    ///
    /// # Errors
    /// If a tensor's element type has no name on the wire.
    pub fn publish(&self, name: WeightsName, tensors: &[(String, Tensor)]) -> Result<(), ModelError> {
        let start = Instant::now();
        let mut bytes = Vec::new();
        let mut infos = Vec::with_capacity(tensors.len());
        for (tensor_name, tensor) in tensors {
            infos.push(tensor_bytes::tensor_info(tensor_name, tensor)?);
            bytes.extend(tensor_bytes::to_bytes(&tensor.detach()));
        }
        let digest = Bytes::copy_from_slice(blake3::hash(&bytes).as_bytes());
        let role = proto::WeightsRole::from(name.role).into();
        let manifest = WeightsManifest { version: name.version, role, tensors: infos, digest };
        let publication = Arc::new(Publication { manifest, bytes: bytes.into() });
        self.versions().entry(name).or_insert(publication);
        self.seconds.observe(["publish"], start.elapsed());
        Ok(())
    }

    /// Withdraws what no wanted task needs: policies older than `oldest_policy`, averages older than `oldest_average`.
    pub fn keep(&self, oldest_policy: u32, oldest_average: u32) {
        self.versions().retain(|name, _| match name.role {
            WeightsRole::Average => name.version >= oldest_average,
            WeightsRole::Policy => name.version >= oldest_policy,
        });
    }

    /// A version that is available.
    pub fn get(&self, name: WeightsName) -> Option<Arc<Publication>> {
        self.versions().get(&name).cloned()
    }

    fn versions(&self) -> MutexGuard<'_, BTreeMap<WeightsName, Arc<Publication>>> {
        self.versions.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
