//! From regions to detections: which shape's template does a region fit, and how well?

use std::ops::Range;

use scenes::{Color, RgbImage, Shape, object_side};

use super::segment::{Region, regions};
use super::template::{BitRows, Template, templates};

/// Overlap (intersection over union) with a template at which confidence starts, and at which it is full.
const OVERLAP: Range<f32> = 0.6..0.85;

/// Lead over the best template of another shape at which confidence starts, and at which it is full.
const LEAD: Range<f32> = 0.0..0.1;

/// Mean colour error at which confidence is full, and at which it is lost.
const COLOR_ERROR: Range<f32> = 0.18..0.36;

/// A region that could be an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// The shape that it fits best.
    pub shape: Shape,
    /// Its colour.
    pub color: Color,
    /// How sure that is, 0 to 1.
    pub confidence: f32,
    /// Centre of its box, in pixels from the left and from the top.
    pub center: (f32, f32),
    /// Width and height of its box in pixels.
    pub extent: (f32, f32),
}

/// Finds the objects of a square picture, the surest first.
///
/// Everything that has a colour is listed, with confidence 0 where it fits no shape; specks are left out one by one, but
/// together they are listed once if they have as many pixels as a quarter of an object's box.
pub fn detect(image: &RgbImage) -> Vec<Detection> {
    let side = object_side(image.width.min(image.height));
    let least = side * side / 4;
    let (large, specks): (Vec<Region>, Vec<Region>) =
        regions(image).into_iter().partition(|region| region.pixels.len() >= least);
    let templates = templates(side - slack(side)..=largest_box(side));
    let mut found: Vec<Detection> = large.iter().map(|region| describe(region, &templates, side)).collect();
    found.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    if let Some(clutter) = pool(specks)
        && clutter.pixels.len() >= least
    {
        found.push(Detection { confidence: 0.0, ..describe(&clutter, &templates, side) });
    }
    found
}

fn pool(specks: Vec<Region>) -> Option<Region> {
    specks.into_iter().reduce(|mut all, speck| {
        all.pixels.extend(speck.pixels);
        all
    })
}

fn describe(region: &Region, templates: &[Template], nominal: usize) -> Detection {
    let columns = bounds(region.pixels.iter().map(|&(x, _)| x));
    let rows = bounds(region.pixels.iter().map(|&(_, y)| y));
    let middle = |range: &Range<usize>| (range.start + range.end) as f32 / 2.0;
    let (shape, confidence) = classify(region, (&columns, &rows), templates, nominal);
    Detection {
        shape,
        color: region.color,
        confidence: confidence * (1.0 - ramp(region.color_error, COLOR_ERROR)),
        center: (middle(&columns), middle(&rows)),
        extent: (columns.len() as f32, rows.len() as f32),
    }
}

/// The shape whose template of an allowed side fits best, less sure the better another shape fits at any side.
fn classify(
    region: &Region,
    (columns, rows): (&Range<usize>, &Range<usize>),
    templates: &[Template],
    nominal: usize,
) -> (Shape, f32) {
    let too_large = columns.len().max(rows.len()) > largest_box(nominal);
    let mut best = (Shape::ALL[0], 0.0);
    if too_large {
        return best;
    }
    let bits = BitRows::of_region(region);
    let fits: Vec<(Shape, usize, f32)> = templates
        .iter()
        .map(|template| (template.shape, template.side, template.best_overlap(&bits, columns, rows)))
        .collect();
    for &(shape, side, overlap) in &fits {
        if side <= nominal + slack(nominal) && overlap > best.1 {
            best = (shape, overlap);
        }
    }
    let (shape, overlap) = best;
    let runner_up = fits.iter().filter(|fit| fit.0 != shape).fold(0.0_f32, |most, fit| most.max(fit.2));
    (shape, ramp(overlap, OVERLAP) * ramp(overlap - runner_up, LEAD))
}

/// How much an object's side may differ from the nominal one.
fn slack(nominal: usize) -> usize {
    nominal / 6
}

/// Side of the largest box that may hold an object: one pixel more than the largest object, for a stray pixel.
fn largest_box(nominal: usize) -> usize {
    nominal + slack(nominal) + 1
}

fn ramp(value: f32, range: Range<f32>) -> f32 {
    ((value - range.start) / (range.end - range.start)).clamp(0.0, 1.0)
}

fn bounds(values: impl Iterator<Item = usize> + Clone) -> Range<usize> {
    let first = values.clone().min().unwrap_or(0);
    first..values.max().map_or(first, |last| last + 1)
}
