"""The paper's figures, drawn from result rows and from runs.

    python -m tools.figures                      # Figures 2, 3 and 5 from results/*.csv, and rates
    python -m tools.figures --run runs/A runs/B  # their curves, Figures 1, 4 and 6, and numbers

Random masks and frozen weights have a figure of their own (controls). If a CSV file has three
learning rates of two methods, results are also drawn against these, and the other figures show each
method at the rate that suits it best; Figure 3 has the rates of the runs with a teacher. A line is
the mean over seeds, and its band goes from the worst seed to the best; a point with a collapsed run
is crossed out. A method has the same colour and marker everywhere. Figures 2 and 5 of our runs have
the paper's beside them. Figure 6 needs runs that are free to leave more in one layer than in
another: --scope global, L0 or soft movement.
"""

from collections import Counter
from operator import itemgetter
from pathlib import Path

import numpy as np

import data
from support import cli
from support.files import UserError, run_main
from tools import drawing, rows, run_figures, tables
from tools.drawing import STYLES, dashes, legend, logarithmic, panels, save, style_of

HERE = Path(__file__).parent.parent
COMMONEST = {"mnli": 35.4, "qqp": 63.2, "sst2": 50.9}  # % of the rows in the commonest class of dev
X_AXES = {  # column → the axis's name
    "density": "weights remaining\nin the encoder's matrices (%)",
    "encoder_density": "weights remaining in the encoder,\nbiases and LayerNorms counted (%)"}


# ------------------------------------------------------------------------- curves of results


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


def mark_baselines(axis, row: dict, metric: str, words: list[dict]) -> None:
    """The accuracy of one answer for all rows, and of the words alone (`words`: rows of
    tools.words): a line where the panel reaches so low. To be called last. The sample's classes are
    equally frequent."""
    labels = data.TASKS[row["task"]].labels if row["task"] in data.TASKS else ()
    chance = (100 / len(labels) if row["data"] == "sample" and labels
              else COMMONEST.get(row["task"]))
    alike = itemgetter("task", "data", "model", "train_rows", "eval_rows")
    linear = next((float(r[metric]) for r in words
                   if alike(r) == alike(row) and r.get(metric)), None)
    if not metric.startswith("accuracy"):
        return
    lowest, beyond = axis.get_ylim()[0], []
    for name, value, dash in (("one answer for all rows", chance, "--"),
                              ("words alone", linear, "-.")):
        if value and lowest < value + 5:
            axis.axhline(value, color="grey", linewidth=1, linestyle=dash, label=name)
        elif value:
            beyond.append(f"{name}: {value:.1f} %")
    if beyond:
        low, high = axis.get_ylim()
        axis.set_ylim(low - 0.08 * len(beyond) * (high - low))  # room for the text
        axis.text(0.98, 0.03, "\n".join(beyond), ha="right", fontsize=8, color="grey",
                  transform=axis.transAxes)


def metric_name(metric: str) -> str:
    """As a person writes it: accuracy_matched → accuracy, matched (%)."""
    name = metric.replace("accuracy_", "accuracy, ").replace("f1", "F1").replace("_", " ")
    return f"{name} (%)"


def groups(results: list[dict]) -> list[list[dict]]:
    """Rows by task, data and model, a panel each, in the order of the file."""
    keys = dict.fromkeys(map(tables.panel, results))
    return [[r for r in results if tables.panel(r) == key] for key in keys]


def same_task(first: dict, sources: list[list[dict]]) -> list[dict]:
    """Dense rows for the task, model and numbers of rows and steps of the row `first`, from the
    first source that has some."""
    alike = ("task", "data", "model", "train_rows", "eval_rows", "held_out", "precision", "steps")
    candidates = ([r for r in source if r["method"] == "dense" and not r["teacher"]
                   and tables.at_best_rate(r, source)
                   and all(r[name] == first[name] for name in alike)] for source in sources)
    return next(filter(None, candidates), [])


def draw_curves(path: Path, results: list[dict], words: list[dict],
                sources: list[list[dict]]) -> None:
    """A panel for each task, data and model; `sources`: where to look for dense rows."""
    parts = [tables.measured(part) for part in groups(results)]
    figure, axes = panels(len(parts))
    series = [tables.series_of(part) for _, part in parts]
    dash = dashes([(method_of(cells), label) for one in series for label, cells in one.items()])
    for axis, (metric, part), one in zip(axes, parts, series):
        # the paper's rows have one density, ours have both
        column = "density" if any(row["density"] for row in part) else "encoder_density"
        for label, cells in one.items():
            colour, marker = style_of(method_of(cells))
            face = colour if dash[label] == "-" else "white"
            draw_line(axis, cells.values(), metric, column, 100, linestyle=dash[label],
                      color=colour, marker=marker, markerfacecolor=face, label=label)
        dense_line(axis, tables.values(same_task(part[0], sources), metric))
        mark_baselines(axis, part[0], metric, words)
        logarithmic(axis, (1, 3, 5), "{x:g}")
        axis.set(title=f"{part[0]['task']} · {part[0]['data']}\n{part[0]['model'].split('/')[-1]}",
                 xlabel=X_AXES[column], ylabel=metric_name(metric))
    legend(figure, axes)
    save(figure, path)


def draw_rates(path: Path, results: list[dict], words: list[dict]) -> None:
    """Accuracy against the learning rate, and how far the kept weights moved: two panels for each
    task, data and model."""
    parts = [tables.measured(part) for part in groups(results)]
    figure, axes = panels(2 * len(parts))
    for (metric, part), left, right in zip(parts, axes[::2], axes[1::2]):
        methods = dict.fromkeys(row["method"] for row in part)
        for method in sorted(methods, key=lambda name: tables.method_order(rows.method_name(name))):
            rows_of = [row for row in part if row["method"] == method]
            cells = [tables.one_a_seed([row for row in rows_of if row["lr"] == lr])
                     for lr in dict.fromkeys(row["lr"] for row in rows_of)]
            colour, marker = style_of(method)
            for axis, column in ((left, metric), (right, "moved_kept")):
                if all(row.get(column) for row in rows_of):
                    draw_line(axis, cells, column, "lr", 1, color=colour, marker=marker,
                              label=rows.method_name(method))
        mark_baselines(left, part[0], metric, words)
        keep = 100 * float(next(row["keep"] for row in part if row["method"] != "dense"))
        left.set(ylabel=metric_name(metric),
                 title=f"{part[0]['task']} · {part[0]['data']} · {keep:g} % left")
        right.set(ylabel="standard deviations\nof the pretrained weights",
                  title="how far the kept weights moved")
        logarithmic(right, (1, 2, 5), "{x:g}", "y")
        lrs = sorted({row["lr"] for row in part}, key=float)
        for axis in (left, right):
            axis.set(xlabel="learning rate of the weights")
            logarithmic(axis, (1,), "{x:g}")
            axis.set_xticks([float(lr) for lr in lrs], map(tables.rate_text, lrs), fontsize=9)
    legend(figure, axes)
    save(figure, path)


def paper_rows(path: Path) -> list[dict]:
    """The authors' runs as rows like ours, each the only one of its density."""
    return [dict.fromkeys(rows.COLUMNS, "") | run | {
        "data": "the paper's runs", "model": "BERT-base, one seed", "keep": f"run {number}",
        "epochs": "0", "teacher": run["distilled"].replace("no", ""),
        **dict(zip(tables.PAPER_METRICS[run["task"]], (run["metric1"], run["metric2"])))}
        for number, run in enumerate(rows.read(path))]


def with_rates(results: list[dict]) -> list[dict]:
    """The rows of the panels that compare two methods or more at three learning rates or more: at
    the density and length of run of most, and of methods with several rates."""
    shown = []
    for part in groups([row for row in results
                        if tables.alone(row) and tables.usual_length(row, results)]):
        tried = {}  # density → pairs of method and rate
        for row in part:
            tried.setdefault(row["keep"], set()).add((row["method"], row["lr"]))
        dense = tried.pop("1", set())
        keep = max(tried, key=lambda keep: len(tried[keep]), default="")
        count = Counter(method for method, _ in dense | tried.get(keep, set()))
        if keep and sum(rates >= 3 for rates in count.values()) >= 2:
            shown += [row for row in part
                      if row["keep"] in ("1", keep) and count[row["method"]] > 1]
    return shown


def of_usual_scope(found: list[dict]) -> list[dict]:
    return [row for row in found if row["scope"] == tables.usual_scope(row["method"])
            or row["method"] not in STYLES]


def figures_of(results: list[dict]) -> list[tuple[str, list[dict]]]:
    """The figures that one file has rows for → name and rows of each."""
    every_rate = [row for row in results if row["method"] != "dense"]
    pruned, settings = every_rate, itemgetter("task", "data", "model", "method")
    if with_rates(results):
        pruned = [row for row in every_rate if tables.at_best_rate(row, results)
                  and tables.usual_length(row, results)]
        # the rate of the runs with a teacher may be another at each density
        settings = itemgetter("task", "data", "model", "method", "keep", "lr", "steps")
    usual = of_usual_scope(pruned)
    plain = [row for row in usual if tables.alone(row) and row["method"] != "random"]
    with_teacher = {settings(row) for row in every_rate if row["teacher"]}
    taught = [row for row in of_usual_scope(every_rate)
              if settings(row) in with_teacher and not row["freeze"]]
    controls = [row for row in usual if not row["teacher"] and (
        row["method"] == "random" or tables.matched(row, usual, "freeze"))]
    ranked = [row for row in pruned if tables.alone(row)
              and row["method"] not in (*tables.GLOBAL, "random")]
    both_scopes = {(row["task"], row["method"]) for row in ranked if row["scope"] == "global"}
    pictures = [("figure2", plain), ("figure3", taught), ("figure2-controls", controls),
                ("figure5", [row for row in ranked
                             if (row["task"], row["method"]) in both_scopes])]
    curves = [(name, [row for part in groups(found) for row in part
                      if len({r["keep"] or r["penalty"] for r in part}) > 1])
              for name, found in pictures]
    return [(name, found) for name, found in curves if found]


def from_results(folder: Path, output: Path) -> None:
    """The figures of every CSV file that has rows for them, measured on evaluation rows."""
    empty = dict.fromkeys(rows.COLUMNS, "")
    files = {path.stem: [empty | row for row in rows.read(path)
                         if "key" in row and any(map(row.get, rows.METRICS))]
             for path in sorted(folder.glob("*.csv"))}
    files["paper"] = paper_rows(folder / "paper_runs.csv")
    everything, wrong = [row for results in files.values() for row in results], []
    pictures = [(name, *picture) for name in files for picture in figures_of(files[name])]
    theirs = {figure: found for name, figure, found in pictures if name == "paper"}
    pictures = [(name, figure, found + theirs.get(figure, []) * (
        figure in ("figure2", "figure5") and name != "paper"))
                for name, figure, found in pictures]
    rated = {name: found for name in files if (found := with_rates(files[name]))}
    if not pictures and not rated:
        raise UserError(f"nothing to draw: no CSV file in {folder} has rows of two densities")
    words = rows.read(folder / "words.csv")
    drawn = [(name, draw_curves, f"{figure}-{name}", found, words, [files[name], everything])
             for name, figure, found in pictures]
    drawn += [(name, draw_rates, f"rates-{name}", found, words) for name, found in rated.items()]
    for name, draw, picture, *given in drawn:
        try:
            draw(output / picture, *given)
        except (UserError, ValueError) as error:  # ValueError: no number where one should be
            wrong.append(f"{folder / name}.csv: {error}")
    if wrong:  # once all others are drawn
        raise UserError("\n".join(dict.fromkeys(wrong)))


def main() -> None:
    p = cli.Parser(prog="python -m tools.figures", description=__doc__)
    p.add_argument("--run", nargs="+", type=Path, metavar="RUN", help="folders of train.py's runs")
    p.add_argument("--results", type=Path, default=HERE / "results", metavar="DIR",
                   help="folder of CSV files (default: results/)")
    p.add_argument("--output", type=Path, default=HERE / "figures", metavar="DIR",
                   help="where to write pictures (default: figures/)")
    args = p.parse_args()
    drawing.start()
    if args.run:
        run_figures.draw(args.run, args.output)
    elif args.results.is_dir():
        from_results(args.results, args.output)
    else:
        raise UserError(f"{args.results}: no such folder; --results names one of CSV files")


if __name__ == "__main__":
    run_main(main)
