"""Movement pruning and its rivals: Sanh, Wolf, Rush (2020), arXiv 2005.07683, Sections 3 and 4.

The paper's letters: W weights, S scores, M mask, W' = W ⊙ M, v share of weights kept (0 to 1), τ
cut-off on scores, λ weight of a penalty R(S), α_S learning rate of the scores, T steps in all.
W' is `Matrix.weight`, the model's own tensor; its gradient dL/dW' is called dL_dW_prime.
"The original code" is huggingface/transformers-research-projects, movement-pruning.

How it works. The model computes with W' and nothing else: its own weight tensors hold W', and
the Pruner keeps W, S and M beside it. The gradients of W and S follow from dL/dW' by the chain
rule, so no layer is replaced, and no mask is in autograd's graph. One optimiser step is

    set_masks(t)        M from S (or from W), then W' = W ⊙ M    Eqs. (1), (4), (5)
    the model's forward and backward pass                        leaves dL/dW' in weight.grad
    set_gradients(t)    dL/dW and dL/dS from dL/dW'              Eq. (2)
    an ordinary optimiser step on W, S and everything else
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from support import cli, own
from support.files import RunError, UserError
from support.noise import uniform_noise
from support.penalty import PenaltySearch
from support.ranks import TopK, top_of_groups

# ---------------------------------------------------------------------------- the schedule


@dataclass(frozen=True)
class Schedule:
    """When v (ranked methods) or τ (soft movement) moves: from step t_i to step T − t_f of T.
    L0 has neither; only the search for its λ goes by these steps."""

    T: int
    t_i: int
    t_f: int

    def cubic(self, t: int) -> float:
        """The factor of (v_i − v_f) in Eq. (5): 1 up to t_i, then falling to 0 at T − t_f."""
        if t < self.t_i:
            return 1.0
        if t >= self.T - self.t_f:
            return 0.0
        return (1 - (t - self.t_i) / (self.T - self.t_i - self.t_f)) ** 3

    def keep(self, t: int, v_f: float, v_i: float = 1.0) -> float:
        """Share of weights kept at step t."""
        # Eq. (5), its bracket read as 1 at t = t_i and 0 at t = T − t_f
        return v_f + (v_i - v_f) * self.cubic(t)

    def tau(self, t: int, tau_f: float) -> float:
        """Soft movement's τ at step t: 0 → τ_f along the same curve, as in the original code."""
        return tau_f * (1 - self.cubic(t))


# -------------------------------------------------------------------------------- Eq. (1)


def top_v_by_sorting(scores: list[Tensor], v: float) -> list[Tensor]:
    """Eq. (1) as anyone would write it; ties go in the sort's order."""
    flat = torch.cat([S.flatten() for S in scores])  # (n)
    k = round(v * len(flat))
    # Eq. (1): Top_v(S)_ij = 1 if S_ij is among the v·n highest, else 0
    M = torch.zeros_like(flat, dtype=torch.bool)
    M[flat.argsort(descending=True)[:k]] = True
    return [part.view_as(S) for part, S in zip(M.split([S.numel() for S in scores]), scores)]


def top_v(scores: list[Tensor], v: float) -> list[Tensor]:
    """The same, faster: bool masks of the round(v·n) largest of the n scores of all tensors.
    A fixed hash of their positions breaks ties, so that whole rows are not pruned together."""
    [masks] = top_of_groups([scores], v, [TopK()], scores[0].device)
    return masks


def masked(W: Tensor, M: Tensor) -> Tensor:
    """W ⊙ M, for masks of numbers or of booleans."""
    in_numpy = (M.dtype, W.dtype, W.device.type) == (torch.bool, torch.float32, "cpu")
    # numpy takes a third of torch's time
    return torch.from_numpy(W.detach().numpy() * M.numpy()) if in_numpy else W * M


# ---------------------------------------------------------------------------- the methods


class Method:
    """What the Pruner asks of a method; for your own, subclass it and override what differs."""

    prunes = True  # is there a mask at all?
    ranked = True  # M = Top_v(scores(W, S)), v from Eq. (5); if not, mask() makes M
    learned = False  # does S get a gradient, and a learning rate of its own?
    penalised = False  # is λ R(S) added to the loss?
    initial_score = 0.0  # of learned scores
    tau_f = 0.0  # τ at the end of the run, for methods with a τ
    floor = 0.0  # where mask() leaves less of a matrix, this share of its highest scores stays
    kept_above = 0.0  # at the end, a weight stays where S exceeds this (methods with a penalty)

    def first_scores(self, W: Tensor, generator: torch.Generator) -> Tensor | None:
        """Initial S, shaped like W, or (k, *W.shape) to store k numbers per weight, or None."""
        return torch.full_like(W, self.initial_score) if self.learned else None

    def scores(self, W: Tensor, S: Tensor) -> Tensor:
        """The values that Eq. (1) ranks."""
        return S

    def mask(self, S: Tensor, tau: float, draw) -> tuple[Tensor, Tensor | None]:
        """→ M, and dM/dS; None: taken to be 1 (straight-through), or not needed (test time).

        `draw` maps a shape to uniform noise; it is None at test time. Only if not `ranked`.
        """
        raise NotImplementedError

    def score_gradient(self, W: Tensor, dL_dW_prime: Tensor, S: Tensor, dM_dS: Tensor | None):
        """dL/dS. Called after every backward pass, so a method can also update S itself here."""
        return None

    def penalty(self, S: Tensor) -> Tensor:
        """R(S) of one matrix, a mean over its entries (differentiable). Only if `penalised`."""
        raise NotImplementedError


class Dense(Method):
    """No mask: plain fine-tuning, the reference line."""

    prunes = ranked = False


class Random(Method):
    """M = Top_v of noise that is drawn once: a baseline that knows nothing of the weights."""

    def first_scores(self, W, generator):
        return torch.rand(W.shape, generator=generator).to(W)


class Magnitude(Method):
    """§3, 0th order: S = |W|. A pruned weight gets no gradient, so it hardly ever comes back."""

    def scores(self, W, S):
        return W.abs()


class Movement(Method):
    """§4, 1st order: M = Top_v(S), S learned through the straight-through estimator."""

    learned = True

    def score_gradient(self, W, dL_dW_prime, S, dM_dS):
        # Eq. (2): dL/dS_ij = (dL/da_i) W_ij x_j = dL/dW'_ij · W_ij, on kept and pruned entries
        # alike. After T plain gradient steps, S is −α_S times the sum of these products: Eq. (3)
        return dL_dW_prime * W


class SoftMovement(Movement):
    """§4: M = (S > τ) with one τ for all matrices, and λ R(S), R = Σ σ(S), added to the loss.

    As in the original code, τ is compared with σ(S), R averages instead of summing (so that the
    published λ apply), and at least 0.5 % of every matrix stay."""

    ranked, penalised = False, True
    tau_f = 0.1
    floor = 0.005
    kept_above = property(lambda self: math.log(self.tau_f / (1 - self.tau_f)))  # σ of it is τ_f

    def mask(self, S, tau, draw):
        return torch.sigmoid(S) > tau, None  # τ is 0 up to t_i, and σ(S) > 0: all weights stay

    def penalty(self, S):
        # R(S) = σ(S), averaged
        return torch.sigmoid(S).mean()


class L0(Method):
    """L0 regularisation (Louizos, Welling, Kingma 2017, arXiv 1712.01312): M is a random hard
    concrete gate, S its log α, b its temperature; it is stretched to (l, r), beyond [0, 1], which
    makes exact zeros and ones likely."""

    ranked, learned, penalised = False, True, True
    initial_score = 2.197  # σ(2.197) = 0.9: nearly all gates are open
    b, l, r = 2 / 3, -0.1, 1.1  # noqa: E741 (the paper's letters)
    kept_above = property(lambda self: math.log(-self.l / self.r))  # (r − l) σ(kept_above) + l = 0

    def mask(self, S, tau, draw):
        b, l, r = self.b, self.l, self.r  # noqa: E741
        if draw is None:
            # at test time M̂ = min(1, ReLU((r − l) σ(S) + l))
            return ((r - l) * torch.sigmoid(S) + l).clamp(0, 1), None
        u = draw(S.shape)
        # Eq. (4): S̄ = σ((log u − log(1 − u) + S) / b), Z = (r − l) S̄ + l, M = min(1, ReLU(Z))
        S_bar = torch.sigmoid((torch.logit(u, eps=1e-6) + S) / b)
        Z = (r - l) * S_bar + l
        M = Z.clamp(0, 1)
        # dM/dS = f(S) = (r − l)/b · S̄ (1 − S̄) · 1{0 ≤ Z ≤ 1}
        dM_dS = (r - l) / b * S_bar * (1 - S_bar) * ((Z >= 0) & (Z <= 1))
        return M, dM_dS

    def score_gradient(self, W, dL_dW_prime, S, dM_dS):
        # dL/dS_ij = (dL/da_i) W_ij x_j f(S_ij)
        return dL_dW_prime * W * dM_dS

    def chance_open(self, S):
        """P(M > 0) of each gate."""
        return torch.sigmoid(S - self.b * math.log(-self.l / self.r))

    def penalty(self, S):
        # E[L0] = Σ σ(S − b log(−l/r)), averaged
        return self.chance_open(S).mean()


METHODS = {"dense": Dense, "random": Random, "magnitude": Magnitude, "l0": L0,
           "movement": Movement, "soft_movement": SoftMovement}


def find_method(name: str) -> type[Method]:
    """A class of METHODS by its name, or your own by FILE.py:Class, which runs the file."""
    code = own.source(name)
    if name not in METHODS and not code:
        raise cli.unknown("--method", name, [*METHODS, "FILE.py:Class"])
    return METHODS.get(name) or own.load(name, code, Method)


# ------------------------------------------------------------------------------ the Pruner


@dataclass
class Matrix:
    """One pruned matrix. All tensors have its shape; S may have one dimension more, in front."""

    name: str
    weight: nn.Parameter  # the model's own tensor, which holds W' = W ⊙ M
    W: nn.Parameter  # what is trained; for Dense, the same tensor
    S: nn.Parameter | None = None
    M: Tensor | None = None
    dM_dS: Tensor | None = None  # None: 1, the straight-through estimator
    ever_pruned: Tensor | None = None  # bool: was its mask 0 in any step so far?


class Pruner:
    """Attaches a method to named matrices of any model, from outside.

    Args:
        matrices: name → the model's parameter; for BERT see `encoder_matrices`.
        keep: v_f, the share of weights kept at the end, in (0, 1].
        schedule: when, in optimiser steps.
        scope: "local" ranks each matrix by itself, "global" all together (ranked methods).
        penalty: a fixed λ, or a PenaltySearch that finds the λ for `keep`.
        dtype: of W' while training, by default W's own; bfloat16 saves casts where products use it.
    """

    def __init__(self, matrices: dict[str, nn.Parameter], method: Method, keep: float,
                 schedule: Schedule, scope: str = "local",
                 penalty: float | PenaltySearch = 0.0, seed: int = 0,
                 dtype: torch.dtype | None = None):
        self.method, self.keep, self.schedule, self.seed = method, keep, schedule, seed
        self.dtype = dtype
        self.search = penalty if isinstance(penalty, PenaltySearch) else None
        self.fixed_penalty = penalty if self.search is None else None
        self.penalty = 0.0  # λ at the last step
        self.prunes = method.prunes
        generator = torch.Generator().manual_seed(seed)
        self.matrices = []
        for name, weight in matrices.items():
            m = Matrix(name, weight, weight)
            if self.prunes:
                m.W = nn.Parameter(weight.detach().clone())
                m.M = torch.ones_like(m.W, dtype=torch.bool)
                m.ever_pruned = torch.zeros_like(m.W, dtype=torch.bool)
                S = method.first_scores(m.W.detach(), generator)
                m.S = None if S is None else nn.Parameter(S, requires_grad=method.learned)
            self.matrices.append(m)
        self.groups = [self.matrices] if scope == "global" else [[m] for m in self.matrices]
        self.ranks = [TopK() for _ in self.groups]

    def weights(self) -> list[nn.Parameter]:
        """What the optimiser moves instead of the model's own matrices."""
        return [m.W for m in self.matrices]

    def scores(self) -> list[nn.Parameter]:
        """Learned scores: an optimiser group of their own, without weight decay."""
        return [m.S for m in self.matrices] if self.method.learned else []

    @torch.no_grad()
    def set_masks(self, t: int, training: bool = True) -> None:
        """Make the masks of step t, and put W' = W ⊙ M into the model."""
        if not self.prunes:
            return
        dtype = self.dtype if training else None
        device = self.matrices[0].W.device
        if self.method.ranked:
            v = self.schedule.keep(t, self.keep)
            scores = ([self.method.scores(m.W, m.S) for m in group] for group in self.groups)
            all_masks = top_of_groups(scores, v, self.ranks, device)
            for group, masks in zip(self.groups, all_masks):
                for m, M in zip(group, masks):
                    m.M = M
        else:
            tau = self.schedule.tau(t, self.method.tau_f)
            draw = uniform_noise(self.seed, t, device) if training else None
            for m in self.matrices:
                m.M, m.dM_dS = self.method.mask(m.S, tau, draw)
            self.keep_floor()
        for m in self.matrices:
            # a = (W ⊙ M) x: the model only ever sees the product
            m.weight.data = masked(m.W, m.M).to(dtype or m.W.dtype)

    def keep_floor(self) -> None:
        """A matrix that falls below the method's floor keeps its highest scores up to it."""
        if self.method.floor:
            counts = torch.stack([torch.count_nonzero(m.M) for m in self.matrices]).tolist()
            for m, count in zip(self.matrices, counts):
                if count < self.method.floor * m.M.numel():
                    [m.M] = top_v([m.S], self.method.floor)

    @torch.no_grad()
    def set_gradients(self, t: int) -> None:
        """Turn dL/dW', which the model's backward pass left, into gradients of W and of S."""
        if not self.prunes:
            return
        for m in self.matrices:
            if m.weight.grad is None:
                raise RunError(f"{m.name}: the loss does not depend on it; leave it out")
            dL_dW_prime = m.weight.grad.to(m.W.dtype)
            m.weight.grad = None  # the optimiser has W, not W', so its zero_grad() would miss this
            dL_dS = self.method.score_gradient(m.W, dL_dW_prime, m.S, m.dM_dS)
            if self.method.learned:
                m.S.grad = dL_dS
            # a pruned weight has no gradient of its own: dL/dW = dL/dW' ⊙ M
            if m.W.requires_grad:
                m.W.grad = masked(dL_dW_prime, m.M)
            m.ever_pruned |= ~m.M.bool()
        if self.method.penalised:
            self.penalty = self.next_penalty(t)
            self.add_penalty()

    @torch.enable_grad()
    def add_penalty(self) -> None:
        """What is minimised is L + λ R(S), R(S) the mean of the matrices' R: add λ dR/dS."""
        for m in self.matrices:
            R = self.method.penalty(m.S) / len(self.matrices)
            (self.penalty * R).backward()  # added to S.grad

    def next_penalty(self, t: int) -> float:
        """λ at step t; advances the search by one step."""
        if self.search is not None:
            norm = nn.utils.get_total_norm([m.S.grad for m in self.matrices])
            task_rms = float(norm) / math.sqrt(sum(m.S.numel() for m in self.matrices))
            return self.search.update(t, self.scores(), task_rms)
        if self.method.tau_f:
            # the original code raises λ along with τ: λ(t) = λ τ(t) / τ_f
            return self.fixed_penalty * (1 - self.schedule.cubic(t))
        return self.fixed_penalty

    def state_dict(self) -> dict:
        """For a checkpoint: all that later steps depend on (earlier ranks only save time)."""
        tensors = [{"W": m.W.detach(), "S": m.S, "ever_pruned": m.ever_pruned}
                   for m in self.matrices if self.prunes]
        return {"matrices": tensors, "penalty": self.penalty,
                "search": self.search.state_dict() if self.search else None}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        for m, saved in zip(self.matrices, state["matrices"]):
            m.W.copy_(saved["W"])
            m.ever_pruned.copy_(saved["ever_pruned"])
            if m.S is not None:
                m.S.copy_(saved["S"])
        self.penalty = state["penalty"]
        if self.search:
            self.search.load_state_dict(state["search"])

    def density(self) -> float:
        """Share of the pruned matrices' entries with a non-zero mask."""
        if not self.prunes:
            return 1.0
        kept = torch.stack([torch.count_nonzero(m.M) for m in self.matrices]).sum()
        return int(kept) / sum(m.M.numel() for m in self.matrices)


ENCODER = r"""(?x) (^|\.) layers?\.\d+\. (
    query | key | value | attention_output | intermediate | output  # bert.py; in transformers:
    | attention\.self\.(query|key|value) | (attention\.output|intermediate|output)\.dense  # BERT
    | attention\.([qkv]|out)_lin | ffn\.lin[12]  # DistilBERT; RoBERTa and ELECTRA are like BERT
    ) \.weight $"""


def encoder_matrices(model: nn.Module, pattern: str = ENCODER) -> dict[str, nn.Parameter]:
    """The matrices that the paper prunes: query, key, value, attention output and the two of the
    feed-forward part of each layer, 6 × 12 in BERT-base. Never embeddings, pooler, head.

    For models that ENCODER does not know, give a pattern (re.search) of parameters' names.
    UserError if none has such a name."""
    found = {name: parameter for name, parameter in model.named_parameters()
             if parameter.dim() == 2 and re.search(pattern, name)}
    if not found:
        raise UserError(f"{type(model).__name__}: no matrix to prune; give a pattern of names")
    return found
