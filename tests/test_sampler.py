"""The sampling loop, against integrals solved by hand and against a loop written out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from pnapo_bench.backbones.tiny import Tiny
from pnapo_bench.contracts import Backbone, Conditioning
from pnapo_bench.noise import prior_noise
from pnapo_bench.sampler import sample


class Field:
    """A backbone whose velocity is ``slope * x + push``, ``push`` being its conditioning."""

    device = torch.device("cpu")

    def __init__(self, slope: float = 0.0, shift: float = 1.0) -> None:
        self.slope, self.shift = slope, shift
        self.times: list[list[float]] = []

    def velocity(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.times.append(t.tolist())
        return self.slope * x_t + conditioning["push"].reshape(-1, 1, 1, 1)

    def scheduler(self, steps: int) -> Any:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=self.shift)
        scheduler.set_timesteps(steps)
        return scheduler


def push(*values: float) -> Conditioning:
    return {"push": torch.tensor(values)}


def run(
    field: Field, noise: Tensor, given: Conditioning, empty: Conditioning | None, steps: int, guidance: float
) -> Tensor:
    return sample(cast(Backbone, field), noise, given, empty, steps, guidance)


NOISE = torch.full((2, 1, 1, 1), 5.0)


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_constant_velocity_is_integrated_exactly_from_1_to_0(steps: int, shift: float) -> None:
    found = run(Field(shift=shift), NOISE, push(2.0, -1.0), None, steps, 1.0)
    # x(0) = x(1) - v = 5 - 2 and 5 + 1, however the steps lie
    torch.testing.assert_close(found.flatten(), torch.tensor([3.0, 6.0]))


def test_a_linear_velocity_shrinks_by_the_euler_factor_of_each_step() -> None:
    # v = x; sigmas of shift 1 in 4 steps; each step multiplies by 1 - (difference of sigmas)
    field = Field(slope=1.0)
    sigmas: list[float] = field.scheduler(4).sigmas.tolist()
    assert sigmas[0] == 1.0
    assert sigmas[-1] == 0.0
    factor = math.prod(1 - (a - b) for a, b in pairwise(sigmas))
    found = run(field, NOISE, push(0.0, 0.0), None, 4, 1.0)
    assert found.flatten().tolist() == pytest.approx([5 * factor] * 2, rel=1e-6)
    # and with many steps it comes to the exact solution x(0) = x(1) e^-1
    many = run(Field(slope=1.0), NOISE, push(0.0, 0.0), None, 1000, 1.0)
    assert many.flatten().tolist() == pytest.approx([5 / math.e] * 2, rel=1e-3)


def test_the_model_is_asked_at_the_noise_levels_of_the_scheduler() -> None:
    field = Field(shift=3.0)
    run(field, NOISE, push(0.0, 0.0), None, 4, 1.0)
    assert [t[0] for t in field.times] == pytest.approx(field.scheduler(4).sigmas[:-1].tolist())
    assert all(len(t) == 2 and t[0] == t[1] for t in field.times)  # one t for each image


def test_guidance_goes_beyond_the_conditional_velocity() -> None:
    # v = v_u + g (v_c - v_u) = 1 + 3 (2 - 1) = 4 and 1 + 3 (-1 - 1) = -5; x(0) = 5 - v
    found = run(Field(), NOISE, push(2.0, -1.0), push(1.0, 1.0), 3, 3.0)
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 10.0]))


def test_the_unconditional_prompt_is_not_asked_without_guidance() -> None:
    field = Field()
    found = run(field, NOISE, push(2.0, -1.0), push(math.nan, math.nan), 3, 1.0)
    torch.testing.assert_close(found.flatten(), torch.tensor([3.0, 6.0]))
    assert len(field.times) == 3
    guided = Field()
    run(guided, NOISE, push(2.0, -1.0), push(0.0, 0.0), 3, 1.5)
    assert len(guided.times) == 6
    with pytest.raises(AssertionError, match="unconditional"):
        run(Field(), NOISE, push(2.0, -1.0), None, 3, 1.5)


def test_the_noise_itself_is_left_alone() -> None:
    noise = NOISE.clone()
    run(Field(slope=1.0), noise, push(1.0, 1.0), None, 3, 1.0)
    assert torch.equal(noise, NOISE)


# ---------------------------------------------------------------------------------------------- the tiny backbone


PROMPTS: Sequence[str] = ("a photo of a star", "a photo of two small hearts", "a photo of a red circle and a blue ring")


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_an_image_does_not_know_its_batch(guidance: float, tiny: Tiny) -> None:
    noise = prior_noise([1, 2, 3], tiny.latent_shape)
    conditioning, empty = tiny.encode_prompts(PROMPTS), tiny.encode_prompts([""] * 3)
    together = sample(tiny, noise, conditioning, empty, 4, guidance)
    for k in range(3):
        one, nothing = ({key: value[k : k + 1] for key, value in c.items()} for c in (conditioning, empty))
        alone = sample(tiny, noise[k : k + 1], one, nothing, 4, guidance)
        torch.testing.assert_close(alone[0], together[k], atol=1e-4, rtol=0)


def test_sampling_is_euler_integration_over_the_shifted_times(tiny: Tiny) -> None:
    x = prior_noise([1, 2, 3], tiny.latent_shape)
    conditioning = tiny.encode_prompts(PROMPTS)
    found = sample(tiny, x, conditioning, None, 4, 1.0)
    # diffusers: timesteps evenly from 1000 down to that of the smallest sigma, shifted once more by 3 s / (1 + 2 s)
    smallest = 3 * 0.001 / (1 + 2 * 0.001)
    even = [1 + (smallest - 1) * k / 3 for k in range(4)]
    sigmas = [3 * s / (1 + 2 * s) for s in even] + [0.0]
    assert tiny.scheduler(4).sigmas.tolist() == pytest.approx(sigmas, rel=1e-5)
    with torch.no_grad():
        for now, then in pairwise(sigmas):
            x = x + (then - now) * tiny.velocity(x, torch.full((3,), now), conditioning)
    torch.testing.assert_close(found, x, atol=1e-4, rtol=0)


def test_sampling_takes_no_gradient(tiny: Tiny) -> None:
    noise = prior_noise([1], tiny.latent_shape).requires_grad_()
    assert not sample(tiny, noise, tiny.encode_prompts(PROMPTS[:1]), None, 2, 1.0).requires_grad
