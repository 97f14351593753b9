//! The weight files of one component: one in safetensors, or the shards that an index file names; plain, or a variant; else
//! what `torch.save` wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

use crate::error::ModelError;
use crate::safetensors_file::{SafetensorsFile, unread_element_type};
use crate::torch_file::TorchFile;

const ENDING: &str = "safetensors";
/// Endings that people give to what `torch.save` writes.
const TORCH_ENDINGS: [&str; 3] = ["pt", "pth", "bin"];

/// An open file of either kind.
pub(crate) enum WeightFile {
    Safetensors(SafetensorsFile),
    Torch(TorchFile),
}

impl WeightFile {
    /// Opens a file by its ending.
    ///
    /// # Errors
    /// If it is missing, damaged or of another format.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        if path.exists() && !path.is_file() && !path.is_dir() {
            // To open a pipe is to wait for who writes to it.
            return Err(ModelError::io(
                path,
                std::io::Error::other("it is a pipe, a socket or a device, no file"),
            ));
        }
        let is_torch = |ending: &str| path.extension().is_some_and(|extension| extension == ending);
        match TORCH_ENDINGS.into_iter().any(is_torch) {
            true => Ok(Self::Torch(TorchFile::open(path)?)),
            false => Ok(Self::Safetensors(SafetensorsFile::open(path)?)),
        }
    }

    /// Names of all tensors.
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Self::Safetensors(file) => file.names(),
            Self::Torch(file) => file.names(),
        }
    }

    /// The free-form string map of the header; empty where the format has none.
    pub(crate) fn metadata(&self) -> BTreeMap<String, String> {
        match self {
            Self::Safetensors(file) => file.metadata(),
            Self::Torch(_) => BTreeMap::new(),
        }
    }

    /// Element type of a tensor.
    ///
    /// # Errors
    /// If there is no such tensor, or its element type is none that is read here.
    pub(crate) fn kind(&self, name: &str) -> Result<Kind, ModelError> {
        match self {
            Self::Safetensors(file) => file.kind(name),
            Self::Torch(file) => file.kind(name),
        }
    }

    /// Shape of a tensor, or `None` if the file has no tensor of that name.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        match self {
            Self::Safetensors(file) => file.shape(name),
            Self::Torch(file) => file.shape(name),
        }
    }

    /// Reads one tensor into a contiguous one of as many elements, converted to its element type and on its device.
    ///
    /// # Errors
    /// If there is no such tensor, the numbers of elements differ, or reading fails.
    pub(crate) fn read_into(&self, name: &str, target: &Tensor) -> Result<(), ModelError> {
        match self {
            Self::Safetensors(file) => file.read_into(name, target),
            Self::Torch(file) => file.read_into(name, target),
        }
    }
}

/// The open files of one component.
pub(super) struct Files {
    /// The file, or the index of its shards.
    pub(super) path: PathBuf,
    files: Vec<WeightFile>,
    index: BTreeMap<String, usize>,
}

impl Files {
    /// Opens the files of `variant` where there are some, else the plain ones; without a `variant`, the plain ones, else
    /// the only variant there is, else what `torch.save` wrote.
    pub(super) fn open(dir: &Path, stem: &str, variant: Option<&str>) -> Result<Self, ModelError> {
        let path = find(dir, stem, variant)?;
        let files = match path.extension().is_some_and(|extension| extension == "json") {
            true => shards(&path)?.iter().map(|shard| WeightFile::open(shard)).collect::<Result<_, _>>()?,
            false => vec![WeightFile::open(&path)?],
        };
        let index =
            files.iter().enumerate().flat_map(|(i, f)| f.names().into_iter().map(move |n| (n, i))).collect();
        Ok(Self { path, files, index })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    pub(super) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.file_of(name)?.shape(name)
    }

    /// Checks that a tensor's elements are floating-point numbers: whole ones are of quantised weights, whose scales nobody
    /// here would apply.
    pub(super) fn check_kind(&self, name: &str) -> Result<(), ModelError> {
        let Some(file) = self.file_of(name) else { return Ok(()) };
        match file.kind(name)? {
            Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double => Ok(()),
            kind => Err(unread_element_type(&self.path, name, &format!("{kind:?}"))),
        }
    }

    pub(super) fn read_into(&self, name: &str, target: &Tensor) -> Result<(), ModelError> {
        let file = self.file_of(name);
        file.ok_or_else(|| ModelError::damaged(&self.path, format!("no tensor {name}")))?
            .read_into(name, target)
    }

    fn file_of(&self, name: &str) -> Option<&WeightFile> {
        self.index.get(name).map(|&i| &self.files[i])
    }
}

/// The variants of weight files in a component's folder, sorted.
///
/// # Errors
/// If the folder cannot be read.
pub fn variants_in(dir: &Path, stem: &str) -> Result<BTreeSet<String>, ModelError> {
    let io = |e| ModelError::io(dir, e);
    let mut variants = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        variants.extend(name.to_str().and_then(|name| variant_of(name, stem)).map(str::to_owned));
    }
    Ok(variants)
}

/// The plain safetensors files of a component, one or all its shards; none where it has none.
///
/// # Errors
/// If the index of the shards is damaged or names one that is not there.
pub fn safetensors_files(dir: &Path, stem: &str) -> Result<Vec<PathBuf>, ModelError> {
    let whole = dir.join(format!("{stem}.{ENDING}"));
    let index = dir.join(format!("{stem}.{ENDING}.index.json"));
    match whole.is_file() {
        true => Ok(vec![whole]),
        false if index.is_file() => Ok(shards(&index)?.into_iter().collect()),
        false => Ok(Vec::new()),
    }
}

/// `fp16` of `STEM.fp16.safetensors` and of `STEM.safetensors.index.fp16.json`; `None` of plain files and of shards.
fn variant_of<'a>(name: &'a str, stem: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(stem)?.strip_prefix('.')?;
    let of_file = || rest.strip_suffix(ENDING)?.strip_suffix('.').filter(|variant| !is_shard(variant));
    let of_index =
        || rest.strip_prefix(ENDING)?.strip_prefix(".index.")?.strip_suffix("json")?.strip_suffix('.');
    of_index().or_else(of_file)
}

/// Whether this ends like `-00001-of-00002`.
fn is_shard(name: &str) -> bool {
    name.rsplit_once("-of-").is_some_and(|(_, count)| count.bytes().all(|byte| byte.is_ascii_digit()))
}

fn find(dir: &Path, stem: &str, variant: Option<&str>) -> Result<PathBuf, ModelError> {
    let files_of = |variant: Option<&str>| {
        let infix = variant.map(|variant| format!(".{variant}")).unwrap_or_default();
        let names = [format!("{stem}{infix}.{ENDING}"), format!("{stem}.{ENDING}.index{infix}.json")];
        names.map(|name| dir.join(name)).into_iter().find(|path| path.is_file())
    };
    if let Some(path) = variant.and_then(|_| files_of(variant)).or_else(|| files_of(None)) {
        return Ok(path);
    }
    let present = if dir.is_dir() { variants_in(dir, stem)? } else { BTreeSet::new() };
    let names: Vec<&str> = present.iter().map(String::as_str).collect();
    match (names.as_slice(), variant) {
        ([only], None) => files_of(Some(only)).ok_or_else(|| missing(dir, stem, &names)),
        _ => torch_file(dir, stem).ok_or_else(|| missing(dir, stem, &names)),
    }
}

fn torch_file(dir: &Path, stem: &str) -> Option<PathBuf> {
    let paths = TORCH_ENDINGS.map(|ending| dir.join(format!("{stem}.{ending}")));
    paths.into_iter().find(|path| path.is_file())
}

fn missing(dir: &Path, stem: &str, variants: &[&str]) -> ModelError {
    let remedy = match variants {
        [] => format!("download the folder {} of the model again, in safetensors format", dir.display()),
        _ => format!(
            "the folder has the variants {} only; name one with `model.variant` or `--variant`",
            variants.join(", ")
        ),
    };
    ModelError::MissingFile { path: dir.join(format!("{stem}.{ENDING}")), remedy }
}

/// The shard files that an index file names, each once.
fn shards(index: &Path) -> Result<BTreeSet<PathBuf>, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read(index).map_err(|e| ModelError::io(index, e))?;
    let parsed: Index = serde_json::from_slice(&text).map_err(|e| ModelError::damaged(index, e))?;
    let paths: BTreeSet<PathBuf> =
        parsed.weight_map.values().map(|shard| index.with_file_name(shard)).collect();
    match paths.iter().find(|path| !path.is_file()) {
        None => Ok(paths),
        Some(missing) => Err(ModelError::MissingFile {
            path: missing.clone(),
            remedy: format!("{} names it; download it again", index.display()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tch::Device;

    /// A folder with files of these names, each with one tensor called like its file.
    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            match name.strip_suffix(".json") {
                Some(_) => {
                    let variant = variant_of(name, "model").map(|v| format!(".{v}")).unwrap_or_default();
                    let shard = format!("model{variant}-00001-of-00001.safetensors");
                    std::fs::write(path, format!(r#"{{"weight_map": {{"x": "{shard}"}}}}"#)).unwrap();
                }
                None => {
                    let tensor = Tensor::ones([1], (Kind::Half, Device::Cpu));
                    crate::weights::write(&path, &[((*name).to_owned(), tensor)], &HashMap::new()).unwrap();
                }
            }
        }
        folder
    }

    fn opened(names: &[&str], variant: Option<&str>) -> Result<String, String> {
        let folder = folder(names);
        let files = Files::open(folder.path(), "model", variant).map_err(|error| error.to_string())?;
        Ok(files.names().collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn plain_files_come_first_and_then_the_only_variant() {
        let (plain, half, other) = ("model.safetensors", "model.fp16.safetensors", "model.bf16.safetensors");
        assert_eq!(opened(&[plain, half], None).unwrap(), plain);
        assert_eq!(opened(&[plain, half], Some("fp16")).unwrap(), half);
        assert_eq!(opened(&[half], None).unwrap(), half);
        assert_eq!(opened(&[half, other], Some("bf16")).unwrap(), other);
        // Repositories have variants of some components only.
        assert_eq!(opened(&[plain], Some("fp16")).unwrap(), plain);
    }

    #[test]
    fn a_choice_that_is_not_there_is_answered_with_those_that_are() {
        let both = ["model.fp16.safetensors", "model.bf16.safetensors"];
        for variant in [None, Some("fp8")] {
            let error = opened(&both, variant).unwrap_err();
            assert!(error.contains("model.safetensors") && error.contains("bf16, fp16"), "{error}");
        }
        assert!(opened(&[], None).unwrap_err().contains("download"));
    }

    #[test]
    fn shards_of_a_variant_are_found_through_its_index() {
        let names = ["model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors"];
        assert_eq!(opened(&names, None).unwrap(), names[1]);
        assert_eq!(opened(&names, Some("fp16")).unwrap(), names[1]);
        let error = opened(&names[..1], Some("fp16")).unwrap_err();
        assert!(error.contains("model.fp16-00001-of-00001.safetensors is missing"), "{error}");
    }
}
