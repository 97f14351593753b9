#!/usr/bin/env python3
"""Writes tiny random models of the rewards made of CLIP, and the scores that the references compute with them.

    python tests/reference/write_clip_rewards.py [--out tests/golden/clip_rewards]

Needs Python packages torch 2.11, torchvision 0.26, transformers 4.57, open_clip_torch 3.3 (with ftfy), safetensors and pillow.
PickScore has a folder of its own, `tests/golden/pickscore`. Everything is float32 on the CPU, on files of one's own making:
nothing is downloaded.
"""
import argparse
import gzip
import json
import pathlib
import shutil

import numpy as np
import open_clip
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIDE, PATCH, FEATURES = 28, 7, 24
MERGES = 600
PROMPTS = [
    "a photo of two red circles",
    "A sign that reads “HELLO, World!” in a café — 3 o’clock",
    "",
    "twice &amp; more:  ｗｉｄｅ  naïve ﬁnds\tI'll don't 1234567",
    "猫と犬 🐈 a blue square to the left of a green triangle",
    "a very long one " * 40,
]
SIZES = [(64, 64), (96, 64), (37, 83), (5, 3), (200, 101), (28, 28)]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def pictures(folder):
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for index, (width, height) in enumerate(SIZES):
        rows, columns = np.mgrid[0:height, 0:width]
        waves = [columns * 255 / width, rows * 255 / height, 127 + 127 * np.sin(columns / (2 + index)) * np.cos(rows / 4)]
        noise = np.random.default_rng(index).normal(0, 20, (height, width, 3))
        picture = Image.fromarray(np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8))
        picture.save(folder / f"{index}.png")
        found.append(picture)
    return found


def randomize(model):
    """Weights large enough that all of them count."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim <= 1 else 0.08))
    return model.eval()


def small_merges(path):
    """The first lines of CLIP's merges, which SimpleTokenizer reads as it reads all of them."""
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as lines:
        text = "\n".join(line.rstrip("\n") for _, line in zip(range(MERGES + 1), lines))
    with gzip.open(path, "wt", encoding="utf-8") as out:
        out.write(text)
    return SimpleTokenizer(str(path))


def fast_tokenizer(folder, simple):
    """The same vocabulary as transformers has it, with its own names of the special tokens."""
    ids = {token: number for token, number in simple.encoder.items()}
    for theirs, ours in (("<start_of_text>", "<|startoftext|>"), ("<end_of_text>", "<|endoftext|>")):
        ids[ours] = ids.pop(theirs)
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False))
    merges = [" ".join(pair) for pair in simple.bpe_ranks]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    tokenizer.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / name).unlink()
    return tokenizer


def clip_model(folder, tokenizer):
    width = dict(num_hidden_layers=2, num_attention_heads=4, hidden_act="quick_gelu", projection_dim=FEATURES)
    text = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, eos_token_id=2, bos_token_id=0, **width)
    vision = dict(hidden_size=48, intermediate_size=96, image_size=SIDE, patch_size=PATCH, **width)
    model = randomize(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=FEATURES)))
    model.save_pretrained(folder)
    # As the oldest repositories have it: numbers for sizes, and nothing that has a default.
    old = dict(crop_size=SIDE, size=SIDE, resample=3, image_mean=MEAN, image_std=STD, feature_extractor_type="CLIPFeatureExtractor")
    (folder / "preprocessor_config.json").write_text(json.dumps(old, indent=2))
    return model


def as_tensor(picture):
    return torch.tensor(np.array(picture).transpose(2, 0, 1), dtype=torch.uint8) / 255.0


@torch.no_grad()
def clipscore(model, tokenizer, images):
    """As clip_scorer.py of Flow-GRPO, picture by picture since sizes differ."""
    transform = T.Compose([T.Resize(SIDE), T.CenterCrop((SIDE, SIDE)), T.Normalize(MEAN, STD)])
    texts = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt")
    pixels = torch.stack([transform(as_tensor(image)) for image in images])
    return model(pixel_values=pixels, **texts).logits_per_image.diagonal() / 30


@torch.no_grad()
def aesthetic(model, folder, images):
    """As aesthetic_scorer.py of Flow-GRPO."""
    sizes = [FEATURES, 1024, 128, 64, 16, 1]
    linear = [torch.nn.Linear(*pair) for pair in zip(sizes, sizes[1:])]
    for layer in linear:  # So that scores are of the size of 1, as the published ones are of 5.
        torch.nn.init.normal_(layer.weight, std=layer.in_features ** -0.5)
    torch.nn.init.normal_(linear[0].weight)
    layers = torch.nn.Sequential(
        linear[0], torch.nn.Dropout(0.2), linear[1], torch.nn.Dropout(0.2), linear[2], torch.nn.Dropout(0.1), *linear[3:]
    ).eval()
    layers = layers.half()  # For the size of the file; numbers are computed in float32.
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({f"layers.{name}": tensor for name, tensor in layers.state_dict().items()}, folder / "aesthetic-model.pth")
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    embed = model.get_image_features(**processor(images=images, return_tensors="pt"))
    embed = embed / torch.linalg.vector_norm(embed, dim=-1, keepdim=True)
    return layers.float()(embed).squeeze(1)


def fit(picture):
    """As ResizeMaxSize of the package hpsv2, on tensors."""
    tensor = F.to_tensor(picture)
    height, width = tensor.shape[1:]
    scale = SIDE / float(max(height, width))
    if scale != 1.0:
        size = tuple(round(side * scale) for side in (height, width))
        tensor = F.resize(tensor, size, T.InterpolationMode.BICUBIC)
        pad_h, pad_w = SIDE - size[0], SIDE - size[1]
        tensor = F.pad(tensor, [pad_w // 2, pad_h // 2, pad_w - pad_w // 2, pad_h - pad_h // 2], fill=0)
    return F.normalize(tensor, MEAN, STD)


@torch.no_grad()
def hpsv2(folder, tokenizer, images):
    """As img_score.py of the package hpsv2."""
    config = dict(
        embed_dim=FEATURES,
        vision_cfg=dict(image_size=SIDE, layers=2, width=48, head_width=12, patch_size=PATCH),
        text_cfg=dict(context_length=77, vocab_size=tokenizer.vocab_size, width=32, heads=4, layers=2),
    )
    model = randomize(open_clip.model.CLIP(**config, output_dict=True))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "HPS_v2.1_compressed.pt")
    preprocessing = dict(mean=MEAN, std=STD)
    written = json.dumps(dict(model_cfg=config, preprocess_cfg=preprocessing), indent=2)
    (folder / "open_clip_config.json").write_text(written)
    outputs = model(torch.stack([fit(image) for image in images]), tokenizer(PROMPTS, context_length=77))
    return (outputs["image_features"] @ outputs["text_features"].T).diagonal()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests" / "golden" / "clip_rewards")
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    torch.manual_seed(0)
    images = pictures(out / "images")
    simple = small_merges(out / "merges.gz")
    (out / "clip").mkdir()
    tokenizer = fast_tokenizer(out / "clip", simple)
    model = clip_model(out / "clip", tokenizer)
    scores = {
        "clipscore": clipscore(model, tokenizer, images),
        "aesthetic": aesthetic(model, out / "predictor", images),
        "hpsv2.1": hpsv2(out / "hpsv2.1", simple, images),
    }
    (out / "merges.gz").unlink()
    save_file({f"out.{name}": score.contiguous() for name, score in scores.items()}, out / "scores.safetensors",
              metadata={"call": json.dumps({"prompts": PROMPTS})})
    print(scores)


if __name__ == "__main__":
    main()
