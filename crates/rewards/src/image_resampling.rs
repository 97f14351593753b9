//! Resizing of 8-bit pictures to the bit as Pillow does it: antialiased, in fixed point, along rows and along columns.
//!
//! Each output value is a weighted sum over the input pixels below the filter, which widens with the output pixel where
//! the picture shrinks. Either pass rounds to 8 bits and is left out where its size stays.
//!
//! Source: `PIL.Image.resize` of Pillow 13, `src/libImaging/Resample.c`.

use std::borrow::Cow;
use std::ops::Range;

use scenes::RgbImage;

const CHANNELS: usize = 3;
/// Bits behind the point of a coefficient: 32 less 8 of a pixel, the sign and one to spare for overshoot.
const PRECISION_BITS: u32 = 22;
/// A half in fixed point, so that the shift afterwards rounds.
const HALF: i32 = 1 << (PRECISION_BITS - 1);
/// Reach of the cubic filter on either side, in pixels of the coarser picture.
const CUBIC_SUPPORT: f64 = 2.0;

/// A rectangle of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Columns before it.
    pub left: usize,
    /// Rows before it.
    pub top: usize,
    /// Its columns.
    pub width: usize,
    /// Its rows.
    pub height: usize,
}

/// Resizes a picture by the cubic filter (a = −½): what `image.resize((width, height), Image.BICUBIC)` gives.
///
/// # Panics
/// If a size is 0, of the picture or asked for, or the buffer does not fit the picture ([`RgbImage::check`]).
pub fn resize_bicubic(image: &RgbImage, width: usize, height: usize) -> RgbImage {
    resize_bicubic_area(image, (width, height), Area { left: 0, top: 0, width, height })
}

/// An area of what [`resize_bicubic`] makes at the given width and height, at the cost of that area.
///
/// # Panics
/// As [`resize_bicubic`], and if the area is empty or leaves the resized picture.
pub fn resize_bicubic_area(image: &RgbImage, (width, height): (usize, usize), area: Area) -> RgbImage {
    assert!(image.width > 0 && image.height > 0, "image of {} x {} is empty", image.width, image.height);
    let Area { left, top, width: area_width, height: area_height } = area;
    let (right, bottom) = (left + area_width, top + area_height);
    assert!(
        area_width > 0 && area_height > 0 && right <= width && bottom <= height,
        "{area:?} is not inside of {width} x {height}"
    );
    assert_eq!(image.check(), Ok(()));
    let columns = Windows::new(image.width, width, left..right);
    let rows = Windows::new(image.height, height, top..bottom);
    match columns_come_first(image, width, height) {
        true => along_rows(&along_columns(Cow::Borrowed(image), &rows, 0), &columns).into_owned(),
        false => {
            let needed = rows.inputs();
            along_columns(along_rows(&rows_of(image, &needed), &columns), &rows, needed.start)
        }
    }
}

/// Some rows of a picture.
fn rows_of<'a>(image: &'a RgbImage, rows: &Range<usize>) -> Cow<'a, RgbImage> {
    if *rows == (0..image.height) {
        return Cow::Borrowed(image);
    }
    let stride = image.width * CHANNELS;
    let pixels = image.pixels[rows.start * stride..rows.end * stride].to_vec();
    Cow::Owned(RgbImage { width: image.width, height: rows.len(), pixels })
}

/// Pillow to version 12 always began with the rows; since then a picture that loses far more rows than columns is an
/// exception, and rounds differently.
fn columns_come_first(image: &RgbImage, width: usize, height: usize) -> bool {
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    lost(image.height, height) > (2 * lost(image.width, width)).max(0)
}

/// The input positions that one output position is made of, and how much of each.
struct Window<'a> {
    start: usize,
    weights: &'a [i32],
}

/// The windows of some output positions along one axis.
struct Windows {
    starts_and_lengths: Vec<(usize, usize)>,
    weights: Vec<i32>,
    /// Whether each output is its input.
    is_identity: bool,
}

impl Windows {
    fn new(input_size: usize, output_size: usize, positions: Range<usize>) -> Self {
        let scale = input_size as f64 / output_size as f64;
        let is_identity = positions == (0..input_size) && input_size == output_size;
        let starts_and_lengths = Vec::with_capacity(positions.len());
        let mut windows = Self { starts_and_lengths, weights: Vec::new(), is_identity };
        for position in positions {
            windows.push((position as f64 + 0.5) * scale, scale.max(1.0), input_size);
        }
        windows
    }

    /// The input positions that are needed, for windows are in order.
    fn inputs(&self) -> Range<usize> {
        let first = self.starts_and_lengths.first().map_or(0, |(start, _)| *start);
        first..self.starts_and_lengths.last().map_or(0, |(start, length)| start + length)
    }

    /// Adds the window around `center`, whose filter is `stretch` times as wide as the unit one.
    fn push(&mut self, center: f64, stretch: f64, input_size: usize) {
        let support = CUBIC_SUPPORT * stretch;
        // The casts cut towards zero, and negative numbers to 0, as the reference does.
        let start = (center - support + 0.5) as usize;
        let end = ((center + support + 0.5) as usize).min(input_size);
        // The reference multiplies by the reciprocal; a division would round otherwise.
        let shrink = 1.0 / stretch;
        let mut raw: Vec<f64> =
            (start..end).map(|position| cubic((position as f64 - center + 0.5) * shrink)).collect();
        let total: f64 = raw.iter().sum();
        if total != 0.0 {
            raw.iter_mut().for_each(|weight| *weight /= total);
        }
        self.starts_and_lengths.push((start, raw.len()));
        self.weights.extend(raw.into_iter().map(fixed_point));
    }

    fn iter(&self) -> impl Iterator<Item = Window<'_>> {
        let mut rest = self.weights.as_slice();
        self.starts_and_lengths.iter().map(move |&(start, length)| {
            let (weights, after) = rest.split_at(length);
            rest = after;
            Window { start, weights }
        })
    }
}

fn cubic(distance: f64) -> f64 {
    const A: f64 = -0.5;
    let x = distance.abs();
    match x {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

/// Rounds half away from zero.
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION_BITS);
    (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn along_rows<'a>(image: &'a RgbImage, windows: &Windows) -> Cow<'a, RgbImage> {
    if windows.is_identity {
        return Cow::Borrowed(image);
    }
    let width = windows.starts_and_lengths.len();
    let mut pixels = Vec::with_capacity(width * image.height * CHANNELS);
    for row in image.pixels.chunks_exact(image.width * CHANNELS) {
        for Window { start, weights } in windows.iter() {
            let inputs = row[start * CHANNELS..].chunks_exact(CHANNELS);
            let mut sums = [HALF; CHANNELS];
            for (pixel, weight) in inputs.zip(weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            pixels.extend(sums.map(to_byte));
        }
    }
    Cow::Owned(RgbImage { width, height: image.height, pixels })
}

/// `first_row` is the windows' number of the picture's first row.
fn along_columns(image: Cow<RgbImage>, windows: &Windows, first_row: usize) -> RgbImage {
    if windows.is_identity {
        return image.into_owned();
    }
    let stride = image.width * CHANNELS;
    let height = windows.starts_and_lengths.len();
    let mut pixels = Vec::with_capacity(stride * height);
    let mut sums = vec![HALF; stride];
    for Window { start, weights } in windows.iter() {
        sums.fill(HALF);
        let rows = image.pixels[(start - first_row) * stride..].chunks_exact(stride);
        for (row, weight) in rows.zip(weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        pixels.extend(sums.iter().copied().map(to_byte));
    }
    RgbImage { width: image.width, height, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uniform_picture_stays_uniform() {
        for (width, height) in [(1, 1), (5, 9), (64, 3)] {
            let resized = resize_bicubic(&RgbImage::filled(7, 6, [255, 0, 129]), width, height);
            assert_eq!(resized, RgbImage::filled(width, height, [255, 0, 129]));
        }
    }

    #[test]
    fn an_area_is_that_of_the_whole() {
        let pixels = (0..40 * 30 * 3).map(|i| (i * i % 251) as u8).collect();
        let image = RgbImage::new(40, 30, pixels).expect("full buffer");
        // Both orders of the passes, one pass alone, and none.
        for (width, height) in [(20, 15), (64, 9), (80, 61), (40, 11), (17, 30), (40, 30)] {
            let whole = resize_bicubic(&image, width, height);
            let area = Area { left: 3, top: 2, width: width - 9, height: height - 5 };
            let part = resize_bicubic_area(&image, (width, height), area);
            for y in 0..area.height {
                for x in 0..area.width {
                    assert_eq!(part.pixel(x, y), whole.pixel(x + 3, y + 2), "{width} x {height}: {x}, {y}");
                }
            }
        }
    }

    #[test]
    fn an_area_of_a_picture_too_large_to_be_made_is_made() {
        let line = RgbImage::filled(1, 4_000_000, [1, 2, 3]);
        let area = Area { left: 100, top: 400_000_000, width: 20, height: 20 };
        let part = resize_bicubic_area(&line, (224, 896_000_000), area);
        assert_eq!(part, RgbImage::filled(20, 20, [1, 2, 3]));
    }

    #[test]
    fn weights_of_a_window_sum_to_one_up_to_rounding() {
        for (input_size, output_size) in [(1024, 224), (224, 1024), (1, 5), (5, 1), (17, 13)] {
            let windows = Windows::new(input_size, output_size, 0..output_size);
            assert_eq!(windows.iter().count(), output_size);
            for window in windows.iter() {
                let sum: i32 = window.weights.iter().sum();
                assert!((sum - (1 << PRECISION_BITS)).abs() <= window.weights.len() as i32, "{sum}");
                assert!(window.start + window.weights.len() <= input_size);
            }
        }
    }
}
