#!/usr/bin/env python3
"""Our transformer beside diffusers' on the same weights, one CPU thread each, one after the other; plus whole tasks, and
HPSv3's network and PickScore beside transformers' on two threads.

    python tests/reference/bench.py [--model assets/tiny-sd3] [--config deploy/configs/tempflow-tiny-cpu.toml]

Needs Python packages torch 2.11, diffusers, peft, transformers 4.57, pillow; build the examples first (`make bench` does). Each time is the least of
repeated calls, in milliseconds. A ratio above 1 means that ours is faster.
"""
import argparse
import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "target" / "release" / "examples"
REPEATS = 30
TEXT_TOKENS = 9
HPSV3_REPEATS = 3
HPSV3_THREADS = 2
PICKSCORE_THREADS = 2
PICKSCORE_REPEATS = 2
# Images, and how many prompts they share.
PICKSCORE_CASES = [(8, 1), (8, 8)]
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


def ours(model):
    command = [EXAMPLES / "transformer_speed", model]
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    rows = [line.split(",") for line in text.splitlines()[1:]]
    return {int(batch): (float(sampling), float(training)) for batch, sampling, training, _ in rows}


def least_ms(call, repeats=REPEATS):
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def theirs(model, batches):
    import torch
    from diffusers import SD3Transformer2DModel
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(1)
    base = SD3Transformer2DModel.from_pretrained(model, subfolder="transformer")
    config, found = base.config, {}
    lora = LoraConfig(r=16, lora_alpha=32, init_lora_weights="gaussian", target_modules=[f"attn.{t}" for t in TARGETS])
    inputs = {
        batch: dict(
            hidden_states=torch.randn(batch, config.in_channels, config.sample_size, config.sample_size),
            timestep=torch.rand(batch) * 1000,
            encoder_hidden_states=torch.randn(batch, TEXT_TOKENS, config.joint_attention_dim),
            pooled_projections=torch.randn(batch, config.pooled_projection_dim),
            return_dict=False,
        )
        for batch in batches
    }
    sampling = {}
    with torch.no_grad():  # The base model alone is what a merged adapter costs.
        for batch in batches:
            sampling[batch] = least_ms(lambda: base(**inputs[batch]))
    adapted = get_peft_model(base, lora)
    for batch in batches:
        training = least_ms(lambda: adapted(**inputs[batch])[0].square().mean().backward())
        found[batch] = (sampling[batch], training)
    return found


def hpsv3_ours():
    command = [EXAMPLES / "hpsv3_speed", str(HPSV3_THREADS)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    rows = [line.split(",") for line in text.splitlines()[1:]]
    return {int(images): (float(patches), float(network)) for images, patches, network in rows}


def hpsv3_theirs(batches):
    """Milliseconds of patches and network, on the model and inputs of crates/rewards/examples/hpsv3_speed.rs."""
    import numpy
    import torch
    from PIL import Image
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor

    torch.set_num_threads(HPSV3_THREADS)
    text = dict(vocab_size=1000, hidden_size=3584, intermediate_size=18944, num_hidden_layers=2, num_attention_heads=28)
    text |= dict(num_key_value_heads=4, rms_norm_eps=1e-6, rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]})
    vision = dict(depth=4, embed_dim=1280, mlp_ratio=4, num_heads=16, hidden_size=3584)
    ids = dict(image_token_id=7, video_token_id=6, vision_start_token_id=5, vision_end_token_id=4)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids)).model.eval()
    processor = Qwen2VLImageProcessor()
    pixels = numpy.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=numpy.uint8)
    image = Image.fromarray(pixels)

    def patches():
        return processor(images=[image.resize((448, 448), Image.BICUBIC)], return_tensors="pt")

    tokens = [8 + 31 * idx % 900 for idx in range(14)] + [7] * 256 + [8 + 31 * idx % 900 for idx in range(530)]
    found = {}
    for batch in batches:
        one = patches()
        inputs = dict(
            input_ids=torch.tensor([tokens] * batch),
            pixel_values=one["pixel_values"].repeat(batch, 1),
            image_grid_thw=one["image_grid_thw"].repeat(batch, 1),
            position_ids=torch.arange(len(tokens)).expand(3, batch, -1),
        )
        with torch.no_grad():
            network = least_ms(lambda: model(**inputs, use_cache=False), HPSV3_REPEATS)
        found[batch] = (batch * least_ms(patches, HPSV3_REPEATS), network)
    return found


def hpsv3():
    mine = hpsv3_ours()
    reference = hpsv3_theirs(list(mine))
    print("| images | patches: ours, transformers (ms) | network: ours, transformers (ms) | ratio | images/s |")
    print("|---|---|---|---|---|")
    for batch, (patches, network) in mine.items():
        their_patches, their_network = reference[batch]
        ratio = (their_patches + their_network) / (patches + network)
        cells = f"| {batch} | {patches:.0f}, {their_patches:.0f} | {network:.0f}, {their_network:.0f} "
        print(f"{cells}| {ratio:.2f} | {1e3 * batch / (patches + network):.3f} |")


def pickscore_ours(images, prompts):
    """Seconds to score, by crates/rewards/examples/reward_speed.rs."""
    arguments = {"images": images, "prompts": prompts, "threads": PICKSCORE_THREADS, "repeats": PICKSCORE_REPEATS}
    command = [EXAMPLES / "reward_speed", "pickscore", *(word for name, number in arguments.items() for word in (f"--{name}", str(number)))]
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return float(text.splitlines()[1].split(",")[2])


class PickScore:
    """As pickscore_scorer.py of Flow-GRPO, at the published size with random weights."""

    def __init__(self):
        import torch
        from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

        torch.set_num_threads(PICKSCORE_THREADS)
        golden = ROOT / "tests" / "golden"
        published = golden / "published" / "pickscore-v1"
        self.model = CLIPModel(CLIPConfig.from_pretrained(published)).eval()
        self.processor = CLIPImageProcessor.from_pretrained(published)
        self.tokenizer = CLIPTokenizer.from_pretrained(golden / "pickscore")

    def score(self, images, prompts):
        """Scores of images; a prompt is encoded as often as it is handed over, one or one for each image."""
        import torch

        texts = self.tokenizer(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        pixels = self.processor(images=images, return_tensors="pt")
        with torch.no_grad():
            image = self.model.get_image_features(**pixels)
            text = self.model.get_text_features(**texts)
            image, text = (features / features.norm(dim=-1, keepdim=True) for features in (image, text))
            return self.model.logit_scale.exp() * (text * image).sum(-1) / 26


def pickscore():
    import numpy
    from PIL import Image

    mine = {case: pickscore_ours(*case) for case in PICKSCORE_CASES}
    reference = PickScore()
    print("| images | prompts | ours (s) | transformers (s) | ratio | prompts encoded once (s) | ratio | ours: images/s |")
    print("|---|---|---|---|---|---|---|---|")
    for (n_images, n_prompts), seconds in mine.items():
        pixels = numpy.random.default_rng(0).integers(0, 256, (n_images, 512, 512, 3), dtype=numpy.uint8)
        images = [Image.fromarray(picture) for picture in pixels]
        texts = [f"a photo of {number} red circles and 0 blue squares on a table" for number in range(n_prompts)]
        each = [texts[number % n_prompts] for number in range(n_images)]
        theirs = least_ms(lambda: reference.score(images, each), PICKSCORE_REPEATS) / 1e3
        once = least_ms(lambda: reference.score(images, texts), PICKSCORE_REPEATS) / 1e3
        cells = f"| {n_images} | {n_prompts} | {seconds:.2f} | {theirs:.2f} | {theirs / seconds:.2f} "
        print(f"{cells}| {once:.2f} | {once / seconds:.2f} | {n_images / seconds:.3f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "assets" / "tiny-sd3"))
    parser.add_argument("--config", default="deploy/configs/tempflow-tiny-cpu.toml")
    parser.add_argument("--only", choices=["hpsv3", "pickscore"], help="leave out the rest")
    options = parser.parse_args()
    if options.only:
        return {"hpsv3": hpsv3, "pickscore": pickscore}[options.only]()
    mine = ours(options.model)
    reference = theirs(options.model, list(mine))
    print("| rows | sampling: ours, diffusers (ms) | ratio | training: ours, diffusers + peft (ms) | ratio |")
    print("|---|---|---|---|---|")
    for batch, (sampling, training) in mine.items():
        base, adapted = reference[batch]
        cells = f"| {batch} | {sampling:.2f}, {base:.2f} | {base / sampling:.2f} "
        print(f"{cells}| {training:.2f}, {adapted:.2f} | {adapted / training:.2f} |")
    print()
    subprocess.run([EXAMPLES / "task_speed", options.config, "40"], check=True, cwd=ROOT)
    print()
    hpsv3()
    print()
    pickscore()


if __name__ == "__main__":
    main()
