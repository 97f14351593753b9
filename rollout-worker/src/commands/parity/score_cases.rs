//! Cases of scorers: from image files and prompts to scores, by the kind of network that the folder holds.

use std::path::Path;

use anyhow::{bail, ensure};
use models::json_file;
use models::reference_case::ReferenceCase;
use models::weights::WeightOptions;
use rewards::{ClipOptions, ClipReward, NetworkDtype, PromptRecord, Resources, RgbImage, pickscore};
use serde::Deserialize;
use serde_json::Value;
use tch::Kind;

use super::{Computed, LazyModel, hpsv3_cases};
use crate::commands::image_file;

/// What `config.json` calls the network.
#[derive(Deserialize)]
struct NetworkKind {
    model_type: String,
}

/// What computes the case of a folder whose `config.json` says so.
pub(super) fn score(case: &ReferenceCase, model: &mut LazyModel) -> Computed {
    let NetworkKind { model_type } = json_file::read(&model.dir.join("config.json"))?;
    match model_type.as_str() {
        "clip" => clip(case, model),
        "qwen2_vl" => hpsv3_cases::score(case, model),
        other => bail!("its model is of type `{other}`; cases of scores are for clip and qwen2_vl"),
    }
}

/// `prompts` and `images`, files beside the case → `pixel_values`, `text_embeds`, `image_embeds` and PickScore's `score`;
/// recorded `input_ids` must be ours where `attention_mask` is not 0.
fn clip(case: &ReferenceCase, model: &LazyModel) -> Computed {
    let WeightOptions { kind, device, .. } = model.weights;
    let dtype = if kind == Kind::Float { NetworkDtype::Float32 } else { NetworkDtype::Bfloat16 };
    let options = ClipOptions { model: Some(model.dir.clone()), dtype, ..ClipOptions::default() };
    let scorer = pickscore::open(&options, &Resources { device, ..Resources::local() })?;
    let (prompts, images) = prompts_and_images(case)?;
    ensure!(!images.is_empty(), "the call has no images");
    if case.has_input("input_ids") && case.has_input("attention_mask") {
        check_token_ids(case, &scorer, &prompts)?;
    }
    let pixel_values = scorer.pixel_values(&images)?;
    let (text_embeds, image_embeds) = (scorer.text_embeds(&prompts)?, scorer.image_embeds(&pixel_values));
    let score = scorer.compare(&text_embeds, &image_embeds);
    let computed = [
        ("pixel_values", pixel_values),
        ("text_embeds", text_embeds),
        ("image_embeds", image_embeds),
        ("score", score),
    ];
    Ok(computed.map(|(name, tensor)| (name.to_owned(), tensor)).into())
}

/// The prompts and images of a case, as many of one as of the other.
fn prompts_and_images(case: &ReferenceCase) -> anyhow::Result<(Vec<PromptRecord>, Vec<RgbImage>)> {
    let (prompts, files): (Vec<String>, Vec<String>) = (case.argument("prompts")?, case.argument("images")?);
    let (n_prompts, n_images) = (prompts.len(), files.len());
    ensure!(
        n_prompts == n_images,
        "the call has {n_prompts} prompts and {n_images} images; it needs one prompt for each image"
    );
    let folder = case.path().parent().unwrap_or(Path::new(""));
    let images = files.iter().map(|file| image_file::read(&folder.join(file))).collect::<Result<_, _>>()?;
    let record = |prompt| PromptRecord { prompt, metadata: Value::Null };
    Ok((prompts.into_iter().map(record).collect(), images))
}

fn check_token_ids(
    case: &ReferenceCase,
    scorer: &ClipReward,
    prompts: &[PromptRecord],
) -> anyhow::Result<()> {
    let (ids, mask) = (case.input("input_ids")?, case.input("attention_mask")?);
    ensure!(
        ids.size() == mask.size() && ids.dim() == 2 && ids.size()[0] == prompts.len() as i64,
        "in.input_ids has shape {:?} and in.attention_mask {:?}, but there are {} prompts",
        ids.size(),
        mask.size(),
        prompts.len()
    );
    for (row, PromptRecord { prompt, .. }) in (0_i64..).zip(prompts) {
        let recorded = Vec::<i64>::try_from(ids.get(row).masked_select(&mask.get(row).ne(0)))?;
        let ours = scorer.token_ids(prompt)?;
        ensure!(recorded == ours, "in.input_ids of `{prompt}` is {recorded:?}, but we make {ours:?} of it");
    }
    Ok(())
}
