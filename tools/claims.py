"""The paper's claims as experiments: each prints what was measured here, and whether it holds.

    python -m tools.claims                            all six, about six minutes on two cores
    python -m tools.claims --claims swap,shape        some of them
    python -m tools.claims --claims crossover --steps 2250 --seed 1   other flags go to train.py
    python -m tools.claims --method FILE.py:Class                     a score of one's own
    python -m tools.claims --csv results/claims.csv                   keep the verdicts

1 swap       a pruned weight that overtakes a kept one lowers the loss (Appendix A.1)
2 close      fine-tuned weights stay close to the pretrained ones (Figure 1)
3 early      magnitude's mask is decided before training, movement's is not (Section 4)
4 crossover  magnitude is ahead where much remains, behind where little does (Figure 2)
5 shape      scores against weights have the shape of a v (Figure 4b)
6 layers     ranked globally, magnitude prunes layers alike, movement the high ones (Figure 6)

The first uses small random networks. The others use runs of train.py with one seed each, far
shorter than the paper's. The runs stay in --output: the same command again trains nothing, and
`python -m tools.figures --run` can draw them. Runs that a sweep with the same flags left in its
--keep-runs need not be made again either.
"""

import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import masking
import train
from support import cli
from support.files import RunError, UserError, run_main
from tools import anatomy, rows, sweep
from tools.anatomy import Anatomy

STEPS = 600
HIGH, LOW = 0.7, 0.03  # densities: the paper puts the crossing between 0.15 and 0.7
FIXED = {"--keep", "--scope", "--penalty", "--overwrite", "--resume",
         "--dry-run"}  # flags of train.py that the claims set themselves


class Verdict(NamedTuple):
    """What was measured, as lines to print, and whether the claim holds."""

    lines: list[str]
    holds: bool


# ------------------------------------------------------------------------- 1: swaps, App. A.1


class Absolute(masking.Movement):
    """Ranks |S| instead of S; the paper's argument does not hold for it."""

    def scores(self, W, S):
        return S.abs()


METHODS = {"Top_v(S)": masking.Movement(), "S > τ": masking.SoftMovement(),
           "Top_v(|S|)": Absolute()}


def one_step(method: masking.Method, seed: int, rate: float = 2.0) -> tuple[int, float, float]:
    """One gradient step on the scores of a small random network whose weights stay fixed.

    → how many mask entries changed; the change of the loss to first order; its true change.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
    x, y = torch.randn(64, 16), torch.randn(64, 4)
    pruner = masking.Pruner({"0": net[0].weight, "2": net[2].weight}, method, 0.5,
                            masking.Schedule(T=2, t_i=0, t_f=2))
    for m in pruner.matrices:
        m.S.data.normal_().add_(method.kept_above)

    def loss():
        pruner.set_masks(1)
        return F.mse_loss(net(x), y)

    before = loss()
    before.backward()
    pruner.set_gradients(1)
    masks = [m.M.float() for m in pruner.matrices]
    for m in pruner.matrices:
        m.S.data -= rate * m.S.grad
    after = loss()
    changes = [m.M.float() - M for m, M in zip(pruner.matrices, masks)]
    # switching W_kl on adds W_kl to W', so the loss changes by (dL/dW')_kl W_kl, which is dL/dS_kl
    first = sum(float((change * m.S.grad).sum()) for change, m in zip(changes, pruner.matrices))
    return sum(int(c.abs().sum()) for c in changes), first, (after - before).item()


def swap(trials: int = 500) -> Verdict:
    """When a pruned weight's score overtakes a kept one's, the swap lowers the loss to first
    order; with |S| it need not.

    Holds if no swap by S raises the loss to first order, and some by |S| do.
    """
    lines, rose = [], {}
    for name, method in METHODS.items():
        steps = [step for step in (one_step(method, seed) for seed in range(trials)) if step[0]]
        rose[name] = sum(first > 0 for _, first, _ in steps)
        really = sum(change > 0 for _, _, change in steps)
        lines.append(f"{name}: of {len(steps)} steps that changed the mask, {rose[name]} raised "
                     f"the loss to first order, and {really} really did")
    absolute = rose.pop("Top_v(|S|)")
    return Verdict(lines, not any(rose.values()) and absolute > 0)


# --------------------------------------------------------------------- 2 to 6: finished runs


def close(dense: Anatomy) -> Verdict:
    """Fine-tuned weights stay close to the pretrained ones.

    Holds if fine-tuning moves weights by less than a tenth of their standard deviation on average.
    """
    moved = anatomy.table(dense)[-1]["moved_kept"]
    return Verdict([f"{dense.label}: weights moved by {moved:.2f} standard deviations of their "
                    "matrix on average"], moved < 0.1)


def foreseen(a: Anatomy) -> tuple[int, int]:
    """→ how many of the kept weights were among the largest before training; how many are kept."""
    same = 0
    for part in a.parts:
        [largest] = masking.top_v([torch.from_numpy(np.abs(part.W0))], part.M.mean())
        same += int((part.M & (largest.numpy() > 0)).sum())
    return same, sum(int(part.M.sum()) for part in a.parts)


def early(magnitude: Anatomy, movement: Anatomy) -> Verdict:
    """Magnitude pruning decides before training which weights go; movement pruning does not.

    Holds if more than half of the weights that magnitude keeps, and less than half of those that
    movement keeps, were already among the largest before training.
    """
    lines, shares = [], []
    for run in (magnitude, movement):
        same, kept = foreseen(run)
        shares.append(same / kept)
        lines.append(f"{run.label}: {100 * same / kept:.1f} % of the {kept:,} weights kept are "
                     "those that magnitude keeps before training")
    lines.append(f"by chance: {100 * magnitude.metrics['keep']:g} %")
    return Verdict(lines, shares[0] > 0.5 > shares[1])


def accuracy(run: Anatomy) -> tuple[float, float]:
    """Of matched and mismatched rows together, in %, and its standard error."""
    found = [value for name, value in run.metrics["metrics"].items() if name.startswith("accuracy")]
    if not found:
        raise UserError(f"crossover compares accuracies, and {run.metrics['task']} has none")
    p = np.mean(found) / 100
    return 100 * p, 100 * np.sqrt(p * (1 - p) / run.metrics["eval_rows"])


def crossover(*runs: Anatomy) -> Verdict:
    """Magnitude is ahead where many weights remain, movement where few do.

    Holds if both leads are more than two standard errors of the difference.
    """
    lines, lead = [], []  # of magnitude, in standard errors
    for magnitude, movement in (runs[:2], runs[2:]):  # at the high density, at the low one
        (a, error_a), (b, error_b) = accuracy(magnitude), accuracy(movement)
        error = np.hypot(error_a, error_b)
        lead.append((a - b) / error)
        lines.append(f"{magnitude.label}: {a:.1f}, {movement.label}: {b:.1f} % right; "
                     f"difference {a - b:+.1f} ± {error:.1f} "
                     f"({magnitude.metrics['eval_rows']:,} rows)")
    lines.append(f"after {runs[0].metrics['steps']:,} steps")
    return Verdict(lines, bool(lead[0] > 2 and lead[1] < -2))


def bands(a: Anatomy, count: int = 5) -> np.ndarray:
    """Mean score of each fifth of a matrix's weights, from the lowest to the highest (count),
    in standard deviations of the matrix's scores, averaged over the matrices."""
    means = []
    if np.shape(a.parts[0].S) != a.parts[0].W.shape:
        raise UserError(f"{a.label}: without one score for each weight there is no v to look for")
    for part in a.parts:
        order = part.W.ravel().argsort(kind="stable")
        S = part.S.ravel() / (part.S.std() + 1e-12)
        means.append([S[fifth].mean() for fifth in np.array_split(order, count)])
    return np.mean(means, axis=0)


def shape(movement: Anatomy) -> Verdict:
    """Movement's scores against weights look like a v: low near zero, high on both sides.

    Holds if mean scores fall from the lowest weights to the middle, and rise to the highest.
    """
    means = bands(movement)
    entries = sum(part.W.size for part in movement.parts)
    falling, rising = np.diff(means)[:2], np.diff(means)[2:]
    return Verdict([
        f"{movement.label}: mean score of each fifth of the weights, lowest to highest: "
        + " ".join(f"{m:+.3f}" for m in means),
        f"in standard deviations of a matrix's scores; {entries // len(means):,} weights a fifth",
    ], bool((falling < 0).all() and (rising > 0).all()))


def layers(magnitude: Anatomy, movement: Anatomy) -> Verdict:
    """Ranked over all matrices, magnitude leaves about as much in every layer; movement keeps the
    low layers and empties the high ones.

    Holds if magnitude's fullest layer is at most twice as dense as its emptiest, and movement's
    first layer at least twice as dense as its last.
    """
    densities, lines = [], []
    for a in (magnitude, movement):
        found = anatomy.layer_rows(anatomy.table(a))
        densities.append([row["density"] for row in found])
        lines.append(f"{a.label}: " + " ".join(f"{100 * d:.1f}" for d in densities[-1])
                     + f" % of each layer's {found[0]['entries']:,} weights, first to last")
    even, uneven = densities
    return Verdict(lines, max(even) <= 2 * min(even) and uneven[0] >= 2 * uneven[-1])


# ---------------------------------------------------------------------------------- the claims


def pair(keep: float, scope: str = "local") -> tuple:
    return ("magnitude", keep, scope), ("movement", keep, scope)


# name → (a function that states the claim, and when it holds, in its docstring; method, density and
# scope of each run that it is given, in this order)
CLAIMS = {
    "swap": (swap, ()),
    "close": (close, (("dense", 1.0, "local"),)),
    "early": (early, pair(LOW)),
    "crossover": (crossover, pair(HIGH) + pair(LOW)),
    "shape": (shape, (("movement", LOW, "local"),)),
    "layers": (layers, pair(0.1, "global")),
}


def trained(needs: tuple, method: str, flags: list[str], output: Path) -> list[Anatomy]:
    """The runs that a claim needs, with `method` in movement's place; those that are not finished
    in `output` are trained first."""
    needs = [(method if name == "movement" else name, *rest) for name, *rest in needs]
    planned = [sweep.make_run([*flags, "--method", name, "--scope", scope, "--keep", f"{keep:g}"])
               for name, keep, scope in needs]
    todo = [run for run in planned if not (output / run.name / "metrics.json").exists()]
    with tempfile.TemporaryDirectory() as scratch:
        args = Namespace(jobs=1, csv=Path(scratch, "rows.csv"), keep_runs=output)
        if failed := sweep.carry_out(todo, args):
            raise RunError(f"{failed} of the runs that this claim needs failed")
    runs = [anatomy.read(output / run.name) for run in planned]
    for run, a in zip(planned, runs):
        if a.note:
            raise UserError(f"{output / run.name}: {a.note}, but claims compare with the starting "
                            "weights (another --output trains anew)")
    return runs


def stated(name: str) -> tuple[str, str]:
    """A claim, and when it holds."""
    claim, condition = CLAIMS[name][0].__doc__.split("\n\n")
    return " ".join(claim.split()), " ".join(condition.split())


def report(name: str, verdict: Verdict) -> str:
    """The claim, when it holds, what was measured, and the verdict."""
    claim, condition = stated(name)
    conclusion = "→ holds here" if verdict.holds else "→ does not hold here"
    return "\n    ".join([f"{list(CLAIMS).index(name) + 1} {name}: {claim}", condition,
                          *verdict.lines, conclusion]) + "\n"


def keep_verdict(path: Path, name: str, verdict: Verdict, runs: list[Anatomy], words: list[str]):
    """Add a row to a CSV file, in place of an earlier one of the same claim, task, model, steps,
    seed and method."""
    where = "small random networks"
    if runs:
        found = runs[-1].metrics
        where = f"{found['task']}, {rows.place(found['model'])}, {found['steps']:,} steps"
        where += f", seed {found['seed']}" * (found["seed"] > 0)
        where += f", {found['method']}" * (found["method"] not in masking.METHODS)
    row = {"claim": stated(name)[0], "where": where,
           "verdict": "holds" if verdict.holds else "does not hold",
           "measured": "; ".join(verdict.lines), **rows.made_by("tools.claims", words)}
    rows.put(path, row, ("claim", "where"))


def main() -> None:
    p = cli.Parser(prog="python -m tools.claims", description=__doc__)
    p.add_argument("--claims", metavar="NAMES", default=",".join(CLAIMS),
                   help="a comma list (default: all)")
    p.add_argument("--output", type=Path, default=Path("runs/claims"), metavar="DIR",
                   help="where the runs are kept")
    p.add_argument("--csv", type=Path, metavar="FILE", help="keep the verdicts there, a row each")
    p.add_argument("--method", default="movement", metavar="FILE.py:Class",
                   help="judge this one in movement's place, by claims 3 to 6")
    args, flags = p.parse_known_args()
    masking.find_method(args.method)
    names = args.claims.split(",")
    for name in names:
        if name not in CLAIMS:
            p.error(f"--claims {name} is not known{cli.nearest(name, CLAIMS)}")
    for flag in FIXED & {word.split("=")[0] for word in flags}:
        p.error(f"{flag}: the claims set it themselves")
    if args.csv:
        rows.check(args.csv, "claim")
    flags = ["--task", "mnli", *flags]  # which a later --task overrides
    if train.make_parser().parse_args(flags).epochs is None:  # it ends the program if one is wrong
        flags = ["--steps", str(STEPS), *flags]  # which a later --steps overrides
    began, held = time.time(), 0
    for name in names:
        judge, needs = CLAIMS[name]
        runs = trained(needs, args.method, flags, args.output)
        verdict = judge(*runs)
        held += verdict.holds
        if args.csv:
            keep_verdict(args.csv, name, verdict, runs, sys.argv[1:])
        print(report(name, verdict), flush=True)
    print(f"{held} of {len(names)} claims hold here · {time.time() - began:.0f} s")


if __name__ == "__main__":
    run_main(main)
