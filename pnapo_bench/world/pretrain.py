"""Trains the ``tiny`` model's weights: ``python -m pnapo_bench.world.pretrain --out DIR``.

Two stages, as for Stable Diffusion 3 in the small: an autoencoder (beta-VAE on pictures of the training split), then a
rectified flow in its latents with velocity prediction and logit-normal times (Esser et al. 2024, arXiv 2403.03206).
A share of the captions has one wrong fact: the model learns to draw cleanly but to err in composition, which leaves
alignment something to do. Killed, the same command continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pnapo_bench import atomic, environment
from pnapo_bench import checkpoint as checkpoints
from pnapo_bench.backbones.tiny import Tiny, new_modules, weights_hash
from pnapo_bench.config import Evaluation
from pnapo_bench.evaluate import evaluate
from pnapo_bench.noise import generator, seed_of
from pnapo_bench.world import scenes
from pnapo_bench.world.render import render
from pnapo_bench.world.verify import judge
from pnapo_bench.world.vocabulary import tokenize


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the code and the number of threads."""

    seed: int = 0
    vae_steps: int = 1500
    vae_batch: int = 96
    vae_lr: float = 2e-3
    vae_sigma: float = 0.02  # standard deviation of a pixel given its latent, in the likelihood's unit [0, 1]
    pictures: int = 60_000
    flow_steps: int = 5000
    flow_batch: int = 256
    matrix_lr: float = 0.02  # Muon, on the block matrices
    other_lr: float = 2e-3  # AdamW, on everything else
    warmup: int = 200
    ema: float = 0.998
    wrong_captions: float = 0.25
    dropped_captions: float = 0.1
    time_mean: float = 0.6  # t = sigmoid(N(mean, 1)), leaning to noise, where the composition is decided
    checkpoint_every: int = 250

    def of_autoencoder(self) -> dict[str, Any]:
        """The settings that decide the first stage."""
        return {k: v for k, v in asdict(self).items() if k == "seed" or k.startswith("vae_")}


def training_scenes(recipe: Recipe, stage: str, step: int, count: int) -> list[scenes.Scene]:
    """Scenes of the training split, each family with equal weight."""
    rng = np.random.default_rng(seed_of("pretrain", stage, recipe.seed, step))
    families = list(scenes.split_scenes("train").values())
    chosen = [families[i % len(families)] for i in range(count)]
    return [scenes.phrase(family[rng.integers(len(family))], rng) for family in chosen]


def cosine(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, cosine to 0."""
    return min((step + 1) / warmup, 1.0) * 0.5 * (1 + math.cos(math.pi * step / steps))


class Checkpoint:
    """The state of one stage on disk: tensors in safetensors, the step and the log in JSON."""

    def __init__(self, folder: Path, stage: str, recipe: dict[str, Any]) -> None:
        self.tensors, self.log_file = folder / f"{stage}.safetensors", folder / f"{stage}.json"
        self.recipe = recipe
        self.log: list[dict[str, float]] = []

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """(steps done, tensors); (0, {}) at the beginning."""
        if not self.log_file.exists():
            return 0, {}
        from safetensors.torch import load_file

        state = json.loads(self.log_file.read_text())
        if state["recipe"] != self.recipe:
            raise SystemExit(f"{self.log_file} was written by another recipe; give another --out or delete it")
        self.log = state["log"]
        tensors = load_file(self.tensors)
        if int(tensors["step"]) != state["step"]:
            raise SystemExit(f"{self.tensors} and {self.log_file} are of different steps; delete both")
        return state["step"], tensors

    def save(self, step: int, tensors: dict[str, Tensor]) -> None:
        atomic.write_tensors(self.tensors, {**tensors, "step": torch.tensor(step)})
        atomic.write_json(self.log_file, {"step": step, "recipe": self.recipe, "log": self.log})


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{k}": v for k, v in tensors.items()}


def _without(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


def train_autoencoder(recipe: Recipe, out: Path) -> Any:
    """The beta-VAE: Gaussian likelihood of the pixels plus KL to the unit Gaussian, per picture."""
    torch.manual_seed(recipe.seed)
    vae = new_modules()["vae"]
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.vae_lr, weight_decay=0.0)
    checkpoint = Checkpoint(out, "autoencoder", recipe.of_autoencoder())
    start, state = checkpoint.load()
    if state:
        vae.load_state_dict(_without("model", state))
        checkpoints.restore_moments(optimizer, state)
    began = time.time()
    for step in range(start, recipe.vae_steps):
        rng = np.random.default_rng(seed_of("vae pictures", recipe.seed, step))
        pictures = render(training_scenes(recipe, "vae", step, recipe.vae_batch), rng)
        with torch.autocast("cpu", torch.bfloat16):
            mean, log_variance = vae.encoder(2 * pictures - 1).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-12, 4)
        draw = torch.randn(mean.shape, generator=generator("vae latents", recipe.seed, step))
        with torch.autocast("cpu", torch.bfloat16):
            back = vae.decoder(mean + (log_variance / 2).exp() * draw)
        error = ((back.float() + 1) / 2 - pictures).square()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        loss = error.sum((1, 2, 3)).mean() / (2 * recipe.vae_sigma**2) + kl.sum((1, 2, 3)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 2000.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.vae_lr * cosine(step, recipe.vae_steps, 100)
        optimizer.step()
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.vae_steps:
            row = {"step": step + 1, "mse": error.mean().item(), "kl": kl.sum((1, 2, 3)).mean().item()}
            checkpoint.log.append(row)
            checkpoint.save(step + 1, _prefixed("model", vae.state_dict()) | checkpoints.moments(optimizer))
            rate = (step + 1 - start) / (time.time() - began)
            print(f"autoencoder {row} {rate:.2f} steps/s", flush=True)
    return vae.eval()


@dataclass(frozen=True)
class Corpus:
    """Latents of P pictures with their captions as token ids; ``wrong`` has one fact changed."""

    mean: Tensor  # [P, C, H, W] normalised to unit variance
    deviation: Tensor  # [P, C, H, W]
    right: Tensor  # [P, N]
    wrong: Tensor  # [P, N]
    shift: float
    scale: float


@torch.no_grad()
def encode_corpus(recipe: Recipe, vae: Any, out: Path) -> Corpus:
    """Renders and encodes the flow's training pictures once."""
    from safetensors.torch import load_file

    path = out / "corpus.safetensors"
    if not path.exists():
        parts: list[tuple[Tensor, ...]] = []
        for block in range(0, recipe.pictures, 500):
            rng = np.random.default_rng(seed_of("corpus", recipe.seed, block))
            described = training_scenes(recipe, "corpus", block, 500)
            with torch.autocast("cpu", torch.bfloat16):
                mean, log_variance = vae.encoder(2 * render(described, rng) - 1).float().chunk(2, dim=1)
            wrong = [scenes.with_one_wrong_fact(scene, rng) for scene in described]
            captions = [tokenize([scenes.describe(scene) for scene in some]) for some in (described, wrong)]
            parts.append((mean, (log_variance.clamp(-12, 4) / 2).exp(), *captions))
        names = ("mean", "deviation", "right", "wrong")
        atomic.write_tensors(path, {n: torch.cat(t) for n, t in zip(names, zip(*parts, strict=True), strict=True)})
    data = load_file(path)
    shift = data["mean"].mean().item()
    scale = 1 / (data["mean"].var() + data["deviation"].square().mean()).sqrt().item()
    return Corpus((data["mean"] - shift) * scale, data["deviation"] * scale, data["right"], data["wrong"], shift, scale)


def train_flow(recipe: Recipe, corpus: Corpus, out: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The rectified flow: E |eps - x0 - v(x_t, t, caption)|^2; returns the averaged weights."""
    torch.manual_seed(recipe.seed + 1)
    modules = new_modules()
    model = nn.ModuleDict({"transformer": modules["transformer"], "text_encoder": modules["text_encoder"]})
    named = dict(model.named_parameters())
    matrices = [n for n, p in named.items() if p.ndim == 2 and ("blocks." in n or "layers." in n)]
    groups = [named[n] for n in matrices], [p for n, p in named.items() if n not in set(matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(groups[0], lr=recipe.matrix_lr, weight_decay=0.0),
        torch.optim.AdamW(groups[1], lr=recipe.other_lr, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    peaks = (recipe.matrix_lr, recipe.other_lr)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    checkpoint = Checkpoint(out, "flow", asdict(recipe))
    start, state = checkpoint.load()
    if state:
        model.load_state_dict(_without("model", state))
        average = _without("average", state)
        for k, optimizer in enumerate(optimizers):
            checkpoints.restore_moments(optimizer, state, f"optimizer{k}")
    began, running = time.time(), 0.0
    empty = tokenize([""])
    for step in range(start, recipe.flow_steps):
        g = generator("flow", recipe.seed, step)
        b = recipe.flow_batch
        pick = torch.randint(len(corpus.mean), (b,), generator=g)
        x0 = corpus.mean[pick] + corpus.deviation[pick] * torch.randn(corpus.mean[pick].shape, generator=g)
        noise = torch.randn(x0.shape, generator=g)
        t = torch.sigmoid(recipe.time_mean + torch.randn(b, generator=g))
        t = torch.where(torch.rand(b, generator=g) < 0.1, torch.rand(b, generator=g), t)
        luck = torch.rand(b, 1, generator=g)
        ids = torch.where(luck < recipe.wrong_captions, corpus.wrong[pick], corpus.right[pick])
        ids = torch.where(luck > 1 - recipe.dropped_captions, empty, ids)
        xt = x0 + t[:, None, None, None] * (noise - x0)
        # bf16 flash attention is slow backwards on a CPU; the plain formula is not
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            text = model["text_encoder"](ids)
            velocity = model["transformer"](
                xt,
                timestep=1000 * t,
                encoder_hidden_states=text.last_hidden_state,
                pooled_projections=text.pooler_output,
            ).sample
        loss = (velocity.float() - (noise - x0)).square().mean()
        loss.backward()
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * cosine(step, recipe.flow_steps, recipe.warmup)
            optimizer.step()
            optimizer.zero_grad()
        keep = min(recipe.ema, (step + 1) / (step + 10))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                average[key].lerp_(value, 1 - keep)
        running += loss.item()
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.flow_steps:
            since = (step + 1 - start) % recipe.checkpoint_every or min(recipe.checkpoint_every, step + 1 - start)
            row = {"step": step + 1, "loss": round(running / since, 5)}
            running = 0.0
            checkpoint.log.append(row)
            tensors = _prefixed("model", model.state_dict()) | _prefixed("average", average)
            for k, optimizer in enumerate(optimizers):
                tensors |= checkpoints.moments(optimizer, f"optimizer{k}")
            checkpoint.save(step + 1, tensors)
            print(f"flow {row} {(step + 1 - start) / (time.time() - began):.2f} steps/s", flush=True)
    model.load_state_dict(average)
    return {name: model[name].eval() for name in model}, checkpoint.log


def export(modules: dict[str, Any], folder: Path) -> None:
    """Writes the weights in bfloat16, each module in its library's own format."""
    for name, module in modules.items():
        module.to(torch.bfloat16).save_pretrained(folder / name)


def accuracy(folder: Path, split: Literal["tune", "eval"]) -> dict[str, float]:
    """Exact pass of the exported weights by family, with the default evaluation settings."""
    config = Evaluation(split=split, evals=("shapes_accuracy",))
    with tempfile.TemporaryDirectory() as scratch:
        scores = evaluate(Path(scratch), Tiny(weights=folder), "base", config, split).scores
    passed = scores.groupby("group", sort=False)["value"].mean().astype(float)
    found = {str(family): round(share, 4) for family, share in passed.items()}
    return {"overall": round(float(passed.mean()), 4), **found}


@torch.no_grad()
def reconstruction(folder: Path) -> float:
    """Share of evaluation scenes whose rendered picture still passes after encoding and decoding."""
    vae = Tiny(weights=folder).vae
    described = [scenes.parse(prompt) for prompt in scenes.prompts("eval", 288)]
    pictures = render(described, np.random.default_rng(0))
    posterior = vae.encode(2 * pictures - 1).latent_dist
    again = vae.decode(posterior.sample(generator("reconstruction"))).sample
    verdicts = judge(((again + 1) / 2).clamp(0, 1), described)
    return round(float(np.mean([verdict.passed for verdict in verdicts])), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--export", type=Path, help="folder of the finished weights and their card")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    out, target = arguments.pop("out"), arguments.pop("export")
    recipe = Recipe(**arguments)
    vae = train_autoencoder(recipe, out)
    corpus = encode_corpus(recipe, vae, out)
    modules, log = train_flow(recipe, corpus, out)
    if target is None:
        return
    vae.register_to_config(scaling_factor=corpus.scale, shift_factor=corpus.shift)
    export({"vae": vae, **modules}, target)
    card = {
        "command": f"python -m pnapo_bench.world.pretrain --out CHECKPOINTS --export {target.name}",
        "recipe": asdict(recipe),
        "commit": environment.git_commit(),
        "versions": environment.versions(),
        "hardware": environment.hardware(),
        "sha256": weights_hash(target),
        "autoencoder": json.loads((out / "autoencoder.json").read_text())["log"],
        "flow": log,
        "reconstruction": reconstruction(target),
        "accuracy": {"tune": accuracy(target, "tune"), "eval": accuracy(target, "eval")},
    }
    atomic.write_json(target / "card.json", card)
    print(json.dumps(card["accuracy"], indent=2))


if __name__ == "__main__":
    main()
