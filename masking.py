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

from support.penalty import PenaltyControl
from support.ranks import Cut, drop_ties

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


def top_v(scores: list[Tensor], v: float, cut: Cut | None = None) -> list[Tensor]:
    """Masks of the round(v·n) largest of the n scores of all tensors, 1.0 where kept.

    Exact under ties: of equal scores at the cut, those kept are scattered over the matrices by
    a fixed hash, so that no rows or columns empty in clumps. `cut` remembers the last one and
    only saves time.
    """
    n = sum(S.numel() for S in scores)
    k = round(v * n)
    if k == 0 or k == n:
        return [torch.full_like(S, float(k == n)) for S in scores]
    lowest, extra = (cut or Cut()).find(scores, k)
    # Eq. (1): Top_v(S)_ij = 1 if S_ij is among the v·n highest, else 0
    masks = [torch.ge(S, lowest, out=torch.empty_like(S)) for S in scores]
    if extra > 0:
        drop_ties(scores, masks, lowest, extra)
    return masks


def uniform(seed: int, t: int, device: torch.device):
    """A function shape → numbers in [0, 1), drawn anew for each seed and step t and nothing else.

    So noise is the same on every process and after a resume.
    """
    if device.type == "cpu":  # numpy draws in two thirds of torch's time
        draw = np.random.Generator(np.random.PCG64([seed, t])).random
        return lambda shape: torch.from_numpy(draw(shape, dtype=np.float32))
    generator = torch.Generator(device).manual_seed(seed * 2**31 + t)
    return lambda shape: torch.rand(shape, generator=generator, device=device)


# ---------------------------------------------------------------------------- the methods
#
# A method says:
#   learned        does S get a gradient and a learning rate
#   ranked         is M = Top_v(scores), with v given by Eq. (5); if not, mask() makes it
#   init           the value that S starts from
# and has the functions that it needs of
#   scores(W, S)   what is ranked                        (ranked methods)
#   mask(S, tau, draw)   M and dM/dS (None means 1)      (the others; see `uniform` for draw,
#                  which is None when nothing random is wanted: at test time)
#   penalty(S)     R(S) of one matrix, a mean over its entries
#   slope(S)       R'(S) of each entry, times the number of entries
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

    def mask(self, S, tau, draw):
        cut = math.log(tau / (1 - tau)) if tau > 0 else -math.inf
        M = torch.gt(S, cut, out=torch.empty_like(S))  # σ(S) > τ
        if M.mean() < self.floor:
            M = top_v([S], self.floor)[0]
        return M, None

    def penalty(self, S):
        return S.sigmoid().mean()

    def slope(self, S):
        p = S.sigmoid()
        return (1 - p).mul_(p)


class L0:
    """Louizos, Welling, Kingma (2017): M is a random hard concrete gate, S its log α.

    b temperature; (l, r) the stretch beyond [0, 1], which puts mass on exactly 0 and 1.
    """

    learned, ranked, init = True, False, 2.197  # σ(2.197) = 0.9: nearly all gates open
    b, l, r = 2 / 3, -0.1, 1.1  # noqa: E741 (the paper's letters)
    cut = math.log(-l / r)  # at test time a gate is open where S > cut

    def mask(self, S, tau, draw):
        b, l, r = self.b, self.l, self.r  # noqa: E741
        if draw is None:
            # M̂ = min(1, ReLU((r − l) σ(S) + l))
            return S.sigmoid().mul_(r - l).add_(l).clamp_(0, 1), None
        # Eq. (4): S̄ = σ((log u − log(1 − u) + S) / b), Z = (r − l) S̄ + l, M = min(1, max(0, Z))
        S_bar = draw(S.shape).logit_(1e-6).add_(S).div_(b).sigmoid_()
        Z = (S_bar * (r - l)).add_(l)
        M = Z.clamp(0, 1)
        # dM/dS = f(S) = (r − l)/b · S̄ (1 − S̄) · 1{0 ≤ Z ≤ 1}
        inside = Z.eq_(M)
        return M, inside.mul_((r - l) / b).mul_(S_bar).mul_(1 - S_bar)

    def chance(self, S):
        """σ(S − b log(−l/r)) of each gate: how likely it is open."""
        return torch.sigmoid(S - self.b * math.log(-self.l / self.r))

    def penalty(self, S):
        # E[L0] = Σ σ(S − b log(−l/r)), here the mean
        return self.chance(S).mean()

    def slope(self, S):
        p = self.chance(S)
        return (1 - p).mul_(p)


METHODS = {
    "dense": Dense,
    "random": Random,
    "magnitude": Magnitude,
    "l0": L0,
    "movement": Movement,
    "soft_movement": SoftMovement,
}


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
    ever_pruned: Tensor | None = None  # bool: was its mask 0 at any step so far?


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
        self.keep, self.schedule, self.seed = keep, schedule, seed
        self.fixed_penalty, self.penalty = penalty, 0.0
        self.masked = not isinstance(self.method, Dense)
        noise = torch.Generator().manual_seed(seed)
        self.matrices = []
        for name, weight in matrices.items():
            m = Matrix(name, weight, weight)
            if self.masked:
                m.W = nn.Parameter(weight.detach().clone())
                m.M = torch.ones_like(m.W)
                m.ever_pruned = torch.zeros_like(m.W, dtype=torch.bool)
                m.S = self.first_scores(m.W, noise)
            self.matrices.append(m)
        # matrices that are ranked together, and the last cut through them
        groups = [self.matrices] if scope == "global" else [[m] for m in self.matrices]
        self.groups = [(group, Cut()) for group in groups]
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
            draw = uniform(self.seed, t, self.matrices[0].W.device) if training else None
            for m in self.matrices:
                m.M, m.dM_dS = self.method.mask(m.S, tau, draw)
        for m in self.matrices:
            # a = (W ⊙ M) x: the model only ever sees the product
            torch.mul(m.W, m.M, out=m.weight.data)
            m.ever_pruned |= m.M == 0

    def rank(self, v: float) -> None:
        for group, cut in self.groups:
            masks = top_v([self.method.scores(m.W, m.S) for m in group], v, cut)
            for m, M in zip(group, masks):
                m.M = M

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
                # Eq. (2): dL/dS = dL/dW' ⊙ W (⊙ dM/dS), on kept and on pruned entries alike.
                # Plain gradient steps on S add these products up over the steps: Eq. (3)
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
            # L + λ R(S)
            share = self.penalty / (m.S.numel() * len(self.matrices))
            m.S.grad.add_(self.method.slope(m.S), alpha=share)

    def penalty_at(self, t: int, lr: float) -> float:
        if self.control is not None:
            norm = nn.utils.get_total_norm([m.S.grad for m in self.matrices])
            task = float(norm) / math.sqrt(sum(m.S.numel() for m in self.matrices))
            return self.control.update(t, self.scores(), task, lr)
        if hasattr(self.method, "tau_f"):
            # the original raises λ along with τ: λ(t) = λ τ(t) / τ_f
            return self.fixed_penalty * (1 - self.schedule.remaining(t))
        return self.fixed_penalty

    # -- to go on with after an interruption

    def state_dict(self) -> dict:
        """All that later steps depend on; the last cuts are not, they only save time."""
        parts = [{"W": m.W.detach(), "S": m.S, "M": m.M, "ever_pruned": m.ever_pruned}
                 for m in self.matrices if self.masked]
        return {"matrices": parts, "penalty": self.penalty,
                "control": self.control.state_dict() if self.control else None}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        for m, saved in zip(self.matrices, state["matrices"]):
            m.W.copy_(saved["W"])
            m.M = saved["M"].to(m.W)
            m.ever_pruned.copy_(saved["ever_pruned"])
            if m.S is not None:
                m.S.copy_(saved["S"])
        self.penalty = state["penalty"]
        if self.control:
            self.control.load_state_dict(state["control"])

    # -- what is left

    def density(self) -> float:
        """Share of the pruned matrices' entries with a non-zero mask."""
        if not self.masked:
            return 1.0
        kept = sum(int(torch.count_nonzero(m.M)) for m in self.matrices)
        return kept / sum(m.M.numel() for m in self.matrices)


def encoder_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The paper's matrices: query, key, value, attention output and the two of the feed-forward
    part of each of BERT's layers, 6 × 12 in BERT-base. Never embeddings, pooler or head."""
    return {
        f"{name}.weight": part.weight
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and ".layers." in name
    }
