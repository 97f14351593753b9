//! CLIP's encoders at their published sizes have as many numbers as the published models.

use std::path::{Path, PathBuf};

use models::aesthetic_predictor::AestheticPredictor;
use models::clip::{ClipModel, OpenClipConfig};
use models::clip_vision::ClipVisionModel;
use models::weights::{Inventory, TensorSource, WeightOptions};
use tch::{Device, Kind};

fn published(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/published").join(name)
}

fn parameters(open: impl FnOnce(&WeightOptions)) -> u64 {
    let inventory = Inventory::default();
    let options = WeightOptions::new(Kind::Float, Device::Cpu);
    open(&options.from_source(TensorSource::Shapes(inventory.clone())));
    inventory.components().iter().map(|(_, size)| size.parameters).sum()
}

#[test]
fn pickscore_and_hpsv2_have_the_parameters_of_vit_h_14() {
    let vit_h_14 = 986_109_441;
    let pickscore = parameters(|options| drop(ClipModel::open(&published("pickscore-v1"), options).unwrap()));
    assert_eq!(pickscore, vit_h_14);
    let folder = tempfile::tempdir().unwrap();
    let config = OpenClipConfig::open_or_vit_h_14(folder.path()).unwrap();
    let open_clip = parameters(|options| {
        drop(ClipModel::open_open_clip(folder.path(), "HPS_v2.1_compressed", &config, options).unwrap());
    });
    assert_eq!(open_clip, vit_h_14);
}

#[test]
fn clip_vit_l_14_and_the_aesthetic_layers_have_the_published_parameters() {
    let folder = published("clip-vit-large-patch14");
    assert_eq!(parameters(|options| drop(ClipModel::open(&folder, options).unwrap())), 427_616_513);
    // Without the text encoder, its projection and the scale.
    let vision = parameters(|options| {
        assert_eq!(ClipVisionModel::open(&folder, options).unwrap().n_features(), 768);
    });
    assert_eq!(vision, 303_966_208);
    let layers = parameters(|options| drop(AestheticPredictor::open(&folder, 768, options).unwrap()));
    assert_eq!(layers, 927_969);
}
