//! What a rank takes over from the first one: all that training changes.

use std::collections::BTreeMap;

use models::tensor_bytes;
use prost::Message;
use proto::WeightsManifest;

use crate::error::LearnerError;
use crate::ranks::group::TakesOver;
use crate::ranks::position::Position;
use crate::training::policy::{NamedTensors, Policy, PolicyState};

/// What is taken over.
pub struct RankState {
    /// The policy with optimizer and average.
    pub policy: PolicyState,
    /// Versions of the policy that tasks are sampled with or whose means are computed again.
    pub earlier: BTreeMap<u32, NamedTensors>,
}

impl RankState {
    /// As one piece: each list as what it consists of, then its bytes.
    ///
    /// # Errors
    /// If a tensor's element type has no name on the wire.
    pub fn to_bytes(&self) -> Result<Vec<u8>, LearnerError> {
        let PolicyState { trained, optimizer, average } = &self.policy;
        let mut bytes = Vec::new();
        for tensors in [trained, optimizer, average] {
            put(&mut bytes, 0, tensors)?;
        }
        for (version, tensors) in &self.earlier {
            put(&mut bytes, *version, tensors)?;
        }
        Ok(bytes)
    }

    /// What [`Self::to_bytes`] made.
    ///
    /// # Errors
    /// If it is something else.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self, LearnerError> {
        let mut next = || take(&mut bytes).map(|list| list.map_or_else(Vec::new, |(_, tensors)| tensors));
        let policy = PolicyState { trained: next()?, optimizer: next()?, average: next()? };
        let mut earlier = BTreeMap::new();
        while let Some((version, tensors)) = take(&mut bytes)? {
            earlier.insert(version, tensors);
        }
        Ok(Self { policy, earlier })
    }
}

/// Where a rank keeps what another takes over, and takes it over itself.
pub struct Carried<'a> {
    /// The policy.
    pub policy: &'a mut Policy,
    /// Its versions that are needed again.
    pub earlier: &'a mut BTreeMap<u32, NamedTensors>,
    /// Updates made.
    pub updates: &'a mut u64,
    /// The iteration at work.
    pub iteration: &'a mut u32,
}

impl TakesOver for Carried<'_> {
    fn position(&self) -> Position {
        Position { iteration: *self.iteration, updates: *self.updates }
    }

    fn give(&self) -> Result<Vec<u8>, LearnerError> {
        let copies = |tensors: &NamedTensors| {
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
        };
        let earlier = self.earlier.iter().map(|(version, tensors)| (*version, copies(tensors))).collect();
        RankState { policy: self.policy.state(), earlier }.to_bytes()
    }

    fn take_over(&mut self, position: Position, given: &[u8]) -> Result<(), LearnerError> {
        let state = RankState::from_bytes(given)?;
        self.policy.set_state(&state.policy)?;
        *self.earlier = state.earlier;
        (*self.iteration, *self.updates) = (position.iteration, position.updates);
        Ok(())
    }
}

fn put(bytes: &mut Vec<u8>, version: u32, tensors: &NamedTensors) -> Result<(), LearnerError> {
    let infos = tensors.iter().map(|(name, tensor)| tensor_bytes::tensor_info(name, tensor));
    let tensors_of = infos.collect::<Result<Vec<_>, _>>()?;
    let manifest = WeightsManifest { version, tensors: tensors_of, ..WeightsManifest::default() };
    bytes.extend(manifest.encode_length_delimited_to_vec());
    tensors.iter().for_each(|(_, tensor)| bytes.extend(tensor_bytes::to_bytes(&tensor.detach())));
    Ok(())
}

/// The next list; nothing at the end.
fn take(bytes: &mut &[u8]) -> Result<Option<(u32, NamedTensors)>, LearnerError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let manifest = WeightsManifest::decode_length_delimited(&mut *bytes)
        .map_err(|error| LearnerError::RankState(error.to_string()))?;
    let mut length = 0_usize;
    for info in &manifest.tensors {
        length = length.saturating_add(tensor_bytes::byte_length(info)?);
    }
    let (own, rest) = bytes.split_at_checked(length).ok_or_else(|| {
        LearnerError::RankState(format!("{length} bytes were announced, and {} are left", bytes.len()))
    })?;
    *bytes = rest;
    Ok(Some((manifest.version, tensor_bytes::split(&manifest.tensors, own)?)))
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    fn named(name: &str, numbers: &[f32]) -> NamedTensors {
        vec![(name.to_owned(), Tensor::from_slice(numbers))]
    }

    #[test]
    fn what_is_given_is_taken_over() {
        let policy = PolicyState {
            trained: named("a", &[1.0, -0.0]),
            optimizer: vec![("a.updates".to_owned(), Tensor::from_slice(&[7_i64]))],
            average: Vec::new(),
        };
        let earlier = BTreeMap::from([(3, named("a", &[0.5])), (4, named("a", &[0.25]))]);
        let bytes = RankState { policy, earlier }.to_bytes().expect("bytes");
        let state = RankState::from_bytes(&bytes).expect("the same");
        assert_eq!(state.policy.trained, named("a", &[1.0, -0.0]));
        assert_eq!(state.policy.optimizer[0].1.int64_value(&[0]), 7);
        assert!(state.policy.average.is_empty());
        assert_eq!(state.earlier.keys().copied().collect::<Vec<_>>(), [3, 4]);
        assert_eq!(state.earlier[&4], named("a", &[0.25]));
        for length in [1, bytes.len() - 1] {
            assert!(RankState::from_bytes(&bytes[..length]).is_err(), "{length} bytes");
        }
    }
}
