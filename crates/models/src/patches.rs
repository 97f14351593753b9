//! Square patches of an image as the features of tokens.

use tch::Tensor;

use crate::ModelError;

/// Side of the patches, in latent pixels, into which FLUX and Qwen-Image pack latents outside their networks.
pub const PACKED_SIDE: i64 = 2;

/// The patches of an image, row by row from the top; the features of each run over channel, row and column.
///
/// # Shapes
/// `[B, C, H, W]` → `[B, H/side · W/side, C · side²]`.
///
/// # Panics
/// If `side` does not divide the image's sides.
pub fn to_patches(image: &Tensor, side: i64) -> Tensor {
    let size = image.size();
    let (rows, columns) = (size[2] / side, size[3] / side);
    image.reshape([size[0], size[1], rows, side, columns, side]).permute([0, 2, 4, 1, 3, 5]).reshape([
        size[0],
        rows * columns,
        size[1] * side * side,
    ])
}

/// Undoes [`to_patches`] for images of `height` × `width` pixels.
///
/// # Shapes
/// `[B, H/side · W/side, C · side²]` → `[B, C, H, W]`.
///
/// # Panics
/// If the patches do not make up such images.
pub fn from_patches(patches: &Tensor, (height, width): (i64, i64), side: i64) -> Tensor {
    let size = patches.size();
    let channels = size[2] / (side * side);
    patches
        .reshape([size[0], height / side, width / side, channels, side, side])
        .permute([0, 3, 1, 4, 2, 5])
        .reshape([size[0], channels, height, width])
}

/// Checks that latent images of this size, in latent pixels, can be packed.
///
/// # Errors
/// If a side is not a multiple of [`PACKED_SIDE`].
pub fn check_packable(height: i64, width: i64) -> Result<(), ModelError> {
    match [height, width].into_iter().find(|side| *side < PACKED_SIDE || side % PACKED_SIDE != 0) {
        None => Ok(()),
        Some(side) => Err(ModelError::Input(format!(
            "a latent image of {height}x{width} does not fit the transformer: {side} must be a multiple of {PACKED_SIDE}"
        ))),
    }
}

/// Unpacks latents that came from elsewhere into images of `latent_shape`, channels first.
///
/// # Shapes
/// `[B, H/2 · W/2, C · 4]` → `[B, C, H, W]`.
///
/// # Errors
/// If `packed` does not make up such images.
pub fn unpack(packed: &Tensor, latent_shape: &[i64]) -> Result<Tensor, ModelError> {
    let (found, pixels) = (packed.size(), PACKED_SIDE * PACKED_SIDE);
    match *latent_shape {
        [channels, height, width]
            if found.len() == 3
                && found[1..] == [height / PACKED_SIDE * (width / PACKED_SIDE), channels * pixels] =>
        {
            Ok(from_patches(packed, (height, width), PACKED_SIDE))
        }
        _ => Err(ModelError::Input(format!(
            "the packed latents have shape {found:?}, which does not fit latents of {latent_shape:?}; expected [rows, \
             patches, {pixels} times the channels]"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn patches_run_row_by_row_and_their_features_channel_by_channel() {
        let image = Tensor::arange(2 * 4 * 6, (Kind::Float, Device::Cpu)).view([1, 2, 4, 6]);
        let patches = to_patches(&image, 2);
        assert_eq!(patches.size(), [1, 6, 8]);
        let second = Tensor::from_slice(&[2.0_f32, 3.0, 8.0, 9.0, 26.0, 27.0, 32.0, 33.0]);
        assert_eq!(patches.select(0, 0).select(0, 1), second);
        assert_eq!(from_patches(&patches, (4, 6), 2), image);
    }
}
