#!/usr/bin/env python3
"""Our transformer beside diffusers' on the same weights, one CPU thread each, one after the other; plus whole tasks.

    python tests/reference/bench.py [--model assets/tiny-sd3] [--config deploy/configs/tempflow-tiny-cpu.toml]

Needs Python packages torch 2.11, diffusers, peft; build the examples first (`make bench` does). Each time is the least of
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
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


def ours(model):
    command = [EXAMPLES / "transformer_speed", model]
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    rows = [line.split(",") for line in text.splitlines()[1:]]
    return {int(batch): (float(sampling), float(training)) for batch, sampling, training in rows}


def least_ms(call):
    call()
    times = []
    for _ in range(REPEATS):
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "assets" / "tiny-sd3"))
    parser.add_argument("--config", default="deploy/configs/tempflow-tiny-cpu.toml")
    options = parser.parse_args()
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


if __name__ == "__main__":
    main()
