"""The tables of README.md and results/README.md, made from the files of results/.

    python -m tools.tables

A table stands between <!-- table: KIND … --> and <!-- end -->. The kinds are:

    methods FILE TASKS    every method at 10 and 3 %; the rows are in results/FILE.csv
    later FILE TASKS      the same, each method at the learning rate that suits it best
    best FILE TASKS       the same again, the paper's methods alone
    densities FILE TASKS  the paper's methods at every density
    teachers FILE TASKS   the methods that had a teacher, with and without it
    frozen FILE TASKS     runs with frozen weights, and runs of the same seeds without
    lengths FILE TASKS    runs alike but for their number of steps
    held_out FILE TASKS   every run with --held-out of the usual length and without a teacher,
                          measured on the rows held out
    paper taught          the authors' own runs with a teacher; paper untaught: without
    benchmark FILE PARTS  ratios of results/FILE.json
    csv FILE COLUMNS      results/FILE.csv with rounded numbers

TASKS, PARTS and COLUMNS are comma lists. A † marks collapsed runs.
"""

import functools
import os
import re
import statistics
from operator import itemgetter
from pathlib import Path

import numpy as np

from support import cli
from support.files import UserError, read_json, run_main, write_atomically
from tools import rows

HERE = Path(__file__).parent.parent
PAGES = (HERE / "README.md", HERE / "results" / "README.md")
MARK = re.compile(r"<!-- table: (.*?) -->\n(.*?)<!-- end -->", re.DOTALL)
GLOBAL = ("dense", "l0", "soft_movement")  # never ranked matrix by matrix
SETTINGS = ("score_lr", "batch_size", "max_length", "warmup", "train_rows", "eval_rows",
            "alpha", "temperature", "precision", "hold", "cooldown")
PAPER_METRICS = {"squad": ("exact_match", "f1"),
                 "mnli": ("accuracy_matched", "accuracy_mismatched"), "qqp": ("accuracy", "f1")}


# ------------------------------------------------------------------------ rows put together

panel = itemgetter("task", "data", "model")  # what rows in one panel of a picture have in common


def method_order(label: str) -> int:
    names = list(rows.METHOD_NAMES.values())
    return next((i for i, name in enumerate(names) if label.startswith(name)), len(names))


def label(row: dict, among: list[dict]) -> str:
    """The name of a row's series, such as "movement, global + teacher": its method, and the
    settings in which rows of that method differ."""
    def differ(column):
        return len({r.get(column, "") for r in among if r["method"] == row["method"]} - {""}) > 1

    name = rows.method_name(row["method"])
    namesakes = {r["method"] for r in among if rows.method_name(r["method"]) == name}
    parts = [name if len(namesakes) == 1 else row["method"]]
    parts += [row["model"]] * differ("model")
    parts += [f"{row['epochs']} epoch" + "s" * (row["epochs"] != "1")] * differ("epochs")
    parts += ["global"] * (row["scope"] == "global" and row["method"] not in GLOBAL)
    parts += ["weights frozen"] * bool(row["freeze"])
    if row["held_out"] and not all(r["held_out"] for r in among):
        parts.append(f"{row['held_out']} held out")
    settings = SETTINGS[:-2] if row["method"] == "dense" else SETTINGS  # dense has no schedule
    if row["lr"] and several_rates(row, among):
        parts.append(f"lr {rate_text(row['lr'])}")
    parts += [f"{column} {row[column]}" for column in settings
              if row.get(column) and differ(column)]
    return ", ".join(parts) + " + teacher" * bool(row["teacher"])


def several_rates(row: dict, among: list[dict]) -> bool:
    """Has the row's method more than one learning rate at one density of the task? If not, the
    rates are a matter of the caption."""
    found = {(r["keep"], r["lr"]) for r in among
             if (r["task"], r["method"]) == (row["task"], row["method"])}
    return len(found) > len({keep for keep, _ in found})


def series_of(group: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """Rows of one task → label → density asked for → rows; UserError if two have the same seed."""
    group = [row | {"epochs": f"{float(row['epochs']):.2g}"} for row in group]
    series = {}
    for row in group:
        cells = series.setdefault(label(row, group), {})
        cell = cells.setdefault(row["keep"] or f"λ {row['penalty']}", [])
        one_a_seed([*cell, row])
        cell.append(row)

    def place(item):
        [first, *_], *_ = item[1].values()
        return method_order(item[0]), len(item[0]), float(first["lr"] or 0)

    return dict(sorted(series.items(), key=place))


def one_a_seed(cell: list[dict]) -> list[dict]:
    """The same rows; UserError if two have the same seed, and so differ in something else."""
    seeds = [row["seed"] for row in cell]
    for row in cell:
        if seeds.count(row["seed"]) > 1:
            raise UserError(f"two rows of {row['task']}, {row['method']}, {row['keep']}, seed "
                            f"{row['seed']}, in one table or picture: {row['command']}")
    return cell


def measured(group: list[dict], prefix: str = "") -> tuple[str, list[dict]]:
    """→ the first metric that some of the rows have, and these rows. `prefix`: "held_out_" for
    those of --held-out; rows of earlier versions have no others."""
    metrics = [prefix + name for name in rows.METRICS]
    metric = next((name for name in metrics if any(row.get(name) for row in group)), "")
    return metric, [row for row in group if row.get(metric)]


def values(cell: list[dict], column: str) -> list[float]:
    return [float(row[column]) for row in cell if row[column]]


def has_collapsed(cell: list[dict]) -> bool:
    """Did any of these runs? Rows of earlier versions do not say."""
    return any(row.get("collapsed") == "True" for row in cell)


# ------------------------------------------------------------------------- how tables look


def markdown(header: list[str], body: list[list[str]], caption: str) -> str:
    """A table; a first cell that repeats the one above it is left empty."""
    firsts = ["", *(line[0] for line in body)]
    body = [["" if line[0] == above else line[0], *line[1:]] for line, above in zip(body, firsts)]
    lines = [header, ["---"] * len(header), *body]
    lines = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines) + f"\n{caption}\n"


def cell_text(cell: list[dict], metric: str) -> str:
    """mean ± standard deviation (seeds, and the density reached if it is not what was asked for)"""
    scores = values(cell, metric)
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    missed = any(row["on_target"] == "False" for row in cell)
    reached = f", {100 * statistics.mean(values(cell, 'density')):.1f} % left" if missed else ""
    mark = "†" * has_collapsed(cell)
    return f"{statistics.mean(scores):.1f}{spread} ({len(cell)}{reached}){mark}"


def read(folder: Path, file: str) -> list[dict]:
    group = rows.read(folder / f"{file}.csv")
    if not group:
        raise UserError(f"no rows in results/{file}.csv")
    return group


# ------------------------------------------------------------------------ the kinds of table


def series_table(choose, folder: Path, file: str, tasks: str, *, prefix: str = "") -> str:
    """A line for each series, a column for each density. `choose(row, rows of the file)` is one of
    CHOICES."""
    found, groups, body = read(folder, file), {}, []
    for task in tasks.split(","):
        metric, group = measured(
            [row for row in found if row["task"] == task and choose(row, found)], prefix)
        if not group:
            raise UserError(f"results/{file}.csv has no such rows of {task}")
        groups[task, metric] = group
    chosen = [row for group in groups.values() for row in group]
    keeps = sorted({row["keep"] for row in chosen} - {""}, key=float, reverse=True)
    for (task, metric), group in groups.items():
        for title, cells in series_of(group).items():
            body.append([f"{task} {metric}", title] + [
                cell_text(cells[keep], metric) if keep in cells else "–" for keep in keeps])
    data, model = (", ".join(dict.fromkeys(row[c] for row in chosen)) for c in ("data", "model"))
    return markdown(
        ["", "method", *(f"{100 * float(keep):g} %" for keep in keeps)], body,
        "mean ± standard deviation (seeds); columns: share of the encoder matrices' weights asked "
        f"to remain; `--data {data} --model {model}`; {rates(chosen)}rows: "
        f"`results/{file}.csv`" + has_collapsed(chosen) * (
            ". A † marks a collapsed run: no better than one answer for all rows"))


def rate_text(lr: str) -> str:
    return np.format_float_scientific(float(lr), trim="-", exp_digits=1)


def rates(chosen: list[dict]) -> str:
    """The learning rates of each method, if they are not all the same, nor in the labels."""
    found = {}  # task and method → rate → the densities at which it was used
    for row in chosen:
        if row["lr"] and not several_rates(row, chosen):
            of_method = found.setdefault((row["task"], row["method"]), {})
            of_method.setdefault(row["lr"], {})[f"{100 * float(row['keep'] or 0):g} %"] = True
    if not found or len({row["lr"] for row in chosen}) == 1:
        return ""
    texts, tasks = [], {task for task, _ in found}
    for (task, method), lrs in found.items():
        name = rows.method_name(method) + f" on {task}" * (len(tasks) > 1)
        texts += [f"{name} {rate_text(lr)}" + f" at {', '.join(keeps)}" * (len(lrs) > 1)
                  for lr, keeps in lrs.items()]
    return f"learning rates: {', '.join(texts)}; "


def alone(row: dict) -> bool:
    return not row["teacher"] and not row["freeze"]


def matched(row: dict, among: list[dict], column: str, *same: str) -> bool:
    """Does the row equal one that has this column, at least in panel, method, scope, density and
    `same`?"""
    key = itemgetter("task", "data", "model", "method", "scope", "keep", *same)
    return key(row) in {key(other) for other in among if other[column]}


def at_best_rate(row: dict, among: list[dict]) -> bool:
    """Does the row have the learning rate that suits its method best? Two rates are compared on the
    rows held out of training, by the seeds that both have: in the runs at the row's density or, if
    these have but one rate, at the density with most rates."""
    key = itemgetter("task", "data", "model", "method", "scope", "epochs")
    metric, trials = measured([r for r in among if key(r) == key(row) and alone(r)], "held_out_")
    found = {}  # density → rate → seed → value
    for trial in trials:
        seeds = found.setdefault(trial["keep"], {}).setdefault(trial["lr"], {})
        seeds[trial["seed"]] = float(trial[metric])
    values_at = found.get(row["keep"], {})
    if len(values_at) < 2:
        values_at = max(found.values(), key=len, default={})

    def lead(lr: str, other: str) -> float:
        ours, theirs = values_at[lr], values_at[other]
        return sum(ours[seed] - theirs[seed] for seed in ours if seed in theirs)

    return row["lr"] == max(values_at, key=functools.cmp_to_key(lead), default=row["lr"])


def usual_length(row: dict, among: list[dict]) -> bool:
    """Does the run have as many steps as most of its task, data and model?"""
    return row["steps"] == statistics.mode(r["steps"] for r in among if panel(r) == panel(row))


def of_several_lengths(row: dict, among: list[dict]) -> bool:
    """Are there runs like this one, seeds aside, with another number of steps?"""
    alike = itemgetter("task", "data", "model", "method", "scope", "keep", "lr", "held_out")
    steps = {r["steps"] for r in among if alike(r) == alike(row) and alone(r)}
    return alone(row) and len(steps) > 1


def usual_scope(method: str) -> str:
    return "global" if method in GLOBAL else "local"


def paper(folder: Path, which: str) -> str:
    """Tables 2 and 3 from the authors' runs, without a teacher and with one."""
    if which not in ("taught", "untaught"):
        raise UserError("taught or untaught runs?")
    distilled, how = ("yes", "with") if which == "taught" else ("no", "without")
    runs, body = read(folder, "paper_runs"), []
    key = itemgetter("distilled", "task", "method", "scope")
    for task, metrics in PAPER_METRICS.items():
        for method in ("magnitude", "l0", "movement", "soft_movement"):
            wanted = (distilled, task, method, usual_scope(method))
            curve = [row for row in runs if key(row) == wanted]
            body.append([f"{task} {' / '.join(metrics)}", rows.method_name(method)] + [
                " / ".join(f"{at_density(curve, keep, m):.1f}" for m in ("metric1", "metric2"))
                for keep in (0.1, 0.03)])
    return markdown(["", "method", "10 %", "3 %"], body,
                    f"the paper's own results {how} a teacher: BERT-base, one seed, from the "
                    "authors' runs in `results/paper_runs.csv`")


def at_density(runs: list[dict], keep: float, metric: str) -> float:
    """A metric at a density: the nearest run's for ranked methods; for the others interpolated
    linearly, as in the paper, or the last point of a curve that ends before."""
    points = sorted((float(row["encoder_density"]), float(row[metric])) for row in runs)
    if runs[0]["scope"] == "local":
        # biases and LayerNorms count here: runs that asked for 0.1 are at 0.101
        return min(points, key=lambda p: abs(p[0] - keep - 0.001))[1]
    return float(np.interp(keep, *zip(*points)))


def compared(row: dict) -> list[str]:
    """A ratio, with its range over the rounds if it is one of times, and what was measured."""
    if "bytes" in row:
        return [f"{row['ratio']:.2f}", f"{row['bytes'] / 2**20:,.0f} MB"]
    return [f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            f"{row['ms']:,.0f} ms, {row['tokens_per_second']:,.0f} tokens/s"]


def benchmark(folder: Path, file: str, parts: str) -> str:
    """Steps, epochs or amounts of memory compared."""
    result, wanted = read_json(folder / f"{file}.json"), parts.split(",")
    there = dict.fromkeys(row["part"] for row in result["rows"])
    if unknown := [part for part in wanted if part not in there]:
        raise UserError(f"results/{file}.json has no part {unknown[0]}, only {', '.join(there)}")
    body = [[row["part"], row["name"], row["size"], *compared(row)]
            for row in result["rows"] if row["part"] in wanted]
    return markdown(["part", "what", "model, batch", "ratio", "amount"], body,
                    f"medians; {result['machine']}, {result['threads']} threads, torch "
                    f"{result['torch']}, {result['precision']}; from `results/{file}.json`")


def csv(folder: Path, file: str, columns: str) -> str:
    """Rows as they are, with rounded numbers; from ../figures/anatomy.csv only whole runs."""
    def shown(cell: str) -> str:
        try:
            number = float(cell)
        except ValueError:
            return cell or "–"
        return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"

    lines = [row for row in read(folder, file)
             if row.get("layer", "all") == row.get("matrix", "all") == "all"]
    return markdown(columns.replace("_", " ").split(","),
                    [[shown(row[column]) for column in columns.split(",")] for row in lines],
                    f"from `{os.path.normpath(f'results/{file}.csv')}`")


# --------------------------------------------------------------------------------- the pages

CHOICES = {
    "methods": lambda row, _: alone(row) and row["keep"] in ("1", "0.1", "0.03"),
    "later": lambda row, among: (CHOICES["methods"](row, among) and at_best_rate(row, among)
                                 and usual_length(row, among)),
    "best": lambda row, among: CHOICES["later"](row, among) and row["method"] in rows.METHOD_NAMES,
    "densities": lambda row, _: (alone(row) and row["model"] != "untrained"
                                 and row["method"] in rows.METHOD_NAMES),
    "lengths": of_several_lengths,
    "held_out": lambda row, among: alone(row) and usual_length(row, among),
    "teachers": lambda row, among: (not row["freeze"]
                                    and matched(row, among, "teacher", "lr", "steps")),
    "frozen": lambda row, among: not row["teacher"] and matched(row, among, "freeze", "seed")}
KINDS = {kind: functools.partial(series_table, choose) for kind, choose in CHOICES.items()}
KINDS |= {"held_out": functools.partial(series_table, CHOICES["held_out"], prefix="held_out_"),
          "paper": paper, "benchmark": benchmark, "csv": csv}


def fill(text: str, folder: Path, page: str) -> str:
    """The text of a page, with every table made anew from the files of `folder`."""
    def made(mark: re.Match) -> str:
        kind, *words = mark[1].split() or [""]
        try:
            if kind not in KINDS:
                raise UserError(f"no such kind of table{cli.nearest(kind, KINDS)}")
            return f"<!-- table: {mark[1]} -->\n{KINDS[kind](folder, *words)}<!-- end -->"
        # TypeError: too many words, or too few; ValueError: no number where one should be
        except (UserError, TypeError, KeyError, ValueError) as error:
            what = f"no column {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{page}: <!-- table: {mark[1]} -->: {what}") from error

    if text.count("<!-- table: ") != len(MARK.findall(text)):
        raise UserError(f"{page}: a <!-- table: … --> has no <!-- end -->")
    return MARK.sub(made, text)


def main() -> None:
    cli.Parser(prog="python -m tools.tables", description=__doc__).parse_args()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        write_atomically(page, fill(text, HERE / "results", page.relative_to(HERE)))
        print(f"{page}: {len(MARK.findall(text))} tables")


if __name__ == "__main__":
    run_main(main)
