//! A cuDNN that the loader takes in place of libtorch's own.

use std::path::{Path, PathBuf};

const SEARCHED: &str = "LD_LIBRARY_PATH";

/// What is to be said where `LD_LIBRARY_PATH` names a folder with a cuDNN: cuDNN loads its parts by name, and parts of two
/// versions do not work together.
pub fn shadowed_cudnn() -> Option<String> {
    let searched = std::env::var_os(SEARCHED)?;
    let folder = std::env::split_paths(&searched).find(|folder| has_cudnn(folder))?;
    Some(warning(folder))
}

fn warning(folder: PathBuf) -> String {
    format!(
        "{SEARCHED} names {}, whose cuDNN is taken in place of the one that libtorch brings; unless they are the same, \
         CUDA fails at the first convolution: take the folder out, or start with `env -u {SEARCHED}`",
        folder.display()
    )
}

fn has_cudnn(folder: &Path) -> bool {
    // An empty entry is the working directory.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("libcudnn") && name.contains(".so")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_cudnn_is_told_from_one_without() {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::write(home.path().join("libcudart.so.13"), "").expect("written");
        assert!(!has_cudnn(home.path()));
        std::fs::write(home.path().join("libcudnn_graph.so.9"), "").expect("written");
        assert!(has_cudnn(home.path()) && !has_cudnn(Path::new("/no/folder")));
        let told = warning(home.path().to_owned());
        assert!(
            told.contains(&home.path().display().to_string()) && told.contains("env -u LD_LIBRARY_PATH"),
            "{told}"
        );
    }
}
