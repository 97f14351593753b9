//! Which images a scorer takes, known before it is built.

use std::fmt;
use std::ops::RangeInclusive;

/// Sides of the squares, in pixels, in which `shapes` finds any.
pub const SHAPES_SIDES: RangeInclusive<usize> = 16..=64;
/// Shortest side, in pixels, at which Tesseract can tell ink from paper.
pub const OCR_SHORTEST_SIDE: usize = 8;
/// How many times the shorter side the longer one may be where images are resized by the shorter: beyond this, they would not
/// fit into memory.
pub const CLIP_MOST_RATIO: usize = 100;
/// The same for HPSv3, whose processor refuses what is narrower.
pub const HPSV3_MOST_RATIO: usize = 200;

/// Sizes of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ImageSizes {
    /// All.
    Any,
    /// Squares with such a side.
    Squares(RangeInclusive<usize>),
    /// Those with both sides at least so long.
    AtLeast(usize),
    /// Those whose longer side is at most so many times the shorter.
    NoNarrowerThan(usize),
}

impl ImageSizes {
    /// Those that a scorer takes.
    pub(crate) fn of_scorer(scorer: &str) -> Self {
        match scorer {
            "shapes" => Self::Squares(SHAPES_SIDES),
            "ocr" => Self::AtLeast(OCR_SHORTEST_SIDE),
            "clipscore" | "hpsv2.1" => Self::NoNarrowerThan(CLIP_MOST_RATIO),
            "hpsv3" => Self::NoNarrowerThan(HPSV3_MOST_RATIO),
            _ => Self::Any,
        }
    }

    /// Whether an image of that size is among them.
    pub(crate) fn has(&self, (width, height): (usize, usize)) -> bool {
        match self {
            Self::Any => true,
            Self::Squares(sides) => width == height && sides.contains(&width),
            Self::AtLeast(side) => width.min(height) >= *side,
            Self::NoNarrowerThan(ratio) => width.max(height) <= width.min(height).saturating_mul(*ratio),
        }
    }
}

impl fmt::Display for ImageSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("images of any size"),
            Self::Squares(sides) => {
                write!(f, "squares with a side of {} to {} pixels", sides.start(), sides.end())
            }
            Self::AtLeast(side) => write!(f, "images with at least {side} pixels on either side"),
            Self::NoNarrowerThan(ratio) => {
                write!(f, "images whose longer side is at most {ratio} times the shorter")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::REWARD_NAMES;

    #[test]
    fn each_scorer_takes_its_sizes() {
        for (scorer, taken, refused) in [
            ("shapes", &[(32, 32), (16, 16), (64, 64)][..], &[(32, 64), (8, 8), (512, 512)][..]),
            ("ocr", &[(8, 512)], &[(7, 512)]),
            ("clipscore", &[(100, 1), (512, 512)], &[(101, 1), (1, 101)]),
            ("hpsv2.1", &[(100, 1)], &[(101, 1)]),
            ("hpsv3", &[(200, 1)], &[(201, 1)]),
            ("geneval", &[(1, 4096)], &[]),
        ] {
            assert!(REWARD_NAMES.contains(&scorer), "{scorer}");
            let sizes = ImageSizes::of_scorer(scorer);
            assert!(taken.iter().all(|size| sizes.has(*size)), "{scorer}");
            assert!(!refused.iter().any(|size| sizes.has(*size)), "{scorer}");
        }
    }
}
