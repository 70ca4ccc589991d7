"""The training stream: which pair, which t and which noise at every step, as a pure function of (seed, pair, visit).

Every method that trains with one seed sees the same pairs at the same times (common random numbers), a resumed run
continues where it was, and the reference model's errors can be computed once for all runs that share a stream.

Shape legend: B pairs, C H W latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pnapo_bench import flow
from pnapo_bench.contracts import Backbone, Conditioning, Coupling, Errors
from pnapo_bench.errors import UserError
from pnapo_bench.noise import generator
from pnapo_bench.pairs import PairData

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Stream:
    """An endless sequence of (pair, visit): every epoch visits each pair once, in its own random order."""

    seed: int
    pairs: int
    times: str  # "uniform" or "logit-normal"
    coupling: Coupling

    def visits(self, start: int, count: int) -> list[tuple[int, int]]:
        """The (pair, visit) at positions start ... start + count - 1."""
        import torch

        found: list[tuple[int, int]] = []
        while len(found) < count:
            epoch, offset = divmod(start + len(found), self.pairs)
            order = torch.randperm(self.pairs, generator=generator("order", self.seed, epoch))
            part = order[offset : offset + count - len(found)]
            found += [(pair, epoch) for pair in part.tolist()]
        return found

    def t(self, visits: Sequence[tuple[int, int]]) -> Tensor:
        """Times [B] in (0, 1), common to winner and loser."""
        import torch

        if self.times == "uniform":
            draws = [torch.rand((), generator=generator("t", self.seed, *v)) for v in visits]
        else:
            draws = [torch.randn((), generator=generator("t", self.seed, *v)).sigmoid() for v in visits]
        return torch.stack(draws)

    def noises(self, visits: Sequence[tuple[int, int]], data: PairData) -> tuple[Tensor, Tensor]:
        """The noises [B, C, H, W] of winners and losers under the coupling (``contracts.Coupling``)."""
        import torch

        if self.coupling in ("prior", "permuted"):
            index = [pair for pair, _ in visits]
            if self.coupling == "permuted":
                other = self._derangement()
                index = [other[pair] for pair in index]
            return data.winner_noise[index], data.loser_noise[index]

        def fresh(side: str) -> Tensor:
            shape = data.winner.shape[1:]
            return torch.stack([torch.randn(shape, generator=generator(side, self.seed, *v)) for v in visits])

        winner = fresh("noise")
        return winner, winner if self.coupling == "shared" else fresh("noise of the loser")

    def _derangement(self) -> list[int]:
        """Another pair for every pair: a random cycle through all of them."""
        import torch

        if self.pairs < 2:
            raise UserError(
                f"coupling permuted takes the noise of another pair: expected at least 2 pairs, got {self.pairs}"
            )
        cycle = torch.randperm(self.pairs, generator=generator("permuted", self.seed))
        other = torch.empty_like(cycle)
        other[cycle] = cycle.roll(1)
        found: list[int] = other.tolist()
        return found


@dataclass(frozen=True)
class States:
    """What the model is asked in one forward pass: 2 B rows, winners first, or B where no loser is needed."""

    x_t: Tensor
    target: Tensor
    t: Tensor
    conditioning: Conditioning

    def errors(self, backbone: Backbone) -> Tensor:
        """Squared errors [2 B] or [B] of the model."""
        return flow.squared_error(backbone.velocity(self.x_t, self.t, self.conditioning), self.target)


def states(
    stream: Stream,
    visits: Sequence[tuple[int, int]],
    data: PairData,
    embeddings: Conditioning,
    with_loser: bool,
    device: torch.device,
) -> States:
    """The states of some visits; ``embeddings`` are those of all pairs' prompts, [P, ...]."""
    import torch

    index = [pair for pair, _ in visits]
    noise_w, noise_l = stream.noises(visits, data)
    t = stream.t(visits)
    x0, noise = data.winner[index], noise_w
    conditioning = {key: value[index] for key, value in embeddings.items()}
    if with_loser:
        x0, noise, t = torch.cat([x0, data.loser[index]]), torch.cat([noise, noise_l]), torch.cat([t, t])
        conditioning = {key: torch.cat([value, value]) for key, value in conditioning.items()}
    return States(
        flow.interpolate(x0, noise, t).to(device),
        flow.velocity_target(x0, noise).to(device),
        t.to(device),
        conditioning,
    )


def split(errors: Tensor, reference: Tensor | None, with_loser: bool) -> Errors:
    """The four error vectors from stacked ones."""
    if not with_loser:
        return Errors(errors, winner_ref=reference)
    winner, loser = errors.chunk(2)
    if reference is None:
        return Errors(winner, loser)
    winner_ref, loser_ref = reference.chunk(2)
    return Errors(winner, loser, winner_ref, loser_ref)


def micro_batches(start: int, batch: int, micro: int | None, rank: int, world: int) -> list[tuple[int, int]]:
    """(first position, count) of the forward passes by which one process covers its share of a global batch."""
    share = batch // world
    size = min(micro or share, share)
    begin = start + rank * share
    return [(begin + k, min(size, share - k)) for k in range(0, share, size)]
