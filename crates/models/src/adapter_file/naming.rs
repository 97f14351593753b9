//! Whose names a file's tensors have: those of PEFT and diffusers are read, others are told apart.

/// What PEFT writes before the path of a module.
pub(super) const PEFT_PREFIX: &str = "base_model.model.";
/// What diffusers writes before the path of a module of the transformer.
pub(super) const DIFFUSERS_PREFIX: &str = "transformer.";
/// What diffusers' names of the other parts of a pipeline begin with: `text_encoder.`, `text_encoder_2.`.
const TEXT_ENCODER: &str = "text_encoder";
/// Ends of the names of a module's two factors.
pub(super) const A_ENDING: &str = ".lora_A.weight";
pub(super) const B_ENDING: &str = ".lora_B.weight";

/// The text encoder that a tensor of diffusers' names belongs to.
pub(super) fn text_encoder_of(name: &str) -> Option<&str> {
    name.split_once('.')
        .map(|(component, _)| component)
        .filter(|component| component.starts_with(TEXT_ENCODER))
}

/// The module of a factor's name.
pub(super) fn module_of(name: &str) -> Option<&str> {
    name.strip_suffix(A_ENDING).or_else(|| name.strip_suffix(B_ENDING))
}

/// Whose format tensors are named by that are neither PEFT's nor diffusers', how to come by one of these, and a name that tells.
pub(super) fn format_of<'a>(names: &[&'a str]) -> (&'static str, &'static str, &'a str) {
    let told = names.iter().find_map(|name| told_by(name).map(|(whose, remedy)| (whose, remedy, *name)));
    let first = names.first().copied().unwrap_or_default();
    told.unwrap_or(("no LoRA's", "give a PEFT folder or a LoRA file as diffusers writes it", first))
}

fn told_by(name: &str) -> Option<(&'static str, &'static str)> {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let contains = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if contains(&[".lokr_", ".hada_", ".oft_"]) || starts(&["lycoris_"]) {
        return Some(("LyCORIS's (LoKr, LoHa and their like), which are not plain LoRA", MERGE_THERE));
    }
    if starts(&["lora_unet_", "lora_te", "lora_transformer_"]) {
        return Some(("Kohya's (sd-scripts)", CONVERT));
    }
    if starts(&["diffusion_model.", "model.diffusion_model."]) {
        return Some(("ComfyUI's", CONVERT));
    }
    if starts(&["double_blocks.", "single_blocks.", "joint_blocks."]) || contains(&[".processor."]) {
        return Some((
            "the original network's (Black Forest Labs, Stability AI, XLabs), not diffusers'",
            CONVERT,
        ));
    }
    if starts(&["unet."]) {
        let whose = "diffusers' for a UNet (SD 1, SD 2, SDXL), which is not here";
        return Some((whose, "take an adapter for this model"));
    }
    if contains(&[".lora_A.", ".lora_B."]) {
        return Some((
            "those of a network by itself, without diffusers' `transformer.` or PEFT's `base_model.model.` (diffusers' \
             `save_lora_adapter` writes such)",
            "write it with the pipeline's `save_lora_weights` or with PEFT's `save_pretrained`",
        ));
    }
    if contains(&["lora_down", "lora_up"]) || name.ends_with(".alpha") {
        return Some(("Kohya's (`lora_down`, `lora_up` and `alpha`)", CONVERT));
    }
    let is_old = contains(&[".lora.down", ".lora.up", "lora_linear_layer", "_lora."]);
    is_old.then_some(("older than those that PEFT and diffusers write now", CONVERT))
}

const CONVERT: &str =
    "load it with diffusers' `load_lora_weights`, if that knows it, and write it with `save_lora_weights`";
const MERGE: &str =
    "merge it into the model with PEFT's `merge_and_unload`, and take the saved pipeline as the model";
const MERGE_THERE: &str =
    "merge it into the model with the tool that made it, and take the saved pipeline as the model";

/// Why a tensor of the transformer is none of the factors of plain LoRA, and what to do about it.
pub(super) fn further_tensor(name: &str) -> (&'static str, &'static str) {
    let contains = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    let ends = |parts: &[&str]| parts.iter().any(|part| name.ends_with(part));
    if contains(&["lora_magnitude_vector", "dora_scale"]) {
        return ("which is DoRA's (`use_dora`)", MERGE);
    }
    if ends(&[".lora_B.bias"]) {
        return ("a bias beside the factors (`lora_bias`)", MERGE);
    }
    if ends(&[".alpha"]) || contains(&["lora_down", "lora_up"]) {
        return ("which is named as Kohya's scripts do", CONVERT);
    }
    if contains(&[".lora_A.", ".lora_B."]) {
        return (
            "whose name has an adapter's name in it",
            "write it with PEFT's `save_pretrained`, which takes that out",
        );
    }
    if contains(&[".lora.down", ".lora.up"]) {
        return ("whose name is older than those that diffusers writes now", CONVERT);
    }
    ("which is no factor of LoRA (`modules_to_save`, `bias`, or a control network's)", MERGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_the_names_of_tensors() {
        for (name, word) in [
            ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "Kohya"),
            ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "Kohya"),
            ("diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight", "ComfyUI"),
            ("transformer_blocks.0.attn.to_q.lora_A.weight", "a network by itself"),
            ("double_blocks.0.processor.proj_lora1.down.weight", "the original network"),
            ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "UNet"),
            ("lycoris_transformer_blocks_0_attn_to_q.lokr_w1", "LyCORIS"),
            ("transformer_blocks.0.attn.to_q.lora_down.weight", "Kohya"),
            ("transformer_blocks.0.attn.to_q.weight", "no LoRA"),
        ] {
            let (whose, _, told_by) = format_of(&["any.thing", name]);
            assert!(whose.contains(word), "{name}: {whose}");
            assert!(told_by == name || word == "no LoRA", "{told_by}");
        }
    }

    #[test]
    fn tensors_beside_the_factors_are_told_by_their_names() {
        for (name, word) in [
            ("x.lora_magnitude_vector", "use_dora"),
            ("x.lora_B.bias", "lora_bias"),
            ("x.alpha", "Kohya"),
            ("x.lora_A.default.weight", "adapter's name"),
            ("proj_out.weight", "modules_to_save"),
        ] {
            assert!(further_tensor(name).0.contains(word), "{name}");
        }
    }

    #[test]
    fn text_encoders_are_told_from_the_transformer() {
        assert_eq!(text_encoder_of("text_encoder_2.encoder.x"), Some("text_encoder_2"));
        assert_eq!(text_encoder_of("transformer.text_encoder.x"), None);
    }
}
