#!/usr/bin/env python3
"""Runs tests as libtorch rounds on other processors: `make test-rounding`.

libtorch, MKL and oneDNN pick their kernels by the processor's vectors, and each kernel sums in an order of its own. The
settings below make them pick those of older processors. Binaries are those of `make test`; without names the crates
with numbers are run, less those of their tests that have none; with `all` every crate, with names those. `--short` leaves
out the settings whose kernels others try as well."""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WITH_NUMBERS = ["flow", "models", "rewards", "learner", "rollout-worker"]
# Of these crates, tests of bytes, servers and command lines.
WITHOUT_NUMBERS = {"card", "command_line", "fuzz", "remote", "serve_reward"}
SETTINGS = [
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
]
# Both other vectors of ATen, and everything else as on an older processor at once.
SHORT = [SETTINGS[1], SETTINGS[4]]


def test_binaries():
    """Package, which is its folder's name, that folder, and binary of all tests of the workspace, built where they are not."""
    command = [os.environ.get("CARGO", "cargo"), "test", "--release", "--workspace", "--no-run"]
    command += ["--message-format=json-render-diagnostics"]
    messages = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    artifacts = [json.loads(line) for line in messages.splitlines() if line.startswith("{")]
    for artifact in artifacts:
        if artifact["reason"] == "compiler-artifact" and artifact["executable"] and artifact["profile"]["test"]:
            manifest = Path(artifact["manifest_path"])
            yield manifest.parent.name, manifest.parent, artifact["executable"]


def run(binary, folder, setting):
    environment = {**os.environ, **setting, "CARGO_MANIFEST_DIR": str(folder)}
    tests = subprocess.run([binary, "--quiet"], cwd=folder, env=environment, capture_output=True, text=True)
    if tests.returncode != 0:
        print(tests.stdout, tests.stderr, sep="\n", flush=True)
    return tests.returncode == 0


def has_numbers(binary):
    return Path(binary).name.rsplit("-", 1)[0] not in WITHOUT_NUMBERS


def main(crates, is_short):
    found = list(test_binaries())
    known = {package for package, _, _ in found}
    wanted = known if crates == ["all"] else set(crates or WITH_NUMBERS)
    if unknown := wanted - known:
        raise SystemExit(f"no tests of {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    chosen = [entry for entry in found if entry[0] in wanted and (crates or has_numbers(entry[2]))]
    failed = []
    for setting in SHORT if is_short else SETTINGS:
        name = " ".join(f"{key}={value}" for key, value in setting.items())
        start = time.monotonic()
        wrong = [Path(binary).name for _, folder, binary in chosen if not run(binary, folder, setting)]
        failed += [f"{name} {binary}" for binary in wrong]
        print(f"{name}: {len(chosen)} binaries, {len(wrong)} failed, {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        raise SystemExit("rounding:\n" + "\n".join(failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("crates", nargs="*")
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()
    main(arguments.crates, arguments.short)
