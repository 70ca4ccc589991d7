"""Rectified-flow mathematics as pure functions. The conventions of the whole project are stated here.

- Time: t in [0, 1], t = 0 is data, t = 1 is noise; x_t = (1 - t) x0 + t eps (Liu et al. 2023, arXiv 2209.03003).
- Velocity: v = dx_t/dt = eps - x0.
- Squared error: e = mean over C, H, W of (v_theta - v)^2, one number per image. The reduction is part of beta's unit.
- Margin: D = (e_w - e_w_ref) - (e_l - e_l_ref); negative when the policy has learnt the preference.

Shape legend: B images or pairs, C H W latent.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _per_image(t: Tensor, like: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps for x0, noise [B, C, H, W] and t [B]."""
    t = _per_image(t, x0)
    return (1 - t) * x0 + t * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """V = eps - x0, the same at every t."""
    return noise - x0


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image, [B], in float32 whatever the model computes in."""
    return (predicted.float() - target.float()).square().flatten(1).mean(1)


def margin(winner: Tensor, winner_ref: Tensor, loser: Tensor, loser_ref: Tensor) -> Tensor:
    """D [B] from the four squared errors [B]."""
    return (winner - winner_ref) - (loser - loser_ref)


def logistic_loss(margin: Tensor, beta: float | Tensor) -> Tensor:
    """-log sigmoid(-beta/2 D), [B]; log 2 where D = 0."""
    return -torch.nn.functional.logsigmoid(-0.5 * beta * margin)
