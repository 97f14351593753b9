//! What a text encoder hands to a velocity network.
//!
//! Letters: B rows, L text tokens, C features of a token, P features of the pooled text.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::misshaped;
use crate::ModelError;

const TEXT: &str = "text";
const POOLED: &str = "pooled";
const TEXT_MASK: &str = "text_mask";

/// The text of B images as tensors, batch first.
#[derive(Debug)]
pub struct Conditioning {
    /// Features of each token: `[B, L, C]`.
    pub text: Tensor,
    /// Features of the whole text, where the family has them: `[B, P]`.
    pub pooled: Option<Tensor>,
    /// Which tokens count, 1 or 0: `[B, L]`. All do where it is absent.
    pub text_mask: Option<Tensor>,
}

/// Encodes each distinct prompt once and alone, so that its embedding does not depend on its neighbours.
///
/// # Errors
/// If there are no prompts, or the first error of `encode`, which makes one row of one prompt.
pub(super) fn encode_each(
    prompts: &[String],
    encode: impl Fn(&str) -> Result<Conditioning, ModelError>,
) -> Result<Conditioning, ModelError> {
    let mut rows = BTreeMap::new();
    let mut distinct = Vec::new();
    for prompt in prompts {
        if !rows.contains_key(prompt) {
            rows.insert(prompt, distinct.len() as i64);
            distinct.push(encode(prompt)?);
        }
    }
    if distinct.is_empty() {
        return Err(ModelError::Input("there are no prompts to encode".to_owned()));
    }
    let order: Vec<i64> = prompts.iter().map(|prompt| rows[prompt]).collect();
    Ok(Conditioning::cat(&distinct.iter().collect::<Vec<_>>()).select(&order))
}

impl Conditioning {
    /// How many rows there are.
    pub fn rows(&self) -> i64 {
        self.text.size()[0]
    }

    /// How many tokens each row has, padding included.
    pub fn tokens(&self) -> i64 {
        self.text.size()[1]
    }

    /// Repeats each row `repeats` times, the copies of one row standing together.
    pub fn repeat_interleave(&self, repeats: i64) -> Self {
        self.map(|tensor| tensor.repeat_interleave_self_int(repeats, Some(0), None))
    }

    /// Takes the rows named by `indices`, in that order; a row may be taken more than once.
    ///
    /// # Panics
    /// If an index is not below [`Self::rows`].
    pub fn select(&self, indices: &[i64]) -> Self {
        self.map(|tensor| tensor.index_select(0, &Tensor::from_slice(indices).to_device(tensor.device())))
    }

    /// The same on another device.
    pub fn to_device(&self, device: Device) -> Self {
        self.map(|tensor| tensor.to_device(device))
    }

    /// Stretches a single row over `rows` rows without copying; as many rows as asked for stay as they are.
    ///
    /// # Panics
    /// If there are neither `rows` rows nor one.
    pub fn expand(&self, rows: i64) -> Self {
        self.map(|tensor| {
            let mut size = tensor.size();
            size[0] = rows;
            tensor.expand(size, false)
        })
    }

    /// Stacks the rows of all `parts`, which must agree on whether there are pooled features.
    ///
    /// Texts shorter than the longest are padded with zeros, and masked wherever anything is padded or masked already.
    ///
    /// # Panics
    /// If `parts` is empty or the parts differ in their pooled features' presence or in features.
    pub fn cat(parts: &[&Self]) -> Self {
        let longest = parts.iter().map(|part| part.tokens()).max().unwrap_or_default();
        let is_masked = |part: &&Self| part.text_mask.is_some() || part.tokens() < longest;
        let masks = parts.iter().any(is_masked).then(|| {
            let padded = parts.iter().map(|part| {
                let mask = part.mask();
                mask.constant_pad_nd([0, longest - part.tokens()])
            });
            Tensor::cat(&padded.collect::<Vec<_>>(), 0)
        });
        let texts = parts.iter().map(|part| match longest - part.tokens() {
            0 => part.text.shallow_clone(),
            missing => part.text.constant_pad_nd([0, 0, 0, missing]),
        });
        Self {
            text: Tensor::cat(&texts.collect::<Vec<_>>(), 0),
            pooled: cat_optional(parts, |part| &part.pooled),
            text_mask: masks,
        }
    }

    /// Which tokens count, also where all do: `[B, L]`, int64.
    pub fn mask(&self) -> Tensor {
        let all = || Tensor::ones([self.rows(), self.tokens()], (Kind::Int64, self.text.device()));
        self.text_mask.as_ref().map_or_else(all, |mask| mask.to_kind(Kind::Int64))
    }

    /// Checks that there are tokens of one width and pooled features of another, in one row or one per latent; a width of
    /// 0 means none.
    ///
    /// # Errors
    /// If a tensor is missing, of no use or of another shape.
    pub(super) fn check_shapes(
        &self,
        n_latents: i64,
        (text_width, pooled_width): (i64, i64),
    ) -> Result<(), ModelError> {
        let (text, rows) = (self.text.size(), self.rows());
        if text.len() != 3 || text[1] < 1 || text[2] != text_width || (rows != n_latents && rows != 1) {
            let expected = format!("[{n_latents}, tokens, {text_width}]");
            return Err(misshaped("text embeddings", &text, &expected));
        }
        let pooled = self.pooled.as_ref().map(Tensor::size).unwrap_or_default();
        let expected = if pooled_width > 0 { vec![rows, pooled_width] } else { Vec::new() };
        if pooled != expected {
            return Err(misshaped("pooled embeddings", &pooled, &format!("{expected:?}")));
        }
        match self.text_mask.as_ref().map(Tensor::size).filter(|mask| *mask != text[..2]) {
            Some(mask) => Err(misshaped("text mask", &mask, &format!("{:?}", &text[..2]))),
            None => Ok(()),
        }
    }

    /// The tensors under the names they have on the wire.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let optional = [(POOLED, &self.pooled), (TEXT_MASK, &self.text_mask)];
        let present = optional.into_iter().filter_map(|(name, tensor)| Some((name, tensor.as_ref()?)));
        std::iter::once((TEXT, &self.text)).chain(present).collect()
    }

    /// Rebuilds a conditioning from what [`Self::tensors`] named.
    ///
    /// # Errors
    /// If `text` is missing, a name is unknown or given twice.
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<Self, ModelError> {
        let (mut text, mut pooled, mut text_mask) = (None, None, None);
        for (name, tensor) in tensors {
            let slot = match name.as_str() {
                TEXT => &mut text,
                POOLED => &mut pooled,
                TEXT_MASK => &mut text_mask,
                _ => return Err(ModelError::Input(format!("a conditioning has no tensor named `{name}`"))),
            };
            if slot.replace(tensor).is_some() {
                return Err(ModelError::Input(format!("the conditioning has the tensor `{name}` twice")));
            }
        }
        let text =
            text.ok_or_else(|| ModelError::Input("the conditioning lacks the tensor `text`".to_owned()))?;
        Ok(Self { text, pooled, text_mask })
    }

    fn map(&self, change: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            text: change(&self.text),
            pooled: self.pooled.as_ref().map(&change),
            text_mask: self.text_mask.as_ref().map(&change),
        }
    }
}

fn cat_optional(parts: &[&Conditioning], part: impl Fn(&Conditioning) -> &Option<Tensor>) -> Option<Tensor> {
    let tensors: Vec<&Tensor> = parts.iter().filter_map(|conditioning| part(conditioning).as_ref()).collect();
    assert!(
        tensors.is_empty() || tensors.len() == parts.len(),
        "conditionings of one family have the same tensors"
    );
    (!tensors.is_empty()).then(|| Tensor::cat(&tensors, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn words(values: &[f32], mask: Option<&[i64]>) -> Conditioning {
        let text_mask = mask.map(|mask| Tensor::from_slice(mask).unsqueeze(0));
        Conditioning { text: Tensor::from_slice(values).view([1, -1, 1]), pooled: None, text_mask }
    }

    #[test]
    fn texts_of_one_length_are_stacked_as_they_are() {
        let both = Conditioning::cat(&[&words(&[1.0, 2.0], None), &words(&[3.0, 4.0], None)]);
        assert_eq!(both.text.flatten(0, -1), Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]));
        assert!(both.text_mask.is_none());
        assert_eq!(both.mask(), Tensor::ones([2, 2], (Kind::Int64, Device::Cpu)));
    }

    #[test]
    fn shorter_texts_are_padded_with_zeros_that_do_not_count() {
        let parts =
            [words(&[1.0], None), words(&[2.0, 3.0, 4.0], Some(&[1, 0, 1])), words(&[5.0, 6.0], None)];
        let all = Conditioning::cat(&parts.iter().collect::<Vec<_>>());
        let text = [1.0_f32, 0.0, 0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0];
        assert_eq!(all.text, Tensor::from_slice(&text).view([3, 3, 1]));
        let mask = [1_i64, 0, 0, 1, 0, 1, 1, 1, 0];
        assert_eq!(all.text_mask.unwrap(), Tensor::from_slice(&mask).view([3, 3]));
    }
}
