"""Fast exact ranks: always what sorting says, whatever came before."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import masking
from support import ranks
from support.ranks import TopK, top_of_groups
from tools.benchmark import Size, Trainee

GPU = "cuda" if torch.cuda.is_available() else "cpu"


def by_sorting(scores, v):
    """The definition: the first round(v·n) in the order of scores, equal ones by their hash."""
    x = torch.cat([S.flatten() for S in scores]).cpu().numpy()
    place = np.arange(len(x))
    order = np.lexsort((-(place * 2654435761 % 2**32), -x))
    M = np.zeros(len(x), dtype=np.float32)
    M[order[: round(v * len(x))]] = 1
    return M


def drift(shapes):
    """Scores as training moves them, and a schedule of 60 steps."""
    scores = [torch.zeros(shape) for shape in shapes]
    useful = [torch.randn(shape) for shape in shapes]
    for t in range(60):
        scores = [S + 0.01 * (u + torch.randn_like(S)) for S, u in zip(scores, useful)]
        yield scores, 0.1 + 0.9 * (1 - t / 60) ** 3


def ties(shapes):
    """Whole numbers: the k-th largest always has many equals."""
    for scores, v in drift(shapes):
        yield [(30 * S).round() for S in scores], v


def jumps(shapes):
    """Nothing learned from one step holds at the next."""
    rng = np.random.default_rng(0)
    for t in range(60):
        scale, shift = float(10 ** rng.uniform(-20, 20)), float(rng.normal())
        scores = [scale * (torch.randn(shape) + shift) for shape in shapes]
        if t % 7 == 0:
            scores = [torch.full_like(S, shift) for S in scores]
        if t % 7 == 1:
            scores[0].view(-1)[::3] = -torch.inf
            scores[-1].view(-1)[1::3] = torch.inf
        yield scores, float(rng.choice([rng.uniform(), 0.0, 1.0, 1e-4, 0.9999]))


def signs(shapes):
    """The order turns round at every step; zeros of both signs are equal."""
    for t, (scores, v) in enumerate(drift(shapes)):
        yield [torch.where(S.abs() < 0.05, 0.0, S) * (-1) ** t for S in scores], v


@pytest.mark.parametrize("way", ["cpu", "cuda"])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("sequence", [drift, ties, jumps, signs])
def test_masks_are_those_of_sorting(sequence, scope, way):
    """Both ways, the CPU's and the GPU's; the latter is right on a CPU too."""
    torch.manual_seed(0)
    memory = [TopK() for _ in range(4)]
    for scores, v in sequence([(16, 16), (16, 64), (64, 16), (5, 3)]):
        scores = [S.to(GPU if way == "cuda" else "cpu") for S in scores]
        groups = [scores] if scope == "global" else [[S] for S in scores]
        for group, masks in zip(groups, top_of_groups(groups, v, memory, torch.device(way))):
            assert [M.shape for M in masks] == [S.shape for S in group]
            kept = torch.cat([M.flatten() for M in masks]).cpu().numpy()
            assert np.array_equal(kept, by_sorting(group, v))


def test_few_scores_are_put_in_order(monkeypatch):
    """The point of it: after the first step all but a few are only counted."""
    torch.manual_seed(0)
    looked_at, order_statistics = [], ranks.order_statistics
    monkeypatch.setattr(
        ranks, "order_statistics",
        lambda x, places: looked_at.append(len(x)) or order_statistics(x, places))
    top_k = TopK()
    for [S], v in drift([(100, 200)]):
        top_k.masks([S], round(v * S.numel()))
    assert looked_at[0] == 20_000  # v = 1 ranks nothing, so this is the second step
    assert sorted(looked_at)[len(looked_at) // 2] < 1_500


def test_not_a_number_stops_nothing():
    """The loop notices by the loss; until then masks are made of whatever is there."""
    top_k = TopK()
    for bad in (0, 1, 99, 0):
        S = torch.randn(100)
        S[:bad] = torch.nan
        for k in (30, 70):
            [M] = top_k.masks([S], k)
            [on_gpu] = ranks.top_of_rows(S[None], k)
            assert bad or (M.sum() == k and torch.equal(M, on_gpu))


@pytest.mark.parametrize("method", ["magnitude", "movement", "soft_movement"])
def test_a_step_on_a_gpu_waits_for_few_numbers(method, monkeypatch):
    """Whenever Python reads a number from it, a GPU runs dry; masks of one matrix after the other
    would read two for each."""
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            Reads.count += function in (torch.ops.aten._local_scalar_dense.default,
                                        torch.ops.aten.nonzero.default)
            return function(*args, **kwargs or {})

    run, tolist = Trainee(Size(4, 64, 2, 5), method, "fp32", "cpu"), torch.Tensor.tolist
    monkeypatch.setattr(masking, "top_of_groups",  # the GPU's way, which a CPU can go too
                        lambda groups, v, memory, device: ranks.at_once(list(groups), v))
    monkeypatch.setattr(torch.Tensor, "tolist",
                        lambda x: setattr(Reads, "count", Reads.count + 1) or tolist(x))
    with Reads():
        run.step(3)
    assert 0 < Reads.count <= 3 * 5
