#!/usr/bin/env python3
"""Ten minutes on a card: does everything that no CPU can tell hold here, and how fast is it?

    python3 tests/gpu_check/gpu_check.py [--device cuda] [--size published|tiny] [--out gpu-check] [--only CHECK ...]

Needs the programs of `make build` and the example `transformer_speed` of `run-setup` (`make gpu-check` builds both), and
nothing but Python 3; with torch, diffusers and peft PyTorch's times stand beside ours. Writes `results.json` and
`results.md` into the folder given. Exit code 0: every check that ran holds; 1: one does not; 2: there is no card.
"""
import argparse
import datetime
import json
import pathlib
import sys
import tempfile
import time

import checks
import machine
import report

# A CPU may have other things to do, and nobody waits for it by the minute.
PATIENCE_ON_A_CPU = 5

# Seconds that a check may take on a card.
CHECKS = [
    (checks.load, 60),
    (checks.parity_float32, 120),
    (checks.parity_bfloat16, 90),
    (checks.scorers, 60),
    (checks.sampling_twice, 60),
    (checks.tiny_run, 90),
    (checks.model_run, 240),
    (checks.out_of_memory, 90),
    (checks.speed, 180),
    (checks.price_of_strict, 60),
]

NO_CARD = """no card is here: neither /dev/nvidiactl nor /dev/dxg is there, so there is nothing to check.
On a machine with an NVIDIA GPU: `git clone` this repository, then `make setup DEVICE=cuda` and `make gpu-check`; in a
container give it its GPUs (`docker run --gpus all`). To see the checks themselves at work on a CPU, with tiny models:
`make gpu-check DEVICE=cpu`."""


def carried_out(check, world, seconds):
    """What came of one check, as it stands in the results."""
    step = {"name": check.__name__.replace("_", " "), "what": check.__doc__.strip()}
    start = time.monotonic()
    world.programs.give(seconds)
    try:
        if seconds <= 0:
            raise machine.NotRun("the time for all checks was over")
        step |= {"result": "holds", "measured": check(world)}
    except machine.NotRun as reason:
        step |= {"result": "not run", "reason": str(reason)}
    except machine.Failed as reason:
        step |= {"result": "does not hold", "reason": str(reason)}
    # A check that trips over what it finds must not take the others' results with it.
    except Exception as error:
        step |= {"result": "does not hold", "reason": f"{type(error).__name__}: {error}"}
    return step | {"seconds": round(time.monotonic() - start, 1)}


def write(out, results):
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "results.md").write_text(report.page(results))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="`cuda`, `cuda:N` or `cpu`")
    parser.add_argument("--size", choices=["published", "tiny"], help="tiny by default on the CPU")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu-check"))
    parser.add_argument("--programs", type=pathlib.Path, default=machine.ROOT / "target" / "release")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all checks together")
    parser.add_argument("--only", nargs="+", default=[], choices=[check.__name__ for check, _ in CHECKS])
    parser.add_argument("--look", action="store_true", help="only say whether there is a card")
    options = parser.parse_args()
    if options.device != "cpu" and not machine.has_card():
        print(NO_CARD, file=sys.stderr)
        return 2
    if options.look:
        return 0
    return run(options)


def run(options):
    patience = PATIENCE_ON_A_CPU if options.device == "cpu" else 1
    end = time.monotonic() + 60 * options.minutes * patience
    size = options.size or ("tiny" if options.device == "cpu" else "published")
    programs = machine.Programs(options.programs.resolve(), options.device)
    results = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": options.device,
        "size": size,
        "environment": machine.environment(),
        "steps": [],
    }
    for check, limit in CHECKS:
        if options.only and check.__name__ not in options.only:
            continue
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
            world = checks.World(programs, pathlib.Path(folder), size == "published")
            step = carried_out(check, world, min(limit * patience, end - time.monotonic()))
        results["steps"].append(step)
        print(f"{step['name']}: {step['result']} ({step['seconds']} s) {step.get('reason', '')}".rstrip(), flush=True)
        # After each, so that whatever happens next does not take it.
        write(options.out, results)
    return 0 if all(step["result"] != "does not hold" for step in results["steps"]) else 1


if __name__ == "__main__":
    sys.exit(main())
