"""Noise levels as diffusers' pipelines lay them out, each family's grid under either bend, beside those of its published
models (`sigmas_FAMILY_TOKENS_STEPS` and `sigmas_sd3_STEPS`, recorded before).

The pipelines of `tests/golden` run from start to end with a scheduler of other settings and a network that says nothing,
so that grid, shift and bend are the pipeline's own. Needs torch 2.11, diffusers 0.38 and transformers 4.57:
`python make_sigmas.py`."""

import json
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

HERE = Path(__file__).parent
STATIC = {"use_dynamic_shifting": False}
DYNAMIC = {"use_dynamic_shifting": True}
# Family, what is changed in its published scheduler, steps, height and width in pixels.
CASES = {
    "flux_schnell_4": ("flux", {**STATIC, "shift": 1.0}, 4, (256, 256)),
    "flux_static_10": ("flux", {**STATIC, "shift": 3.0}, 10, (256, 384)),
    "flux_static_terminal_28": ("flux", {**STATIC, "shift": 1.7, "shift_terminal": 0.1}, 28, (256, 256)),
    "flux_flow_sigmas_6": ("flux", {"use_flow_sigmas": True}, 6, (512, 512)),
    "flux_flow_sigmas_static_6": ("flux", {**STATIC, "use_flow_sigmas": True}, 6, (512, 512)),
    "flux_linear_8": ("flux", {"time_shift_type": "linear"}, 8, (512, 256)),
    "qwen_static_10": ("qwen-image", {**STATIC, "shift": 3.0, "shift_terminal": None}, 10, (256, 256)),
    "qwen_static_terminal_20": ("qwen-image", {**STATIC, "shift": 2.2}, 20, (256, 256)),
    "qwen_flow_sigmas_8": ("qwen-image", {"use_flow_sigmas": True}, 8, (256, 512)),
    "sd3_dynamic_4": ("sd3", DYNAMIC, 4, (32, 48)),
    "sd3_dynamic_28": ("sd3", {**DYNAMIC, "max_shift": 1.6, "base_image_seq_len": 2, "max_image_seq_len": 40}, 28, (48, 48)),
    "sd3_dynamic_linear_terminal_10": ("sd3", {**DYNAMIC, "time_shift_type": "linear", "shift_terminal": 0.02}, 10, (32, 32)),
    "sd3_static_terminal_10": ("sd3", {"shift": 2.5, "shift_terminal": 0.05}, 10, (32, 32)),
    "sd3_training_grid_500_12": ("sd3", {"num_train_timesteps": 500}, 12, (32, 32)),
}


class SilentNetwork(torch.nn.Module):
    """Answers zeros, as fast at a thousand tokens as at six."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.dtype = torch.float32

    def forward(self, hidden_states, **_):
        return (torch.zeros_like(hidden_states),)

    def cache_context(self, _):
        return torch.no_grad()


def packed_tokens(pipeline, height, width):
    patch = pipeline.transformer.config.patch_size if "StableDiffusion3" in type(pipeline).__name__ else 2
    side = pipeline.vae_scale_factor * patch
    return (height // side) * (width // side)


def record(name, family, settings, steps, height, width):
    folder = HERE.parent / family
    index = json.loads((folder / "model_index.json").read_text())
    absent = {part: None for part, entry in index.items() if entry == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True, **absent)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config({**pipeline.scheduler.config, **settings})
    pipeline.transformer = SilentNetwork(pipeline.transformer.config)
    pipeline("a cat", num_inference_steps=steps, height=height, width=width, output_type="latent", max_sequence_length=16)
    scheduler = pipeline.scheduler
    known = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    call = {"steps": steps, "image_seq_len": packed_tokens(pipeline, height, width), **known}
    tensors = {"out.sigmas": scheduler.sigmas.clone(), "out.timesteps": scheduler.timesteps.clone()}
    save_file(tensors, str(HERE / f"sigmas_{name}.safetensors"), metadata={"call": json.dumps(call)})
    print(name, call["image_seq_len"], scheduler.sigmas[:4].tolist(), scheduler.sigmas[-2:].tolist())


if __name__ == "__main__":
    diffusers.logging.set_verbosity_error()
    for name, (family, settings, steps, size) in CASES.items():
        record(name, family, settings, steps, *size)
