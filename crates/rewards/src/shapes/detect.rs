//! From regions to detections: which shape's template does a region fit, and how well?

use std::ops::Range;

use scenes::{Color, RgbImage, Shape, object_side};

use super::segment::{Region, regions};

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
    let mut found: Vec<Detection> = large.iter().map(|region| describe(region, side)).collect();
    found.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    if let Some(clutter) = pool(specks)
        && clutter.pixels.len() >= least
    {
        found.push(Detection { confidence: 0.0, ..describe(&clutter, side) });
    }
    found
}

fn pool(specks: Vec<Region>) -> Option<Region> {
    specks.into_iter().reduce(|mut all, speck| {
        all.pixels.extend(speck.pixels);
        all
    })
}

fn describe(region: &Region, side: usize) -> Detection {
    let columns = bounds(region.pixels.iter().map(|&(x, _)| x));
    let rows = bounds(region.pixels.iter().map(|&(_, y)| y));
    let mut fits = Shape::ALL.map(|shape| (shape, best_overlap(region, shape, side, (&columns, &rows))));
    fits.sort_by(|a, b| b.1.total_cmp(&a.1));
    let [(shape, overlap), (_, runner_up), ..] = fits;
    let confidence = ramp(overlap, OVERLAP)
        * ramp(overlap - runner_up, LEAD)
        * (1.0 - ramp(region.color_error, COLOR_ERROR));
    let middle = |range: &Range<usize>| (range.start + range.end) as f32 / 2.0;
    Detection {
        shape,
        color: region.color,
        confidence,
        center: (middle(&columns), middle(&rows)),
        extent: (columns.len() as f32, rows.len() as f32),
    }
}

fn ramp(value: f32, range: Range<f32>) -> f32 {
    ((value - range.start) / (range.end - range.start)).clamp(0.0, 1.0)
}

fn bounds(values: impl Iterator<Item = usize> + Clone) -> Range<usize> {
    let first = values.clone().min().unwrap_or(0);
    first..values.max().map_or(first, |last| last + 1)
}

/// The best intersection over union with the shape's template, over sides within a sixth of the nominal one and all
/// places that meet the region's box closely; 0 for a region so large that no template can overlap enough.
fn best_overlap(
    region: &Region,
    shape: Shape,
    nominal: usize,
    (columns, rows): (&Range<usize>, &Range<usize>),
) -> f32 {
    let slack = nominal / 6;
    let mut best = 0.0_f32;
    if region.pixels.len() as f32 * OVERLAP.start > (nominal + slack).pow(2) as f32 {
        return best;
    }
    for side in nominal - slack..=nominal + slack {
        let area = (0..side * side).filter(|&cell| shape.covers(cell % side, cell / side, side)).count();
        for top in places(rows, side) {
            for left in places(columns, side) {
                let inside = |&&(x, y): &&(usize, usize)| {
                    let (x, y) = (x as isize - left, y as isize - top);
                    let within = |value: isize| (0..side as isize).contains(&value);
                    within(x) && within(y) && shape.covers(x as usize, y as usize, side)
                };
                let common = region.pixels.iter().filter(inside).count();
                best = best.max(common as f32 / (region.pixels.len() + area - common) as f32);
            }
        }
    }
    best
}

/// First pixels at which a template of `side` lies over a box of pixels, with the excess on either end, one more around.
fn places(bounds: &Range<usize>, side: usize) -> std::ops::RangeInclusive<isize> {
    let (start, end_aligned) = (bounds.start as isize, bounds.end as isize - side as isize);
    start.min(end_aligned) - 1..=start.max(end_aligned) + 1
}
