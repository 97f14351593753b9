//! Latents as cases record them: our images, or what the family's reference pipeline makes of them.
//!
//! Ours are `[B, channels, height, width]`. A pipeline that packs has `[B, patches, features]`, and where the patches lie the
//! case tells besides; an autoencoder of videos has `[B, channels, 1, height, width]`.

use tch::{Kind, Tensor};

use super::ReferenceCase;
use crate::patches::PACKED_SIDE;
use crate::{ModelError, TextToImageModel};

/// Latents of a case, and the layout in which the case has them.
pub struct RecordedLatents {
    /// `[B, …]` as [`TextToImageModel::latent_shape`].
    pub latents: Tensor,
    layout: Layout,
}

#[derive(Clone, Copy)]
enum Layout {
    Image,
    Packed,
    OneFrame,
}

impl RecordedLatents {
    /// Reads the input `name`.
    ///
    /// # Errors
    /// If there is none, it is in no known layout, or the case does not tell where its patches lie.
    pub fn read(case: &ReferenceCase, name: &str, model: &dyn TextToImageModel) -> Result<Self, ModelError> {
        let recorded = case.input(name)?;
        let size = recorded.size();
        let (layout, latents) = match size.as_slice() {
            [_, _, _, _] => (Layout::Image, recorded),
            [_, _, 1, _, _] => (Layout::OneFrame, recorded.squeeze_dim(2)),
            [_, _, features] => {
                let shape = packed_shape(case, *features, model)?;
                (Layout::Packed, model.unpack(&recorded, &shape)?)
            }
            _ => {
                let reason = format!(
                    "in.{name} has shape {size:?}, expected [rows, channels, height, width], [rows, channels, 1, height, \
                     width] or [rows, patches, features]"
                );
                return Err(ModelError::damaged(case.path(), reason));
            }
        };
        Ok(Self { latents, layout })
    }

    /// Brings a tensor shaped like the latents into the layout of the case.
    pub fn as_recorded(&self, tensor: &Tensor, model: &dyn TextToImageModel) -> Tensor {
        match self.layout {
            Layout::Image => tensor.shallow_clone(),
            Layout::Packed => model.pack(tensor),
            Layout::OneFrame => tensor.unsqueeze(2),
        }
    }
}

/// The shape of one unpacked image: from the patches' positions, their grid or the image's size, whichever the case has.
fn packed_shape(
    case: &ReferenceCase,
    features: i64,
    model: &dyn TextToImageModel,
) -> Result<Vec<i64>, ModelError> {
    if let Some((height, width)) = image_size(case)? {
        return model.latent_shape(height, width);
    }
    let (rows, columns) = if case.has_input("img_ids") {
        grid_of_positions(case, &case.input("img_ids")?)?
    } else if let Some((_, rows, columns)) = case.optional_argument::<(i64, i64, i64)>("img_shapes")? {
        (rows, columns)
    } else {
        let reason = "its latents are packed, but neither in.img_ids nor `img_shapes` or `height` and `width` of the \
                      call tell where the patches lie";
        return Err(ModelError::damaged(case.path(), reason));
    };
    Ok(vec![features / (PACKED_SIDE * PACKED_SIDE), rows * PACKED_SIDE, columns * PACKED_SIDE])
}

/// Height and width in pixels, where the call has them.
///
/// # Errors
/// If one of them is not a number.
pub fn image_size(case: &ReferenceCase) -> Result<Option<(i64, i64)>, ModelError> {
    Ok(case.optional_argument("height")?.zip(case.optional_argument("width")?))
}

/// Rows and columns of patches whose positions are `[patches, 3]`: zero, row, column.
fn grid_of_positions(case: &ReferenceCase, positions: &Tensor) -> Result<(i64, i64), ModelError> {
    let wrong = |what: String| Err(ModelError::damaged(case.path(), format!("in.img_ids {what}")));
    let size = positions.size();
    if size.len() != 2 || size[0] == 0 || size[1] != 3 {
        return wrong(format!("has shape {size:?}, expected [patches, 3]"));
    }
    let positions = positions.to_kind(Kind::Int64);
    let last = positions.select(0, size[0] - 1);
    let (rows, columns) = (last.int64_value(&[1]) + 1, last.int64_value(&[2]) + 1);
    if rows < 1 || columns < 1 || rows.checked_mul(columns) != Some(size[0]) {
        return wrong(format!("ends at row {rows} and column {columns}, but has {} patches", size[0]));
    }
    let index = Tensor::arange(size[0], (Kind::Int64, positions.device()));
    let row_by_row =
        [index.zeros_like(), index.divide_scalar_mode(columns, "floor"), index.remainder(columns)];
    match positions == Tensor::stack(&row_by_row, 1) {
        true => Ok((rows, columns)),
        false => wrong(format!("does not count {rows} rows of {columns} patches row by row")),
    }
}
