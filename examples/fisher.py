"""The diagonal Fisher information: what removing a weight costs, to second order (Kurtic et al.
2022, arXiv 2203.07259, with blocks of one weight).

    python train.py --method examples/fisher.py:Fisher --keep 0.1

The squares are of a batch's mean gradient, since a step has no gradient of each row.
"""

import torch

import masking


class Fisher(masking.Method):
    decay = 0.99

    def first_scores(self, W, generator):
        return torch.zeros_like(W)  # E[g²], a running mean

    def scores(self, W, S):
        return W**2 * S

    def score_gradient(self, W, dL_dW_prime, S, dM_dS):
        S.lerp_(dL_dW_prime**2, 1 - self.decay)
