#!/usr/bin/env python3
"""From Flow-GRPO to TempFlow-GRPO one change at a time: same prompts, same model, several seeds.

    ablation.py run    [--seeds 3] [--iterations N] [--directory runs/ablation]   trains what is not trained yet
    ablation.py report [--directory runs/ablation] [--out docs/ablation]       writes the table and the plot

Every run is an ordinary `coordinator up`. The Flow-GRPO arm runs on until it has spent as many network evaluations in
sampling as the branching arms, so that it can be read at equal updates and at equal evaluations. The curves are of the test
prompts: nothing is chosen here, neither a version nor a setting. Standard library only.
"""
import argparse
import json
import math
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "deploy" / "configs"
BRANCHING = CONFIGS / "tempflow-tiny-cpu.toml"
BASELINE = CONFIGS / "flow-grpo-tiny-cpu.toml"

# Name, config, settings on top of it. Each arm differs from the one above in what its name says.
ARMS = [
    ("Flow-GRPO", BASELINE, []),
    ("+ branching", BRANCHING, ["training.advantage_group=prompt", "training.step_weight=none"]),
    ("+ noise weights", BRANCHING, ["training.advantage_group=prompt", "training.step_weight=noise"]),
    ("+ seed groups", BRANCHING, ["training.advantage_group=seed", "training.step_weight=noise"]),
]


def slug(arm):
    return "".join(c if c.isalnum() else "-" for c in arm.lower()).strip("-")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def per_iteration(config, settings):
    """Asks `coordinator plan`, the one place where the counts are made."""
    command = [ROOT / "target/release/coordinator", "plan", config]
    for setting in settings:
        command += ["--set", setting]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()

    def count(name):
        line = next(line for line in lines if line.strip().startswith(name))
        return int(line.split(name)[1].split()[0])

    return {"evaluations": count("network evaluations"), "cells": count("cells trained")}


def run(options):
    costs = {arm: per_iteration(config, settings)["evaluations"] for arm, config, settings in ARMS}
    most = max(costs.values())
    for seed in range(1, options.seeds + 1):
        for arm, config, settings in ARMS:
            iterations = math.ceil(options.iterations * most / costs[arm])
            every = max(1, math.ceil(iterations / options.evaluations))
            name = f"{slug(arm)}-seed{seed}"
            done = rows(pathlib.Path(options.directory) / name / "evaluations.jsonl")
            if done and done[-1]["version"] == iterations:
                print(f"{name}: done before")
                continue
            command = [ROOT / "target/release/coordinator", "up", config]
            for setting in settings + [
                f"run.name={name}",
                f"run.directory={options.directory}",
                f"run.seed={seed}",
                f"run.iterations={iterations}",
                f"evaluation.every={every}",
                f"checkpoints.every={every}",
                "checkpoints.keep_last=1",
                "data.validation=",
            ]:
                command += ["--set", setting]
            if (pathlib.Path(options.directory) / name).exists():
                command.append("--resume")
            print(f"{name}: {iterations} iterations", flush=True)
            subprocess.run(command, check=True, cwd=ROOT)


COSTS = ("updates", "evaluations", "images", "trained", "seconds")


def curve(directory, cells):
    """Reward on the test prompts over what it cost to get there, one point per evaluation; `cells` are an iteration's."""
    done = [dict.fromkeys(COSTS, 0)]
    for row in rows(directory / "metrics.jsonl"):
        before = done[-1]
        done.append(
            {
                "updates": row["optimizer"]["updates"],
                "evaluations": before["evaluations"] + row["cost"]["network_evaluations"],
                "images": before["images"] + row["cost"]["images"],
                "trained": before["trained"] + cells * row["policy"]["trained_cells"],
                "seconds": before["seconds"] + row["time"]["iteration"],
            }
        )
    evaluated = rows(directory / "evaluations.jsonl")
    return [{"reward": row["reward"], **done[row["version"]]} for row in evaluated if row["version"] < len(done)]


def at(points, key, value):
    """The reward where `key` has reached `value`, linearly between evaluations."""
    for before, after in zip(points, points[1:]):
        if before[key] <= value <= after[key]:
            share = (value - before[key]) / max(after[key] - before[key], 1e-9)
            mix = lambda name: before[name] + share * (after[name] - before[name])
            return {name: mix(name) for name in ("reward", *COSTS)}
    return points[-1]


def mean_and_error(values):
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, float("nan")
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def report(options):
    directory = pathlib.Path(options.directory)
    arms = {}
    for arm, config, settings in ARMS:
        cells = per_iteration(config, settings)["cells"]
        curves = [curve(path, cells) for path in sorted(directory.glob(f"{slug(arm)}-seed*"))]
        arms[arm] = [points for points in curves if len(points) > 1]
    missing = [arm for arm, curves in arms.items() if not curves]
    if missing:
        sys.exit(f"no finished runs of {', '.join(missing)} in {directory}; run `make ablation` first")
    last = [points[-1] for curves in arms.values() for points in curves]
    updates = min(point["updates"] for point in last)
    spent = min(point["evaluations"] for point in last)
    heading = (
        "Reward on the test prompts; ±: standard error over training seeds. Rollout NFE: network evaluations in sampling. "
        "Learner NFE: states that the learner puts through the network, forward and backward; branches of one step share one. "
        "Evaluations of the test prompts come on top of all.\n"
    )
    lines = []
    for title, key, value in (
        (f"At {updates} updates", "updates", updates),
        (f"At {spent / 1000:.0f} k rollout NFE", "evaluations", spent),
    ):
        lines += [
            "",
            f"| {title} | seeds | base | reward | updates | rollout NFE | images scored | learner NFE | seconds |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for arm, curves in arms.items():
            found = [at(points, key, value) for points in curves]
            mean = lambda name: mean_and_error([point[name] for point in found])[0]
            reward = "%.3f ± %.3f" % mean_and_error([point["reward"] for point in found])
            base = "%.3f" % mean_and_error([points[0]["reward"] for points in curves])[0]
            thousands = ["%.0f k" % (mean(name) / 1000) for name in ("evaluations", "images", "trained")]
            cells = [arm, str(len(curves)), base, reward, "%.0f" % mean("updates"), *thousands, "%.0f" % mean("seconds")]
            lines.append("| " + " | ".join(cells) + " |")
    lines = lines[1:]
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(heading + "\n" + "\n".join(lines) + "\n")
    (out / "plot.svg").write_text(plot(arms))
    print(heading + "\n" + "\n".join(lines))


def plot(arms, width=720, height=420, margin=56):
    """Reward on the test prompts over network evaluations: a thin line per seed, the mean of each arm thick."""
    points = [point for curves in arms.values() for curve_ in curves for point in curve_]
    right = max(point["evaluations"] for point in points)
    low, high = min(p["reward"] for p in points), max(p["reward"] for p in points)
    pad = 0.05 * (high - low or 1)
    low, high = low - pad, high + pad
    x = lambda value: margin + value / right * (width - 2 * margin)
    y = lambda value: height - margin - (value - low) / (high - low) * (height - 2 * margin)
    colors = ["#777777", "#1f77b4", "#2ca02c", "#d62728"]
    path = lambda pairs: "M" + " L".join(f"{a:.1f},{b:.1f}" for a, b in pairs)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for tick in range(6):
        reward, spent = low + tick / 5 * (high - low), right * tick / 5
        out.append(f'<line x1="{margin}" x2="{width - margin}" y1="{y(reward):.1f}" y2="{y(reward):.1f}" stroke="#eee"/>')
        out.append(f'<text x="{margin - 6}" y="{y(reward) + 4:.1f}" text-anchor="end">{reward:.2f}</text>')
        out.append(f'<text x="{x(spent):.1f}" y="{height - margin + 18}" text-anchor="middle">{spent / 1000:.0f} k</text>')
    for number, ((arm, curves), color) in enumerate(zip(arms.items(), colors)):
        for curve_ in curves:
            line = path([(x(p["evaluations"]), y(p["reward"])) for p in curve_])
            out.append(f'<path d="{line}" fill="none" stroke="{color}" stroke-opacity="0.3"/>')
        grid = [right * step / 40 for step in range(41)]
        reach = min(curve_[-1]["evaluations"] for curve_ in curves)
        mean = [
            (x(spent), y(mean_and_error([at(curve_, "evaluations", spent)["reward"] for curve_ in curves])[0]))
            for spent in grid
            if spent <= reach
        ]
        out.append(f'<path d="{path(mean)}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        top = margin + 16 * number
        out.append(f'<line x1="{margin + 8}" x2="{margin + 32}" y1="{top}" y2="{top}" stroke="{color}" stroke-width="2.5"/>')
        out.append(f'<text x="{margin + 38}" y="{top + 4}">{arm}</text>')
    out.append(f'<text x="{width / 2}" y="{height - 12}" text-anchor="middle">network evaluations (rollout)</text>')
    out.append(f'<text x="16" y="{height / 2}" transform="rotate(-90 16 {height / 2})" text-anchor="middle">reward on test prompts</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("run", run), ("report", report)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--directory", default=str(ROOT / "runs" / "ablation"))
        command.add_argument("--out", default=str(ROOT / "docs" / "ablation"))
        command.add_argument("--seeds", type=int, default=3)
        command.add_argument("--iterations", type=int, default=80, help="of the branching arms")
        command.add_argument("--evaluations", type=int, default=5, help="held-out evaluations per run")
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
