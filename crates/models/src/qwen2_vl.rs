//! Qwen2-VL: a language model that sees images, as embeddings in the places of its image tokens.
//!
//! Letters: B texts, L tokens, P patches of all images together, F numbers of a patch, C features of a token.
//!
//! Tensors are found under the names of the published checkpoints (`visual.`, `model.layers.`) as under those of newer
//! `transformers` (`model.visual.`, `model.language_model.layers.`).
//!
//! Source: `transformers` 4.57, `models/qwen2_vl/modeling_qwen2_vl.py`.

use std::path::Path;

use serde::Deserialize;
use tch::Tensor;

use crate::qwen2_decoder::{Qwen2Config, Qwen2Decoder, language_model};
use crate::qwen2_vision::{PatchGrid, Qwen2VisionConfig, Qwen2VisionTower};
use crate::weights::{Scope, Weights};
use crate::{ModelError, json_file};

/// Time, height and width.
const AXES: i64 = 3;
const MODEL_TYPE: &str = "qwen2_vl";

/// `config.json` of a Qwen2-VL model.
#[derive(Clone, Debug)]
pub struct Qwen2VlConfig {
    /// The language model.
    pub text: Qwen2Config,
    /// The vision tower.
    pub vision: Qwen2VisionConfig,
    /// The token in whose places the embeddings of images stand.
    pub image_token_id: i64,
}

#[derive(Deserialize)]
struct ConfigFile {
    vision_config: Qwen2VisionConfig,
    image_token_id: i64,
}

impl Qwen2VlConfig {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// If the file is missing or malformed, is that of another model, or asks for what is not implemented.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let file: serde_json::Value = json_file::read(path)?;
        let model_type = file.get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default();
        if model_type != MODEL_TYPE {
            let reason = format!("\"{model_type}\" is not {MODEL_TYPE}; give the folder of a Qwen2-VL model");
            return Err(ModelError::config(path, "model_type", reason));
        }
        let ConfigFile { vision_config: vision, image_token_id } = json_file::read(path)?;
        let config = Self { text: Qwen2Config::read(path)?, vision, image_token_id };
        config.check().map_err(|(key, reason)| ModelError::config(path, key, reason))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        self.vision.check()?;
        let (width, embedding_width) = (self.text.hidden_size, self.vision.hidden_size);
        if width != embedding_width {
            let reason =
                format!("{embedding_width} is not the {width} features of the language model's tokens");
            return Err(("vision_config.hidden_size", reason));
        }
        match self.text.axes() {
            AXES => Ok(()),
            axes => {
                let reason = format!("it shares the frequencies among {axes} axes; Qwen2-VL has {AXES}");
                Err(("rope_scaling.mrope_section", reason))
            }
        }
    }
}

/// Where tokens are said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenPositions {
    /// Each one after the one before it, on all axes, the tokens of images too.
    InSequence,
    /// The tokens of an image share their time and lie on its grid; the text goes on after the longer side of it. What
    /// `transformers` calls `get_rope_index`.
    OnGrids,
}

/// Texts with images in them, all of one length.
pub struct Qwen2VlInput<'a> {
    /// The tokens of each text; an image has as many image tokens as its grid has merge blocks.
    pub input_ids: &'a [Vec<i64>],
    /// The patches of all images in the order of their tokens: `[P, F]`.
    pub pixel_values: &'a Tensor,
    /// The images' grids in the same order.
    pub grids: &'a [PatchGrid],
}

/// The model without its head.
pub struct Qwen2Vl {
    tower: Qwen2VisionTower,
    decoder: Qwen2Decoder,
    image_token_id: i64,
}

impl Qwen2Vl {
    /// Takes the model's tensors; what is wrong with them is told by [`Weights::finish`].
    ///
    /// The vocabulary is as large as the files have it: tokens may have been added after the configuration was written.
    pub fn new(weights: &Weights, config: Qwen2VlConfig) -> Self {
        let Qwen2VlConfig { mut text, vision, image_token_id } = config;
        let language = language_model(weights);
        if let Some(&[vocab_size, _]) = language.shape("embed_tokens.weight").as_deref() {
            text.vocab_size = vocab_size;
        }
        let tower = Qwen2VisionTower::new(&vision_tower(weights), vision);
        Self { tower, decoder: Qwen2Decoder::new(&language, text), image_token_id }
    }

    /// The sizes of the language model.
    pub fn text_config(&self) -> &Qwen2Config {
        self.decoder.config()
    }

    /// The sizes of the vision tower.
    pub fn vision_config(&self) -> &Qwen2VisionConfig {
        self.tower.config()
    }

    /// The token in whose places the embeddings of images stand.
    pub fn image_token_id(&self) -> i64 {
        self.image_token_id
    }

    /// How many image tokens stand for an image.
    pub fn image_tokens(&self, grid: PatchGrid) -> usize {
        grid.merged(self.tower.config().spatial_merge_size).patches() as usize
    }

    /// Hidden states of all tokens after the last norm.
    ///
    /// # Shapes
    /// `[B, L, C]`
    ///
    /// # Errors
    /// If the texts differ in length, a token is not in the vocabulary, or image tokens, grids and patches do not fit each
    /// other.
    pub fn forward(&self, input: &Qwen2VlInput, positions: TokenPositions) -> Result<Tensor, ModelError> {
        self.check(input)?;
        let images = self.tower.forward(input.pixel_values, input.grids);
        let (device, flat) = (images.device(), input.input_ids.concat());
        let rows = input.input_ids.len() as i64;
        let input_ids = Tensor::from_slice(&flat).view([rows, -1]).to_device(device);
        let places: Vec<i64> = (0_i64..)
            .zip(&flat)
            .filter(|(_, id)| **id == self.image_token_id)
            .map(|(place, _)| place)
            .collect();
        let embedded = self.decoder.embed(&input_ids);
        // [B, L, C] → [B · L, C] and back
        let places = Tensor::from_slice(&places).to_device(device);
        let embedded = embedded.flatten(0, 1).index_copy(0, &places, &images).view_as(&embedded);
        Ok(self.decoder.forward(&embedded, &self.positions(input, positions).to_device(device)))
    }

    /// # Shapes
    /// `[3, B, L]`, int64.
    fn positions(&self, input: &Qwen2VlInput, positions: TokenPositions) -> Tensor {
        let mut grids = input.grids.iter().map(|grid| grid.merged(self.tower.config().spatial_merge_size));
        let rows: Vec<Tensor> = input
            .input_ids
            .iter()
            .map(|ids| match positions {
                TokenPositions::InSequence => (0..ids.len() as i64).flat_map(|place| [place; 3]).collect(),
                TokenPositions::OnGrids => grid_positions(ids, self.image_token_id, &mut grids),
            })
            .map(|row: Vec<i64>| Tensor::from_slice(&row).view([-1, AXES]))
            .collect();
        Tensor::stack(&rows, 0).permute([2, 0, 1])
    }

    fn check(&self, input: &Qwen2VlInput) -> Result<(), ModelError> {
        let refused = |reason| Err(ModelError::Input(reason));
        let length = input.input_ids.first().map_or(0, Vec::len);
        if length == 0 || input.input_ids.iter().any(|ids| ids.len() != length) {
            return refused("texts of one batch must have one length, which is not 0".to_owned());
        }
        if input.grids.is_empty() {
            return refused("there must be an image among the texts".to_owned());
        }
        let vocab_size = self.text_config().vocab_size;
        let mut ids = input.input_ids.iter().flatten();
        if let Some(id) = ids.find(|id| !(0..vocab_size).contains(*id)) {
            return refused(format!(
                "token {id} is not in the model's vocabulary of {vocab_size}; its tokenizer is another"
            ));
        }
        check_runs(
            input.input_ids,
            self.image_token_id,
            input.grids.iter().map(|grid| self.image_tokens(*grid)),
        )?;
        let n_patches: i64 = input.grids.iter().map(|grid| grid.patches()).sum();
        let (found, expected) = (input.pixel_values.size(), [n_patches, self.vision_config().patch_width()]);
        match found == expected {
            true => Ok(()),
            false => refused(format!("the patches have shape {found:?}, expected {expected:?}")),
        }
    }
}

/// Checks that the image tokens of the texts are those of the images, in order, those of each image together in one text.
fn check_runs(
    texts: &[Vec<i64>],
    image_token_id: i64,
    lengths: impl Iterator<Item = usize>,
) -> Result<(), ModelError> {
    let mut expected = lengths;
    for ids in texts {
        let runs = ids.chunk_by(|a, b| a == b).filter(|run| run[0] == image_token_id);
        for run in runs {
            let mut left = run.len();
            while left > 0 {
                let length =
                    expected.next().filter(|length| (1..=left).contains(length)).ok_or_else(|| {
                        ModelError::Input(format!(
                            "{} image tokens in a row are not those of an image",
                            run.len()
                        ))
                    })?;
                left -= length;
            }
        }
    }
    match expected.next() {
        None => Ok(()),
        Some(length) => Err(ModelError::Input(format!("no text has the {length} image tokens of an image"))),
    }
}

/// The positions of one text's tokens: time, height and width of each. Takes the grids of its images.
fn grid_positions(ids: &[i64], image_token_id: i64, grids: &mut impl Iterator<Item = PatchGrid>) -> Vec<i64> {
    let mut positions = Vec::with_capacity(3 * ids.len());
    let (mut next, mut place) = (0, 0);
    while let Some(id) = ids.get(place) {
        if *id != image_token_id {
            positions.extend([next; 3]);
            (next, place) = (next + 1, place + 1);
            continue;
        }
        let grid = grids.next().expect("image tokens were checked to have images; else this is a bug");
        for row in 0..grid.rows {
            positions.extend((0..grid.columns).flat_map(|column| [next, next + row, next + column]));
        }
        next += grid.rows.max(grid.columns);
        place += grid.patches() as usize;
    }
    positions
}

fn vision_tower(weights: &Weights) -> Scope {
    let newer = weights.scope("model.visual");
    if newer.has("patch_embed.proj.weight") { newer } else { weights.scope("visual") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: i64 = 9;

    #[test]
    fn text_goes_on_after_the_longer_side_of_an_image() {
        let ids = [1, IMAGE, IMAGE, IMAGE, 2, 3, IMAGE, 4];
        let grids = [PatchGrid { rows: 1, columns: 3 }, PatchGrid { rows: 1, columns: 1 }];
        let positions = grid_positions(&ids, IMAGE, &mut grids.into_iter());
        let expected =
            [[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 1, 3], [4, 4, 4], [5, 5, 5], [6, 6, 6], [7, 7, 7]];
        assert_eq!(positions, expected.concat());
    }

    #[test]
    fn image_tokens_that_are_not_those_of_the_images_are_refused() {
        let check = |texts: &[Vec<i64>], lengths: &[usize]| {
            check_runs(texts, IMAGE, lengths.iter().copied()).map_err(|error| error.to_string())
        };
        let texts = [vec![1, IMAGE, IMAGE, IMAGE], vec![IMAGE, 2, 3, IMAGE]];
        assert_eq!(check(&texts, &[2, 1, 1, 1]), Ok(()));
        for (lengths, word) in [
            (&[3, 1][..], "1 image tokens in a row"),
            (&[3, 2, 1], "1 image tokens in a row"),
            (&[3, 1, 1, 4], "no text has the 4 image tokens"),
            (&[0, 3, 1, 1], "3 image tokens in a row"),
        ] {
            let error = check(&texts, lengths).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
