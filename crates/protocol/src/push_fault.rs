//! What can be wrong with what a push announces.

use proto::{ElementType, TaskCost, TensorInfo};
use std::fmt;

use crate::push_tensors::{LONGEST_EXTRA_KEY, MOST_EXTRAS};

/// Why a push is refused. It would be refused again: the sender has to sample anew.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PushFault {
    /// Weights of another version.
    #[error("sampled with version {got}, but version {wanted} is wanted")]
    Version {
        /// Version that was sampled with.
        got: u32,
        /// Version of the task.
        wanted: u32,
    },
    /// More than any task takes, or no number.
    #[error("no task costs {0:?}")]
    Cost(TaskCost),
    /// Other steps than those that are trained.
    #[error("the steps are {got:?}, but {trained:?} are trained")]
    Steps {
        /// Steps of the push.
        got: Vec<u32>,
        /// Steps that are trained.
        trained: Vec<u32>,
    },
    /// Embeddings are named by something else than digests.
    #[error("`conditioning` or `negative_conditioning` is not the digest of an embedding")]
    Digest,
    /// A tensor that every push of such a task has is not announced.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// A tensor is announced with another shape or element type.
    #[error("tensor `{tensor}` is announced as {got}, but {expected} is expected")]
    Form {
        /// Name of the tensor.
        tensor: String,
        /// As announced.
        got: TensorForm,
        /// As the config and the model imply.
        expected: TensorForm,
    },
    /// Next latents, which are optional, with another shape or element type.
    #[error("tensor `next_latents` is announced as {0}")]
    NextLatents(TensorForm),
    /// A name is announced again.
    #[error("tensor `{0}` is announced twice")]
    Twice(String),
    /// A tensor that tasks of the kind do not have.
    #[error("tensor `{0}` is of no use here")]
    OfNoUse(String),
    /// A tensor of an embedding that the network would panic at.
    #[error(
        "tensor `{tensor}` is announced as {got}, which does not fit the model: it takes text [1, tokens, {text_width}] \
         of at most {most_tokens} tokens (`model.max_sequence_length`) and pooled [1, {pooled_width}]"
    )]
    Embedding {
        /// Name of the tensor.
        tensor: String,
        /// As announced.
        got: TensorForm,
        /// Features of a token.
        text_width: i64,
        /// Features of the pooled text.
        pooled_width: i64,
        /// The most tokens that a text has.
        most_tokens: i64,
    },
    /// Parts of an embedding are left out.
    #[error("an embedding comes without its `text` or `pooled` tensor")]
    PartOfEmbedding,
    /// Text and mask disagree about the number of tokens.
    #[error("the mask of an embedding is not as long as its text")]
    MaskLength,
    /// An extra of an unknown reward.
    #[error("there is an extra of a reward that no evaluation is scored by")]
    ExtraOfNoReward,
    /// An extra whose name would mislead who reads it.
    #[error("an extra of reward `{0}` has a key that cannot be printed")]
    ExtraUnprintable(String),
    /// An extra without a name, or with one that is too long.
    #[error(
        "an extra of reward `{reward}` has a key of {n_bytes} bytes; 1 to {LONGEST_EXTRA_KEY} are allowed"
    )]
    ExtraKey {
        /// Name of the reward.
        reward: String,
        /// Bytes of the key.
        n_bytes: usize,
    },
    /// More extras than are kept.
    #[error("reward `{reward}` has {n_extras} extras; at most {MOST_EXTRAS} are allowed")]
    Extras {
        /// Name of the reward.
        reward: String,
        /// As many as were announced.
        n_extras: usize,
    },
    /// A tensor of no size.
    #[error("tensor `{0}` is announced with an impossible shape or element type")]
    Size(String),
    /// More bytes than can be counted.
    #[error("the tensors are too large together")]
    TooLarge,
    /// Fewer bytes than announced.
    #[error("the bytes end inside tensor `{0}`")]
    EndsInside(String),
    /// A chunk of so many bytes.
    #[error("a chunk has {0} bytes; at most 1 MiB is allowed")]
    Chunk(usize),
    /// The push begins again.
    #[error("there is a second header")]
    SecondHeader,
    /// Next latents that are not what their hashes say.
    #[error("`next_latents` have other hashes than `next_hashes`")]
    Hashes,
    /// An embedding that no text has.
    #[error("{0}")]
    Conditioning(String),
    /// A number that would end the run.
    #[error("tensor `{tensor}` holds {number} at {place:?}")]
    Number {
        /// Name of the tensor.
        tensor: String,
        /// What it holds.
        number: f32,
        /// Index along each axis.
        place: Vec<usize>,
    },
}

/// Element type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorForm {
    element_type: ElementType,
    shape: Vec<i64>,
}

impl From<&TensorInfo> for TensorForm {
    fn from(info: &TensorInfo) -> Self {
        Self { element_type: info.element_type(), shape: info.shape.clone() }
    }
}

impl fmt::Display for TensorForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.element_type.as_str_name(), self.shape)
    }
}
