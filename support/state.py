"""Tensors and numbers as files that no damage goes unnoticed in.

A checkpoint is a safetensors file, whose header holds all plain numbers as JSON and a digest of
everything. It is read against the state of the run that is to go on: what has another name, shape
or type is refused before anything is loaded.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from support import files

# ------------------------------------------------------------------------------- checkpoints


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of named tensors, in any order: are these the weights that a run started from?"""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        flat = tensors[name].detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def leaves(state, name: str = "") -> Iterator[tuple[str, object]]:
    """Tensors and plain values of nested dicts and lists, under names such as model.bias."""
    if isinstance(state, (dict, list)):
        for key, part in state.items() if isinstance(state, dict) else enumerate(state):
            yield from leaves(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, state


def fits(value, expected) -> bool:
    if isinstance(expected, Tensor):
        return (isinstance(value, Tensor) and value.shape == expected.shape
                and value.is_floating_point() == expected.is_floating_point())
    if type(expected) in (int, float):
        return type(value) in (int, float)
    return type(value) is type(expected) or (expected is None and type(value) is float)


def filled(expected, found: dict, name: str = ""):
    """`expected` with values from `found`, which are taken out; ValueError for one that is missing
    or does not fit."""
    if isinstance(expected, (dict, list)):
        parts = expected.items() if isinstance(expected, dict) else enumerate(expected)
        values = {key: filled(part, found, f"{name}.{key}" if name else str(key))
                  for key, part in parts}
        return values if isinstance(expected, dict) else [*values.values()]
    if name not in found or not fits(found[name], expected):
        raise ValueError(f"{name} is missing, or not what this run has")
    return found.pop(name)


def seal(tensors: dict[str, Tensor], plain: str) -> str:
    return text_digest(fingerprint(tensors) + plain)


def to_checkpoint(state: dict) -> bytes:
    found = dict(leaves(state))
    tensors = {name: value.detach().cpu().contiguous() for name, value in found.items()
               if isinstance(value, Tensor)}
    plain = files.to_json({name: value for name, value in found.items() if name not in tensors})
    return safetensors.torch.save(tensors, {"plain": plain, "digest": seal(tensors, plain)})


def read_checkpoint(path: Path, problem: str) -> dict:
    """→ all leaves of a state, whole as they were written; UserError if they are not."""
    tensors, header = files.read_tensors(path, problem)
    with files.reading(path, problem):
        if header["digest"] != seal(tensors, header["plain"]):
            raise ValueError("its digest is another")
        return tensors | files.parse_json(header["plain"])


def moments(optimizer: torch.optim.Optimizer) -> dict:
    """Adam's state, by number of the parameter, also before its first step: in shape, then."""
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
    and W where it is pruned."""
    tensors = {}
    for name, m in matrices.items():
        tensors[f"{name}.mask"] = pack_bits(m.M)
        tensors[f"{name}.ever_pruned"] = pack_bits(m.ever_pruned)
        tensors[f"{name}.pruned"] = m.W.detach()[m.M == 0].cpu()
        if m.S is not None:
            tensors[f"{name}.scores"] = m.S.detach().cpu().contiguous()
    files.write_atomically(path, safetensors.torch.save(tensors))
