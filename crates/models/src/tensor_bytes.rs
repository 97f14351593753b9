//! Tensors as they cross the wire: announced by name, shape and element type, then row-major little-endian bytes.

use proto::{ElementType, TensorInfo};
use tch::{Kind, Tensor};

use crate::error::ModelError;
use crate::pipeline::Conditioning;

// libtorch hands out memory as it lies there.
const _: () =
    assert!(cfg!(target_endian = "little"), "the wire is little-endian, and so must the machine be");

/// Element types that both sides know.
const ELEMENT_TYPES: [(ElementType, Kind); 4] = [
    (ElementType::F32, Kind::Float),
    (ElementType::Bf16, Kind::BFloat16),
    (ElementType::U8, Kind::Uint8),
    (ElementType::I64, Kind::Int64),
];

/// What is said of a tensor before its bytes follow.
///
/// # Errors
/// If the wire has no name for the tensor's element type.
pub fn tensor_info(name: impl Into<String>, tensor: &Tensor) -> Result<TensorInfo, ModelError> {
    let (name, kind) = (name.into(), tensor.kind());
    let element_type = ELEMENT_TYPES.iter().find(|(_, known)| *known == kind).map(|(element, _)| *element);
    let element_type = element_type.ok_or_else(|| {
        ModelError::Input(format!(
            "tensor {name} has elements of type {kind:?}, which the wire has no name for"
        ))
    })?;
    Ok(TensorInfo { name, shape: tensor.size(), element_type: element_type.into() })
}

/// The bytes of a tensor on any device.
pub fn to_bytes(tensor: &Tensor) -> Vec<u8> {
    let n_elements = tensor.numel();
    let mut bytes = vec![0; n_elements * tensor.kind().elt_size_in_bytes()];
    tensor.contiguous().copy_data_u8(&mut bytes, n_elements);
    bytes
}

/// How many bytes an announced tensor has.
///
/// # Errors
/// If its element type is unknown, or its shape has a negative or an absurd size.
pub fn byte_length(info: &TensorInfo) -> Result<usize, ModelError> {
    let element_size = kind_of(info)?.elt_size_in_bytes();
    let multiply = |length: usize, size: &i64| length.checked_mul(usize::try_from(*size).ok()?);
    info.shape.iter().try_fold(element_size, multiply).ok_or_else(|| {
        ModelError::Input(format!(
            "tensor {} is announced with the impossible shape {:?}",
            info.name, info.shape
        ))
    })
}

/// Rebuilds an announced tensor, on the CPU.
///
/// # Errors
/// If there are more or fewer bytes than announced, or as [`byte_length`].
pub fn from_bytes(info: &TensorInfo, bytes: &[u8]) -> Result<Tensor, ModelError> {
    let expected = byte_length(info)?;
    if bytes.len() != expected {
        let TensorInfo { name, shape, .. } = info;
        return Err(ModelError::Input(format!(
            "tensor {name} of shape {shape:?} has {} bytes, but {expected} are expected",
            bytes.len()
        )));
    }
    Tensor::f_from_data_size(bytes, &info.shape, kind_of(info)?)
        .map_err(|e| ModelError::Input(format!("tensor {}: {e}", info.name)))
}

/// Rebuilds all announced tensors from their concatenated bytes.
///
/// # Errors
/// If the bytes do not add up, or as [`from_bytes`].
pub fn split(infos: &[TensorInfo], bytes: &[u8]) -> Result<Vec<(String, Tensor)>, ModelError> {
    let mut rest = bytes;
    let mut tensors = Vec::with_capacity(infos.len());
    for info in infos {
        let length = byte_length(info)?;
        let (own, others) = rest.split_at_checked(length).ok_or_else(|| {
            ModelError::Input(format!(
                "tensor {} needs {length} bytes, but {} are left",
                info.name,
                rest.len()
            ))
        })?;
        tensors.push((info.name.clone(), from_bytes(info, own)?));
        rest = others;
    }
    match rest.len() {
        0 => Ok(tensors),
        left => Err(ModelError::Input(format!("{left} bytes follow the last announced tensor"))),
    }
}

fn kind_of(info: &TensorInfo) -> Result<Kind, ModelError> {
    let kind =
        ELEMENT_TYPES.iter().find(|(element, _)| *element == info.element_type()).map(|(_, kind)| *kind);
    kind.ok_or_else(|| {
        ModelError::Input(format!(
            "tensor {} is announced with unknown element type {}",
            info.name, info.element_type
        ))
    })
}

impl Conditioning {
    /// The name of an embedding on the wire: BLAKE3 over name, element type, shape and bytes of each of its tensors.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for (name, tensor) in self.tensors() {
            let shape = tensor.size();
            hasher.update(format!("{name} {:?} {shape:?}\n", tensor.kind()).as_bytes());
            hasher.update(&to_bytes(tensor));
        }
        hasher.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn numbers() -> Tensor {
        Tensor::from_slice(&[1.0_f32, -2.5, 3.25, 0.0, f32::MIN_POSITIVE, 1e30]).view([2, 3])
    }

    #[test]
    fn tensors_of_every_kind_survive_the_wire() {
        for (_, kind) in ELEMENT_TYPES {
            let tensor = numbers().clamp(0.0, 200.0).to_kind(kind);
            let info = tensor_info("t", &tensor).unwrap();
            assert_eq!(from_bytes(&info, &to_bytes(&tensor)).unwrap(), tensor, "{kind:?}");
        }
    }

    #[test]
    fn bytes_are_row_major_and_little_endian_whatever_the_strides() {
        let transposed = numbers().transpose(0, 1);
        assert_eq!(to_bytes(&transposed)[..8], [1.0_f32.to_le_bytes(), 0.0_f32.to_le_bytes()].concat());
    }

    #[test]
    fn concatenated_tensors_are_split_as_announced() {
        let tensors =
            [numbers(), Tensor::from_slice(&[7_i64]), Tensor::zeros([0, 4], (Kind::Float, Device::Cpu))];
        let infos: Vec<_> =
            tensors.iter().enumerate().map(|(i, t)| tensor_info(i.to_string(), t).unwrap()).collect();
        let bytes = tensors.iter().flat_map(to_bytes).collect::<Vec<_>>();
        let split_up = split(&infos, &bytes).unwrap();
        assert!(split_up.iter().zip(&tensors).all(|((_, got), expected)| got == expected));
        assert!(
            split(&infos, &bytes[1..]).unwrap_err().to_string().contains("needs 8 bytes, but 7 are left")
        );
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(split(&infos, &longer).unwrap_err().to_string().contains("1 bytes follow"));
    }

    #[test]
    fn impossible_announcements_are_refused() {
        let info = |shape: &[i64], element_type| TensorInfo {
            name: "t".into(),
            shape: shape.to_vec(),
            element_type,
        };
        let f32 = ElementType::F32.into();
        for bad in [info(&[-1], f32), info(&[i64::MAX, i64::MAX], f32), info(&[1], 99), info(&[1], 0)] {
            assert!(byte_length(&bad).is_err(), "{bad:?}");
        }
        assert!(tensor_info("t", &numbers().to_kind(Kind::Double)).is_err());
    }

    #[test]
    fn embeddings_that_differ_in_anything_have_different_digests() {
        let embedding = |text: Tensor, pooled: Option<Tensor>| Conditioning { text, pooled, text_mask: None };
        let base = embedding(numbers(), None).digest();
        assert_eq!(base, embedding(numbers(), None).digest());
        assert_ne!(base, embedding(numbers().view([3, 2]), None).digest());
        assert_ne!(base, embedding(numbers() + 1e-3, None).digest());
        assert_ne!(base, embedding(numbers(), Some(numbers())).digest());
    }
}
