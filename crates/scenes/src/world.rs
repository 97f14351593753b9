//! What the world is made of: shapes, colours and their measures.

use serde::{Deserialize, Serialize};

/// Side of a picture in pixels, where nothing else is asked for.
pub const DEFAULT_IMAGE_SIZE: usize = 16;

/// The ground of every scene.
pub const BACKGROUND: [u8; 3] = [LOW, LOW, LOW];

const LOW: u8 = 24;
const HIGH: u8 = 240;

/// Side of an object's box in a picture of the given side: three quarters of a grid cell.
pub fn object_side(image_size: usize) -> usize {
    image_size * 3 / 8
}

/// A class of objects; serialised as its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// A disc.
    Circle,
    /// A full square.
    Square,
    /// A triangle that stands on its base.
    Triangle,
    /// A diagonal cross. An upright one would differ from a disc by four pixels at side 6.
    Cross,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 4] = [Self::Circle, Self::Square, Self::Triangle, Self::Cross];

    /// The word for one of it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Cross => "cross",
        }
    }

    /// The word for several.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Circle => "circles",
            Self::Square => "squares",
            Self::Triangle => "triangles",
            Self::Cross => "crosses",
        }
    }

    /// Whether the shape, drawn in a box of `side` pixels, covers column `x`, row `y` of the box.
    ///
    /// At side 6 any two shapes differ in at least 12 of 36 pixels.
    pub fn covers(self, x: usize, y: usize, side: usize) -> bool {
        // Twice the distance from the box's middle, so that it is whole for odd and even sides.
        let (across, down) = ((2 * x + 1).abs_diff(side), (2 * y + 1).abs_diff(side));
        match self {
            Self::Square => true,
            Self::Circle => 100 * (across * across + down * down) <= 92 * side * side,
            Self::Triangle => across <= y + 1,
            Self::Cross => (3 * across < side) == (3 * down < side),
        }
    }
}

/// A colour with a name; serialised as its word. All lie on corners of one cube in RGB, the ground on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Color {
    /// Red.
    Red,
    /// Green.
    Green,
    /// Blue.
    Blue,
    /// Red and green.
    Yellow,
    /// Red and blue.
    Purple,
    /// All three.
    White,
}

impl Color {
    /// Every colour.
    pub const ALL: [Self; 6] = [Self::Red, Self::Green, Self::Blue, Self::Yellow, Self::Purple, Self::White];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Yellow => "yellow",
            Self::Purple => "purple",
            Self::White => "white",
        }
    }

    /// Its 8-bit RGB value.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [HIGH, LOW, LOW],
            Self::Green => [LOW, HIGH, LOW],
            Self::Blue => [LOW, LOW, HIGH],
            Self::Yellow => [HIGH, HIGH, LOW],
            Self::Purple => [HIGH, LOW, HIGH],
            Self::White => [HIGH, HIGH, HIGH],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(first: Shape, second: Shape, side: usize) -> usize {
        let positions = (0..side * side).map(|index| (index % side, index / side));
        positions.filter(|&(x, y)| first.covers(x, y, side) != second.covers(x, y, side)).count()
    }

    #[test]
    fn shapes_differ_in_a_fifth_of_their_box_and_a_third_at_side_six() {
        for (side, least) in [(6, 0.33), (9, 0.2), (12, 0.2)] {
            for (idx, &first) in Shape::ALL.iter().enumerate() {
                for &second in &Shape::ALL[idx + 1..] {
                    let share = difference(first, second, side) as f32 / (side * side) as f32;
                    assert!(share > least, "{first:?} and {second:?} differ by {share} at side {side}");
                }
            }
        }
    }

    #[test]
    fn shapes_touch_all_four_sides_of_their_box() {
        for shape in Shape::ALL {
            for side in [5, 6, 7, 9, 12] {
                let last = side - 1;
                assert!((0..side).any(|x| shape.covers(x, 0, side)), "{shape:?} {side}");
                assert!((0..side).any(|x| shape.covers(x, last, side)), "{shape:?} {side}");
                assert!((0..side).any(|y| shape.covers(0, y, side)), "{shape:?} {side}");
                assert!((0..side).any(|y| shape.covers(last, y, side)), "{shape:?} {side}");
            }
        }
    }
}
