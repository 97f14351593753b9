#!/usr/bin/env python3
"""An iteration of TempFlow-GRPO without decoder and rewards: ours beside three ways to write it with PyTorch, in one run.

    python tests/reference/iteration_bench.py [--rounds 5] [--seeds 1] [--threads 1]

A mid-size SD3 with random weights: width 256, 8 blocks, 256 image tokens; T = 10, K = 6, guidance 4.5, LoRA rank 32. The three
are the authors' nested loops, the front of all latents at one noise level as one batch, and that front in small batches with
the adapter merged (iteration_reference.py). All compute from the same weights, embeddings, noises and advantages, and what they sample and differentiate first is compared.
Then they take turns, part by part, so that each ratio is of two times taken one after the other; the table has the medians
and, in brackets, the least and largest ratio. Above 1, ours is faster, or smaller.

Needs Python packages torch 2.11, diffusers 0.38, peft and safetensors, and the example (`make bench` builds it).
"""
import argparse
import contextlib
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = ROOT / "target" / "release" / "examples" / "iteration_speed"
REFERENCE = pathlib.Path(__file__).with_name("iteration_reference.py")
TEXT_TOKENS = 77
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
SETTINGS = dict(steps=10, branches=6, guidance=4.5, noise_level=0.7, rank=32, alpha=64)
# Largest deviations from ours that are rounding: of finished latents, of gradients.
TOLERATED = dict(finished=1e-3, gradient=1e-2)


def make_pipeline(folder):
    """The shipped pipeline with a larger transformer of random weights."""
    import torch
    from diffusers import SD3Transformer2DModel

    shutil.copytree(ROOT / "assets" / "tiny-sd3", folder, ignore=shutil.ignore_patterns("transformer"))
    shipped = json.loads((ROOT / "assets" / "tiny-sd3" / "transformer" / "config.json").read_text())
    torch.manual_seed(0)
    sizes = dict(attention_head_dim=64, num_attention_heads=4, num_layers=8, caption_projection_dim=256)
    grid = dict(sample_size=32, patch_size=2, pos_embed_max_size=16)
    kept = {name: value for name, value in shipped.items() if not name.startswith("_")}
    SD3Transformer2DModel(**{**kept, **sizes, **grid}).save_pretrained(folder / "transformer")
    return shipped


def make_inputs(shipped, exchange, seeds):
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    tensors = {}
    for sign in ("positive", "negative"):
        tensors[f"{sign}.text"] = normal(1, TEXT_TOKENS, shipped["joint_attention_dim"])
        tensors[f"{sign}.pooled"] = normal(1, shipped["pooled_projection_dim"])
    tensors["advantages"] = normal(seeds, SETTINGS["steps"] - 1, SETTINGS["branches"])
    save_file(tensors, exchange / "inputs.safetensors")
    settings = SETTINGS | dict(seeds=seeds, targets=[f"attn.{target}" for target in TARGETS])
    (exchange / "settings.json").write_text(json.dumps(settings))


def config_text(options, pipeline):
    return f"""
[run]
name = "iteration-bench"
[model]
path = "{pipeline}"
max_sequence_length = 0
[adapter]
rank = {SETTINGS["rank"]}
alpha = {SETTINGS["alpha"]}
[data]
train = "{ROOT}/assets/prompts/train.jsonl"
test = "{ROOT}/assets/prompts/test.jsonl"
[sampling]
steps = {SETTINGS["steps"]}
guidance_scale = {SETTINGS["guidance"]}
height = 32
width = 32
noise_level = {SETTINGS["noise_level"]}
prompts_per_iteration = 1
seeds_per_prompt = {options.seeds}
branches_per_seed = {SETTINGS["branches"]}
max_rows = {options.rows}
[training]
updates_per_iteration = 1
advantage_group = "seed"
max_rows = {options.training_rows}
[ema]
decay = 0.9
interval = 1
[[rewards]]
name = "jpeg_compressibility"
[resources]
workers = 1
worker_threads = {options.threads}
learner_threads = {options.threads}
"""


class Contestant:
    """A process that computes a part of an iteration when it is asked to."""

    def __init__(self, command):
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.answer() == "ready"

    def answer(self):
        line = self.process.stdout.readline().strip()
        if not line:
            sys.exit(f"{self.process.args[:2]} ended with {self.process.wait()}")
        return line

    def ask(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def hold_against_ours(name, contestant):
    deviations = json.loads(contestant.ask("deviations"))
    print(f"{name}: relative deviation from ours of finished latents {deviations['finished']:.1e}, ", end="")
    print(f"of gradients {deviations['gradient']:.1e}", flush=True)
    if any(deviations[key] > most for key, most in TOLERATED.items()):
        sys.exit(f"{name} does not compute what we do")


def measure(options, contestants):
    times = {name: {"rollout": [], "update": []} for name in contestants}
    for _ in range(options.rounds):
        for part in ("rollout", "update"):
            for name, contestant in contestants.items():
                times[name][part].append(float(contestant.ask(part)))
    return times


def report(times, memory):
    others = [name for name in times if name != "ours"]
    print(f"| | ours | {' | '.join(f'{name} | ratio' for name in others)} |")
    print(f"|---|---|{'---|---|' * len(others)}")
    for part in ("rollout", "update", "iteration"):
        every = {name: of_part(times[name], part) for name in times}
        cells = [f"{statistics.median(every['ours']):.2f}"]
        for name in others:
            ratios = [theirs / ours for theirs, ours in zip(every[name], every["ours"])]
            cells += [f"{statistics.median(every[name]):.2f}"]
            cells += [f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]
        print(f"| {part} (s) | {' | '.join(cells)} |")
    cells = [f"{memory['ours']:.0f}", *(f"{memory[name]:.0f} | {memory[name] / memory['ours']:.2f}" for name in others)]
    print(f"| peak memory (MiB) | {' | '.join(cells)} |")


def of_part(times, part):
    if part == "iteration":
        return [sum(both) for both in zip(times["rollout"], times["update"])]
    return times[part]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="after one that is not counted")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=4, help="of a network call of ours, `sampling.max_rows`, and of small batches")
    parser.add_argument("--training-rows", type=int, default=9, help="of ours, `training.max_rows`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        exchange = pathlib.Path(folder)
        make_inputs(make_pipeline(exchange / "pipeline"), exchange, options.seeds)
        (exchange / "run.toml").write_text(config_text(options, exchange / "pipeline"))

        def start(command):
            contestant = Contestant(command)
            stack.callback(contestant.close)
            return contestant

        contestants = {"ours": start([OURS, exchange / "pipeline", exchange / "run.toml", exchange])}
        # The first of everything warms up; of ours it is what the others are given and held against.
        for part in ("rollout", "update"):
            contestants["ours"].ask(part)
        shared = [exchange / "pipeline", exchange, "--threads", options.threads]
        small = ["--chunk", options.rows, "--merge"]
        for name, form in {"authors' loops": ["rows"], "front": ["front"], "front, small batches": ["front", *small]}.items():
            contestants[name] = start([sys.executable, REFERENCE, form[0], *shared, *form[1:]])
            for part in ("rollout", "update"):
                contestants[name].ask(part)
            hold_against_ours(name, contestants[name])
        times = measure(options, contestants)
        report(times, {name: float(contestant.ask("memory")) for name, contestant in contestants.items()})


if __name__ == "__main__":
    main()
