"""The pictures of PAPER.md, drawn from numbers that the code itself computes.

    python -m tools.pictures                       all of them
    python -m tools.pictures --only step,schedule  some of them, in seconds

step      a 2 × 2 layer through three steps of movement pruning
schedule  Eq. (5): density, τ and λ through a run
gate      the hard concrete: how likely each value of a mask is
search    how λ is found for a density
run       Figure 1 as a film: two short runs on the sample, some minutes
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
from support.files import UserError, run_main
from support.penalty import PenaltySearch
from tools.figures import GREY, HERE, LOOK, plt, style_of

W = torch.tensor([[1.0, -1.0], [0.5, 0.2]])
S = torch.tensor([[0.3, -0.1], [0.15, 0.2]])
X, Y = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.4])
ALPHA_S, ALPHA_W = 1.0, 0.1


def save(figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"drew {path}")


# ------------------------------------------------------------------------- three steps by hand


def steps_by_hand(count: int = 3) -> list[dict[str, torch.Tensor]]:
    """A layer a = (W ⊙ M) x with L = ½ ‖a − y‖² and v = ½, in plain gradient steps → what W, S,
    M, … are in each step."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = W.clone()
    at_once = masking.Schedule(T=count, t_i=0, t_f=count)  # v = ½ from the first step on
    pruner = masking.Pruner({"W": layer.weight}, masking.Movement(), 0.5, at_once)
    [m] = pruner.matrices
    m.S.data = S.clone()
    optimizer = torch.optim.SGD([{"params": pruner.weights(), "lr": ALPHA_W},
                                 {"params": pruner.scores(), "lr": ALPHA_S}])
    states = []
    for t in range(count):
        pruner.set_masks(t)
        a = layer(X)
        L = 0.5 * (a - Y).square().sum()
        L.backward()
        state = {"S": m.S, "M": m.M.float(), "W": m.W, "W'": layer.weight,
                 "dL/dW'": layer.weight.grad}
        state = {name: x.detach().clone() for name, x in state.items()}
        pruner.set_gradients(t)
        states.append(state | {"dL/dS": m.S.grad.clone(), "dL/dW": m.W.grad.clone(),
                               "a": a.detach(), "L": L.detach()})
        optimizer.step()
    return states


def draw_step(path: Path) -> None:
    states = steps_by_hand()
    names = ["S", "M", "W", "W'", "dL/dW'", "dL/dS", "dL/dW"]
    figure, axes = plt.subplots(len(states), len(names), figsize=(11, 5.2))
    for t, state in enumerate(states):
        for axis, name in zip(axes[t], names):
            values = state[name].numpy()
            colours, low = ("Greys", 0) if name == "M" else ("RdBu", -3)
            axis.imshow(values, cmap=colours, vmin=low, vmax=3)
            for (i, j), value in np.ndenumerate(values):
                pruned = name == "W'" and state["M"][i, j] == 0
                axis.text(j, i, f"{value + 0.0:.3g}".replace("-", "−"), ha="center", va="center",
                          color=GREY if pruned else "white" if abs(value) > 2 else "black")
            axis.set(xticks=[], yticks=[], title=name if t == 0 else "")
            axis.spines[:].set_visible(True)
        axes[t, 0].set_ylabel(f"step {t}\nL = {state['L']:.2f}")
    save(figure, path / "guide-step.png")


# ----------------------------------------------------------------------- schedule, gate, search


def draw_schedule(path: Path) -> None:
    T, t_i, t_f, penalty, method = 1000, 150, 250, 300.0, masking.SoftMovement()
    schedule = masking.Schedule(T, t_i, t_f)
    pruner = masking.Pruner({"W": nn.Parameter(W)}, method, 0.1, schedule, penalty=penalty)
    curves = {"density v (%)": [100 * schedule.keep(t, 0.1) for t in range(T)],
              "τ, which σ(S) must exceed": [schedule.tau(t, method.tau_f) for t in range(T)],
              "λ of soft movement": [pruner.next_penalty(t) for t in range(T)]}
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.9))
    for axis, (name, curve) in zip(axes, curves.items()):
        axis.plot(curve, color=style_of("movement" if axis is axes[0] else "soft_movement")[0])
        axis.set(title=name, xlabel="step t", xticks=[0, t_i, T - t_f, T], ylim=(0, None))
        axis.set_xticklabels(["0", "$t_i$", "$T − t_f$", "T"])
    save(figure, path / "guide-schedule.png")


def draw_gate(path: Path) -> None:
    u = (torch.arange(100_000) + 0.5) / 100_000  # every value that the noise can have
    gate = masking.L0()
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.9), sharey=True)
    for axis, score in zip(axes, (-2.0, 0.0, gate.initial_score)):
        M, _ = gate.mask(torch.full_like(u, score), 0.0, lambda shape: u)
        inside = M[(M > 0) & (M < 1)]
        axis.hist(inside, bins=50, range=(0, 1), weights=np.full(len(inside), 50 / len(u)),
                  color=style_of("l0")[0], alpha=0.6)
        for value, side in ((0, "left"), (1, "right")):
            share = (value == M).float().mean().item()
            axis.bar(value, 3 * share, width=0.03, color="black")
            axis.annotate(f"{100 * share:.0f} %", (value, 3 * share), (0, 3), ha=side,
                          textcoords="offset points")
        chance = 100 * gate.chance_open(torch.tensor(score))
        axis.set(title=f"S = {score:g}: open in {chance:.0f} %".replace("-", "−"),
                 xlabel="mask M", ylim=(0, 2.9), yticks=[])
    axes[0].set_ylabel("density")
    save(figure, path / "guide-gate.png")


def search_for_penalty(T: int = 600, keep: float = 0.1) -> tuple[PenaltySearch, list[dict]]:
    """Soft movement on 4,000 scores with a noisy gradient → the search, what it saw each step."""
    torch.manual_seed(0)
    method, schedule = masking.SoftMovement(), masking.Schedule(T, T // 10, T // 5)
    search = PenaltySearch(method, keep, schedule, lambda t: 0.03 * (T - t) / T)
    layer, pull = nn.Linear(50, 80, bias=False), 0.3 * torch.randn(80, 50)
    layer.weight.data.fill_(1.0)
    pruner = masking.Pruner({"W": layer.weight}, method, keep, schedule, penalty=search)
    optimizer = torch.optim.Adam(pruner.scores(), lr=0.03)
    seen = []
    for t in range(T):
        pruner.set_masks(t)
        layer.weight.grad = torch.randn(80, 50) - pull
        optimizer.param_groups[0]["lr"] = search.score_lr(t)
        pruner.set_gradients(t)
        seen.append({"q": search.q, "λ": pruner.penalty, "density": 100 * pruner.density(),
                     "scores": torch.quantile(pruner.matrices[0].S.detach(),
                                              torch.tensor([0.05, 0.95])).tolist()})
        optimizer.step()
    return search, seen


def draw_search(path: Path) -> None:
    search, seen = search_for_penalty()
    schedule, steps, colour = search.schedule, range(len(seen)), style_of("soft_movement")[0]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3))
    low, high = zip(*(row["scores"] for row in seen))
    axes[0].fill_between(steps, low, high, color=GREY, alpha=0.5, label="90 % of the scores")
    axes[0].plot(steps, [row["q"] for row in seen], color=colour, label="q")
    axes[0].axhline(search.method.kept_above, color="black", linestyle="--", linewidth=1,
                    label="must be exceeded to stay")
    axes[0].legend(fontsize=9)
    penalties = [row["λ"] for row in seen]
    axes[1].plot(steps, penalties, color=colour)
    axes[1].set_ylim(0, 1.2 * max(penalties[: schedule.T - schedule.t_f]))
    axes[2].plot(steps, [row["density"] for row in seen], color=colour)
    axes[2].axhline(100 * search.v, color="black", linestyle="--", linewidth=1)
    for axis, title in zip(axes, ("scores", "λ", "density (%)")):
        end = schedule.T - schedule.t_f
        axis.set(title=title, xlabel="step t", xticks=[0, schedule.t_i, end, schedule.T])
        axis.set_xticklabels(["0", "$t_i$", "$T − t_f$", "T"])
    save(figure, path / "guide-search.png")


# --------------------------------------------------------------------------------- Figure 1


def run(*words: str) -> Iterator[tuple[int, float, masking.Pruner]]:
    """A run of train.py with these flags, but without files: step, loss and Pruner after each
    step, and once more at the end, with the final masks."""
    settings = train.resolve(train.make_parser().parse_args(words))
    prepared = evaluate.prepare_run(settings)
    schedule = train.make_schedule(settings, len(prepared.features))
    settings = replace(settings, steps=schedule.T, precision="fp32")
    pruner = train.make_pruner(prepared.model, settings, schedule)
    optimizer = train.make_optimizer(prepared.model, pruner, settings)
    scheduler = train.make_scheduler(optimizer, settings)
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


def draw_frame(figure, films: dict[str, list], frame: int, shown: np.ndarray) -> None:
    """The weights at the places `shown`, a panel for each method, and the density above."""
    figure.clear()
    axes = figure.subplot_mosaic([["density"] * len(films), list(films)], height_ratios=(1, 4))
    for name, film in films.items():
        v, now, kept = film[frame]
        before, axis = film[0][1], axes[name]
        for which, ink in ((~kept, GREY), (kept, style_of(name)[0])):
            at = shown[which[shown]]
            axis.scatter(before[at], now[at], s=3, color=ink, linewidths=0)
        axis.axline((0, 0), slope=1, color="black", linewidth=0.7)
        axis.set(xlim=(-0.5, 0.5), ylim=(-0.5, 0.5), xlabel="weight at first", ylabel="weight now",
                 title=f"{name}: {100 * v:.0f} % left")
    curve = [100 * v for v, *_ in film]
    axes["density"].plot(curve, color=GREY)
    axes["density"].plot(frame, curve[frame], "o", color="black")
    axes["density"].set(xticks=[], ylim=(0, 110), ylabel="density\n(%)")


def draw_run(path: Path, frames: int = 25, words: tuple[str, ...] = ("--steps", "1000")) -> None:
    from PIL import Image

    films = {name: snapshots(frames, "--method", name, "--keep", "0.03", *words)
             for name in ("magnitude", "movement")}
    shown = np.random.default_rng(0).permutation(len(films["movement"][0][1]))[:8_000]
    figure, images = plt.figure(figsize=(7.2, 4.6), dpi=100), []
    for frame in range(frames):
        draw_frame(figure, films, frame, shown)
        figure.canvas.draw()
        images.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB"))
    images[-1].save(path / "guide-run.png")
    palette = images[-1].quantize(32)
    first, *others = (image.quantize(palette=palette, dither=0) for image in images)
    first.save(path / "guide-run.gif", save_all=True, append_images=others, loop=0,
               duration=[250] * (frames - 1) + [3000])
    plt.close(figure)
    print(f"drew {path / 'guide-run.gif'} and .png")


DRAW = {"step": draw_step, "schedule": draw_schedule, "gate": draw_gate, "search": draw_search,
        "run": draw_run}


def main() -> None:
    p = cli.Parser(description=__doc__)
    p.add_argument("--only", default=",".join(DRAW), metavar="NAMES", help="a comma list")
    p.add_argument("--output", type=Path, default=HERE / "figures", metavar="DIR")
    args = p.parse_args()
    if plt is None:
        raise UserError("pictures need matplotlib: python -m pip install -r requirements-dev.txt")
    plt.rcParams.update(LOOK)
    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.only.split(","):
        if name not in DRAW:
            raise UserError(f"--only {name}: no such picture{cli.nearest(name, DRAW)}")
        DRAW[name](args.output)


if __name__ == "__main__":
    run_main(main)
