//! Where the cases of a model are, and how to make some.

use std::path::{Path, PathBuf};

use crate::error::ModelError;

const SCRIPT: &str = "tests/reference/write_cases.py";
const DEFAULT_FOLDER: &str = "cases";

/// The folder of a model's cases: the one given, else `cases` in the model's folder where there is one, else that folder
/// itself.
///
/// # Errors
/// If there is no such folder.
pub fn case_folder(model: &Path, cases: Option<&Path>) -> Result<PathBuf, ModelError> {
    if !model.is_dir() {
        return Err(ModelError::Input(format!("model directory {} does not exist", model.display())));
    }
    match cases {
        Some(cases) if cases.is_dir() => Ok(cases.to_owned()),
        Some(cases) => Err(ModelError::Input(format!(
            "case directory {} does not exist; check `--cases`, or {}",
            cases.display(),
            how_to_record(model, Some(cases))
        ))),
        None => {
            let inside = model.join(DEFAULT_FOLDER);
            Ok(if inside.is_dir() { inside } else { model.to_owned() })
        }
    }
}

/// What to type to have cases of a pipeline, and to compare with them.
pub fn how_to_record(model: &Path, cases: Option<&Path>) -> String {
    let (model, cases) = (quoted(model), quoted(cases.unwrap_or(Path::new(DEFAULT_FOLDER))));
    format!(
        "record some where PyTorch, diffusers and peft are installed, in the repository's root: `python {SCRIPT} --model \
         {model} --out {cases}`, then compare with `--cases {cases}`"
    )
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+@:,".contains(c);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        let told = how_to_record(Path::new("/a model/it's"), None);
        assert!(told.contains(r"write_cases.py --model '/a model/it'\''s' --out cases`"), "{told}");
        assert!(how_to_record(Path::new("/m"), Some(Path::new("/c"))).contains("--model /m --out /c`"));
    }
}
