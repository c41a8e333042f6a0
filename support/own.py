"""A method in a file of the user's own, named on the command line: --method FILE.py:Class.

The file is run. So only a command line may name it, never a run's folder.
"""

import functools
import hashlib
import traceback
from pathlib import Path

import torch

from support.files import UserError, reading


def source(name: str) -> bytes:
    """The file of FILE.py:Class; empty for a name of another form."""
    file = name.rpartition(":")[0]
    if not file.endswith(".py"):
        return b""
    with reading(file):
        return Path(file).read_bytes()


def digest(name: str) -> str | None:
    return hashlib.sha256(source(name)).hexdigest() if source(name) else None


@functools.cache
def load(name: str, code: bytes, base: type) -> type:
    """The class FILE.py:Class, a child of `base` (masking.Method), tried out; `code`: of the file.

    UserError for anything else, and for an error in the file, with its line.
    """
    file, _, class_name = name.rpartition(":")
    try:
        exec(compile(code, file, "exec"), module := {"__name__": Path(file).stem})
        found = module.get(class_name)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise UserError(f"--method {name}: no class of this name that is a masking.Method")
        try_out(found(), name)
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == file]
        at = lines[-1] if lines else getattr(error, "lineno", "")
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{file}:{at}: {why}") from error
    return found


def try_out(m, name: str) -> None:
    """Two steps of a method on a small matrix with zeros in it; UserError if one goes wrong."""
    def check(what: str, x, shape) -> None:
        if not isinstance(x, torch.Tensor) or x.shape != shape or not torch.isfinite(x).all():
            raise UserError(f"--method {name}: {what} must be a tensor of shape {tuple(shape)} "
                            "without NaN and infinity when W is (4, 6)")

    if not m.prunes:
        return
    if m.penalised and (m.ranked or not m.learned):
        raise UserError(f"--method {name}: with penalised = True, it needs learned = True and "
                        "ranked = False")
    noise = torch.Generator().manual_seed(0)
    W, g = torch.randn(2, 4, 6, generator=noise)
    W[0], g[:, 0] = 0, 0
    S, dM_dS = m.first_scores(W.clone(), noise), None
    for _ in range(2):
        if m.ranked:
            check("scores(W, S)", m.scores(W, S), W.shape)
        else:
            M, dM_dS = m.mask(S, m.tau_f, lambda shape: torch.rand(shape, generator=noise))
            check("mask(S, tau, draw)", M, W.shape)
        dL_dS = m.score_gradient(W, g, S, dM_dS)
        if m.learned:
            check("score_gradient(…)", dL_dS, S.shape)
            S = S - dL_dS
        if m.penalised:
            check("penalty(S)", m.penalty(S), ())
