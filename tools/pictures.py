"""The pictures of PAPER.md, drawn from numbers that the code itself computes, and one of costs.

    python -m tools.pictures                       all of them
    python -m tools.pictures --only step schedule  some of them, in seconds

step      a 2 × 2 layer through three steps of movement pruning
schedule  Eq. (5): density, τ and λ through a run
gate      the hard concrete: how likely each value of a mask is
search    how λ is found for a density
run       Figure 1 as a film: two short runs on the sample, some minutes
growth    what a step of movement pruning costs by size of model and batch: results/benchmark.json
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import evaluate
import masking
import train
from support import cli
from support.files import UserError, read_json, run_main
from support.penalty import PenaltySearch
from tools import drawing
from tools.drawing import GREY, plt, save, style_of

HERE = Path(__file__).parent.parent
W = torch.tensor([[1.0, -1.0], [0.5, 0.2]])
S = torch.tensor([[0.3, -0.1], [0.15, 0.2]])
X, Y = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.4])


def over_steps(axis, schedule: masking.Schedule, curve: list[float], title: str):
    """A curve over the steps of a run, whose parts are marked."""
    axis.plot(curve, color=style_of("soft_movement")[0], label=title)
    ticks = {0: "0", schedule.t_i: "$t_i$", schedule.T - schedule.t_f: "$T − t_f$", schedule.T: "T"}
    axis.set(title=title, xlabel="step t", xticks=[*ticks], xticklabels=ticks.values())


# ------------------------------------------------------------------------- three steps by hand


def steps_by_hand(count: int = 3) -> list[dict[str, torch.Tensor]]:
    """A layer a = (W ⊙ M) x with L = ½ ‖a − y‖² and v = ½, in plain gradient steps → what W, S,
    M, … are in each step."""
    weight = nn.Parameter(W.clone())  # v = ½ from the first step on:
    schedule = masking.Schedule(T=count, t_i=0, t_f=count)
    pruner = masking.Pruner({"W": weight}, masking.Movement(), 0.5, schedule)
    [m] = pruner.matrices
    m.S.data = S.clone()
    optimizer = torch.optim.SGD([{"params": m.W, "lr": 0.1}, {"params": m.S, "lr": 1.0}])
    states = []
    for t in range(count):
        pruner.set_masks(t)
        a = weight @ X
        L = 0.5 * (a - Y).square().sum()
        L.backward()
        state = {"S": m.S, "M": m.M.float(), "W": m.W, "W'": weight, "dL/dW'": weight.grad,
                 "a": a, "L": L}
        pruner.set_gradients(t)
        state |= {"dL/dS": m.S.grad, "dL/dW": m.W.grad}
        states.append({name: x.detach().clone() for name, x in state.items()})
        optimizer.step()
    return states


def draw_step(path: Path) -> None:
    names = ["S", "M", "W", "W'", "dL/dW'", "dL/dS", "dL/dW"]
    figure, axes = plt.subplots(3, len(names), figsize=(11, 5.2))
    for t, state in enumerate(steps_by_hand()):
        for axis, name in zip(axes[t], names):
            values = state[name].numpy()
            colours, low = ("Greys", 0) if name == "M" else ("RdBu", -3)
            axis.imshow(values, cmap=colours, vmin=low, vmax=3)
            for (i, j), value in np.ndenumerate(values):
                axis.text(j, i, f"{value + 0.0:.3g}".replace("-", "−"), ha="center", va="center",
                          color="white" if abs(value) > 2 else "black")
            axis.set(xticks=[], yticks=[], title=name if t == 0 else "")
            axis.spines[:].set_visible(True)
        axes[t, 0].set_ylabel(f"step {t}\nL = {state['L']:.2f}")
    save(figure, path / "guide-step", dpi=130)


# ----------------------------------------------------------------------- schedule, gate, search


def draw_schedule(path: Path) -> None:
    schedule, method, steps = masking.Schedule(1000, 150, 250), masking.SoftMovement(), range(1000)
    pruner = masking.Pruner({"W": nn.Parameter(W)}, method, 0.1, schedule, penalty=300.0)
    curves = {"density v": [schedule.keep(t, 0.1) for t in steps],
              "τ, which σ(S) must exceed": [schedule.tau(t, method.tau_f) for t in steps],
              "λ of soft movement": [pruner.next_penalty(t) for t in steps]}
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.9))
    for axis, (title, curve) in zip(axes, curves.items()):
        over_steps(axis, schedule, curve, title)
    save(figure, path / "guide-schedule", dpi=130)


def draw_gate(path: Path) -> None:
    u = (torch.arange(100_000) + 0.5) / 100_000  # every value that the noise can have
    gate = masking.L0()
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.9), sharey=True)
    for axis, score in zip(axes, (-2.0, 0.0, gate.initial_score)):
        M, _ = gate.mask(torch.full_like(u, score), 0.0, lambda shape: u)
        inside = M[(M > 0) & (M < 1)]
        axis.hist(inside, bins=50, range=(0, 1), weights=np.full(len(inside), 50 / len(u)),
                  color=style_of("l0")[0], alpha=0.6)
        shares = [(value == M).float().mean().item() for value in (0, 1)]
        bars = axis.bar((0, 1), [3 * share for share in shares], width=0.03, color="black")
        axis.bar_label(bars, [f"{100 * share:.0f} %" for share in shares], padding=3)
        chance = 100 * gate.chance_open(torch.tensor(score))
        axis.set(title=f"S = {score:g}: open in {chance:.0f} %".replace("-", "−"),
                 xlabel="mask M", ylim=(0, 2.9), yticks=[])
    axes[0].set_ylabel("density")
    save(figure, path / "guide-gate", dpi=130)


def search_for_penalty(T: int = 600, keep: float = 0.1) -> tuple[PenaltySearch, list[dict]]:
    """Soft movement on 4,000 scores with a noisy gradient → the search, what it saw each step."""
    torch.manual_seed(0)
    method, schedule = masking.SoftMovement(), masking.Schedule(T, T // 10, T // 5)
    search = PenaltySearch(method, keep, schedule, lambda t: 0.03 * (T - t) / T)
    weight, pull = nn.Parameter(torch.ones(80, 50)), 0.3 * torch.randn(80, 50)
    pruner = masking.Pruner({"W": weight}, method, keep, schedule, penalty=search)
    optimizer = torch.optim.Adam(pruner.scores(), lr=0.03)
    seen = []
    for t in range(T):
        pruner.set_masks(t)
        weight.grad = torch.randn(80, 50) - pull
        optimizer.param_groups[0]["lr"] = search.score_lr(t)
        pruner.set_gradients(t)
        most = pruner.matrices[0].S.detach().quantile(torch.tensor([0.05, 0.95])).tolist()
        seen.append({"q": search.quantile(pruner.scores()), "λ": pruner.penalty,
                     "density": pruner.density(), "scores": most})
        optimizer.step()
    return search, seen


def draw_search(path: Path) -> None:
    search, seen = search_for_penalty()
    figure, axes = plt.subplots(1, 3, figsize=(11, 3))
    for axis, name in zip(axes, ("q", "λ", "density")):
        over_steps(axis, search.schedule, [row[name] for row in seen], name)
    axes[0].fill_between(range(len(seen)), *zip(*(row["scores"] for row in seen)), color=GREY,
                         alpha=0.5, label="nine tenths of all scores")
    for axis, goal in ((axes[0], search.method.kept_above), (axes[2], search.v)):
        axis.axhline(goal, color="black", linestyle="--", linewidth=1, label="target")
    axes[0].legend(fontsize=9)
    save(figure, path / "guide-search", dpi=130)


# --------------------------------------------------------------------------------- Figure 1


def run(*words: str) -> Iterator[tuple[int, float, masking.Pruner]]:
    """A run of train.py with these flags, but without files: step, loss and Pruner after each
    step, and once more at the end, with the final masks."""
    settings = train.resolve(train.make_parser().parse_args(words))
    prepared = evaluate.prepare_run(settings, evaluate.find_task(settings.task, settings.data))
    schedule = train.make_schedule(settings, len(prepared.features))
    settings = replace(settings, steps=schedule.T, precision="fp32")
    pruner = train.make_pruner(prepared.model, settings, schedule)
    optimizer, scheduler = train.make_optimizer(prepared.model, pruner, settings)
    for t, loss, *_ in train.train(prepared.model, pruner, optimizer, scheduler,
                                   prepared.features, settings):
        yield t, float(loss), pruner
    yield schedule.T, float(loss), pruner


def snapshots(count: int, *words: str) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """→ density, weights and masks at `count` steps of a run, at first and at last included."""
    taken = []
    for t, _, pruner in run(*words):
        T = pruner.schedule.T
        if t * (count - 1) // T > (t - 1) * (count - 1) // T:
            taken.append((pruner.density(), *(
                torch.cat([getattr(m, name).detach().flatten() for m in pruner.matrices]).numpy()
                for name in ("W", "M"))))
    return taken


def draw_frame(figure, films: dict[str, list], frame: int) -> None:
    """Some of the weights, a panel for each method, and the density above."""
    figure.clear()
    axes = figure.subplot_mosaic([["density"] * len(films), list(films)], height_ratios=(1, 4))
    for name, film in films.items():
        (_, before, _), (v, now, kept), axis = film[0], film[frame], axes[name]
        shown = np.random.default_rng(0).permutation(len(now))[:10_000]
        for which, ink in ((~kept, GREY), (kept, style_of(name)[0])):
            at = shown[which[shown]]
            axis.scatter(before[at], now[at], s=3, color=ink, linewidths=0)
        axis.axline((0, 0), slope=1, color="black", linewidth=0.7)
        axis.set(xlim=(-0.2, 0.2), ylim=(-0.2, 0.2), xlabel="weight at first", ylabel="weight now",
                 title=f"{name}: {100 * v:.0f} % left")
    axes["density"].plot([v for v, *_ in film], color=GREY)
    axes["density"].plot(frame, v, "o", color="black")
    axes["density"].set(xticks=[], ylim=(0, 1.1), ylabel="density")


def draw_run(path: Path, frames: int = 25, words: tuple[str, ...] = ("--steps", "600")) -> None:
    from matplotlib.animation import FuncAnimation

    path.mkdir(parents=True, exist_ok=True)
    films = {name: snapshots(frames, "--method", name, "--keep", "0.03", *words)
             for name in ("magnitude", "movement")}
    figure = plt.figure(figsize=(7.2, 4.6))
    order = [*range(frames), *[frames - 1] * 8]  # the end stays for a while
    FuncAnimation(figure, lambda frame: draw_frame(figure, films, frame), order).save(
        path / "guide-run.gif", writer="pillow", fps=4, dpi=90)
    save(figure, path / "guide-run", dpi=130)


# ----------------------------------------------------------------------------- growth of costs


def draw_growth(path: Path) -> None:
    """A bar for each size: where the time of a step goes."""
    cases = [row for row in read_json(HERE / "results" / "benchmark.json")["rows"]
             if row["part"] == "growth"]
    if not cases:
        raise UserError("results/benchmark.json has no part growth: make it with tools.benchmark")
    figure, axis = plt.subplots(figsize=(7.2, 2.9))
    sizes, begin = [row["size"].replace(", ", "\n") for row in cases], np.zeros(len(cases))
    for stage, ink in zip(cases[0]["stages"], (GREY, *(style_of(name)[0] for name in (
            "movement", "soft_movement", "magnitude")))):
        share = np.array([100 * row["stages"][stage] / sum(row["stages"].values())
                          for row in cases])
        axis.barh(sizes, share, left=begin, color=ink, label=stage)
        begin += share
    for place, row in enumerate(cases):
        axis.text(101, place, f"{row['ms']:,.0f} ms, {row['ratio']:.2f} of dense", va="center")
    axis.set(xlim=(0, 100), xlabel="share of a step (%)")
    axis.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=4)
    save(figure, path / "benchmark-growth", dpi=130)


DRAW = {"step": draw_step, "schedule": draw_schedule, "gate": draw_gate, "search": draw_search,
        "run": draw_run, "growth": draw_growth}


def main() -> None:
    p = cli.Parser(prog="python -m tools.pictures", description=__doc__)
    p.add_argument("--only", nargs="+", choices=list(DRAW), default=list(DRAW), metavar="NAME",
                   help="which of them (default: all)")
    p.add_argument("--output", type=Path, default=HERE / "figures", metavar="DIR")
    args = p.parse_args()
    drawing.start()
    for name in args.only:
        DRAW[name](args.output)


if __name__ == "__main__":
    run_main(main)
