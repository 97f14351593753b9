#!/usr/bin/env python3
"""How much of a reward's time is hidden behind sampling.

    python3 tests/reference/reward_overlap.py [--iterations 12] [--rounds 2]

Trains the shipped task with a free reward (the size of a JPEG file, in process) and with one on a server that takes as
long for a task's images as decoding them does, by turns, and compares images per second of whole iterations. Needs the
binaries of `make build` and nothing but Python 3.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "deploy/configs/tempflow-tiny-cpu.toml"
SERVER = ROOT / "tests/reward_servers/flow_grpo_server.py"
FREE = '[[rewards]]\nname = "jpeg_compressibility"\n'


def train(name, reward, folder, iterations):
    """The metrics of all iterations but the first, in which processes warm up."""
    config = Path(folder) / f"{name}.toml"
    config.write_text(CONFIG.read_text().split("[[rewards]]")[0] + reward)
    settings = [
        f"run.name={name}",
        f"run.directory={folder}",
        f"run.iterations={iterations}",
        f"evaluation.every={iterations}",
        "evaluation.prompts=4",
    ]
    command = [ROOT / "target/release/coordinator", "up", config]
    command += [word for setting in settings for word in ("--set", setting)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = (Path(folder) / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row) for row in rows][1:]


def images_per_second(rows):
    return sum(row["cost"]["images"] for row in rows) / sum(row["time"]["iteration"] for row in rows)


def seconds_per_image(rows, what):
    return sum(row["cost"][what] for row in rows) / sum(row["cost"]["images"] for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    free, slow = [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.rounds):
            free += train(f"free-{turn}", FREE, folder, options.iterations)
            # A task's images go in one request of at most 64.
            images_per_task = min(64, max(row["cost"]["images"] for row in free))
            delay = seconds_per_image(free, "decoding_seconds") * images_per_task
            server = subprocess.Popen(
                [sys.executable, SERVER, "--delay", f"{delay:.6f}"], stdout=subprocess.PIPE, text=True
            )
            try:
                url = server.stdout.readline().strip()
                reward = f'[[rewards]]\nname = "slow"\nscorer = "flow_grpo_server"\nurl = "{url}"\n'
                slow += train(f"slow-{turn}", reward, folder, options.iterations)
            finally:
                server.kill()
    print("| reward | images/s | decoding (ms/image) | scoring (ms/image) |")
    print("|---|---|---|---|")
    for name, rows in (("free", free), ("as slow as decoding", slow)):
        times = [1000 * seconds_per_image(rows, what) for what in ("decoding_seconds", "scoring_seconds")]
        print(f"| {name} | {images_per_second(rows):.1f} | {times[0]:.3f} | {times[1]:.3f} |")
    print(f"images/s with the slow reward: {images_per_second(slow) / images_per_second(free):.3f} of the free one's")


if __name__ == "__main__":
    main()
