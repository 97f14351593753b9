//! Scenes: objects in the cells of a 2 × 2 grid, drawn at random to satisfy a prompt, and their pictures.

use thiserror::Error;

use crate::image::RgbImage;
use crate::prompt::{PromptSpec, Relation};
use crate::world::{BACKGROUND, Color, Shape, object_side};

const GRID: usize = 2;
const CELLS: usize = GRID * GRID;

/// A prompt that no scene of this world satisfies.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SceneError {
    /// No room for shapes that can be told apart.
    #[error("a scene of side {size} has no room for shapes; use 16 or more")]
    TooSmall {
        /// Side asked for, in pixels.
        size: usize,
    },
    /// More objects than cells.
    #[error("prompt `{prompt}` asks for {count} objects; a scene holds at most {CELLS}")]
    TooManyObjects {
        /// The prompt's words.
        prompt: String,
        /// Objects asked for.
        count: usize,
    },
    /// No placement satisfies the relations.
    #[error("prompt `{prompt}` asks for relations that no placement on the {GRID} x {GRID} grid satisfies")]
    NoPlacement {
        /// The prompt's words.
        prompt: String,
    },
}

/// One object, placed in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Its class.
    pub shape: Shape,
    /// Its colour.
    pub color: Color,
    /// First column of its box.
    pub left: usize,
    /// First row of its box.
    pub top: usize,
    /// Side of its box.
    pub side: usize,
}

/// Objects on a dark ground; boxes of different objects are at least one pixel apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scene {
    /// Side of the picture in pixels.
    pub size: usize,
    /// What is in it, in the order of the prompt's demands.
    pub objects: Vec<Object>,
}

impl Scene {
    /// Draws a scene that satisfies `spec`, uniform over cells, jitter, and colours left open.
    ///
    /// `uniform` gives numbers in `[0, 1)`; how many are taken depends on the count of objects alone. `size` is the
    /// picture's side in pixels, 16 or more. Objects of a relation share their row or column.
    ///
    /// # Errors
    /// If `size` is too small, or the prompt asks for more than four objects or for relations that contradict each
    /// other.
    pub fn sample(
        spec: &PromptSpec,
        uniform: &mut impl FnMut() -> f32,
        size: usize,
    ) -> Result<Self, SceneError> {
        if size < 16 {
            return Err(SceneError::TooSmall { size });
        }
        let count = spec.include.iter().fold(0_usize, |sum, want| sum.saturating_add(want.count));
        if count > CELLS {
            return Err(SceneError::TooManyObjects { prompt: spec.prompt.clone(), count });
        }
        let demands = spec.include.iter().enumerate();
        let owners: Vec<usize> =
            demands.flat_map(|(idx, want)| std::iter::repeat_n(idx, want.count)).collect();
        let placements = placements(spec, &owners);
        if placements.is_empty() {
            return Err(SceneError::NoPlacement { prompt: spec.prompt.clone() });
        }
        let cells = &placements[draw(uniform, placements.len())];
        let objects = owners.iter().zip(cells).map(|(&owner, &cell)| {
            let want = &spec.include[owner];
            // Drawn even where the prompt names the colour, so that the count of draws does not depend on it.
            let any_color = Color::ALL[draw(uniform, Color::ALL.len())];
            let (left, top) =
                (first_pixel(cell % GRID, size, uniform), first_pixel(cell / GRID, size, uniform));
            let color = want.color.unwrap_or(any_color);
            Object { shape: want.class, color, left, top, side: object_side(size) }
        });
        Ok(Self { size, objects: objects.collect() })
    }

    /// The scene's picture: crisp edges, no noise.
    ///
    /// # Panics
    /// If an object reaches outside the picture.
    pub fn render(&self) -> RgbImage {
        let mut image = RgbImage::filled(self.size, self.size, BACKGROUND);
        for object in &self.objects {
            for y in 0..object.side {
                for x in 0..object.side {
                    if object.shape.covers(x, y, object.side) {
                        image.set_pixel(object.left + x, object.top + y, object.color.rgb());
                    }
                }
            }
        }
        image
    }
}

fn draw(uniform: &mut impl FnMut() -> f32, n_choices: usize) -> usize {
    ((uniform() * n_choices as f32) as usize).min(n_choices - 1)
}

/// First pixel of an object's box along one axis: one of two, so that neighbours never touch.
fn first_pixel(cell: usize, size: usize, uniform: &mut impl FnMut() -> f32) -> usize {
    let cell_side = size / GRID;
    let margin = (cell_side - object_side(size) - 1) / 2;
    cell * cell_side + margin + draw(uniform, 2)
}

/// Every way to put the objects into different cells such that the relations hold.
fn placements(spec: &PromptSpec, owners: &[usize]) -> Vec<Vec<usize>> {
    let mut found = vec![Vec::new()];
    for _ in owners {
        found = found.iter().flat_map(|cells| extensions(cells)).collect();
    }
    found.retain(|cells| relations_hold(spec, owners, cells));
    found
}

fn extensions(cells: &[usize]) -> Vec<Vec<usize>> {
    let free = (0..CELLS).filter(|cell| !cells.contains(cell));
    free.map(|cell| cells.iter().copied().chain([cell]).collect()).collect()
}

fn relations_hold(spec: &PromptSpec, owners: &[usize], cells: &[usize]) -> bool {
    let placed = || owners.iter().zip(cells);
    placed().all(|(&owner, &cell)| match spec.include[owner].position {
        None => true,
        Some((relation, target)) => placed()
            .filter(|&(&other_owner, _)| other_owner == target)
            .all(|(_, &target_cell)| relation_holds(relation, cell, target_cell)),
    })
}

fn relation_holds(relation: Relation, cell: usize, target: usize) -> bool {
    let ((column, row), (target_column, target_row)) =
        ((cell % GRID, cell / GRID), (target % GRID, target / GRID));
    match relation {
        Relation::LeftOf => row == target_row && column < target_column,
        Relation::RightOf => row == target_row && column > target_column,
        Relation::Above => column == target_column && row < target_row,
        Relation::Below => column == target_column && row > target_row,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::{Include, Tag};
    use crate::universe::all_prompts;

    /// A small linear congruential generator: enough for drawing scenes.
    fn uniform_source(mut state: u64) -> impl FnMut() -> f32 {
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1_u64 << 24) as f32
        }
    }

    #[test]
    fn scene_has_what_the_prompt_asks_for() {
        let mut uniform = uniform_source(1);
        for spec in all_prompts() {
            let scene = Scene::sample(&spec, &mut uniform, 16).expect("prompt of this world");
            assert_eq!(scene.objects.len(), spec.include.iter().map(|want| want.count).sum::<usize>());
            for want in &spec.include {
                let fits = |object: &&Object| {
                    object.shape == want.class && want.color.is_none_or(|color| object.color == color)
                };
                assert_eq!(scene.objects.iter().filter(fits).count(), want.count, "{}", spec.prompt);
            }
        }
    }

    #[test]
    fn boxes_stay_inside_and_apart() {
        let mut uniform = uniform_source(2);
        for size in [16, 24, 32] {
            for spec in all_prompts() {
                let objects = Scene::sample(&spec, &mut uniform, size).expect("prompt of this world").objects;
                for (idx, first) in objects.iter().enumerate() {
                    assert!(first.left + first.side <= size && first.top + first.side <= size);
                    for second in &objects[idx + 1..] {
                        let apart = first.left.abs_diff(second.left) > first.side
                            || first.top.abs_diff(second.top) > first.side;
                        assert!(apart, "{first:?} touches {second:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn same_numbers_draw_the_same_picture_and_others_do_not() {
        let spec = &all_prompts()[0];
        let picture = |seed| Scene::sample(spec, &mut uniform_source(seed), 16).expect("one object").render();
        assert_eq!(picture(3), picture(3));
        assert!((4..20).any(|seed| picture(seed) != picture(3)));
    }

    #[test]
    fn impossible_prompts_are_refused() {
        let circle = Include::one(Shape::Circle);
        let spec = |include: Vec<Include>| PromptSpec {
            tag: Tag::Counting,
            include,
            exclude: Vec::new(),
            prompt: "odd".to_owned(),
        };
        let five = Scene::sample(&spec(vec![Include { count: 5, ..circle.clone() }]), &mut || 0.0, 16);
        assert_eq!(five, Err(SceneError::TooManyObjects { prompt: "odd".to_owned(), count: 5 }));
        let left_of_itself = Include { position: Some((Relation::LeftOf, 0)), ..circle };
        let contradiction = Scene::sample(&spec(vec![left_of_itself]), &mut || 0.0, 16);
        assert_eq!(contradiction, Err(SceneError::NoPlacement { prompt: "odd".to_owned() }));
        assert_eq!(Scene::sample(&all_prompts()[0], &mut || 0.0, 15), Err(SceneError::TooSmall { size: 15 }));
    }
}
