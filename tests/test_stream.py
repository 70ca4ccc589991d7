"""The training stream: the same pairs, times and noises for everybody, whatever the batch, process or interruption."""

from __future__ import annotations

import dataclasses
from itertools import chain
from typing import get_args

import pytest
import torch

from pnapo_bench import flow
from pnapo_bench.contracts import Coupling
from pnapo_bench.errors import UserError
from pnapo_bench.pairs import PairData
from pnapo_bench.stream import Stream, micro_batches, split, states


def stream(coupling: Coupling = "prior", *, seed: int = 0, pairs: int = 8, times: str = "uniform") -> Stream:
    return Stream(seed, pairs, times, coupling)


def test_every_epoch_visits_every_pair_once() -> None:
    visits = stream(pairs=7).visits(0, 21)
    for epoch in range(3):
        part = visits[7 * epoch : 7 * epoch + 7]
        assert sorted(part) == [(pair, epoch) for pair in range(7)]
    orders = [[pair for pair, _ in visits[7 * epoch : 7 * epoch + 7]] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]


def test_any_slices_give_the_same_sequence() -> None:
    whole = stream(pairs=7).visits(0, 60)
    for size in (1, 2, 5, 7, 16, 60):  # a batch may be larger than an epoch
        slices = [stream(pairs=7).visits(start, min(size, 60 - start)) for start in range(0, 60, size)]
        assert [*chain(*slices)] == whole, size
    assert stream(pairs=7).visits(33, 4) == whole[33:37]
    assert stream(pairs=7).visits(33, 0) == []


def test_the_order_depends_on_the_seed_and_not_on_the_coupling() -> None:
    assert stream(seed=1).visits(0, 8) != stream().visits(0, 8)
    for coupling in get_args(Coupling):
        assert stream(coupling).visits(0, 24) == stream().visits(0, 24)
        assert torch.equal(stream(coupling).t([(3, 1), (2, 0)]), stream().t([(3, 1), (2, 0)]))


@pytest.mark.parametrize("times", ["uniform", "logit-normal"])
def test_times_depend_on_seed_pair_and_visit_alone(times: str) -> None:
    a, b, c = (3, 0), (3, 1), (5, 0)
    t = stream(times=times).t([a, b, c])
    assert len(set(t.tolist())) == 3
    assert torch.equal(stream(times=times).t([c, a]), t[[2, 0]])
    assert torch.equal(stream(times=times, pairs=100).t([b]), t[1:2])
    assert not torch.equal(stream(times=times, seed=1).t([a]), t[:1])


def test_uniform_times() -> None:
    t = stream().t([(pair, visit) for pair in range(1000) for visit in range(2)]).sort().values
    assert t.min() > 0
    assert t.max() < 1
    # Kolmogorov-Smirnov: 99.9 % of uniform samples of 2000 stay within 1.95 / sqrt(2000) = 0.0436
    assert (t - torch.arange(2000) / 2000).abs().max() < 0.0436


def test_logit_normal_times() -> None:
    t = stream(times="logit-normal").t([(pair, visit) for pair in range(1000) for visit in range(2)])
    assert t.min() > 0
    assert t.max() < 1
    uniform = torch.special.ndtr(t.logit()).sort().values  # normal -> uniform
    assert (uniform - torch.arange(2000) / 2000).abs().max() < 0.0436


VISITS = [(3, 0), (0, 0), (3, 1)]


def test_prior_takes_the_recorded_noises(miniature_pairs: PairData) -> None:
    winner, loser = stream("prior").noises(VISITS, miniature_pairs)
    assert torch.equal(winner, miniature_pairs.winner_noise[[3, 0, 3]])
    assert torch.equal(loser, miniature_pairs.loser_noise[[3, 0, 3]])


def test_shared_draws_one_fresh_noise_for_both(miniature_pairs: PairData) -> None:
    winner, loser = stream("shared").noises(VISITS, miniature_pairs)
    assert torch.equal(winner, loser)
    assert not torch.equal(winner[0], winner[2])  # fresh at every visit


def test_independent_draws_one_for_each(miniature_pairs: PairData) -> None:
    winner, loser = stream("independent").noises(VISITS, miniature_pairs)
    assert not (winner == loser).any()
    assert torch.equal(winner, stream("shared").noises(VISITS, miniature_pairs)[0])  # winners have common numbers


def test_fresh_noise_depends_on_seed_pair_and_visit_alone(miniature_pairs: PairData) -> None:
    for coupling in ("shared", "independent"):
        winner, loser = stream(coupling).noises(VISITS, miniature_pairs)
        again = stream(coupling, pairs=100).noises(VISITS[::-1], miniature_pairs)
        assert torch.equal(again[0].flip(0), winner)
        assert torch.equal(again[1].flip(0), loser)
        assert not torch.equal(stream(coupling, seed=1).noises(VISITS, miniature_pairs)[1], loser)


def test_permuted_takes_the_recorded_noises_of_another_pair(miniature_pairs: PairData) -> None:
    every = [(pair, 0) for pair in range(8)]
    winner, loser = stream("permuted").noises(every, miniature_pairs)
    found = [
        [k for k in range(8) if torch.equal(one, miniature_pairs.winner_noise[k])] for one in winner
    ]  # whose noise each pair got
    other = [owners[0] for owners in found]
    assert sorted(other) == list(range(8))  # every noise is used once
    assert all(mine != theirs for mine, theirs in enumerate(other))
    assert torch.equal(loser, miniature_pairs.loser_noise[other])  # both noises come from one pair
    later = stream("permuted").noises([(pair, 5) for pair in range(8)], miniature_pairs)
    assert torch.equal(later[0], winner)  # fixed for the run
    assert not torch.equal(stream("permuted", seed=1).noises(every, miniature_pairs)[0], winner)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_permuted_never_gives_a_pair_its_own_noise(count: int, miniature_pairs: PairData) -> None:
    number = torch.arange(count).float()
    data = dataclasses.replace(miniature_pairs, winner_noise=number, loser_noise=number)
    for seed in range(20):
        owner, _ = stream("permuted", seed=seed, pairs=count).noises([(p, 0) for p in range(count)], data)
        assert torch.equal(owner.sort().values, number)
        assert not (owner == number).any()


def test_permuted_needs_another_pair(miniature_pairs: PairData) -> None:
    with pytest.raises(UserError, match="at least 2 pairs, got 1"):
        stream("permuted", pairs=1).noises([(0, 0)], miniature_pairs)


def test_states_stack_winners_before_losers(miniature_pairs: PairData) -> None:
    embeddings = {"tokens": torch.arange(8.0).reshape(8, 1, 1)}
    cpu = torch.device("cpu")
    one = stream("independent")
    asked = states(one, VISITS, miniature_pairs, embeddings, True, cpu)
    noise_w, noise_l = one.noises(VISITS, miniature_pairs)
    t = one.t(VISITS)
    winner, loser = miniature_pairs.winner[[3, 0, 3]], miniature_pairs.loser[[3, 0, 3]]
    assert torch.equal(asked.t, torch.cat([t, t]))  # t is common to winner and loser
    assert torch.equal(asked.x_t[:3], flow.interpolate(winner, noise_w, t))
    assert torch.equal(asked.x_t[3:], flow.interpolate(loser, noise_l, t))
    assert torch.equal(asked.target, torch.cat([noise_w - winner, noise_l - loser]))
    assert asked.conditioning["tokens"].flatten().tolist() == [3, 0, 3, 3, 0, 3]
    alone = states(one, VISITS, miniature_pairs, embeddings, False, cpu)
    assert torch.equal(alone.x_t, asked.x_t[:3])
    assert torch.equal(alone.target, asked.target[:3])


def test_split_undoes_the_stacking() -> None:
    both = split(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0, 6.0, 7.0, 8.0]), True)
    assert both.loser is not None
    assert both.winner_ref is not None
    assert both.loser_ref is not None
    found = [both.winner, both.loser, both.winner_ref, both.loser_ref]
    assert [e.tolist() for e in found] == [[1, 2], [3, 4], [5, 6], [7, 8]]
    alone = split(torch.tensor([1.0, 2.0]), None, False)
    assert alone.winner.tolist() == [1, 2]
    assert (alone.loser, alone.winner_ref, alone.loser_ref) == (None, None, None)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("micro", [None, 1, 3, 4, 100])
def test_micro_batches_cover_the_global_batch_once(world: int, micro: int | None) -> None:
    covered = []
    for rank in range(world):
        parts = micro_batches(40, 8, micro, rank, world)
        assert all(0 < count <= (micro or 8) for _, count in parts)
        assert sum(count for _, count in parts) == 8 // world  # equal shares
        covered += [position for start, count in parts for position in range(start, start + count)]
    assert covered == list(range(40, 48))
