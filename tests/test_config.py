"""The configuration: defaults, presets, settings from the command line, and what is said about a wrong one."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pnapo_bench import config, registry
from pnapo_bench.config import Config, Data, Evaluation, Sampler, Train, resolve, without_effect
from pnapo_bench.contracts import MethodConfig
from pnapo_bench.errors import UserError

METHODS = sorted(registry.TABLES["methods"])
PRESETS = sorted(
    file.name.removesuffix(".yaml")
    for file in resources.files("pnapo_bench.configs").iterdir()
    if file.name.endswith(".yaml")
)


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def refused(*settings: str, method: str = "pnapo", model: str = "tiny") -> str:
    with pytest.raises(UserError) as error:
        resolve(method, model, 0, list(settings))
    text = str(error.value)
    assert "\n" not in text
    return text


# ---------------------------------------------------------------------------------------------- defaults and presets


def test_the_defaults_are_the_papers_where_it_says_something() -> None:
    assert (Data().images_per_prompt, Data().rule) == (2, "two")
    assert Sampler().guidance == 1
    assert Train().times == "uniform"
    assert Train().beta is None
    assert Evaluation().split == "eval"


def test_a_method_brings_its_own_defaults() -> None:
    for name in METHODS:
        method_class = registry.get("methods", name)
        if method_class.trains:
            assert resolve(name, "tiny", 0, []).method_config.__class__ is method_class.Config


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("model", sorted({*PRESETS, *registry.TABLES["backbones"]}))
def test_every_preset_is_a_models_and_loads_for_every_method(model: str, name: str) -> None:
    resolved = resolve(name, model, 7, [])
    assert (resolved.method, resolved.model, resolved.seed) == (name, model, 7)
    preset = config._preset(model)
    of_methods = preset.pop("methods", {})
    assert of_methods.keys() <= set(METHODS), "a preset names a method that does not exist"
    found = leaves(json.loads(resolved.model_dump_json()))
    own = {key.replace("method.", "method_config."): value for key, value in of_methods.get(name, {}).items()}
    wanted = leaves(preset) | own
    assert {key: found[key] for key in wanted} == {key: pytest.approx(value) for key, value in wanted.items()}


def test_a_setting_wins_over_a_preset_and_a_preset_over_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "train: {lr: 0.5, batch: 3}\nmethods: {pnapo: {method.beta: 7, train.lr: 0.25}, ipo: {method.target: 9}}"
    monkeypatch.setattr(config, "_preset", lambda model: yaml.safe_load(text))
    resolved = resolve("pnapo", "tiny", 0, ["train.batch=5"])
    assert (resolved.train.lr, resolved.train.batch) == (0.25, 5)
    assert resolved.train.clip == Train().clip
    assert resolved.method_config.model_dump()["beta"] == 7
    assert resolve("pnapo", "tiny", 0, ["method.beta=8"]).method_config.model_dump()["beta"] == 8
    assert resolve("ipo", "tiny", 0, []).method_config.model_dump()["target"] == 9
    assert resolve("base", "tiny", 0, []).train.lr == 0.5


def test_a_configuration_is_frozen() -> None:
    resolved = resolve("pnapo", "tiny", 0, [])
    with pytest.raises(ValidationError, match="frozen"):
        resolved.train.__setattr__("lr", 1.0)


def test_the_record_of_a_configuration_holds_the_methods_own_settings() -> None:
    recorded = resolve("pnapo", "tiny", 0, ["method.gap_scale=3"]).model_dump(mode="json")
    assert recorded["method_config"]["gap_scale"] == 3
    assert recorded["method_config"]["coupling"] == "prior"
    json.dumps(recorded, allow_nan=False)


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.steps=7", 7),
        ("train.lr=1e-5", 1e-5),  # a string to YAML 1.1
        ("train.lr=2", 2.0),
        ("train.mode=lora", "lora"),
        ("train.micro_batch=null", None),
        ("train.micro_batch=2", 2),
        ("train.betas=[0.8, 0.95]", (0.8, 0.95)),
        ("eval.evals=[shapes_reward]", ("shapes_reward",)),
        ("eval.sampler.guidance=2.5", 2.5),
        ("data.sampler.steps=4", 4),
        ("data.score=shapes_quality", "shapes_quality"),
        (" train.warmup = 0", 0),
        ("method.decay_to=0.25", 0.25),
        ("method.coupling=shared", "shared"),
    ],
)
def test_a_setting_is_parsed_as_yaml(setting: str, expected: object) -> None:
    found: Any = resolve("pnapo", "tiny", 0, [setting])
    for part in setting.partition("=")[0].strip().split("."):
        found = getattr(found, "method_config" if part == "method" else part)
    assert found == expected
    assert type(found) is type(expected)


def test_settings_add_up_and_the_last_one_wins() -> None:
    resolved = resolve("pnapo", "tiny", 0, ["eval.sampler.steps=3", "eval.sampler.guidance=2", "eval.sampler.steps=4"])
    assert resolved.eval.sampler == Sampler(steps=4, guidance=2)
    assert resolved.data.sampler == resolve("pnapo", "tiny", 0, []).data.sampler


def test_every_key_can_be_set() -> None:
    known = [key for key in config.keys() if "." in key]
    assert {"train.lr", "data.sampler.steps", "eval.evals"} <= set(known)
    values = leaves(json.loads(resolve("pnapo", "tiny", 0, []).model_dump_json()))
    resolved = resolve("pnapo", "tiny", 0, [f"{key}={json.dumps(values[key])}" for key in known])
    assert resolved == resolve("pnapo", "tiny", 0, [])
    assert set(known) == {key for key in values if "." in key and not key.startswith("method_config.")}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "base"])
def test_every_setting_of_a_method_can_be_set(name: str) -> None:
    values = resolve(name, "tiny", 0, []).method_config.model_dump()
    settings = [f"method.{key}={json.dumps(value)}" for key, value in values.items()]
    assert resolve(name, "tiny", 0, settings).method_config.model_dump() == values


def test_train_beta_overrides_the_methods() -> None:
    def beta(*settings: str) -> object:
        return resolve("pnapo", "tiny", 0, list(settings)).method_config.model_dump()["beta"]

    assert beta("train.beta=3") == 3
    assert beta("train.beta=3", "method.beta=5") == 3
    assert beta("train.beta=null", "method.beta=5") == 5
    assert "beta" not in resolve("sft", "tiny", 0, ["train.beta=3"]).method_config.model_dump()


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("train.stepz=3", "unknown setting 'train.stepz'. Did you mean train.steps"),
        (
            "optim.lr=3",
            "unknown setting 'optim.lr'. Settings begin with data., train., eval. or method. Did you mean train.lr?",
        ),
        ("data.sampler.step=3", "Did you mean data.sampler.steps"),
        ("train.sampler.steps=3", "unknown setting 'train.sampler'"),
        ("lr=3", "Settings begin with data., train., eval. or method. Did you mean train.lr?"),
        ("model=sd3", "unknown setting 'model'"),
        ("train=5", "unknown setting 'train'"),
        ("eval=5", "unknown setting 'eval'"),
        ("train.=5", "unknown setting 'train.'"),
        ("method.bta=3", "unknown setting 'method.bta'. Did you mean method.beta"),
        ("method.beta.x=3", "unknown setting 'method.beta.x'. Did you mean method.beta"),
        ("method=3", "unknown setting 'method'"),
    ],
)
def test_an_unknown_key_names_the_nearest(setting: str, hint: str) -> None:
    assert hint in refused(setting)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("train.steps=0", "train.steps: input should be greater than or equal to 1, got 0"),
        ("train.steps=1.5", "train.steps: input should be a valid integer"),
        ("train.steps=many", "got 'many'"),
        ("train.lr=0", "train.lr: input should be greater than 0, got 0"),
        ("train.lr=.inf", "train.lr: input should be a finite number, got inf"),
        ("train.lr=.nan", "train.lr: input should be a finite number, got nan"),
        ("train.clip.x=3", "train.clip: input should be a valid number, got {'x': 3}"),
        ("train.mode=half", "train.mode: input should be 'full' or 'lora', got 'half'"),
        ("train.betas=[0.9]", "train.betas.1: field required"),
        ("train.drift_alarm=1", "train.drift_alarm: input should be greater than 1"),
        ("train.beta=-1", "beta: input should be greater than 0, got -1"),
        ("data.images_per_prompt=1", "greater than or equal to 2"),
        ("data.sampler=3", "data.sampler: input should be a valid dictionary"),
        ("eval.split=train", "eval.split: input should be 'eval' or 'tune', got 'train'"),
        ("eval.sampler.guidance=0.5", "eval.sampler.guidance: input should be greater than or equal to 1"),
        ("eval.evals=shapes_accuracy", "eval.evals: input should be a valid tuple, got 'shapes_accuracy'"),
        ("eval.evals=[]", "eval.evals: tuple should have at least 1 item"),
        ("eval.evals=[1]", "eval.evals.0: input should be a valid string, got 1"),
        ("eval.evals=[shapes_acuracy]", "unknown eval 'shapes_acuracy'. Did you mean 'shapes_accuracy'"),
        ("data.score=shape_reward", "unknown eval 'shape_reward'. Did you mean 'shapes_reward'"),
        ("method.beta=0", "method.beta: input should be greater than 0, got 0"),
        ("method.decay_start=1.5", "method.decay_start: input should be less than or equal to 1, got 1.5"),
        ("method.coupling=prio", "method.coupling: input should be 'prior', 'shared', 'independent' or 'permuted'"),
        ("train.lr", "expected --set key=value, got 'train.lr'; for example"),
        ("=3", "expected --set key=value, got '=3'"),
        ("train.lr=[", "the value of --set train.lr=[ is not valid YAML"),
    ],
)
def test_a_wrong_value_says_where_and_what(setting: str, complaint: str) -> None:
    assert complaint in refused(setting)


def test_unknown_names() -> None:
    assert "unknown method 'pnpao'. Did you mean 'pnapo'" in refused(method="pnpao")
    assert "unknown backbone 'tny'. Did you mean 'tiny'" in refused(model="tny")
    assert "unknown setting 'method.beta'" in refused("method.beta=3", method="base")
    with pytest.raises(UserError, match="seed: input should be greater than or equal to 0, got -1"):
        resolve("pnapo", "tiny", -1, [])


def test_settings_without_effect_are_listed_with_their_reason() -> None:
    def listed(method: str, *settings: str) -> list[str]:
        return without_effect(resolve(method, "tiny", 0, list(settings)), list(settings))

    assert listed("pnapo", "train.beta=3", "train.drift_alarm=2", "train.lr=1") == []
    assert listed("sft", "train.beta=3", "train.drift_alarm=2", "train.lr=1") == [
        "train.beta: sft has no beta",
        "train.drift_alarm: sft has no reference",
    ]
    assert listed("pnapo", "train.mode=full", "train.lora_rank=2") == ["train.lora_rank: train.mode is full"]
    assert listed("pnapo", "train.mode=lora", "train.lora_rank=2", "train.lora_alpha=2") == []
    assert listed("base", "train.lr=1", "data.prompts=3", "eval.prompts=3") == [
        "data.prompts: base does not train",
        "train.lr: base does not train",
    ]


def test_a_config_can_be_made_without_a_preset() -> None:
    assert Config(method="base", method_config=MethodConfig(coupling="prior"), model="tiny").train == Train()
