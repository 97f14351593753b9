//! An 8-bit RGB picture in plain memory.

use thiserror::Error;

/// A picture whose buffer does not fit its size.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("image of {width} x {height} needs {} bytes of RGB, got {got}", width * height * 3)]
pub struct ImageError {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Bytes in the buffer.
    pub got: usize,
}

/// An 8-bit RGB picture, rows from the top, three bytes a pixel, no padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height · width · 3` bytes, `[H, W, 3]`.
    pub pixels: Vec<u8>,
}

impl RgbImage {
    /// Takes a buffer as a picture.
    ///
    /// # Errors
    /// If the buffer does not hold `width · height · 3` bytes.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self, ImageError> {
        let image = Self { width, height, pixels };
        image.check()?;
        Ok(image)
    }

    /// A picture of one colour.
    pub fn filled(width: usize, height: usize, color: [u8; 3]) -> Self {
        Self { width, height, pixels: color.repeat(width * height) }
    }

    /// Says whether the buffer fits the size; the fields are public, so a caller may have broken it.
    ///
    /// # Errors
    /// If the buffer does not hold `width · height · 3` bytes.
    pub fn check(&self) -> Result<(), ImageError> {
        if self.pixels.len() == self.width * self.height * 3 {
            return Ok(());
        }
        Err(ImageError { width: self.width, height: self.height, got: self.pixels.len() })
    }

    /// The colour at column `x`, row `y`.
    ///
    /// # Panics
    /// If the position is outside the picture.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        assert!(
            x < self.width && y < self.height,
            "pixel ({x}, {y}) is outside {} x {}",
            self.width,
            self.height
        );
        let start = (y * self.width + x) * 3;
        [self.pixels[start], self.pixels[start + 1], self.pixels[start + 2]]
    }

    /// Sets the colour at column `x`, row `y`.
    ///
    /// # Panics
    /// If the position is outside the picture.
    pub fn set_pixel(&mut self, x: usize, y: usize, color: [u8; 3]) {
        assert!(
            x < self.width && y < self.height,
            "pixel ({x}, {y}) is outside {} x {}",
            self.width,
            self.height
        );
        let start = (y * self.width + x) * 3;
        self.pixels[start..start + 3].copy_from_slice(&color);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_of_wrong_length_is_refused() {
        let error = RgbImage::new(4, 2, vec![0; 23]).unwrap_err();
        assert_eq!(error.to_string(), "image of 4 x 2 needs 24 bytes of RGB, got 23");
    }

    #[test]
    fn set_pixel_is_read_back_and_leaves_its_neighbours() {
        let mut image = RgbImage::filled(3, 2, [1, 2, 3]);
        image.set_pixel(2, 1, [7, 8, 9]);
        assert_eq!(image.pixel(2, 1), [7, 8, 9]);
        assert_eq!(image.pixel(1, 1), [1, 2, 3]);
    }
}
