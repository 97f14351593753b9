"""The checks, one function each: what it measures comes back, and what does not hold is raised.

A check gets `World`: programs, a folder of its own, and whether models have their published size or a tiny one.
"""
import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import time

from machine import ROOT, Failed, MemoryWatch, NotRun, Programs, peak, smi

GOLDEN = ROOT / "tests" / "golden"
PUBLISHED = GOLDEN / "published"
TINY_CONFIG = ROOT / "deploy" / "configs" / "tempflow-tiny-cpu.toml"
# Folders with recorded cases, and which program has cases there; the tiny form takes the first of each.
WORKER_CASES = ["sd3", "pickscore", "flux", "qwen-image", "hpsv3", "sde"]
LEARNER_CASES = ["sd3", "flux", "qwen-image"]
# Whose worst case in bfloat16 a device may double.
OF_THE_CPU = 2.0
# float32, with other sums than the processor's: as `parity` promises.
SCORE_TOLERANCE = 1e-4
# Without TF32, which cuDNN takes for convolutions in float32 unless told not to: 10 bits of each factor in place of 23.
EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}


@dataclasses.dataclass
class World:
    programs: Programs
    folder: pathlib.Path
    is_published: bool

    @property
    def device(self):
        return self.programs.device

    @property
    def is_card(self):
        return self.device != "cpu"


def load(world):
    """The device is there, and libtorch's half for it loads."""
    start = time.monotonic()
    world.programs.run("rollout-worker", "inspect-device", world.device)
    return {"seconds": round(time.monotonic() - start, 2)}


def deviations(world, dtype, device, environment, rtol):
    """By program and folder of cases: the largest relative deviation, how many outputs there are, and those that fail."""
    found = {}
    calls = [("rollout-worker", cases, []) for cases in WORKER_CASES]
    calls += [("learner", cases, words) for cases in LEARNER_CASES for words in ([], ["--gradient-checkpointing"])]
    if not world.is_published:
        calls = [call for call in calls if call[1] in ("sd3", "pickscore") and not call[2]]
    for program, cases, words in calls:
        flags = ["--device", device, "--dtype", dtype, "--rtol", rtol, *words]
        table = world.programs.run(program, "parity", GOLDEN / cases, *flags, environment=environment, may_fail=True)
        # Name of the case, tensor, largest difference, relative one, verdict; a tensor of another shape has no numbers.
        lines = re.findall(r"^(\S+) +(\S+) +(\S+) +(\S+) (ok|FAIL)$", table.stdout, re.MULTILINE)
        if not lines:
            raise Failed(f"{program} parity {cases}: {(table.stderr or table.stdout).strip()[-800:]}")
        fails = [f"{case} {tensor}" for case, tensor, _, _, verdict in lines if verdict == "FAIL"]
        fails += re.findall(r"^\S+ +\S+ +shape .* FAIL$", table.stdout, re.MULTILINE)
        name = " ".join([program, cases, *words])
        found[name] = {"largest": max(float(line[3]) for line in lines), "outputs": len(lines), "fails": fails}
    return found


def parity_float32(world):
    """Every recorded case in float32 to 1e-4, without TF32; beside it what TF32 does where libtorch takes it by itself."""
    exact = deviations(world, "float32", world.device, EXACT, 1e-4)
    measured = {name: {"largest": row["largest"], "outputs": row["outputs"]} for name, row in exact.items()}
    if world.is_card:
        for name, row in deviations(world, "float32", world.device, {}, 1e-4).items():
            measured[name]["largest, TF32 as libtorch has it"] = row["largest"]
    fails = {name: row["fails"] for name, row in exact.items() if row["fails"]}
    if fails:
        raise Failed(f"not within 1e-4: {json.dumps(fails)}")
    return measured


def parity_bfloat16(world):
    """Every recorded case in bfloat16: no worse than twice what this machine's CPU makes of it."""
    cpu = deviations(world, "bfloat16", "cpu", {}, 1e9)
    here = deviations(world, "bfloat16", world.device, {}, 1e9) if world.is_card else cpu
    measured = {name: {"largest": row["largest"], "on the CPU": cpu[name]["largest"]} for name, row in here.items()}
    worse = [name for name, row in here.items() if not row["largest"] <= OF_THE_CPU * max(cpu[name]["largest"], 1e-3)]
    if worse or any(row["fails"] for row in here.values()):
        raise Failed(f"worse than twice the CPU's: {worse}; {json.dumps(measured)}")
    return measured


def scorers(world):
    """Scorers score pictures as they do on the CPU."""
    clip, pictures = GOLDEN / "clip_rewards" / "clip", world.folder / "pictures"
    pictures.mkdir()
    for number in range(6):
        source = GOLDEN / "clip_rewards" / "images" / f"{number}.png"
        (pictures / f"{number:05}-0.png").write_bytes(source.read_bytes())
    prompts = world.folder / "prompts.txt"
    prompts.write_text("".join(f"a photo of {number} circles\n" for number in range(6)))
    options = {
        "pickscore": [f"model={GOLDEN / 'pickscore'}"],
        "clipscore": [f"model={clip}"],
        "hpsv2.1": [f"model={GOLDEN / 'clip_rewards' / 'hpsv2.1'}", f"processor={clip}"],
        "aesthetic": [f"model={clip}", f"predictor={GOLDEN / 'clip_rewards' / 'predictor'}"],
        "jpeg_compressibility": [],
    }
    measured = {}
    for name, settings in options.items():
        words = ["score", "--json", "--reward", name, "--images", pictures, "--prompts", prompts]
        words += [word for setting in settings for word in ("--option", setting)]

        def score(device):
            lines = world.programs.run("rollout-worker", *words, "--device", device, environment=EXACT).stdout
            return [row["score"] for row in map(json.loads, lines.splitlines()) if "score" in row]

        here, cpu = score(world.device), score("cpu")
        worst = max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(here, cpu, strict=True))
        measured[name] = {"largest relative difference to the CPU": worst, "scores": len(here)}
    if any(row["largest relative difference to the CPU"] > SCORE_TOLERANCE for row in measured.values()):
        raise Failed(f"not within {SCORE_TOLERANCE}: {json.dumps(measured)}")
    return measured


def digest(files):
    """One for the contents of files and their names."""
    whole = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        whole.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def sampling_twice(world):
    """The same images twice, in either element type."""
    prompts = world.folder / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    measured = {}
    for dtype in ("float32", "bfloat16"):
        seen = []
        for turn in ("first", "second"):
            out = world.folder / f"{dtype}-{turn}"
            model = ["--model", ROOT / "assets" / "tiny-sd3", "--max-sequence-length", 0]
            words = [*model, "--prompts", prompts, "--out", out, "--steps", 6, "--images-per-prompt", 8]
            world.programs.run("rollout-worker", "sample", *words, "--device", world.device, "--dtype", dtype)
            seen.append(digest(out.glob("*.png")))
        measured[dtype] = seen[0][:16]
        if seen[0] != seen[1]:
            raise Failed(f"{dtype}: the second time other images were drawn")
    return measured


def trained(world, name, config_of):
    """Trains and says what came of it: digest of all that was trained, the largest deviations, and the cost."""
    directory = world.folder / name
    config = world.folder / f"{name}.toml"
    config.write_text(config_of(name))
    world.programs.train(config, directory)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    newest = max(path for path in (directory / "checkpoints").iterdir() if path.is_dir() and not path.suffix)

    def most(key):
        return max((row["policy"][key] for row in rows if row["policy"].get(key) is not None), default=None)

    images, seconds = sum(row["cost"]["images"] for row in rows), sum(row["time"]["iteration"] for row in rows)
    return {
        "digest": digest(newest.rglob("*.safetensors"))[:16],
        "iterations": len(rows),
        "ratio deviation": most("ratio_deviation"),
        "log-probability deviation": most("log_prob_deviation"),
        "images per second": round(images / max(seconds, 1e-9), 2),
    }


def same_bits(runs):
    digests = {name: run["digest"] for name, run in runs.items()}
    if len(set(digests.values())) > 1:
        raise Failed(f"the runs ended with other weights: {json.dumps(runs)}")
    return runs


def tiny_run(world):
    """Four iterations of the shipped run end with the same bits twice, and with two workers in place of one."""
    text = TINY_CONFIG.read_text()

    def config(workers):
        changes = {
            "directory": json.dumps(str(world.folder)), "device": json.dumps(world.device), "workers": workers,
            "iterations": 4, "every": 4, "prompts_per_iteration": 4, "prompts": 8,
        }
        sections = {"directory": "run", "device": "resources", "workers": "resources", "iterations": "run",
                    "every": "evaluation", "prompts_per_iteration": "sampling", "prompts": "evaluation"}
        return lambda name: with_settings(text, {(sections[key], key): value for key, value in changes.items()}
                                          | {("run", "name"): json.dumps(name)})

    runs = {"once": config(1), "again": config(1), "with two workers": config(2)}
    return same_bits({name: trained(world, name.replace(" ", "-"), of) for name, of in runs.items()})


def with_settings(text, settings):
    """A config with keys set: in place where they stand, else at the head of their section."""
    for (section, key), value in settings.items():
        head, body = re.split(rf"^\[{section}\]\n", text, maxsplit=1, flags=re.MULTILINE)
        end = re.search(r"^\[", body, re.MULTILINE)
        own, rest = (body[: end.start()], body[end.start() :]) if end else (body, "")
        own = re.sub(rf"^{key} *=.*\n", "", own, flags=re.MULTILINE)
        text = f"{head}[{section}]\n{key} = {value}\n{own}{rest}"
    return text


def model_config(world, name, side, rows):
    """A run of two iterations on SD3.5 Medium with random weights, or on the tiny model."""
    prompts = world.folder / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    folder, tokens = (PUBLISHED / "sd3.5-medium", 128) if world.is_published else (ROOT / "assets" / "tiny-sd3", 0)
    return f"""
[run]
name = {json.dumps(name)}
directory = {json.dumps(str(world.folder))}
iterations = 2
[model]
path = {json.dumps(str(folder))}
random_weights = true
dtype = "{"bfloat16" if world.is_card else "float32"}"
max_sequence_length = {tokens}
embedding_cache = "embeddings"
[data]
train = {json.dumps(str(prompts))}
test = {json.dumps(str(prompts))}
[sampling]
steps = 4
height = {side}
width = {side}
branch_steps = "0,1"
prompts_per_iteration = 2
seeds_per_prompt = {rows}
branches_per_seed = 2
seeds_per_task = {rows}
max_rows = {16 * rows}
[training]
max_rows = 2
gradient_checkpointing = true
[[rewards]]
name = "jpeg_compressibility"
[evaluation]
every = 2
steps = 2
prompts = 2
[resources]
device = {json.dumps(world.device)}
workers = 1
"""


def planned_gigabytes(world, config):
    """What `coordinator plan` says that learner and worker take of one card, in GB."""
    text = world.programs.run("coordinator", "plan", config).stdout
    row = re.search(r"^ +takes +([\d.]+) GB +([\d.]+) GB +([\d.]+) GB", text, re.MULTILINE)
    if row is None:
        raise Failed(f"`coordinator plan` names no memory of a card: {text[-500:]}")
    return float(row[3])


def model_run(world):
    """Two iterations on SD3.5 Medium at its published size: the same bits twice, and no more memory than planned."""
    side = 512 if world.is_published else 16
    runs, most = {}, 0.0
    for name in ("once", "again"):
        with MemoryWatch() as watch:
            runs[name] = trained(world, name, lambda name: model_config(world, name, side, 1))
        most = max(most, watch.most * 2**20 / 1e9)
    same_bits(runs)
    planned = planned_gigabytes(world, world.folder / "once.toml")
    runs["memory"] = {"planned GB": planned, "most GB": round(most, 2) if world.is_card else "not run: no card"}
    if most > planned:
        raise Failed(f"more memory than planned: {json.dumps(runs)}")
    return runs


def out_of_memory(world):
    """A run whose images fit no card ends by itself and names what takes less memory."""
    if not world.is_card:
        raise NotRun("the CPU's memory is not limited as a card's is")
    config = world.folder / "large.toml"
    config.write_text(model_config(world, "large", 2048 if world.is_published else 1024, 256))
    ended = world.programs.train(config, world.folder / "large", may_fail=True)
    said = ended.stdout + ended.stderr
    if ended.returncode == 0 or "out of memory" not in said or "sampling.max_rows" not in said:
        raise Failed(f"it ended with {ended.returncode}: {said.strip()[-1500:]}")
    return {"exit code": ended.returncode, "said": next(line for line in said.splitlines() if "out of memory" in line)}


@dataclasses.dataclass
class Size:
    """A network to time: its folder, pixels of a side, tokens of the text, rows, and whether activations are recomputed."""

    name: str
    folder: pathlib.Path
    side: int
    text_tokens: int
    rows: list
    recomputes: bool
    gigabytes: float = 0.0


def sizes(world):
    if not world.is_published:
        tiny = Size("tiny SD3", ROOT / "assets" / "tiny-sd3", 16, 9, [1, 4], False)
        families = [Size(f"tiny {name}", GOLDEN / name, 32, 8, [2], True) for name in ("flux", "qwen-image")]
        return [tiny, *families]
    return [
        Size("SD3.5 Medium", PUBLISHED / "sd3.5-medium", 512, 205, [2, 8], False, 5.0),
        Size("FLUX.1-dev", PUBLISHED / "flux.1-dev", 512, 512, [1, 4], True, 24.0),
        Size("Qwen-Image", PUBLISHED / "qwen-image", 512, 128, [1, 4], True, 41.0),
    ]


def flags(world, size):
    words = [size.folder, *size.rows, "--device", world.device, "--dtype", "bfloat16", "--random-weights"]
    words += ["--side", size.side, "--text-tokens", size.text_tokens, "--repeats", 5 if world.is_card else 1]
    return words + (["--gradient-checkpointing"] if size.recomputes else [])


def timed(lines, size, card):
    """Rows a second, and the share of the card's most, of lines `rows,sampling_ms,training_ms,forward_tflop`."""
    measured = {}
    for line in lines.splitlines()[1:]:
        rows, sampling, training, tera = (float(cell) for cell in line.split(","))
        # Backward to the activations alone: the base's weights are frozen; once more forward where activations are
        # computed again.
        per_step = tera * (3 if size.recomputes else 2)
        row = {"sampling rows/s": 1e3 * rows / sampling, "training rows/s": 1e3 * rows / training}
        if most := peak(card):
            row["sampling share of peak"] = tera / (sampling / 1e3) / most
            row["training share of peak"] = per_step / (training / 1e3) / most
        measured[f"{rows:.0f} rows"] = {key: round(value, 3) for key, value in row.items()}
    return measured


def speed(world):
    """Rows a second of the networks in sampling and in training, in bfloat16, beside PyTorch's where python has it."""
    cards = smi("name,memory.free")
    card, free = (cards[0][0], float(cards[0][1]) * 2**20 / 1e9) if cards and world.is_card else ("", float("inf"))
    has_torch = all(importlib.util.find_spec(name) for name in ("torch", "diffusers", "peft"))
    measured = {}
    for size in sizes(world):
        if size.gigabytes * 1.2 > free:
            measured[size.name] = f"not run: {size.gigabytes:.0f} GB of weights beside {free:.0f} GB free"
            continue
        ours = world.programs.run("examples/transformer_speed", *flags(world, size)).stdout
        measured[size.name] = timed(ours, size, card)
        if has_torch:
            script = [sys.executable, str(pathlib.Path(__file__).with_name("torch_speed.py"))]
            theirs = world.programs.call([*script, *map(str, flags(world, size))]).stdout
            measured[f"{size.name}, PyTorch"] = timed(theirs, size, card)
    if not has_torch:
        measured["PyTorch"] = f"not run: {sys.executable} lacks torch, diffusers or peft"
    return measured


def price_of_strict(world):
    """How long the first network takes with `run.determinism` strict and fast."""
    size = sizes(world)[0]
    measured = {}
    for determinism in ("strict", "fast"):
        variables = {"FLOW_RL_DETERMINISM": determinism}
        lines = world.programs.run("examples/transformer_speed", *flags(world, size), environment=variables).stdout
        measured[determinism] = timed(lines, size, "")
    return measured
