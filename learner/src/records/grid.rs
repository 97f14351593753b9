//! A grid of images with a caption under each, so that a run can be watched by eye.

use image::{Rgb, RgbImage};

use crate::records::font;

/// Shortest side of an image in the grid; smaller ones are enlarged by a whole factor, without smoothing.
const SMALLEST_SIDE: u32 = 160;
const MARGIN: u32 = 8;
/// Pixels per font pixel.
const TEXT_SCALE: u32 = 2;
const LINE_HEIGHT: u32 = (font::HEIGHT + 2) * TEXT_SCALE;
/// Lines of prompt; longer prompts are cut.
const PROMPT_LINES: usize = 3;
const BACKGROUND: Rgb<u8> = Rgb([250, 250, 250]);
const INK: Rgb<u8> = Rgb([30, 30, 30]);

/// One image of the grid.
#[derive(Clone, Debug)]
pub struct Tile {
    /// Pixels in a row, and rows.
    pub size: (u32, u32),
    /// Red, green and blue of every pixel.
    pub pixels: Vec<u8>,
    /// What was asked for.
    pub prompt: String,
    /// How it was judged.
    pub score: f32,
}

/// Draws all tiles, in order, on a nearly square grid; nothing of no tiles.
///
/// # Panics
/// If the tiles are of different sizes, or a tile's pixels do not fill it.
pub fn draw(tiles: &[Tile]) -> Option<RgbImage> {
    let first = tiles.first()?;
    let factor = SMALLEST_SIDE.div_ceil(first.size.0.min(first.size.1).max(1)).max(1);
    let (width, height) = (first.size.0 * factor, first.size.1 * factor);
    let cell_height = height + LINE_HEIGHT * (PROMPT_LINES as u32 + 1) + MARGIN;
    let n_columns = (tiles.len() as f64).sqrt().ceil() as u32;
    let n_rows = (tiles.len() as u32).div_ceil(n_columns);
    let mut canvas = RgbImage::from_pixel(
        MARGIN + n_columns * (width + MARGIN),
        MARGIN + n_rows * (cell_height + MARGIN),
        BACKGROUND,
    );
    for (tile_idx, tile) in tiles.iter().enumerate() {
        assert_eq!(tile.size, first.size, "images of one model have one size");
        let (row, column) = (tile_idx as u32 / n_columns, tile_idx as u32 % n_columns);
        let corner = (MARGIN + column * (width + MARGIN), MARGIN + row * (cell_height + MARGIN));
        paste(&mut canvas, corner, tile, factor);
        caption(&mut canvas, (corner.0, corner.1 + height + MARGIN / 2), tile, width);
    }
    Some(canvas)
}

/// Encodes an image as PNG.
///
/// # Errors
/// If the encoder fails.
pub fn to_png(image: &RgbImage) -> image::ImageResult<Vec<u8>> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

fn paste(canvas: &mut RgbImage, corner: (u32, u32), tile: &Tile, factor: u32) {
    let source = RgbImage::from_raw(tile.size.0, tile.size.1, tile.pixels.clone())
        .expect("an image has three bytes per pixel; else this is a bug");
    for y in 0..tile.size.1 * factor {
        for x in 0..tile.size.0 * factor {
            canvas.put_pixel(corner.0 + x, corner.1 + y, *source.get_pixel(x / factor, y / factor));
        }
    }
}

fn caption(canvas: &mut RgbImage, corner: (u32, u32), tile: &Tile, width: u32) {
    let mut lines = wrap(&tile.prompt, width / TEXT_SCALE);
    lines.truncate(PROMPT_LINES);
    lines.push(format!("{:.3}", tile.score));
    for (line_idx, line) in lines.iter().enumerate() {
        write_line(canvas, (corner.0, corner.1 + line_idx as u32 * LINE_HEIGHT), line);
    }
}

/// Breaks a text at spaces into lines of at most `width` font pixels; a word that is longer has a line of its own.
fn wrap(text: &str, width: u32) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let longer = lines.last().map(|line| format!("{line} {word}"));
        match longer.filter(|line| font::line_width(line) <= width) {
            Some(line) => {
                lines.pop();
                lines.push(line);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// What does not fit on the canvas is cut off.
fn write_line(canvas: &mut RgbImage, corner: (u32, u32), line: &str) {
    let columns = line.chars().flat_map(|character| font::columns(character).into_iter().chain([0]));
    for (x, column) in columns.enumerate() {
        for y in (0..font::HEIGHT).filter(|y| column >> y & 1 == 1) {
            for (dx, dy) in (0..TEXT_SCALE * TEXT_SCALE).map(|i| (i % TEXT_SCALE, i / TEXT_SCALE)) {
                let (x, y) = (corner.0 + x as u32 * TEXT_SCALE + dx, corner.1 + y * TEXT_SCALE + dy);
                if let Some(pixel) = canvas.get_pixel_mut_checked(x, y) {
                    *pixel = INK;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile(colour: [u8; 3]) -> Tile {
        let prompt = "a photo of a red circle left of a blue square".to_owned();
        Tile { size: (16, 16), pixels: colour.repeat(256), prompt, score: 0.75 }
    }

    #[test]
    fn small_images_are_enlarged_and_captioned() {
        let colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255]];
        let canvas = draw(&colours.map(tile)).unwrap();
        assert_eq!(canvas.width(), MARGIN + 2 * (160 + MARGIN));
        assert_eq!(canvas.get_pixel(MARGIN, MARGIN), &Rgb([255, 0, 0]));
        assert_eq!(canvas.get_pixel(MARGIN + 159, MARGIN + 159), &Rgb([255, 0, 0]));
        assert_eq!(canvas.get_pixel(MARGIN + 160 + MARGIN, MARGIN), &Rgb([0, 255, 0]));
        let below =
            (MARGIN + 160..MARGIN + 160 + 4 * LINE_HEIGHT).flat_map(|y| (MARGIN..160).map(move |x| (x, y)));
        assert!(below.filter(|(x, y)| canvas.get_pixel(*x, *y) == &INK).count() > 200);
    }

    #[test]
    fn captions_are_broken_between_words() {
        let lines = wrap("a photo of a red circle left of a blue square", 80);
        assert!(lines.len() > 1 && lines.iter().all(|line| font::line_width(line) <= 80), "{lines:?}");
        assert_eq!(lines.join(" "), "a photo of a red circle left of a blue square");
    }

    #[test]
    fn a_grid_survives_the_encoding() {
        let canvas = draw(&[tile([1, 2, 3])]).unwrap();
        let decoded = image::load_from_memory(&to_png(&canvas).unwrap()).unwrap().into_rgb8();
        assert_eq!(decoded, canvas);
        assert!(draw(&[]).is_none(), "no file is written of nothing");
    }
}
