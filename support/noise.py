"""Random numbers, drawn cheaply: on a CPU they would otherwise take a tenth of a training step."""

import numpy as np
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


def uniform_noise(seed: int, t: int, device: torch.device):
    """A function shape → numbers in [0, 1) that depend on seed and step t alone, so that they are
    the same on every process and after a resume."""
    if device.type == "cpu":  # numpy draws in two thirds of torch's time
        draw = np.random.Generator(np.random.PCG64([seed, t])).random
        return lambda shape: torch.from_numpy(draw(shape, dtype=np.float32))
    generator = torch.Generator(device).manual_seed(seed * 2**31 + t)
    return lambda shape: torch.rand(shape, generator=generator, device=device)
