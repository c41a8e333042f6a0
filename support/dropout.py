"""Dropout with cheaper random numbers on a CPU, where drawing them takes a tenth of a step."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """F.dropout. On a CPU, 16 random bits per entry decide, so p counts in steps of 2⁻¹⁶."""
    if x.device.type != "cpu" or not training or p == 0.0:
        return F.dropout(x, p, training)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform over −2¹⁵ … 2¹⁵ − 1
    kept = (bits >= round(p * 2**16) - 2**15).to(x.dtype)  # 1 with probability 1 − p, else 0
    return x * kept.div_(1 - p)
