"""Every method of the registry: what it declares, and its loss against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pnapo_bench.methods.pnapo import decay
from torch import Tensor, autograd

from pnapo_bench import registry
from pnapo_bench.contracts import Errors, Method, MethodConfig, Pairs

TRAINED = sorted(set(registry.TABLES["methods"]) - {"base"})
PREFERENCE = sorted(set(TRAINED) - {"sft", "sft-prior"})
LOGISTIC = sorted(set(PREFERENCE) - {"ipo"})

COUPLINGS = {
    "pnapo": "prior",
    "pnapo-fixed-beta": "prior",
    "pnapo-permuted": "permuted",
    "diffusion-dpo": "shared",
    "diffusion-dpo-independent": "independent",
    "dpo-dynamic-beta": "shared",
    "ipo": "shared",
    "sft": "independent",
    "sft-prior": "prior",
}


def make(name: str, **settings: Any) -> Method:
    method_class = registry.get("methods", name)
    made: Method = method_class(method_class.Config(**settings))
    return made


def errors(*, winner: list[float], loser: list[float], reference: float = 1.0, grad: bool = False) -> Errors:
    """Both references have the same error everywhere, so that D = e_w - e_l."""
    same = torch.full((len(winner),), reference)
    return Errors(torch.tensor(winner, requires_grad=grad), torch.tensor(loser, requires_grad=grad), same, same)


def pairs(*gap: float) -> Pairs:
    return Pairs(torch.tensor(gap), ["a photo of a star"] * len(gap))


# ---------------------------------------------------------------------------------------------- declarations


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_stands_on_its_defaults_and_names_its_source(name: str) -> None:
    method = make(name)
    assert method.name == name
    assert method.trains
    assert "arXiv" in method.source
    assert type(method).__doc__
    assert type(method).__doc__ != Method.__doc__


def test_the_base_needs_nothing() -> None:
    base = registry.get("methods", "base")(MethodConfig(coupling="prior"))
    assert (base.trains, base.needs_loser, base.needs_reference) == (False, False, False)
    assert base.source


@pytest.mark.parametrize("name", TRAINED)
def test_requirements(name: str) -> None:
    method = make(name)
    assert (method.needs_loser, method.needs_reference) == ((name in PREFERENCE),) * 2


def test_every_method_has_its_coupling() -> None:
    assert {name: make(name).config.coupling for name in TRAINED} == COUPLINGS


@pytest.mark.parametrize("name", TRAINED)
def test_a_coupling_can_be_exchanged(name: str) -> None:
    assert make(name, coupling="permuted").config.coupling == "permuted"


def test_neighbours_differ_in_nothing_but_what_they_say() -> None:
    def without_coupling(name: str) -> dict[str, Any]:
        return {key: value for key, value in make(name).config.model_dump().items() if key != "coupling"}

    for one, other in (
        ("pnapo", "dpo-dynamic-beta"),
        ("pnapo", "pnapo-permuted"),
        ("diffusion-dpo", "diffusion-dpo-independent"),
        ("diffusion-dpo", "pnapo-fixed-beta"),
        ("sft", "sft-prior"),
    ):
        assert without_coupling(one) == without_coupling(other), (one, other)
    assert make("pnapo").config.beta == make("diffusion-dpo").config.beta == make("ipo").config.beta


# ---------------------------------------------------------------------------------------------- laws of all losses


@pytest.mark.parametrize("name", TRAINED)
def test_a_loss_is_one_number_for_each_pair(name: str) -> None:
    output = make(name).loss(
        errors(winner=[0.9, 1.0, 1.1], loser=[1.0, 1.0, 1.0], grad=True), pairs(0.1, 0.2, 0.3), 0.5
    )
    assert output.loss.shape == (3,)
    assert output.loss.dtype == torch.float32
    assert output.loss.requires_grad
    assert output.beta is None or not output.beta.requires_grad


@pytest.mark.parametrize("name", PREFERENCE)
def test_swapping_winner_and_loser_flips_the_margin(name: str) -> None:
    method = make(name)
    right = errors(winner=[0.999], loser=[1.001])
    wrong = errors(winner=[1.001], loser=[0.999])
    assert right.margin().item() == pytest.approx(-0.002, rel=1e-4)
    assert torch.equal(wrong.margin(), -right.margin())
    gap = pairs(0.1)
    beta = method.loss(right, gap, 0.0).beta
    strength = method.config.beta if beta is None else beta.item()
    rise = (method.loss(wrong, gap, 0.0).loss - method.loss(right, gap, 0.0).loss).item()
    # with z = beta/2 D and D = 0.002: log(1 + e^z) - log(1 + e^-z) = z, and (-z - 1)^2 - (z - 1)^2 = 4 z
    z = strength / 2 * 0.002
    assert rise == pytest.approx(4 * z if name == "ipo" else z, rel=1e-3)


@pytest.mark.parametrize("name", LOGISTIC)
def test_logistic_losses_are_log_2_where_policy_and_reference_agree(name: str) -> None:
    loss = make(name).loss(errors(winner=[1.0, 1.0], loser=[1.0, 1.0]), pairs(0.1, 0.5), 0.0).loss
    assert torch.equal(loss, torch.tensor(2.0).log().expand(2))


@pytest.mark.parametrize("name", TRAINED)
def test_the_reference_is_data(name: str) -> None:
    given = errors(winner=[0.9, 1.1], loser=[1.0, 1.0], grad=True)
    autograd.backward(make(name).loss(given, pairs(0.1, 0.2), 0.0).loss.sum())
    assert given.winner_ref is not None
    assert given.winner_ref.grad is None
    assert given.winner.grad is not None  # and the policy learns without it


@pytest.mark.parametrize("name", PREFERENCE)
def test_descending_prefers_the_winner(name: str) -> None:
    given = errors(winner=[1.0], loser=[1.0], grad=True)
    autograd.backward(make(name).loss(given, pairs(0.5), 0.0).loss.sum())
    assert given.loser is not None
    assert given.winner.grad is not None
    assert given.loser.grad is not None
    assert given.winner.grad.item() > 0  # descending lowers the winner's error
    assert given.loser.grad.item() == -given.winner.grad.item()


def test_a_margin_without_loser_or_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="needs_loser and needs_reference"):
        Errors(torch.ones(1)).margin()


# ---------------------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize("name", ["sft", "sft-prior"])
def test_sft_is_the_winners_error_and_never_looks_at_a_loser(name: str) -> None:
    winner = torch.tensor([0.3, 0.7])
    alone = make(name).loss(Errors(winner), pairs(0.1, 0.2), 0.0).loss
    assert torch.equal(alone, winner)
    beside = errors(winner=[0.3, 0.7], loser=[5.0, math.inf])
    assert torch.equal(make(name).loss(beside, pairs(9.0, 9.0), 0.9).loss, winner)


@pytest.mark.parametrize("name", ["diffusion-dpo", "diffusion-dpo-independent", "pnapo-fixed-beta"])
def test_fixed_beta(name: str) -> None:
    method = make(name, beta=2000)
    given = errors(winner=[0.5], loser=[0.501], reference=0.5)
    # D = -0.001, -beta/2 D = 1, loss = log(1 + e^-1) = 0.3132617, whatever gap and progress
    for gap, progress in ((0.01, 0.0), (0.9, 0.9)):
        loss = method.loss(given, pairs(gap), progress).loss.item()
        assert loss == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-4)


def test_ipo_aims_at_its_target() -> None:
    given = errors(winner=[1.0, 0.5], loser=[1.5, 1.5])
    # D = -0.5 and -1; -beta/2 D = 1 and 2 with beta = 4; (1 - 1)^2 = 0 and (2 - 1)^2 = 1
    assert make("ipo", beta=4).loss(given, pairs(0.1, 0.1), 0.0).loss.tolist() == [0.0, 1.0]
    # target 3: (1 - 3)^2 = 4 and (2 - 3)^2 = 1
    assert make("ipo", beta=4, target=3).loss(given, pairs(0.1, 0.1), 0.0).loss.tolist() == [4.0, 1.0]


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 1.0),
        (1 / 3 - 1e-9, 1.0),
        (1 / 3, 1.0),  # 1/2 + 1/4 (1 + cos 0)
        (5 / 12, 0.5 + 0.25 * (1 + math.sqrt(0.5))),  # a quarter of the way: cos(pi/4); 0.9267767
        (0.5, 0.75),  # half of the way: 1/2 + 1/4 (1 + cos(pi/2))
        (7 / 12, 0.5 + 0.25 * (1 - math.sqrt(0.5))),  # 0.5732233
        (2 / 3, 0.5),
        (1.0, 0.5),
    ],
)
def test_decay(progress: float, expected: float) -> None:
    assert decay(progress, 1 / 3, 2 / 3, 0.5) == pytest.approx(expected, rel=1e-7)


def test_decay_at_its_edges() -> None:
    assert [decay(p, 0.5, 0.5, 0.25) for p in (0.0, 0.499, 0.5, 0.9)] == [1.0, 1.0, 0.25, 0.25]  # a step, no 0 / 0
    assert [decay(p, 0.0, 0.0, 0.25) for p in (0.0, 0.9)] == [0.25, 0.25]
    assert [decay(p, 1.0, 1.0, 0.25) for p in (0.0, 0.999)] == [1.0, 1.0]
    assert [decay(p, 0.0, 1.0, 1.0) for p in (0.0, 0.3, 0.999)] == [1.0, 1.0, 1.0]
    assert decay(0.5, 0.0, 1.0, 0.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("gap", "progress", "expected"),
    [
        # 2000 f(gap) g(progress), f(gap) = 2 sigmoid(10 gap) - 1 = tanh(5 gap)
        (0.0, 0.0, 0.0),
        (0.1, 0.0, 924.2343),  # 2000 tanh(0.5), tanh(0.5) = (e - 1) / (e + 1) = 0.46211716
        (0.1, 0.5, 693.1757),  # times 3/4
        (0.1, 0.9, 462.1172),  # times 1/2
        (0.2, 0.0, 1523.1883),  # 2000 tanh(1), tanh(1) = 0.76159416
        (50.0, 0.0, 2000.0),
    ],
)
@pytest.mark.parametrize("name", ["pnapo", "pnapo-permuted", "dpo-dynamic-beta"])
def test_dynamic_beta(name: str, gap: float, progress: float, expected: float) -> None:
    method = make(name, beta=2000)
    given = errors(winner=[0.5], loser=[0.501], reference=0.5)
    output = method.loss(given, pairs(gap), progress)
    assert isinstance(output.beta, Tensor)
    assert output.beta.item() == pytest.approx(expected, rel=1e-5)
    # D = -0.001: loss = log(1 + exp(-beta/2 0.001))
    assert output.loss.item() == pytest.approx(math.log(1 + math.exp(-expected / 2000)), rel=1e-4)


def test_pnapo_follows_the_gap_of_each_pair_and_its_settings() -> None:
    given = errors(winner=[1.0, 1.0], loser=[1.0, 1.0])
    method = make("pnapo", beta=100, gap_scale=1, decay_start=0, decay_end=0.5, decay_to=0.2)
    beta = method.loss(given, pairs(1.0, 2.0), 0.25).beta
    assert beta is not None
    # g = 0.2 + 0.8/2 (1 + cos(pi/2)) = 0.6; 100 tanh(0.5) 0.6 = 27.727 and 100 tanh(1) 0.6 = 45.696
    assert beta.tolist() == pytest.approx([27.72703, 45.69565], rel=1e-5)


def test_pnapo_with_a_huge_gap_begins_as_pnapo_with_a_fixed_beta() -> None:
    given = errors(winner=[0.9, 0.9995], loser=[1.0, 1.0])
    dynamic = make("pnapo").loss(given, pairs(100.0, 100.0), 0.0).loss
    assert torch.equal(dynamic, make("pnapo-fixed-beta").loss(given, pairs(100.0, 100.0), 0.0).loss)
