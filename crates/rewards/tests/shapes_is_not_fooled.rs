//! Pictures meant to fool the shapes scorer: none is correct, by its own strict verdict or by GenEval's.

use rewards::{PromptRecord, Reward, RgbImage, Score, ShapesOptions, ShapesReward};
use scenes::{BACKGROUND, Color, PromptSpec, Shape, all_prompts};
use serde_json::json;

const SIZE: usize = 16;
const SIDE: usize = 6;

fn record(spec: &PromptSpec) -> PromptRecord {
    PromptRecord { prompt: spec.prompt.clone(), metadata: serde_json::to_value(spec).expect("plain data") }
}

fn score_all(images: &[RgbImage], prompts: &[PromptRecord]) -> Vec<Score> {
    let reward = ShapesReward::new(ShapesOptions::default()).expect("defaults are in range");
    reward.score(images, prompts).expect("good input")
}

/// The score for a prompt of the world.
fn score(image: &RgbImage, prompt: &str) -> Score {
    let spec = all_prompts().into_iter().find(|spec| spec.prompt == prompt).expect("prompt of this world");
    score_all(std::slice::from_ref(image), &[record(&spec)]).remove(0)
}

fn is_strict(score: &Score) -> bool {
    score.extras["strict_accuracy"] == 1.0
}

/// Asserts that the picture earns nothing from any prompt of the world.
fn assert_worthless(image: &RgbImage, what: &str) {
    let prompts: Vec<PromptRecord> = all_prompts().iter().map(record).collect();
    for (score, prompt) in score_all(&vec![image.clone(); prompts.len()], &prompts).iter().zip(&prompts) {
        assert!(score.value <= 0.0, "{what} earns {} for {}", score.value, prompt.prompt);
        assert_eq!(score.extras["strict_accuracy"], 0.0, "{what} for {}", prompt.prompt);
        assert_eq!(score.extras["accuracy"], 0.0, "{what} for {}", prompt.prompt);
    }
}

fn empty() -> RgbImage {
    RgbImage::filled(SIZE, SIZE, BACKGROUND)
}

fn draw(image: &mut RgbImage, shape: Shape, color: [u8; 3], (left, top, side): (usize, usize, usize)) {
    for (x, y) in (0..side * side).map(|cell| (cell % side, cell / side)) {
        if shape.covers(x, y, side) {
            image.set_pixel(left + x, top + y, color);
        }
    }
}

fn drawn(objects: &[(Shape, Color, usize, usize)]) -> RgbImage {
    let mut image = empty();
    for &(shape, color, left, top) in objects {
        draw(&mut image, shape, color.rgb(), (left, top, SIDE));
    }
    image
}

/// Paint of the given strength over the ground.
fn faint(color: Color, strength: f32) -> [u8; 3] {
    let mix = |paint: u8, ground: u8| f32::from(paint) * strength + f32::from(ground) * (1.0 - strength);
    std::array::from_fn(|channel| mix(color.rgb()[channel], BACKGROUND[channel]).round() as u8)
}

#[test]
fn one_colour_all_over_earns_nothing() {
    assert_worthless(&empty(), "the bare ground");
    for color in Color::ALL {
        assert_worthless(&RgbImage::filled(SIZE, SIZE, color.rgb()), "a full screen");
    }
    assert_worthless(&RgbImage::filled(SIZE, SIZE, [128; 3]), "grey");
}

#[test]
fn checkerboards_and_stripes_earn_nothing() {
    for period in [1, 2, 3, 4] {
        for (first, second) in [(Color::Red.rgb(), BACKGROUND), (Color::Red.rgb(), Color::White.rgb())] {
            let mut board = empty();
            let mut stripes = empty();
            for (x, y) in (0..SIZE * SIZE).map(|at| (at % SIZE, at / SIZE)) {
                board.set_pixel(x, y, if (x / period + y / period) % 2 == 0 { first } else { second });
                stripes.set_pixel(x, y, if x / period % 2 == 0 { first } else { second });
            }
            assert_worthless(&board, "a checkerboard");
            assert_worthless(&stripes, "stripes");
        }
    }
}

#[test]
fn colour_noise_earns_nothing() {
    let mut state = 11_u64;
    let mut draw_below = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    for _ in 0..4 {
        let bytes = (0..SIZE * SIZE * 3).map(|_| draw_below(256) as u8).collect();
        assert_worthless(&RgbImage::new(SIZE, SIZE, bytes).expect("right length"), "noise");
        let palette = (0..SIZE * SIZE).flat_map(|_| Color::ALL[draw_below(6) as usize].rgb()).collect();
        assert_worthless(&RgbImage::new(SIZE, SIZE, palette).expect("right length"), "palette noise");
    }
}

#[test]
fn outlines_earn_nothing() {
    for shape in [Shape::Circle, Shape::Square, Shape::Triangle] {
        let mut image = drawn(&[(shape, Color::Green, 1, 1)]);
        draw(&mut image, shape, BACKGROUND, (2, 2, SIDE - 2));
        assert_worthless(&image, "an outline");
    }
}

#[test]
fn touching_shapes_are_no_two_shapes() {
    assert_worthless(
        &drawn(&[(Shape::Square, Color::Red, 0, 1), (Shape::Square, Color::Red, 6, 1)]),
        "a bar",
    );
    let image = drawn(&[(Shape::Circle, Color::Red, 1, 1), (Shape::Circle, Color::Red, 7, 1)]);
    assert!(score(&image, "two red circles").value <= 0.0);
    let image = drawn(&[(Shape::Circle, Color::Red, 1, 1), (Shape::Square, Color::Red, 7, 1)]);
    assert!(!is_strict(&score(&image, "a circle and a square")));
}

#[test]
fn giant_shapes_earn_nothing() {
    for shape in Shape::ALL {
        for side in [9, 12, SIZE] {
            let mut image = empty();
            draw(&mut image, shape, Color::Blue.rgb(), (0, 0, side));
            assert_worthless(&image, "a giant");
        }
    }
}

#[test]
fn shape_a_third_too_large_is_at_least_no_other_shape() {
    for shape in Shape::ALL {
        let mut image = empty();
        draw(&mut image, shape, Color::Blue.rgb(), (0, 0, 8));
        for other in Shape::ALL.into_iter().filter(|&other| other != shape) {
            assert!(!is_strict(&score(&image, &format!("a {}", other.word()))), "{shape:?} as {other:?}");
        }
    }
}

#[test]
fn specks_earn_nothing() {
    for shape in Shape::ALL {
        for side in [1, 2, 3] {
            let mut image = empty();
            for corner in [1, 5, 9, 12] {
                draw(&mut image, shape, Color::White.rgb(), (corner, corner, side));
            }
            assert_worthless(&image, "specks");
        }
    }
}

#[test]
fn ghosts_earn_nothing() {
    for shape in Shape::ALL {
        for color in Color::ALL {
            for strength in [0.3, 0.5, 0.6] {
                let mut image = empty();
                draw(&mut image, shape, faint(color, strength), (1, 1, SIDE));
                draw(&mut image, shape, faint(color, strength), (9, 9, SIDE));
                assert_worthless(&image, "a ghost");
            }
        }
    }
}

#[test]
fn pale_shapes_do_not_count_where_geneval_wants_to_be_sure() {
    let mut image = drawn(&[(Shape::Circle, Color::Red, 1, 1)]);
    draw(&mut image, Shape::Circle, faint(Color::Red, 0.75), (9, 9, SIDE));
    let score = score(&image, "two circles");
    assert!(!is_strict(&score) && score.value < 0.6, "{score:?}");
}

#[test]
fn shape_of_two_colours_is_neither() {
    let mut image = drawn(&[(Shape::Square, Color::Red, 1, 1)]);
    for (x, y) in (0..18).map(|at| (4 + at % 3, 1 + at / 3)) {
        image.set_pixel(x, y, Color::Blue.rgb());
    }
    assert_worthless(&image, "a square in two halves");
}

#[test]
fn holes_in_bright_paint_are_no_shapes() {
    let mut image = RgbImage::filled(SIZE, SIZE, Color::White.rgb());
    draw(&mut image, Shape::Circle, BACKGROUND, (1, 1, SIDE));
    assert_worthless(&image, "a hole");
    draw(&mut image, Shape::Circle, Color::Red.rgb(), (1, 1, SIDE));
    assert!(!is_strict(&score(&image, "a red circle")));
}

#[test]
fn more_than_asked_is_not_correct() {
    let red_circle = (Shape::Circle, Color::Red, 1, 1);
    let twice = drawn(&[red_circle, (Shape::Circle, Color::Red, 9, 1)]);
    let score_twice = score(&twice, "a red circle");
    assert_eq!((score_twice.value, is_strict(&score_twice)), (0.0, false));
    let foreign = drawn(&[red_circle, (Shape::Square, Color::Blue, 9, 1)]);
    let score_foreign = score(&foreign, "a red circle");
    assert_eq!((score_foreign.value, is_strict(&score_foreign)), (2.0 / 3.0, false));
    let everything = drawn(&[
        red_circle,
        (Shape::Square, Color::Blue, 9, 1),
        (Shape::Triangle, Color::Green, 1, 9),
        (Shape::Cross, Color::White, 9, 9),
    ]);
    for spec in all_prompts() {
        assert!(!is_strict(&score(&everything, &spec.prompt)), "{}", spec.prompt);
    }
    let four = drawn(
        &[1, 9]
            .map(|x| (Shape::Circle, Color::Red, x, 1))
            .into_iter()
            .chain([1, 9].map(|x| (Shape::Circle, Color::Red, x, 9)))
            .collect::<Vec<_>>(),
    );
    assert_eq!(score(&four, "two circles").value, 0.0);
    assert_eq!(score(&four, "a circle").value, -2.0);
}

#[test]
fn clutter_of_specks_is_not_correct() {
    let mut image = drawn(&[(Shape::Circle, Color::Red, 1, 1)]);
    assert!(is_strict(&score(&image, "a red circle")));
    draw(&mut image, Shape::Square, Color::Blue.rgb(), (12, 12, 2));
    assert!(is_strict(&score(&image, "a red circle")), "one speck is no clutter");
    draw(&mut image, Shape::Square, Color::Blue.rgb(), (12, 2, 2));
    draw(&mut image, Shape::Square, Color::Green.rgb(), (2, 12, 2));
    assert!(!is_strict(&score(&image, "a red circle")));
}

#[test]
fn wrong_relation_costs_a_third_and_is_not_correct() {
    let prompts = ["a circle left of a square", "a circle right of a square", "a circle above a square"];
    let image = drawn(&[(Shape::Circle, Color::Red, 1, 1), (Shape::Square, Color::Blue, 9, 1)]);
    let scores = prompts.map(|prompt| score(&image, prompt));
    assert_eq!(scores.each_ref().map(|score| score.value), [1.0, 2.0 / 3.0, 2.0 / 3.0]);
    assert_eq!(scores.each_ref().map(is_strict), [true, false, false]);
    assert_eq!(scores[1].extras["accuracy/position"], 0.0);
}

#[test]
fn swapped_and_missing_colours_are_graded() {
    let image = drawn(&[(Shape::Circle, Color::Red, 1, 1), (Shape::Square, Color::Blue, 9, 1)]);
    let value = |prompt| score(&image, prompt).value;
    assert_eq!(value("a red circle and a blue square"), 1.0);
    assert_eq!(value("a red circle and a green square"), 0.75);
    assert_eq!(value("a blue circle and a red square"), 0.5);
    assert_eq!(value("a blue cross and a red circle"), 0.4);
}

#[test]
fn counting_is_graded() {
    let three = drawn(&[
        (Shape::Cross, Color::Red, 1, 1),
        (Shape::Cross, Color::Green, 9, 1),
        (Shape::Cross, Color::Red, 1, 9),
    ]);
    let value = |prompt| score(&three, prompt).value;
    assert_eq!(value("three crosses"), 1.0);
    assert_eq!(value("four crosses"), 0.75);
    assert_eq!(value("two crosses"), 0.5);
    assert!((value("three red crosses") - 5.0 / 6.0).abs() < 1e-6);
    assert_eq!(value("four red crosses"), 0.375);
}

#[test]
fn wrong_metadata_is_refused_by_key() {
    let reward = ShapesReward::new(ShapesOptions::default()).expect("defaults are in range");
    let message = |metadata| {
        let record = PromptRecord { prompt: "odd".to_owned(), metadata };
        reward.score(&[empty()], &[record]).expect_err("must be refused").to_string()
    };
    let row = |include| json!({"tag": "position", "include": include, "prompt": "odd"});
    assert!(message(json!({"tag": "counting", "prompt": "odd"})).contains("missing field `include`"));
    assert!(message(row(json!([]))).contains("key `include`: is empty"));
    assert!(
        message(row(json!([{"class": "laptop", "count": 1}])))
            .contains("key `include[0].class`: unknown variant")
    );
    assert!(message(row(json!([{"class": "circle", "count": 0}]))).contains("key `include[0].count`: is 0"));
    let itself = json!([{"class": "circle", "count": 1, "position": ["above", 0]}]);
    assert!(message(row(itself)).contains("key `include[0].position`: must refer to an earlier entry"));
    assert!(message(json!(null)).contains("`odd`"));
}

#[test]
fn images_of_other_sizes_are_refused() {
    let reward = ShapesReward::new(ShapesOptions::default()).expect("defaults are in range");
    let error = reward.score(&[RgbImage::filled(8, 8, BACKGROUND)], &[record(&all_prompts()[0])]);
    let expected = "image 0 is 8 x 8; reward `shapes` takes square images of side 16 to 64";
    assert_eq!(error.expect_err("too small").to_string(), expected);
}
