"""Many runs of train.py: every combination of the values given, one row of a CSV file each.

    python -m tools.sweep --task mnli --methods magnitude,movement --keep 0.1,0.03 --seeds 0,1,2
    python -m tools.sweep --tasks sst2,qqp --methods dense,l0 --jobs 2 --csv results/more.csv
    python -m tools.sweep --methods movement --lr 1e-3,3e-4 --score-lr 1e-2,3e-2 --held-out 0.1
    python -m tools.sweep --cells results/minilm-cells.txt --model DIR --data DIR --jobs 2

Every flag of train.py works here too, with one value or a comma list; --data and --teacher name one
folder. The same command again, also with other lists, runs only what has no row yet, and goes on
with what was interrupted. A row's `key` is a digest of all settings that decide its result; delete
a row to run it again with newer code. Of a path that begins with /, ~ or .. only the last name
counts, so that rows from different machines can be compared.

A file of --cells holds many sweeps, here two, which share the first line's flags and the command's:

    --task sst2 --epochs 3
        --methods magnitude --lr 1e-4,2e-4
        --methods movement --lr 1e-4 --seeds 0,1,2

Such a group's runs are under way together. The next group begins once they are finished, and may
name one of them as --teacher DIR/NAME (with --keep-runs DIR).
"""

import argparse
import ctypes
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import asdict
from pathlib import Path

import masking
import train
from support import checkpoints, cli, own
from support.files import RunError, UserError, read_lines, run_main
from tools import anatomy, rows

HERE = Path(__file__).parent.parent
DEFAULTS = {"--task": "mnli", "--method": "magnitude,l0,movement,soft_movement", "--keep": "0.1",
            "--model": "small", "--seed": "0"}
OURS = ("--output", "--overwrite", "--resume", "--dry-run")  # flags that the sweep sets itself
COMMANDS = ("--jobs", "--csv", "--cells", "--keep-runs")  # of the whole command, not of a cell
PATIENCE = 10.0  # seconds that an interrupted run has to save its checkpoint

# train.py's arguments, the settings that they give, a digest of these, and the folder's name
Run = namedtuple("Run", "words settings key name")
Job = namedtuple("Job", "run process folder log")  # a run in progress


# ----------------------------------------------------------------------------- which runs


def comma_list(text: str) -> list[str]:
    return text.split(",")


def make_parser() -> cli.Parser:
    """The sweep's own flags, and all of train.py's, which take lists here."""
    p = cli.Parser(prog="python -m tools.sweep", description=__doc__)
    a = p.add_argument
    a("--jobs", type=cli.count, default=1, metavar="N", help="runs at a time, sharing the cores")
    a("--csv", type=Path, default=Path("results/sweep.csv"), metavar="FILE", help="the rows")
    a("--cells", type=Path, metavar="FILE", help="many sweeps, each a line of flags")
    a("--keep-runs", type=Path, metavar="DIR", help="keep the folders of finished runs, here "
      "(default: runs/ has those of unfinished ones alone)")
    for action in train.make_parser()._actions:
        flag, kind = action.option_strings[-1], {"type": comma_list}
        if flag in DEFAULTS:
            a(flag, f"{flag}s", dest=flag, default=DEFAULTS[flag], metavar="LIST",
              help=action.help, **kind)
        elif flag != "--help":
            if flag in ("--data", "--teacher"):  # a list of one: a path may have commas
                kind = {"nargs": 1}
            elif action.nargs == 0:
                kind = {"action": "store_const", "const": [""]}
            a(flag, dest=flag, help=argparse.SUPPRESS, **kind)
    return p


def deciding(s: dict) -> dict:
    """The settings that have an effect on a run's result."""
    method = masking.find_method(s["method"])
    s = s | {"method": Path(s["method"]).name, "method_digest": own.digest(s["method"])}
    idle = {
        "output": True, "save_every": True, "eval_every": True, "device": True, "compile": True,
        "epochs": s["steps"], "keep": s["penalty"] is not None,
        "alpha": not s["teacher"], "temperature": not s["teacher"],
        "score_lr": not method.learned, "scope": not method.ranked,
        "hold": s["method"] == "dense", "cooldown": s["method"] == "dense"}
    return {k: rows.place(v) if k in ("data", "model", "teacher") else v for k, v in s.items()
            if not idle.get(k) and v is not None and v is not False}


def make_run(words: list[str]) -> Run:
    """Checks the words as train.py does; wrong ones end the program with its message."""
    settings = train.resolve(train.make_parser().parse_args(words))
    decisive = json.dumps(deciding(asdict(settings)), sort_keys=True)
    key = hashlib.sha256(decisive.encode()).hexdigest()[:12]
    name = f"{checkpoints.run_name(settings)}-{key[:6]}"
    return Run(words, asdict(settings), key, name)


def combinations(args) -> list[Run]:
    """Seeds vary slowest, so that an unfinished sweep has some seeds complete."""
    lists = {flag: values for flag, values in vars(args).items() if flag[0] == "-" and values}
    for flag in lists.keys() & OURS:
        raise UserError(f"{flag}: a sweep sets it itself; --keep-runs DIR keeps the folders")
    runs, seeds = [], lists.pop("--seed")
    for seed, *values in itertools.product(seeds, *lists.values()):
        flags = dict(zip(lists, values)) | {"--seed": seed}
        if flags["--method"] == "dense":
            del flags["--keep"]
        if not masking.find_method(flags["--method"]).penalised:
            flags.pop("--penalty", None)
        runs.append(make_run([word for pair in flags.items() for word in pair if word]))
    return runs


def read_cells(path: Path, words: list[str]) -> list[list[list[str]]]:
    """→ groups of sweeps, each the words of its flags, the command's own words last."""
    groups, common = [], []
    for line in read_lines(path):
        flags = line.partition("#")[0].split()
        if found := set(COMMANDS) & {flag.partition("=")[0] for flag in flags}:
            raise UserError(f"{path}: {found.pop()} belongs on the command line")
        if flags and not line[0].isspace():
            common = flags
            groups.append([])
        elif flags and groups:
            groups[-1].append([*common, *flags, *words])
    if not groups or not all(groups):
        raise UserError(f"{path}: no sweep there; a line of flags, and indented ones below it, "
                        "are expected")
    return groups


# ------------------------------------------------------------------------------- running them


def try_out(runs: list[Run]) -> None:
    """A dry run for each task, data, model and teacher: finds wrong ones before hours are spent."""
    inputs = ("task", "data", "model", "teacher")
    for run in {tuple(run.settings[name] for name in inputs): run for run in runs}.values():
        done = subprocess.run([sys.executable, str(HERE / "train.py"), *run.words, "--dry-run"],
                              start_new_session=True)  # Ctrl-C is for the sweep to report
        if done.returncode:
            sys.exit(done.returncode)


def end_with_parent() -> None:
    """Called in a run's process on Linux: if the sweep is killed, its runs are too, which frees
    their folders."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def start(run: Run, args) -> Job:
    folder = (args.keep_runs or Path("runs")) / run.name
    log = folder.with_name(f"{run.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [*run.words, "--output", str(folder), "--resume"]
    threads = {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // args.jobs))} if args.jobs > 1 else {}
    with open(log, "w") as file:  # in a session of its own: only end() interrupts it, not Ctrl-C
        process = subprocess.Popen(
            [sys.executable, str(HERE / "train.py"), *words], env=threads | os.environ,
            stdout=file, stderr=file, start_new_session=True,
            preexec_fn=end_with_parent if sys.platform == "linux" else None)
    return Job(run, process, folder, log)


def finish(job: Job, args) -> str:
    """Append the row of a finished run → what to print about it."""
    if job.process.returncode:
        last_line = job.log.read_text(errors="replace").strip().rpartition("\n")[2]
        return (f"FAILED, exit status {job.process.returncode}: {last_line or 'no message'} "
                f"({job.log})")
    try:
        row = rows.row_of(job.folder, job.run.words, job.run.key)
        row["moved_kept"] = rows.as_text(anatomy.moved_kept(job.folder))
        rows.append(args.csv, row)
    except (OSError, UserError, KeyError) as error:
        return f"FAILED, no row could be written ({error}); the run is kept: {job.folder}"
    job.log.unlink(missing_ok=True)
    if not args.keep_runs:
        shutil.rmtree(job.folder, ignore_errors=True)
    shown = (*rows.METRICS, "density", "on_target", "train_seconds")
    return " · ".join(f"{name} {row[name]}" for name in shown if row[name])


def end(jobs: list[Job]) -> None:
    """Interrupt the runs in progress; kill those that go on for longer than PATIENCE."""
    for job in jobs:
        job.process.terminate()
    latest = time.monotonic() + PATIENCE
    while time.monotonic() < latest and any(job.process.poll() is None for job in jobs):
        time.sleep(0.1)
    for job in jobs:
        job.process.kill()  # does nothing to one that has ended
        job.process.wait()


def carry_out(runs: list[Run], args) -> int:
    """Run all that have no row when their turn comes, args.jobs at a time → how many failed."""
    waiting, jobs, failed = list(runs), [], 0
    try:
        while waiting or jobs:
            if waiting and len(jobs) < args.jobs:
                run = waiting.pop(0)
                if run.key not in rows.keys(args.csv):  # another sweep may have made it by now
                    jobs.append(start(run, args))
            time.sleep(0.1)
            for job in [job for job in jobs if job.process.poll() is not None]:
                jobs.remove(job)
                done, result = len(runs) - len(waiting) - len(jobs), finish(job, args)
                failed += result.startswith("FAILED")
                print(f"[{done}/{len(runs)}] {' '.join(job.run.words)} · {result}", flush=True)
    finally:
        end(jobs)
    return failed


def plan(sweeps: list[list[str]]) -> list[Run]:
    """The runs of these sweeps, given by their flags, each once."""
    runs = {}
    for run in (run for words in sweeps for run in combinations(make_parser().parse_args(words))):
        model = runs.setdefault(run.key, run).settings["model"]
        if run.settings["model"] != model:
            raise UserError(f"--model {model} and {run.settings['model']} have the same last "
                            "name, so their rows would look alike; rename one")
    return [*runs.values()]


def main() -> None:
    words = sys.argv[1:]
    args = make_parser().parse_args(words)
    sweeps = read_cells(args.cells, words) if args.cells else [[words]]
    groups = [plan(group) for group in sweeps]
    there = {row["key"] for row in rows.check(args.csv)}
    todo = [[run for run in runs if run.key not in there] for runs in groups]
    total, missing = sum(map(len, groups)), sum(map(len, todo))
    print(f"{total} runs, {total - missing} of them in {args.csv} already", flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    failed = 0
    for runs in todo:
        try_out(runs)
        failed += carry_out(runs, args)
    if failed:
        raise RunError(f"{failed} of {missing} runs failed; the same command tries them again")


if __name__ == "__main__":
    run_main(main)
