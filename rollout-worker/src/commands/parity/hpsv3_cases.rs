//! Cases of HPSv3's network: from image files and prompts to hidden states and the head's two numbers.
//!
//! Their text around the prompt is shorter than the scorer's own, and image tokens lie on their grid.

use std::path::Path;

use anyhow::{Context, ensure};
use models::qwen2_vl::TokenPositions;
use models::reference_case::ReferenceCase;
use rewards::{Hpsv3Files, Hpsv3Network, IMAGE_TOKEN, REWARD_TOKEN};
use tch::Tensor;

use super::{Computed, LazyModel};
use crate::commands::image_file;

/// `prompts` and `images`, files beside the case → for image `i` `i.pixel_values`, `i.image_grid_thw`, `i.last_hidden` and
/// `i.reward`; the recorded `i.input_ids` must be ours.
pub(super) fn score(case: &ReferenceCase, model: &LazyModel) -> Computed {
    let files = Hpsv3Files { model: model.dir.clone(), processor: model.dir.clone() };
    let network = Hpsv3Network::open(&files, &model.weights)?;
    let (prompts, images): (Vec<String>, Vec<String>) = (case.argument("prompts")?, case.argument("images")?);
    ensure!(
        prompts.len() == images.len(),
        "the call has {} prompts and {} images; it needs one prompt for each image",
        prompts.len(),
        images.len()
    );
    let folder = case.path().parent().unwrap_or(Path::new(""));
    let mut computed = Vec::new();
    for (idx, (prompt, image)) in prompts.iter().zip(&images).enumerate() {
        let one = score_one(&network, prompt, &folder.join(image))
            .with_context(|| format!("scoring {image} for `{prompt}`"))?;
        let named = |(name, tensor)| (format!("{idx}.{name}"), tensor);
        let (ids, outputs) = (one.input_ids, one.outputs);
        let recorded: Vec<i64> = Vec::try_from(case.input(&format!("{idx}.input_ids"))?.flatten(0, -1))?;
        ensure!(
            recorded == ids,
            "in.{idx}.input_ids are {} tokens, but we make {} others of the prompt and its image",
            recorded.len(),
            ids.len()
        );
        computed.extend(outputs.into_iter().map(named));
    }
    Ok(computed)
}

struct Scored {
    input_ids: Vec<i64>,
    outputs: [(&'static str, Tensor); 4],
}

fn score_one(network: &Hpsv3Network, prompt: &str, image: &Path) -> anyhow::Result<Scored> {
    let patches = network.patches(&image_file::read(image)?)?;
    let text = format!(
        "<|im_start|>user\n<|vision_start|>{IMAGE_TOKEN}<|vision_end|>{prompt}{REWARD_TOKEN}<|im_end|>\n"
    );
    let texts = [network.with_image(&network.tokens(&text)?, patches.grid)];
    let grid = Tensor::from_slice(&[1, patches.grid.rows, patches.grid.columns]).unsqueeze(0);
    let pixel_values = patches.values.shallow_clone();
    let hidden = network.hidden(&texts, &[patches], TokenPositions::OnGrids)?;
    let reward = network.judge(&hidden, &texts).squeeze_dim(0);
    let [input_ids] = texts;
    Ok(Scored {
        input_ids,
        outputs: [
            ("pixel_values", pixel_values),
            ("image_grid_thw", grid),
            ("last_hidden", hidden.squeeze_dim(0)),
            ("reward", reward),
        ],
    })
}
