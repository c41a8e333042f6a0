"""The CSV files of results/: what a row says, and how it gets there whole.

    for row in rows.read(Path("results/mnli.csv")): print(row["method"], row["accuracy_matched"])

A row is a finished run of train.py, values as text, empty where they say nothing. Only what holds
on any machine is in it: absolute paths are shown by their last name.
"""

import csv
import io
import os
import platform
import subprocess
import time
from pathlib import Path

import torch

import masking
from support.files import UserError, locked, read_json, write_atomically

METRICS = ("accuracy_matched", "accuracy_mismatched", "accuracy", "f1", "exact_match",
           "matthews_correlation", "pearson", "spearman")
# keep and penalty are what was asked for, density and penalty_found what came out
COLUMNS = (
    "task", "data", "model", "method", "scope", "keep", "penalty", "penalty_found", "density",
    "encoder_density", "nonzero_parameters", "nonzero_parameters_total", "total_parameters",
    "on_target", *METRICS, "lr", "score_lr", "epochs", "steps", "batch_size", "max_length",
    "warmup", "hold", "cooldown", "train_rows", "eval_rows", "teacher", "freeze", "held_out",
    "seed", "train_seconds", "precision", "git", "command", "machine", "threads",
    "torch", "python", "date", "key")


def read(path: Path) -> list[dict]:
    """The rows of a CSV, values as text; none if there is no such file."""
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            found = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, csv.Error) as error:  # not UTF-8; a zero byte, an endless field
        raise UserError(f"{path}: not a CSV file ({error})") from None
    for number, row in enumerate(found, 1):
        if None in row or None in row.values():
            raise UserError(f"{path}: row {number} has not as many cells as the header")
    return found


def write(path: Path, found: list[dict], columns) -> None:
    """A CSV of these rows alone; a column that a row has not is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: shown(value) for name, value in row.items()} for row in found)
    write_atomically(path, text.getvalue())


def append(path: Path, row: dict) -> None:
    """Add a row, unless one with its key is there; two processes may do so at the same time.

    The file is replaced by the longer one, so that a reader never sees part of a row.
    """
    with locked(path):
        there = read(path)
        if there and "key" not in there[0]:
            raise UserError(f"{path}: has no column key, so it is not a sweep's; name another file")
        if any(old.get("key") == row["key"] for old in there):
            return
        write(path, [*there, row], dict.fromkeys((*COLUMNS, *(there[0] if there else ()))))


# ----------------------------------------------------------------------- from a run's folder


def place(name: str | None) -> str | None:
    """A path without what is this machine's alone: absolute ones and ../ones by their last name."""
    return Path(name).name if name and (Path(name).is_absolute() or name[0] in "~.") else name


def row_of(folder: Path, words: list[str], key: str, git: str) -> dict:
    """The row of a finished run; `words` are train.py's arguments, `git` from git_version()."""
    metrics, run = (read_json(folder / f"{name}.json") for name in ("metrics", "run"))
    learned = masking.METHODS[metrics["method"]].learned
    found = run | metrics | metrics["metrics"] | {
        "score_lr": run["score_lr"] if learned else None,
        "model": place(metrics["model"]), "teacher": place(run["teacher"]),
        "keep": metrics["keep"] if run["penalty"] is None else None,
        "penalty": run["penalty"], "penalty_found": metrics["penalty"],
        "epochs": metrics["steps"] * run["batch_size"] / metrics["train_inputs"],
        "command": "python train.py " + " ".join(place(word) for word in words),
        **origin(run["device"], git), "key": key,
    }
    return {name: shown(found.get(name)) for name in COLUMNS}


def shown(value) -> str:
    return "" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)


def origin(device: str, git: str) -> dict:
    """Where and when a row was made, and with what; `git` from git_version()."""
    return {"machine": machine(device), "torch": torch.__version__, "git": git,
            "date": time.strftime("%Y-%m-%d")}


def machine(device: str) -> str:
    """Processor, number of cores, and the GPU if the run was on one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if device.startswith("cuda") else ""
    return f"{cpu}, {os.cpu_count()} cores{gpu}"


def git_version() -> str:
    """The commit, with + where a source file differs from it; empty outside of git."""
    def ask(*words):
        return subprocess.run(["git", *words], cwd=Path(__file__).parent.parent,
                              capture_output=True, text=True).stdout.strip()

    try:
        commit = ask("rev-parse", "--short", "HEAD")
        return commit + ("+" if ask("status", "--porcelain", "--", "*.py") else "")
    except OSError:  # there is no git
        return ""
