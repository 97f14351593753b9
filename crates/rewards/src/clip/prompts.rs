//! Features of prompts: computed once for as long as they are remembered.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::path::Path;

use models::ModelError;
use models::clip::ClipModel;
use models::tokenizer::Tokenizer;
use tch::{Device, Tensor};

/// A run shows a worker few prompts at a time, but each with many pictures.
const REMEMBERED: usize = 1024;
/// `transformers` reads `tokenizer.json` for CLIP's processors, where there is one.
const TOKENIZER_CLASS: &str = "CLIPTokenizerFast";

/// Turns prompts into the features that pictures are compared with.
pub(crate) struct PromptEmbeddings {
    tokenizer: Tokenizer,
    /// What happens to a text before it is cut into tokens.
    cleaning: fn(&str) -> String,
    max_length: usize,
    vocab_size: i64,
    device: Device,
    recent: RefCell<Recent>,
}

impl PromptEmbeddings {
    /// Opens the tokenizer in `dir` for a model on `device`; texts are cut where the model's positions end.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the vocabulary is larger than the model's.
    pub fn open(dir: &Path, model: &ClipModel, device: Device) -> Result<Self, ModelError> {
        let config = model.text.config();
        let embeddings = Self {
            tokenizer: Tokenizer::open(dir, TOKENIZER_CLASS)?,
            cleaning: str::to_owned,
            max_length: config.max_position_embeddings as usize,
            vocab_size: config.vocab_size,
            device,
            recent: RefCell::default(),
        };
        // The end token has the highest id.
        embeddings.token_ids("").map(|_| embeddings)
    }

    /// The same with texts cleaned first.
    pub fn with_cleaning(self, cleaning: fn(&str) -> String) -> Self {
        Self { cleaning, ..self }
    }

    /// The ids of a prompt's tokens between start and end, cut to the model's length.
    ///
    /// # Errors
    /// If the tokenizer refuses the text or gives an id that the model does not know.
    pub fn token_ids(&self, prompt: &str) -> Result<Vec<i64>, ModelError> {
        let ids = self.tokenizer.encode_unpadded(&(self.cleaning)(prompt), self.max_length)?.ids;
        match ids.iter().find(|id| !(0..self.vocab_size).contains(*id)) {
            None => Ok(ids),
            Some(id) => Err(ModelError::Input(format!(
                "the tokenizer makes id {id}, but the network knows {}; their files do not belong together",
                self.vocab_size
            ))),
        }
    }

    /// The features of a prompt, remembered or computed.
    ///
    /// A text is encoded by itself: in a batch it would be rounded otherwise, and its score would depend on what else was
    /// scored.
    ///
    /// # Shapes
    /// `[1, P]`, float32, of length 1.
    ///
    /// # Errors
    /// As [`Self::token_ids`].
    pub fn embed(&self, model: &ClipModel, prompt: &str) -> Result<Tensor, ModelError> {
        if let Some(known) = self.recent.borrow().get(prompt) {
            return Ok(known);
        }
        let ids = Tensor::from_slice(&self.token_ids(prompt)?).unsqueeze(0).to_device(self.device);
        let features = model.text_embeds(&ids);
        self.recent.borrow_mut().insert(prompt, &features);
        Ok(features)
    }
}

/// The last prompts' features.
#[derive(Default)]
struct Recent {
    features: HashMap<String, Tensor>,
    /// The oldest first.
    order: VecDeque<String>,
}

impl Recent {
    fn get(&self, prompt: &str) -> Option<Tensor> {
        self.features.get(prompt).map(Tensor::shallow_clone)
    }

    fn insert(&mut self, prompt: &str, features: &Tensor) {
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.features.remove(&oldest);
        }
        self.order.push_back(prompt.to_owned());
        self.features.insert(prompt.to_owned(), features.shallow_clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_prompts_are_forgotten_first() {
        let mut recent = Recent::default();
        for idx in 0..REMEMBERED + 2 {
            recent.insert(&idx.to_string(), &Tensor::from(idx as i64));
        }
        assert!(recent.get("0").is_none() && recent.get("1").is_none());
        for idx in [2, REMEMBERED, REMEMBERED + 1] {
            assert_eq!(recent.get(&idx.to_string()).map(|known| known.int64_value(&[])), Some(idx as i64));
        }
        assert_eq!((recent.features.len(), recent.order.len()), (REMEMBERED, REMEMBERED));
    }
}
