//! From pixels to regions: nearest palette colour, smoothing, connected components.

use scenes::{BACKGROUND, Color, RgbImage};

/// Distance from a palette colour, in RGB with sides of 1, beyond which a pixel has no colour. Half-transparent paint
/// is 0.42 off at least.
const COLOR_TOLERANCE: f32 = 0.36;

/// Neighbours of eight that must agree to outvote a pixel. Six would close the gap between two objects.
const MAJORITY: usize = 7;

/// What a pixel shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Ground,
    Paint(Color),
    Unclear,
}

/// Pixels of one colour that hang together, diagonals included.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// Its colour.
    pub color: Color,
    /// Its pixels, `(x, y)`.
    pub pixels: Vec<(usize, usize)>,
    /// Mean distance of its pixels from the palette colour, in RGB with sides of 1.
    pub color_error: f32,
}

/// Splits a picture into regions of one colour each; the ground is none.
pub fn regions(image: &RgbImage) -> Vec<Region> {
    let labels = smooth(&label_pixels(image), image.width, image.height);
    let mut seen = vec![false; labels.len()];
    let mut found = Vec::new();
    for start in 0..labels.len() {
        if let Label::Paint(color) = labels[start]
            && !seen[start]
        {
            let pixels = flood(&labels, &mut seen, image.width, start);
            let total: f32 = pixels.iter().map(|&(x, y)| distance(image.pixel(x, y), color.rgb())).sum();
            let color_error = total / pixels.len() as f32;
            found.push(Region { color, pixels, color_error });
        }
    }
    found
}

fn distance(first: [u8; 3], second: [u8; 3]) -> f32 {
    (squared_distance(first, second) as f32).sqrt() / 255.0
}

fn squared_distance(first: [u8; 3], second: [u8; 3]) -> u32 {
    let channel = |at: usize| u32::from(first[at].abs_diff(second[at])).pow(2);
    channel(0) + channel(1) + channel(2)
}

fn label_pixels(image: &RgbImage) -> Vec<Label> {
    let (pixels, _) = image.pixels.as_chunks::<3>();
    pixels.iter().map(|&pixel| label(pixel)).collect()
}

fn label(pixel: [u8; 3]) -> Label {
    let mut nearest = (Label::Ground, BACKGROUND, squared_distance(pixel, BACKGROUND));
    for color in Color::ALL {
        let squared = squared_distance(pixel, color.rgb());
        if squared < nearest.2 {
            nearest = (Label::Paint(color), color.rgb(), squared);
        }
    }
    if distance(pixel, nearest.1) <= COLOR_TOLERANCE { nearest.0 } else { Label::Unclear }
}

/// Gives a pixel that differs from its surroundings their label, so that single specks and holes do not matter.
fn smooth(labels: &[Label], width: usize, height: usize) -> Vec<Label> {
    let outvoted = |index: usize| {
        let around = || neighbours(index, width, height).map(|other| labels[other]);
        if around().filter(|&other| other == labels[index]).nth(1).is_some() {
            return None;
        }
        // One vote may be lost, so a label with a majority is the first neighbour's or the second's.
        around().take(2).find(|&label| around().filter(|&other| other == label).count() >= MAJORITY)
    };
    (0..labels.len()).map(|index| outvoted(index).unwrap_or(labels[index])).collect()
}

fn neighbours(index: usize, width: usize, height: usize) -> impl Iterator<Item = usize> {
    let (x, y) = (index % width, index / width);
    let (columns, rows) = (x.saturating_sub(1)..(x + 2).min(width), y.saturating_sub(1)..(y + 2).min(height));
    rows.flat_map(move |row| columns.clone().map(move |column| row * width + column))
        .filter(move |&at| at != index)
}

fn flood(labels: &[Label], seen: &mut [bool], width: usize, start: usize) -> Vec<(usize, usize)> {
    let height = labels.len() / width;
    let mut pixels = Vec::new();
    let mut open = vec![start];
    seen[start] = true;
    while let Some(index) = open.pop() {
        pixels.push((index % width, index / width));
        for next in neighbours(index, width, height) {
            if !seen[next] && labels[next] == labels[start] {
                seen[next] = true;
                open.push(next);
            }
        }
    }
    pixels
}
