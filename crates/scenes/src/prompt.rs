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

    /// The relation in which the second object stands to the first.
    pub fn inverse(self) -> Self {
        match self {
            Self::LeftOf => Self::RightOf,
            Self::RightOf => Self::LeftOf,
            Self::Above => Self::Below,
            Self::Below => Self::Above,
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

impl PromptSpec {
    /// What the prompt asks for, the same text for all wordings of it: "a circle and a cross" as "a cross and a circle",
    /// "a circle above a cross" as "a cross below a circle", "one circle" as "a circle".
    pub fn meaning(&self) -> String {
        let mut demands: Vec<String> = self.include.iter().map(Include::demand).collect();
        let placed = self.include.iter().enumerate().find_map(|(subject, include)| {
            include.position.map(|(relation, reference)| (subject, relation, reference))
        });
        match placed {
            Some((subject, relation @ (Relation::LeftOf | Relation::Above), reference)) => {
                format!("{} {} {}", demands[subject], relation.words(), demands[reference])
            }
            Some((subject, relation, reference)) => {
                format!("{} {} {}", demands[reference], relation.inverse().words(), demands[subject])
            }
            None => {
                demands.sort_unstable();
                demands.join(" and ")
            }
        }
    }
}

impl Include {
    /// The demand without its place: number, colour and class.
    fn demand(&self) -> String {
        let color = self.color.map_or("", Color::word);
        format!("{} {color} {}", self.count, self.class.word())
    }
}

#[cfg(test)]
mod tests {
    use crate::universe::all_prompts;

    fn meaning(prompt: &str) -> String {
        let specs = all_prompts();
        specs.iter().find(|spec| spec.prompt == prompt).expect("a prompt of the world").meaning()
    }

    #[test]
    fn wordings_of_one_meaning_are_told_from_other_meanings() {
        for (wording, other_wording) in [
            ("a green circle and a yellow square", "a yellow square and a green circle"),
            ("a circle and a cross", "a cross and a circle"),
            ("a circle above a cross", "a cross below a circle"),
            ("a square right of a triangle", "a triangle left of a square"),
            ("one circle", "a circle"),
        ] {
            assert_eq!(meaning(wording), meaning(other_wording));
        }
        for (prompt, other) in [
            ("a green circle and a yellow square", "a yellow circle and a green square"),
            ("a circle above a cross", "a cross above a circle"),
            ("a circle above a cross", "a circle left of a cross"),
            ("a red circle above a cross", "a circle above a cross"),
            ("a circle", "a red circle"),
            ("two circles", "three circles"),
            ("two circles", "two red circles"),
        ] {
            assert_ne!(meaning(prompt), meaning(other), "{prompt}, {other}");
        }
    }
}
