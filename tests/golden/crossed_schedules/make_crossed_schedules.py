"""Whole runs of the tiny pipelines of `tests/golden` under schedulers whose bend is not that of the published model: the
grid stays the pipeline's. Each folder has the scheduler's settings and a case of four steps.

Needs the packages of `tests/reference/write_cases.py`, which it calls: `python make_crossed_schedules.py`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
GOLDEN = HERE.parent
CHANGES = {
    "flux": {"use_dynamic_shifting": False, "shift": 1.0},
    "flux-flow-sigmas": {"use_flow_sigmas": True},
    "flux-training-grid": {"num_train_timesteps": 900},
    "qwen-image": {"use_dynamic_shifting": False, "shift": 2.0},
    "sd3": {"use_dynamic_shifting": True},
}


def record(name, change):
    family = GOLDEN / name.removesuffix("-flow-sigmas").removesuffix("-training-grid")
    published = json.loads((family / "scheduler/scheduler_config.json").read_text())
    out = HERE / name
    (out / "scheduler").mkdir(parents=True, exist_ok=True)
    settings = out / "scheduler/scheduler_config.json"
    settings.write_text(json.dumps({**published, **change}, indent=2) + "\n")
    with tempfile.TemporaryDirectory() as model:
        for part in family.iterdir():
            (Path(model) / part.name).symlink_to(out / "scheduler" if part.name == "scheduler" else part)
        script = GOLDEN.parent / "reference/write_cases.py"
        options = ["--only", "pipeline", "--steps", "4", "--guidance-scale", "1.0"]
        subprocess.run([sys.executable, script, "--model", model, "--out", out, *options], check=True)


if __name__ == "__main__":
    for name, change in CHANGES.items():
        record(name, change)
