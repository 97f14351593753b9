//! Reading adapters: where their files are, and whether all that they hold is plain LoRA of the transformer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::naming::{
    A_ENDING, B_ENDING, DIFFUSERS_PREFIX, PEFT_PREFIX, format_of, further_tensor, module_of, text_encoder_of,
};
use super::settings::Settings;
use super::{DIFFUSERS_FILE, DIFFUSERS_METADATA, PEFT_CONFIG, PEFT_TENSORS, SavedAdapter};
use crate::error::ModelError;
use crate::json_file;
use crate::lora::{LoraConfig, Targets};
use crate::safetensors_file::unread_element_type;
use crate::weights::WeightFile;

/// What PEFT wrote its tensors to before there was safetensors, and diffusers.
const OLDER_PEFT_TENSORS: &str = "adapter_model.bin";
const OLDER_DIFFUSERS_FILE: &str = "pytorch_lora_weights.bin";
/// Folders inside of others that hold an adapter: in a checkpoint of flow_grpo, and in an export of ours, whose PEFT folder
/// has the factors as they were trained.
const INNER_FOLDERS: [&str; 3] = ["lora", "peft", "diffusers"];

/// The files of an adapter.
#[derive(Debug, PartialEq)]
enum AdapterFiles {
    Peft { config: PathBuf, tensors: PathBuf },
    Diffusers(PathBuf),
}

/// Reads the adapter at `path`.
pub(super) fn read(path: &Path) -> Result<SavedAdapter, ModelError> {
    match locate(path)? {
        AdapterFiles::Peft { config, tensors } => read_peft(&config, &tensors),
        AdapterFiles::Diffusers(file) => read_diffusers(&file),
    }
}

fn locate(path: &Path) -> Result<AdapterFiles, ModelError> {
    if path.is_file() {
        return Ok(beside(path));
    }
    let missing = |remedy: String| ModelError::MissingFile { path: path.to_owned(), remedy };
    if !path.is_dir() {
        return Err(missing("give a PEFT folder, or a LoRA file as diffusers writes it".to_owned()));
    }
    let inner = INNER_FOLDERS.map(|name| path.join(name));
    let folders = std::iter::once(path).chain(inner.iter().map(PathBuf::as_path));
    folders.into_iter().find_map(inside).ok_or_else(|| {
        let remedy = format!(
            "a folder with an adapter has PEFT's {PEFT_CONFIG} or diffusers' {DIFFUSERS_FILE}, itself or in lora/{}",
            adapters_below(path)
        );
        ModelError::MissingFile { path: path.join(PEFT_CONFIG), remedy }
    })
}

/// The adapter in a folder.
fn inside(folder: &Path) -> Option<AdapterFiles> {
    let first =
        |names: [&str; 2]| names.map(|name| folder.join(name)).into_iter().find(|path| path.is_file());
    let (config, tensors) = (folder.join(PEFT_CONFIG), first([PEFT_TENSORS, OLDER_PEFT_TENSORS]));
    if config.is_file() || tensors.is_some() && first([DIFFUSERS_FILE, OLDER_DIFFUSERS_FILE]).is_none() {
        let tensors = tensors.unwrap_or_else(|| folder.join(PEFT_TENSORS));
        return Some(AdapterFiles::Peft { config, tensors });
    }
    first([DIFFUSERS_FILE, OLDER_DIFFUSERS_FILE]).map(AdapterFiles::Diffusers)
}

/// The adapter that a file is part of.
fn beside(file: &Path) -> AdapterFiles {
    let folder = file.parent().unwrap_or(Path::new(""));
    let name = file.file_name().unwrap_or_default();
    match inside(folder) {
        Some(AdapterFiles::Peft { config, tensors }) if name == PEFT_CONFIG => {
            AdapterFiles::Peft { config, tensors }
        }
        Some(AdapterFiles::Peft { config, .. }) if name == PEFT_TENSORS || name == OLDER_PEFT_TENSORS => {
            AdapterFiles::Peft { config, tensors: file.to_owned() }
        }
        _ => AdapterFiles::Diffusers(file.to_owned()),
    }
}

/// The folders in a folder that hold adapters, in words.
fn adapters_below(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let holds_one = |path: &PathBuf| {
        inside(path).is_some() || INNER_FOLDERS.iter().any(|name| inside(&path.join(name)).is_some())
    };
    let mut names: Vec<String> = entries
        .filter(holds_one)
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    if names.is_empty() { String::new() } else { format!("; here that is {}", names.join(", ")) }
}

fn read_peft(config: &Path, tensors: &Path) -> Result<SavedAdapter, ModelError> {
    if !config.is_file() && tensors.is_file() {
        // What is no file of tensors at all says so first.
        WeightFile::open(tensors)?;
        let remedy = format!("rank and alpha of {} stand in it; keep both in one folder", tensors.display());
        return Err(ModelError::MissingFile { path: config.to_owned(), remedy });
    }
    let keys: Map<String, Value> = json_file::read(config)?;
    let settings = Settings::read(&keys).map_err(|(key, why)| ModelError::config(config, &key, why))?;
    if !tensors.is_file() {
        let remedy = format!("{} is of no use without it; export the adapter again", config.display());
        return Err(ModelError::MissingFile { path: tensors.to_owned(), remedy });
    }
    let (factors, _) = Factors::read(&WeightFile::open(tensors)?, tensors, PEFT_PREFIX)?;
    factors.check_rank(settings.rank).map_err(|why| ModelError::config(config, "r", why))?;
    Ok(factors.into_adapter(settings))
}

fn read_diffusers(path: &Path) -> Result<SavedAdapter, ModelError> {
    let file = WeightFile::open(path)?;
    if file.names().iter().any(|name| name.starts_with(PEFT_PREFIX)) {
        return read_peft(&path.with_file_name(PEFT_CONFIG), path);
    }
    let keys = match file.metadata().get(DIFFUSERS_METADATA) {
        Some(text) => keys_of_transformer(path, text)?,
        None => Map::new(),
    };
    let stated = match keys.is_empty() {
        true => None,
        false => Some(Settings::read(&keys).map_err(|(key, why)| ModelError::config(path, &key, why))?),
    };
    let (factors, left_out) = Factors::read(&file, path, DIFFUSERS_PREFIX)?;
    // Without settings, diffusers adds the factors' product as it stands.
    let settings =
        stated.unwrap_or(Settings { rank: factors.first_rank(), alpha: factors.first_rank() as f64 });
    factors.check_rank(settings.rank).map_err(|why| ModelError::config(path, "r", why))?;
    Ok(SavedAdapter { left_out, ..factors.into_adapter(settings) })
}

/// The settings of the transformer's part in the header of a file of diffusers.
fn keys_of_transformer(path: &Path, text: &str) -> Result<Map<String, Value>, ModelError> {
    let all: Map<String, Value> = serde_json::from_str(text)
        .map_err(|error| ModelError::damaged(path, format!("{DIFFUSERS_METADATA}: {error}")))?;
    let own = |(key, value): (String, Value)| Some((key.strip_prefix(DIFFUSERS_PREFIX)?.to_owned(), value));
    Ok(all.into_iter().filter_map(own).collect())
}

/// Both factors of each module, float32, by name.
struct Factors(Vec<(String, Tensor)>);

impl Factors {
    /// Reads the factors whose names begin with `prefix`, and counts the tensors of text encoders beside them.
    fn read(file: &WeightFile, path: &Path, prefix: &str) -> Result<(Self, Vec<String>), ModelError> {
        let (mut own, mut foreign, mut left_out) = (Vec::new(), Vec::new(), BTreeMap::<String, usize>::new());
        let mut names = file.names();
        names.sort();
        for name in &names {
            match (name.strip_prefix(prefix), text_encoder_of(name)) {
                (Some(rest), _) if module_of(rest).is_some() => own.push((rest, name.as_str())),
                (Some(rest), _) => {
                    let (what, remedy) = further_tensor(rest);
                    return Err(ModelError::foreign(path, format!("holds tensor {name}, {what}"), remedy));
                }
                (None, Some(encoder)) if prefix == DIFFUSERS_PREFIX => {
                    *left_out.entry(encoder.to_owned()).or_default() += 1;
                }
                (None, _) => foreign.push(name.as_str()),
            }
        }
        if !foreign.is_empty() {
            let (whose, remedy, name) = format_of(&foreign);
            return Err(ModelError::foreign(
                path,
                format!("has tensor names that are {whose}, such as {name}"),
                remedy,
            ));
        }
        if own.is_empty() {
            let found = "holds no adapter of the transformer, which is what is trained and sampled with here";
            return Err(ModelError::foreign(path, found, "give a file that has one"));
        }
        let factors =
            own.into_iter().map(|(rest, name)| Ok((rest.to_owned(), read_factor(file, path, name)?)));
        let factors = Self(factors.collect::<Result<_, ModelError>>()?);
        factors.check_pairs(path)?;
        let left_out = left_out.into_iter().map(|(encoder, n)| format!("{n} tensors of {encoder}")).collect();
        Ok((factors, left_out))
    }

    fn modules(&self, ending: &str) -> BTreeSet<String> {
        self.0.iter().filter_map(|(name, _)| name.strip_suffix(ending)).map(str::to_owned).collect()
    }

    fn check_pairs(&self, path: &Path) -> Result<(), ModelError> {
        let (first, second) = (self.modules(A_ENDING), self.modules(B_ENDING));
        let lacking = |of: &BTreeSet<String>, other: &BTreeSet<String>, ending: &str| {
            other.difference(of).map(|module| format!("{module}{ending}")).collect::<Vec<_>>()
        };
        let missing = [lacking(&first, &second, A_ENDING), lacking(&second, &first, B_ENDING)].concat();
        match missing.is_empty() {
            true => Ok(()),
            false => Err(ModelError::Tensors {
                path: path.to_owned(),
                missing,
                unexpected: Vec::new(),
                misshaped: Vec::new(),
            }),
        }
    }

    /// Each name with the inner width of the factor.
    fn ranks(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(name, factor)| {
            let [rows, columns] = [factor.size()[0], factor.size()[1]];
            (name.as_str(), if name.ends_with(A_ENDING) { rows } else { columns })
        })
    }

    fn first_rank(&self) -> i64 {
        self.ranks().next().map_or(0, |(_, rank)| rank)
    }

    fn check_rank(&self, rank: i64) -> Result<(), String> {
        match self.ranks().find(|(_, own)| *own != rank) {
            None => Ok(()),
            Some((name, own)) => Err(format!(
                "is {rank}, but {name} has rank {own}, and only one rank for all modules is supported; write it anew \
                 with PEFT's `save_as_lora`, with one whole number as its rank"
            )),
        }
    }

    fn into_adapter(self, Settings { rank, alpha }: Settings) -> SavedAdapter {
        let targets = Targets::Exactly(self.modules(A_ENDING));
        SavedAdapter::new(LoraConfig { rank, alpha, targets }, self.0)
    }
}

/// A factor in float32, checked to be a matrix of finite numbers.
fn read_factor(file: &WeightFile, path: &Path, name: &str) -> Result<Tensor, ModelError> {
    let kind = file.kind(name)?;
    if !matches!(kind, Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double) {
        return Err(unread_element_type(path, name, &format!("{kind:?}")));
    }
    let shape = file.shape(name).unwrap_or_default();
    if shape.len() != 2 {
        let found = format!("holds tensor {name} of shape {shape:?}, which is no factor of a linear module");
        return Err(ModelError::foreign(path, found, "take an adapter for this model"));
    }
    let factor = Tensor::empty(&shape, (Kind::Float, Device::Cpu));
    file.read_into(name, &factor)?;
    match factor.isfinite().all().int64_value(&[]) {
        1 => Ok(factor),
        _ => Err(ModelError::Adapter(format!(
            "{}: tensor {name} has values that are not finite; take one of an earlier version",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "{}").unwrap();
        }
        folder
    }

    #[test]
    fn an_adapter_is_found_by_its_folder_by_one_around_it_and_by_its_files() {
        let both = folder(&["lora/adapter_config.json", "lora/adapter_model.safetensors", "scaler.pt"]);
        let inner = both.path().join("lora");
        let files = AdapterFiles::Peft { config: inner.join(PEFT_CONFIG), tensors: inner.join(PEFT_TENSORS) };
        for place in ["", "lora", "lora/adapter_config.json", "lora/adapter_model.safetensors"] {
            assert_eq!(locate(&both.path().join(place)).unwrap(), files, "{place}");
        }
        let single = folder(&[DIFFUSERS_FILE]);
        let file = single.path().join(DIFFUSERS_FILE);
        for place in [single.path(), file.as_path()] {
            assert_eq!(locate(place).unwrap(), AdapterFiles::Diffusers(file.clone()));
        }
    }

    #[test]
    fn a_folder_without_an_adapter_is_answered_with_those_in_it() {
        let folder = folder(&[
            "checkpoint-60/lora/adapter_config.json",
            "checkpoint-90/adapter_config.json",
            "logs/x",
        ]);
        let error = locate(folder.path()).unwrap_err().to_string();
        assert!(error.contains("here that is checkpoint-60, checkpoint-90"), "{error}");
        assert!(
            locate(&folder.path().join("nothing")).unwrap_err().to_string().contains("nothing is missing")
        );
    }
}
