"""Finds the λ of soft movement and L0 for a density that is asked for; the paper only fixes λ.

    python train.py --task mnli --method soft_movement --keep 0.05
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


class PenaltySearch:
    """λ at every step, chosen so that training ends at density v.

    The density itself cannot be steered: it stands still until the first scores have reached the
    value that they must exceed to stay, and every correction made meanwhile overshoots. But let q
    be the score that a share v of the scores exceeds. The final density is v exactly when q ends
    at `method.kept_above`, and q moves from the first step on. So λ steers the speed of q: from
    wherever q is, straight to `kept_above`, to be there at T. From T − t_f on, when learning rates
    are low and little of the way is left, λ stays as it is.

    Args:
        method: has penalty(S), kept_above and floor (masking.Method).
        v: the share of weights to keep, in (0, 1].
        schedule: masking.Schedule.
        score_lr: step → the scores' learning rate, which says how far q can still travel.
    """

    first_pull = 0.5  # the penalty's gradient at q over the task's
    gain, fastest = 10.0, 0.06  # corrections of log pull per ramp, and their limit at one step
    state = ("penalty", "pull", "speed", "task_rms", "q", "first_speed", "wanted_speed")

    def __init__(self, method, v: float, schedule, score_lr: Callable[[int], float]):
        self.method, self.v, self.schedule, self.score_lr = method, v, schedule, score_lr
        self.ramp = schedule.T - schedule.t_i - schedule.t_f
        self.penalty = 0.0  # λ at the last step
        self.pull = self.first_pull  # the penalty's gradient at q, in units of the task's
        self.speed = 0.0  # of q, in learning rates a step; Adam cannot exceed about 1
        self.task_rms = 0.0  # of the task's gradient of a score
        self.q = -math.inf  # until the first step
        self.first_speed = 0.0  # the speed wanted at first
        self.wanted_speed = 0.0

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in self.state}

    def load_state_dict(self, saved: dict) -> None:
        vars(self).update(saved)

    def quantile(self, scores: list[Tensor]) -> float:
        """q, from a sample of about 2^17 scores."""
        every = max(1, sum(S.numel() for S in scores) // 2**17)
        while math.gcd(every, math.prod(S.shape[-1] for S in scores)) > 1:
            every += 1  # otherwise the sample would hold only some of the columns
        parts = [S.detach().flatten()[::every] for S in scores]
        sample = torch.cat(parts)
        v = self.v - self.kept_by_floor(sample, [len(part) for part in parts]) / len(sample)
        k = max(1, round(v * len(sample)))
        return float(sample.kthvalue(len(sample) + 1 - k).values)

    def kept_by_floor(self, sample: Tensor, sizes: list[int]) -> float:
        """How many entries stay only because their matrix would otherwise fall below the
        method's floor. `sizes`: how many entries of the sample each matrix has."""
        if not self.method.floor:
            return 0.0
        above = torch.stack([part.count_nonzero() for part in (sample > self.q).split(sizes)])
        least = self.method.floor * torch.tensor(sizes, device=sample.device)
        return float((least - above).clamp(min=0).sum())

    def update(self, t: int, scores: list[Tensor], task_rms: float) -> float:
        """λ for step t, given the root mean square of the task's gradient of the scores."""
        if t >= self.schedule.T - self.schedule.t_f:
            return self.penalty
        before, self.q = self.q, self.quantile(scores)
        memory, lr = 0.9, self.score_lr(t)
        self.task_rms = (task_rms if before == -math.inf
                         else memory * self.task_rms + (1 - memory) * task_rms)
        if before > -math.inf and lr > 0:
            self.speed += ((self.q - before) / lr - self.speed) / 10
        if t < self.schedule.t_i:
            return 0.0
        if lr > 0:
            self.adjust_pull(t, lr)
        n = sum(S.numel() for S in scores)
        # pull = (λ R'(q) / n) / task_rms, solved for λ; R'(q) / n is the penalty's gradient of a
        # score at q, as the mean over matrices and entries makes it on average
        self.penalty = self.pull * self.task_rms * n / max(1e-6, self.slope())
        return self.penalty

    def adjust_pull(self, t: int, lr: float) -> None:
        """Pull harder when q is slower than the straight way to `kept_above` asks for."""
        reach = lr * (self.schedule.T - t) / 2  # rates still to come, the warm-up being over
        wanted = max(-1.0, min(1.0, (self.method.kept_above - self.q) / reach))
        self.first_speed = self.first_speed or max(abs(wanted), 1e-3)
        # scores start above kept_above, so q's speed is negative; it is proportional to the pull,
        # which can therefore follow the wanted speed without waiting for an error
        if max(self.wanted_speed, wanted) < 0:
            self.pull *= min(2.0, wanted / self.wanted_speed)
        self.wanted_speed = wanted
        # measured in units of the first speed, or a short way would be run too fast
        error = max(-2.0, min(2.0, (self.speed - wanted) / self.first_speed))
        self.pull *= math.exp(min(self.gain / self.ramp, self.fastest) * error)

    def slope(self) -> float:
        """R'(q): how strongly the penalty pulls at a score of q."""
        q = torch.tensor(self.q, requires_grad=True)
        with torch.enable_grad():
            [slope] = torch.autograd.grad(self.method.penalty(q), q)
        return float(slope)
