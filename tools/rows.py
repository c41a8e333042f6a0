"""The CSV files of results/: what a row says, and how rows are read and written.

    for row in rows.read(Path("results/sample.csv")): print(row["method"], row["accuracy_matched"])

A row is a finished run of train.py. All values are text, and empty where a run has none. Of a path
that begins with /, ~ or .. only the last name is shown, so that a row is the same on every machine.
"""

import csv
import io
import itertools
from pathlib import Path

from support.files import (
    UserError,
    check_table,
    finite,
    locked,
    read_json,
    reading,
    write_atomically,
)
from support.origin import origin

METRICS = ("accuracy_matched", "accuracy_mismatched", "accuracy", "f1", "exact_match",
           "matthews_correlation", "pearson", "spearman", "macro_f1")
# keep and penalty are what was asked for, density and penalty_found what resulted
COLUMNS = (
    "task", "data", "model", "method", "scope", "keep", "penalty", "penalty_found", "density",
    "encoder_density", "nonzero_parameters", "nonzero_parameters_total", "total_parameters",
    "on_target", "collapsed", *METRICS,
    *(f"held_out_{name}" for name in METRICS[2:]),
    "lr", "score_lr", "epochs", "steps", "batch_size", "max_length", "warmup", "hold", "cooldown",
    "train_rows", "eval_rows", "teacher", "alpha", "temperature", "freeze", "held_out", "seed",
    "moved_kept", "train_seconds", "precision", "git", "command", "machine", "threads", "torch",
    "python", "date", "key")
NUMBERS = ("density", "encoder_density", "nonzero_parameters", "nonzero_parameters_total",
           *METRICS, *(f"held_out_{name}" for name in METRICS))  # what pictures and tables show
# for people to read, in the order of tables and legends
METHOD_NAMES = {"dense": "dense", "random": "random", "magnitude": "magnitude", "l0": "L0",
                "movement": "movement", "soft_movement": "soft movement"}


def method_name(method: str) -> str:
    """The name in tables and pictures; for FILE.py:Class, the class."""
    return METHOD_NAMES.get(method, method.rpartition(":")[2])


# ----------------------------------------------------------------------------- reading, writing


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no file. UserError for one that is no CSV file, and
    for a damaged row, with its line."""
    if not path.exists():
        return []
    table = []
    with reading(path, "not a CSV file"), open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.DictReader(file)
        for row in lines:
            if why := problem(row):
                raise UserError(f"{path}:{lines.line_num}: {why}; mend or remove this row")
            table.append(row)
    return table


def problem(row: dict) -> str:
    """What is wrong with a row, if anything."""
    if None in row or None in row.values():
        return "not as many cells as the header"
    for name in NUMBERS:
        try:
            finite(row.get(name) or "0")
        except ValueError:
            return f"{name} {row[name]!r} is not a number"
    return ""


def keys(path: Path) -> set[str]:
    """Which runs have a row in the file."""
    return {row.get("key", "") for row in read(path)}


def write(path: Path, table: list[dict], columns) -> None:
    """Replace `path` by these rows."""
    write_atomically(path, as_csv(table, columns))


def as_csv(table: list[dict], columns) -> str:
    """Header and rows; a cell is empty where a row does not have the column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: as_text(value) for name, value in row.items()} for row in table)
    return text.getvalue()


def check(path: Path, column: str = "key") -> list[dict[str, str]]:
    """→ its rows; UserError where a row, which has this column, could not be added."""
    check_table(path, column)
    return read(path)


def append(path: Path, row: dict) -> None:
    """Add a row unless one with its key is there. Several processes may append at the same time,
    and a reader never sees part of a row, because the whole file is replaced."""
    with locked(path.with_name(f"{path.name}.lock")):
        there = check(path)
        if row["key"] not in [other["key"] for other in there]:
            older = there[0] if there else {}  # it may have columns that are no longer written
            write(path, [*there, row], dict.fromkeys((*COLUMNS, *older)))


def put(path: Path, row: dict, same: tuple[str, ...]) -> None:
    """Add a row, in place of an earlier one with the same values in the columns `same`."""
    with locked(path.with_name(f"{path.name}.lock")):
        kept = {tuple(r.get(name, "") for name in same): r for r in read(path)}
        kept[tuple(as_text(row[name]) for name in same)] = row
        write(path, [*kept.values()], dict.fromkeys(itertools.chain(row, *kept.values())))


def as_text(value) -> str:
    return "" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)


# ----------------------------------------------------------------------- from a run's folder


def place(name: str | None) -> str | None:
    """What a path is called on every machine: the last name of /…, ~/… and ../…, else all of it."""
    return Path(name).name if name and (Path(name).is_absolute() or name[0] in "~.") else name


def metric_columns(measured: dict) -> dict:
    """The metrics in `measured`, which is like metrics.json, by the names of their columns."""
    held_out = measured.get("held_out_metrics", {})
    return measured["metrics"] | {f"held_out_{name}": value for name, value in held_out.items()}


def made_by(module: str, words: list[str]) -> dict[str, str]:
    """How the row of another tool came about: its command, the commit and the date."""
    made = origin("cpu")
    return {"command": " ".join([f"python -m {module}", *map(place, words)]),
            "git": made["git"], "date": made["date"]}


def row_of(folder: Path, words: list[str], key: str) -> dict[str, str]:
    """The row of a finished run; `words` are train.py's arguments."""
    metrics, run = (read_json(folder / f"{name}.json") for name in ("metrics", "run"))
    values = origin(run["device"]) | run | metrics | metric_columns(metrics) | {
        "model": place(metrics["model"]), "teacher": place(run["teacher"]),
        "alpha": run["alpha"] if run["teacher"] else None,
        "temperature": run["temperature"] if run["teacher"] else None,
        "keep": metrics["keep"] if run["penalty"] is None else None,
        "penalty": run["penalty"], "penalty_found": metrics["penalty"],
        "epochs": metrics["steps"] * run["batch_size"] / metrics["train_inputs"],
        "command": "python train.py " + " ".join(place(word) for word in words),
        "key": key,
    }
    return {name: as_text(values.get(name)) for name in COLUMNS}
