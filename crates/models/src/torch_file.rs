//! Files that `torch.save` wrote: a zip archive with a pickle of what there is and a member for each storage.
//!
//! The pickle is read, never run. Tensors stay on disk until they are asked for, one at a time.

mod archive;
mod state_dict;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use self::archive::Member;
use self::state_dict::View;
use crate::error::ModelError;
use crate::file_slices::read_slices;
use crate::stand_in;

/// The pickle's name inside of the archive's only folder.
const PICKLE: &str = "/data.pkl";
/// What the names of storages follow in that folder.
const STORAGES: &str = "/data/";
/// States byte order where it is there; files without it are of little-endian machines.
const BYTE_ORDER: &str = "/byteorder";

/// What to do about a file of another form.
const REMEDY: &str = "write a dictionary of plain tensors with `torch.save` of version 1.6 or later, or with \
     `safetensors.torch.save_file`";

/// Why a file cannot be read.
#[derive(Debug)]
enum Problem {
    /// It is not as it was written.
    Damage(String),
    /// It may be whole, but is of a form that is not read here.
    Unread(String),
}

impl Problem {
    fn damage(reason: impl std::fmt::Display) -> Self {
        Self::Damage(reason.to_string())
    }

    /// The same with `prefix` before the words.
    fn in_place(self, prefix: &str) -> Self {
        match self {
            Self::Damage(reason) => Self::Damage(format!("{prefix} {reason}")),
            Self::Unread(reason) => Self::Unread(format!("{prefix} {reason}")),
        }
    }
}

/// An open file: where its tensors are in memory, what they hold on disk.
pub struct TorchFile {
    path: PathBuf,
    file: File,
    tensors: BTreeMap<String, StoredTensor>,
}

/// A tensor and where its first element is.
struct StoredTensor {
    view: View,
    start: u64,
}

impl TorchFile {
    /// Opens a file and reads what tensors there are, those under `state_dict` where there is such a key.
    ///
    /// # Errors
    /// If the file cannot be read, is truncated or no archive of tensors, or holds anything but a dictionary of them; what
    /// may be whole is not called damaged.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(|error| ModelError::io(path, error))?;
        let tensors = stored_tensors(&file).map_err(|problem| match problem {
            Problem::Damage(reason) => ModelError::damaged(path, reason),
            Problem::Unread(_) if stand_in::recognised(path).is_some() => ModelError::damaged(path, ""),
            Problem::Unread(reason) => ModelError::foreign(path, format!("is not read: {reason}"), REMEDY),
        })?;
        Ok(Self { path: path.to_owned(), file, tensors })
    }

    /// Element type of a tensor.
    ///
    /// # Errors
    /// If there is no such tensor.
    pub fn kind(&self, name: &str) -> Result<Kind, ModelError> {
        let absent = || ModelError::damaged(&self.path, format!("no tensor {name}"));
        self.tensors.get(name).map(|tensor| tensor.view.kind).ok_or_else(absent)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// Shape of a tensor, or `None` if the file has no tensor of that name.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.tensors.get(name).map(|tensor| tensor.view.shape.clone())
    }

    /// Reads one tensor into a contiguous one of as many elements, converted to its element type and on its device.
    ///
    /// # Errors
    /// If there is no such tensor, the numbers of elements differ, or reading fails.
    pub fn read_into(&self, name: &str, target: &Tensor) -> Result<(), ModelError> {
        let damaged = |reason| ModelError::damaged(&self.path, reason);
        let tensor = self.tensors.get(name).ok_or_else(|| damaged(format!("no tensor {name}")))?;
        let View { kind, shape, strides, .. } = &tensor.view;
        let (n_elements, wanted) = (shape.iter().product::<i64>(), target.numel());
        if wanted as i64 != n_elements {
            return Err(damaged(format!("tensor {name} has {n_elements} elements, not {wanted}")));
        }
        let place = (&self.file, self.path.as_path());
        if is_contiguous(shape, strides) {
            return read_slices(place, tensor.start, *kind, &target.view(-1));
        }
        let span = tensor.view.span().expect("checked when the file was opened; else this is a bug");
        let storage = Tensor::empty([span as i64], (*kind, Device::Cpu));
        read_slices(place, tensor.start, *kind, &storage)?;
        target.view(shape.as_slice()).copy_(&storage.as_strided(shape, strides, 0));
        Ok(())
    }
}

fn is_contiguous(shape: &[i64], strides: &[i64]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(size, stride)| {
        let fits = *size == 1 || *stride == expected;
        expected *= size;
        fits
    })
}

fn stored_tensors(file: &File) -> Result<BTreeMap<String, StoredTensor>, Problem> {
    let members = archive::members(file)?;
    let pickled = members.iter().find_map(|member| Some((member, member.name.strip_suffix(PICKLE)?)));
    let no_pickle = || Problem::Unread("it has no data.pkl, so torch.save did not write it".to_owned());
    let (pickled, folder) = pickled.ok_or_else(no_pickle)?;
    let by_name: HashMap<&str, &Member> =
        members.iter().map(|member| (member.name.as_str(), member)).collect();
    let find = |name: &str| by_name.get(format!("{folder}{name}").as_str()).copied();
    check_byte_order(file, find(BYTE_ORDER))?;
    let limits = pickle::Limits::default();
    let checkpoint = pickle::read(&read_member(file, pickled, limits.bytes)?, &limits);
    let views = state_dict::views(&checkpoint.map_err(Problem::damage)?)?;
    let place = |(name, view): (String, View)| {
        let storage = find(&format!("{STORAGES}{}", view.storage));
        let start =
            element_start(&view, storage).map_err(|problem| problem.in_place(&format!("`{name}`")))?;
        Ok((name, StoredTensor { view, start }))
    };
    views.into_iter().map(place).collect()
}

/// Where the first element of a view is in the archive, if the storage is of the size that the view believes.
fn element_start(view: &View, storage: Option<&Member>) -> Result<u64, Problem> {
    let lost = || Problem::Damage(format!("has its elements in storage {}, which is missing", view.storage));
    let storage = storage.ok_or_else(lost)?;
    let element = view.kind.elt_size_in_bytes() as u64;
    let expected = (view.storage_length as u64).checked_mul(element);
    if expected != Some(storage.length) {
        let View { storage_length, kind, .. } = view;
        let length = storage.length;
        return Err(Problem::Damage(format!(
            "should have {storage_length} elements of {kind:?} in its storage, which has {length} bytes"
        )));
    }
    Ok(storage.start + view.offset as u64 * element)
}

fn check_byte_order(file: &File, stated: Option<&Member>) -> Result<(), Problem> {
    let Some(member) = stated else { return Ok(()) };
    match read_member(file, member, 16)?.as_slice() {
        b"little" => Ok(()),
        other => {
            let found = other.escape_ascii();
            Err(Problem::Unread(format!("its byte order is {found}; only little is supported")))
        }
    }
}

fn read_member(file: &File, member: &Member, most_bytes: usize) -> Result<Vec<u8>, Problem> {
    let too_long = || {
        let Member { name, length, .. } = member;
        Problem::Unread(format!("its member {name} has {length} bytes, more than {most_bytes}"))
    };
    let length = usize::try_from(member.length).ok().filter(|length| *length <= most_bytes);
    let mut bytes = vec![0; length.ok_or_else(too_long)?];
    file.read_exact_at(&mut bytes, member.start).map_err(Problem::damage)?;
    Ok(bytes)
}
