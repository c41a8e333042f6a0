"""The k-th largest of many scores, exactly, in little more time than it takes to read them.

masking.top_v ranks every pruned matrix at every step. Sorting would cost more than the model
itself. But scores move little in one step, so the last two answers say where to look next.
"""

import math

import numpy as np
import torch
from torch import Tensor


def inside_bracket(S: Tensor, low: float, high: float) -> tuple[int, Tensor]:
    """→ how many entries are above `high`, and those entries that lie in [low, high]."""
    if S.device.type == "cpu":  # numpy compares and counts in a fifth of torch's time
        x = S.detach().numpy().ravel()
        higher = x > high
        return np.count_nonzero(higher), torch.from_numpy(x[(x >= low) ^ higher])
    higher = high < S
    return int(higher.sum()), S[(low <= S) ^ higher]


def order_statistics(x: Tensor, places: list[int]) -> list[float]:
    """The values at `places` of x (n) in ascending order; on a CPU by selection, not sorting."""
    if x.device.type == "cpu":
        return np.partition(x.detach().numpy(), places)[places].tolist()
    return x.sort().values[places].tolist()


class KthLargest:
    """Finds the k-th largest of many scores, again and again while the scores and k move.

    The answer is exact and does not depend on earlier answers; only the speed does. The last two
    answers give a bracket in which the next one should lie. One pass counts the scores above it
    and takes out those inside. If the k-th largest is among them, only these few have to be
    ordered; if not, all scores are, and the next bracket is wider.
    """

    narrowest, widest = 1 / 500, 1 / 8  # half a bracket's width, as a share of all scores

    def __init__(self):
        self.last, self.bracket, self.half_width = None, (math.inf, math.inf), 5 * self.narrowest

    def find(self, scores: list[Tensor], k: int) -> tuple[float, int]:
        """→ the k-th largest entry, and how many entries beyond k are at least as large."""
        n = sum(S.numel() for S in scores)
        low, high = self.bracket
        parts = [inside_bracket(S, low, high) for S in scores]
        above = sum(count for count, _ in parts)
        candidates = torch.cat([inside for _, inside in parts])
        if above < k <= above + len(candidates):
            held = len(candidates)
            self.half_width = max(self.narrowest, 0.93 * self.half_width)
        else:
            above, candidates = 0, torch.cat([S.detach().flatten() for S in scores])
            self.half_width = min(self.widest, 2 * self.half_width)
            first = max(0, n - k - math.ceil(self.half_width * n))
            last = min(n - 1, n - k + math.ceil(self.half_width * n))
            (low, high), held = order_statistics(candidates, [first, last]), last - first
        [kth] = order_statistics(candidates, [above + len(candidates) - k])
        # the scores near the answer lie about as densely as those of this bracket
        reach = self.half_width * n * (high - low) / max(1, held)
        ahead = kth + (0.0 if self.last is None else kth - self.last)
        self.last, self.bracket = kth, (ahead - reach, ahead + reach)
        return kth, above + int((candidates >= kth).sum()) - k


def drop_ties(scores: list[Tensor], masks: list[Tensor], kth: float, extra: int) -> None:
    """Clear `extra` entries of the masks among those whose score equals `kth`.

    A multiplicative hash of the positions chooses them: the same ones every time, spread over
    rows and columns more evenly than by chance (except at a few shapes, such as 144 × 144).
    """
    starts = np.cumsum([0] + [S.numel() for S in scores]).tolist()
    ties = torch.cat([(S.flatten() == kth).nonzero().flatten() + start
                      for S, start in zip(scores, starts)])
    dropped = ties[(ties * 2654435761 % 2**32).argsort()[:extra]]
    for M, start in zip(masks, starts):
        of_this_mask = dropped[(start <= dropped) & (dropped < start + M.numel())]
        M.view(-1)[of_this_mask - start] = 0.0
