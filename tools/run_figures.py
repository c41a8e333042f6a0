"""Pictures of finished runs: curves, the paper's Figures 1, 4 and 6, and the numbers behind."""

import json
from pathlib import Path

import numpy as np

from support.files import read_lines, reading
from tools import anatomy, rows, tables
from tools.drawing import GREY, dashes, legend, matplotlib, panels, save, style_of


def scatter(axis, x, y, kept, colour: str) -> None:
    """20,000 points, drawn at random: the pruned ones are grey, below the others."""
    at = np.random.default_rng(0).permutation(x.size)[:20_000]
    for which, ink, name in ((~kept, GREY, "pruned"), (kept, colour, "remaining")):
        shown = at[which[at]]
        axis.scatter(x[shown], y[shown], s=3, color=ink, label=name, rasterized=True, linewidths=0)


def draw_panels(path: Path, runs: list, draw, shared: bool = False, **names) -> None:
    """A panel for each run, drawn by draw(axis, run); no picture if there are no runs."""
    if not runs:
        return
    figure, axes = panels(len(runs), shared=shared)
    for axis, a in zip(axes, runs):
        draw(axis, a)
        axis.set(title=axis.get_title() or a.label, **names)
    save(figure, path)


def figure1(axis, a) -> None:
    """Fine-tuned against pretrained weights of all matrices."""
    W, W0, M = (anatomy.flat(a.parts, name) for name in ("W", "W0", "M"))
    scatter(axis, W0, W, M, style_of(a.method)[0])
    axis.axline((0, 0), slope=1, color="black", linewidth=0.7)
    axis.set_box_aspect(1)
    axis.legend(markerscale=5, loc="lower right", handletextpad=0)


def fullest(axis, a):
    """The matrix with the most remaining weights, which Figure 4 shows; the title names it."""
    part = max(a.parts, key=lambda part: part.M.sum())
    axis.set_title(f"{a.label}\nlayer {part.layer + 1}, {part.name}")
    return part


def figure4a(axis, a) -> None:
    """Histogram of the remaining weights of one matrix."""
    part = fullest(axis, a)
    axis.hist(part.W[part.M], bins=101, color=style_of(a.method)[0])


def figure4b(axis, a) -> None:
    """Scores against weights of one matrix."""
    part = fullest(axis, a)
    scatter(axis, part.W.ravel(), part.S.ravel(), part.M.ravel(), style_of(a.method)[0])
    axis.legend(markerscale=5, loc="lower left", handletextpad=0)


def figure6(path: Path, measured: list) -> None:
    """The density of each layer, a line for each run; `measured`: pairs of a run and its table."""
    figure, (axis,) = panels(1)
    dash = dashes([(a.method, a.label) for a, _ in measured])
    for a, table in measured:
        density = [100 * row["density"] for row in anatomy.layer_rows(table)]
        colour, marker = style_of(a.method)
        axis.plot(range(1, a.layers + 1), density, dash[a.label], color=colour, marker=marker,
                  label=a.label)
    axis.set(xlabel="layer, 1 next to the embeddings", ylim=(0, None),
             ylabel="weights remaining\nin the layer's matrices (%)")
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    legend(figure, [axis])
    save(figure, path)


def figure6_matrices(axis, a) -> None:
    """The density of each matrix as a map, darkest from three times the run's density up."""
    names = list(anatomy.MATRICES.values())
    grid = 100 * np.array([[a.get(layer, name).M.mean() for name in names]
                           for layer in range(a.layers)])
    most = min(100, 300 * anatomy.flat(a.parts, "M").mean())
    axis.imshow(grid, cmap="Blues", aspect="auto", vmin=0, vmax=most)
    for (layer, column), value in np.ndenumerate(grid):
        axis.text(column, layer, f"{value:.1f}", ha="center", va="center", fontsize=8,
                  color="white" if value > 0.6 * most else "black")
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(a.layers), range(1, a.layers + 1))
    axis.grid(False)


def curves(path: Path, runs: list, folders: list[Path]) -> None:
    """Loss, density, λ and, with --eval-every, the metric over the steps of each run."""
    logs = []
    for log in (folder / "log.jsonl" for folder in folders):
        with reading(log, "damaged"):
            logs.append([json.loads(line) for line in read_lines(log)])
    found = {name for log in logs for line in log for name in line if line[name]}
    shown = ["loss", "density", *[name for name in ("penalty", *rows.METRICS) if name in found][:2]]
    figure, axes = panels(len(shown))
    dash = dashes([(a.method, a.label) for a in runs])
    for axis, name in zip(axes, shown):
        for a, log in zip(runs, logs):
            x, y = np.array([(s["step"], s[name]) for s in log if name in s] or [(0, np.nan)]).T
            if name == "penalty" and not y.any():
                continue  # it has none
            few = max(1, len(y) // 50) if name == "loss" else 1  # its mean over a fiftieth
            axis.plot(x[few - 1:], np.convolve(y, np.ones(few) / few, "valid"), dash[a.label],
                      color=style_of(a.method)[0], label=a.label)
        axis.set(xlabel="step", ylabel="λ" if name == "penalty" else name.replace("_", " "))
    legend(figure, axes)
    save(figure, path)


def draw(folders: list[Path], output: Path) -> None:
    """Curves, Figures 1, 4 and 6, and the numbers behind them in anatomy.csv."""
    runs = [anatomy.read(folder) for folder in folders]
    labels = [a.label for a in runs]
    for a, folder in zip(runs, folders):
        a.label += f", {folder.resolve().name}" * (labels.count(a.label) > 1)
    measured = [(a, anatomy.table(a)) for a in runs]
    for a, table in measured:
        print(anatomy.text(a, table), end="\n\n")
    rows.write(output / "anatomy.csv", [row for _, table in measured for row in table],
               anatomy.COLUMNS)
    curves(output / "curves", runs, folders)
    draw_panels(output / "figure1", [a for a in runs if a.parts[0].W0 is not None], figure1,
                shared=True, xlabel="pretrained weight", ylabel="fine-tuned weight")
    draw_panels(output / "figure4a", runs, figure4a, xlabel="remaining weight",
                ylabel="number of weights")
    scored = [a for a in runs if np.shape(a.parts[0].S) == a.parts[0].W.shape
              and a.method != "random"]
    draw_panels(output / "figure4b", scored, figure4b, xlabel="weight", ylabel="score S")
    free = [(a, table) for a, table in measured
            if a.metrics["scope"] == "global" or a.method in tables.GLOBAL[1:]]
    if free:
        figure6(output / "figure6", free)
        draw_panels(output / "figure6-matrices", [a for a, _ in free], figure6_matrices,
                    ylabel="layer")
    else:
        print("no Figure 6: ranked matrix by matrix, every layer keeps as much as any other; "
              "it needs runs with --scope global, l0 or soft_movement")
