"""Masks of the k largest of many scores, exactly, in little more time than it takes to read them.

masking.top_v ranks every pruned matrix at every step. Sorting would cost more than the model
itself. But scores move little in one step, so the last two answers say where to look next.
"""

import math

import numpy as np
import torch
from torch import Tensor

# On a CPU, scores are numpy arrays here: numpy compares, counts and indexes in a fifth of torch's
# time. On a GPU they stay tensors. Where the two differ in their names, one of these chooses.


def flatten(S: Tensor) -> np.ndarray | Tensor:
    return S.detach().numpy().ravel() if S.device.type == "cpu" else S.detach().flatten()


def join(parts: list) -> np.ndarray | Tensor:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(parts)


def count(mask) -> int:
    return np.count_nonzero(mask) if isinstance(mask, np.ndarray) else int(mask.sum())


def places(mask) -> np.ndarray | Tensor:
    return np.flatnonzero(mask) if isinstance(mask, np.ndarray) else mask.nonzero().flatten()


def order_statistics(x, at: list[int]) -> list[float]:
    """The values at these places of x (n) in ascending order; on a CPU by selection, not sorting.
    """
    return (np.partition(x, at) if isinstance(x, np.ndarray) else x.sort().values)[at].tolist()


class TopK:
    """The k largest of many scores, again and again while the scores and k move.

    The masks are exact and do not depend on earlier ones; only the speed does. The last two k-th
    largest scores give a bracket in which the next one should lie. One pass marks the scores
    above it and finds those inside. If the k-th largest is among these few, only they have to be
    ordered; if not, all scores are, and the next bracket is wider.
    """

    narrowest, widest = 1 / 500, 1 / 8  # half a bracket's width, as a share of all scores

    def __init__(self):
        self.last, self.bracket, self.half_width = None, (math.inf, math.inf), 5 * self.narrowest

    def masks(self, scores: list[Tensor], k: int) -> list[Tensor]:
        """Bool masks of the k largest entries of all `scores`, 0 < k < their number.

        Among scores equal to the k-th largest a hash of the positions chooses: the same ones every
        time, spread over rows and columns.
        """
        flat = [flatten(S) for S in scores]
        masks, inside, values = compare(flat, *self.bracket)
        candidates, above = join(values), sum(map(count, masks))
        if above < k <= above + len(candidates):
            self.half_width = max(self.narrowest, 0.93 * self.half_width)
            [kth] = order_statistics(candidates, [above + len(candidates) - k])
            self.aim(kth, *self.bracket, len(candidates), sum(map(len, flat)))
        else:
            kth, low, high = self.search_all(join(flat), k)
            masks, inside, values = compare(flat, low, high)
            candidates, above = join(values), sum(map(count, masks))
        for mask, where, value in zip(masks, inside, values):
            mask[where] = value >= kth
        extra = above + count(candidates >= kth) - k
        if extra > 0:
            drop_ties(masks, inside, values, kth, extra)
        return [torch.as_tensor(mask).view(S.shape) for S, mask in zip(scores, masks)]

    def search_all(self, x: Tensor, k: int) -> tuple[float, float, float]:
        """→ the k-th largest of x (n), and a bracket around it."""
        n = len(x)
        self.half_width = min(self.widest, 2 * self.half_width)
        first = max(0, n - k - math.ceil(self.half_width * n))
        last = min(n - 1, n - k + math.ceil(self.half_width * n))
        low, kth, high = order_statistics(x, [first, n - k, last])
        self.aim(kth, low, high, last - first, n)
        return kth, low, high

    def aim(self, kth: float, low: float, high: float, held: int, n: int) -> None:
        """Set the next bracket, where n scores are as dense as the `held` ones in [low, high]."""
        reach = self.half_width * n * (high - low) / max(1, held)
        ahead = kth + (0.0 if self.last is None else kth - self.last)
        self.last, self.bracket = kth, (ahead - reach, ahead + reach)


def compare(flat: list, low: float, high: float) -> tuple[list, list, list]:
    """Of each of the scores (n): bool (n), which are above `high`; the places of those in
    [low, high]; and the values there."""
    masks = [x > high for x in flat]
    inside = [places((x >= low) ^ above) for x, above in zip(flat, masks)]
    return masks, inside, [x[where] for x, where in zip(flat, inside)]


def drop_ties(masks: list, inside: list, values: list, kth: float, extra: int) -> None:
    """Clear `extra` of the entries that equal `kth`; inside, values: as from `compare`.

    The hash is multiplicative; it spreads what stays more evenly than chance would (except at a
    few shapes, such as 144 × 144).
    """
    starts = np.cumsum([0] + [len(mask) for mask in masks]).tolist()
    ties = join([where[value == kth] + start
                 for where, value, start in zip(inside, values, starts)])
    dropped = ties[(ties * 2654435761 % 2**32).argsort()[:extra]]
    for mask, start in zip(masks, starts):
        of_this_mask = dropped[(start <= dropped) & (dropped < start + len(mask))]
        mask[of_this_mask - start] = False
