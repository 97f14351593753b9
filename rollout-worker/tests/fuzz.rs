//! A bounded run of what reads images to be scored, see docs/fuzzing.md.

use fuzzing::{CountingAllocator, INSTRUMENTED_SYSTEM, MemoryBound, Target};
use rewards::RgbImage;
use rollout_worker::commands::image_file;

#[global_allocator]
static ALLOCATOR: &CountingAllocator = &INSTRUMENTED_SYSTEM;

/// A few bytes may stand for a large image: the decoder takes 512 MiB at most, and its colours are turned into others.
const TARGETS: &[Target] = &[Target {
    name: "png",
    examples: images,
    check: check_image,
    memory: MemoryBound { per_byte: 64, fixed: 1 << 30 },
}];

#[test]
fn no_image_makes_its_decoder_panic_hang_or_take_more_memory_than_its_bound() {
    fuzzing::run(TARGETS, ALLOCATOR, |line| eprintln!("{line}"));
}

fn images() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |(width, height): (usize, usize)| {
        let pixels = (0..width * height * 3).map(|position| (position * 7) as u8).collect();
        let path = folder.path().join("0.png");
        image_file::write(&path, &RgbImage::new(width, height, pixels).expect("whole")).expect("written");
        std::fs::read(&path).expect("read")
    };
    [(1, 1), (16, 9), (64, 64)].map(file).to_vec()
}

/// An image that is read has as many pixels as it says.
fn check_image(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("0.png");
    std::fs::write(&path, bytes).expect("written");
    match image_file::read(&path) {
        Ok(image) => {
            assert_eq!(image.pixels.len(), 3 * image.width * image.height, "pixels are missing");
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty(), "an error without a message");
            false
        }
    }
}
