//! Where a network's tensors come from: the files of a component's folder, or a seed.
//!
//! A network asks for its tensors by name and shape. Whatever is wrong is collected and told by [`Weights::finish`]
//! in one message, so a user sees all differences between a checkpoint and its configuration at once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use crate::error::ModelError;
use crate::safetensors_file::SafetensorsFile;
pub use crate::safetensors_file::{NamedTensors, read_all, write};

/// How a tensor starts when there is no file to read it from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal with mean zero and this standard deviation.
    Normal(f64),
    /// Uniform in ±√(6 / (fan in + fan out)), which keeps the variance of activations and gradients.
    Xavier,
}

/// How a component's tensors are read, and where they go.
#[derive(Clone, Copy, Debug)]
pub struct WeightOptions {
    /// Element type that tensors are converted to.
    pub kind: Kind,
    /// Where they live.
    pub device: Device,
}

impl WeightOptions {
    /// Tensors of this kind on this device.
    pub const fn new(kind: Kind, device: Device) -> Self {
        Self { kind, device }
    }
}

/// The tensors of one component (a transformer, a text encoder, an autoencoder).
pub struct Weights {
    shared: Rc<Shared>,
}

/// A name prefix into a component's tensors; cheap to clone.
#[derive(Clone)]
pub struct Scope {
    shared: Rc<Shared>,
    prefix: String,
}

struct Shared {
    source: Source,
    path: PathBuf,
    options: WeightOptions,
    report: RefCell<Report>,
}

enum Source {
    Files { files: Vec<SafetensorsFile>, index: BTreeMap<String, usize> },
    Seed(u64),
}

#[derive(Default)]
struct Report {
    asked: BTreeSet<String>,
    ignored: Vec<String>,
    missing: Vec<String>,
    misshaped: Vec<String>,
    unreadable: Option<ModelError>,
}

impl Weights {
    /// Opens `STEM.safetensors`, the shards of `STEM.safetensors.index.json`, or `STEM.fp16.safetensors`, whichever the
    /// folder has first. Tensors are converted and moved one by one as they are asked for.
    ///
    /// # Errors
    /// If there is no such file, or one of them is truncated or malformed.
    pub fn open(component_dir: &Path, stem: &str, options: WeightOptions) -> Result<Self, ModelError> {
        let path = find(component_dir, stem)?;
        let files = match path.extension().is_some_and(|e| e == "json") {
            true => {
                shards(&path)?.iter().map(|shard| SafetensorsFile::open(shard)).collect::<Result<_, _>>()?
            }
            false => vec![SafetensorsFile::open(&path)?],
        };
        let index =
            files.iter().enumerate().flat_map(|(i, f)| f.names().into_iter().map(move |n| (n, i))).collect();
        Ok(Self::new(Source::Files { files, index }, path, options))
    }

    /// Tensors drawn from a seed by the rules that the network passes, for training from nothing.
    ///
    /// A tensor depends on the seed and its name alone.
    pub fn random(seed: u64, kind: Kind, device: Device) -> Self {
        Self::new(Source::Seed(seed), PathBuf::from("random weights"), WeightOptions::new(kind, device))
    }

    fn new(source: Source, path: PathBuf, options: WeightOptions) -> Self {
        Self { shared: Rc::new(Shared { source, path, options, report: RefCell::default() }) }
    }

    /// The tensors whose names start with `prefix` and a dot; all tensors for an empty prefix.
    pub fn scope(&self, prefix: &str) -> Scope {
        Scope { shared: self.shared.clone(), prefix: prefix.to_owned() }
    }

    /// Accepts tensors that nobody asks for if their names start with one of these prefixes.
    pub fn ignore(&self, prefixes: &[&str]) {
        self.shared.report.borrow_mut().ignored.extend(prefixes.iter().map(|p| (*p).to_owned()));
    }

    /// Tells everything that was wrong with what was asked for, and what the files hold that nobody asked for.
    ///
    /// # Errors
    /// [`ModelError::Tensors`] with all names, or the first error met while reading.
    pub fn finish(&self) -> Result<(), ModelError> {
        let mut report = self.shared.report.borrow_mut();
        if let Some(error) = report.unreadable.take() {
            return Err(error);
        }
        let unexpected: Vec<String> = match &self.shared.source {
            Source::Files { index, .. } => {
                index.keys().filter(|name| report.is_unexpected(name)).cloned().collect()
            }
            Source::Seed(_) => Vec::new(),
        };
        let (missing, misshaped) =
            (std::mem::take(&mut report.missing), std::mem::take(&mut report.misshaped));
        if missing.is_empty() && misshaped.is_empty() && unexpected.is_empty() {
            return Ok(());
        }
        Err(ModelError::Tensors { path: self.shared.path.clone(), missing, unexpected, misshaped })
    }
}

impl Report {
    fn is_unexpected(&self, name: &str) -> bool {
        !self.asked.contains(name) && !self.ignored.iter().any(|prefix| name.starts_with(prefix.as_str()))
    }
}

impl Scope {
    /// The scope one level down.
    pub fn child(&self, name: impl std::fmt::Display) -> Self {
        Self { shared: self.shared.clone(), prefix: self.name_of(&name) }
    }

    /// The prefix itself, without a dot at its end.
    pub fn path(&self) -> &str {
        &self.prefix
    }

    fn name_of(&self, name: &dyn std::fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// Whether the files hold a tensor of this name; never so for random weights.
    pub fn has(&self, name: &str) -> bool {
        matches!(&self.shared.source, Source::Files { index, .. } if index.contains_key(&self.name_of(&name)))
    }

    /// Element type of all tensors of the component.
    pub fn kind(&self) -> Kind {
        self.shared.options.kind
    }

    /// Device of all tensors of the component.
    pub fn device(&self) -> Device {
        self.shared.options.device
    }

    /// The tensor of this name and shape; zeros if there is none, which [`Weights::finish`] will report.
    pub fn tensor(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        self.tensor_or(name, shape, |seed| initial(seed, shape, init))
    }

    /// As [`Scope::tensor`], but random weights take what `make` returns for the tensor's own seed.
    pub fn tensor_or(&self, name: &str, shape: &[i64], make: impl FnOnce(u64) -> Tensor) -> Tensor {
        let name = self.name_of(&name);
        let found = match &self.shared.source {
            Source::Seed(seed) => Some(make(seed ^ hash(&name))),
            Source::Files { files, index } => self.load(files, index, &name, shape),
        };
        self.shared.report.borrow_mut().asked.insert(name);
        let options = (self.shared.options.kind, self.shared.options.device);
        found.map_or_else(|| Tensor::zeros(shape, options), |t| t.to_device(options.1).to_kind(options.0))
    }

    fn load(
        &self,
        files: &[SafetensorsFile],
        index: &BTreeMap<String, usize>,
        name: &str,
        shape: &[i64],
    ) -> Option<Tensor> {
        let mut report = self.shared.report.borrow_mut();
        let Some(file) = index.get(name).map(|&i| &files[i]) else {
            report.missing.push(name.to_owned());
            return None;
        };
        if let Some(found) = file.shape(name).filter(|found| found != shape) {
            report.misshaped.push(format!("{name} has shape {found:?}, expected {shape:?}"));
            return None;
        }
        file.read(name).map_err(|e| report.unreadable.get_or_insert(e)).ok()
    }
}

fn find(folder: &Path, stem: &str) -> Result<PathBuf, ModelError> {
    let names = ["safetensors", "safetensors.index.json", "fp16.safetensors", "safetensors.index.fp16.json"];
    let found =
        names.iter().map(|ending| folder.join(format!("{stem}.{ending}"))).find(|path| path.is_file());
    found.ok_or_else(|| ModelError::MissingFile {
        path: folder.join(format!("{stem}.safetensors")),
        remedy: format!("download the folder {} of the model again, in safetensors format", folder.display()),
    })
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

fn initial(seed: u64, shape: &[i64], init: Init) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    let mut bits = SplitMix(seed);
    let values: Vec<f32> = match init {
        Init::Zeros => vec![0.0; count],
        Init::Ones => vec![1.0; count],
        Init::Normal(std) => (0..count).map(|_| (std * bits.normal()) as f32).collect(),
        Init::Xavier => {
            let area: i64 = shape.iter().skip(2).product();
            let fans = shape.iter().take(2).sum::<i64>() * area;
            let bound = (6.0 / fans as f64).sqrt();
            (0..count).map(|_| (bound * (2.0 * bits.uniform() - 1.0)) as f32).collect()
        }
    };
    Tensor::from_slice(&values).view(shape)
}

/// FNV-1a over a tensor's name.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The SplitMix64 generator: enough for initial weights, which only need to be alike on every machine.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1).
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    /// Standard normal, by Box and Muller's method.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn component() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let tensors = [("a.weight", 2), ("a.bias", 3), ("encoder.w", 1), ("other", 1)]
            .map(|(name, n)| (name.to_owned(), Tensor::ones([n], (Kind::Half, Device::Cpu))));
        write(&folder.path().join("model.safetensors"), &tensors, &HashMap::new()).unwrap();
        folder
    }

    #[test]
    fn tensors_arrive_in_the_asked_element_type() {
        let folder = component();
        let weights =
            Weights::open(folder.path(), "model", WeightOptions::new(Kind::Float, Device::Cpu)).unwrap();
        let tensor = weights.scope("a").tensor("weight", &[2], Init::Zeros);
        assert_eq!(tensor, Tensor::ones([2], (Kind::Float, Device::Cpu)));
        assert!(weights.scope("").has("other") && !weights.scope("a").has("other"));
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let folder = component();
        let weights =
            Weights::open(folder.path(), "model", WeightOptions::new(Kind::Float, Device::Cpu)).unwrap();
        let scope = weights.scope("").child("a");
        for (name, shape) in [("weight", 2), ("bias", 2), ("scale", 4)] {
            let _ = scope.tensor(name, &[shape], Init::Zeros);
        }
        weights.ignore(&["encoder."]);
        let Err(ModelError::Tensors { missing, unexpected, misshaped, .. }) = weights.finish() else {
            panic!("the checkpoint does not fit, but nothing was said");
        };
        assert_eq!(missing, ["a.scale"]);
        assert_eq!(unexpected, ["other"]);
        assert_eq!(misshaped, ["a.bias has shape [3], expected [2]"]);
    }

    #[test]
    fn shards_are_found_through_the_index_and_a_lost_one_is_named() {
        let folder = component();
        let shard = folder.path().join("model-00001-of-00001.safetensors");
        std::fs::rename(folder.path().join("model.safetensors"), &shard).unwrap();
        let index = r#"{"metadata": {}, "weight_map": {"a.weight": "model-00001-of-00001.safetensors"}}"#;
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let open = || Weights::open(folder.path(), "model", WeightOptions::new(Kind::Float, Device::Cpu));
        assert!(open().unwrap().scope("a").has("bias"));
        std::fs::remove_file(&shard).unwrap();
        assert!(open().err().unwrap().to_string().contains("model-00001-of-00001.safetensors is missing"));
    }

    #[test]
    fn random_tensors_depend_on_seed_and_name_only_and_have_the_asked_spread() {
        let draw = |seed, name: &str| {
            Weights::random(seed, Kind::Float, Device::Cpu).scope("").tensor(
                name,
                &[100, 100],
                Init::Normal(0.02),
            )
        };
        assert_eq!(draw(1, "w"), draw(1, "w"));
        assert_ne!(draw(1, "w"), draw(2, "w"));
        assert_ne!(draw(1, "w"), draw(1, "v"));
        assert!((draw(1, "w").std(false).double_value(&[]) - 0.02).abs() < 1e-3);
        assert!(draw(1, "w").mean(Kind::Float).double_value(&[]).abs() < 1e-3);
    }
}
