"""Masks of the k largest of many scores, exactly, in little more time than it takes to read them.

masking.top_v ranks every pruned matrix at every step. Sorting would cost more than the model
itself. But scores move little in one step, so the last two answers say where to look next.
"""

import math

import numpy as np
import torch
from torch import Tensor


def compare(x: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """x (n) → which entries are above `high`, bool (n), and the places of those in [low, high]."""
    if x.device.type == "cpu":  # numpy compares and counts in a fifth of torch's time
        values = x.numpy()
        above = values > high
        return torch.from_numpy(above), torch.from_numpy(np.flatnonzero((values >= low) ^ above))
    above = x > high
    return above, ((x >= low) ^ above).nonzero().flatten()


def order_statistics(x: Tensor, places: list[int]) -> list[float]:
    """The values at `places` of x (n) in ascending order; on a CPU by selection, not sorting."""
    if x.device.type == "cpu":
        return np.partition(x.numpy(), places)[places].tolist()
    return x.sort().values[places].tolist()


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
        flat = [S.detach().flatten() for S in scores]
        parts = [compare(x, *self.bracket) for x in flat]
        candidates = torch.cat([x[inside] for x, (_, inside) in zip(flat, parts)])
        above = sum(int(torch.count_nonzero(mask)) for mask, _ in parts)
        if above < k <= above + len(candidates):
            self.half_width = max(self.narrowest, 0.93 * self.half_width)
            [kth] = order_statistics(candidates, [above + len(candidates) - k])
            self.aim(kth, *self.bracket, len(candidates), sum(map(len, flat)))
        else:
            kth, low, high = self.search_all(torch.cat(flat), k)
            parts = [compare(x, low, high) for x in flat]
        for x, (mask, inside) in zip(flat, parts):
            mask[inside] = x[inside] >= kth
        drop_ties(flat, parts, kth, k)
        return [mask.view(S.shape) for S, (mask, _) in zip(scores, parts)]

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


def drop_ties(flat: list[Tensor], parts: list[tuple[Tensor, Tensor]], kth: float, k: int) -> None:
    """Clear as many of the entries that equal `kth` as the masks hold too many.

    flat: scores (n) each; parts: their masks, bool (n), and the places where `kth` can be.
    The hash is multiplicative; it spreads what stays more evenly than chance would (except at a
    few shapes, such as 144 × 144).
    """
    extra = sum(int(torch.count_nonzero(mask)) for mask, _ in parts) - k
    if extra <= 0:
        return
    starts = np.cumsum([0] + [len(x) for x in flat]).tolist()
    ties = torch.cat([inside[x[inside] == kth] + start
                      for x, (_, inside), start in zip(flat, parts, starts)])
    dropped = ties[(ties * 2654435761 % 2**32).argsort()[:extra]]
    for (mask, _), start in zip(parts, starts):
        of_this_mask = dropped[(start <= dropped) & (dropped < start + len(mask))]
        mask[of_this_mask - start] = False
