"""The sampling loop: from a given prior noise to latents. There is no other."""

from __future__ import annotations

import torch
from torch import Tensor

from pnapo_bench.contracts import Backbone, Conditioning


@torch.no_grad()
def sample(
    backbone: Backbone,
    noise: Tensor,
    conditioning: Conditioning,
    unconditional: Conditioning | None,
    steps: int,
    guidance: float,
) -> Tensor:
    """Latents [B, C, H, W] by integrating the model's velocity from t = 1 to 0.

    Args:
        backbone: the model.
        noise: [B, C, H, W], the state at t = 1.
        conditioning: of the B prompts.
        unconditional: of B empty prompts; needed when ``guidance`` > 1.
        steps: of the model's own scheduler (Euler for flow matching).
        guidance: v = v_u + guidance (v_c - v_u); 1 leaves v_u out.
    """
    scheduler = backbone.scheduler(steps)
    x = noise.to(backbone.device)
    for time in scheduler.timesteps:
        t = (time / scheduler.config.num_train_timesteps).expand(len(x)).to(backbone.device)
        velocity = backbone.velocity(x, t, conditioning)
        if guidance > 1:
            assert unconditional is not None, "guidance needs the unconditional prompt"
            without = backbone.velocity(x, t, unconditional)
            velocity = without + guidance * (velocity - without)
        x = scheduler.step(velocity, time, x, return_dict=False)[0]
    return x
