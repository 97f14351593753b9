//! Images as PNG files whose names say which prompt they belong to: `00012-3.png` is image 3 of prompt 12.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rewards::RgbImage;

/// The name of an image of a prompt.
pub fn name(prompt: u32, image: u32) -> String {
    format!("{prompt:05}-{image}.png")
}

/// Whether a file would be taken for an image of a prompt.
pub fn is_one(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"))
        && prompt_of(path).is_some()
}

/// Which prompt an image file belongs to, by its name.
fn prompt_of(path: &Path) -> Option<u32> {
    let stem = path.file_stem()?.to_str()?;
    stem.split_once('-').map_or(stem, |(prompt, _)| prompt).parse().ok()
}

/// All PNG files of a folder with the prompts they belong to, sorted by name; hidden ones, such as those that macOS puts
/// beside files on foreign disks (`._00012-3.png`), are no images.
///
/// # Errors
/// If the folder cannot be read, holds no PNG file, or one whose name does not begin with a number.
pub fn list(folder: &Path) -> anyhow::Result<Vec<(PathBuf, u32)>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("reading the folder {}", folder.display()))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    let mut paths: Vec<PathBuf> = paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) && !is_hidden(path))
        .collect();
    paths.sort();
    anyhow::ensure!(
        !paths.is_empty(),
        "{} holds no file of the name NUMBER.png; only PNG files are read",
        folder.display()
    );
    let with_prompt = |path: PathBuf| {
        let prompt = prompt_of(&path).with_context(|| {
            format!(
                "{}: the name does not begin with the number of a prompt, as in 00012-3.png",
                path.display()
            )
        })?;
        Ok((path, prompt))
    };
    paths.into_iter().map(with_prompt).collect()
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Reads an image file.
///
/// # Errors
/// If it cannot be read or decoded.
pub fn read(path: &Path) -> anyhow::Result<RgbImage> {
    // To open a pipe is to wait for who writes to it.
    config::open_regular(path).with_context(|| format!("cannot read the image {}", path.display()))?;
    let opened = image::open(path);
    let image =
        opened.map_err(|error| anyhow::anyhow!("cannot read the image {}: {error}", path.display()))?;
    let image = image.into_rgb8();
    let (width, height) = image.dimensions();
    Ok(RgbImage::new(width as usize, height as usize, image.into_raw())?)
}

/// Writes an image file, whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn write(path: &Path, image: &RgbImage) -> anyhow::Result<()> {
    let (width, height) = (image.width as u32, image.height as u32);
    let partial = path.with_extension("partial");
    let (kind, format) = (image::ExtendedColorType::Rgb8, image::ImageFormat::Png);
    image::save_buffer_with_format(&partial, &image.pixels, width, height, kind, format)
        .map_err(anyhow::Error::from)
        .and_then(|()| Ok(std::fs::rename(&partial, path)?))
        .inspect_err(|_| {
            let _ = std::fs::remove_file(&partial);
        })
        .with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_come_back_with_their_prompts() {
        let folder = tempfile::tempdir().unwrap();
        let image = RgbImage::new(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        for (prompt, number) in [(10, 1), (2, 0)] {
            write(&folder.path().join(name(prompt, number)), &image).unwrap();
        }
        let listed = list(folder.path()).unwrap();
        assert_eq!(listed.iter().map(|(_, prompt)| *prompt).collect::<Vec<_>>(), [2, 10]);
        assert_eq!(read(&listed[0].0).unwrap(), image);
    }

    #[test]
    fn what_file_managers_leave_in_a_folder_is_no_image() {
        let folder = tempfile::tempdir().unwrap();
        let image = RgbImage::new(1, 1, vec![1, 2, 3]).unwrap();
        write(&folder.path().join(name(3, 0)), &image).unwrap();
        std::fs::create_dir(folder.path().join(".thumbnails.png")).unwrap();
        for left in ["._00003-0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".00003-0.png.swp"] {
            std::fs::write(folder.path().join(left), b"no image").unwrap();
        }
        assert_eq!(list(folder.path()).unwrap(), [(folder.path().join(name(3, 0)), 3)]);
    }

    #[test]
    fn nameless_images_and_empty_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(
            list(folder.path()).unwrap_err().to_string().contains("holds no file of the name NUMBER.png")
        );
        std::fs::write(folder.path().join("cat.png"), b"").unwrap();
        assert!(list(folder.path()).unwrap_err().to_string().contains("cat.png"));
    }
}
