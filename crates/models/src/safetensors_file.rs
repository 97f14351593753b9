//! Safetensors files, read one tensor at a time and written atomically with the same bytes every time.
//!
//! Tensors are read at their positions, slice by slice, into memory that the caller has. Mapping the file would save a
//! copy, but is sound only as long as nobody truncates the file, so it needs `unsafe`; and what is read is kept by the
//! page cache either way.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Device, Kind, Tensor};

use crate::error::ModelError;
use crate::file_slices::read_slices;
use crate::stand_in;

/// Bytes of the header's length, which a file starts with.
const LENGTH_BYTES: u64 = 8;

/// An open safetensors file: its header in memory, its tensors on disk.
pub struct SafetensorsFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    data_start: u64,
}

impl SafetensorsFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// If the file cannot be read, is truncated, or has a malformed header.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |e| ModelError::io(path, e);
        let mut file = File::open(path).map_err(io)?;
        let file_length = file.metadata().map_err(io)?.len();
        let too_short =
            || ModelError::damaged(path, format!("truncated at {file_length} bytes, inside its header"));
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut length).map_err(|_| too_short())?;
        let header_length = u64::from_le_bytes(length);
        if header_length > file_length.saturating_sub(LENGTH_BYTES) {
            return Err(match stand_in::instead_of_safetensors(&length) {
                Some((found, remedy)) if stand_in::recognised(path).is_none() => {
                    ModelError::foreign(path, found, remedy)
                }
                _ => too_short(),
            });
        }
        let mut header = vec![0; header_length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let header = parse_header(path, &header)?;
        let data_start = LENGTH_BYTES + header_length;
        let expected = data_start + header.data_len() as u64;
        if expected != file_length {
            let reason = format!("it has {file_length} bytes but its header describes {expected}");
            return Err(ModelError::damaged(path, reason));
        }
        Ok(Self { path: path.to_owned(), file, header, data_start })
    }

    /// Names of all tensors, in the order in which they are stored.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Shape of a tensor, or `None` if the file has no tensor of that name.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.header.info(name).map(|info| info.shape.iter().map(|&n| n as i64).collect())
    }

    /// The free-form string map of the header.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// Reads one tensor, in the element type in which it is stored, onto the CPU.
    ///
    /// # Errors
    /// If there is no such tensor, its element type is none that is read here, or reading fails.
    pub fn read(&self, name: &str) -> Result<Tensor, ModelError> {
        let (info, kind) = self.info(name)?;
        let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        let tensor = Tensor::empty(&shape, (kind, Device::Cpu));
        self.read_into(name, &tensor)?;
        Ok(tensor)
    }

    /// Reads one tensor into a contiguous one of as many elements, converted to its element type and on its device.
    ///
    /// # Errors
    /// As [`Self::read`], and if the numbers of elements differ.
    pub fn read_into(&self, name: &str, target: &Tensor) -> Result<(), ModelError> {
        let (info, kind) = self.info(name)?;
        let (start, end) = info.data_offsets;
        let (element, length) = (kind.elt_size_in_bytes(), end - start);
        if target.numel() * element != length {
            let reason = format!("tensor {name} has {length} bytes, not {} elements", target.numel());
            return Err(ModelError::damaged(&self.path, reason));
        }
        let position = self.data_start + start as u64;
        read_slices((&self.file, &self.path), position, kind, &target.view(-1))
    }

    /// Element type of a tensor.
    ///
    /// # Errors
    /// If there is no such tensor, or its element type is none that is read here, such as one of 8 bits.
    pub fn kind(&self, name: &str) -> Result<Kind, ModelError> {
        self.info(name).map(|(_, kind)| kind)
    }

    fn info(&self, name: &str) -> Result<(&TensorInfo, Kind), ModelError> {
        let absent = || ModelError::damaged(&self.path, format!("no tensor {name}"));
        let info = self.header.info(name).ok_or_else(absent)?;
        let kind = kind_of(info.dtype)
            .ok_or_else(|| unread_element_type(&self.path, name, &format!("{:?}", info.dtype)))?;
        Ok((info, kind))
    }
}

/// Says that a tensor's elements are of a type that networks here are not made of.
pub(crate) fn unread_element_type(path: &Path, tensor: &str, element_type: &str) -> ModelError {
    ModelError::foreign(
        path,
        format!("holds tensor {tensor} in element type {element_type}, which is not supported"),
        "take the model's weights in float32, bfloat16 or float16; `model.variant` names another set of files",
    )
}

fn parse_header(path: &Path, header: &[u8]) -> Result<Metadata, ModelError> {
    let header: Metadata =
        serde_json::from_slice(header).map_err(|error| match strange_element_type(header) {
            Some((tensor, element_type)) => unread_element_type(path, &tensor, &element_type),
            None => ModelError::damaged(path, format!("malformed header: {error}")),
        })?;
    for (name, info) in header.tensors() {
        if !has_strides(&info.shape) {
            let reason = format!("tensor {name} has the shape {:?}, which no tensor can have", info.shape);
            return Err(ModelError::damaged(path, reason));
        }
    }
    Ok(header)
}

/// Whether libtorch has numbers for sizes and strides of this shape. The format lets a shape without elements have any sizes
/// beside its 0.
fn has_strides(shape: &[usize]) -> bool {
    let mut sizes = shape.iter().filter(|size| **size > 0);
    sizes.try_fold(1_i64, |stride, size| stride.checked_mul(i64::try_from(*size).ok()?)).is_some()
}

/// The first tensor of a header whose element type has a name that the format does not know yet, and that name.
fn strange_element_type(header: &[u8]) -> Option<(String, String)> {
    let tensors: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    tensors.into_iter().find_map(|(tensor, info)| {
        let element_type = info.get("dtype")?;
        let is_known = serde_json::from_value::<Dtype>(element_type.clone()).is_ok();
        (!is_known).then(|| (tensor, element_type.as_str().unwrap_or_default().to_owned()))
    })
}

/// Tensors with their names, and the header's free-form string map.
pub type NamedTensors = (Vec<(String, Tensor)>, BTreeMap<String, String>);

/// Reads every tensor of a file in its stored element type, sorted by name, and the header's string map.
///
/// # Errors
/// As [`SafetensorsFile::open`] and [`SafetensorsFile::read`].
pub fn read_all(path: &Path) -> Result<NamedTensors, ModelError> {
    let file = SafetensorsFile::open(path)?;
    let mut names = file.names();
    names.sort();
    let tensors = names
        .into_iter()
        .map(|name| Ok((name.clone(), file.read(&name)?)))
        .collect::<Result<_, ModelError>>()?;
    Ok((tensors, file.metadata()))
}

/// Writes tensors to a file: under a temporary name first, synced, then renamed, so that no reader sees half a file.
///
/// Equal tensors and metadata give equal bytes, whatever the order in which they are handed over.
///
/// # Errors
/// If the file system refuses, a tensor's element type has no name in the format, or two tensors share a name.
pub fn write(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &HashMap<String, String>,
) -> Result<(), ModelError> {
    let (header, order) = layout(path, tensors, metadata)?;
    write_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        order
            .iter()
            .try_for_each(|&i| out.write_all(&bytes_of(&tensors[i].1).map_err(std::io::Error::other)?))
    })
}

/// Writes a file under a temporary name, syncs it, and renames it into place.
///
/// # Errors
/// If the file system refuses; a file that was there before is then unchanged.
pub fn write_atomically(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<(), ModelError> {
    let temporary = temporary_name(path);
    let write = || {
        let mut out = BufWriter::new(File::create(&temporary)?);
        fill(&mut out)?;
        out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        std::fs::rename(&temporary, path)?;
        sync_folder(path)
    };
    write().map_err(|e| {
        // The error that matters is the first one; a left-over temporary file is overwritten next time.
        let _ = std::fs::remove_file(&temporary);
        ModelError::io(path, e)
    })
}

fn layout(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &HashMap<String, String>,
) -> Result<(Vec<u8>, Vec<usize>), ModelError> {
    let mut order = Vec::with_capacity(tensors.len());
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        let dtype = dtype_of(tensor.kind()).ok_or_else(|| {
            ModelError::Input(format!("cannot store {name}: element type {:?}", tensor.kind()))
        })?;
        order.push((std::cmp::Reverse(dtype), name.as_str(), i));
    }
    order.sort();
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let sorted: BTreeMap<_, _> = metadata.iter().collect();
        header.insert("__metadata__".into(), serde_json::json!(sorted));
    }
    let mut offset = 0;
    for &(std::cmp::Reverse(dtype), name, i) in &order {
        let shape: Vec<usize> = tensors[i].1.size().iter().map(|&n| n as usize).collect();
        let end = offset + shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let info = TensorInfo { dtype, shape, data_offsets: (offset, end) };
        if header.insert(name.to_owned(), serde_json::json!(info)).is_some() {
            return Err(ModelError::Input(format!(
                "cannot write {}: two tensors are named {name}",
                path.display()
            )));
        }
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    Ok((header, order.into_iter().map(|(_, _, i)| i).collect()))
}

/// The elements of a tensor as little-endian bytes in row-major order.
fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>, tch::TchError> {
    let tensor = tensor.detach().f_to_device(tch::Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

fn sync_folder(path: &Path) -> std::io::Result<()> {
    use std::io::ErrorKind::{InvalidInput, Unsupported};
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(()) };
    match File::open(folder)?.sync_all() {
        // Several network and FUSE file systems cannot flush directories.
        Err(error) if matches!(error.kind(), InvalidInput | Unsupported) => Ok(()),
        flushed => flushed,
    }
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::BOOL => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        _ => return None,
    })
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    [
        Dtype::BOOL,
        Dtype::U8,
        Dtype::I8,
        Dtype::I16,
        Dtype::I32,
        Dtype::I64,
        Dtype::F16,
        Dtype::BF16,
        Dtype::F32,
        Dtype::F64,
    ]
    .into_iter()
    .find(|&dtype| kind_of(dtype) == Some(kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file_slices::SLICE_BYTES;

    fn example() -> Vec<(String, Tensor)> {
        let a = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]);
        vec![
            ("b".into(), a.transpose(0, 1)),
            ("a".into(), a.to_kind(Kind::BFloat16)),
            ("ids".into(), Tensor::from_slice(&[1_i64, 2])),
        ]
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        write(&path, &example(), &metadata).unwrap();
        let (tensors, read_metadata) = read_all(&path).unwrap();
        assert_eq!(tensors.iter().map(|t| t.0.as_str()).collect::<Vec<_>>(), ["a", "b", "ids"]);
        assert_eq!(tensors[0].1.kind(), Kind::BFloat16);
        assert_eq!(tensors[1].1, example()[0].1.contiguous());
        assert_eq!(read_metadata["format"], "pt");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn bytes_do_not_depend_on_the_order_of_tensors_or_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("1"), folder.path().join("2"));
        let keys = ["format", "b", "c", "d", "e"].map(|k| (k.to_owned(), "v".to_owned()));
        write(&one, &example(), &HashMap::from(keys.clone())).unwrap();
        let mut reversed = example();
        reversed.reverse();
        write(&two, &reversed, &keys.into_iter().rev().collect()).unwrap();
        assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
    }

    #[test]
    fn a_tensor_of_many_slices_is_converted_into_a_part_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let length = (2 * SLICE_BYTES / 4 + 3) as i64;
        let stored = Tensor::arange(length, (Kind::Float, Device::Cpu)).remainder(251.0);
        write(&path, &[("x".to_owned(), stored.shallow_clone())], &HashMap::new()).unwrap();
        let target = Tensor::zeros([2, length], (Kind::BFloat16, Device::Cpu));
        let file = SafetensorsFile::open(&path).unwrap();
        file.read_into("x", &target.narrow(0, 1, 1)).unwrap();
        assert_eq!(target.select(0, 1).to_kind(Kind::Float), stored);
        assert_eq!(target.select(0, 0).abs().max().double_value(&[]), 0.0);
        assert!(file.read_into("x", &target).is_err());
    }

    #[test]
    fn a_truncated_file_is_called_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        write(&path, &example(), &HashMap::new()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, 5, 20, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(
                matches!(SafetensorsFile::open(&path), Err(ModelError::Damaged { .. })),
                "{length} bytes"
            );
        }
    }
    #[test]
    fn a_shape_that_no_tensor_can_have_is_refused_where_it_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let open = |shape: &str| {
            let header = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#);
            let length = (header.len() as u64).to_le_bytes();
            std::fs::write(&path, [&length[..], header.as_bytes()].concat()).unwrap();
            SafetensorsFile::open(&path)
        };
        for shape in ["[0,9223372036854775808]", "[0,4611686018427387904,4611686018427387904]"] {
            let error = open(shape).err().expect("refused").to_string();
            assert!(error.contains("tensor a has the shape [0, "), "{error}");
        }
        assert_eq!(open("[0,7]").unwrap().read("a").unwrap().size(), [0, 7]);
    }
}
