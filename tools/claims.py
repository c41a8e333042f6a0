"""The paper's claims as experiments: each prints what it found here, true or not.

    python -m tools.claims                            all six, about six minutes on two cores
    python -m tools.claims --claims swap,shape        some of them
    python -m tools.claims --claims crossover --steps 2250 --seed 1   flags of train.py go to its
                                                runs; --model and --data too

1 swap       a pruned weight that overtakes a kept one lowers the loss (Appendix A.1)
2 close      fine-tuned weights stay close to the pretrained ones (Figure 1)
3 early      magnitude's mask is decided before training, movement's is not (Section 4)
4 crossover  magnitude is ahead where much remains, behind where little does (Figure 2)
5 shape      scores against weights have the shape of a v (Figure 4b)
6 layers     ranked globally, magnitude prunes layers alike, movement the high ones (Figure 6)

The first takes small random networks. The others look at runs of train.py, one seed each and far
shorter than the paper's; they stay in --output, so a second look at them costs nothing, and
`python -m tools.figures --run` draws them. What counts as true is written where it is computed.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import masking
from support import cli
from support.files import RunError, UserError, read_json, run_main
from tools import anatomy, sweep

HERE = Path(__file__).parent.parent
STEPS = 600
HIGH, LOW = 0.7, 0.03  # densities: the paper puts the crossing between 0.15 and 0.7
OWN = ("--task", "--method", "--keep", "--scope", "--penalty", "--overwrite", "--resume",
       "--dry-run")


class Trained(NamedTuple):
    """A finished run: its matrices, and its metrics.json."""

    anatomy: anatomy.Anatomy
    metrics: dict


class Verdict(NamedTuple):
    """The lines that say what was found, and whether the claim holds."""

    found: list[str]
    holds: bool


# ------------------------------------------------------------------------- 1: swaps, App. A.1


class Absolute(masking.Movement):
    """Ranks |S| in place of S, for which the paper's argument fails."""

    def scores(self, W, S):
        return S.abs()


MASKS = {"Top_v(S)": masking.Movement(), "S > τ": masking.SoftMovement(),
         "Top_v(|S|)": Absolute()}


def one_step(method, seed: int, rate: float = 2.0) -> tuple[int, float, float]:
    """One gradient step on the scores of a small random network whose weights stand still.

    → how many mask entries changed; the loss's change to first order; its true change.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
    x, y = torch.randn(64, 16), torch.randn(64, 4)
    pruner = masking.Pruner({"0": net[0].weight, "2": net[2].weight}, method, 0.5,
                            masking.Schedule(T=2, t_i=0, t_f=2), penalty=0.0)
    for m in pruner.matrices:
        m.S.data.normal_().add_(getattr(method, "cut", 0.0))

    def loss():
        pruner.refresh(1)
        return F.mse_loss(net(x), y)

    before = loss()
    before.backward()
    pruner.backward(1)
    masks = [m.M for m in pruner.matrices]
    for m in pruner.matrices:
        m.S.data -= rate * m.S.grad
    after = loss()
    changes = [m.M - M for m, M in zip(pruner.matrices, masks)]
    # switching W_kl on adds W_kl to W', so the loss changes by (dL/dW')_kl W_kl, which is dL/dS_kl
    first = sum(float((change * m.S.grad).sum()) for change, m in zip(changes, pruner.matrices))
    return sum(int(c.abs().sum()) for c in changes), first, (after - before).item()


def swap(trials: int = 500) -> Verdict:
    """Holds if no swap by S raises the loss to first order, and some by |S| do."""
    lines, rose = [], {}
    for name, method in MASKS.items():
        steps = [step for step in (one_step(method, seed) for seed in range(trials)) if step[0]]
        n = len(steps)
        rose[name] = sum(first > 0 for _, first, _ in steps)
        really = sum(change > 0 for _, _, change in steps)
        lines.append(f"{name:10}  the loss rose to first order in {rose[name]} of {n} steps that "
                     f"changed the mask, in truth in {really} of {n}")
    absolute = rose.pop("Top_v(|S|)")
    return Verdict(lines, not any(rose.values()) and absolute > 0)


# ----------------------------------------------------------------------- 2 to 6: runs looked at


def percent(part, whole) -> str:
    return f"{100 * part / whole:.1f} % ({part:,} of {whole:,})"


def close(dense: Trained) -> Verdict:
    """Holds if fine-tuning moves weights by less than a tenth of their standard deviation."""
    whole = anatomy.table(dense.anatomy)[-1]
    n = whole["entries"]
    W, W0 = (np.concatenate([getattr(p, k).ravel() for p in dense.anatomy.parts])
             for k in ("W", "W0"))
    return Verdict([
        f"dense: {n:,} weights moved by {whole['moved_kept']:.3f} standard deviations of their "
        "pretrained matrix on average",
        f"correlation of fine-tuned with pretrained weights {np.corrcoef(W, W0)[0, 1]:.3f}; "
        f"{percent(round(n * whole['flipped']), n)} changed sign",
    ], whole["moved_kept"] < 0.1)


def foreseen(a: anatomy.Anatomy) -> tuple[int, int]:
    """→ of the weights kept, those that were among the largest of the pretrained matrix; all."""
    same = kept = 0
    for part in a.parts:
        [largest] = masking.top_v([torch.from_numpy(np.abs(part.W0))], part.M.mean())
        same += int((part.M & (largest.numpy() > 0)).sum())
        kept += int(part.M.sum())
    return same, kept


def early(magnitude: Trained, movement: Trained) -> Verdict:
    """Holds if the pretrained sizes foretell more than half of magnitude's choice and less than
    half of movement's."""
    found = [foreseen(run.anatomy) for run in (magnitude, movement)]
    lines = [f"{run.anatomy.label}: {percent(*pair)} of the weights kept are those that magnitude "
             "keeps before training" for run, pair in zip((magnitude, movement), found)]
    (a, kept_a), (b, kept_b) = found
    return Verdict([*lines, f"by chance: {100 * magnitude.metrics['keep']:g} %"],
                   a > kept_a / 2 and b < kept_b / 2)


def accuracy(run: Trained) -> tuple[float, float]:
    """Of matched and mismatched rows together → %, and its standard error from their number."""
    p = np.mean(list(run.metrics["metrics"].values())) / 100
    return 100 * p, 100 * np.sqrt(p * (1 - p) / run.metrics["eval_rows"])


def crossover(*runs: Trained) -> Verdict:
    """Holds if at the high density magnitude, and at the low one movement, is ahead by more than
    two standard errors of the difference. `runs`: magnitude and movement, high, then low."""
    lines, ahead = [], []
    for magnitude, movement in (runs[:2], runs[2:]):
        (a, error_a), (b, error_b) = accuracy(magnitude), accuracy(movement)
        error = np.hypot(error_a, error_b)
        ahead.append((a - b) / error)
        lines.append(f"{100 * magnitude.metrics['density']:.3g} % remain: magnitude {a:.1f}, "
                     f"movement {b:.1f} % right; difference {a - b:+.1f} ± {error:.1f} "
                     f"({magnitude.metrics['eval_rows']:,} rows)")
    lines.append(f"after {runs[0].metrics['steps']:,} steps")
    return Verdict(lines, bool(ahead[0] > 2 and ahead[1] < -2))


def bands(a: anatomy.Anatomy, count: int = 5) -> np.ndarray:
    """Mean score of each fifth of a matrix's weights, from the lowest to the highest (count),
    in standard deviations of the matrix's scores, averaged over the matrices."""
    means = []
    for part in a.parts:
        order = part.W.ravel().argsort(kind="stable")
        S = part.S.ravel() / (part.S.std() + 1e-12)
        means.append([S[fifth].mean() for fifth in np.array_split(order, count)])
    return np.mean(means, axis=0)


def shape(movement: Trained) -> Verdict:
    """Holds if mean scores fall from the lowest weights to the middle, and rise to the highest."""
    means = bands(movement.anatomy)
    entries = sum(part.W.size for part in movement.anatomy.parts)
    down, up = np.diff(means)[:2], np.diff(means)[2:]
    return Verdict([
        f"{movement.anatomy.label}: mean score of each fifth of the weights, lowest to highest: "
        + " ".join(f"{m:+.3f}" for m in means),
        f"in standard deviations of a matrix's scores; {entries // len(means):,} weights a fifth",
    ], bool((down < 0).all() and (up > 0).all()))


def layers(magnitude: Trained, movement: Trained) -> Verdict:
    """Holds if magnitude's fullest layer is at most twice as dense as its emptiest, and movement's
    first layer at least twice as dense as its last."""
    densities, lines = [], []
    for a in (magnitude.anatomy, movement.anatomy):
        rows = [row for row in anatomy.table(a) if row["matrix"] == "all" and row["layer"] != "all"]
        densities.append([row["density"] for row in rows])
        lines.append(f"{a.label}: " + " ".join(f"{100 * d:.1f}" for d in densities[-1])
                     + f" % of each layer's {rows[0]['entries']:,} weights, first to last")
    even, uneven = densities
    return Verdict(lines, max(even) <= 2 * min(even) and uneven[0] >= 2 * uneven[-1])


# ---------------------------------------------------------------------------------- the claims


@dataclass(frozen=True)
class Claim:
    """needs: (method, keep, scope) of each run that `judge` looks at, in its order."""

    text: str
    judge: callable
    needs: tuple[tuple[str, float, str], ...] = ()


PAIR = ("magnitude", "movement")
CLAIMS = {
    "swap": Claim("When a pruned weight's score overtakes a kept one's, the swap lowers the loss "
                  "to first order; with |S| it need not.", swap),
    "close": Claim("Fine-tuned weights stay close to the pretrained ones.", close,
                   (("dense", 1.0, "local"),)),
    "early": Claim("Magnitude pruning has decided before training which weights go; movement "
                   "pruning has not.", early, tuple((m, LOW, "local") for m in PAIR)),
    "crossover": Claim(f"Magnitude is ahead when {100 * HIGH:g} % of the weights remain, movement "
                       f"when {100 * LOW:g} % do.", crossover,
                       tuple((m, keep, "local") for keep in (HIGH, LOW) for m in PAIR)),
    "shape": Claim("Movement's scores against weights look like a v: low near zero, high on both "
                   "sides.", shape, (("movement", LOW, "local"),)),
    "layers": Claim("Ranked over all matrices, magnitude leaves about as much in every layer; "
                    "movement keeps the low layers and empties the high ones.", layers,
                    tuple((m, 0.1, "global") for m in PAIR)),
}


def trained(need: tuple[str, float, str], flags: list[str], output: Path) -> Trained:
    """The run asked for, from `output` if it is there, else trained now (or gone on with)."""
    method, keep, scope = need
    words = ["--steps", str(STEPS), *flags, "--task", "mnli", "--method", method, "--scope", scope,
             "--keep", f"{keep:g}"]
    run = sweep.make_run(words)  # checks the flags, too
    folder = output / f"{run.name}-{run.key[:6]}"
    if not (folder / "metrics.json").exists():
        print(f"training {folder} …", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, str(HERE / "train.py"), *words, "--resume",
                               "--output", str(folder)], stdout=subprocess.DEVNULL)
        if done.returncode:  # it has said why
            raise RunError(f"{folder}: training ended with status {done.returncode}")
    found = anatomy.read(folder)
    if found.note:
        raise UserError(f"{folder}: {found.note}; the claims compare with them "
                        "(another --output trains anew)")
    return Trained(found, read_json(folder / "metrics.json"))


def report(name: str, verdict: Verdict) -> str:
    number = list(CLAIMS).index(name) + 1
    says = "holds here" if verdict.holds else "does not hold here"
    return "\n".join([f"{number} {name}: {CLAIMS[name].text}",
                      *(f"    {line}" for line in verdict.found), f"    → {says}", ""])


def main() -> None:
    p = cli.Parser(description=__doc__, usage="python -m tools.claims [--claims NAMES] "
                   "[--output DIR] [flags of train.py]")
    p.add_argument("--claims", metavar="NAMES", help=f"of {','.join(CLAIMS)} (default all)")
    p.add_argument("--output", type=Path, default=Path("runs/claims"), metavar="DIR",
                   help="where the runs are kept (default runs/claims)")
    args, flags = p.parse_known_args()
    names = args.claims.split(",") if args.claims else CLAIMS
    for name in names:
        if name not in CLAIMS:
            p.error(f"--claims {name} is not known{cli.nearest(name, list(CLAIMS))}")
    for flag in (word.split("=")[0] for word in flags):
        if flag in OWN:
            p.error(f"{flag}: is the claims' own affair")
    began = time.time()
    verdicts = {}
    for name in names:
        claim = CLAIMS[name]
        verdicts[name] = claim.judge(*(trained(need, flags, args.output) for need in claim.needs))
        print(report(name, verdicts[name]), flush=True)
    held = sum(verdict.holds for verdict in verdicts.values())
    print(f"{held} of {len(verdicts)} claims hold here · {time.time() - began:.0f} s")


if __name__ == "__main__":
    run_main(main)
