//! Qwen2-VL against what transformers recorded, in batches, at its published size, and on inputs that do not fit.

use std::path::{Path, PathBuf};

use models::qwen2_vision::PatchGrid;
use models::qwen2_vl::{Qwen2Vl, Qwen2VlConfig, Qwen2VlInput, TokenPositions};
use models::reference_case::{Deviation, TOLERANCE};
use models::safetensors_file::SafetensorsFile;
use models::weights::{Inventory, TensorSource, WeightOptions, Weights};
use tch::{Device, Kind, Tensor};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn open() -> Qwen2Vl {
    let config = Qwen2VlConfig::read(&golden("hpsv3/config.json")).unwrap();
    let weights =
        Weights::open(&golden("hpsv3"), "model", &WeightOptions::new(Kind::Float, Device::Cpu)).unwrap();
    let model = Qwen2Vl::new(&weights, config);
    weights.ignore(&["lm_head."]);
    weights.finish().unwrap();
    model
}

struct Recorded {
    ids: Vec<i64>,
    patches: Tensor,
    grid: PatchGrid,
    hidden: Tensor,
}

fn recorded() -> [Recorded; 2] {
    let file = SafetensorsFile::open(&golden("hpsv3/cases/score.safetensors")).unwrap();
    [0, 1].map(|idx| {
        let read = |name: &str| file.read(&name.replace('#', &idx.to_string())).unwrap();
        let grid = Vec::<i64>::try_from(read("out.#.image_grid_thw").flatten(0, -1)).unwrap();
        Recorded {
            ids: Vec::try_from(read("in.#.input_ids").flatten(0, -1)).unwrap(),
            patches: read("out.#.pixel_values"),
            grid: PatchGrid { rows: grid[1], columns: grid[2] },
            hidden: read("out.#.last_hidden"),
        }
    })
}

fn relative(got: &Tensor, want: &Tensor) -> f64 {
    Deviation::between(got, want).relative
}

#[test]
fn texts_with_images_of_different_sizes_go_through_together() {
    let (model, cases) = (open(), recorded());
    assert_ne!(cases[0].grid, cases[1].grid);
    let length = cases.iter().map(|case| case.ids.len()).max().unwrap();
    let mut input_ids = cases.each_ref().map(|case| case.ids.clone());
    input_ids.iter_mut().for_each(|ids| ids.resize(length, 0));
    let pixel_values = Tensor::cat(&cases.each_ref().map(|case| &case.patches), 0);
    let grids = cases.each_ref().map(|case| case.grid);
    let input = Qwen2VlInput { input_ids: &input_ids, pixel_values: &pixel_values, grids: &grids };
    let hidden = model.forward(&input, TokenPositions::OnGrids).unwrap();
    for (row, case) in cases.iter().enumerate() {
        let own = hidden.get(row as i64).narrow(0, 0, case.ids.len() as i64);
        assert!(relative(&own, &case.hidden) <= TOLERANCE);
    }
    let in_sequence = model.forward(&input, TokenPositions::InSequence).unwrap();
    assert!(relative(&in_sequence, &hidden) > 1e-3, "positions make a difference");
}

#[test]
fn the_published_model_has_its_published_size() {
    let inventory = Inventory::default();
    let options =
        WeightOptions::new(Kind::BFloat16, Device::Cpu).from_source(TensorSource::Shapes(inventory.clone()));
    let folder = golden("published/qwen2-vl-7b-instruct");
    let weights = Weights::open(&folder, "model", &options).unwrap();
    let model = Qwen2Vl::new(&weights, Qwen2VlConfig::read(&folder.join("config.json")).unwrap());
    weights.finish().unwrap();
    assert_eq!(model.image_tokens(PatchGrid { rows: 32, columns: 32 }), 256);
    // The published 8 291 375 616 less the head of the language model.
    let (_, size) = inventory.components().remove(0);
    assert_eq!(size.parameters, 8_291_375_616 - 152_064 * 3584);
}

#[test]
fn inputs_that_do_not_fit_are_told() {
    let (model, [case, _]) = (open(), recorded());
    let refused = |input_ids: &[Vec<i64>], pixel_values: &Tensor, grids: &[PatchGrid]| {
        let input = Qwen2VlInput { input_ids, pixel_values, grids };
        model.forward(&input, TokenPositions::OnGrids).expect_err("must be refused").to_string()
    };
    let (ids, patches, grid) = (std::slice::from_ref(&case.ids), &case.patches, [case.grid]);
    assert!(refused(&[], patches, &grid).contains("one length"));
    assert!(refused(&[case.ids.clone(), vec![1]], patches, &grid).contains("one length"));
    assert!(refused(ids, patches, &[]).contains("must be an image"));
    assert!(refused(ids, patches, &[case.grid; 2]).contains("no text has"));
    let few = patches.narrow(0, 0, 4);
    assert!(refused(ids, &few, &grid).contains("the patches have shape [4, 1176]"));
    let unknown = [[case.ids.as_slice(), &[482]].concat()];
    assert!(refused(&unknown, patches, &grid).contains("token 482 is not in the model's vocabulary of 482"));
}
