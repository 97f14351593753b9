//! Pictures as `torchvision` preprocesses them where they are tensors: resized in float32, not rounded to bytes between.
//!
//! Letters: S side of the result in pixels.
//!
//! Source: `torchvision` 0.26, `transforms/functional.py` and `_functional_tensor.py`.

use scenes::RgbImage;
use tch::{Device, Kind, Tensor};

use super::UnsuitableSize;
use super::image_processor::{NOT_EMPTY, ProcessedSize};

/// Mean and standard deviation of each colour, black being 0 and white 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Normalization {
    pub mean: [f64; 3],
    pub std: [f64; 3],
}

impl Normalization {
    fn apply(&self, pixels: &Tensor) -> Tensor {
        let per_color = |numbers: [f64; 3]| {
            let numbers = numbers.map(|number| number as f32);
            Tensor::from_slice(&numbers).to_device(pixels.device()).view([1, 3, 1, 1])
        };
        (pixels - per_color(self.mean)) / per_color(self.std)
    }
}

/// How a picture comes to its size.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Framing {
    /// Resized by the linear filter, then the middle is cut out.
    Cropped(ProcessedSize),
    /// The longer side becomes S by the cubic filter, the rest is black.
    Padded,
}

/// Makes of a picture what the network sees.
#[derive(Debug)]
pub(crate) struct TensorImages {
    pub framing: Framing,
    /// S.
    pub side: usize,
    pub normalization: Normalization,
    pub device: Device,
}

const NOT_TOO_LONG: UnsuitableSize =
    UnsuitableSize("pictures whose longer side is at most 100 times the shorter");

impl TensorImages {
    /// Resizes a picture, frames and normalises it.
    ///
    /// # Shapes
    /// `[3, S, S]`, float32, on the device.
    ///
    /// # Errors
    /// If the picture has no pixel or is too long for its width.
    ///
    /// # Panics
    /// If the buffer does not fit the picture ([`RgbImage::check`]).
    pub fn process(&self, image: &RgbImage) -> Result<Tensor, UnsuitableSize> {
        let (width, height) = (image.width, image.height);
        let (shorter, longer) = (width.min(height), width.max(height));
        if shorter == 0 {
            return Err(NOT_EMPTY);
        }
        if longer > config::CLIP_MOST_RATIO.saturating_mul(shorter) {
            return Err(NOT_TOO_LONG);
        }
        let pixels = to_tensor(image, self.device);
        let framed = match self.framing {
            Framing::Cropped(size) => {
                let (width, height) = size.of(width, height);
                let resized =
                    pixels.internal_upsample_bilinear2d_aa([height as i64, width as i64], false, None, None);
                self.middle(&resized, width, height)
            }
            Framing::Padded => self.padded(&pixels, width, height),
        };
        Ok(self.normalization.apply(&framed).squeeze_dim(0))
    }

    /// The middle of a picture; where there are two, the one with an even number of pixels before it, by Python's rounding.
    fn middle(&self, pixels: &Tensor, width: usize, height: usize) -> Tensor {
        let side = self.side as i64;
        let before = |size: usize| ((size as i64 - side) as f64 / 2.0).round_ties_even() as i64;
        pixels.narrow(2, before(height), side).narrow(3, before(width), side)
    }

    fn padded(&self, pixels: &Tensor, width: usize, height: usize) -> Tensor {
        let scale = self.side as f64 / width.max(height) as f64;
        let scaled = |size: usize| ((size as f64 * scale).round_ties_even() as i64).max(1);
        let (new_width, new_height) = (scaled(width), scaled(height));
        let resized = pixels.internal_upsample_bicubic2d_aa([new_height, new_width], false, None, None);
        let (pad_x, pad_y) = (self.side as i64 - new_width, self.side as i64 - new_height);
        let (left, top) = (pad_x / 2, pad_y / 2);
        resized.constant_pad_nd([left, pad_x - left, top, pad_y - top])
    }
}

/// A picture between 0 and 1.
///
/// # Shapes
/// `[1, 3, height, width]`, float32.
fn to_tensor(image: &RgbImage, device: Device) -> Tensor {
    let rows = Tensor::from_slice(&image.pixels).view([1, image.height as i64, image.width as i64, 3]);
    rows.to_device(device).permute([0, 3, 1, 2]).contiguous().to_kind(Kind::Float) / 255.0
}
