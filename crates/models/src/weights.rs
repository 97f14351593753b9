//! Where a network's tensors come from: the files of a component's folder, or a seed; or nowhere, to learn their sizes.
//!
//! A network asks for its tensors by name and shape. Whatever is wrong is collected and told by [`Weights::finish`]
//! in one message, so a user sees all differences between a checkpoint and its configuration at once.
//!
//! Each tensor is made once, in the run's element type and on its device, and filled in place slice by slice; so a model
//! is never in memory twice, however its files are stored.

mod files;
mod generator;
mod inventory;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use self::files::Files;
pub(crate) use self::files::WeightFile;
pub use self::files::{safetensors_files, variants_in};
use self::generator::{Block, Generator, hash};
pub use self::inventory::{ComponentSize, Inventory};
use crate::error::ModelError;
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
#[derive(Clone, Debug)]
pub struct WeightOptions {
    /// Element type that tensors are converted to.
    pub kind: Kind,
    /// Where they live.
    pub device: Device,
    /// Variant of the files, such as `fp16`; a component that lacks it has its plain files read.
    pub variant: Option<Rc<str>>,
    /// Where their values come from.
    pub source: TensorSource,
}

/// Where the values of tensors come from.
#[derive(Clone, Debug)]
pub enum TensorSource {
    /// The files of the component's folder.
    Files,
    /// A seed: fast, of the spread of weights, and good for measuring alone; configurations are all that is needed.
    Random(u64),
    /// Nowhere: tensors hold no memory, but must be those of the files' headers. Sizes are added to the inventory.
    Headers(Inventory),
    /// Nowhere, by the configurations alone, likewise.
    Shapes(Inventory),
}

impl TensorSource {
    /// Whether weight files take no part.
    pub fn is_without_files(&self) -> bool {
        matches!(self, Self::Random(_) | Self::Shapes(_))
    }
}

impl WeightOptions {
    /// Tensors of this kind on this device, from plain files, or the only variant where there are none.
    pub const fn new(kind: Kind, device: Device) -> Self {
        Self { kind, device, variant: None, source: TensorSource::Files }
    }

    /// The same from another source.
    pub fn from_source(self, source: TensorSource) -> Self {
        Self { source, ..self }
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
    kind: Kind,
}

struct Shared {
    source: Source,
    path: PathBuf,
    kind: Kind,
    device: Device,
    report: RefCell<Report>,
}

enum Source {
    Files(Files),
    Generator(Generator, u64),
    /// Tensors without memory, checked against files where there are some.
    Nowhere(Option<Files>, Inventory),
}

impl Source {
    fn files(&self) -> Option<&Files> {
        match self {
            Self::Files(files) | Self::Nowhere(Some(files), _) => Some(files),
            Self::Generator(..) | Self::Nowhere(None, _) => None,
        }
    }
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
    /// Opens `STEM.safetensors`, or the shards of `STEM.safetensors.index.json`, or a variant of them; unless the options
    /// name another source.
    ///
    /// # Errors
    /// If there is no such file, or one of them is truncated or malformed.
    pub fn open(component_dir: &Path, stem: &str, options: &WeightOptions) -> Result<Self, ModelError> {
        let files = || Files::open(component_dir, stem, options.variant.as_deref());
        let source = match &options.source {
            TensorSource::Files => Source::Files(files()?),
            TensorSource::Headers(inventory) => Source::Nowhere(Some(files()?), inventory.clone()),
            TensorSource::Shapes(inventory) => Source::Nowhere(None, inventory.clone()),
            TensorSource::Random(seed) => {
                Source::Generator(Generator::Repeated(Block::new(*seed, options)), *seed)
            }
        };
        Ok(Self::new(source, component_dir, options))
    }

    /// Tensors drawn from a seed by the rules that the network passes, for training from nothing.
    ///
    /// A tensor depends on the seed and its name alone.
    pub fn random(seed: u64, kind: Kind, device: Device) -> Self {
        let source = Source::Generator(Generator::Drawn, seed);
        Self::new(source, Path::new("random weights"), &WeightOptions::new(kind, device))
    }

    fn new(source: Source, path: &Path, options: &WeightOptions) -> Self {
        let WeightOptions { kind, device, .. } = *options;
        // What is nowhere needs no GPU to be there.
        let device = if let Source::Nowhere(..) = source { Device::Cpu } else { device };
        let path = path.to_owned();
        Self { shared: Rc::new(Shared { source, path, kind, device, report: RefCell::default() }) }
    }

    /// The tensors whose names start with `prefix` and a dot; all tensors for an empty prefix.
    pub fn scope(&self, prefix: &str) -> Scope {
        Scope { shared: self.shared.clone(), prefix: prefix.to_owned(), kind: self.shared.kind }
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
        let files = self.shared.source.files();
        let names = files.into_iter().flat_map(Files::names);
        let unexpected: Vec<String> =
            names.filter(|name| report.is_unexpected(name)).map(str::to_owned).collect();
        let (missing, misshaped) =
            (std::mem::take(&mut report.missing), std::mem::take(&mut report.misshaped));
        if missing.is_empty() && misshaped.is_empty() && unexpected.is_empty() {
            return Ok(());
        }
        let path = files.map_or(&self.shared.path, |files| &files.path).clone();
        Err(ModelError::Tensors { path, missing, unexpected, misshaped })
    }
}

impl Report {
    fn is_unexpected(&self, name: &str) -> bool {
        !self.asked.contains(name) && !self.ignored.iter().any(|prefix| name.starts_with(prefix.as_str()))
    }

    /// Notes that a tensor was asked for, and whether the files can give it.
    fn admit(&mut self, files: Option<&Files>, name: &str, shape: &[i64]) -> bool {
        self.asked.insert(name.to_owned());
        let Some(files) = files else { return true };
        if let Err(error) = files.check_kind(name) {
            self.unreadable.get_or_insert(error);
            return false;
        }
        match files.shape(name) {
            Some(found) if found == shape => return true,
            Some(found) => self.misshaped.push(format!("{name} has shape {found:?}, expected {shape:?}")),
            None => self.missing.push(name.to_owned()),
        }
        false
    }
}

impl Scope {
    /// The scope one level down.
    pub fn child(&self, name: impl std::fmt::Display) -> Self {
        Self { shared: self.shared.clone(), prefix: self.name_of(&name), kind: self.kind }
    }

    /// The same tensors in another element type than the component's.
    pub fn in_kind(&self, kind: Kind) -> Self {
        Self { kind, ..self.clone() }
    }

    /// The prefix itself, without a dot at its end.
    pub fn path(&self) -> &str {
        &self.prefix
    }

    fn name_of(&self, name: &dyn std::fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// Whether the files hold a tensor of this name; never so where weight files take no part.
    pub fn has(&self, name: &str) -> bool {
        self.shared.source.files().is_some_and(|files| files.has(&self.name_of(&name)))
    }

    /// Shape of a tensor in the files; `None` if they hold none of this name, or take no part.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.shared.source.files()?.shape(&self.name_of(&name))
    }

    /// Element type of the tensors.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Device of all tensors of the component.
    pub fn device(&self) -> Device {
        self.shared.device
    }

    /// The tensor of this name and shape; zeros if there is none, which [`Weights::finish`] will report.
    pub fn tensor(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        let mut tensor = self.room(shape);
        self.fill(name, &mut tensor, |generator, seed, target| generator.fill(target, seed, init));
        tensor
    }

    /// As [`Scope::tensor`], but random weights take what `make` returns for the tensor's own seed.
    pub fn tensor_or(&self, name: &str, shape: &[i64], make: impl FnOnce(u64) -> Tensor) -> Tensor {
        let mut tensor = self.room(shape);
        self.fill(name, &mut tensor, |_, seed, target| target.copy_(&make(seed)));
        tensor
    }

    /// The tensors of one name in several scopes of a component, one below the other in a single one; scopes come with
    /// the number of their rows. Takes no more memory than the result.
    ///
    /// # Shapes
    /// Each `[rows, row…]`, where `row` is the shape of a row → `[sum of rows, row…]`.
    ///
    /// # Panics
    /// If there are no scopes.
    pub fn stacked(scopes: &[(Self, i64)], name: &str, row: &[i64], init: Init) -> Tensor {
        let (first, _) = scopes.first().expect("there is something to stack; nothing is a bug");
        let total = scopes.iter().map(|(_, rows)| rows).sum();
        let all = first.room(&[&[total], row].concat());
        let mut start = 0;
        for (scope, rows) in scopes {
            let mut part = all.narrow(0, start, *rows);
            scope.fill(name, &mut part, |generator, seed, target| generator.fill(target, seed, init));
            start += rows;
        }
        all
    }

    /// A tensor to be filled; where there is nothing to fill it with, one number that stands for all.
    fn room(&self, shape: &[i64]) -> Tensor {
        let options = (self.kind, self.shared.device);
        match self.shared.source {
            Source::Nowhere(..) => Tensor::zeros(vec![1; shape.len()], options).expand(shape, false),
            Source::Files(_) | Source::Generator(..) => Tensor::empty(shape, options),
        }
    }

    /// Fills a contiguous tensor, or a stretch of rows of one.
    fn fill(&self, name: &str, target: &mut Tensor, draw: impl FnOnce(&Generator, u64, &mut Tensor)) {
        let (name, shape) = (self.name_of(&name), target.size());
        let mut report = self.shared.report.borrow_mut();
        let is_there = report.admit(self.shared.source.files(), &name, &shape);
        match &self.shared.source {
            Source::Nowhere(_, inventory) => inventory.add(&self.component(), &shape, self.kind()),
            Source::Generator(generator, seed) => draw(generator, seed ^ hash(&name), target),
            Source::Files(_) if !is_there => drop(target.zero_()),
            Source::Files(files) => {
                if let Err(error) = files.read_into(&name, target) {
                    report.unreadable.get_or_insert(error);
                }
            }
        }
    }

    /// Name of the component's folder.
    fn component(&self) -> String {
        let name = self.shared.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
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
            Weights::open(folder.path(), "model", &WeightOptions::new(Kind::Float, Device::Cpu)).unwrap();
        let tensor = weights.scope("a").tensor("weight", &[2], Init::Zeros);
        assert_eq!(tensor, Tensor::ones([2], (Kind::Float, Device::Cpu)));
        assert!(weights.scope("").has("other") && !weights.scope("a").has("other"));
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let folder = component();
        let weights =
            Weights::open(folder.path(), "model", &WeightOptions::new(Kind::Float, Device::Cpu)).unwrap();
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
        let open = || Weights::open(folder.path(), "model", &WeightOptions::new(Kind::Float, Device::Cpu));
        assert!(open().unwrap().scope("a").has("bias"));
        std::fs::remove_file(&shard).unwrap();
        assert!(open().err().unwrap().to_string().contains("model-00001-of-00001.safetensors is missing"));
    }

    #[test]
    fn stacked_tensors_are_those_of_their_scopes_and_both_are_reported() {
        let folder = component();
        let options = WeightOptions::new(Kind::Float, Device::Cpu);
        let weights = Weights::open(folder.path(), "model", &options).unwrap();
        let scopes = [(weights.scope("encoder"), 1), (weights.scope("a"), 3)];
        let stacked = Scope::stacked(&scopes, "w", &[], Init::Zeros);
        assert_eq!(Vec::<f32>::try_from(stacked).unwrap(), [1.0, 0.0, 0.0, 0.0]);
        let error = weights.finish().unwrap_err().to_string();
        assert!(error.contains("1 missing: a.w") && error.contains("other"), "{error}");
    }

    #[test]
    fn without_values_tensors_hold_no_memory_but_must_still_be_those_of_the_files() {
        let (folder, inventory) = (component(), Inventory::default());
        let options = WeightOptions::new(Kind::Float, Device::Cpu);
        let open =
            |source| Weights::open(folder.path(), "model", &options.clone().from_source(source)).unwrap();
        let weights = open(TensorSource::Headers(inventory.clone()));
        let scope = weights.scope("a");
        let tensor = scope.tensor("weight", &[2], Init::Ones);
        let _ = scope.tensor("bias", &[4], Init::Ones);
        assert_eq!((tensor.size(), tensor.stride()), (vec![2], vec![0]));
        let error = weights.finish().unwrap_err().to_string();
        assert!(error.contains("a.bias has shape [3], expected [4]"), "{error}");

        let inventory = Inventory::default();
        let weights = open(TensorSource::Shapes(inventory.clone()));
        let _ = weights.scope("a").tensor("anything", &[1 << 20, 1 << 20], Init::Xavier);
        weights.finish().unwrap();
        let (_, size) = &inventory.components()[0];
        let bytes = 4 << 40;
        assert_eq!(*size, ComponentSize { parameters: 1 << 40, bytes, largest_tensor_bytes: bytes });
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
