//! GenEval's rules: from detections and metadata to a score and to verdicts.
//!
//! Source: the sub-rewards of the GenEval reward server that Flow-GRPO trains with. Two rules are our own:
//! 1. A placed entry appends one sub-reward for its relation, 1 or 0. The server appends a 1 after the 0, so that a
//!    wrong relation costs a quarter and not a third.
//! 2. Whatever is in the picture and not in the prompt appends a 0 and is never strictly correct. GenEval's pictures
//!    have backgrounds; ours have none, and without this rule one picture with all shapes would please many prompts.

use std::collections::BTreeMap;

use scenes::{Include, PromptSpec, Relation, Shape, Tag};

use super::detect::Detection;
use crate::reward::Score;

/// Most objects of a class that count, as in GenEval.
const MAX_PER_CLASS: usize = 16;

/// Share of the boxes' sizes that a centre must be away before it counts as to one side.
const POSITION_SLACK: f32 = 0.1;

/// Confidence above which a detection counts.
#[derive(Debug, Clone)]
pub struct Thresholds {
    /// For all tags but one.
    pub default: f32,
    /// For the tag `counting`.
    pub counting: f32,
}

/// Scores the detections of one picture against one prompt.
///
/// The value is the mean of the sub-rewards, at most 1. Extras: `strict_accuracy` (exactly what was asked, nothing else),
/// `accuracy` (GenEval's verdict, which lets more objects than asked pass unless excluded), and both again per tag.
pub fn judge(detections: &[Detection], spec: &PromptSpec, thresholds: &Thresholds) -> Score {
    let threshold = if spec.tag == Tag::Counting { thresholds.counting } else { thresholds.default };
    let seen = Seen { detections, threshold };
    let (mut rewards, mut strict) = sub_rewards(&seen, spec);
    let n_foreign = seen.n_foreign(spec);
    rewards.extend(std::iter::repeat_n(0.0, n_foreign));
    strict &= n_foreign == 0 && !excluded(&seen, spec);
    let value = rewards.iter().sum::<f32>() / rewards.len() as f32;
    let verdicts = [("strict_accuracy", strict), ("accuracy", loosely_correct(&seen, spec))];
    let extras = verdicts.into_iter().flat_map(|(name, holds)| {
        let value = f32::from(u8::from(holds));
        [(name.to_owned(), value), (format!("{name}/{}", spec.tag.name()), value)]
    });
    Score { value, extras: extras.collect::<BTreeMap<_, _>>() }
}

struct Seen<'a> {
    /// The surest first.
    detections: &'a [Detection],
    threshold: f32,
}

impl Seen<'_> {
    fn of_class(&self, class: Shape) -> Vec<&Detection> {
        let sure = self.detections.iter().filter(|found| found.confidence > self.threshold);
        sure.filter(|found| found.shape == class).take(MAX_PER_CLASS).collect()
    }

    /// Sure objects of classes not asked for, and coloured regions that are no sure object.
    fn n_foreign(&self, spec: &PromptSpec) -> usize {
        let asked = |shape| spec.include.iter().any(|want| want.class == shape);
        let expected = |found: &&Detection| found.confidence > self.threshold && asked(found.shape);
        self.detections.iter().filter(|found| !expected(found)).count()
    }
}

fn sub_rewards(seen: &Seen, spec: &PromptSpec) -> (Vec<f32>, bool) {
    let mut rewards = Vec::new();
    let mut strict = true;
    let mut matched_groups: Vec<Option<Vec<&Detection>>> = Vec::new();
    for want in &spec.include {
        let found = seen.of_class(want.class);
        rewards.push(closeness(want.count, found.len()));
        let mut matched = found.len() == want.count;
        if !matched && (want.color.is_some() || want.position.is_some()) {
            rewards.push(0.0);
        }
        if matched && let Some(color) = want.color {
            let n_colored = found.iter().filter(|object| object.color == color).count();
            rewards.push(closeness(want.count, n_colored));
            matched = n_colored == want.count;
        }
        if matched && let Some((relation, target)) = want.position {
            let targets = matched_groups[target].as_deref();
            matched = targets.is_some_and(|targets| all_placed(&found, relation, targets));
            rewards.push(f32::from(u8::from(matched)));
        }
        strict &= matched;
        matched_groups.push(matched.then_some(found));
    }
    (rewards, strict)
}

fn closeness(wanted: usize, found: usize) -> f32 {
    1.0 - wanted.abs_diff(found) as f32 / wanted as f32
}

fn excluded(seen: &Seen, spec: &PromptSpec) -> bool {
    spec.exclude.iter().any(|unwanted| seen.of_class(unwanted.class).len() >= unwanted.count)
}

/// GenEval's own verdict: at least the objects asked for, the surest of them of the right colour and place.
fn loosely_correct(seen: &Seen, spec: &PromptSpec) -> bool {
    let mut groups: Vec<Vec<&Detection>> = Vec::new();
    for want in &spec.include {
        let mut found = seen.of_class(want.class);
        found.truncate(want.count);
        if !loosely_matched(want, &found, &groups) {
            return false;
        }
        groups.push(found);
    }
    !excluded(seen, spec)
}

fn loosely_matched(want: &Include, found: &[&Detection], groups: &[Vec<&Detection>]) -> bool {
    let enough = found.len() == want.count;
    let colored = want.color.is_none_or(|color| found.iter().all(|object| object.color == color));
    let placed = want.position.is_none_or(|(relation, target)| all_placed(found, relation, &groups[target]));
    enough && colored && placed
}

fn all_placed(found: &[&Detection], relation: Relation, targets: &[&Detection]) -> bool {
    found.iter().all(|object| targets.iter().all(|target| placed(object, relation, target)))
}

/// Whether `object` is to the given side of `target`: the offset of the centres, less a share of the boxes' sizes,
/// over the length of the whole offset, must point there by more than a half.
fn placed(object: &Detection, relation: Relation, target: &Detection) -> bool {
    let (dx, dy) = (object.center.0 - target.center.0, object.center.1 - target.center.1);
    let length = dx.hypot(dy);
    if length == 0.0 {
        return false;
    }
    let shorten =
        |offset: f32, sizes: f32| (offset.abs() - POSITION_SLACK * sizes).max(0.0).copysign(offset) / length;
    let across = shorten(dx, object.extent.0 + target.extent.0);
    let down = shorten(dy, object.extent.1 + target.extent.1);
    match relation {
        Relation::LeftOf => across < -0.5,
        Relation::RightOf => across > 0.5,
        Relation::Above => down < -0.5,
        Relation::Below => down > 0.5,
    }
}
