"""A run's tensors as files: checkpoints, and what a finished run keeps of its pruning.

A checkpoint is a safetensors file. Its header holds everything that is no tensor, as JSON, and a
digest of the whole. What is read is compared with the state of the run that is to go on: another
name, shape or type is refused before anything is loaded.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from support import files

# ------------------------------------------------------------------------------- checkpoints


def fingerprint(tensors: dict[str, Tensor], text: str = "") -> str:
    """SHA-256 of a text and named tensors, in any order."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        flat = tensors[name].detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def to_checkpoint(state: dict) -> bytes:
    """A file of nested dicts and lists of tensors, numbers, texts and None."""
    tensors = {}

    def refer(x: Tensor) -> dict:
        tensors[name := str(len(tensors))] = x.detach().cpu().contiguous()
        return {"tensor": name}

    plain = json.dumps(state, default=refer, allow_nan=False)
    header = {"plain": plain, "digest": fingerprint(tensors, plain)}
    return safetensors.torch.save(tensors, header)


def read_checkpoint(path: Path, problem: str) -> dict:
    """Undo to_checkpoint; UserError for a file that is not whole as it was written.

    Tensors are copied: as they come they are the file itself, which would stay open.
    """
    tensors, header = files.read_tensors(path, problem)
    with files.reading(path, problem):
        if header["digest"] != fingerprint(tensors, header["plain"]):
            raise ValueError("its digest is another")
        return json.loads(header["plain"], object_hook=lambda node: (
            tensors[node["tensor"]].clone() if node.keys() == {"tensor"} else node))


def outline(state):
    """What loading a state relies on: names, the tensors' shapes, and the other values' types."""
    if isinstance(state, dict):
        return {name: outline(part) for name, part in state.items()}
    if isinstance(state, list):
        return [outline(part) for part in state]
    if isinstance(state, Tensor):
        return state.shape, state.is_floating_point()
    return "number" if isinstance(state, (int, float)) else type(state).__name__


def moments(optimizer: torch.optim.Optimizer) -> dict:
    """Adam's state by number of the parameter; before its first step, zeros of the right shapes."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {str(i): dict(optimizer.state[p]) or {
        "step": torch.zeros(()), "exp_avg": torch.zeros_like(p),
        "exp_avg_sq": torch.zeros_like(p)} for i, p in enumerate(parameters)}


# ------------------------------------------------------------------------------ what is kept


def pack_bits(mask: Tensor) -> Tensor:
    """A 0/1 mask as bits: (n, m) → (⌈n·m / 8⌉) uint8."""
    return torch.from_numpy(np.packbits((mask != 0).cpu().numpy().ravel()))


def save_pruning(matrices: dict, path: Path) -> None:
    """What the saved model does not show of its matrices (name → masking.Matrix): masks, scores,
    and W where it is pruned; where masks are gates between 0 and 1, all of W."""
    tensors = {}
    for name, m in matrices.items():
        pruned, gates = m.M == 0, m.M.dtype != torch.bool
        tensors[f"{name}.mask"] = pack_bits(m.M)
        tensors[f"{name}.ever_pruned"] = pack_bits(m.ever_pruned | pruned)
        tensors[f"{name}.pruned"] = m.W.detach()[pruned | gates].cpu()
        if m.S is not None:
            tensors[f"{name}.scores"] = m.S.detach().cpu().contiguous()
    files.write_atomically(path, safetensors.torch.save(tensors))
