"""Movement pruning and its rivals: Sanh, Wolf, Rush (2020), arXiv 2005.07683, Sections 3 and 4.

    python train.py --task mnli --method movement --keep 0.1

The paper's letters: W weights, S scores, M mask, W' = W ⊙ M, v share of weights kept, τ cut-off
on scores, λ penalty, α_S learning rate of the scores, T steps in all. Code writes W_masked for W'.

How it works. The model computes with W' and nothing else: its own weight tensors hold W', and
the Pruner keeps W, S and M beside it. One optimiser step is

    refresh(t)     M from S (or from W), then W' = W ⊙ M     Eqs. (1), (4), (5)
    the model's forward and backward pass                    leaves dL/dW' in weight.grad
    backward(t)    dL/dW and dL/dS from dL/dW'               Eq. (2)
    an ordinary optimiser step on W, S and everything else

so masks cost nothing inside the model, and the model knows nothing of them. A method is one small
class below: what is scored, how scores become a mask, and how the mask's gradient gets back.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

# ---------------------------------------------------------------------------- the schedule


@dataclass(frozen=True)
class Schedule:
    """Steps: hold everything for t_i, ramp, then stay at the final value for the last t_f.

    T, t_i and t_f are numbers of optimiser steps.
    """

    T: int
    t_i: int
    t_f: int

    def remaining(self, t: int) -> float:
        """1 up to t_i, falling as a cubic to 0 at T − t_f."""
        if t < self.t_i:
            return 1.0
        if t >= self.T - self.t_f:
            return 0.0
        return (1 - (t - self.t_i) / (self.T - self.t_i - self.t_f)) ** 3

    def keep(self, t: int, v_f: float, v_i: float = 1.0) -> float:
        """Share of weights kept at step t."""
        # Eq. (5), its bracket read as 1 at t = t_i and 0 at t = T − t_f
        return v_f + (v_i - v_f) * self.remaining(t)

    def tau(self, t: int, tau_f: float) -> float:
        """Soft movement's cut-off on σ(S): 0 → τ_f along the same curve, as in the original."""
        return tau_f * (1 - self.remaining(t))


# ------------------------------------------------------------------------- Top_v, exactly


def kth_largest(x: Tensor, k: int) -> Tensor:
    """The k-th largest entry by selection, not by sorting: x (n) → scalar."""
    n = x.numel()
    if x.device.type == "cpu":  # numpy's selection takes half the time of torch's
        return torch.tensor(np.partition(x.detach().numpy(), n - k)[n - k])
    return x.kthvalue(n - k + 1).values


def top_v(S: Tensor, v: float) -> Tensor:
    """Mask of the round(v·n) largest of the n scores, of S's shape, 1.0 where kept.

    Exact under ties: of equal scores at the cut, those kept are scattered over the matrix by a
    fixed multiplicative hash of their positions, so that no rows or columns empty in clumps.
    """
    n, k = S.numel(), round(v * S.numel())
    if k == 0 or k == n:
        return torch.full_like(S, float(k == n))
    cut = kth_largest(S.flatten(), k)
    # Eq. (1): Top_v(S)_ij = 1 if S_ij is among the v·n highest, else 0
    M = (cut <= S).to(S.dtype)
    extra = int(M.sum(dtype=torch.float64)) - k
    if extra > 0:
        ties = (S.flatten() == cut).nonzero().flatten()
        scattered = (ties * 2654435761 % 2**32).argsort()
        M.view(-1)[ties[scattered[:extra]]] = 0.0
    return M


# ---------------------------------------------------------------------------- the methods
#
# A method says:
#   learned        does S get a gradient and a learning rate
#   ranked         is M = Top_v(scores), with v given by Eq. (5); if not, mask() makes it
#   init           the value that S starts from
# and has the functions that it needs of
#   scores(W, S)   what is ranked                        (ranked methods)
#   mask(S, tau, training)   M and dM/dS                 (the others; dM/dS None means 1)
#   penalty(S)     R(S) of one matrix, a mean over its entries
#   cut            the final cut on S                    (methods with a penalty)


class Dense:
    """No mask: plain fine-tuning, the reference line."""

    learned, ranked = False, False


class Random:
    """M = Top_v of noise drawn once: what a mask is worth that knows nothing."""

    learned, ranked = False, True

    def scores(self, W, S):
        return S


class Magnitude:
    """§3, 0th order: S = |W|. W goes on training, so a pruned weight can come back."""

    learned, ranked = False, True

    def scores(self, W, S):
        return W.abs()


class Movement:
    """§4, 1st order: M = Top_v(S), S learned through the straight-through estimator, Eq. (2)."""

    learned, ranked, init = True, True, 0.0

    def scores(self, W, S):
        return S


class SoftMovement:
    """§4: M = (S > τ) with one τ for all matrices, plus λ R(S), R = Σ σ(S).

    As in the original code σ(S) is compared with τ, R averages instead of summing (so the paper's
    published λ apply), and no matrix falls under 0.5 % of its entries.
    """

    learned, ranked, init = True, False, 0.0
    tau_f = 0.1
    floor = 0.005
    cut = math.log(tau_f / (1 - tau_f))  # the final cut on S itself: σ(cut) = τ_f

    def mask(self, S, tau, training):
        cut = math.log(tau / (1 - tau)) if tau > 0 else -math.inf
        M = (cut < S).to(S.dtype)  # σ(S) > τ
        if M.mean() < self.floor:
            M = top_v(S, self.floor)
        return M, None

    def penalty(self, S):
        return S.sigmoid().mean()


class L0:
    """Louizos, Welling, Kingma (2017): M is a random hard concrete gate, S its log α.

    b temperature; (l, r) the stretch beyond [0, 1], which puts mass on exactly 0 and 1.
    """

    learned, ranked, init = True, False, 2.197  # σ(2.197) = 0.9: nearly all gates open
    b, l, r = 2 / 3, -0.1, 1.1  # noqa: E741 (the paper's letters)
    cut = math.log(-l / r)  # at test time a gate is open where S > cut

    def mask(self, S, tau, training):
        if not training:
            # M̂ = min(1, ReLU((r − l) σ(S) + l))
            return ((self.r - self.l) * S.sigmoid() + self.l).clamp(0, 1), None
        u = torch.rand_like(S).clamp_(1e-6, 1 - 1e-6)
        b, l, r = self.b, self.l, self.r  # noqa: E741
        # Eq. (4)
        S_bar = torch.sigmoid((torch.log(u) - torch.log(1 - u) + S) / b)
        Z = (r - l) * S_bar + l
        M = Z.clamp(0, 1)
        # dM/dS = f(S) = (r − l)/b · S̄ (1 − S̄) · 1{0 ≤ Z ≤ 1}
        dM_dS = (r - l) / b * S_bar * (1 - S_bar) * ((Z >= 0) & (Z <= 1))
        return M, dM_dS

    def penalty(self, S):
        # E[L0] = Σ σ(S − b log(−l/r)), here the mean
        return torch.sigmoid(S - self.b * math.log(-self.l / self.r)).mean()


METHODS = {
    "dense": Dense,
    "random": Random,
    "magnitude": Magnitude,
    "l0": L0,
    "movement": Movement,
    "soft_movement": SoftMovement,
}


# ------------------------------------------------------------- λ for a density asked for


class PenaltyControl:
    """Finds the λ of soft movement and L0 that ends at density v, while training.

    Density itself cannot be steered: it stands still until the first scores have travelled to the
    cut, and meanwhile any correction winds up. But density = v exactly when q = cut, where q is
    the score that a share v of the scores exceeds; and q moves from the first step on. So λ steers
    the speed of q, at every step straight from where q is to the cut, to be there at T − t_f.
    """

    start, gain, fastest = 0.5, 30.0, 0.06

    def __init__(self, v: float, method, schedule: Schedule):
        self.v, self.method, self.schedule = v, method, schedule
        self.ramp = schedule.T - schedule.t_i - schedule.t_f
        self.pull = self.start  # the penalty's gradient at q, in units of the task's
        self.speed = 0.0  # of q, in learning rates a step: Adam's bound is about 1
        self.task = 0.0  # the task's gradient of a score, rms
        self.q = None

    def quantile(self, scores: list[Tensor]) -> float:
        every = max(1, sum(S.numel() for S in scores) // 2**17)
        sample = torch.cat([S.flatten()[::every] for S in scores])
        return float(kth_largest(sample, max(1, round(self.v * sample.numel()))))

    def slope(self) -> float:
        """R'(q) of one score."""
        with torch.enable_grad():
            q = torch.tensor([self.q], requires_grad=True)
            return float(torch.autograd.grad(self.method.penalty(q), q)[0])

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
            left = max(end - t, 0.25 * self.ramp)  # steps, and below what rates still add up to
            reach = lr * left * (1 - left / 2 / max(left, self.schedule.T - t))
            wanted = max(-1.0, min(1.0, (self.method.cut - self.q) / reach))
            rate = min(self.gain / self.ramp, self.fastest)
            self.pull *= math.exp(rate * (self.speed - wanted))
        n = sum(S.numel() for S in scores)
        return self.pull * self.task * n / self.slope()


# ------------------------------------------------------------------------------ the Pruner


@dataclass
class Matrix:
    """One pruned matrix. `weight` is the model's own tensor and holds W' = W ⊙ M."""

    name: str
    weight: nn.Parameter
    W: nn.Parameter
    S: nn.Parameter | None = None
    M: Tensor | None = None
    dM_dS: Tensor | None = None  # None: 1, the straight-through estimator


class Pruner:
    """Attaches a method to named matrices of any model, from outside.

    Args:
        matrices: name → the model's parameter; for BERT see `encoder_matrices`.
        method: a name of METHODS, or an object of your own with the same functions.
        keep: v_f, the share of weights kept at the end, in (0, 1].
        schedule: when, in optimiser steps.
        scope: "local" ranks each matrix by itself, "global" all together (ranked methods).
        penalty: a fixed λ; None finds the λ that ends at `keep` (methods with a penalty).
    """

    def __init__(self, matrices, method, keep: float, schedule: Schedule,
                 scope: str = "local", penalty: float | None = None, seed: int = 0):
        self.method = METHODS[method]() if isinstance(method, str) else method
        self.keep, self.schedule, self.scope = keep, schedule, scope
        self.fixed_penalty, self.penalty = penalty, 0.0
        self.masked = not isinstance(self.method, Dense)
        noise = torch.Generator().manual_seed(seed)
        self.matrices = []
        for name, weight in matrices.items():
            m = Matrix(name, weight, weight)
            if self.masked:
                m.W = nn.Parameter(weight.detach().clone())
                m.M = torch.ones_like(m.W)
                m.S = self.first_scores(m.W, noise)
            self.matrices.append(m)
        self.control = None
        if self.has_penalty and penalty is None:
            self.control = PenaltyControl(keep, self.method, schedule)

    @property
    def has_penalty(self) -> bool:
        return hasattr(self.method, "penalty")

    def first_scores(self, W, noise):
        if self.method.learned:
            return nn.Parameter(torch.full_like(W, self.method.init))
        if isinstance(self.method, Random):
            return nn.Parameter(torch.rand(W.shape, generator=noise).to(W), requires_grad=False)
        return None

    def weights(self) -> list[nn.Parameter]:
        """What the optimiser should move in place of the model's matrices."""
        return [m.W for m in self.matrices]

    def scores(self) -> list[nn.Parameter]:
        """Learned scores: an optimiser group of their own, without weight decay."""
        return [m.S for m in self.matrices] if self.method.learned else []

    # -- once per optimiser step

    @torch.no_grad()
    def refresh(self, t: int, training: bool = True) -> None:
        """New masks for step t, and W' = W ⊙ M written into the model."""
        if not self.masked:
            return
        if self.method.ranked:
            self.rank(self.schedule.keep(t, self.keep))
        else:
            tau = self.schedule.tau(t, getattr(self.method, "tau_f", 0.0))
            for m in self.matrices:
                m.M, m.dM_dS = self.method.mask(m.S, tau, training)
        for m in self.matrices:
            # a = (W ⊙ M) x: the model only ever sees the product
            torch.mul(m.W, m.M, out=m.weight.data)

    def rank(self, v: float) -> None:
        ranked = [self.method.scores(m.W, m.S) for m in self.matrices]
        if self.scope == "local":
            masks = [top_v(S, v) for S in ranked]
        else:
            together = top_v(torch.cat([S.flatten() for S in ranked]), v)
            masks = together.split([S.numel() for S in ranked])
        for m, M in zip(self.matrices, masks):
            m.M = M.view(m.W.shape)

    @torch.no_grad()
    def backward(self, t: int, lr: float = 0.0) -> None:
        """Turn dL/dW', which the model's backward pass left, into gradients of W and of S.

        `lr` is the scores' learning rate at this step (only the search for λ looks at it).
        """
        if not self.masked:
            return
        for m in self.matrices:
            dL_dW_masked, m.weight.grad = m.weight.grad, None
            if self.method.learned:
                # Eq. (2): dL/dS = dL/dW' ⊙ W (⊙ dM/dS), on kept and on pruned entries alike
                m.S.grad = dL_dW_masked * m.W
                if m.dM_dS is not None:
                    m.S.grad *= m.dM_dS
            # a pruned weight has no gradient of its own: dL/dW = dL/dW' ⊙ M
            m.W.grad = dL_dW_masked.mul_(m.M)
        if self.has_penalty:
            self.add_penalty(t, lr)

    def add_penalty(self, t: int, lr: float) -> None:
        """Gradient of λ R(S), R averaged over the matrices, added to S.grad."""
        self.penalty = self.penalty_at(t, lr)
        for m in self.matrices:
            with torch.enable_grad():
                R = self.method.penalty(m.S) / len(self.matrices)
            # L + λ R(S)
            m.S.grad.add_(torch.autograd.grad(R, m.S)[0], alpha=self.penalty)

    def penalty_at(self, t: int, lr: float) -> float:
        if self.control is not None:
            norms = torch.stack([m.S.grad.norm() for m in self.matrices])
            task = float(norms.norm()) / math.sqrt(sum(m.S.numel() for m in self.matrices))
            return self.control.update(t, self.scores(), task, lr)
        if hasattr(self.method, "tau_f"):
            # the original raises λ along with τ: λ(t) = λ τ(t) / τ_f
            return self.fixed_penalty * (1 - self.schedule.remaining(t))
        return self.fixed_penalty

    # -- what is left

    def density(self) -> float:
        """Share of the pruned matrices' entries with a non-zero mask."""
        if not self.masked:
            return 1.0
        kept = sum(int(torch.count_nonzero(m.M)) for m in self.matrices)
        return kept / sum(m.M.numel() for m in self.matrices)

    def remove(self) -> None:
        """Bake the masks in: the model keeps W ⊙ M as ordinary trainable weights."""
        for m in self.matrices:
            m.W, m.M = m.weight, None
        self.masked = False


def encoder_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The paper's matrices: query, key, value, attention output and the two of the feed-forward
    part of each of BERT's layers, 6 × 12 in BERT-base. Never embeddings, pooler or head."""
    return {
        f"{name}.weight": part.weight
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and ".layers." in name
    }
