"""The training loop: any method, any backbone, LoRA or full fine-tuning. There is no other.

A run folder gets ``metrics.jsonl`` (one row a step), TensorBoard events, ``checkpoint.safetensors`` (overwritten
atomically) and at the end ``weights/``. The same command continues a killed run from its checkpoint and ends in the
same weights, on a CPU bit for bit: everything but parameters and moments is a pure function of the step.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pnapo_bench import atomic, checkpoint
from pnapo_bench.compute import count_flops
from pnapo_bench.config import Train
from pnapo_bench.contracts import Backbone, Conditioning, Errors, LossOutput, Method, Pairs
from pnapo_bench.errors import TrainingStopped, UserError
from pnapo_bench.noise import seed_of
from pnapo_bench.pairs import PairData
from pnapo_bench.progress import track
from pnapo_bench.stream import States, Stream, micro_batches, split, states

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Summary:
    """What the record keeps of a training; means are over the last tenth of the steps."""

    steps: int
    loss: float
    accuracy: float | None  # share of pairs with a negative margin: the implicit reward ranks them right
    margin: float | None
    winner_drift: float | None  # winner's error over the reference's; > 1: the winners have become less likely
    loser_drift: float | None
    alarms: list[str]
    seconds: float
    flops: float


def learning_rate(step: int, train: Train) -> float:
    """Linear warm-up, then constant (the sources say nothing of a decay)."""
    return train.lr * min(1.0, (step + 1) / train.warmup) if train.warmup else train.lr


def train(
    *,
    backbone: Backbone,
    method: Method,
    config: Train,
    data: PairData,
    embeddings: Conditioning,
    stream: Stream,
    reference: Tensor | None,
    folder: Path,
) -> Summary:
    """Trains the backbone in place and writes its weights.

    Args:
        backbone: with its original weights.
        method: the loss and its requirements.
        config: the optimisation.
        data: P pairs.
        embeddings: of the P prompts, [P, ...].
        stream: which pair, time and noise at every position.
        reference: errors [steps * batch, 2] in the order of the stream; None computes them in the loop where the
            method needs them (slower, and the same numbers).
        folder: of the run.

    Raises:
        UserError: a setting does not fit, or the policy is not the reference at step 0.
        TrainingStopped: a loss or gradient is not finite; the checkpoint holds the last good state.
    """
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=backbone.device.type == "cpu", log_with="tensorboard", project_dir=folder)
    world, rank = accelerator.num_processes, accelerator.process_index
    if config.batch % world:
        raise UserError(
            f"train.batch is the global batch: expected a multiple of {world} processes, got {config.batch}"
        )
    if method.needs_reference and not method.needs_loser:
        raise UserError(f"method {method.name!r} needs the reference but no loser; declare needs_loser, and ignore it")
    live_reference = _frozen_copy(backbone) if method.needs_reference and reference is None else None
    parameters = prepare_parameters(backbone, config, stream.seed)
    optimizer = torch.optim.AdamW(
        list(parameters.values()), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    backbone.transformer, optimizer = accelerator.prepare(backbone.transformer, optimizer)
    first = checkpoint.load(folder / "checkpoint.safetensors", parameters, optimizer)
    metrics = Metrics(folder / "metrics.jsonl", first, config.drift_alarm)
    accelerator.init_trackers("tensorboard")
    started = time.perf_counter() - metrics.seconds
    flops_per_step = 0.0
    prompts = data.prompts

    def forward_backward(
        asked: States, known: Tensor | None, pairs: Pairs, progress: float
    ) -> tuple[Errors, LossOutput]:
        errors = split(asked.errors(backbone), known, method.needs_loser)
        output = method.loss(errors, pairs, progress)
        # DDP averages over processes, so the share of a process is divided by its own number of pairs
        accelerator.backward(output.loss.sum() / (config.batch // world))
        return errors, output

    def save(step: int) -> None:
        if accelerator.is_main_process:
            metrics.flush()
            checkpoint.save(folder / "checkpoint.safetensors", step, parameters, optimizer)

    with track(f"training {method.name}", config.steps) as advance:
        advance(first)
        for step in range(first, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            totals: dict[str, float] = {}
            for position, count in micro_batches(step * config.batch, config.batch, config.micro_batch, rank, world):
                visits = stream.visits(position, count)
                index = [pair for pair, _ in visits]
                asked = states(stream, visits, data, embeddings, method.needs_loser, backbone.device)
                known = _reference_errors(reference, live_reference, asked, position, count, method)
                pairs = Pairs(data.gap[index].to(backbone.device), [prompts[pair] for pair in index])
                work = functools.partial(forward_backward, asked, known, pairs, step / config.steps)
                if not flops_per_step:
                    flops_per_step = count_flops(work) * config.batch / count
                    optimizer.zero_grad()
                errors, output = work()
                if step == 0:
                    check_start(method, errors, output.loss)
                _add(totals, errors, output, count)
            norm = accelerator.clip_grad_norm_(list(parameters.values()), config.clip)
            row = _row(step, totals, float(norm), learning_rate(step, config))
            row |= {"seconds": round(time.perf_counter() - started, 3), "flops": metrics.flops + flops_per_step}
            if not all(math.isfinite(value) for value in row.values()):
                save(step)
                accelerator.end_training()
                raise TrainingStopped(
                    f"step {step}: loss {row['loss']}, gradient norm {row['grad_norm']}; stopped before the update, "
                    f"the state of step {step} is in {folder / 'checkpoint.safetensors'}; try a smaller train.lr or "
                    f"method.beta"
                )
            optimizer.step()
            optimizer.zero_grad()
            metrics.add(row)
            accelerator.log(row, step=step)
            if metrics.alarm_is_new():
                print(f"warning: {metrics.alarms()[0]}", file=sys.stderr)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                save(step + 1)
            advance(1)
    accelerator.end_training()
    backbone.transformer = accelerator.unwrap_model(backbone.transformer)
    if accelerator.is_main_process:
        backbone.save_weights(folder / "weights", config.mode)
    return metrics.summary()


def prepare_parameters(backbone: Backbone, config: Train, seed: int) -> dict[str, torch.nn.Parameter]:
    """The trainable parameters by name, float32; adds the adapter in LoRA mode."""
    if config.mode == "lora":
        backbone.add_lora(config.lora_rank, config.lora_alpha, seed_of("lora", seed))
    else:
        backbone.transformer.requires_grad_(True)
    return {name: p for name, p in backbone.transformer.named_parameters() if p.requires_grad}


def check_start(method: Method, errors: Errors, loss: Tensor) -> None:
    """At step 0 policy and reference are one model: the margin is 0 and a logistic loss log 2.

    Raises:
        UserError: they differ, so the reference is not this policy's.
    """
    if not method.needs_reference:
        return
    assert errors.winner_ref is not None, "a method that needs the reference has its errors"
    worst = (errors.winner - errors.winner_ref).abs().max().item()
    if errors.loser is not None and errors.loser_ref is not None:
        worst = max(worst, (errors.loser - errors.loser_ref).abs().max().item())
    tolerance = 0.0 if errors.winner.device.type == "cpu" else 1e-6
    if worst > tolerance:
        raise UserError(
            f"step 0: expected policy and reference to agree (margin 0, log-2 loss), got errors that differ by up to "
            f"{worst:.3g} and a loss of {loss.mean().item():.6f}; the cached reference errors belong to another model, "
            f"precision or number of threads: delete the reference folder and repeat"
        )


def _frozen_copy(backbone: Backbone) -> Backbone:
    import copy

    frozen = copy.copy(backbone)
    frozen.transformer = copy.deepcopy(backbone.transformer)
    return frozen


def _reference_errors(
    cached: Tensor | None, live: Backbone | None, asked: States, position: int, count: int, method: Method
) -> Tensor | None:
    """Stacked reference errors, winners first, from the cache or from the frozen copy."""
    import torch

    if not method.needs_reference:
        return None
    if cached is not None:
        return cached[position : position + count].T.reshape(-1).to(asked.t.device)
    assert live is not None
    with torch.no_grad():
        errors: Tensor = asked.errors(live)
    return errors


def _add(totals: dict[str, float], errors: Errors, output: LossOutput, count: int) -> None:
    """Sums over the pairs of one forward pass."""

    def put(name: str, value: Tensor | None) -> None:
        if value is not None:
            totals[name] = totals.get(name, 0.0) + value.detach().double().expand(count).sum().item()

    totals["pairs"] = totals.get("pairs", 0.0) + count
    put("loss", output.loss)
    put("winner_error", errors.winner)
    put("loser_error", errors.loser)
    put("winner_error_ref", errors.winner_ref)
    put("loser_error_ref", errors.loser_ref)
    put("beta", output.beta)
    if errors.winner_ref is not None and errors.loser is not None:
        put("margin", errors.margin())
        put("accuracy", (errors.margin() < 0).float())


def _row(step: int, totals: dict[str, float], norm: float, lr: float) -> dict[str, float]:
    pairs = totals.pop("pairs")
    means = {name: total / pairs for name, total in totals.items()}
    for side in ("winner", "loser"):
        if f"{side}_error_ref" in means:
            means[f"{side}_drift"] = means[f"{side}_error"] / means[f"{side}_error_ref"]
    return {"step": step, **means, "grad_norm": norm, "lr": lr}


class Metrics:
    """Rows of ``metrics.jsonl``; rows after the checkpoint that training continues from are dropped."""

    WINDOW = 20  # steps over which the drift is averaged for the alarm

    def __init__(self, path: Path, first: int, drift_limit: float) -> None:
        self.path, self.drift_limit = path, drift_limit
        self.rows: list[dict[str, float]] = []
        if first:
            if not path.is_file():
                raise UserError(
                    f"{path} is missing beside its checkpoint; delete {path.parent} to start this run again"
                )
            self.rows = [json.loads(line) for line in path.read_text().splitlines()][:first]
        self._alarmed = bool(self.alarms())

    @property
    def seconds(self) -> float:
        """Training time so far, over all interruptions."""
        return self.rows[-1]["seconds"] if self.rows else 0.0

    @property
    def flops(self) -> float:
        """Training FLOPs so far, over all interruptions."""
        return self.rows[-1]["flops"] if self.rows else 0.0

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def flush(self) -> None:
        atomic.write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def _mean(self, name: str, start: int, stop: int) -> float | None:
        values = [row[name] for row in self.rows[start:stop] if name in row]
        return sum(values) / len(values) if values else None

    def _drifts(self, stop: int) -> bool:
        drift = self._mean("winner_drift", stop - self.WINDOW, stop) if stop >= self.WINDOW else None
        return drift is not None and drift > self.drift_limit

    def alarm_is_new(self) -> bool:
        """True once: when the winners' error has first stayed above its limit for a window."""
        if self._alarmed or not self._drifts(len(self.rows)):
            return False
        self._alarmed = True
        return True

    def alarms(self) -> list[str]:
        for stop in range(self.WINDOW, len(self.rows) + 1):
            if self._drifts(stop):
                return [
                    f"step {stop - 1}: the winners' error is above {self.drift_limit:g} times the reference's: the "
                    f"model unlearns the winners too; a larger beta or a smaller learning rate keeps it closer"
                ]
        return []

    def summary(self) -> Summary:
        stop, start = len(self.rows), len(self.rows) - max(1, len(self.rows) // 10)
        return Summary(
            steps=stop,
            loss=self._mean("loss", start, stop) or 0.0,
            accuracy=self._mean("accuracy", start, stop),
            margin=self._mean("margin", start, stop),
            winner_drift=self._mean("winner_drift", start, stop),
            loser_drift=self._mean("loser_drift", start, stop),
            alarms=self.alarms(),
            seconds=self.seconds,
            flops=self.flops,
        )
