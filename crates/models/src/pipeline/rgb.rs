//! Images as bytes, which is what rewards and files want.

use tch::{Device, Kind, Tensor};

/// One image, rows from the top, three bytes per pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height · width · 3` bytes: red, green, blue.
    pub pixels: Vec<u8>,
}

/// Rounds images in `[0, 1]` to bytes.
///
/// # Shapes
/// - `images`: `[B, 3, H, W]`
///
/// # Panics
/// If `images` has another number of axes or of colours.
pub fn to_rgb8(images: &Tensor) -> Vec<RgbImage> {
    let (n_images, channels, height, width) =
        images.size4().expect("decoded images have four axes; else this is a bug");
    assert_eq!(channels, 3, "decoded images have three colours");
    let bytes = (images.to_kind(Kind::Float) * 255.0).round().clamp(0.0, 255.0).to_kind(Kind::Uint8);
    let bytes = bytes.permute([0, 2, 3, 1]).contiguous().to_device(Device::Cpu); // [B, 3, H, W] → [B, H, W, 3]
    let mut pixels = vec![0; bytes.numel()];
    bytes.copy_data_u8(&mut pixels, bytes.numel());
    let (width, height) = (width as usize, height as usize);
    let image = |idx| pixels[idx * height * width * 3..(idx + 1) * height * width * 3].to_vec();
    (0..n_images as usize).map(|idx| RgbImage { width, height, pixels: image(idx) }).collect()
}
