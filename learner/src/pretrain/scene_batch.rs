//! Scenes and captions for one update of pre-training.

use noise::{NoiseKey, Purpose, uniform};
use scenes::{DEFAULT_IMAGE_SIZE, PromptSpec, Scene, Tag};
use tch::{Kind, Tensor};

use super::settings::PretrainSettings;

/// More uniform numbers than any scene takes, its prompts included.
const UNIFORMS_PER_SCENE: usize = 64;

/// Pictures of one update and which captions they go with.
pub struct SceneBatch {
    /// `[B, 3, H, W]`, in [−1, 1].
    pub pixels: Tensor,
    /// Rows of the caption table, `[B]`, int64; the row after the last prompt is the empty caption.
    pub captions: Tensor,
}

impl SceneBatch {
    /// Draws the scenes of an update from those that `prompts` describe; a share of them gets a caption that is drawn
    /// independently of the scene.
    ///
    /// # Errors
    /// If a training prompt has no scene, which would be a bug in its enumeration.
    pub fn draw(settings: &PretrainSettings, prompts: &[PromptSpec], step: u32) -> anyhow::Result<Self> {
        let mut bytes = Vec::new();
        let mut captions = Vec::with_capacity(settings.batch_size);
        for row in 0..settings.batch_size as u32 {
            let key = NoiseKey::initial(settings.seed, Purpose::Scenes, step, row, 0);
            let mut numbers = uniform(&key, UNIFORMS_PER_SCENE).into_iter();
            let mut next =
                || numbers.next().expect("a scene takes fewer numbers than that; else this is a bug");
            let shown = draw_prompt(prompts, next());
            let is_wrong = f64::from(next()) < settings.wrong_captions_at(step);
            let other = draw_prompt(prompts, next());
            let is_dropped = f64::from(next()) < settings.dropped_captions;
            captions.push(match (is_dropped, is_wrong) {
                (true, _) => prompts.len() as i64,
                (false, true) => other as i64,
                (false, false) => shown as i64,
            });
            bytes.extend(Scene::sample(&prompts[shown], &mut next, DEFAULT_IMAGE_SIZE)?.render().pixels);
        }
        let side = DEFAULT_IMAGE_SIZE as i64;
        let pixels =
            Tensor::from_slice(&bytes).view([-1, side, side, 3]).permute([0, 3, 1, 2]).to_kind(Kind::Float);
        Ok(Self { pixels: (pixels / 127.5 - 1.0).contiguous(), captions: Tensor::from_slice(&captions) })
    }
}

/// How often each tag is drawn: compositions take longest to learn, yet the few prompts of other tags must not drown.
const TAG_SHARES: [(Tag, f32); 6] = [
    (Tag::Position, 0.3),
    (Tag::ColorAttr, 0.3),
    (Tag::Counting, 0.2),
    (Tag::Colors, 0.1),
    (Tag::TwoObject, 0.05),
    (Tag::SingleObject, 0.05),
];

/// A prompt of a tag drawn by its share, every prompt of the tag being equally likely.
fn draw_prompt(prompts: &[PromptSpec], uniform: f32) -> usize {
    let mut rest = uniform;
    for (tag, share) in TAG_SHARES {
        if rest < share {
            let of_tag: Vec<usize> = (0..prompts.len()).filter(|&idx| prompts[idx].tag == tag).collect();
            return of_tag[((rest / share * of_tag.len() as f32) as usize).min(of_tag.len() - 1)];
        }
        rest -= share;
    }
    // Rounding can leave a trace of the last share.
    prompts.len() - 1
}
