"""Means with intervals for a crossed design: every training seed is evaluated on the same prompts.

Shape legend: S training seeds, P prompts, K evaluation noises of a prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

LEVEL = 0.95
"""Of every interval."""


@dataclass(frozen=True)
class Interval:
    """A mean, the ends of its interval, and how many seeds and prompts it rests on."""

    mean: float
    low: float
    high: float
    seeds: int
    prompts: int


def mean_interval(y: NDArray[np.floating]) -> Interval:
    """The mean of y [S, P] with its t-interval for other seeds and other prompts, both drawn at random.

    Two-way random effects without replication, y[s, p] = mu + a[s] + b[p] + e[s, p], with the mean squares MS_S
    (seeds, S - 1 degrees of freedom), MS_P (prompts, P - 1) and MS_E (the rest, (S - 1)(P - 1)). They estimate
    E[MS_S] = var e + P var a, E[MS_P] = var e + S var b and E[MS_E] = var e (Searle, Casella, McCulloch: Variance
    Components, 1992, section 4.3), so

        var mean = var a / S + var b / P + var e / (S P),  estimated by  (MS_S + MS_P - MS_E) / (S P),

    where a component that would come out negative is set to 0: then only the largest mean square remains. The degrees
    of freedom of a sum of mean squares are those of Satterthwaite (An Approximate Distribution of Estimates of Variance
    Components, 1946), (sum MS_i)^2 / sum(MS_i^2 / f_i) over the terms that remain, whatever their sign.

    One seed leaves the plain t-interval over prompts, which says nothing of other seeds; one prompt, that over seeds.

    Args:
        y: per-prompt means over the evaluation noises, of a score or of a paired difference.

    Raises:
        ValueError: a value is not finite, or there is but one.
    """
    values = np.asarray(y, dtype=np.float64)
    if values.ndim != 2 or values.size < 2:
        raise ValueError(f"expected [seeds, prompts] with at least two values, got shape {values.shape}")
    if wrong := int((~np.isfinite(values)).sum()):
        raise ValueError(f"means over NaN are refused: {wrong} of {values.size} values are not finite")
    mean = float(values.mean())
    variance, freedom = _variance_of_mean(values)
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance) if variance else 0.0
    return Interval(mean, mean - half, mean + half, *values.shape)


def win_rate(difference: NDArray[np.floating]) -> Interval:
    """The share of differences [S, P, K] above 0, ties counted half, with its interval cut to [0, 1].

    Raises:
        ValueError: a difference is not finite, or there is but one.
    """
    if not np.isfinite(difference).all():
        raise ValueError("a win rate over NaN is refused: some differences are not finite")
    share = mean_interval(((np.sign(difference) + 1) / 2).mean(axis=2))
    return replace(share, low=max(share.low, 0.0), high=min(share.high, 1.0))


def _variance_of_mean(y: NDArray[np.float64]) -> tuple[float, float]:
    """The variance of the mean of y [S, P], and its degrees of freedom."""
    seeds, prompts = y.shape
    centred = y - y.mean()
    a, b = centred.mean(axis=1), centred.mean(axis=0)
    rest = centred - a[:, None] - b
    f_s, f_p = seeds - 1, prompts - 1
    ms_s = prompts * float(a @ a) / f_s if f_s else 0.0
    ms_p = seeds * float(b @ b) / f_p if f_p else 0.0
    ms_e = float((rest**2).sum()) / (f_s * f_p) if f_s * f_p else 0.0
    terms = [(ms_s, f_s), (ms_p, f_p), (-ms_e, f_s * f_p)]
    if not (ms_s > ms_e and ms_p > ms_e):
        terms = [max((ms_s, f_s), (ms_p, f_p), (ms_e, f_s * f_p))]
    total = sum(ms for ms, _ in terms)
    # shares of the total, because squares of tiny mean squares would vanish
    freedom = 1 / sum((ms / total) ** 2 / f for ms, f in terms if f) if total else 1.0
    return total / y.size, freedom
