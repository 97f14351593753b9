//! Prompt embeddings on disk, so that text encoders need not be in memory.
//!
//! 1. An embedding is what the encoders would give, to the last bit: its directory is named by everything that it depends
//!    on besides the prompt (files of encoders and tokenizers and which of them are read, element type, length, CPU or
//!    accelerator, threads, what libtorch was told of bits). Accelerators of two kinds need a directory each.
//! 2. What is read is checked against its digest; what is damaged counts as absent.
//! 3. Any number of processes share a directory: a file appears whole or not at all, and all write the same bytes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use models::determinism::LibtorchFlags;
use models::weights::WeightOptions;
use models::{Conditioning, ModelError, weights};
use tch::{Device, Tensor};

/// Components of a pipeline that an embedding depends on; further ones end in `_2` and so on.
const COMPONENTS: [&str; 3] = ["text_encoder", "tokenizer", "processor"];
const DIGEST: &str = "digest";
/// Where digests of large files are remembered.
const FILE_DIGESTS: &str = "file-digests";

/// What an embedding depends on besides model and prompt.
#[derive(Clone, Debug)]
pub struct EmbeddingSettings {
    /// Element type of the encoders, where they compute, and where their values come from.
    pub weights: WeightOptions,
    /// Most tokens, where the family asks.
    pub max_sequence_length: usize,
}

/// The embeddings of one model under fixed settings.
#[derive(Debug)]
pub struct EmbeddingCache {
    directory: PathBuf,
    device: Device,
}

impl EmbeddingCache {
    /// The embeddings of the pipeline in `model` below `root`, which is made if it is not there.
    ///
    /// # Errors
    /// If a file of the model cannot be read or `root` cannot be written.
    pub fn open(root: &Path, model: &Path, settings: &EmbeddingSettings) -> Result<Self, ModelError> {
        let file_digests = root.join(FILE_DIGESTS);
        make_directory(&file_digests)?;
        let mut hasher = blake3::Hasher::new();
        for path in files(model)? {
            let name = path.strip_prefix(model).unwrap_or(&path).to_string_lossy().into_owned();
            hasher.update(format!("{name} {}\n", file_digest(&path, &file_digests)?).as_bytes());
        }
        let EmbeddingSettings { weights, max_sequence_length } = settings;
        let WeightOptions { kind, device, variant, source } = weights;
        let device_kind = if *device == Device::Cpu { "cpu" } else { "accelerator" };
        let threads = tch::get_num_threads();
        hasher.update(format!("{kind:?} {device_kind} {threads} {max_sequence_length}\n").as_bytes());
        hasher.update(format!("{variant:?} {source:?} {:?}\n", LibtorchFlags::of_process()).as_bytes());
        let directory = root.join(hasher.finalize().to_hex().as_str());
        make_directory(&directory)?;
        Ok(Self { directory, device: *device })
    }

    /// Whether there is a file for a prompt, intact or not.
    pub fn has(&self, prompt: &str) -> bool {
        self.path(prompt).is_file()
    }

    /// The embedding of a prompt with its digest, if it is there and intact.
    pub fn read(&self, prompt: &str) -> Option<(Conditioning, [u8; 32])> {
        let path = self.path(prompt);
        if !path.is_file() {
            return None;
        }
        let found = weights::read_all(&path).and_then(|(tensors, metadata)| {
            let conditioning = Conditioning::from_tensors(tensors)?;
            let digest = conditioning.digest();
            match metadata.get(DIGEST).is_some_and(|expected| *expected == hex(&digest)) {
                true => Ok((conditioning, digest)),
                false => {
                    Err(ModelError::damaged(&path, "its tensors have another digest than its header says"))
                }
            }
        });
        match found {
            Ok((conditioning, digest)) => Some((conditioning.to_device(self.device), digest)),
            Err(error) => {
                tracing::warn!("a cached embedding is computed again: {error}");
                None
            }
        }
    }

    /// Writes the embedding of a prompt.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn write(
        &self,
        prompt: &str,
        conditioning: &Conditioning,
        digest: &[u8; 32],
    ) -> Result<(), ModelError> {
        let tensors = conditioning.tensors().into_iter();
        let tensors: Vec<(String, Tensor)> =
            tensors.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
        let path = self.path(prompt);
        // Of this process alone: another may be writing the same embedding.
        let own = path.with_extension(partial());
        weights::write(&own, &tensors, &HashMap::from([(DIGEST.to_owned(), hex(digest))]))?;
        fs::rename(&own, &path).map_err(|problem| ModelError::io(&path, problem))
    }

    fn path(&self, prompt: &str) -> PathBuf {
        self.directory.join(format!("{}.safetensors", blake3::hash(prompt.as_bytes()).to_hex()))
    }
}

fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from(*digest).to_hex().to_string()
}

fn make_directory(path: &Path) -> Result<(), ModelError> {
    fs::create_dir_all(path).map_err(|problem| ModelError::io(path, problem))
}

/// Files of the encoders and tokenizers, in the order of their names.
fn files(model: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let mut found = Vec::new();
    for folder in entries(model)? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if folder.is_dir() && COMPONENTS.iter().any(|component| name.starts_with(component)) {
            found.extend(entries(&folder)?.into_iter().filter(|path| path.is_file()));
        }
    }
    found.push(model.join("model_index.json"));
    found.sort();
    Ok(found)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let list = || fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    list().map_err(|problem| ModelError::io(folder, problem))
}

/// BLAKE3 of a file's contents; computed once for a file of this path, size and time of change, since encoders have
/// gigabytes.
fn file_digest(path: &Path, remembered: &Path) -> Result<String, ModelError> {
    let io = |problem| ModelError::io(path, problem);
    let metadata = fs::metadata(path).map_err(io)?;
    let changed = metadata.modified().map_err(io)?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let full_path = fs::canonicalize(path).map_err(io)?;
    let identity = format!("{} {} {}", full_path.display(), metadata.len(), changed.as_nanos());
    let note = remembered.join(blake3::hash(identity.as_bytes()).to_hex().as_str());
    if let Some(digest) =
        fs::read_to_string(&note).ok().filter(|digest| blake3::Hash::from_hex(digest).is_ok())
    {
        return Ok(digest);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).map_err(io)?).map_err(io)?;
    let digest = hasher.finalize().to_hex().to_string();
    let own = note.with_extension(partial());
    if let Err(problem) = fs::write(&own, &digest).and_then(|()| fs::rename(&own, &note)) {
        tracing::warn!("the digest of {} is not remembered: {problem}", path.display());
    }
    Ok(digest)
}

/// Extension of a file that is being written. Processes of several hosts, or of containers, may have the same number.
fn partial() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}.partial", std::process::id(), now.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::weights::TensorSource;
    use tch::Kind;

    const SETTINGS: EmbeddingSettings =
        EmbeddingSettings { weights: WeightOptions::new(Kind::Float, Device::Cpu), max_sequence_length: 8 };

    fn model(weights: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for component in ["text_encoder_2", "tokenizer", "transformer"] {
            fs::create_dir(folder.path().join(component)).unwrap();
            fs::write(folder.path().join(component).join("file"), weights).unwrap();
        }
        fs::write(folder.path().join("model_index.json"), "{}").unwrap();
        folder
    }

    fn embedding(value: f64) -> Conditioning {
        let text = Tensor::full([1, 2, 3], value, (Kind::BFloat16, Device::Cpu));
        Conditioning { pooled: Some(&text.squeeze_dim(0) + 0.5), text, text_mask: None }
    }

    #[test]
    fn an_embedding_comes_back_to_the_last_bit_and_for_its_prompt_alone() {
        let (root, model) = (tempfile::tempdir().unwrap(), model("a"));
        let cache = EmbeddingCache::open(root.path(), model.path(), &SETTINGS).unwrap();
        let written = embedding(0.3);
        cache.write("a cat", &written, &written.digest()).unwrap();
        let again = EmbeddingCache::open(root.path(), model.path(), &SETTINGS).unwrap();
        let (read, digest) = again.read("a cat").unwrap();
        assert_eq!((read.digest(), digest), (written.digest(), written.digest()));
        assert!(again.has("a cat") && !again.has("a dog") && again.read("a dog").is_none());
    }

    #[test]
    fn everything_that_an_embedding_depends_on_keeps_caches_apart() {
        let root = tempfile::tempdir().unwrap();
        let (one, other) = (model("a"), model("b"));
        let directory = |model: &tempfile::TempDir, settings| {
            EmbeddingCache::open(root.path(), model.path(), &settings).unwrap().directory
        };
        let base = directory(&one, SETTINGS);
        assert_ne!(base, directory(&other, SETTINGS));
        let changed = |change: fn(&mut WeightOptions)| {
            let mut settings = SETTINGS;
            change(&mut settings.weights);
            directory(&one, settings)
        };
        assert_ne!(base, changed(|weights| weights.kind = Kind::BFloat16));
        assert_ne!(base, changed(|weights| weights.variant = Some("fp16".into())));
        assert_ne!(base, changed(|weights| weights.source = TensorSource::Random(1)));
        assert_ne!(base, directory(&one, EmbeddingSettings { max_sequence_length: 9, ..SETTINGS }));
        fs::write(one.path().join("transformer/file"), "longer").unwrap();
        assert_eq!(base, directory(&one, SETTINGS), "the transformer has no part in it");
        fs::write(one.path().join("tokenizer/file"), "longer").unwrap();
        assert_ne!(base, directory(&one, SETTINGS));
    }

    #[test]
    fn a_damaged_file_counts_as_absent_and_is_written_again() {
        let (root, model) = (tempfile::tempdir().unwrap(), model("a"));
        let cache = EmbeddingCache::open(root.path(), model.path(), &SETTINGS).unwrap();
        let written = embedding(0.3);
        cache.write("a cat", &written, &written.digest()).unwrap();
        let path = cache.path("a cat");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(cache.read("a cat").is_none());
        fs::write(&path, &bytes[..9]).unwrap();
        assert!(cache.read("a cat").is_none());
        cache.write("a cat", &written, &written.digest()).unwrap();
        assert_eq!(cache.read("a cat").unwrap().1, written.digest());
        assert_eq!(fs::read_dir(&cache.directory).unwrap().count(), 1, "nothing is left behind");
    }
}
