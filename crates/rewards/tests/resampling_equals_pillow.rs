//! Resized pictures are to the bit what Pillow made (`tests/golden/resampling/make_resampling.py`).

use std::path::{Path, PathBuf};

use rewards::RgbImage;
use rewards::image_resampling::resize_bicubic;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/resampling")
}

fn read_png(path: &Path) -> RgbImage {
    let picture = image::open(path).expect("golden picture").to_rgb8();
    RgbImage::new(picture.width() as usize, picture.height() as usize, picture.into_raw())
        .expect("full buffer")
}

#[test]
fn larger_smaller_mixed_and_one_pixel_sizes_equal_pillows() {
    let mut n_compared = 0;
    for entry in std::fs::read_dir(golden()).expect("golden folder") {
        let path = entry.expect("golden file").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("plain name").to_owned();
        let Some((from, _)) = name.split_once("_to_") else { continue };
        let source = read_png(&golden().join(format!("{from}.png")));
        let expected = read_png(&path);
        let resized = resize_bicubic(&source, expected.width, expected.height);
        assert!(resized == expected, "{name}");
        n_compared += 1;
    }
    assert_eq!(n_compared, 21);
}
