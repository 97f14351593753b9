//! The outcome of a task as the learner gets it: a header, the bytes of its tensors in chunks, their digest.

use bytes::Bytes;
use models::{ModelError, tensor_bytes};
use proto::{Caller, ElementType, PushHeader, PushRequest, TensorInfo, push_request};
use protocol::push_tensors::embedding_part_name;
use tch::Tensor;

use crate::sampling::guided_model::Embedding;

/// A tensor off its device.
#[derive(Clone, Debug, PartialEq)]
pub struct WireTensor {
    /// Name, shape and element type.
    pub info: TensorInfo,
    /// Row-major, little-endian.
    pub bytes: Vec<u8>,
}

/// An embedding off its device; it travels only where it is not known yet.
#[derive(Clone, Debug, PartialEq)]
pub struct WireEmbedding {
    /// Its name.
    pub digest: Bytes,
    /// Its tensors, named `conditioning.HEX.NAME`.
    pub tensors: Vec<WireTensor>,
}

/// Everything that may be sent of one task, however often that takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// The rank of the learner that it goes to.
    pub learner_rank: u32,
    /// The header, without caller and tensors.
    pub header: PushHeader,
    /// What is always sent.
    pub tensors: Vec<WireTensor>,
    /// Embeddings that the header refers to.
    pub embeddings: Vec<WireEmbedding>,
    /// Sent only when asked for.
    pub next_latents: Option<WireTensor>,
}

impl WireTensor {
    /// Takes a tensor off its device.
    ///
    /// # Errors
    /// If the wire has no name for its element type.
    pub fn new(name: &str, tensor: &Tensor) -> Result<Self, ModelError> {
        Ok(Self { info: tensor_bytes::tensor_info(name, tensor)?, bytes: tensor_bytes::to_bytes(tensor) })
    }

    /// Numbers that were never on a device.
    pub fn from_floats(name: &str, shape: &[i64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { info: info(name, shape, ElementType::F32), bytes }
    }

    /// Bytes that were never on a device.
    pub fn from_bytes(name: &str, shape: &[i64], bytes: Vec<u8>) -> Self {
        Self { info: info(name, shape, ElementType::U8), bytes }
    }
}

impl WireEmbedding {
    /// Takes an embedding off its device.
    ///
    /// # Errors
    /// If the wire has no name for an element type in it.
    pub fn new(embedding: &Embedding) -> Result<Self, ModelError> {
        let tensors = embedding.conditioning.tensors().into_iter();
        let tensors = tensors
            .map(|(part, tensor)| WireTensor::new(&embedding_part_name(&embedding.digest, part), tensor));
        Ok(Self {
            digest: Bytes::copy_from_slice(&embedding.digest),
            tensors: tensors.collect::<Result<_, _>>()?,
        })
    }
}

impl Delivery {
    /// The messages of one push by `caller`, with the embeddings that are `missing` there.
    pub fn messages(
        &self,
        caller: Caller,
        missing: &[Bytes],
        with_next_latents: bool,
    ) -> impl Iterator<Item = PushRequest> + Send + 'static {
        // A prompt and the negative prompt may embed alike; tensors are named by digest, so one of them is enough.
        let is_first = |position: usize, embedding: &WireEmbedding| {
            self.embeddings[..position].iter().all(|earlier| earlier.digest != embedding.digest)
        };
        let embeddings = self.embeddings.iter().enumerate().filter_map(|(position, embedding)| {
            (missing.contains(&embedding.digest) && is_first(position, embedding)).then_some(embedding)
        });
        let sent: Vec<&WireTensor> = (self.tensors.iter())
            .chain(embeddings.flat_map(|embedding| &embedding.tensors))
            .chain(self.next_latents.iter().filter(|_| with_next_latents))
            .collect();
        let bytes = sent.iter().map(|tensor| tensor.bytes.as_slice()).collect::<Vec<_>>().concat();
        let digest = Bytes::copy_from_slice(blake3::hash(&bytes).as_bytes());
        let tensors = sent.iter().map(|tensor| tensor.info.clone()).collect();
        let header = PushHeader { caller: Some(caller), tensors, ..self.header.clone() };
        std::iter::once(push_request::Part::Header(header))
            .chain(service::chunks(bytes.into()).map(push_request::Part::Chunk))
            .chain(std::iter::once(push_request::Part::Digest(digest)))
            .map(|part| PushRequest { part: Some(part) })
    }
}

fn info(name: &str, shape: &[i64], element_type: ElementType) -> TensorInfo {
    TensorInfo { name: name.to_owned(), shape: shape.to_vec(), element_type: element_type.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedding(digest: u8) -> WireEmbedding {
        let name = embedding_part_name(&[digest; 32], "text");
        let tensors = vec![WireTensor::from_floats(&name, &[1], &[f32::from(digest)])];
        WireEmbedding { digest: Bytes::copy_from_slice(&[digest; 32]), tensors }
    }

    #[test]
    fn embeddings_that_are_alike_are_sent_once() {
        for (embeddings, n_sent) in [([embedding(1), embedding(1)], 1), ([embedding(1), embedding(2)], 2)] {
            let missing: Vec<Bytes> = embeddings.iter().map(|embedding| embedding.digest.clone()).collect();
            let header = PushHeader::default();
            let delivery = Delivery {
                learner_rank: 0,
                header,
                tensors: vec![],
                embeddings: embeddings.to_vec(),
                next_latents: None,
            };
            let first = delivery.messages(Caller::default(), &missing, false).next().expect("a header");
            let Some(push_request::Part::Header(header)) = first.part else { panic!("no header") };
            assert_eq!(header.tensors.len(), n_sent);
        }
    }
}
