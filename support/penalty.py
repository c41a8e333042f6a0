"""λ for a density asked for: `--keep v` with soft movement and L0, which the paper does not have.

    python train.py --task mnli --method soft_movement --keep 0.05
"""

import math

import torch
from torch import Tensor

from support.ranks import Cut


class PenaltyControl:
    """Finds the λ of soft movement and L0 that ends at density v, while training.

    Density itself cannot be steered: it stands still until the first scores have travelled to the
    cut, and meanwhile any correction winds up. But density = v exactly when q = cut, where q is
    the score that a share v of the scores exceeds (less what a floor keeps in emptier matrices);
    and q moves from the first step on. So λ steers the speed of q, at every step straight from
    where q is to the cut, to be there at T − t_f.
    """

    start, gain, fastest = 0.5, 10.0, 0.06
    state = ("pull", "speed", "task", "q", "pace", "wanted")  # what changes from step to step

    def __init__(self, v: float, method, schedule):
        self.v, self.method, self.schedule = v, method, schedule
        self.ramp = schedule.T - schedule.t_i - schedule.t_f
        self.pull = self.start  # the penalty's gradient at q, in units of the task's
        self.speed = 0.0  # of q, in learning rates a step: Adam's bound is about 1
        self.task = 0.0  # the task's gradient of a score, rms
        self.q = None
        self.pace = None  # the speed wanted at first
        self.wanted = 0.0  # the speed wanted now
        self.near = Cut()

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in self.state}

    def load_state_dict(self, saved: dict) -> None:
        vars(self).update(saved)

    def quantile(self, scores: list[Tensor]) -> float:
        every = max(1, sum(S.numel() for S in scores) // 2**17)
        while math.gcd(every, math.prod(S.shape[-1] for S in scores)) > 1:
            every += 1  # or it would only ever meet some of the columns
        sample = torch.cat(parts := [S.detach().flatten()[::every] for S in scores])
        v = self.v - self.kept_by_floor(sample, [len(part) for part in parts]) / len(sample)
        return self.near.find([sample], max(1, round(v * len(sample))))[0]

    def kept_by_floor(self, sample: Tensor, sizes: list[int]) -> float:
        """How many entries the method keeps though they are not above q, in matrices that hold
        fewer than its floor. `sizes`: how many of the sample are of each matrix."""
        floor = getattr(self.method, "floor", 0.0)
        if self.q is None or not floor:
            return 0.0
        above = torch.stack([part.count_nonzero() for part in (sample > self.q).split(sizes)])
        least = floor * torch.tensor(sizes, device=sample.device)
        return float((least - above).clamp(min=0).sum())

    def update(self, t: int, scores: list[Tensor], task: float, lr: float) -> float:
        """λ for step t, from the task's gradient of the scores (rms) and their learning rate."""
        before, self.q = self.q, self.quantile(scores)
        memory = 0.9
        self.task = task if before is None else memory * self.task + (1 - memory) * task
        if before is not None and lr > 0:
            self.speed += ((self.q - before) / lr - self.speed) / 10
        if t < self.schedule.t_i:
            return 0.0
        if lr > 0:
            end = self.schedule.T - self.schedule.t_f
            left = max(end - t, 0.1 * self.ramp)  # steps; below what rates still add up to
            reach = lr * left * (1 - left / 2 / max(left, self.schedule.T - t))
            wanted = max(-1.0, min(1.0, (self.method.cut - self.q) / reach))
            self.pace = self.pace or max(abs(wanted), 1e-3)
            # scores start above the cut, so q's speed is negative; it goes with the pull, which
            # therefore follows the speed wanted without waiting for an error
            if max(self.wanted, wanted) < 0:
                self.pull *= min(2.0, wanted / self.wanted)
            self.wanted = wanted
            # errors count in units of the pace, or a short way would be run too fast
            error = max(-2.0, min(2.0, (self.speed - wanted) / self.pace))
            self.pull *= math.exp(min(self.gain / self.ramp, self.fastest) * error)
        n, slope = sum(S.numel() for S in scores), float(self.method.slope(torch.tensor(self.q)))
        return self.pull * self.task * n / max(1e-6, slope)
