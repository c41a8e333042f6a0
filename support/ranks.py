"""The k-th largest of many scores, exactly and in hardly more time than it takes to read them.

masking.top_v ranks every pruned matrix at every step. Sorting would cost more than the model
itself does; but scores move little in one step, so the last cuts say where to look for the next.
"""

import math

import numpy as np
import torch
from torch import Tensor


def between(S: Tensor, low: float, high: float) -> tuple[int, Tensor]:
    """How many entries are above `high`, and the entries from `low` to `high` themselves."""
    if S.device.type == "cpu":  # numpy compares and counts in a fifth of torch's time
        x = S.detach().numpy().ravel()
        higher = x > high
        return np.count_nonzero(higher), torch.from_numpy(x[(x >= low) ^ higher])
    higher = high < S
    return int(higher.sum()), S[(low <= S) ^ higher]


def ordered(x: Tensor, places: list[int]) -> list[float]:
    """What stands at `places` of x (n) in ascending order, on a CPU by selection, not sorting."""
    if x.device.type == "cpu":
        return np.partition(x.detach().numpy(), places)[places].tolist()
    return x.sort().values[places].tolist()


class Cut:
    """Finds the k-th largest of many scores, again and again while scores and k move.

    What it finds is exact and does not depend on what it found before; only its speed does. It
    guesses a bracket around the cut from the last two: one pass counts the scores above it and
    takes out those inside. If the k-th largest is one of these few, nothing else need be put in
    order; if not, the next bracket is wider.
    """

    narrow, wide = 1 / 500, 1 / 8  # of all scores: what a bracket should hold on either side

    def __init__(self):
        self.cut, self.bracket, self.side = None, (math.inf, math.inf), 5 * self.narrow

    def find(self, scores: list[Tensor], k: int) -> tuple[float, int]:
        """The k-th largest entry, and how many entries more than k are at least as large."""
        n = sum(S.numel() for S in scores)
        low, high = self.bracket
        found = [between(S, low, high) for S in scores]
        above, x = sum(higher for higher, _ in found), torch.cat([inside for _, inside in found])
        if above < k <= above + len(x):
            held = len(x)
            self.side = max(self.narrow, 0.93 * self.side)
        else:
            above, x = 0, torch.cat([S.detach().flatten() for S in scores])
            self.side = min(self.wide, 2 * self.side)
            first = max(0, n - k - math.ceil(self.side * n))
            last = min(n - 1, n - k + math.ceil(self.side * n))
            (low, high), held = ordered(x, [first, last]), last - first
        [cut] = ordered(x, [above + len(x) - k])
        reach = self.side * n * (high - low) / max(1, held)  # as densely as inside this bracket
        ahead = cut + (0.0 if self.cut is None else cut - self.cut)
        self.cut, self.bracket = cut, (ahead - reach, ahead + reach)
        return cut, above + int((x >= cut).sum()) - k


def drop_ties(scores: list[Tensor], masks: list[Tensor], lowest: float, extra: int) -> None:
    """Clear `extra` entries of the masks among those whose score is `lowest`.

    Which ones is a multiplicative hash of their positions: the same every time, and spread over
    rows and columns more evenly than by chance (not at a few shapes, such as 144 × 144).
    """
    starts = np.cumsum([0] + [S.numel() for S in scores]).tolist()
    ties = torch.cat([(S.flatten() == lowest).nonzero().flatten() + start
                      for S, start in zip(scores, starts)])
    dropped = ties[(ties * 2654435761 % 2**32).argsort()[:extra]]
    for M, start in zip(masks, starts):
        own = dropped[(start <= dropped) & (dropped < start + M.numel())]
        M.view(-1)[own - start] = 0.0
