"""Many runs of train.py, one row of a CSV each: every combination of the comma lists given.

    python -m tools.sweep --task mnli --methods magnitude,movement --keep 0.1,0.03 --seeds 0,1,2
    python -m tools.sweep --tasks sst2,qqp --methods dense,l0 --jobs 2 --csv results/more.csv
    python -m tools.sweep --methods movement --lr 1e-3,3e-4 --score-lr 1e-2,3e-2 --held-out 0.1

Started again, with other lists too, it runs only what the CSV has no row of; a row's `key` is a
digest of every setting that decides the run (delete rows to run them again with newer code). Of
a folder it knows the last name alone, so that rows hold on any machine: give models, data and
teachers different ones.
"""

import ctypes
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import masking
import settings
from support import cli
from support.files import RunError, UserError, check_writable, run_main
from support.report import duration
from tools import rows

HERE = Path(__file__).parent.parent
PATHS = ("--data", "--model", "--teacher")
LINUX = sys.platform == "linux"

# train.py's arguments, a short name, the digest, and further flags that have several values
Run = namedtuple("Run", "words name key also")
Job = namedtuple("Job", "run process folder log git")  # a run under way


# ------------------------------------------------------------------------ what is to be run


def comma_list(text: str) -> list[str]:
    return text.split(",")


def make_parser() -> cli.Parser:
    p = cli.Parser(description=__doc__ + "\nEvery other flag goes to train.py; its values may be "
                   "comma lists too, but for paths.")
    a = p.add_argument
    a("--task", "--tasks", type=comma_list, default=["mnli"], metavar="LIST", help="tasks")
    a("--methods", "--method", type=comma_list, metavar="LIST", help="methods",
      default=["magnitude", "l0", "movement", "soft_movement"])
    a("--keep", type=comma_list, default=["0.1"], metavar="LIST",
      help="shares of the weights that remain; dense runs once whatever they are")
    a("--seeds", "--seed", type=comma_list, default=["0"], metavar="LIST", help="whole numbers")
    a("--models", "--model", type=comma_list, default=["small"], metavar="LIST",
      help="as train.py has them")
    a("--jobs", type=cli.count, default=1, metavar="N", help="runs at once, the cores shared out")
    a("--csv", type=Path, default=Path("results/sweep.csv"), metavar="FILE", help="the rows")
    a("--keep-runs", type=Path, metavar="DIR",
      help="leave the runs' folders there, and go on with unfinished ones")
    return p


def choices(words: list[str]) -> list[list[list[str]]]:
    """Flags meant for train.py → for each flag the alternatives that its comma list stands for."""
    found = []
    for word in itertools.chain.from_iterable(
            w.split("=", 1) if w.startswith("--") else [w] for w in words):
        if word.startswith("--"):
            found.append([[word]])
        elif found and len(found[-1][0]) == 1:
            flag = found[-1][0][0]
            found[-1] = [[flag, v] for v in ([word] if flag in PATHS else word.split(","))]
        else:
            raise UserError(f"{word}: which flag does this belong to?")
    known = settings.make_parser().flags()
    for flag in (alternatives[0][0] for alternatives in found):
        if flag not in known:
            raise UserError(f"unknown argument {flag}"
                            + cli.nearest(flag, known + make_parser().flags()))
        if flag in ("--output", "--overwrite", "--resume", "--dry-run"):
            raise UserError(f"{flag}: is the sweep's own affair (--keep-runs DIR keeps folders)")
    return found


def deciding(s: dict) -> dict:
    """Of a run's settings those that decide its result; what is switched off is left out."""
    method = masking.METHODS[s["method"]]
    idle = {
        "output": True, "save_every": True, "device": True, "compile": True,
        "epochs": s["steps"], "keep": s["penalty"] is not None,
        "alpha": not s["teacher"], "temperature": not s["teacher"],
        "score_lr": not method.learned, "scope": not method.ranked,
        "hold": s["method"] == "dense", "cooldown": s["method"] == "dense"}
    return {k: rows.place(v) if "--" + k in PATHS else v for k, v in s.items()
            if not idle.get(k) and v is not None and v is not False}


def make_run(words: list[str], also: str = "") -> Run:
    """Checks the words as train.py would; wrong ones end the program with its message."""
    s = settings.settings(settings.make_parser().parse_args(words))
    digest = hashlib.sha256(json.dumps(deciding(s), sort_keys=True).encode()).hexdigest()[:12]
    aim = f"λ{s['penalty']:g}" if s["penalty"] is not None else f"{s['keep']:g}"
    model = "" if s["model"] == "small" else "-" + re.sub("[/:]", "-", rows.place(s["model"]))
    name = f"{s['task']}{model}-{s['method']}-{aim}-s{s['seed']}"
    return Run(words, name, digest, also)


def paths(run: Run) -> list[str]:
    """The folders among train.py's arguments."""
    return [word for flag, word in itertools.pairwise(run.words) if flag in PATHS]


def combinations(args, rest: list[str]) -> list[Run]:
    """Every run, seeds outermost, so that an unfinished sweep has whole seeds; each only once."""
    runs, further = {}, choices(rest)
    for seed, task, model, method, keep, *more in itertools.product(
            args.seeds, args.task, args.models, args.methods, args.keep, *further):
        words = ["--task", task, "--method", method, "--model", model, "--seed", seed]
        words += ["--keep", keep] if method != "dense" else []
        has_penalty = hasattr(masking.METHODS.get(method), "penalty")
        for flag in more:
            words += flag if has_penalty or flag[0] != "--penalty" else []
        also = "".join(f" {' '.join(flag)}" for flag, all_ in zip(more, further) if len(all_) > 1)
        run = make_run(words, also)
        first = runs.setdefault(run.key, run)
        if (one := paths(first)) != (other := paths(run)):
            raise UserError(f"{' '.join(one)} and {' '.join(other)} end alike, and rows tell "
                            "folders apart by their last names; rename one")
    return list(runs.values())


# -------------------------------------------------------------------------------- the runs


def check(runs: list[Run]) -> None:
    """A dry run of each pair of task and model: finds wrong data and weights before hours are
    spent, and pretrains small BERTs before several processes want them."""
    pairs = {tuple(run.words[i] for i in (1, 5)): run for run in reversed(runs)}
    for run in reversed(pairs.values()):
        done = subprocess.run([sys.executable, str(HERE / "train.py"), *run.words, "--dry-run"])
        if done.returncode:
            sys.exit(done.returncode)


def end_with_parent() -> None:
    """In a run's process, on Linux: if the sweep is killed, its runs are too, and free their
    folders."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def start(run: Run, args, scratch: Path) -> Job:
    folder = (args.keep_runs or scratch) / f"{run.name}-{run.key[:6]}"
    words = [*run.words, "--output", str(folder)] + ["--resume"] * bool(args.keep_runs)
    log, env = scratch / f"{run.key}.log", dict(os.environ)
    if args.jobs > 1:
        env.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // args.jobs)))
    with open(log, "w") as file:  # a session of its own: Ctrl-C reaches it through end() alone
        process = subprocess.Popen([sys.executable, str(HERE / "train.py"), *words], env=env,
                                   stdout=file, stderr=file, start_new_session=True,
                                   preexec_fn=end_with_parent if LINUX else None)
    return Job(run, process, folder, log, rows.git_version())


def finish(job: Job, args) -> tuple[bool, str]:
    """Appends the row → (did the run succeed, what to say)."""
    if job.process.returncode:
        lines = job.log.read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no message")
        return False, f"FAILED, exit status {job.process.returncode}: {last.strip()}"
    row = rows.row_of(job.folder, job.run.words, job.run.key, job.git)
    rows.append(args.csv, row)
    if not args.keep_runs:
        shutil.rmtree(job.folder, ignore_errors=True)
    values = " · ".join(f"{name} {float(row[name]):.2f}" for name in rows.METRICS if row[name])
    missed = "" if row["on_target"] == "True" else " (missed)"
    return True, (f"{values} · density {float(row['density']):.4f}{missed}"
                  f" · {float(row['train_seconds']):.0f} s")


def end(jobs: list[Job]) -> None:
    """Interrupt what still runs, and wait for it."""
    for job in jobs:
        if os.name == "nt":  # which has no SIGINT for another process
            job.process.terminate()
        else:
            job.process.send_signal(signal.SIGINT)
    for job in jobs:
        try:
            job.process.wait(20)
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()


def carry_out(runs: list[Run], args, scratch: Path) -> int:
    """Run all, args.jobs at a time → how many failed."""
    began, waiting, jobs, done, failed = time.time(), list(runs), [], 0, 0
    try:
        while waiting or jobs:
            while waiting and len(jobs) < args.jobs:
                run = waiting.pop(0)
                if run.key in {row.get("key") for row in rows.read(args.csv)}:
                    done += 1  # by another sweep, in the meantime
                else:
                    jobs.append(start(run, args, scratch))
            time.sleep(0.1)
            for job in [job for job in jobs if job.process.poll() is not None]:
                jobs.remove(job)
                good, text = finish(job, args)
                done, failed = done + 1, failed + (not good)
                left = duration((time.time() - began) / done * (len(runs) - done))
                print(f"[{done}/{len(runs)}] {job.run.name}{job.run.also} · {text} · about {left} "
                      "left", flush=True)
    finally:
        end(jobs)
    return failed


def main() -> None:
    args, rest = make_parser().parse_known_args()
    runs = combinations(args, rest)
    check_writable(args.csv, file=True)
    there = {row.get("key") for row in rows.read(args.csv)}
    todo = [run for run in runs if run.key not in there]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them in {args.csv} already", flush=True)
    for name in (signal.SIGTERM, signal.SIGINT):  # ends the children, started in the background too
        signal.signal(name, signal.default_int_handler)
    check(todo)
    with tempfile.TemporaryDirectory(prefix="movement-sweep-") as scratch:
        failed = carry_out(todo, args, Path(scratch))
    if failed:
        raise RunError(f"{failed} of {len(todo)} runs failed; the same command tries them again")


if __name__ == "__main__":
    run_main(main)
