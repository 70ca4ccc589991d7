"""The typed configuration of a run. A setting's default lives here, or in its method's ``Config``, and nowhere else.

``configs/MODEL.yaml`` and ``--set key=value`` only override. Keys are dotted: ``train.lr``, ``data.prompts``,
``eval.sampler.steps``, ``method.beta``.
"""

from __future__ import annotations

import difflib
from importlib import resources
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, SerializeAsAny, ValidationError

from pnapo_bench import registry
from pnapo_bench.contracts import MethodConfig, Strict
from pnapo_bench.errors import UserError

S = TypeVar("S", bound=Strict)


class Sampler(Strict):
    """How images are drawn from their prior noise: Euler steps of the model's own flow-matching scheduler."""

    steps: int = Field(28, ge=1)
    guidance: float = Field(1.0, ge=1, description="classifier-free guidance; 1 switches it off")


class Data(Strict):
    """The noise-tracked preference pairs."""

    prompts: int = Field(1000, ge=1, description="training prompts")
    images_per_prompt: int = Field(2, ge=2)
    rule: Literal["two", "best-worst"] = Field(
        "two", description="the first two images of each prompt (the paper), or the best and the worst of all"
    )
    score: str = Field("shapes_reward", description="the eval that decides winner and loser")
    seed: int = Field(0, ge=0)
    sampler: Sampler = Sampler()


class Train(Strict):
    """One optimisation, the same for every method."""

    steps: int = Field(300, ge=1, description="optimiser steps")
    batch: int = Field(32, ge=1, description="pairs per optimiser step over all processes: the global batch")
    micro_batch: int | None = Field(None, ge=1, description="pairs per forward pass; None takes them all at once")
    mode: Literal["full", "lora"] = "full"
    lora_rank: int = Field(16, ge=1)
    lora_alpha: float = Field(16.0, gt=0)
    lr: float = Field(3e-5, gt=0)
    warmup: int = Field(10, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    times: Literal["uniform", "logit-normal"] = Field("uniform", description="distribution of t; paper: uniform")
    beta: float | None = Field(None, gt=0, description="overrides method.beta")
    checkpoint_every: int = Field(100, ge=1, description="steps")
    drift_alarm: float = Field(
        1.5, gt=1, description="alarm when the winner's error is this many times the reference's"
    )


class Evaluation(Strict):
    """Held-out prompts, drawn by base and trained model from the same noises."""

    prompts: int = Field(288, ge=1)
    split: Literal["eval", "tune"] = Field("eval", description="tune is for choosing settings, eval for the table")
    noises: int = Field(4, ge=1, description="images per prompt")
    evals: tuple[str, ...] = Field(("shapes_accuracy", "shapes_reward", "shapes_quality"), min_length=1)
    seed: int = Field(0, ge=0)
    sampler: Sampler = Sampler()


class Config(Strict):
    """Everything that decides a run, beside code and hardware."""

    method: str
    method_config: SerializeAsAny[MethodConfig]
    model: str
    seed: int = Field(0, ge=0)
    data: Data = Data()
    train: Train = Train()
    eval: Evaluation = Evaluation()


def resolve(method: str, model: str, seed: int, settings: list[str]) -> Config:
    """The configuration of a run: defaults, then ``configs/MODEL.yaml``, then ``key=value`` settings.

    Under ``methods`` the YAML has, for a method, what its ``--set`` would have: ``{pnapo: {train.lr: 1.0e-4}}``.

    Raises:
        UserError: an unknown name or key, or a value out of range.
    """
    method_class = registry.get("methods", method)
    registry.get("backbones", model)
    values = _preset(model)
    preset = values.pop("methods", {}).get(method, {})
    method_values: dict[str, Any] = {}
    for key, value in [*preset.items(), *map(_parse, settings)]:
        head, _, rest = key.partition(".")
        if head == "method" and rest:
            method_values[rest] = value
        elif head in ("data", "train", "eval") and rest:
            _put(values, key, value)
        else:
            raise UserError(f"unknown setting {key!r}. Settings begin with data., train., eval. or method.{_near(key)}")
    beta = values.get("train", {}).get("beta")
    if beta is not None and "beta" in method_class.Config.model_fields:
        method_values["beta"] = beta
    method_config = _validated(method_class.Config, method_values, "method.")
    config = _validated(
        Config,
        {"method": method, "method_config": method_config, "model": model, "seed": seed, **values},
        "",
    )
    registry.get("evals", config.data.score)
    for name in config.eval.evals:
        registry.get("evals", name)
        if config.eval.evals.count(name) > 1:
            raise UserError(f"eval.evals: expected each eval once, got {name!r} {config.eval.evals.count(name)} times")
    return config


def without_effect(config: Config, settings: list[str]) -> list[str]:
    """The given settings that change nothing, each with its reason."""
    method_class = registry.get("methods", config.method)
    given = {_parse(setting)[0] for setting in settings}
    reasons = {}
    if "beta" not in method_class.Config.model_fields:
        reasons["train.beta"] = f"{config.method} has no beta"
    if config.train.mode == "full":
        reasons |= {key: "train.mode is full" for key in ("train.lora_rank", "train.lora_alpha")}
    if not method_class.needs_reference:
        reasons["train.drift_alarm"] = f"{config.method} has no reference"
    if not method_class.trains:
        reasons |= {key: f"{config.method} does not train" for key in given if not key.startswith("eval.")}
    return [f"{key}: {reasons[key]}" for key in sorted(given & reasons.keys())]


def _preset(model: str) -> dict[str, Any]:
    file = resources.files("pnapo_bench.configs") / f"{model}.yaml"
    return (yaml.safe_load(file.read_text()) or {}) if file.is_file() else {}


def _parse(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise UserError(f"expected --set key=value, got {setting!r}; for example --set train.lr=1e-5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"the value of --set {setting} is not valid YAML; quote it") from error
    return key.strip(), value


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UserError(f"unknown setting {key!r}: {part} is a value, not a group of settings")
    values[last] = value


def keys(model: type[Strict] = Config, prefix: str = "") -> list[str]:
    """Every dotted key."""
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Strict) and kind is not MethodConfig:
            found += keys(kind, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def _near(key: str, known: list[str] | None = None) -> str:
    known = known or [k for k in keys() if "." in k]
    by_leaf = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    near = by_leaf or difflib.get_close_matches(key, known, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else f" Known: {', '.join(known)}"


def _validated(model: type[S], values: dict[str, Any], prefix: str) -> S:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = prefix + ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = [f"method.{name}" for name in model.model_fields] if prefix else None
            raise UserError(f"unknown setting {key!r}.{_near(key, known)}") from error
        raise UserError(f"{key}: {first['msg'].lower()}, got {first['input']!r}") from error
