#!/usr/bin/env python3
"""The PyTorch half of `iteration_bench.py`: an iteration of TempFlow-GRPO for an SD3 transformer with PEFT's adapters.

Two organisations of the same arithmetic, both as one would write them with diffusers:

- `rows`: as the authors' scripts run it. Each branch point's K branches are completed on their own, one batch of K rows per
  later step; the update shuffles the rows (one for each seed and branch) and passes K of them at a time through the network,
  once for each trained step.
- `front`: the best that we know to write. Everything at one noise level is one batch, or chunks of it; the update evaluates
  each trained state once for its K branches, all states of a seed in one batch. The adapter may be merged for the rollout.

Reads `rollout`, `update` and `memory` from standard input and answers as tests/examples/iteration_speed.rs does.
"""
import argparse
import json
import pathlib
import sys
import time

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

CLIP_RANGE, MAX_GRAD_NORM, EMA_DECAY = 1e-4, 1.0, 0.9


class Iteration:
    def __init__(self, options):
        settings = json.loads((options.exchange / "settings.json").read_text())
        self.steps, self.branches, self.guidance = settings["steps"], settings["branches"], settings["guidance"]
        self.seeds, self.eta = settings["seeds"], settings["noise_level"]
        self.form, self.chunk, self.merges = options.form, options.chunk, options.merge
        base = SD3Transformer2DModel.from_pretrained(options.pipeline, subfolder="transformer")
        lora = LoraConfig(r=settings["rank"], lora_alpha=settings["alpha"], target_modules=settings["targets"])
        self.network = get_peft_model(base, lora).train()
        given = load_file(options.exchange / "rollouts.safetensors")
        adapter = {f"base_model.model.{name}": tensor for name, tensor in given.items() if "lora_" in name}
        found = set_peft_model_state_dict(self.network, adapter)
        assert not found.unexpected_keys, found.unexpected_keys
        # Moves by step and branch.
        by_step = lambda moves: moves.view(-1, self.branches, *moves.shape[-3:])
        self.drawn = [(given[f"{seed}.initial"], by_step(given[f"{seed}.moves"])) for seed in range(self.seeds)]
        self.sigmas = given["sigmas"].double()
        inputs = load_file(options.exchange / "inputs.safetensors")
        self.text = torch.cat([inputs["negative.text"], inputs["positive.text"]])
        self.pooled = torch.cat([inputs["negative.pooled"], inputs["positive.pooled"]])
        self.advantages = inputs["advantages"].view(self.seeds, self.steps - 1, self.branches)
        deviations = [self.coefficients(step)[2] for step in range(self.steps - 1)]
        self.weights = [deviation * len(deviations) / sum(deviations) for deviation in deviations]
        self.trained = {name: tensor for name, tensor in self.network.named_parameters() if tensor.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=3e-4, weight_decay=1e-4)
        self.average = [tensor.detach().clone() for tensor in self.trained.values()]
        self.gradients, self.exchange = None, options.exchange

    def velocity(self, latents, sigma):
        """Guided velocities of rows at noise level `sigma`, or each at its own."""
        rows = len(latents)
        times = 1000 * torch.as_tensor(sigma, dtype=torch.float32).expand(rows)
        away, towards = self.network(
            hidden_states=torch.cat([latents] * 2),
            timestep=torch.cat([times] * 2),
            encoder_hidden_states=self.text.repeat_interleave(rows, 0),
            pooled_projections=self.pooled.repeat_interleave(rows, 0),
            return_dict=False,
        )[0].chunk(2)
        return away + self.guidance * (towards - away)

    def coefficients(self, step):
        """Factors of state and velocity in the mean of a step's random move, and its deviation: Flow-SDE."""
        sigma, delta = self.sigmas[step].item(), (self.sigmas[step + 1] - self.sigmas[step]).item()
        capped = sigma if sigma < 1 else self.sigmas[1].item()
        eta = (sigma / (1 - capped)) ** 0.5 * self.eta
        drift = eta**2 / (2 * sigma) * delta
        return 1 + drift, (1 + eta**2 * (1 - sigma) / (2 * sigma)) * delta, eta * (-delta) ** 0.5

    def delta(self, step):
        return (self.sigmas[step + 1] - self.sigmas[step]).item()

    @staticmethod
    def log_probability(latents, mean, deviation):
        constant = torch.tensor(deviation).log() + torch.tensor(2 * torch.pi).sqrt().log()
        return (-((latents.detach() - mean) ** 2) / (2 * deviation**2) - constant).flatten(1).mean(1)

    def branch(self, state, velocity, step, noise):
        of_state, of_velocity, deviation = self.coefficients(step)
        mean = state * of_state + velocity * of_velocity
        moved = mean + deviation * noise
        return moved, self.log_probability(moved, mean, deviation)

    @torch.no_grad()
    def nested(self, initial, moves):
        """One branch point after another, its branches completed step by step."""
        state, kept, finished = initial, [], []
        for step in range(self.steps - 1):
            velocity = self.velocity(state, self.sigmas[step])
            moved, log_probability = self.branch(state, velocity, step, moves[step])
            kept.append((state, moved, log_probability))
            for later in range(step + 1, self.steps):
                moved = moved + self.delta(later) * self.velocity(moved, self.sigmas[later])
            finished.append(moved)
            state = state + self.delta(step) * velocity
        return kept, torch.cat(finished)

    @torch.no_grad()
    def front(self, initial, moves):
        """All that stands at one noise level in one batch."""
        front, kept = initial, []
        for step in range(self.steps):
            velocity = torch.cat([self.velocity(rows, self.sigmas[step]) for rows in front.split(self.chunk)])
            advanced = front + self.delta(step) * velocity
            if step < self.steps - 1:
                moved, log_probability = self.branch(front[:1], velocity[:1], step, moves[step])
                kept.append((front[:1], moved, log_probability))
                advanced = torch.cat([advanced, moved])
            # Nobody follows the trunk beyond its last branch point.
            front = advanced[1:] if step == self.steps - 2 else advanced
        return kept, front

    def rollout(self):
        start = time.perf_counter()
        self.sampled = []
        if self.merges:
            self.network.merge_adapter()
        for initial, moves in self.drawn:
            self.sampled.append((self.front if self.form == "front" else self.nested)(initial, moves))
        if self.merges:
            self.network.unmerge_adapter()
        return time.perf_counter() - start

    def policy_loss(self, log_ratio, advantages, weights):
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE)
        return (torch.maximum(-advantages * ratio, -advantages * clipped) * weights).mean()

    def differentiate_rows(self):
        """K shuffled rows at a time, the steps one after another."""
        rows = [(seed, branch) for seed in range(self.seeds) for branch in range(self.branches)]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
        scale = 1 / (self.seeds * (self.steps - 1))
        for first in range(0, len(rows), self.branches):
            chosen = [rows[position] for position in order[first : first + self.branches]]
            for step in range(self.steps - 1):
                of_step = [self.sampled[seed][0][step] for seed, _ in chosen]
                states = torch.cat([state for state, _, _ in of_step])
                moved = torch.stack([moved[branch] for (_, moved, _), (_, branch) in zip(of_step, chosen)])
                before = torch.stack([kept[branch] for (_, _, kept), (_, branch) in zip(of_step, chosen)])
                of_state, of_velocity, deviation = self.coefficients(step)
                mean = states * of_state + self.velocity(states, self.sigmas[step]) * of_velocity
                log_ratio = self.log_probability(moved, mean, deviation) - before
                advantages = torch.stack([self.advantages[seed, step, branch] for seed, branch in chosen])
                (self.policy_loss(log_ratio, advantages, self.weights[step]) * scale).backward()

    def differentiate_states(self):
        """Every trained state of a seed once, for all its branches."""
        scale = 1 / (self.seeds * (self.steps - 1))
        rows = torch.tensor([self.coefficients(step) for step in range(self.steps - 1)], dtype=torch.float32)
        of_state, of_velocity, deviation = rows.view(-1, 3, 1, 1, 1).unbind(1)
        for seed in range(self.seeds):
            kept = self.sampled[seed][0]
            states = torch.cat([state for state, _, _ in kept])
            moved, before = torch.stack([moved for _, moved, _ in kept]), torch.stack([old for _, _, old in kept])
            velocity = self.velocity(states, self.sigmas[: self.steps - 1])
            mean = (states * of_state + velocity * of_velocity).unsqueeze(1)
            errors = ((moved - mean) ** 2).flatten(2).mean(2)
            deviations = deviation.view(-1, 1)
            constant = deviations.log() + torch.tensor(2 * torch.pi).sqrt().log()
            log_ratio = -errors / (2 * deviations**2) - constant - before
            weights = torch.tensor(self.weights, dtype=torch.float32).unsqueeze(1)
            loss = self.policy_loss(log_ratio, self.advantages[seed], weights)
            (loss * scale * (self.steps - 1)).backward()

    def update(self):
        start = time.perf_counter()
        if self.form == "front":
            self.differentiate_states()
        else:
            self.differentiate_rows()
        if self.gradients is None:
            self.gradients = {name: tensor.grad.clone() for name, tensor in self.trained.items()}
        torch.nn.utils.clip_grad_norm_(self.trained.values(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for average, tensor in zip(self.average, self.trained.values()):
                average.lerp_(tensor, 1 - EMA_DECAY)
        return time.perf_counter() - start

    def deviations(self):
        """Relative deviations of finished latents and gradients from ours, after one rollout and one update."""
        ours = load_file(self.exchange / "rollouts.safetensors")
        pairs = [(self.sampled[seed][1], ours[f"{seed}.finished"].view_as(self.sampled[seed][1])) for seed in range(self.seeds)]
        finished = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
        ours = load_file(self.exchange / "gradients.safetensors")
        names = {name: name.removeprefix("base_model.model.").replace(".default", "") for name in self.gradients}
        theirs = torch.cat([gradient.flatten() for gradient in self.gradients.values()])
        mine = torch.cat([ours[names[name]].flatten() for name in self.gradients])
        return dict(finished=finished, gradient=((theirs - mine).norm() / mine.norm()).item())


def peak_memory():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=["rows", "front"])
    parser.add_argument("pipeline", type=pathlib.Path)
    parser.add_argument("exchange", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=sys.maxsize, help="most rows of the front that are evaluated at once")
    parser.add_argument("--merge", action="store_true", help="the adapter for the rollout, as it samples")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    iteration = Iteration(options)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "deviations":
            print(json.dumps(iteration.deviations()), flush=True)
        else:
            print(f"{dict(rollout=iteration.rollout, update=iteration.update, memory=peak_memory)[line.strip()]():.4f}", flush=True)


if __name__ == "__main__":
    main()
