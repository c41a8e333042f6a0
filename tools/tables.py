"""The pages' tables, filled in from results/*.csv; figures.py does it along with the pictures.

    python -m tools.tables

A table stands between two comments, <!-- table: sample-mnli --> and <!-- end -->, and comes from
results/sample-mnli.csv. Options after the name: methods=…, keep=… and tasks=… name rows and columns
that are to be there, run or not; metric=… takes others than the first; by=lr,score_lr makes a line
of each rate; any column of the CSV and a value (teacher= for none) chooses among its rows.
paper_runs makes a table of the authors' runs, distilled=yes of those with a teacher; benchmark,
one of results/benchmark.json, parts=… naming its parts. With columns=… any CSV is shown
as it is: <!-- table: sparse columns=batch,density,csr_ms model=MiniLM -->.
"""

import os
import re
import statistics
from pathlib import Path

import numpy as np

import masking
from support import cli
from support.files import UserError, read_json, run_main, write_atomically
from tools import rows

HERE = Path(__file__).parent.parent
PAGES = [HERE / "README.md", HERE / "results" / "README.md"]
MARK = re.compile(r"(<!-- table: (\S+)(.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
MISSING = "not run here"
SETTINGS = ("lr", "score_lr", "batch_size", "max_length", "warmup", "train_rows", "precision")
PRUNING = ("hold", "cooldown")  # SETTINGS too, but for dense
PAPER_METRICS = {
    "squad": ("EM", "F1"), "mnli": ("accuracy matched", "mismatched"), "qqp": ("accuracy", "F1")}


# ------------------------------------------------------------------------ rows put together


def series_of(found: list[dict], by=()) -> dict[str, list[dict]]:
    """Rows of one task by what they compare: the method, the columns `by`, and whatever else sets
    rows of that method apart."""
    def order(row):
        return (method_order(row["method"]), bool(row["teacher"]),
                bool(row["freeze"]), row["scope"] == "global", float(row["epochs"]))

    series = {}
    for row in sorted(found, key=order):
        series.setdefault(label(row, found, by), []).append(row)
    return series


def method_of(label: str) -> str:
    return label.split(",")[0].split(" ")[0]


def method_order(label: str) -> int:
    """Methods in the order of masking.METHODS, whatever else a picture shows after them."""
    names = [*masking.METHODS]
    return names.index(method_of(label)) if method_of(label) in names else len(names)


def label(row: dict, among: list[dict], by=()) -> str:
    """A row's series, such as "movement, global + teacher"; model, epochs and other settings where
    they differ, the columns `by` always."""
    like = [r for r in among if r["method"] == row["method"]]
    text = row["method"]
    if len({r["model"] for r in like}) > 1:
        text += f", {row['model']}"
    if len({rounded(r["epochs"]) for r in like}) > 1:
        text += f", {rounded(row['epochs'])} epochs"
    if row["scope"] == "global" and masking.METHODS[row["method"]].ranked:
        text += ", global"
    text += ", weights frozen" if row["freeze"] else ""
    text += f", {row['held_out']} held out" if row["held_out"] else ""
    text += " + teacher" if row["teacher"] else ""
    apart = [c for c in SETTINGS + PRUNING * (row["method"] != "dense")
             if c not in by and len({r.get(c) for r in like} - {None, ""}) > 1]  # "": not known
    return text + "".join(f", {c} {row[c]}" for c in (*by, *apart) if row.get(c))


def rounded(number: str) -> str:
    return f"{float(number):.2g}"


def by_keep(found: list[dict]) -> dict[str, list[dict]]:
    """Rows of one series by what was asked for; the rows of a cell must differ by their seeds."""
    cells = {}
    for row in found:
        asked = row["keep"] or f"λ {row['penalty']}"
        cell = cells.setdefault(asked, [])
        if row["seed"] in [other["seed"] for other in cell]:
            raise UserError(f"two rows of {row['task']}, {row['method']}, {asked}, seed "
                            f"{row['seed']}: {row['command']}; tell them apart with by=COLUMN, "
                            "choose with COLUMN=VALUE, or delete one")
        cell.append(row)
    return cells


def first_metric(found: list[dict]) -> str:
    return next((name for name in rows.METRICS if any(row[name] for row in found)), "")


def values(cell: list[dict], column: str) -> list[float]:
    return [float(row[column]) for row in cell if row[column]]


# ------------------------------------------------------------------------------- the tables


def cell_text(cell: list[dict], metrics: list[str]) -> str:
    """mean ± standard deviation (seeds), and the density reached where it is not the one asked."""
    if not cell:
        return MISSING
    found = [values(cell, metric) for metric in metrics]
    text = " / ".join(
        f"{statistics.mean(v):.1f}" + (f" ± {statistics.stdev(v):.1f}" if len(v) > 1 else "")
        if v else "–" for v in found)
    density = statistics.mean(values(cell, "density"))
    missed = any(row["on_target"] == "False" for row in cell)
    reached = f", {100 * density:.1f} % left" if missed else ""
    return f"{text} ({len(cell)}{reached})"


def render(header: list[str], body: list[list[str]]) -> str:
    """A Markdown table; what the first column says is said once."""
    firsts = [""] + [line[0] for line in body]
    body = [["" if line[0] == before else line[0], *line[1:]] for line, before in zip(body, firsts)]
    lines = [header, ["---"] * len(header), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def results_table(found: list[dict], name: str, methods, keeps, tasks, metric, by) -> str:
    """One line a series, one column a density."""
    tasks = tasks or list(dict.fromkeys(row["task"] for row in found))
    keeps = keeps or sorted({row["keep"] for row in found if row["keep"]}, key=float, reverse=True)
    if not (tasks and keeps and (found or methods)):
        return f"*{MISSING}*\n"
    body = []
    for task in tasks:
        own = [row for row in found if row["task"] == task]
        metrics = metric or [first_metric(own)]
        series = series_of(own, by)
        there = {row["method"] for row in own}
        series |= {method: [] for method in methods if method not in there}
        for title, group in sorted(series.items(), key=lambda item: method_order(item[0])):
            cells = by_keep(group)
            method = method_of(title)
            body.append([f"{task} {' / '.join(metrics)}".strip(), title] + [
                "–" if (method == "dense") != (float(keep) == 1) and keep not in cells
                else cell_text(cells.get(keep, []), metrics) for keep in keeps])
    shares = [f"{100 * float(keep):g} %" for keep in keeps]
    return render(["", "method", *shares], body) + caption(found, name)


def caption(found: list[dict], name: str) -> str:
    if not found:
        return ""
    data, model = (", ".join(dict.fromkeys(r[k] for r in found)) for k in ("data", "model"))
    return ("\nmean ± standard deviation (seeds); columns: share of the encoder matrices' weights "
            f"asked to remain; data: {data}; model: {model}; rows: `results/{name}.csv`\n")


def paper_table(found: list[dict], keeps, tasks, distilled: str) -> str:
    """Tables 2 and 3 from the authors' runs: those of ranked methods as they are, the others
    linearly interpolated between neighbours, as in the paper."""
    if not found:
        return f"*{MISSING}*\n"
    keeps, body = keeps or ["0.1", "0.03"], []
    for task in tasks or PAPER_METRICS:
        if task not in PAPER_METRICS:
            raise UserError(f"tasks={task}: the paper has {', '.join(PAPER_METRICS)}")
        for method in ("magnitude", "l0", "movement", "soft_movement"):
            own = [row for row in found if (row["task"], row["method"], row["distilled"])
                   == (task, method, distilled) and row["scope"] == paper_scope(method)]
            body.append([f"{task} {' / '.join(PAPER_METRICS[task])}", method] + [
                " / ".join(f"{interpolated(own, float(k), m):.1f}" for m in ("metric1", "metric2"))
                for k in keeps])
    shares = [f"{100 * float(keep):g} %" for keep in keeps]
    taught = "with a teacher" if distilled == "yes" else "without a teacher"
    return render(["", "method", *shares], body) + (
        f"\nthe paper's own results {taught}: BERT-base, one seed, from the authors' runs in "
        "`results/paper_runs.csv`\n")


def paper_scope(method: str) -> str:
    return "local" if masking.METHODS[method].ranked else "global"


def interpolated(found: list[dict], keep: float, metric: str) -> float:
    """A metric at a density; runs at 0.101 count biases and LayerNorms, and asked for 0.1."""
    points = sorted((float(row["encoder_density"]), float(row[metric])) for row in found)
    if masking.METHODS[found[0]["method"]].ranked:
        return min(points, key=lambda p: abs(p[0] - keep - 0.001))[1]
    return float(np.interp(keep, *zip(*points)))


def benchmark_table(path: Path, parts: list[str]) -> str:
    """Two steps or epochs compared: the median of their ratio, and its range over the rounds."""
    result, body = read_json(path), []
    for row in result["rows"]:
        if row["part"] in parts:
            spread = f" ({row['low']:.2f} to {row['high']:.2f})" if "low" in row else ""
            amount = (f"{row['bytes'] / 2**20:,.0f} MB" if "bytes" in row
                      else f"{row['ms']:,.0f} ms, {row['tokens_per_second']:,.0f} tokens/s")
            body.append([row["part"], row["name"], row["size"], f"{row['ratio']:.2f}{spread}",
                         amount])
    return render(["part", "what", "model, batch", "ratio", "amount"], body) + (
        f"\nmedians; {result['machine']}, {result['threads']} threads, torch {result['torch']}, "
        f"{result['precision']}; from `results/{path.name}`\n")


def plain_table(found: list[dict], columns: list[str], name: str) -> str:
    """Rows as they are, numbers rounded."""
    def shown(cell: str) -> str:
        try:
            number = float(cell)
        except ValueError:
            return cell or "–"
        return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"

    if not found:
        return f"*{MISSING}*\n"
    header = [column.replace("_", " ") for column in columns]
    return render(header, [[shown(row[c]) for c in columns] for row in found]) + (
        f"\nfrom `{os.path.normpath(f'results/{name}.csv')}`\n")


# --------------------------------------------------------------------------------- the pages


def chosen(found: list[dict], filters: dict[str, str]) -> list[dict]:
    """The rows whose columns have one of the values given, numbers compared as numbers."""
    def same(cell, value):
        try:
            return float(cell) == float(value)
        except ValueError:
            return cell == value

    for column, wanted in filters.items():
        found = [r for r in found if any(same(r[column], v) for v in wanted.split(","))]
    return found


def table(name: str, options: dict[str, str], folder: Path) -> str:
    """The Markdown of one table."""
    options = dict(options)
    lists = ("methods", "keep", "tasks", "metric", "by", "columns", "parts")
    methods, keeps, tasks, metric, by, columns, parts = (
        [v for v in options.pop(name, "").split(",") if v] for name in lists)
    try:
        keeps = [f"{float(keep):g}" for keep in keeps]  # as the CSV has them
    except ValueError:
        raise UserError(f"keep={','.join(keeps)} is not a list of numbers") from None
    if name == "benchmark":
        return benchmark_table(folder / "benchmark.json", parts)
    found = rows.read(folder / f"{name}.csv")
    if name == "paper_runs":
        return paper_table(found, keeps, tasks, options.get("distilled", "no"))
    for column in (*metric, *by, *columns, *options):
        if found and column not in found[0]:
            raise UserError(f"{name}.csv has no column {column}"
                            + cli.nearest(column, list(found[0])))
    found = chosen(found, options)
    if columns:
        return plain_table(found, columns, name)
    for column, wanted in (("method", methods), ("task", tasks)):
        found = [row for row in found if not wanted or row[column] in wanted]
    return results_table(found, name, methods, keeps, tasks, metric, by)


def fill(text: str, folder: Path) -> str:
    """`text` with every table between its markers made anew from the CSV files of `folder`."""
    def made(match):
        try:
            if wrong := [word for word in match[3].split() if "=" not in word]:
                raise UserError(f"{wrong[0]}: options are written NAME=VALUE")
            options = dict(word.split("=", 1) for word in match[3].split())
            return match[1] + table(match[2], options, folder) + match[5]
        except UserError as error:
            raise UserError(f"table {match[2]}: {error}") from None

    if text.count("<!-- table: ") != len(MARK.findall(text)):
        raise UserError("a <!-- table: … --> has no <!-- end -->")
    return MARK.sub(made, text)


def fill_file(path: Path, folder: Path) -> None:
    text = path.read_text(encoding="utf-8")
    filled = fill(text, folder)
    if filled != text:
        write_atomically(path, filled)
    print(f"{path}: {len(MARK.findall(text))} tables" + (", as they were" * (filled == text)))


def main() -> None:
    cli.Parser(description=__doc__).parse_args()
    for page in PAGES:
        fill_file(page, HERE / "results")


if __name__ == "__main__":
    run_main(main)
