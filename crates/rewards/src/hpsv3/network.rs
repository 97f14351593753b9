//! The network of HPSv3: Qwen2-VL with a head that reads two numbers off one token.
//!
//! Letters: B texts, L tokens, C features of a token.

use std::path::{Path, PathBuf};

use models::ModelError;
use models::layers::{Activation, Linear};
use models::qwen2_vision::PatchGrid;
use models::qwen2_vl::{Qwen2Vl, Qwen2VlConfig, Qwen2VlInput, TokenPositions};
use models::tokenizer::Qwen2Tokenizer;
use models::weights::{Scope, WeightOptions, Weights};
use scenes::RgbImage;
use tch::{Device, Kind, Tensor};

use crate::qwen2_vl_images::{ImagePatches, Qwen2VlImageProcessor, TooNarrow};

/// The token that stands for an image in a text.
pub const IMAGE_TOKEN: &str = "<|image_pad|>";
/// The token whose features the head reads.
pub const REWARD_TOKEN: &str = "<|Reward|>";
/// What the tokenizer must cut out whole, beside the token of the reward, which is added to it.
const SPECIAL_TOKENS: [&str; 5] =
    ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN];
/// The published file, without its ending; folders that `transformers` wrote have the other.
const PUBLISHED_STEM: &str = "HPSv3";
const PLAIN_STEM: &str = "model";
/// The file of the head where it stands alone.
const HEAD_STEM: &str = "rm_head";
/// Most tokens of a text, which is what the language model was made for.
const LONGEST: usize = 32_768;

/// Where the files of the network are.
#[derive(Clone, Debug)]
pub struct Hpsv3Files {
    /// The folder of its tensors: `HPSv3.safetensors`, or `model.safetensors` or shards of it, with the head inside or in
    /// `rm_head.safetensors`.
    pub model: PathBuf,
    /// The folder of `config.json`, `preprocessor_config.json` and the tokenizer.
    pub processor: PathBuf,
}

impl Hpsv3Files {
    /// Whether a folder has all that a processor is.
    pub fn is_processor(dir: &Path) -> bool {
        let has = |name: &str| dir.join(name).is_file();
        has("config.json") && has("preprocessor_config.json") && (has("vocab.json") || has("tokenizer.json"))
    }

    /// The published name, unless there are files of the other alone.
    fn stem(&self) -> &'static str {
        let has = |stem: &str, ending: &str| self.model.join(format!("{stem}.safetensors{ending}")).is_file();
        let is_plain = has(PLAIN_STEM, "") || has(PLAIN_STEM, ".index.json");
        if is_plain && !has(PUBLISHED_STEM, "") { PLAIN_STEM } else { PUBLISHED_STEM }
    }

    fn head_stem(&self) -> &'static str {
        match self.model.join(format!("{HEAD_STEM}.safetensors")).is_file() {
            true => HEAD_STEM,
            false => self.stem(),
        }
    }
}

/// What the head says of an image: a normal distribution of scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreDistribution {
    /// Its mean.
    pub mu: f32,
    /// The natural logarithm of its standard deviation.
    pub log_sigma: f32,
}

/// Three linear layers in float32; the published ones are 1024 and 16 wide inside.
struct RewardHead([Linear; 3]);

impl RewardHead {
    fn new(scope: &Scope, width: i64) -> Self {
        let outputs = |name: &str, published: i64| match scope.shape(name).as_deref() {
            Some(&[outputs, _]) => outputs,
            _ => published,
        };
        let (first, second) = (outputs("0.weight", 1024), outputs("3.weight", 16));
        Self([
            Linear::new(&scope.child(0), width, first, true),
            Linear::new(&scope.child(3), first, second, true),
            Linear::new(&scope.child(5), second, 2, true),
        ])
    }

    /// # Shapes
    /// `[..., C]` → `[..., 2]`, float32.
    fn forward(&self, features: &Tensor) -> Tensor {
        let [first, second, last] = &self.0;
        let hidden = Activation::Relu.apply(&first.forward(&features.to_kind(Kind::Float)));
        last.forward(&Activation::Relu.apply(&second.forward(&hidden)))
    }
}

/// The network with what makes its inputs.
pub struct Hpsv3Network {
    backbone: Qwen2Vl,
    head: RewardHead,
    tokenizer: Qwen2Tokenizer,
    image_processor: Qwen2VlImageProcessor,
    reward_token_id: i64,
}

impl Hpsv3Network {
    /// Opens all files; the head is always float32.
    ///
    /// # Errors
    /// If a file is missing or malformed, is that of another model, or the files do not fit each other.
    pub fn open(files: &Hpsv3Files, weights: &WeightOptions) -> Result<Self, ModelError> {
        let config_path = files.processor.join("config.json");
        let config = Qwen2VlConfig::read(&config_path)?;
        let preprocessor = files.processor.join("preprocessor_config.json");
        let image_processor = Qwen2VlImageProcessor::open(&preprocessor, &config.vision)?;
        let mut tokenizer = Qwen2Tokenizer::open(&files.processor)?;
        check_tokens(&tokenizer, &files.processor, config.image_token_id)?;
        let reward_token_id = tokenizer.add_special_token(REWARD_TOKEN)?;
        let (backbone, head) = open_tensors(files, config, weights)?;
        let vocab_size = backbone.text_config().vocab_size;
        if reward_token_id >= vocab_size {
            let reason = format!(
                "the tokenizer gives {REWARD_TOKEN} the id {reward_token_id}, but the model has embeddings for {vocab_size} \
                 tokens; it is not HPSv3, or the tokenizer not its own"
            );
            return Err(ModelError::config(&config_path, "vocab_size", reason));
        }
        Ok(Self { backbone, head, tokenizer, image_processor, reward_token_id })
    }

    /// Resizes an image by the processor's own bounds and cuts it into patches.
    ///
    /// # Errors
    /// If it is too narrow.
    ///
    /// # Panics
    /// If the buffer does not fit the image.
    pub fn patches(&self, image: &RgbImage) -> Result<ImagePatches, TooNarrow> {
        self.image_processor.process(image)
    }

    /// The tokens of a text that has [`IMAGE_TOKEN`] once, where its image is, and [`REWARD_TOKEN`] once.
    ///
    /// # Errors
    /// If it has another number of either, or is too long.
    pub fn tokens(&self, text: &str) -> Result<Vec<i64>, ModelError> {
        let tokens = self.tokenizer.encode_unpadded(text, LONGEST)?;
        if tokens.truncated > 0 {
            let length = LONGEST + tokens.truncated;
            return Err(ModelError::Input(format!("the text has {length} tokens; it may have {LONGEST}")));
        }
        for (name, id) in
            [(IMAGE_TOKEN, self.backbone.image_token_id()), (REWARD_TOKEN, self.reward_token_id)]
        {
            let count = tokens.ids.iter().filter(|token| **token == id).count();
            if count != 1 {
                return Err(ModelError::Input(format!(
                    "the text has {count} times the token {name}, which stands in it once; take it out of the prompt"
                )));
            }
        }
        Ok(tokens.ids)
    }

    /// The same with as many image tokens as the image has.
    pub fn with_image(&self, tokens: &[i64], grid: PatchGrid) -> Vec<i64> {
        let repeats = |id: i64| match id == self.backbone.image_token_id() {
            true => self.backbone.image_tokens(grid),
            false => 1,
        };
        tokens.iter().flat_map(|id| std::iter::repeat_n(*id, repeats(*id))).collect()
    }

    /// The hidden states of texts of one length with their images.
    ///
    /// # Shapes
    /// `[B, L, C]`
    ///
    /// # Errors
    /// As [`Qwen2Vl::forward`].
    pub fn hidden(
        &self,
        texts: &[Vec<i64>],
        images: &[ImagePatches],
        positions: TokenPositions,
    ) -> Result<Tensor, ModelError> {
        let pixel_values: Vec<&Tensor> = images.iter().map(|image| &image.values).collect();
        let grids: Vec<PatchGrid> = images.iter().map(|image| image.grid).collect();
        let pixel_values = Tensor::cat(&pixel_values, 0);
        let input = Qwen2VlInput { input_ids: texts, pixel_values: &pixel_values, grids: &grids };
        tch::no_grad(|| self.backbone.forward(&input, positions))
    }

    /// The head's two numbers, mean first, of each text.
    ///
    /// # Shapes
    /// `hidden` `[B, L, C]`, of those `texts` → `[B, 2]`, float32.
    ///
    /// # Panics
    /// If the shapes do not fit each other, or a text lacks [`REWARD_TOKEN`].
    pub fn judge(&self, hidden: &Tensor, texts: &[Vec<i64>]) -> Tensor {
        let places: Vec<i64> = texts.iter().map(|ids| self.reward_place(ids) as i64).collect();
        let places = Tensor::from_slice(&places).to_device(hidden.device()).view([-1, 1, 1]);
        let width = hidden.size().last().copied().unwrap_or_default();
        let features = hidden.gather(1, &places.expand([-1, 1, width], false), false).squeeze_dim(1);
        tch::no_grad(|| self.head.forward(&features))
    }

    /// What the network says of each image with its text. The texts may differ in length.
    ///
    /// A token sees those before it alone. So what follows [`REWARD_TOKEN`] is left out, and short texts are filled up at
    /// their end, and neither changes what stands there.
    ///
    /// # Errors
    /// As [`Self::hidden`].
    pub fn score(
        &self,
        texts: &[Vec<i64>],
        images: &[ImagePatches],
        positions: TokenPositions,
    ) -> Result<Vec<ScoreDistribution>, ModelError> {
        let ends: Vec<usize> = texts.iter().map(|ids| self.reward_place(ids) + 1).collect();
        let longest = ends.iter().copied().max().unwrap_or_default();
        let alike = |(ids, end): (&Vec<i64>, &usize)| {
            let filling = std::iter::repeat_n(self.reward_token_id, longest - end);
            ids[..*end].iter().copied().chain(filling).collect()
        };
        let alike: Vec<Vec<i64>> = texts.iter().zip(&ends).map(alike).collect();
        let judged = self.judge(&self.hidden(&alike, images, positions)?, &alike);
        let judged: Vec<Vec<f32>> = Vec::try_from(judged.to_device(Device::Cpu))
            .expect("the head gives rows of float32; else this is a bug");
        Ok(judged.into_iter().map(|row| ScoreDistribution { mu: row[0], log_sigma: row[1] }).collect())
    }

    fn reward_place(&self, ids: &[i64]) -> usize {
        let place = ids.iter().position(|id| *id == self.reward_token_id);
        place.expect("`tokens` makes sure of the reward's token; else this is a bug")
    }
}

/// Opens the backbone and the head, which may be in one file but differ in element type.
fn open_tensors(
    files: &Hpsv3Files,
    config: Qwen2VlConfig,
    options: &WeightOptions,
) -> Result<(Qwen2Vl, RewardHead), ModelError> {
    let width = config.text.hidden_size;
    let weights = Weights::open(&files.model, files.stem(), options)?;
    let backbone = Qwen2Vl::new(&weights, config);
    weights.ignore(&["lm_head.", "rm_head."]);
    weights.finish()?;
    let head_options = WeightOptions { kind: Kind::Float, ..options.clone() };
    let weights = Weights::open(&files.model, files.head_stem(), &head_options)?;
    let head = RewardHead::new(&weights.scope("rm_head"), width);
    weights.ignore(&["lm_head.", "model.", "visual."]);
    weights.finish()?;
    Ok((backbone, head))
}

/// Checks that the tokenizer knows the tokens that mean something to the model.
fn check_tokens(tokenizer: &Qwen2Tokenizer, dir: &Path, image_token_id: i64) -> Result<(), ModelError> {
    for token in SPECIAL_TOKENS {
        let is_whole = |id: &i64| tokenizer.encode_unpadded(token, 2).is_ok_and(|found| found.ids == [*id]);
        let Some(id) = tokenizer.token_id(token).filter(is_whole) else {
            let reason = format!("the tokenizer does not know {token}; give the folder of a Qwen2-VL model");
            return Err(ModelError::config(
                &dir.join("tokenizer_config.json"),
                "added_tokens_decoder",
                reason,
            ));
        };
        if token == IMAGE_TOKEN && id != image_token_id {
            let reason = format!("{image_token_id}, but the tokenizer gives {token} the id {id}");
            return Err(ModelError::config(&dir.join("config.json"), "image_token_id", reason));
        }
    }
    Ok(())
}
