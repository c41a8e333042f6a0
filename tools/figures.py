"""The paper's figures, drawn from result rows and from runs.

    python -m tools.figures                      # Figures 2, 3 and 5 from results/*.csv
    python -m tools.figures --run runs/A runs/B  # their curves, Figures 1, 4 and 6, and numbers

If a CSV file has dense models of several sizes, Figure 2 is also drawn against the number of
non-zero parameters, with the smaller models beside the pruned one. A line is the mean over seeds,
and its band goes from the worst seed to the best; a point with a collapsed run is crossed out. A
method has the same colour and marker everywhere.
"""

import json
import zlib
from pathlib import Path

import numpy as np

from sample import pretrain
from support import cli
from support.files import UserError, read_lines, reading, run_main
from tools import anatomy, rows, tables

try:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
except ImportError:
    plt = None

HERE = Path(__file__).parent.parent
STYLES = {  # colours of Okabe and Ito, which every kind of colour vision tells apart
    "dense": ("#000000", "*"), "random": ("#999999", "X"), "magnitude": ("#0072B2", "o"),
    "l0": ("#E69F00", "s"), "movement": ("#009E73", "^"), "soft_movement": ("#D55E00", "D")}
OWN_STYLES = (("#CC79A7", "P"), ("#56B4E9", "v"), ("#882255", "p"))  # of other methods, by name
GREY = "#BBBBBB"
LOOK = {"font.size": 11, "axes.titlesize": 12, "axes.grid": True, "grid.alpha": 0.3,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        "svg.hashsalt": "movement", "figure.constrained_layout.use": True}
X_AXES = {  # column → its unit in the plot, the axis's name
    "density": (100, "weights remaining\nin the encoder's matrices (%)"),
    "encoder_density": (
        100, "weights remaining in the encoder,\nbiases and LayerNorms counted (%)"),
    "nonzero_parameters": (1, "non-zero parameters\nin the encoder's matrices"),
    "nonzero_parameters_total": (1, "non-zero parameters\nin the whole model")}


# ---------------------------------------------------------------------------- parts of pictures


def style_of(method: str) -> tuple[str, str]:
    own = OWN_STYLES[zlib.crc32(rows.method_name(method).encode()) % len(OWN_STYLES)]
    return STYLES.get(method, own)


def panels(count: int, height: float = 3.3):
    """A figure as wide as README.md shows it, with `count` panels → the figure, its axes."""
    columns = 2 if count == 4 else min(count, 3)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(max(6.0, 3.6 * columns), height * lines), squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:count])


def save(figure, path: Path) -> None:
    """Write PNG and SVG files; the same picture gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{path}.png", dpi=160)  # not with_suffix: a name may have dots
    figure.savefig(f"{path}.svg", metadata={"Date": None})
    plt.close(figure)
    print(f"drew {path}.png and .svg")


def legend(figure, axes) -> None:
    """One legend below all panels; the figure grows by its height."""
    entries = {}
    for axis in axes:
        entries |= dict(zip(*reversed(axis.get_legend_handles_labels())))
    entries = dict(sorted(entries.items(), key=lambda item: tables.method_order(item[0])))
    columns = int(figure.get_figwidth() / (0.09 * max(map(len, entries)) + 0.7))  # in inches
    columns = min(max(1, columns), 4, len(entries))
    figure.set_figheight(figure.get_figheight() + 0.24 * -(-len(entries) // columns))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def logarithmic(axis, ticks: tuple, formatter) -> None:
    """A logarithmic x axis; `ticks`: where in each decade."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=ticks))
    axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.xaxis.set_major_formatter(formatter)


# ------------------------------------------------------------------------- curves of results


def dashes(labels: list[tuple[str, str]]) -> dict[str, str]:
    """(method, label) of all lines → label → dashes that tell lines of one colour apart."""
    styles = [style_of(method) for method, _ in dict.fromkeys(labels)]
    return {label: ("-", "--", ":", "-.")[styles[:i].count(styles[i]) % 4]
            for i, (_, label) in enumerate(dict.fromkeys(labels))}


def method_of(cells: dict[str, list[dict]]) -> str:
    return next(iter(cells.values()))[0]["method"]


def draw_line(axis, cells, metric: str, column: str, unit: float, **look):
    """A point for each cell of rows that differ only in their seeds, at their mean, and the range
    over seeds; crossed out where a run collapsed → the points (x, y), in the order of the cells."""
    points, crossed = [], []
    for cell in cells:
        y = tables.values(cell, metric)
        points.append((unit * np.mean(tables.values(cell, column)), np.mean(y), min(y), max(y)))
        crossed += [points[-1][:2]] * tables.has_collapsed(cell)
    x, mean, low, high = map(list, zip(*sorted(points)))
    axis.plot(x, mean, **look)
    axis.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=1)
    if crossed:
        axis.plot(*zip(*crossed), "x", color="black", markersize=10, label="with a collapsed run")
    return [point[:2] for point in points]


def dense_line(axis, values: list[float]) -> None:
    """The accuracy of the dense model, and 95 % of it."""
    if values:
        mean = float(np.mean(values))
        axis.axhline(mean, color="black", linewidth=1, label="dense")
        axis.axhline(0.95 * mean, color="black", linewidth=1, linestyle=":", label="95 % of dense")


def dense_models(axis, dense: list[dict], metric: str, column: str) -> None:
    """Dense BERTs of several sizes as stars with names, joined in the order of their sizes."""
    models = list(dict.fromkeys(row["model"] for row in dense))
    cells = [[row for row in dense if row["model"] == model] for model in models]
    if cells:
        points = draw_line(axis, cells, metric, column, 1, color="black", marker="*",
                           markersize=10, linewidth=1, label="dense, by size")
        axis.margins(0.12, 0.2)  # room for names
        for model, point in zip(models, points):
            axis.annotate(model.split("/")[-1].removeprefix("small:"), point, (0, -16),
                          textcoords="offset points", ha="center", fontsize=9,
                          bbox={"color": "white", "alpha": 0.7, "pad": 0.5})


def groups(results: list[dict]) -> list[list[dict]]:
    """Rows by task, data and model, a panel each, in the order of the file."""
    keys = dict.fromkeys((r["task"], r["data"], r["model"]) for r in results)
    return [[r for r in results if (r["task"], r["data"], r["model"]) == key] for key in keys]


def same_task(first: dict, sources: list[list[dict]]) -> list[dict]:
    """Dense rows of any pretrained model, for the task and number of rows of the row `first`, from
    the first source that has some."""
    alike = ("task", "data", "train_rows", "eval_rows", "held_out", "precision")
    candidates = ([r for r in source if r["method"] == "dense" and not r["teacher"]
              and not pretrain.is_untrained(r["model"])
              and all(r[name] == first[name] for name in alike)] for source in sources)
    return next(filter(None, candidates), [])


def draw_curves(path: Path, results: list[dict], column: str, sources: list[list[dict]]) -> None:
    """A panel for each task, data and model; `sources`: where to look for dense rows."""
    unit, x_name = X_AXES[column]
    parts = [tables.measured(part) for part in groups(results)]
    figure, axes = panels(len(parts))
    series = [tables.series_of(part) for _, part in parts]
    dash = dashes([(method_of(cells), label) for one in series for label, cells in one.items()])
    for axis, (metric, part), one in zip(axes, parts, series):
        for label, cells in one.items():
            colour, marker = style_of(method_of(cells))
            face = colour if dash[label] == "-" else "white"
            draw_line(axis, cells.values(), metric, column, unit, linestyle=dash[label],
                      color=colour, marker=marker, markerfacecolor=face, label=label)
        dense, model = same_task(part[0], sources), part[0]["model"]
        if unit == 100:
            dense_line(axis, tables.values([r for r in dense if r["model"] == model], metric))
            logarithmic(axis, (1, 3, 5), "{x:g}")
        else:
            dense_models(axis, dense, metric, column)
            logarithmic(axis, (1, 3), matplotlib.ticker.EngFormatter())
        axis.set(title=f"{part[0]['task']} · {part[0]['data']}\n{model.split('/')[-1]}",
                 xlabel=x_name, ylabel=metric.replace("_", " ") + " (%)")
    legend(figure, axes)
    save(figure, path)


def paper_rows(path: Path) -> list[dict]:
    """The authors' runs as rows like ours, each the only one of its density."""
    return [dict.fromkeys(rows.COLUMNS, "") | run | {
        "data": "the paper's runs", "model": "BERT-base, one seed", "keep": f"run {number}",
        "epochs": "0", "teacher": run["distilled"].replace("no", ""),
        **dict(zip(tables.PAPER_METRICS[run["task"]], (run["metric1"], run["metric2"])))}
        for number, run in enumerate(rows.read(path))]


def figures_of(results: list[dict]) -> list[tuple[str, str, list[dict]]]:
    """The figures that one file has rows for → name, column of the x axis, rows of each."""
    pruned = [row for row in results if row["method"] != "dense"]
    x = "density" if any(row["density"] for row in pruned) else "encoder_density"
    usual = [row for row in pruned if row["scope"] == tables.usual_scope(row["method"])
             or row["method"] not in STYLES]
    plain, taught = ([row for row in usual if bool(row["teacher"]) == t] for t in (False, True))
    ranked = [row for row in pruned if row["method"] not in tables.GLOBAL and not row["teacher"]]
    both_scopes = {row["task"] for row in ranked if row["scope"] == "global"}
    pictures = [("figure2", x, plain), ("figure3", x, taught),
                ("figure5", x, [row for row in ranked if row["task"] in both_scopes])]
    if len({row["model"] for row in results if row["method"] == "dense"}) > 1:
        pictures += [("figure2-encoder-parameters", "nonzero_parameters", plain),
                     ("figure2-all-parameters", "nonzero_parameters_total", plain)]
    return [picture for picture in pictures if len({row[x] for row in picture[2]}) > 1]


def from_results(folder: Path, output: Path) -> None:
    """Figures 2, 3 and 5 of every CSV file that has rows for them, measured on evaluation rows."""
    files = {path.stem: [row for row in rows.read(path)
                         if "key" in row and any(map(row.get, rows.METRICS))]
             for path in sorted(folder.glob("*.csv"))}
    files["paper"] = paper_rows(folder / "paper_runs.csv")
    everything, wrong = [row for results in files.values() for row in results], []
    pictures = [(name, *picture) for name in files for picture in figures_of(files[name])]
    if not pictures:
        raise UserError(f"nothing to draw: no CSV file in {folder} has rows of two densities")
    for name, figure, column, results in pictures:
        try:
            draw_curves(output / f"{figure}-{name}", results, column, [files[name], everything])
        except (UserError, ValueError) as error:  # ValueError: no number where one should be
            wrong.append(f"{folder / name}.csv: {error}")
    if wrong:  # once all others are drawn
        raise UserError("\n".join(dict.fromkeys(wrong)))


# ---------------------------------------------------------------------------------- from runs


def scatter(axis, x, y, kept, colour: str) -> None:
    """At most 20,000 points of each kind; the pruned ones are grey, below the others."""
    rng = np.random.default_rng(0)
    for which, ink, name in ((~kept, GREY, "pruned"), (kept, colour, "remaining")):
        at = np.flatnonzero(which)
        at = rng.choice(at, min(len(at), 20_000), replace=False)
        axis.scatter(x[at], y[at], s=2, color=ink, label=name, rasterized=True, linewidths=0)


def draw_panels(path: Path, runs: list, draw, **names) -> None:
    """A panel for each run, drawn by draw(axis, run); no picture if there are no runs."""
    if not runs:
        return
    figure, axes = panels(len(runs))
    for axis, a in zip(axes, runs):
        draw(axis, a)
        axis.set(title=axis.get_title() or a.label, **names)
    save(figure, path)


def figure1(axis, a) -> None:
    """Fine-tuned against pretrained weights of all matrices."""
    W, W0, M = (anatomy.flat(a.parts, name) for name in ("W", "W0", "M"))
    scatter(axis, W0, W, M, style_of(a.method)[0])
    axis.axline((0, 0), slope=1, color="black", linewidth=0.7)
    axis.legend(markerscale=5, loc="upper left", handletextpad=0)


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
            few = max(1, len(y) // 50) if name == "loss" else 1  # its mean over a fiftieth
            axis.plot(x[few - 1:], np.convolve(y, np.ones(few) / few, "valid"), dash[a.label],
                      color=style_of(a.method)[0], label=a.label)
        axis.set(xlabel="step", ylabel="λ" if name == "penalty" else name.replace("_", " "))
    legend(figure, axes)
    save(figure, path)


def from_runs(folders: list[Path], output: Path) -> None:
    """Curves, Figures 1, 4 and 6, and the numbers behind them in anatomy.csv."""
    measured = [(a, anatomy.table(a)) for a in map(anatomy.read, folders)]
    for a, table in measured:
        print(anatomy.text(a, table), end="\n\n")
    rows.write(output / "anatomy.csv", [row for _, table in measured for row in table],
               anatomy.COLUMNS)
    runs = [a for a, _ in measured]
    curves(output / "curves", runs, folders)
    draw_panels(output / "figure1", [a for a in runs if a.parts[0].W0 is not None], figure1,
                xlabel="pretrained weight", ylabel="fine-tuned weight")
    draw_panels(output / "figure4a", runs, figure4a, xlabel="remaining weight",
                ylabel="number of weights")
    scored = [a for a in runs if np.shape(a.parts[0].S) == a.parts[0].W.shape
              and a.method != "random"]
    draw_panels(output / "figure4b", scored, figure4b, xlabel="weight", ylabel="score S")
    figure6(output / "figure6", measured)
    draw_panels(output / "figure6-matrices", runs, figure6_matrices, ylabel="layer")


def main() -> None:
    p = cli.Parser(prog="python -m tools.figures", description=__doc__)
    p.add_argument("--run", nargs="+", type=Path, metavar="RUN", help="folders of train.py's runs")
    p.add_argument("--results", type=Path, default=HERE / "results", metavar="DIR")
    p.add_argument("--output", type=Path, default=HERE / "figures", metavar="DIR")
    args = p.parse_args()
    if plt is None:
        raise UserError("pictures need matplotlib: python -m pip install -r requirements-dev.txt")
    plt.rcParams.update(LOOK)
    if args.run:
        from_runs(args.run, args.output)
    elif args.results.is_dir():
        from_results(args.results, args.output)
    else:
        raise UserError(f"{args.results}: no such folder; --results names one of CSV files")


if __name__ == "__main__":
    run_main(main)
