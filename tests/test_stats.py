from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pnapo_bench.stats import Interval, mean_interval, win_rate


def drawn(seeds: int, prompts: int, a: float = 0.3, b: float = 0.5, e: float = 0.4, seed: int = 0) -> np.ndarray:
    """mu = 0 plus seed, prompt and rest effects of the given standard deviations."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, a, (seeds, 1)) + rng.normal(0, b, prompts) + rng.normal(0, e, (seeds, prompts))


def ends(interval: Interval) -> list[float]:
    return [interval.mean, interval.low, interval.high]


def test_mean_interval_by_hand() -> None:
    """y = [[0, 2, 7], [4, 4, 7]]: mean 4, seed means 3 5, prompt means 2 3 7, rest [[-1, 0, 1], [1, 0, -1]].

    MS_S = 3 (1 + 1) / 1 = 6, MS_P = 2 (4 + 1 + 9) / 2 = 14, MS_E = 4 / 2 = 2, all components positive:
    variance (6 + 14 - 2) / 6 = 3, degrees of freedom 18^2 / (6^2 / 1 + 14^2 / 2 + 2^2 / 2) = 324 / 136.
    """
    half = scipy_stats.t.ppf(0.975, 324 / 136) * math.sqrt(3)
    found = mean_interval(np.array([[0.0, 2, 7], [4, 4, 7]]))
    assert ends(found) == pytest.approx([4, 4 - half, 4 + half])
    assert (found.seeds, found.prompts) == (2, 3)


def test_a_negative_component_counts_as_zero() -> None:
    """y = [[0, 2], [2, 1]]: mean 5/4, seed means 1 3/2, prompt means 1 3/2, rest -+3/4.

    MS_S = MS_P = 2 (1/16 + 1/16) = 1/4 < MS_E = 4 * 9/16 = 9/4: only MS_E remains, variance 9/16, 1 degree of freedom.
    """
    half = 12.706204736 * 0.75
    assert ends(mean_interval(np.array([[0.0, 2], [2, 1]]))) == pytest.approx([1.25, 1.25 - half, 1.25 + half])


def test_one_seed_is_the_t_interval_over_prompts() -> None:
    y = drawn(1, 20)
    low, high = scipy_stats.t.interval(0.95, 19, y.mean(), scipy_stats.sem(y[0]))
    assert ends(mean_interval(y)) == pytest.approx([y.mean(), low, high])


def test_one_prompt_is_the_t_interval_over_seeds() -> None:
    y = drawn(5, 1)
    low, high = scipy_stats.t.interval(0.95, 4, y.mean(), scipy_stats.sem(y[:, 0]))
    assert ends(mean_interval(y)) == pytest.approx([y.mean(), low, high])


def test_equal_seeds_say_no_more_than_one() -> None:
    y = drawn(1, 20)
    assert ends(mean_interval(np.repeat(y, 3, axis=0))) == pytest.approx(ends(mean_interval(y)))


@pytest.mark.parametrize("shape", [(3, 20), (1, 20), (3, 1), (2, 2)])
def test_order_does_not_matter_and_constants_shift(shape: tuple[int, ...]) -> None:
    y = drawn(*shape)
    rng = np.random.default_rng(1)
    shuffled = y[rng.permutation(shape[0])][:, rng.permutation(shape[1])]
    assert ends(mean_interval(shuffled)) == pytest.approx(ends(mean_interval(y)))
    assert ends(mean_interval(y + 7)) == pytest.approx([v + 7 for v in ends(mean_interval(y))])
    assert [v * 1e100 for v in ends(mean_interval(y * 1e-100))] == pytest.approx(ends(mean_interval(y)))


@pytest.mark.parametrize("shape", [(3, 4), (1, 4), (4, 1)])
def test_equal_values_have_no_width(shape: tuple[int, ...]) -> None:
    assert ends(mean_interval(np.full(shape, 0.1))) == pytest.approx([0.1, 0.1, 0.1])
    assert ends(mean_interval(np.zeros(shape))) == [0, 0, 0]


@pytest.mark.parametrize(("a", "b", "e"), [(0.05, 0.3, 0.3), (0.3, 0.1, 0.1), (0.0, 0.3, 0.3)])
def test_covers_the_truth(a: float, b: float, e: float) -> None:
    intervals = [mean_interval(drawn(3, 50, a, b, e, seed)) for seed in range(400)]
    assert 0.90 <= np.mean([i.low <= 0 <= i.high for i in intervals]) <= 0.99


def test_nan_is_refused() -> None:
    y = drawn(2, 3)
    y[1, 2] = np.nan
    with pytest.raises(ValueError, match="means over NaN are refused: 1 of 6"):
        mean_interval(y)
    with pytest.raises(ValueError, match="NaN is refused"):
        win_rate(y[:, :, None])


@pytest.mark.parametrize("shape", [(1, 1), (0, 3), (3,)])
def test_too_few_values_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least two values, got shape"):
        mean_interval(np.zeros(shape))


def test_ties_count_half() -> None:
    difference = np.array([[[0.1, 0.0], [-2.0, 0.0], [0.0, 0.0], [3.0, 0.5]]])  # shares 3/4, 1/4, 1/2, 1
    assert win_rate(difference).mean == pytest.approx(2.5 / 4)
    assert ends(win_rate(np.zeros((2, 3, 4)))) == [0.5, 0.5, 0.5]


def test_swapping_the_sides_mirrors_the_win_rate() -> None:
    difference = np.random.default_rng(0).normal(0.2, 1, (3, 10, 4))
    wins, losses = win_rate(difference), win_rate(-difference)
    assert ends(losses) == pytest.approx([1 - wins.mean, 1 - wins.high, 1 - wins.low])


def test_a_win_rate_stays_in_0_1() -> None:
    difference = np.array([[[1.0], [1.0], [-1.0]]])
    assert (win_rate(difference).low, win_rate(difference).high) == (0, 1)
