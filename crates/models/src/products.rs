//! How much arithmetic one evaluation of a network is: that of its matrix products, which is nearly all of it.

use crate::network::Network;

/// What a linear module is applied to.
enum Applied {
    /// Each token of the image.
    ToImage,
    /// Each token of the text.
    ToText,
    /// Each token of both.
    ToBoth,
    /// Once for an image: time, pooled text, and what they modulate by.
    Once,
}

impl Applied {
    /// By the module's path, as diffusers names it in the families that there are.
    fn of(path: &str) -> Self {
        let has = |words: &[&str]| words.iter().any(|word| path.contains(word));
        if has(&["time_text_embed", "norm", "_mod."]) {
            Self::Once
        } else if path.starts_with("single_transformer_blocks.") {
            Self::ToBoth
        } else if has(&["add_", "ff_context.", "txt_", "context_embedder"]) {
            Self::ToText
        } else {
            Self::ToImage
        }
    }
}

/// Floating-point operations of the linear modules and of attention for one row, a multiplication and an addition being
/// two; what is done element by element is left out, and so are an adapter and the first convolution.
pub fn product_operations(network: &dyn Network, image_tokens: usize, text_tokens: usize) -> f64 {
    let (image, text) = (image_tokens as f64, text_tokens as f64);
    let projections = network.projections();
    let modules = projections.iter().flat_map(|projection| projection.weight_shapes());
    modules
        .map(|(path, [outputs, inputs])| {
            let rows = match Applied::of(path) {
                Applied::ToImage => image,
                Applied::ToText => text,
                Applied::ToBoth => image + text,
                Applied::Once => 1.0,
            };
            // Scores of every token with every other, and sums of values weighted by them.
            let attended = if path.contains(".attn2.") { image } else { image + text };
            let attention = if path.ends_with(".to_q") { 2.0 * attended * attended } else { 0.0 };
            2.0 * outputs as f64 * (inputs as f64 * rows + attention)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Inventory, TensorSource, WeightOptions};
    use crate::{LoadOptions, pipeline};
    use std::path::Path;
    use tch::{Device, Kind};

    fn operations(model: &str, image_tokens: usize, text_tokens: usize) -> f64 {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/published").join(model);
        let weights = WeightOptions::new(Kind::BFloat16, Device::Cpu)
            .from_source(TensorSource::Shapes(Inventory::default()));
        let options = LoadOptions { weights, text_encoders: false, decoder: None };
        let model = pipeline::open(&folder, options).unwrap();
        product_operations(model.network(), image_tokens, text_tokens)
    }

    /// Features of a token between the blocks of FLUX.1-dev and Qwen-Image.
    const WIDTH: f64 = 3072.0;

    #[test]
    fn a_token_more_costs_the_modules_that_it_goes_through() {
        // Without the other stream, and where attention is next to nothing: a double block has twelve squares of the
        // width for each stream, four of attention and eight of the feed-forward; a single block has them for both.
        let square = 2.0 * WIDTH * WIDTH;
        let attention_of_one = |blocks: f64| 4.0 * WIDTH * blocks;
        let flux = operations("flux.1-dev", 1, 0) - operations("flux.1-dev", 0, 0);
        let ends = 2.0 * 2.0 * 64.0 * WIDTH;
        assert_eq!(flux, (19.0 + 38.0) * 12.0 * square + ends + attention_of_one(57.0));
        let qwen = operations("qwen-image", 0, 1) - operations("qwen-image", 0, 0);
        assert_eq!(qwen, 60.0 * 12.0 * square + 2.0 * 3584.0 * WIDTH + attention_of_one(60.0));
    }

    #[test]
    fn the_second_attention_of_sd35_medium_is_over_the_image_alone() {
        // Thirteen of 24 blocks have it.
        let growth = |image, text| {
            operations("sd3.5-medium", 2 * image, 2 * text) - 2.0 * operations("sd3.5-medium", image, text)
                + operations("sd3.5-medium", 0, 0)
        };
        assert_eq!(growth(0, 10), 4.0 * 1536.0 * 24.0 * 2.0 * 100.0);
        assert_eq!(growth(10, 0), 4.0 * 1536.0 * (24.0 + 13.0) * 2.0 * 100.0);
    }
}
