//! Images as bytes, which is what rewards and files want.

use tch::{Device, Kind, Tensor};

/// Rounds images in `[0, 1]` to bytes, three a pixel, rows from the top.
///
/// # Shapes
/// - `images`: `[B, 3, H, W]`
/// - returns: `H · W · 3` bytes for each of the B images
///
/// # Panics
/// If `images` has another number of axes or of colours.
pub fn to_rgb8(images: &Tensor) -> Vec<Vec<u8>> {
    let (_, channels, height, width) =
        images.size4().expect("decoded images have four axes; else this is a bug");
    assert_eq!(channels, 3, "decoded images have three colours");
    let bytes = (images.to_kind(Kind::Float) * 255.0).round().clamp(0.0, 255.0).to_kind(Kind::Uint8);
    let bytes = bytes.permute([0, 2, 3, 1]).contiguous().to_device(Device::Cpu); // [B, 3, H, W] → [B, H, W, 3]
    let mut pixels = vec![0; bytes.numel()];
    bytes.copy_data_u8(&mut pixels, bytes.numel());
    pixels.chunks_exact((height * width * channels) as usize).map(<[u8]>::to_vec).collect()
}
