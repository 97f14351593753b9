#!/usr/bin/env python3
"""Adapters as PEFT and diffusers write them, and what a network computes once these have loaded them again.

    pip install torch==2.11.0 diffusers==0.38.0 'transformers>=4.57,<5' peft==0.21.2
    python make_adapters.py

A folder each; `expected.safetensors` has the output of the network of `../sd3` or, where the name begins with `flux`, of
`../flux` with the adapter, for the inputs of `cases/transformer.safetensors` there. `cases.json` says which are plain LoRA
(`null`) and which are not, by the key that makes them so: there, the tensors by themselves would give another output, which
is checked here.
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import config as lora
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection

HERE = Path(__file__).parent
ATTENTION = ["attn.to_q", "attn.to_v"]
PLAIN = {"r": 2, "lora_alpha": 3, "target_modules": ATTENTION}


def network(family):
    kind = {"sd3": SD3Transformer2DModel, "flux": FluxTransformer2DModel}[family]
    return kind.from_pretrained(HERE.parent / family / "transformer").eval()


@torch.no_grad()
def output(family, model):
    inputs = load_file(HERE.parent / family / "cases/transformer.safetensors")
    names = [name for name in inputs if name.startswith("in.") and "unpacked" not in name]
    return model(**{name[3:]: inputs[name] for name in names}, return_dict=False)[0]


@torch.no_grad()
def train(model, seed=0):
    """Moves everything that training would."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def peft_case(name, config, family="sd3", **save):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    model = get_peft_model(network(family), config)
    if save.pop("convert", False):
        # As PEFT documents it: the start is kept, and taken off again at the end.
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(folder / "start")
        save["path_initial_model_for_weight_conversion"] = str(folder / "start")
    train(model)
    model.save_pretrained(folder, **save)
    shutil.rmtree(folder / "start", ignore_errors=True)
    (folder / "README.md").unlink(missing_ok=True)
    torch.manual_seed(0)
    return output(family, PeftModel.from_pretrained(network(family), folder).eval())


def alone(family, factors, scale):
    """The output of plain LoRA of these factors."""
    model = network(family)
    for name, module in model.named_modules():
        if f"{name}.lora_A.weight" in factors:
            module.weight.data += scale * factors[f"{name}.lora_B.weight"] @ factors[f"{name}.lora_A.weight"]
    return output(family, model)


def loaded_by_diffusers(family, pipeline, folder):
    model = network(family)
    state, *_ = pipeline.lora_state_dict(folder, weight_name="pytorch_lora_weights.safetensors", return_lora_metadata=True)
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        metadata = (file.metadata() or {}).get("lora_adapter_metadata")
    pipeline.load_lora_into_transformer(
        state, transformer=model, metadata=json.loads(metadata) if metadata else None, **({"network_alphas": None} if family == "flux" else {})
    )
    return output(family, model)


def diffusers_case(name, config, family="sd3", text_encoder=False, metadata=True):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    pipeline = {"sd3": StableDiffusion3Pipeline, "flux": FluxPipeline}[family]
    torch.manual_seed(0)
    model = network(family)
    model.add_adapter(config)
    train(model)
    layers = {"transformer_lora_layers": get_peft_model_state_dict(model)}
    if metadata:
        layers["transformer_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    if text_encoder:
        encoder = CLIPTextModelWithProjection.from_pretrained(HERE.parent / family / "text_encoder")
        own = LoraConfig(r=1, lora_alpha=5, target_modules=["q_proj"])
        encoder.add_adapter(own)
        train(encoder)
        layers["text_encoder_lora_layers"] = get_peft_model_state_dict(encoder)
        layers["text_encoder_lora_adapter_metadata"] = own.to_dict()
    # What PEFT keeps as a set has no place in JSON.
    for key, keys in layers.items():
        if key.endswith("metadata"):
            layers[key] = {k: sorted(v) if isinstance(v, set) else v for k, v in keys.items()}
            layers[key]["base_model_name_or_path"] = None
    pipeline.save_lora_weights(folder, **layers)
    return loaded_by_diffusers(family, pipeline, folder)


def main():
    plain = lambda **keys: LoraConfig(**{**PLAIN, **keys})
    cases, outputs = {}, {}

    def keep(name, refused_for, result):
        cases[name], outputs[name] = refused_for, result.contiguous()

    for name, keys in {
        "plain": {},
        "exclude_modules": {"exclude_modules": ["transformer_blocks.0.attn.to_q", "transformer_blocks.3.attn.to_v"]},
        "exclude_by_pattern": {"exclude_modules": r".*blocks\.[12]\..*to_q"},
        "targets_by_pattern": {"target_modules": r".*blocks\.[13]\.attn\.to_[qk]"},
        "layers_to_transform": {"layers_to_transform": [1, 2], "layers_pattern": "transformer_blocks"},
        "use_rslora": {"use_rslora": True},
        "gaussian": {"init_lora_weights": "gaussian", "lora_dropout": 0.1},
        "random": {"init_lora_weights": False},
        "orthogonal": {"init_lora_weights": "orthogonal"},
        "mica": {"init_lora_weights": "mica"},
        "eva": {"init_lora_weights": "eva"},
        "rank_pattern_of_one": {"rank_pattern": {"attn.to_q": 2}, "alpha_pattern": {"attn.to_q": 3}},
    }.items():
        keep(name, None, peft_case(name, plain(**keys)))
    keep("pissa_converted", None, peft_case("pissa_converted", plain(init_lora_weights="pissa"), convert=True))
    keep("adapter_model_bin", None, peft_case("adapter_model_bin", plain(), safe_serialization=False))
    flux = plain(target_modules=["proj_out", "attn.to_q"], exclude_modules=r"single_transformer_blocks\..*")
    keep("flux_exclude_modules", None, peft_case("flux_exclude_modules", flux, family="flux"))
    keep("diffusers", None, diffusers_case("diffusers", plain()))
    keep("diffusers_without_metadata", None, diffusers_case("diffusers_without_metadata", plain(), metadata=False))
    keep("diffusers_text_encoder", None, diffusers_case("diffusers_text_encoder", plain(), text_encoder=True))

    for name, key, keys in [
        ("pissa", "init_lora_weights", {"init_lora_weights": "pissa"}),
        ("pissa_niter", "init_lora_weights", {"init_lora_weights": "pissa_niter_4"}),
        ("olora", "init_lora_weights", {"init_lora_weights": "olora"}),
        ("use_dora", "use_dora", {"use_dora": True}),
        ("bias", "bias", {"bias": "lora_only"}),
        ("lora_bias", "lora_bias", {"lora_bias": True}),
        ("modules_to_save", "modules_to_save", {"modules_to_save": ["norm_out.linear"]}),
        ("rank_pattern", "rank_pattern", {"rank_pattern": {"attn.to_q": 1}}),
        ("alpha_pattern", "alpha_pattern", {"alpha_pattern": {"attn.to_q": 1}}),
        ("kasa", "kasa_config", {"kasa_config": lora.KasaConfig()}),
    ]:
        keep(name, key, peft_case(name, plain(**keys)))
    loha = LoHaConfig(r=2, alpha=3, target_modules=ATTENTION)
    keep("loha", "peft_type", peft_case("loha", loha))

    bare = output("sd3", network("sd3"))
    for name, refused_for in cases.items():
        assert name.startswith("flux") or not torch.equal(outputs[name], bare), name
        tensors = HERE / name / "adapter_model.safetensors"
        if refused_for and tensors.is_file():
            factors = {key.removeprefix("base_model.model."): value for key, value in load_file(tensors).items()}
            distance = (alone("sd3", factors, 1.5) - outputs[name]).norm() / outputs[name].norm()
            print(f"{name:26} plain LoRA of its tensors is off by {distance:.3f}")
    save_file(outputs, HERE / "expected.safetensors")
    (HERE / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
