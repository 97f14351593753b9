//! What was trained, as files: an adapter or a whole transformer, at whatever level of an export a user names it.

use std::path::{Path, PathBuf};

use tch::Tensor;

use crate::adapter_file::SavedAdapter;
use crate::error::ModelError;
use crate::network::Network;
use crate::weights::{read_all, safetensors_files};

/// Folders of an export, as the learner writes it.
const TRANSFORMER_FOLDER: &str = "transformer";
/// What a run's directory keeps its exports in.
const ADAPTER_FOLDER: &str = "adapter";
const PIPELINE_INDEX: &str = "model_index.json";
/// Beginning of the names of a transformer's files.
const TRANSFORMER_STEM: &str = "diffusion_pytorch_model";

/// What can be put into the network of a model.
#[derive(Debug)]
pub enum SavedWeights {
    /// Low-rank updates of some modules.
    Adapter(PathBuf, SavedAdapter),
    /// All tensors of the network, by their names in a checkpoint.
    Transformer(PathBuf, Vec<(String, Tensor)>),
}

impl SavedWeights {
    /// Reads what `coordinator export` wrote or a run keeps in `adapter/`: the folder, one of the folders in it, or a file
    /// of them; and whatever else [`SavedAdapter::read`] reads.
    ///
    /// # Errors
    /// If there is nothing of the kind, or a file is damaged.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        if !path.exists() {
            return Err(ModelError::MissingFile {
                path: path.to_owned(),
                remedy: WHAT_THERE_COULD_BE.to_owned(),
            });
        }
        let elsewhere = |what: String| Err(ModelError::Adapter(format!("{} {what}", path.display())));
        if path.join(PIPELINE_INDEX).is_file() {
            return elsewhere("is a whole pipeline; give it as the model".to_owned());
        }
        if path.join(ADAPTER_FOLDER).is_dir() {
            let last = path.join(ADAPTER_FOLDER);
            let (last, best) = (last.display(), last.join("best"));
            return elsewhere(format!(
                "is the directory of a run; name {last} for its last version or {} for its best",
                best.display()
            ));
        }
        let files = transformer_files(path)?;
        if files.is_empty() {
            return Ok(Self::Adapter(path.to_owned(), SavedAdapter::read(path)?));
        }
        let mut tensors = Vec::new();
        for file in &files {
            tensors.extend(read_all(file)?.0);
        }
        Ok(Self::Transformer(path.to_owned(), tensors))
    }

    /// Puts the values into a network.
    ///
    /// # Errors
    /// If they are another network's; the error names their file.
    pub fn load_into(&self, network: &mut dyn Network) -> Result<(), ModelError> {
        match self {
            Self::Adapter(path, adapter) => adapter.put_into(path, network),
            Self::Transformer(path, tensors) => {
                network.load_checkpoint(tensors).map_err(|error| error.of_file(path))
            }
        }
    }

    /// What an adapter's file has for other parts of the pipeline.
    pub fn left_out(&self) -> &[String] {
        match self {
            Self::Adapter(_, adapter) => &adapter.left_out,
            Self::Transformer(..) => &[],
        }
    }
}

const WHAT_THERE_COULD_BE: &str = "give a PEFT folder, a LoRA file as diffusers writes it, or a folder that \
                                   `coordinator export` wrote";

/// The files of a whole transformer, where the path is one or a folder of them or holds one; else none.
fn transformer_files(path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    if path.is_file() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        return Ok(if name.starts_with(TRANSFORMER_STEM) { vec![path.to_owned()] } else { Vec::new() });
    }
    match safetensors_files(path, TRANSFORMER_STEM)? {
        files if files.is_empty() => safetensors_files(&path.join(TRANSFORMER_FOLDER), TRANSFORMER_STEM),
        files => Ok(files),
    }
}
