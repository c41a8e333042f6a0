"""The paper's figures from result rows and from runs; and the pages' tables.

    python -m tools.figures                      # Figures 2, 3 and 5 from results/*.csv, the tables
    python -m tools.figures --run runs/A runs/B  # Figures 1, 4 and 6, and numbers, from these runs

Where a CSV has dense models of several sizes, Figure 2 is drawn against the number of non-zero
parameters too, the smaller ones beside the pruned one. A line is a mean over seeds, its band goes
from the worst to the best of them. One colour and marker stands for one method everywhere.
"""

from pathlib import Path

import numpy as np

import masking
from sample import pretrain
from support import cli
from support.files import UserError, run_main
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
GREY = "#BBBBBB"
LOOK = {"font.size": 11, "axes.titlesize": 12, "axes.grid": True, "grid.alpha": 0.3,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        "svg.hashsalt": "movement", "figure.constrained_layout.use": True}
REMAINING = "weights remaining\nin the encoder's matrices (%)"
PAPER_REMAINING = "weights remaining in the encoder, biases\nand LayerNorms counted (%)"
X_AXES = {  # column, its unit in the plot, the axis's name
    "figure2": ("density", 100, REMAINING),
    "figure2-encoder-parameters": (
        "nonzero_parameters", 1, "non-zero parameters\nin the encoder's matrices"),
    "figure2-all-parameters": (
        "nonzero_parameters_total", 1, "non-zero parameters\nin the whole model")}


# ---------------------------------------------------------------------------- paper and ink


def panels(count: int, height: float = 3.3):
    """A figure as wide as the README shows it, with `count` panels."""
    columns = 2 if count == 4 else min(count, 3)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(max(6.0, 3.6 * columns), height * lines), squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:count])


def save(figure, path: Path) -> None:
    """As PNG and SVG, the same bytes for the same picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{path}.png", dpi=160)  # not with_suffix: a name may have dots
    figure.savefig(f"{path}.svg", metadata={"Date": None})
    plt.close(figure)
    print(f"drew {path}.png and .svg")


def legend(figure, axes) -> None:
    """One legend for all panels, below them; the figure grows by its lines."""
    entries = {}
    for axis in axes:
        entries |= dict(zip(*reversed(axis.get_legend_handles_labels())))
    entries = dict(sorted(entries.items(), key=lambda item: tables.method_order(item[0])))
    columns = int(figure.get_figwidth() / (0.09 * max(map(len, entries)) + 0.7))  # in inches
    columns = min(max(1, columns), 4, len(entries))
    figure.set_figheight(figure.get_figheight() + 0.24 * -(-len(entries) // columns))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def percent_axis(axis, xs: list[float]) -> None:
    """Logarithmic, ticks where a reader looks for them."""
    low, high = min(xs) / 1.15, max(xs) * 1.15
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    ticks = [t for t in (0.5, 1, 3, 5, 10, 30, 50, 100) if low <= t <= high]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def count_axis(axis) -> None:
    def name(x, _):
        return f"{x / 1e6:g} M" if x >= 1e6 else f"{x / 1e3:g} k"

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 3)))
    axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.xaxis.set_major_formatter(name)


# ------------------------------------------------------------------------- curves of results


def dashes(labels: list[tuple[str, str]]) -> dict[str, str]:
    """(method, label) of all lines → label → dashes, which tell lines of one method apart."""
    methods = [method for method, _ in dict.fromkeys(labels)]
    return {label: ("-", "--", ":", "-.")[methods[:i].count(method) % 4]
            for i, (method, label) in enumerate(dict.fromkeys(labels))}


def curve(axis, label: str, dash: str, found: list[dict], metric: str, column: str, unit: float):
    """One series: mean and range over seeds at each density → its x values."""
    points = []
    for cell in tables.by_keep(found).values():
        y = tables.values(cell, metric)
        points.append((unit * np.mean(tables.values(cell, column)), np.mean(y), min(y), max(y)))
    x, mean, low, high = map(list, zip(*sorted(points)))
    colour, marker = STYLES[found[0]["method"]]
    axis.plot(x, mean, dash, color=colour, marker=marker, label=label,
              markerfacecolor=colour if dash == "-" else "white")
    axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    return x


def dense_line(axis, values: list[float]) -> None:
    """The fine-tuned dense model, and 95 % of it."""
    if values:
        mean = float(np.mean(values))
        axis.axhline(mean, color="black", linewidth=1, label="dense")
        axis.axhline(0.95 * mean, color="black", linewidth=1, linestyle=":", label="95 % of dense")


def dense_models(axis, dense: list[dict], metric: str, column: str) -> None:
    """Dense BERTs of several sizes as stars, joined by size."""
    points = []
    for model in dict.fromkeys(row["model"] for row in dense):
        cell = [row for row in dense if row["model"] == model]
        y = tables.values(cell, metric)
        points.append((tables.values(cell, column)[0], np.mean(y), min(y), max(y), model))
    if points:
        x, y, low, high, models = zip(*sorted(points))
        axis.plot(x, y, "-", color="black", marker="*", markersize=10, linewidth=1,
                  label="dense, by size")
        axis.vlines(x, low, high, color="black", linewidth=3, alpha=0.3)
        axis.margins(0.12, 0.2)  # room for the names
        for at, model in zip(zip(x, y), models):
            axis.annotate(size_name(model), at, (0, -16), textcoords="offset points", ha="center",
                          fontsize=9, bbox={"color": "white", "alpha": 0.7, "pad": 0.5})


def size_name(model: str) -> str:
    """"small:2x64" → "2x64": layers × width."""
    if pretrain.is_small(model):
        return "{}x{}".format(*pretrain.parse_size(model))
    return model.split("/")[-1]


def groups(found: list[dict]) -> list[list[dict]]:
    """Rows by task, data and model: a panel each, in the order of the file."""
    keys = dict.fromkeys((r["task"], r["data"], r["model"]) for r in found)
    return [[r for r in found if (r["task"], r["data"], r["model"]) == key] for key in keys]


def same_task(group: list[dict], sources: list[list[dict]]) -> list[dict]:
    """Dense rows of any pretrained model that did the same task on as many of the same rows, from
    the first of the sources that has some."""
    alike = ("task", "data", "train_rows", "eval_rows", "held_out", "precision")
    first = group[0]
    found = ([r for r in source if r["method"] == "dense" and not r["teacher"]
              and not pretrain.is_untrained(r["model"])
              and all(r[name] == first[name] for name in alike)] for source in sources)
    return next(filter(None, found), [])


def draw_curves(path: Path, found: list[dict], sources, figure_name: str) -> None:
    """One picture: a panel for each task, data and model."""
    column, unit, x_name = X_AXES[figure_name]
    parts = groups(found)
    figure, axes = panels(len(parts))
    series = [tables.series_of(part) for part in parts]
    dash = dashes([(own[0]["method"], label) for one in series for label, own in one.items()])
    for axis, part, one in zip(axes, parts, series):
        metric, xs = tables.first_metric(part), []
        for label, own in one.items():
            xs += curve(axis, label, dash[label], own, metric, column, unit)
        dense = same_task(part, sources)
        if column == "density":
            own = [row for row in dense if row["model"] == part[0]["model"]]
            dense_line(axis, tables.values(own, metric))
            percent_axis(axis, xs)
        else:
            dense_models(axis, dense, metric, column)
            count_axis(axis)
        model = part[0]["model"].split("/")[-1]
        axis.set(title=f"{part[0]['task']} · {part[0]['data']}\n{model}", xlabel=x_name,
                 ylabel=metric.replace("_", " ") + " (%)")
    legend(figure, axes)
    save(figure, path)


def from_results(folder: Path, output: Path) -> list[str]:
    """Figures 2, 3 and 5 of every CSV that has rows for them → what is wrong with the others.
    Settings are chosen on rows with --held-out, which are not results."""
    files = {path.stem: [row for row in rows.read(path) if row.get("held_out") == ""]
             for path in sorted(folder.glob("*.csv"))}
    everything, wrong = [row for found in files.values() for row in found], []
    for name, found in files.items():
        try:
            one_file(name, found, everything, output)
        except UserError as error:
            wrong.append(f"{folder / name}.csv: {error}")
    if (folder / "paper_runs.csv").exists():
        from_paper(rows.read(folder / "paper_runs.csv"), output)
    return wrong


def one_file(name: str, found: list[dict], everything: list[dict], output: Path) -> None:
    ranked = [row for row in found if masking.METHODS[row["method"]].ranked]
    pruned = [row for row in found if row["method"] != "dense"]
    plain = [row for row in pruned if not row["teacher"] and (
        row["scope"] == "local" or row not in ranked)]
    taught = [row for row in pruned if row["teacher"]]
    sizes = {row["model"] for row in found if row["method"] == "dense"}
    dense = [found, everything]
    if len({row["density"] for row in plain}) > 1:
        for figure_name in X_AXES if len(sizes) > 1 else ["figure2"]:
            draw_curves(output / f"{figure_name}-{name}", plain, dense, figure_name)
    if len({row["density"] for row in taught}) > 1:
        draw_curves(output / f"figure3-{name}", taught, dense, "figure2")
    if len({row["scope"] for row in ranked}) > 1:
        draw_curves(output / f"figure5-{name}", ranked, dense, "figure2")


# -------------------------------------------------------------------------- the paper's runs


def from_paper(runs: list[dict], output: Path) -> None:
    """The authors' runs as Figures 2, 3 and 5: dashed, one seed."""
    plain, taught = ([r for r in runs if r["distilled"] == d] for d in ("no", "yes"))
    titled = {"squad": "SQuAD v1.1", "mnli": "MNLI", "qqp": "QQP"}
    usual = [lambda r, task=task: r["task"] == task and r["scope"] in (
        "", tables.paper_scope(r["method"])) for task in titled]
    paper_figure(output / "figure2-paper", plain, plain, usual, titled.values(), "no teacher")
    paper_figure(output / "figure3-paper", taught, plain, usual, titled.values(), "with a teacher")
    both = [lambda r: r["task"] == "squad" and r["method"] in ("magnitude", "movement", "dense")]
    paper_figure(output / "figure5-paper", plain, plain, both, ["SQuAD v1.1"], "no teacher")


def paper_figure(path: Path, runs, dense, wanted, titles, how: str) -> None:
    figure, axes = panels(len(wanted))
    for axis, choose, title in zip(axes, wanted, titles):
        own = [row for row in runs if choose(row) and row["method"] != "dense"]
        metric = "metric2" if own[0]["task"] == "squad" else "metric1"
        own.sort(key=lambda row: (list(STYLES).index(row["method"]), row["scope"] == "global"))
        for method, scope in dict.fromkeys((row["method"], row["scope"]) for row in own):
            points = sorted((100 * float(row["encoder_density"]), float(row[metric])) for row in own
                            if (row["method"], row["scope"]) == (method, scope))
            colour, marker = STYLES[method]
            other = scope != tables.paper_scope(method)
            axis.plot(*zip(*points), ":" if other else "--", color=colour, marker=marker,
                      markerfacecolor="white", label=method + ", global" * other)
        dense_line(axis, [float(row[metric]) for row in dense
                          if choose(row) and row["method"] == "dense"])
        percent_axis(axis, [100 * float(row["encoder_density"]) for row in own])
        index = int(metric[-1]) - 1
        axis.set(title=title, xlabel=PAPER_REMAINING,
                 ylabel=tables.PAPER_METRICS[own[0]["task"]][index] + " (%)")
    figure.suptitle(f"the paper's own runs: BERT-base, {how}, one seed", fontsize=12)
    legend(figure, axes)
    save(figure, path)


# ---------------------------------------------------------------------------------- from runs


def scatter(axis, x, y, kept, colour: str) -> None:
    """At most 20,000 of the points of each kind, pruned ones grey and below."""
    rng = np.random.default_rng(0)
    for which, ink, name in ((~kept, GREY, "pruned"), (kept, colour, "remaining")):
        at = np.flatnonzero(which)
        at = rng.choice(at, min(len(at), 20_000), replace=False)
        axis.scatter(x[at], y[at], s=2, color=ink, label=name, rasterized=True, linewidths=0)


def inked(runs: list, draw, path: Path, **names) -> None:
    """A panel for each run, by `draw(axis, run)`; nothing where there is no run to draw."""
    if not runs:
        return
    figure, axes = panels(len(runs))
    for axis, a in zip(axes, runs):
        draw(axis, a)
        axis.set(title=axis.get_title() or a.label, **names)
    save(figure, path)


def figure1(axis, a) -> None:
    """Fine-tuned against pretrained weights, of all matrices."""
    W, W0, M = (np.concatenate([getattr(p, k).ravel() for p in a.parts]) for k in ("W", "W0", "M"))
    scatter(axis, W0, W, M, STYLES[a.method][0])
    axis.axline((0, 0), slope=1, color="black", linewidth=0.7)
    axis.legend(markerscale=5, loc="upper left", handletextpad=0)


def fullest(a):
    """The matrix with the most remaining weights, which the pictures of one matrix show."""
    return max(a.parts, key=lambda part: part.M.sum())


def named(a, part) -> str:
    return f"{a.label}\nlayer {part.layer + 1}, {part.name}"


def figure4a(axis, a) -> None:
    """Histogram of the remaining weights of one matrix."""
    part = fullest(a)
    axis.hist(part.W[part.M], bins=101, color=STYLES[a.method][0])
    axis.set_title(named(a, part))


def figure4b(axis, a) -> None:
    """Scores against weights of one matrix."""
    part = fullest(a)
    scatter(axis, part.W.ravel(), part.S.ravel(), part.M.ravel(), STYLES[a.method][0])
    axis.legend(markerscale=5, loc="lower left", handletextpad=0)
    axis.set_title(named(a, part))


def figure6(path: Path, found: list) -> None:
    """Density of each layer, a line a run."""
    figure, (axis,) = panels(1)
    dash = dashes([(a.method, a.label) for a, _ in found])
    for a, table in found:
        density = [100 * row["density"] for row in table
                   if row["matrix"] == "all" and row["layer"] != "all"]
        colour, marker = STYLES[a.method]
        axis.plot(range(1, a.layers + 1), density, dash[a.label], color=colour, marker=marker,
                  label=a.label)
    axis.set(xlabel="layer, 1 next to the embeddings", ylim=(0, None),
             ylabel="weights remaining\nin the layer's matrices (%)")
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    legend(figure, [axis])
    save(figure, path)


def figure6_matrices(axis, a) -> None:
    """Density of each matrix as a map, layer by layer, up to three times the run's own."""
    names = list(anatomy.MATRICES.values())
    grid = 100 * np.array([[a.get(layer, name).M.mean() for name in names]
                           for layer in range(a.layers)])
    most = min(100, 300 * np.concatenate([p.M.ravel() for p in a.parts]).mean())
    axis.imshow(grid, cmap="Blues", aspect="auto", vmin=0, vmax=most)
    for (layer, column), value in np.ndenumerate(grid):
        axis.text(column, layer, f"{value:.1f}", ha="center", va="center", fontsize=8,
                  color="white" if value > 0.6 * most else "black")
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(a.layers), range(1, a.layers + 1))
    axis.grid(False)


def from_runs(folders: list[Path], output: Path) -> None:
    """Figures 1, 4 and 6 and the table of numbers."""
    found = [(a, anatomy.table(a)) for a in map(anatomy.read, folders)]
    for a, table in found:
        print(anatomy.text(a, table), end="\n\n")
    rows.write(output / "anatomy.csv", [row for _, table in found for row in table],
               anatomy.COLUMNS)
    runs = [a for a, _ in found]
    inked([a for a in runs if a.parts[0].W0 is not None], figure1, output / "figure1",
          xlabel="pretrained weight", ylabel="fine-tuned weight")
    inked(runs, figure4a, output / "figure4a", xlabel="remaining weight",
          ylabel="number of weights")
    inked([a for a in runs if a.parts[0].S is not None and a.method != "random"], figure4b,
          output / "figure4b", xlabel="weight", ylabel="score S")
    figure6(output / "figure6", found)
    inked(runs, figure6_matrices, output / "figure6-matrices", ylabel="layer")


def main() -> None:
    p = cli.Parser(description=__doc__)
    p.add_argument("--run", nargs="+", type=Path, metavar="RUN", help="folders of train.py's runs")
    p.add_argument("--results", type=Path, default=HERE / "results", metavar="DIR")
    p.add_argument("--output", type=Path, default=HERE / "figures", metavar="DIR")
    p.add_argument("--pages", nargs="+", type=Path, metavar="FILE",
                   help="whose tables are filled in (default, unless --results names other rows: "
                        "README.md and results/README.md)")
    args = p.parse_args()
    if not args.results.is_dir():
        raise UserError(f"{args.results}: no such folder; --results names one of CSV files")
    if plt is None:
        raise UserError("pictures need matplotlib: python -m pip install -r requirements-dev.txt "
                        "(the tables alone: python -m tools.tables)")
    plt.rcParams.update(LOOK)
    wrong = []
    if args.run:
        from_runs(args.run, args.output)
    else:
        wrong = from_results(args.results, args.output)
    own = args.results.resolve() == (HERE / "results").resolve()
    for page in args.pages or (tables.PAGES if own else []):
        tables.fill_file(page, args.results)
    if wrong:
        raise UserError("\n".join(wrong))


if __name__ == "__main__":
    run_main(main)
