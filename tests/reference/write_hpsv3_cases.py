#!/usr/bin/env python3
"""A tiny HPSv3 in the published layout, and the scores that transformers gives for the package's own question and sizes.

    pip download hpsv3==1.0.0 --no-deps
    python tests/reference/write_hpsv3_cases.py --package hpsv3-1.0.0-py3-none-any.whl --out tests/golden/hpsv3-published

Needs torch 2.11, transformers 4.57, pillow. The question, and how images are resized, are taken out of the package's source.
As the package has it, the language model is called without positions: tokens are positioned one after another.
"""
import argparse
import ast
import json
import math
import pathlib
import shutil
import zipfile

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor

TOKENIZER = pathlib.Path(__file__).resolve().parents[1] / "golden" / "tokenizers" / "qwen"
PIXELS = 256 * 28 * 28
PROMPTS = [
    "a photo of two red circles",
    "猫と犬, a café {at night} — \"Open\"",
    "a photo of two red circles",
    "a blue square left of a green triangle, wide-angle, 8k, muddy road",
]
SIZES = [(40, 40), (90, 50), (30, 120), (61, 47)]
# What the second resize may leave of an image: as published, and far less.
BOUNDS = {"published": (56 * 56, 16384 * 28 * 28), "small": (56 * 56, 112 * 112)}


def package(wheel):
    """The package's constants and functions by name, without importing it."""
    found = {"math": math}
    with zipfile.ZipFile(wheel) as archive:
        for name in ("hpsv3/dataset/data_collator_qwen.py", "hpsv3/dataset/utils.py"):
            tree = ast.parse("from __future__ import annotations\n" + archive.read(name).decode())
            wanted = [
                node
                for node in tree.body
                if isinstance(node, ast.Assign)
                and isinstance(node.value, (ast.Constant, ast.BinOp))
                or isinstance(node, ast.FunctionDef)
                and node.name in ("round_by_factor", "ceil_by_factor", "floor_by_factor", "smart_resize")
                or isinstance(node, ast.ImportFrom)
                and node.module == "__future__"
            ]
            exec(compile(ast.Module(wanted, []), name, "exec"), found)
    return found


def write_processor(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(TOKENIZER / file, folder / file)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start", "vision_end")}
    config = dict(
        architectures=["Qwen2VLForConditionalGeneration"],
        model_type="qwen2_vl",
        vocab_size=len(tokenizer) + 27,  # As published, larger than the tokenizer, and than what the package leaves of it.
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        rope_scaling={"type": "mrope", "mrope_section": [2, 1, 1]},
        max_position_embeddings=32768,
        use_sliding_window=False,
        sliding_window=32768,
        max_window_layers=28,
        tie_word_embeddings=False,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        torch_dtype="bfloat16",
        vision_config=dict(
            depth=2, embed_dim=32, mlp_ratio=4, num_heads=2, in_chans=3, hidden_size=32, patch_size=14,
            spatial_merge_size=2, spatial_patch_size=14, temporal_patch_size=2,
        ),
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    least, most = BOUNDS["published"]
    preprocessor = dict(
        min_pixels=least, max_pixels=most, patch_size=14, temporal_patch_size=2, merge_size=2,
        image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711],
        image_processor_type="Qwen2VLImageProcessor", processor_class="Qwen2VLProcessor",
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def reward_head(width):
    layers = [torch.nn.Linear(width, 1024), torch.nn.ReLU(), torch.nn.Dropout(0.05)]
    layers += [torch.nn.Linear(1024, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)]
    return torch.nn.Sequential(*layers).eval()


def write_model(folder, config, tokens):
    """Weights of a spread that makes images and words count, in bfloat16 but for the head, under the published names."""
    folder.mkdir(parents=True, exist_ok=True)
    model = Qwen2VLForConditionalGeneration(config).float().eval()
    model.resize_token_embeddings(tokens)
    head = reward_head(config.text_config.hidden_size)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.1 if parameter.ndim < 2 else 0.3
            parameter.copy_((parameter + spread * torch.randn_like(parameter)).to(torch.bfloat16).float())
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    published = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        published[name] = tensor.to(torch.bfloat16).contiguous()
    published |= {f"rm_head.{name}": tensor for name, tensor in head.state_dict().items()}
    save_file(published, folder / "HPSv3.safetensors", metadata={"format": "pt"})
    (folder / "HPSv3.safetensors").chmod(0o644)
    return model, head


def picture(size, seed):
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    colors = [columns * 255 / width, rows * 255 / height, 127 + 127 * np.sin(columns / 3) * np.cos(rows / 4)]
    noise = np.random.default_rng(seed).normal(0, 25, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(colors, -1) + noise, 0, 255).astype(np.uint8))


def score(model, head, tokenizer, images, question):
    pixels = images["pixel_values"]
    grid = images["image_grid_thw"]
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * (int(grid.prod()) // 4)
        + f"<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    positions = torch.arange(ids.shape[1]).view(1, 1, -1).expand(3, 1, -1)
    with torch.no_grad():
        hidden = model.model(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, position_ids=positions)[0]
        return head(hidden[ids == tokenizer.convert_tokens_to_ids("<|Reward|>")])[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", required=True, help="the wheel of hpsv3 1.0.0")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    theirs, out = package(options.package), options.out
    write_processor(out / "processor")
    tokenizer = Qwen2Tokenizer.from_pretrained(out / "processor")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    model, head = write_model(out / "model", Qwen2VLConfig.from_pretrained(out / "processor"), len(tokenizer))
    scores = {bounds: [] for bounds in BOUNDS}
    for idx, (prompt, size) in enumerate(zip(PROMPTS, SIZES)):
        image = picture(size, idx)
        image.save(out / f"{idx}.png")
        rows, columns = theirs["smart_resize"](size[1], size[0], min_pixels=PIXELS, max_pixels=PIXELS)
        resized = image.resize((columns, rows), Image.BICUBIC)
        question = theirs["INSTRUCTION"].format(text_prompt=prompt) + theirs["prompt_with_special_token"]
        for bounds, (least, most) in BOUNDS.items():
            processor = Qwen2VLImageProcessor(min_pixels=least, max_pixels=most)
            logits = score(model, head, tokenizer, processor(images=[resized], return_tensors="pt"), question)
            scores[bounds].append(logits.tolist())
    sizes = [(w, h) for w in (1, 13, 14, 15, 28, 42, 70, 447, 448, 512, 1000) for h in (1, 14, 42, 77, 449, 1024) if max(w, h) <= 200 * min(w, h)]
    resized = [[*size, *reversed(theirs["smart_resize"](size[1], size[0], min_pixels=PIXELS, max_pixels=PIXELS))] for size in sizes]
    cases = dict(prompts=PROMPTS, scores=scores, bounds=BOUNDS, resized=resized)
    (out / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
