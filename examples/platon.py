"""PLATON: keep weights that matter, or may matter (Zhang et al. 2022, arXiv 2206.12562).

    python train.py --method examples/platon.py:Platon --scope global --keep 0.1

Here masks change at every step (there at every tenth). A pruned weight keeps its value, so its
importance is that of bringing it back.
"""

import torch

import masking


class Platon(masking.Method):
    beta_1, beta_2 = 0.85, 0.95

    def first_scores(self, W, generator):
        return torch.zeros(2, *W.shape).to(W)  # the two running means

    def scores(self, W, S):
        return S[0] * S[1]

    def score_gradient(self, W, dL_dW_prime, S, dM_dS):
        # I = |w g|; Ī = β₁ Ī + (1 − β₁) I; Ū = β₂ Ū + (1 − β₂) |I − Ī|; the score is Ī Ū
        importance = (W * dL_dW_prime).abs()
        S[0].lerp_(importance, 1 - self.beta_1)
        S[1].lerp_((importance - S[0]).abs(), 1 - self.beta_2)
