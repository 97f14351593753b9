//! Decoding of large images tile by tile: neighbouring tiles overlap by a quarter and are blended linearly there.
//!
//! A tile does not see what is outside it, so the image differs slightly from one decoded whole, and not only near the
//! seams: group norms and attention work on the tile's own statistics.
//!
//! Source: diffusers 0.38, `models/autoencoders/autoencoder_kl.py`, `tiled_decode`.

use tch::{Kind, Tensor};

use crate::ModelError;

/// The part of a tile that its neighbour covers as well, as one in so many.
const OVERLAP: i64 = 4;

/// Side in latents of a tile of `tile` pixels, where a latent is `scale` pixels wide.
///
/// # Errors
/// If neighbouring tiles would not overlap by whole latents.
pub fn tile_in_latents(tile: i64, scale: i64) -> Result<i64, ModelError> {
    if tile > 0 && tile % (OVERLAP * scale) == 0 {
        return Ok(tile / scale);
    }
    Err(ModelError::Input(format!(
        "an image cannot be decoded in tiles of {tile} pixels; take a multiple of {}, or draw images whole",
        OVERLAP * scale
    )))
}

/// Decodes latents in tiles of `tile` latents with `draw`, which makes `scale` pixels of each latent's side.
///
/// # Shapes
/// - `latents`: `[B, Z, H, W]`; `draw`: `[B, Z, h, w]` → `[B, C, h·scale, w·scale]`
/// - returns: `[B, C, H·scale, W·scale]`
///
/// # Panics
/// If `tile` is not a positive multiple of 4, or `draw` gives another shape.
pub fn decode_in_tiles(latents: &Tensor, tile: i64, scale: i64, draw: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let (_, _, height, width) = latents.size4().expect("latents have four axes; else this is a bug");
    let stride = tile - tile / OVERLAP;
    let (blended, kept) = (tile / OVERLAP * scale, stride * scale);
    let starts = |side: i64| (0..side).step_by(stride as usize);
    let mut bands = Vec::new();
    let mut above: Vec<Tensor> = Vec::new();
    for top in starts(height) {
        let band = latents.narrow(2, top, tile.min(height - top));
        let mut row: Vec<Tensor> = Vec::new();
        for (position, left) in starts(width).enumerate() {
            let image = draw(&band.narrow(3, left, tile.min(width - left)));
            if let Some(neighbour) = above.get(position) {
                blend(neighbour, &image, blended, 2);
            }
            if let Some(neighbour) = row.last() {
                blend(neighbour, &image, blended, 3);
            }
            row.push(image);
        }
        let cut = |image: &Tensor, dim: usize| kept.min(image.size()[dim]);
        let parts = row.iter().map(|image| image.narrow(2, 0, cut(image, 2)).narrow(3, 0, cut(image, 3)));
        bands.push(Tensor::cat(&parts.collect::<Vec<_>>(), 3));
        above = row;
    }
    Tensor::cat(&bands, 2)
}

/// Fades from the end of `before` into the first `extent` pixels of `tile`, in place, along `dim`.
fn blend(before: &Tensor, tile: &Tensor, extent: i64, dim: i64) {
    let length = before.size()[dim as usize];
    let extent = extent.min(length).min(tile.size()[dim as usize]);
    let share = Tensor::arange(extent, (Kind::Double, tile.device())) / extent as f64;
    let mut shape = [1; 4];
    shape[dim as usize] = extent;
    let share = share.view(shape);
    let rest = share.ones_like() - &share;
    let mut begin = tile.narrow(dim, 0, extent);
    let end = before.narrow(dim, length - extent, extent);
    begin.copy_(&(end * rest.to_kind(tile.kind()) + &begin * share.to_kind(tile.kind())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn a_decoder_that_only_looks_at_one_latent_draws_the_same_in_tiles() {
        let latents = Tensor::arange(2 * 17 * 10, (Kind::Float, Device::Cpu)).view([1, 2, 17, 10]);
        let draw = |latents: &Tensor| {
            latents.repeat_interleave_self_int(3, Some(2), None).repeat_interleave_self_int(3, Some(3), None)
        };
        let (whole, tiled) = (draw(&latents), decode_in_tiles(&latents, 8, 3, draw));
        assert!((&whole - &tiled).abs().max().double_value(&[]) < 1e-4);
        assert_eq!(whole.size(), tiled.size());
    }

    #[test]
    fn a_seam_becomes_a_ramp() {
        let latents = Tensor::zeros([1, 1, 4, 7], (Kind::Float, Device::Cpu));
        // The first tile is all 0, the second all 1.
        let draw = |latents: &Tensor| latents.ones_like() * f64::from(u8::from(latents.size()[3] < 8));
        let tiled = decode_in_tiles(&latents, 8, 1, draw);
        assert_eq!(tiled, latents.ones_like());
        let calls = std::cell::Cell::new(0.0);
        let draw = |latents: &Tensor| {
            calls.set(calls.get() + 1.0);
            latents.ones_like() * (calls.get() - 1.0)
        };
        let tiled = decode_in_tiles(&Tensor::zeros([1, 1, 4, 10], (Kind::Float, Device::Cpu)), 8, 1, draw);
        let row: Vec<f64> = Vec::try_from(tiled.get(0).get(0).get(0).to_kind(Kind::Double)).unwrap();
        assert_eq!(row, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn tiles_overlap_by_whole_latents() {
        assert_eq!(tile_in_latents(512, 8).unwrap(), 64);
        assert_eq!(tile_in_latents(32, 8).unwrap(), 4);
        for tile in [500, 16, 0, -32] {
            assert!(tile_in_latents(tile, 8).unwrap_err().to_string().contains("multiple of 32"));
        }
    }
}
