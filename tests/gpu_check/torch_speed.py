#!/usr/bin/env python3
"""PyTorch's times for what `transformer_speed` times, with the same arguments and the same lines: diffusers' network with
random weights and PEFT's adapters, as one would train it.
"""
import argparse
import json
import pathlib
import time

import diffusers
import torch
from peft import LoraConfig, get_peft_model

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
# Pixels of a latent, and how many latents of a side make one token.
SCALE, PATCH = 8, 2


def network(options):
    """The network in its element type on its device, without ever being in memory in another."""
    folder = options.folder / "transformer"
    config = json.loads((folder / "config.json").read_text())
    family = getattr(diffusers, config["_class_name"])
    torch.set_default_dtype(getattr(torch, options.dtype))
    with torch.device(options.device):
        made = family.from_config(config)
    torch.set_default_dtype(torch.float32)
    if options.gradient_checkpointing:
        made.enable_gradient_checkpointing()
    return made


def inputs(made, options, rows):
    config, side = made.config, options.side // SCALE
    dtype = getattr(torch, options.dtype)

    def normal(*shape):
        return torch.randn(*shape, device=options.device, dtype=dtype)

    time_of_row = torch.rand(rows, device=options.device)
    text = normal(rows, options.text_tokens, config.joint_attention_dim)
    if type(made).__name__ == "SD3Transformer2DModel":
        latents = normal(rows, config.in_channels, side, side)
        pooled = normal(rows, config.pooled_projection_dim)
        return dict(hidden_states=latents, timestep=1000 * time_of_row, encoder_hidden_states=text, pooled_projections=pooled)
    patches = side // PATCH
    named = dict(hidden_states=normal(rows, patches * patches, config.in_channels), timestep=time_of_row)
    named["encoder_hidden_states"] = text
    if type(made).__name__ == "FluxTransformer2DModel":
        grid = torch.zeros(patches, patches, 3, device=options.device)
        grid[..., 1] += torch.arange(patches, device=options.device)[:, None]
        grid[..., 2] += torch.arange(patches, device=options.device)[None, :]
        named |= dict(img_ids=grid.view(-1, 3), txt_ids=torch.zeros(options.text_tokens, 3, device=options.device))
        named |= dict(pooled_projections=normal(rows, config.pooled_projection_dim))
        return named | dict(guidance=torch.ones(rows, device=options.device))
    mask = torch.ones(rows, options.text_tokens, device=options.device, dtype=torch.long)
    shapes = [[(1, patches, patches)]] * rows
    return named | dict(encoder_hidden_states_mask=mask, img_shapes=shapes, txt_seq_lens=[options.text_tokens] * rows)


def least_ms(call, options):
    def finished():
        call()
        if options.device != "cpu":
            torch.cuda.synchronize()

    finished()
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        finished()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def operations(made, named):
    """Of one forward pass, 10^12, as PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        made(**named)
    return counter.get_total_flops() / 1e12


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--random-weights", action="store_true", help="they always are")
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--text-tokens", type=int, required=True)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    made = network(options)
    every = [(rows, inputs(made, options, rows)) for rows in options.rows]
    with torch.no_grad():
        sampling = [least_ms(lambda: made(**named), options) for _, named in every]
    counted = [operations(made, named) for _, named in every]
    lora = LoraConfig(r=16, lora_alpha=32, init_lora_weights="gaussian", target_modules=[f"attn.{t}" for t in TARGETS])
    adapted = get_peft_model(made, lora).train()
    print("rows,sampling_ms,training_ms,forward_tflop")
    for (rows, named), forward, tera in zip(every, sampling, counted):
        training = least_ms(lambda: adapted(**named)[0].float().square().mean().backward(), options)
        print(f"{rows},{forward:.3f},{training:.3f},{tera:.6f}")


if __name__ == "__main__":
    main()
