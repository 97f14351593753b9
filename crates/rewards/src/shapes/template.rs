//! Shapes as bit masks, and how well a region overlaps one.

use std::ops::{Range, RangeInclusive};

use scenes::Shape;

use super::segment::Region;

/// A mask of at most 64 columns: bit `x` of row `y`.
pub struct BitRows {
    rows: Vec<u64>,
    area: u32,
}

impl BitRows {
    /// The pixels of a region, in the picture's coordinates.
    pub fn of_region(region: &Region) -> Self {
        Self::of_pixels(region.pixels.iter().copied())
    }

    fn of_pixels(pixels: impl Iterator<Item = (usize, usize)>) -> Self {
        let mut rows = Vec::new();
        for (x, y) in pixels {
            if rows.len() <= y {
                rows.resize(y + 1, 0);
            }
            rows[y] |= 1 << x;
        }
        let area = rows.iter().map(|row: &u64| row.count_ones()).sum();
        Self { rows, area }
    }
}

/// A shape drawn in a box of a certain side.
pub struct Template {
    /// Which one it stands for.
    pub shape: Shape,
    /// Side of its box in pixels.
    pub side: usize,
    mask: BitRows,
}

/// Every shape at every side of a range.
pub fn templates(sides: RangeInclusive<usize>) -> Vec<Template> {
    let draw = |shape: Shape, side: usize| {
        let cells = (0..side * side).map(|cell| (cell % side, cell / side));
        let mask = BitRows::of_pixels(cells.filter(|&(x, y)| shape.covers(x, y, side)));
        Template { shape, side, mask }
    };
    sides.flat_map(|side| Shape::ALL.map(|shape| draw(shape, side))).collect()
}

impl Template {
    /// The best intersection over union with a region, over all places that meet its box within a pixel.
    pub fn best_overlap(&self, region: &BitRows, columns: &Range<usize>, rows: &Range<usize>) -> f32 {
        let mut most = 0;
        for top in self.places(rows) {
            for left in self.places(columns) {
                most = most.max(self.common(region, left, top));
            }
        }
        most as f32 / (region.area + self.mask.area - most) as f32
    }

    /// First pixels at which the template lies over a range of pixels: flush with either end, between, one beyond.
    fn places(&self, range: &Range<usize>) -> RangeInclusive<isize> {
        let (flush_start, flush_end) = (range.start as isize, range.end as isize - self.side as isize);
        flush_start.min(flush_end) - 1..=flush_start.max(flush_end) + 1
    }

    fn common(&self, region: &BitRows, left: isize, top: isize) -> u32 {
        let shifted = |row: u64| if left < 0 { row >> -left } else { row << left };
        let rows = self.mask.rows.iter().enumerate();
        let pairs = rows.filter_map(|(y, &row)| {
            let at = usize::try_from(top + y as isize).ok()?;
            Some(shifted(row) & region.rows.get(at)?)
        });
        pairs.map(u64::count_ones).sum()
    }
}
