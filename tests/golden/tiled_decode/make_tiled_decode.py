#!/usr/bin/env python3
"""Records a tiled decode of tests/golden/sd3/vae: diffusers' enable_tiling, whose tile is the config's sample_size, 32."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

HERE = Path(__file__).parent
vae = AutoencoderKL.from_pretrained(HERE.parent / "sd3" / "vae", torch_dtype=torch.float32)
vae.enable_tiling()
# Not a multiple of the stride, so that the last tiles of both axes are cut short.
latents = torch.randn([1, 16, 15, 11], generator=torch.Generator().manual_seed(5))
scaled = latents / vae.config.scaling_factor + vae.config.shift_factor
with torch.no_grad():
    image = vae.decode(scaled).sample
save_file({"latents": latents, "image": image.contiguous()}, str(HERE / "tiled_decode.safetensors"))
