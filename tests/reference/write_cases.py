#!/usr/bin/env python3
"""Records what diffusers and PEFT compute with a pipeline, for `rollout-worker parity` and `learner parity`.

    pip install torch==2.11.0 diffusers==0.38.0 'transformers>=4.57,<5' accelerate peft sentencepiece protobuf
    python write_cases.py --model MODEL_DIR --out MODEL_DIR/cases
    rollout-worker parity MODEL_DIR
    learner parity MODEL_DIR

Each case is a safetensors file: `in.*` are inputs, `out.*` results, and the header's `call` holds the remaining
arguments as JSON. Everything is computed in float32 on the CPU. A pipeline's class is looked up in FAMILIES; a new
family is a subclass of Family that says how its encoders, network and decoder are called.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

# Where ftfy is installed, transformers repairs texts before CLIP's tokenizer sees them; ours does not.
sys.modules["ftfy"] = None

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

PROMPTS = [
    "a photo of a red circle",
    'A sign that says "Open 24/7", in a café, 3 o\'clock',
    "",
    "🐈",
    "two dogs and a 猫 " * 60,
]
ADAPTER_FOLDER = "pipeline_lora"
KINDS = ("prompt_embeds", "transformer", "vae_decode", "pipeline", "lora", "rl_step")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="pipeline folder in the diffusers layout")
    parser.add_argument("--out", type=Path, required=True, help="folder for the cases")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="kinds of case (default: all)")
    parser.add_argument("--height", type=int, help="pixels (default: the smallest size that is not square)")
    parser.add_argument("--width", type=int, help="pixels")
    parser.add_argument("--max-sequence-length", type=int, default=32, help="tokens for T5 (default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 10], help="sampling steps (default: 4 10)")
    parser.add_argument("--guidance-scale", type=float, default=4.5, help="of the guided cases, and of networks that apply it (default: %(default)s)")
    parser.add_argument(
        "--adapter", type=Path, help="LoRA file to load with load_lora_weights: only pipeline cases, drawn with it"
    )
    parser.add_argument("--rank", type=int, default=4, help="of the adapters (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load(folder):
    index = json.loads((folder / "model_index.json").read_text())
    # Diffusers wants to be told about components that the folder does without, such as T5.
    absent = {name: None for name, entry in index.items() if entry == [None, None]}
    return DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True, **absent)


def write_case(folder, name, inputs, outputs, call):
    tensors = {f"in.{key}": value for key, value in inputs.items()}
    tensors.update({f"out.{key}": value for key, value in outputs.items()})
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    path = folder / f"{name}.safetensors"
    save_file(tensors, str(path), metadata={"call": json.dumps(call)})
    print(f"{path}: {len(outputs)} outputs")


def attach_adapter(network, rank, targets, spread):
    """A PEFT adapter that changes something: PEFT itself starts the second factor at zero."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, init_lora_weights="gaussian", target_modules=targets)
    adapted = get_peft_model(network, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, spread)
    return adapted


def gradients(adapted):
    return {
        "grad." + name.replace(".default", ""): parameter.grad.clone()
        for name, parameter in adapted.named_parameters()
        if parameter.grad is not None
    }


class FlowSdeStep:
    """One random step of Flow-GRPO at index `step` of a schedule, from the paper's formula."""

    def __init__(self, sigmas, step, noise_level):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        # At the first step sigma is 1, and the next one stands in for it in the denominator.
        share = sigma if sigma < 1 else sigmas[1]
        diffusion = noise_level * torch.sqrt(sigma / (1 - share))
        self.delta = sigma_next - sigma
        self.std = diffusion * torch.sqrt(-self.delta)
        self.drift = diffusion**2 / (2 * sigma)
        self.sigma = sigma

    def mean(self, latents, velocity):
        denoised_pull = velocity * (1 - self.sigma) + latents
        return latents + (velocity + self.drift * denoised_pull) * self.delta

    def log_prob(self, latents, mean):
        variance = self.std**2
        squared = (latents.detach() - mean) ** 2 / variance
        return -0.5 * (squared + torch.log(2 * torch.pi * variance)).flatten(1).mean(1)


class Family:
    """How one class of pipeline is asked for what a case records."""

    lora_targets = ()
    # Whether guidance leads away from a negative prompt; else the network is told its strength.
    has_negative = True

    def __init__(self, pipeline, arguments):
        self.pipeline = pipeline
        self.arguments = arguments
        self.length = arguments.max_sequence_length
        self.generator = torch.Generator().manual_seed(arguments.seed)

    def patch(self):
        """Pixels along the side of what becomes a token."""
        raise NotImplementedError

    def size(self):
        return self.arguments.height or 3 * self.patch(), self.arguments.width or 4 * self.patch()

    def noise(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def encode(self, prompts):
        """Named embeddings of prompts, `prompt_embeds` and `pooled` among them."""
        raise NotImplementedError

    def token_ids(self, prompts):
        """Named token ids of prompts."""
        raise NotImplementedError

    def latents(self, rows):
        """Initial noise for images of the chosen size, as the pipeline takes it."""
        raise NotImplementedError

    def unpacked(self, latents):
        """Latents as the decoder takes them."""
        return latents

    def noise_levels(self, steps):
        """What the pipeline hands its scheduler; none where that makes its own."""
        return None

    def image_tokens(self):
        """How many tokens the network sees of an image."""
        height, width = self.size()
        return (height // self.patch()) * (width // self.patch())

    def schedule(self, steps):
        """The scheduler with its noise levels for the chosen size."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipeline.scheduler.config)
        config = scheduler.config
        settings = {}
        if config.use_dynamic_shifting:
            slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
            settings["mu"] = config.base_shift + slope * (self.image_tokens() - config.base_image_seq_len)
        levels = self.noise_levels(steps)
        if levels is None:
            scheduler.set_timesteps(steps, **settings)
        else:
            scheduler.set_timesteps(sigmas=levels, **settings)
        return scheduler

    def network_inputs(self, latents, timestep, embeddings):
        """The network's arguments by the names that diffusers gives them."""
        raise NotImplementedError

    def decode(self, latents):
        """The decoder's own output for unpacked latents, between about -1 and 1."""
        config = self.pipeline.vae.config
        shift = config.shift_factor or 0.0
        return self.pipeline.vae.decode(latents / config.scaling_factor + shift, return_dict=False)[0]

    def sample(self, prompts, latents, steps, guidance_scale, output_type):
        """A whole run of the pipeline."""
        height, width = self.size()
        return self.pipeline(
            prompt=prompts,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            latents=latents.clone(),
            height=height,
            width=width,
            output_type=output_type,
            max_sequence_length=self.length,
        ).images

    def velocity(self, network, latents, timestep, embeddings):
        return network(**self.network_inputs(latents, timestep, embeddings), return_dict=False)[0]

    def guided_velocity(self, network, latents, timestep, positive, negative):
        """The velocity of latents at one time, under the chosen strength of guidance."""
        timesteps = timestep.repeat(len(latents))
        if not self.has_negative:
            return self.velocity(network, latents, timesteps, positive)
        both = {name: torch.cat([negative[name].expand_as(tensor), tensor]) for name, tensor in positive.items()}
        velocity = self.velocity(network, torch.cat([latents] * 2), timesteps.repeat(2), both)
        without, towards = velocity.chunk(2)
        return without + self.arguments.guidance_scale * (towards - without)


def token_ids(tokenizer, prompts, length):
    encoded = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return encoded.input_ids


class StableDiffusion3(Family):
    lora_targets = (
        "attn.add_k_proj",
        "attn.add_q_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "attn.to_k",
        "attn.to_out.0",
        "attn.to_q",
        "attn.to_v",
    )

    def patch(self):
        return self.pipeline.vae_scale_factor * self.pipeline.transformer.config.patch_size

    def encode(self, prompts):
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=self.length,
        )
        return {"prompt_embeds": embeds, "pooled": pooled}

    def token_ids(self, prompts):
        clip_length = self.pipeline.tokenizer_max_length
        named = {
            "clip_ids": token_ids(self.pipeline.tokenizer, prompts, clip_length),
            "clip_2_ids": token_ids(self.pipeline.tokenizer_2, prompts, clip_length),
        }
        if self.pipeline.tokenizer_3 is not None and self.length > 0:
            named["t5_ids"] = token_ids(self.pipeline.tokenizer_3, prompts, self.length)
        return named

    def latents(self, rows):
        height, width = self.size()
        scale = self.pipeline.vae_scale_factor
        channels = self.pipeline.transformer.config.in_channels
        return self.noise(rows, channels, height // scale, width // scale)

    def network_inputs(self, latents, timestep, embeddings):
        return {
            "hidden_states": latents,
            "timestep": timestep,
            "encoder_hidden_states": embeddings["prompt_embeds"],
            "pooled_projections": embeddings["pooled"],
        }


class PackedFamily(Family):
    """A family whose pipeline packs latents into patches outside the network, and hands its scheduler noise levels."""

    def patch(self):
        return self.pipeline.vae_scale_factor * 2

    def grid(self):
        return tuple(side // self.patch() for side in self.size())

    def latents(self, rows):
        height, width = self.grid()
        return self.noise(rows, height * width, self.pipeline.transformer.config.in_channels)

    def unpacked(self, latents):
        return self.pipeline._unpack_latents(latents, *self.size(), self.pipeline.vae_scale_factor)

    def noise_levels(self, steps):
        return np.linspace(1.0, 1 / steps, steps)


class Flux(PackedFamily):
    lora_targets = (
        "attn.add_k_proj",
        "attn.add_q_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "attn.to_k",
        "attn.to_out.0",
        "attn.to_q",
        "attn.to_v",
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    )
    has_negative = False

    def noise_levels(self, steps):
        leaves_them = self.pipeline.scheduler.config.get("use_flow_sigmas")
        return None if leaves_them else super().noise_levels(steps)

    def encode(self, prompts):
        embeds, pooled, _ = self.pipeline.encode_prompt(prompt=prompts, prompt_2=None, max_sequence_length=self.length)
        return {"prompt_embeds": embeds, "pooled": pooled}

    def token_ids(self, prompts):
        return {
            "clip_ids": token_ids(self.pipeline.tokenizer, prompts, self.pipeline.tokenizer_max_length),
            "t5_ids": token_ids(self.pipeline.tokenizer_2, prompts, self.length),
        }

    def network_inputs(self, latents, timestep, embeddings):
        rows, columns = self.grid()
        inputs = {
            "hidden_states": latents,
            "timestep": timestep / 1000,
            "encoder_hidden_states": embeddings["prompt_embeds"],
            "pooled_projections": embeddings["pooled"],
            "txt_ids": torch.zeros(embeddings["prompt_embeds"].shape[1], 3),
            "img_ids": torch.cartesian_prod(*(torch.arange(length) for length in (1, rows, columns))),
        }
        if self.pipeline.transformer.config.guidance_embeds:
            inputs["guidance"] = torch.full([len(latents)], self.arguments.guidance_scale)
        return inputs


class QwenImage(PackedFamily):
    lora_targets = (
        "attn.add_k_proj",
        "attn.add_q_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "attn.to_k",
        "attn.to_out.0",
        "attn.to_q",
        "attn.to_v",
        "img_mlp.net.0.proj",
        "img_mlp.net.2",
        "txt_mlp.net.0.proj",
        "txt_mlp.net.2",
    )

    def encode(self, prompts):
        embeds, mask = self.pipeline.encode_prompt(prompt=prompts, max_sequence_length=self.length)
        # Diffusers leaves it out where nothing is padded.
        mask = torch.ones(embeds.shape[:2], dtype=torch.long) if mask is None else mask
        return {"prompt_embeds": embeds, "mask": mask}

    def token_ids(self, prompts):
        """None: texts have their own lengths, and the embeddings tell."""
        return {}

    def network_inputs(self, latents, timestep, embeddings):
        return {
            "hidden_states": latents,
            "timestep": timestep / 1000,
            "encoder_hidden_states": embeddings["prompt_embeds"],
            "encoder_hidden_states_mask": embeddings["mask"],
        }

    def velocity(self, network, latents, timestep, embeddings):
        inputs = self.network_inputs(latents, timestep, embeddings)
        shapes = [[(1, *self.grid())]] * len(latents)
        return network(**inputs, img_shapes=shapes, return_dict=False)[0]

    def guided_velocity(self, network, latents, timestep, positive, negative):
        timesteps = timestep.repeat(len(latents))
        negative = {name: tensor.expand(len(latents), *tensor.shape[1:]) for name, tensor in negative.items()}
        towards = self.velocity(network, latents, timesteps, positive)
        without = self.velocity(network, latents, timesteps, negative)
        guided = without + self.arguments.guidance_scale * (towards - without)
        return guided * towards.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)

    def decode(self, latents):
        config = self.pipeline.vae.config
        mean, deviation = (
            torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std)
        )
        return self.pipeline.vae.decode(latents * deviation + mean, return_dict=False)[0][:, :, 0]

    def sample(self, prompts, latents, steps, guidance_scale, output_type):
        height, width = self.size()
        return self.pipeline(
            prompt=prompts,
            negative_prompt=[" "] * len(prompts) if guidance_scale > 1 else None,
            num_inference_steps=steps,
            true_cfg_scale=guidance_scale,
            latents=latents.clone(),
            height=height,
            width=width,
            output_type=output_type,
            max_sequence_length=self.length,
        ).images


FAMILIES = {"StableDiffusion3Pipeline": StableDiffusion3, "FluxPipeline": Flux, "QwenImagePipeline": QwenImage}


@torch.no_grad()
def prompt_embeds(family, folder):
    outputs = family.encode(PROMPTS)
    if family.has_negative:
        negative = family.encode([""] * len(PROMPTS))
        outputs.update({f"negative_{name}": tensor for name, tensor in negative.items()})
    outputs.update(family.token_ids(PROMPTS))
    call = {"prompts": PROMPTS, "max_sequence_length": family.length}
    write_case(folder, "prompt_embeds", {}, outputs, call)


def pixels(family):
    height, width = family.size()
    return {"height": height, "width": width}


def network_query(family):
    latents = family.latents(2)
    timestep = torch.tensor([913.0, 250.0])
    with torch.no_grad():
        return latents, timestep, family.encode(PROMPTS[:2])


@torch.no_grad()
def transformer(family, folder):
    query = network_query(family)
    sample = family.velocity(family.pipeline.transformer, *query)
    write_case(folder, "transformer", family.network_inputs(*query), {"sample": sample}, pixels(family))


@torch.no_grad()
def vae_decode(family, folder):
    latents = family.unpacked(family.latents(2))
    write_case(folder, "vae_decode", {"latents": latents}, {"image": family.decode(latents)}, {})


@torch.no_grad()
def pipeline(family, folder):
    guided = family.arguments.guidance_scale
    for steps in family.arguments.steps:
        for guidance_scale in sorted({1.0, guided}):
            latents = family.latents(2)
            run = (PROMPTS[:2], latents, steps, guidance_scale)
            outputs = {"latents": family.sample(*run, "latent"), "image": family.sample(*run, "pt")}
            call = {
                "prompts": PROMPTS[:2],
                "steps": steps,
                "guidance_scale": guidance_scale,
                "max_sequence_length": family.length,
                **pixels(family),
            }
            if family.arguments.adapter:
                call["adapter"] = ADAPTER_FOLDER
            write_case(folder, f"pipeline_{steps}_{guidance_scale}", {"latents": latents}, outputs, call)


def lora(family, folder):
    query = network_query(family)
    adapted = attach_adapter(family.pipeline.transformer, family.arguments.rank, list(family.lora_targets), 0.05)
    adapted.save_pretrained(folder / "transformer_lora")
    sample = family.velocity(adapted, *query)
    cotangent = family.noise(*sample.shape)
    (sample * cotangent).sum().backward()
    inputs = {**family.network_inputs(*query), "cotangent": cotangent}
    call = {**pixels(family), "adapter": "transformer_lora", "note": "grad.* is the gradient of sum(sample * cotangent)"}
    write_case(folder, "lora", inputs, {"sample": sample, **gradients(adapted)}, call)
    family.pipeline.transformer = adapted.unload()


def rl_step(family, folder):
    """One update of TempFlow-GRPO at one step of the schedule: loss terms, gradients, the adapter after AdamW."""
    call = {
        "step": 3,
        **pixels(family),
        "guidance_scale": family.arguments.guidance_scale,
        "beta": 0.04,
        "clip_range": 1e-4,
        "adv_clip_max": 5.0,
        "noise_level": 0.7,
        "lr": 3e-4,
        "weight_decay": 1e-4,
        "adam_eps": 1e-8,
        "max_grad_norm": 0.005,
        "adapter_before": "rl_lora_before",
        "adapter_after": "rl_lora_after",
        "note": "weight = std / mean of the stds of steps 0 to 8",
    }
    scheduler = family.schedule(10)
    sigmas, timesteps = scheduler.sigmas, scheduler.timesteps
    step = FlowSdeStep(sigmas, call["step"], call["noise_level"])
    stds = torch.stack([FlowSdeStep(sigmas, index, call["noise_level"]).std for index in range(9)])
    weight = (stds / stds.mean())[call["step"]]

    adapted = attach_adapter(family.pipeline.transformer, family.arguments.rank, list(family.lora_targets), 0.02)
    adapted.save_pretrained(folder / call["adapter_before"])
    with torch.no_grad():
        positive = {name: tensor[[0, 0, 1, 1]] for name, tensor in family.encode(PROMPTS[:2]).items()}
        negative = family.encode([""]) if family.has_negative else {}
    latents = family.latents(4)
    advantages = torch.tensor([1.3, -0.4, 7.0, -0.9])

    def mean():
        velocity = family.guided_velocity(adapted, latents, timesteps[call["step"]], positive, negative)
        return step.mean(latents, velocity)

    with torch.no_grad():
        old_mean = mean()
        next_latents = old_mean + step.std * family.noise(*latents.shape)
        # As if the sampling policy were slightly older, so that some ratios are clipped.
        old_log_prob = step.log_prob(next_latents, old_mean) + torch.tensor([0.0, 5e-5, -3e-4, 2e-4])

    new_mean = mean()
    log_prob = step.log_prob(next_latents, new_mean)
    ratio = torch.exp(log_prob - old_log_prob)
    with torch.no_grad(), adapted.disable_adapter():
        reference = mean()
    clipped_advantages = advantages.clamp(-call["adv_clip_max"], call["adv_clip_max"])
    clipped_ratio = ratio.clamp(1 - call["clip_range"], 1 + call["clip_range"])
    policy_loss = weight * torch.maximum(-clipped_advantages * ratio, -clipped_advantages * clipped_ratio).mean()
    kl_loss = ((new_mean - reference) ** 2).flatten(1).mean(1).div(2 * step.std**2).mean()
    loss = policy_loss + call["beta"] * kl_loss

    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=call["lr"], weight_decay=call["weight_decay"], eps=call["adam_eps"], betas=(0.9, 0.999)
    )
    loss.backward()
    recorded_gradients = gradients(adapted)
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, call["max_grad_norm"])
    optimizer.step()
    adapted.save_pretrained(folder / call["adapter_after"])
    family.pipeline.transformer = adapted.unload()

    inputs = {
        "latents": latents,
        "next_latents": next_latents,
        "log_prob_old": old_log_prob,
        "advantages": advantages,
        **positive,
        **{f"negative_{name}": tensor for name, tensor in negative.items()},
        "sigmas": sigmas,
        "timesteps": timesteps,
    }
    scalars = {
        "policy_loss": policy_loss,
        "kl_loss": kl_loss,
        "loss": loss,
        "weight": weight,
        "grad_norm": grad_norm,
    }
    outputs = {
        "log_prob": log_prob,
        "ratio": ratio,
        **{name: value.reshape(1) for name, value in scalars.items()},
        **recorded_gradients,
    }
    write_case(folder, "rl_step", inputs, outputs, call)


def load_adapter(loaded, arguments):
    """Loads an adapter as a user of diffusers does, and keeps a copy beside the cases."""
    copy = arguments.out / ADAPTER_FOLDER
    copy.mkdir(exist_ok=True)
    shutil.copy(arguments.adapter, copy / "pytorch_lora_weights.safetensors")
    loaded.load_lora_weights(copy, weight_name="pytorch_lora_weights.safetensors")


def main():
    arguments = parse_arguments()
    # A prompt that is too long is among the cases on purpose.
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    loaded = load(arguments.model)
    loaded.set_progress_bar_config(disable=True)
    name = type(loaded).__name__
    if name not in FAMILIES:
        raise SystemExit(f"{arguments.model}: {name} is not supported; supported: {', '.join(FAMILIES)}")
    torch.manual_seed(arguments.seed)
    family = FAMILIES[name](loaded, arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    # Cases of an earlier run must not be taken for this one's.
    for kind in arguments.only:
        for stale in arguments.out.glob(f"{kind}*.safetensors"):
            stale.unlink()
    if arguments.adapter:
        load_adapter(loaded, arguments)
    writers = dict(
        prompt_embeds=prompt_embeds,
        transformer=transformer,
        vae_decode=vae_decode,
        pipeline=pipeline,
        lora=lora,
        rl_step=rl_step,
    )
    for kind in ("pipeline",) if arguments.adapter else KINDS:
        if kind in arguments.only:
            writers[kind](family, arguments.out)
    for adapter in arguments.out.glob("*_lora*/README.md"):
        adapter.unlink()


if __name__ == "__main__":
    main()
