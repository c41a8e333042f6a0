"""A class in a file of the user's own, named on the command line: --method FILE.py:Class.

The file is run. So only a command line may name it, never a run's folder.
"""

import functools
import hashlib
import traceback
import types
from contextlib import contextmanager
from pathlib import Path

import torch

from support.files import UserError


def is_own(name: str) -> bool:
    return ".py:" in name


def source(name: str) -> bytes | None:
    """The file of FILE.py:Class; None for a name of another form. UserError if it is unreadable."""
    if not is_own(name):
        return None
    path = Path(name.rpartition(":")[0])
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def digest(name: str) -> str | None:
    """Of the file, or None as for source()."""
    return hashlib.sha256(source(name)).hexdigest() if is_own(name) else None


@contextmanager
def blaming(file: str):
    """An error in the user's file becomes a UserError that names its line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == file]
        at = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else ""
        why = (str(error).strip() or "no message").splitlines()[0]
        raise UserError(f"{file}:{at}: {type(error).__name__}: {why}") from error


@functools.cache
def run_file(file: str, code: bytes) -> types.ModuleType:
    module = types.ModuleType(Path(file).stem)
    module.__file__ = file
    with blaming(file):
        exec(compile(code, file, "exec"), vars(module))
    return module


def method(name: str, base: type) -> type:
    """The class that FILE.py:Class names, a child of `base` (masking.Method), tried out.

    UserError for anything else.
    """
    file, _, class_name = name.rpartition(":")
    found = getattr(run_file(file, source(name)), class_name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        what = "no class of this name" if found is None else "not a child of masking.Method"
        raise UserError(f"--method {name}: {what}")
    with blaming(file):
        try_out(found(), name)
    return found


def check(name: str, what: str, x, shape) -> None:
    if not isinstance(x, torch.Tensor) or x.shape != shape:
        given = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise UserError(f"--method {name}: {what} gives {given}, not a tensor of shape "
                        f"{tuple(shape)}")
    if not torch.isfinite(x).all():
        raise UserError(f"--method {name}: {what} gives NaN or infinity")


def try_out(m, name: str) -> None:
    """Two steps of a method on a small matrix with zeros in it; UserError if one goes wrong."""
    noise = torch.Generator().manual_seed(0)
    W, g = torch.randn(2, 4, 6, generator=noise)
    W[0], g[:, 0] = 0, 0
    S = m.first_scores(W.clone(), noise)
    for _ in range(2):
        if m.ranked:
            check(name, "scores(W, S)", m.scores(W, S), W.shape)
            dM_dS = None
        else:
            M, dM_dS = m.mask(S, m.tau_f, lambda shape: torch.rand(shape, generator=noise))
            check(name, "mask(S, tau, draw)", M, W.shape)
        dL_dS = m.score_gradient(W, g, S, dM_dS)
        if m.learned:
            check(name, "score_gradient(…)", dL_dS, S.shape)
            S = S - dL_dS
        if m.penalised:
            check(name, "penalty(S)", m.penalty(S), ())
