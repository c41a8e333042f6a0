"""Checks answers to the five exercises of PAPER.md; says how far off they are, not what they are.

    python exercises.py 1 1000000
    python exercises.py 5 mine.py
"""

import importlib.util
import math
from pathlib import Path

import torch
from torch import nn

import masking
from support import cli
from support.files import RunError, UserError, run_main
from tools import claims


def remaining() -> float:
    """1: the weights left of BERT-base at 3 %, matrix by matrix."""
    matrices = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
    return 12 * sum(round(0.03 * n * m) for n, m in matrices)


def half_way() -> float:
    """2: the first step at which fewer than half remain."""
    schedule = masking.Schedule(T=1000, t_i=100, t_f=300)
    return next(t for t in range(1000) if schedule.keep(t, 0.1) < 0.5)


def gradient() -> float:
    """3: dL/dS of the lower left weight, in the step by hand with another y."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, -1.0], [0.5, 0.2]])
    pruner = masking.Pruner({"W": layer.weight}, "movement", 0.5, masking.Schedule(2, 0, 1))
    [m] = pruner.matrices
    m.S.data = torch.tensor([[0.3, -0.1], [0.15, 0.2]])
    pruner.refresh(1)
    a = layer(torch.tensor([1.0, 2.0]))
    (0.5 * (a - torch.tensor([2.0, 0.0])).square().sum()).backward()
    pruner.backward(1)
    return m.S.grad[1, 0].item()


def open_half_of_the_time() -> float:
    """4: where E[L0] of one gate is a half."""
    low, high = -10.0, 10.0
    while high - low > 1e-6:
        S = (low + high) / 2
        low, high = (S, high) if masking.L0().chance(torch.tensor(S)) < 0.5 else (low, S)
    return low


ANSWERS = {1: (remaining, 0.0), 2: (half_way, 0.0), 3: (gradient, 1e-3),
           4: (open_half_of_the_time, 1e-2)}  # and how far off an answer may be


def check_number(exercise: int, text: str) -> str:
    try:
        answer = float(text)
    except ValueError:
        raise UserError(f"{text}: a number is asked for") from None
    right, tolerance = ANSWERS[exercise]
    off = answer - right()
    if not abs(off) <= tolerance:
        way = "too high" if off > 0 else "too low"
        raise RunError(f"not yet: {answer:.12g} is {way}" if math.isfinite(off) else
                       f"not yet: {answer:.12g} is no answer")
    return f"right: {answer:.12g}"


def load_method(path: Path):
    """The class Mine of a student's own file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix != ".py":
        raise UserError(f"{path}: not a Python file; its name is to end in .py")
    spec = importlib.util.spec_from_file_location("mine", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "Mine"):
        raise UserError(f"{path}: it has no class Mine")
    return module.Mine()


def check_method(path: Path) -> str:
    """5: exactly v remain, scores learn by Eq. (2), and some swaps raise L to first order."""
    method = load_method(path)
    weight = nn.Parameter(torch.linspace(-1, 2, 30).reshape(5, 6))
    pruner = masking.Pruner({"W": weight}, method, 0.2, masking.Schedule(2, 0, 1))
    [m] = pruner.matrices
    if m.S is None:
        raise RunError("not yet: it learns no scores")
    m.S.data = torch.linspace(1, -1, 30).reshape(5, 6)
    pruner.refresh(1)
    if abs(pruner.density() - 0.2) > 1e-9:
        raise RunError(f"not yet: {pruner.density():.3f} of the weights remain where v is 0.2")
    steps = [claims.one_step(method, seed) for seed in range(200)]
    swaps = [first for changed, first, _ in steps if changed]
    rose = sum(first > 0 for first in swaps)
    if not swaps:
        raise RunError("not yet: no step on the scores changed the mask")
    if not rose:
        raise RunError(f"not yet: the loss fell to first order in all of {len(swaps)} swaps")
    return f"right: the loss rose to first order in {rose} of {len(swaps)} steps that swapped"


def main() -> None:
    p = cli.Parser(description=__doc__)
    p.add_argument("exercise", type=int, choices=range(1, 6), help="its number in PAPER.md")
    p.add_argument("answer", help="a number; for 5, a Python file, which is run")
    args = p.parse_args()
    print(check_method(Path(args.answer)) if args.exercise == 5
          else check_number(args.exercise, args.answer))


if __name__ == "__main__":
    run_main(main)
