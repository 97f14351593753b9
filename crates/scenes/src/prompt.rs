//! A prompt and what it asks for, in GenEval's metadata schema.

use serde::{Deserialize, Serialize};

use crate::world::{Color, Shape};

/// What a prompt tests; the names are GenEval's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tag {
    /// One object of a class.
    SingleObject,
    /// Two objects of different classes.
    TwoObject,
    /// Several objects of one class.
    Counting,
    /// One object of a colour.
    Colors,
    /// Two objects and where one is, seen from the other.
    Position,
    /// Two objects, each of its own colour.
    ColorAttr,
}

impl Tag {
    /// Every tag.
    pub const ALL: [Self; 6] =
        [Self::SingleObject, Self::TwoObject, Self::Counting, Self::Colors, Self::Position, Self::ColorAttr];

    /// Its name in the metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleObject => "single_object",
            Self::TwoObject => "two_object",
            Self::Counting => "counting",
            Self::Colors => "colors",
            Self::Position => "position",
            Self::ColorAttr => "color_attr",
        }
    }
}

/// Where an object is, seen from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Relation {
    /// To the left.
    #[serde(rename = "left of")]
    LeftOf,
    /// To the right.
    #[serde(rename = "right of")]
    RightOf,
    /// Higher in the picture.
    #[serde(rename = "above")]
    Above,
    /// Lower in the picture.
    #[serde(rename = "below")]
    Below,
}

impl Relation {
    /// Every relation.
    pub const ALL: [Self; 4] = [Self::LeftOf, Self::RightOf, Self::Above, Self::Below];

    /// The words for it.
    pub fn words(self) -> &'static str {
        match self {
            Self::LeftOf => "left of",
            Self::RightOf => "right of",
            Self::Above => "above",
            Self::Below => "below",
        }
    }
}

/// One demand of a prompt: so many objects of a class, perhaps of a colour, perhaps placed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Include {
    /// Class of the objects.
    pub class: Shape,
    /// How many of them.
    pub count: usize,
    /// Their colour, if the prompt names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<Color>,
    /// Where they are, seen from the objects of an earlier demand (its index).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<(Relation, usize)>,
}

impl Include {
    /// One object of a class, nothing else asked.
    pub fn one(class: Shape) -> Self {
        Self { class, count: 1, color: None, position: None }
    }
}

/// What must not be: this many objects of a class, or more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exclude {
    /// Class of the objects.
    pub class: Shape,
    /// From how many on it is wrong.
    pub count: usize,
}

/// A prompt with its demands; serialises to one line of GenEval's JSONL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptSpec {
    /// What it tests.
    pub tag: Tag,
    /// What must be in the picture.
    pub include: Vec<Include>,
    /// What must not be; GenEval fills it for counting only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Exclude>,
    /// The words.
    pub prompt: String,
}
