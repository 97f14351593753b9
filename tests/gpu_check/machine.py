"""What the checks run on, and how they run a program: with a time limit, and nothing left of it afterwards."""
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# There where an NVIDIA driver runs; the second is Windows' own, seen from its Linux.
CONTROL_DEVICES = ["/dev/nvidiactl", "/dev/dxg"]
# What the launcher gives members of a strict run; programs that are called here by themselves get it too, unless fast.
FOR_BITS = {
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":16:8",
    "CUBLASLT_WORKSPACE_SIZE": "1",
}
# Products of bfloat16, added up in float32, without sparsity: 10^12 operations a second by the makers' data sheets. The
# first name that is a part of the card's counts.
PEAKS = [
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("H200", 989.0),
    ("B200", 2250.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("RTX 4090", 165.0),
]


class Failed(Exception):
    """What was checked does not hold; the reason."""


class NotRun(Exception):
    """It cannot be checked here; the reason."""


def has_card():
    return any(os.path.exists(path) for path in CONTROL_DEVICES)


def smi(query, what="gpu"):
    """Rows that nvidia-smi answers with; none where it is not there."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-{what}={query}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]


def peak(card):
    """The most that a card of this name can do, in 10^12 operations a second; None where it is not known."""
    return next((most for name, most in PEAKS if name in card), None)


def environment():
    """Names and versions, for whoever reads the results later."""
    cards = [
        dict(zip(("name", "driver", "memory_mib", "compute_capability"), row))
        for row in smi("name,driver_version,memory.total,compute_cap")
    ]
    stamp = ROOT / ".libtorch" / "stamp"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip() or "unknown",
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "libtorch": stamp.read_text() if stamp.exists() else "unknown",
        "cards": cards,
        "NVIDIA_TF32_OVERRIDE": os.environ.get("NVIDIA_TF32_OVERRIDE", "unset"),
    }


class Programs:
    """The programs of the repository, on one device, each under the time that is left for its step."""

    def __init__(self, folder, device):
        self.folder, self.device, self.deadline = folder, device, time.monotonic()

    def give(self, seconds):
        self.deadline = time.monotonic() + seconds

    def left(self):
        return self.deadline - time.monotonic()

    def run(self, name, *words, environment=None, may_fail=False):
        """The finished process with what it wrote as `stdout` and `stderr`."""
        command = [str(self.folder / name), *map(str, words)]
        return self.call(command, environment, may_fail)

    def call(self, command, environment=None, may_fail=False):
        asked = environment or {}
        for_bits = {} if asked.get("FLOW_RL_DETERMINISM") == "fast" else FOR_BITS
        variables = {**for_bits, **os.environ, **asked}
        child = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )
        try:
            stdout, stderr = child.communicate(timeout=max(0.1, self.left()))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            raise Failed(f"`{' '.join(command[:3])} …` was not done in its time") from None
        if child.returncode != 0 and not may_fail:
            said = (stderr or stdout).strip()[-1500:]
            raise Failed(f"`{' '.join(command)}` ended with {child.returncode}: {said}")
        return subprocess.CompletedProcess(command, child.returncode, stdout, stderr)

    def train(self, config, directory, may_fail=False):
        """`coordinator up`; members that outlive it are killed."""
        try:
            return self.run("coordinator", "up", config, may_fail=may_fail)
        finally:
            kill_members(directory)


def kill_members(directory):
    record = directory / "run.json"
    members = json.loads(record.read_text()).get("members", {}) if record.exists() else {}
    for pid in members.values():
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError, TypeError):
            pass


class MemoryWatch:
    """The most memory that was taken of any one card beyond what was taken before, in MiB."""

    def __enter__(self):
        self.before, self.most, self.stop = self.taken(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    @staticmethod
    def taken():
        return [float(row[0]) for row in smi("memory.used")]

    def watch(self):
        while not self.stop.wait(0.2):
            beyond = [now - before for now, before in zip(self.taken(), self.before)]
            self.most = max([self.most, *beyond])
