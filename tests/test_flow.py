"""The mathematics of the loss, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pnapo_bench import flow


def test_interpolation_runs_from_data_at_0_to_noise_at_1() -> None:
    x0, noise = torch.full((3, 1, 2, 2), 2.0), torch.full((3, 1, 2, 2), 10.0)
    x_t = flow.interpolate(x0, noise, torch.tensor([0.0, 0.25, 1.0]))
    # 1 * 2 + 0 * 10 = 2, 0.75 * 2 + 0.25 * 10 = 4, 0 * 2 + 1 * 10 = 10
    assert torch.equal(x_t[:, 0, 0, 0], torch.tensor([2.0, 4.0, 10.0]))
    assert x_t.shape == x0.shape


def test_velocity_is_the_slope_of_the_interpolation() -> None:
    x0, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    assert torch.equal(flow.velocity_target(torch.tensor([2.0]), torch.tensor([10.0])), torch.tensor([8.0]))
    early, late = torch.tensor([0.25, 0.5]), torch.tensor([0.75, 0.625])
    rise = flow.interpolate(x0, noise, late) - flow.interpolate(x0, noise, early)
    run = (late - early).reshape(2, 1, 1, 1)
    torch.testing.assert_close(rise / run, flow.velocity_target(x0, noise))


def test_squared_error_is_a_mean_over_everything_but_the_batch() -> None:
    predicted = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]], [[[0.0, 0.0]], [[0.0, 2.0]]]])  # 2 x 2 x 1 x 2
    target = torch.zeros(2, 2, 1, 2)
    # (1 + 4 + 9 + 16) / 4 = 7.5 and (0 + 0 + 0 + 4) / 4 = 1
    assert torch.equal(flow.squared_error(predicted, target), torch.tensor([7.5, 1.0]))


def test_squared_error_is_float32_whatever_the_model_computes_in() -> None:
    # in bfloat16, with 8 bits of mantissa, 1.0078125^2 = 1.01568603515625 would become 1.015625
    error = flow.squared_error(torch.full((1, 4), 1.0078125, dtype=torch.bfloat16), torch.zeros(1, 4).bfloat16())
    assert error.dtype == torch.float32
    assert error.item() == 1.0078125**2


def test_margin() -> None:
    # (1.0 - 1.5) - (3.0 - 2.25) = -0.5 - 0.75 = -1.25
    one = [torch.tensor([value]) for value in (1.0, 1.5, 3.0, 2.25)]
    assert flow.margin(*one).item() == -1.25


@pytest.mark.parametrize(
    ("margin", "beta", "expected"),
    [
        # -log sigmoid(-beta/2 D) = log(1 + exp(beta/2 D))
        (-0.002, 1000.0, math.log(1 + math.exp(-1))),  # 0.3132617
        (0.002, 1000.0, math.log(1 + math.exp(1))),  # 1.3132617
        (0.5, 8.0, math.log(1 + math.exp(2))),  # 2.1269280
    ],
)
def test_logistic_loss(margin: float, beta: float, expected: float) -> None:
    assert flow.logistic_loss(torch.tensor([margin]), beta).item() == pytest.approx(expected, rel=1e-6)


def test_logistic_loss_takes_a_beta_for_each_pair() -> None:
    loss = flow.logistic_loss(torch.tensor([0.5, 0.5]), torch.tensor([8.0, 0.0]))
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(2)), math.log(2)], rel=1e-6)


def test_logistic_loss_is_log_2_without_a_margin_and_without_a_beta() -> None:
    log_2 = torch.tensor(2.0).log()
    assert torch.equal(flow.logistic_loss(torch.zeros(3), 2000.0), log_2.expand(3))
    torch.testing.assert_close(flow.logistic_loss(torch.tensor([-3.0, 3.0]), 1e-9), log_2.expand(2))


def test_logistic_loss_stays_finite_and_linear_far_out() -> None:
    # beta/2 D = 1000 * 5 = 5000: log(1 + e^5000) = 5000; exp alone would overflow
    assert flow.logistic_loss(torch.tensor([5.0, -5.0]), 2000.0).tolist() == [5000.0, 0.0]


def test_descending_lowers_the_winners_error_and_raises_the_losers() -> None:
    winner, loser = torch.tensor([1.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    torch.autograd.backward(flow.logistic_loss(flow.margin(winner, torch.ones(1), loser, torch.ones(1)), 8.0).sum())
    # dL/dD = beta/2 sigmoid(beta/2 D) = 4 * 1/2 = 2 at D = 0, with dD/de_w = 1 and dD/de_l = -1
    assert winner.grad is not None
    assert loser.grad is not None
    assert (winner.grad.item(), loser.grad.item()) == (2.0, -2.0)
