//! Elements of a file into a tensor, slice by slice: beyond its target a read holds two slices, however large the tensor.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tch::{Kind, Tensor};

use crate::error::ModelError;

/// Bytes that are read at once; a multiple of every element's size.
pub(crate) const SLICE_BYTES: usize = 2 << 20;

/// Fills a flat tensor with the elements of `kind` that lie one after another from byte `start` on, converted to the
/// tensor's own element type and on its device.
///
/// # Errors
/// If the file ends too early or cannot be read.
pub(crate) fn read_slices(
    (file, path): (&File, &Path),
    start: u64,
    kind: Kind,
    target: &Tensor,
) -> Result<(), ModelError> {
    let element = kind.elt_size_in_bytes();
    let length = target.numel() * element;
    let mut bytes = vec![0; length.min(SLICE_BYTES)];
    for offset in (0..length).step_by(SLICE_BYTES) {
        let bytes = &mut bytes[..(length - offset).min(SLICE_BYTES)];
        file.read_exact_at(bytes, start + offset as u64).map_err(|error| ModelError::io(path, error))?;
        let count = (bytes.len() / element) as i64;
        let slice = Tensor::f_from_data_size(bytes, &[count], kind)
            .map_err(|error| ModelError::damaged(path, format!("elements of {kind:?}: {error}")))?;
        target.narrow(0, (offset / element) as i64, count).copy_(&slice);
    }
    Ok(())
}
