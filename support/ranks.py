"""Masks of the k largest of many scores, exactly, in little more time than it takes to read them.

Ranked methods need new masks of all matrices at every step. Sorting would cost more than the model
itself. But scores move little in one step, so the last two answers say where to look next.
"""

import math

import numpy as np
import torch
from torch import Tensor


def top_of_groups(groups, v: float, memory: list["TopK"], device: torch.device):
    """Bool masks of the round(v·n) largest of the n scores of each group of tensors.

    groups: an iterable of lists of tensors; memory: a TopK for each group, which makes the next
    call faster on a CPU.
    """
    if device.type != "cpu":
        return at_once(list(groups), v)
    return (top_k.masks(scores, round(v * sum(S.numel() for S in scores)))
            for scores, top_k in zip(groups, memory))


class TopK:
    """The k largest of many scores, again and again while the scores and k move; for a CPU.

    The masks are exact and do not depend on earlier ones; only the speed does. The last two k-th
    largest scores give a bracket in which the next one should lie. One pass marks the scores
    above it and finds those inside. If the k-th largest is among these few, only they have to be
    ordered; if not, all scores are, and the next bracket is wider. Scores are numpy arrays here:
    numpy compares, counts and indexes in a fifth of torch's time.
    """

    narrowest, widest = 1 / 500, 1 / 8  # half a bracket's width, as a share of all scores

    def __init__(self):
        self.last, self.bracket, self.half_width = None, (math.inf, math.inf), 5 * self.narrowest

    def masks(self, scores: list[Tensor], k: int) -> list[Tensor]:
        """Bool masks of the k largest entries of all `scores`.

        Among scores equal to the k-th largest a hash of the positions chooses: the same ones every
        time, spread over rows and columns.
        """
        if k == 0 or k == sum(S.numel() for S in scores):
            return [torch.full_like(S, k > 0, dtype=torch.bool) for S in scores]
        wide = (S.float() if S.dtype == torch.bfloat16 else S for S in scores)  # numpy has no bf16
        flat = [S.detach().numpy().ravel() for S in wide]
        masks, inside, values = compare(flat, *self.bracket)
        candidates, above = np.concatenate(values), sum(map(np.count_nonzero, masks))
        if above < k <= above + len(candidates):
            self.half_width = max(self.narrowest, 0.93 * self.half_width)
            [kth] = order_statistics(candidates, [above + len(candidates) - k])
            self.aim(kth, *self.bracket, len(candidates), sum(map(len, flat)))
        else:
            kth, low, high = self.search_all(np.concatenate(flat), k)
            masks, inside, values = compare(flat, low, high)
            candidates, above = np.concatenate(values), sum(map(np.count_nonzero, masks))
        for mask, where, value in zip(masks, inside, values):
            mask[where] = value >= kth
        extra = above + np.count_nonzero(candidates >= kth) - k
        if extra > 0:
            drop_ties(masks, inside, values, kth, extra)
        return [torch.from_numpy(mask).view(S.shape) for S, mask in zip(scores, masks)]

    def search_all(self, x: np.ndarray, k: int) -> tuple[float, float, float]:
        """→ the k-th largest of x (n), and a bracket around it."""
        n = len(x)
        self.half_width = min(self.widest, 2 * self.half_width)
        first = max(0, n - k - math.ceil(self.half_width * n))
        last = min(n - 1, n - k + math.ceil(self.half_width * n))
        low, kth, high = order_statistics(x, [first, n - k, last])
        self.aim(kth, low, high, last - first, n)
        return kth, low, high

    def aim(self, kth: float, low: float, high: float, held: int, n: int) -> None:
        """Set the next bracket: around where the k-th largest is heading, and as wide as
        2 · half_width · n scores if they lie as densely as the `held` ones in [low, high]."""
        reach = self.half_width * n * (high - low) / max(1, held)
        ahead = kth + (0.0 if self.last is None else kth - self.last)
        self.last, self.bracket = kth, (ahead - reach, ahead + reach)


def order_statistics(x: np.ndarray, at: list[int]) -> list[float]:
    """The values at these places of x (n) in ascending order; by selection, not sorting."""
    return np.partition(x, at)[at].tolist()


def compare(flat: list, low: float, high: float) -> tuple[list, list, list]:
    """For each array of scores (n): a bool mask (n) of those above `high`, the places of those in
    [low, high], and their values."""
    masks = [x > high for x in flat]
    inside = [np.flatnonzero((x >= low) ^ above) for x, above in zip(flat, masks)]
    return masks, inside, [x[where] for x, where in zip(flat, inside)]


def scattered(places, count: int):
    """`count` of these places (n), of an array or a tensor, chosen by a multiplicative hash.

    It spreads the others more evenly than chance would (except at a few shapes, such as 144 × 144).
    """
    return places[(places * 2654435761 % 2**32).argsort()[:count]]


def drop_ties(masks: list, inside: list, values: list, kth: float, extra: int) -> None:
    """Clear `extra` of the entries that equal `kth`; inside, values: as from `compare`."""
    starts = np.cumsum([0] + [len(mask) for mask in masks]).tolist()
    ties = np.concatenate([where[value == kth] + start
                           for where, value, start in zip(inside, values, starts)])
    dropped = scattered(ties, extra)
    for mask, start in zip(masks, starts):
        of_this_mask = dropped[(start <= dropped) & (dropped < start + len(mask))]
        mask[of_this_mask - start] = False


def at_once(groups: list[list[Tensor]], v: float) -> list[list[Tensor]]:
    """The same for a GPU, where time goes into waiting for the device whenever Python has to know
    a number: groups of the same size take one wait together."""
    flat = [torch.cat([S.detach().flatten() for S in group]) for group in groups]  # (n) each
    masks = {}
    for n in {len(x) for x in flat}:
        alike = [i for i, x in enumerate(flat) if len(x) == n]
        masks |= zip(alike, top_of_rows(torch.stack([flat[i] for i in alike]), round(v * n)))
    parts = [masks[i].split([S.numel() for S in group]) for i, group in enumerate(groups)]
    return [[part.view(S.shape) for part, S in zip(*pair)] for pair in zip(parts, groups)]


def top_of_rows(x: Tensor, k: int) -> Tensor:
    """Bool mask (G, n) of the k largest of each row of x (G, n); ties as in TopK."""
    n = x.shape[1]
    if k == 0 or k == n:
        return torch.full_like(x, k > 0, dtype=torch.bool)
    if x.device.type == "mps":  # whose topk is for small k
        kth = x.sort(dim=1).values[:, n - k, None]  # (G, 1)
    elif 2 * k <= n:  # topk sets many blocks of a GPU to work on a row, kthvalue but one
        kth = x.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)  # (G, 1)
    else:  # the k-th largest is the largest of the n − k + 1 smallest, which are fewer
        kth = x.topk(n - k + 1, dim=1, largest=False, sorted=False).values.amax(1, keepdim=True)
    masks = x >= kth
    extra = masks.sum(dim=1) - k  # (G)
    for row, too_many in enumerate(extra.tolist()):
        if too_many > 0:
            ties = (x[row] == kth[row]).nonzero().flatten()
            masks[row, scattered(ties, too_many)] = False
    return masks
