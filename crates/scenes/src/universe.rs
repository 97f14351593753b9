//! Every prompt of the world, and every word.

use crate::prompt::{Exclude, Include, PromptSpec, Relation, Tag};
use crate::world::{Color, Shape};

const NUMBERS: [(usize, &str); 3] = [(2, "two"), (3, "three"), (4, "four")];

/// Every prompt of the world, always in the same order.
pub fn all_prompts() -> Vec<PromptSpec> {
    let mut prompts = Vec::new();
    for shape in Shape::ALL {
        prompts.extend(["a", "one"].map(|article| single_object(article, shape)));
        prompts.extend(Color::ALL.map(|color| colors(color, shape)));
        for number in NUMBERS {
            prompts.extend(maybe_colors().map(|color| counting(number, color, shape)));
        }
    }
    for (first, second) in shape_pairs() {
        prompts.push(two_object(first, second));
        prompts.extend(color_pairs().map(|colors| color_attr(colors, first, second)));
        for relation in Relation::ALL {
            prompts.extend(maybe_colors().map(|color| position(color, first, relation, second)));
        }
    }
    prompts
}

/// Every word that a prompt may hold, sorted.
pub fn vocabulary() -> Vec<&'static str> {
    let mut words = vec!["a", "one", "and"];
    words.extend(NUMBERS.map(|(_, word)| word));
    words.extend(Shape::ALL.iter().flat_map(|shape| [shape.word(), shape.plural()]));
    words.extend(Color::ALL.map(Color::word));
    words.extend(Relation::ALL.iter().flat_map(|relation| relation.words().split(' ')));
    words.sort_unstable();
    words.dedup();
    words
}

fn maybe_colors() -> impl Iterator<Item = Option<Color>> {
    std::iter::once(None).chain(Color::ALL.map(Some))
}

fn shape_pairs() -> impl Iterator<Item = (Shape, Shape)> {
    // Equal classes are left out: GenEval counts per class, so "a red circle and a blue circle" could never be right.
    ordered_pairs(Shape::ALL)
}

fn color_pairs() -> impl Iterator<Item = (Color, Color)> {
    ordered_pairs(Color::ALL)
}

fn ordered_pairs<T: Copy + PartialEq, const N: usize>(all: [T; N]) -> impl Iterator<Item = (T, T)> {
    all.into_iter()
        .flat_map(move |first| all.into_iter().map(move |second| (first, second)))
        .filter(|(a, b)| a != b)
}

fn named(color: Option<Color>, shape: &str) -> String {
    match color {
        Some(color) => format!("{} {shape}", color.word()),
        None => shape.to_owned(),
    }
}

fn spec(tag: Tag, include: Vec<Include>, prompt: String) -> PromptSpec {
    PromptSpec { tag, include, exclude: Vec::new(), prompt }
}

fn single_object(article: &str, shape: Shape) -> PromptSpec {
    spec(Tag::SingleObject, vec![Include::one(shape)], format!("{article} {}", shape.word()))
}

fn colors(color: Color, shape: Shape) -> PromptSpec {
    let include = Include { color: Some(color), ..Include::one(shape) };
    spec(Tag::Colors, vec![include], format!("a {} {}", color.word(), shape.word()))
}

fn counting((count, number): (usize, &str), color: Option<Color>, shape: Shape) -> PromptSpec {
    let include = vec![Include { count, color, ..Include::one(shape) }];
    let exclude = vec![Exclude { class: shape, count: count + 1 }];
    let prompt = format!("{number} {}", named(color, shape.plural()));
    PromptSpec { exclude, ..spec(Tag::Counting, include, prompt) }
}

fn two_object(first: Shape, second: Shape) -> PromptSpec {
    let include = vec![Include::one(first), Include::one(second)];
    spec(Tag::TwoObject, include, format!("a {} and a {}", first.word(), second.word()))
}

fn color_attr((first_color, second_color): (Color, Color), first: Shape, second: Shape) -> PromptSpec {
    let include = vec![
        Include { color: Some(first_color), ..Include::one(first) },
        Include { color: Some(second_color), ..Include::one(second) },
    ];
    let (first, second) = (named(Some(first_color), first.word()), named(Some(second_color), second.word()));
    spec(Tag::ColorAttr, include, format!("a {first} and a {second}"))
}

fn position(color: Option<Color>, subject: Shape, relation: Relation, reference: Shape) -> PromptSpec {
    let placed = Include { color, position: Some((relation, 0)), ..Include::one(subject) };
    let prompt = format!("a {} {} a {}", named(color, subject.word()), relation.words(), reference.word());
    spec(Tag::Position, vec![Include::one(reference), placed], prompt)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn prompts_are_all_different_and_use_the_vocabulary() {
        let prompts = all_prompts();
        let words = vocabulary();
        let mut seen = HashSet::new();
        for spec in &prompts {
            assert!(seen.insert(&spec.prompt), "{} twice", spec.prompt);
            assert!(spec.prompt.split(' ').all(|word| words.contains(&word)), "{}", spec.prompt);
        }
        assert_eq!(prompts.len(), 8 + 24 + 84 + 12 + 360 + 336);
    }

    #[test]
    fn metadata_has_the_form_of_geneval() {
        let expected = [
            r#"{"tag":"counting","include":[{"class":"square","count":3,"color":"green"}],"exclude":[{"class":"square","count":4}],"prompt":"three green squares"}"#,
            r#"{"tag":"position","include":[{"class":"triangle","count":1},{"class":"cross","count":1,"color":"blue","position":["above",0]}],"prompt":"a blue cross above a triangle"}"#,
            r#"{"tag":"two_object","include":[{"class":"circle","count":1},{"class":"cross","count":1}],"prompt":"a circle and a cross"}"#,
        ];
        let lines: HashSet<String> =
            all_prompts().iter().map(|spec| serde_json::to_string(spec).expect("plain data")).collect();
        for line in expected {
            assert!(lines.contains(line), "no prompt gives {line}");
        }
    }
}
