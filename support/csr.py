"""Linear layers in PyTorch's CSR layout, which skip the zeros, for `evaluate.py RUN --sparse`.

CSR keeps the non-zero weights row by row, each with its column. A product reads a weight's place
along with the weight, so CSR wins only where most weights are zero; `python -m tools.sparse`
measures where. On the CPU it is computed by MKL, in float32 only.

Shapes: N rows of input, n inputs and m outputs of a matrix.
"""

import warnings

import torch
from torch import nn

DENSEST = 0.15  # at higher densities a CSR product is no longer clearly the faster one
PIECE = 128  # rows of x at a time, few enough for the processor's cache


class SparseLinear(nn.Module):
    """y = W x + b with W in CSR. For inference in float32; W gets no gradient."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "CSR is in beta"
            self.register_buffer("weight", linear.weight.detach().to_sparse_csr())
        self.bias = linear.bias

    def forward(self, x):  # (..., n)
        rows = x.flatten(0, -2)  # (N, n)
        y = rows.new_empty(len(rows), len(self.bias))  # (N, m)
        for at in range(0, len(rows), PIECE):
            piece = slice(at, at + PIECE)
            # addmm on xᵀ reaches MKL directly; F.linear takes several times as long
            y[piece] = torch.addmm(self.bias[:, None], self.weight, rows[piece].t()).t()
        return y.unflatten(0, x.shape[:-1])  # (..., m)


def sparsify(model: nn.Module, matrices: dict[str, nn.Parameter], densest: float = DENSEST) -> int:
    """Replace, in place, the linear layers of these matrices (name → parameter) whose density is
    `densest` or less → how many."""
    replaced = 0
    for name, weight in matrices.items():
        if torch.count_nonzero(weight) <= densest * weight.numel():
            layer, _, part = name.removesuffix(".weight").rpartition(".")
            setattr(model.get_submodule(layer), part,
                    SparseLinear(model.get_submodule(f"{layer}.{part}")))
            replaced += 1
    return replaced
