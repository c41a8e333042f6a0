"""The folder that a run leaves behind, and how an interrupted run goes on.

    config.json model.safetensors tokenizer.json …   the pruned model, W ⊙ M, as Hugging Face has it
    pruning.safetensors    for each matrix: mask bits, scores S, and W where it is pruned
    run.json metrics.json log.jsonl                  every setting; the result; a line per 10 steps
    method.py              a copy of the user's own method, never run from here
    SHA256SUMS             of the above, written when the run is finished
    checkpoint.safetensors                           all that is needed to go on, until then

Where --overwrite is to replace a finished run, all this is in a hidden folder until it is whole.
"""

import json
import math
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from support import files, origin, own, parallel, report, state
from support.files import RunError, UserError, read_json, reading, write_atomically
from support.progress import Progress
from support.report import say

RUN, RESULT, CHECKPOINT = "run.json", "metrics.json", "checkpoint.safetensors"
FILES = (  # metrics.json is removed first, so that a half-removed run does not look finished
    RESULT, files.SUMS, "config.json", "model.safetensors", "pruning.safetensors", "log.jsonl",
    CHECKPOINT, "predictions.json", "nbest_predictions.json", "evaluation.json",
    "tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "method.py")
NEW, WHOLE = ".new", ".whole"  # folders of what replaces a finished run: under way, and ready
LOG_EVERY = 10  # steps
# they have no effect on the result
INCIDENTAL = ("output", "save_every", "eval_every", "date", "python")
# these change its last digits at most, and nobody can always have the same
SURROUNDINGS = ("machine", "threads", "torch", "numpy", "tokenizers", "git")
# flags that mean none where they are left out, and not the recipe's value
OPTIONAL = ("teacher", "freeze", "held_out", "max_train_rows", "max_eval_rows")
DAMAGED = "damaged; --overwrite starts anew"


# -------------------------------------------------------------------------------- the folder


def is_taken(folder: Path) -> bool:
    """Does the folder hold files? Hidden ones, which a run killed early leaves, do not count."""
    return folder.exists() and any(path.name[0] != "." for path in folder.iterdir())


def run_name(settings) -> str:
    """TASK-METHOD-KEEP-sSEED, with λ in place of KEEP where it is fixed."""
    aim = f"-{settings.keep:g}" if settings.penalty is None else f"-penalty{settings.penalty:g}"
    aim = "" if settings.method == "dense" else aim
    method = settings.method.rpartition(":")[2]  # of FILE.py:Class the class
    return f"{settings.task}-{method}{aim}-s{settings.seed}"


def default_folder(settings, free: bool) -> Path:
    """runs/NAME, or the first of runs/NAME-2, -3, … that is free; with free=False the last that
    exists."""
    name, number = f"runs/{run_name(settings)}", 1
    last = folder = Path(name)
    while is_taken(folder):
        number += 1
        last, folder = folder, Path(f"{name}-{number}")
    return folder if free else last


def choose_folder(settings, overwrite: bool, resume: bool, dry_run: bool) -> Path:
    """The output folder, the same for every process, locked until the program ends.

    UserError for one that holds files already, unless `overwrite` or `resume` says what to do with
    them, and for one that another program is at work in, or that the run reads from.
    """
    if not parallel.is_main():
        return parallel.from_all(None)[0]
    if overwrite and resume:
        raise UserError("--overwrite starts anew, --resume goes on; give one of them")
    folder = Path(settings.output or default_folder(settings, free=not (overwrite or resume)))
    files.check_writable(folder)
    check_apart(folder, settings)
    if not dry_run:
        files.at_end.callback(files.remove_if_empty, folder)
        files.at_end.enter_context(
            files.locked(folder / ".lock", f"{folder}: another run is at work there"))
        finish_replacing(folder)
    if is_taken(folder):
        if not (overwrite or resume):
            raise UserError(f"{folder}: holds files already; choose another --output, "
                            "or --resume, or --overwrite")
        if not (folder / RUN).exists():
            raise UserError(f"{folder}: does not hold a run, so it is left alone; choose another "
                            "--output")
    return parallel.from_all(folder)[0]


def check_apart(folder: Path, settings) -> None:
    """UserError if the run would write where it reads."""
    ours = folder.resolve()
    for name in ("model", "teacher", "data"):
        value = getattr(settings, name)
        if value and Path(value).is_dir():
            theirs = Path(value).resolve()
            if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
                raise UserError(f"--output {folder}: is in, or is, or holds --{name} {value}; "
                                "choose another --output")


def clear(folder: Path) -> None:
    """Remove what an earlier run left, and what evaluate.py and export.py made of it; run.json
    stays, and tells that the folder is a run's."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("predictions-*"):
        path.unlink()
    shutil.rmtree(folder / "export", ignore_errors=True)


def finish_replacing(folder: Path) -> None:
    """The last steps of a finished run, also of one that was killed amid them: what it replaces is
    removed, and so is its checkpoint."""
    new, whole = folder / NEW, folder / WHOLE
    if (new / RESULT).exists():
        clear(folder)
        new.rename(whole)
    if whole.exists():
        for path in sorted(whole.iterdir(), key=lambda path: path.name == RESULT):
            path.replace(folder / path.name)
        whole.rmdir()
    if (folder / RESULT).exists():
        (folder / CHECKPOINT).unlink(missing_ok=True)


def check_same(path: Path, before: dict, now: dict) -> None:
    """UserError that names what decides the result and differs between two runs, if anything does;
    for their surroundings, a warning."""
    changes = {name: f"{name} was {before.get(name)}, is now {now.get(name)}"
               for name in sorted(before.keys() | now.keys())
               if name not in INCIDENTAL and before.get(name) != now.get(name)}
    minor = [changes.pop(name) for name in SURROUNDINGS if name in changes]
    if changes:
        raise UserError(f"{path}: belongs to a run with other settings "
                        f"({'; '.join([*changes.values()][:4])}); give the same ones, or "
                        "--overwrite")
    if minor:
        say(files.printable(f"WARNING: {path}: {'; '.join(minor)}; the last digits may differ"))


def report_if_finished(folder: Path, settings: dict) -> bool:
    """Print the result of a run that is over; False if there is still something to do."""
    path = folder / RESULT
    if not path.exists() or (folder / NEW / RUN).exists():
        return False
    with reading(path, DAMAGED):
        result = report.result(read_json(path), folder)
    files.check_sums(folder)
    recorded = read_json(folder / RUN)
    settings = settings | {"method_digest": own.digest(settings["method"])}
    left_open = {"steps": None, "precision": "auto"}  # the run itself chose their values
    asked = {name: value for name, value in settings.items()
             if name in recorded and (name, value) not in left_open.items()
             and name not in ("device", "compile")}
    check_same(folder / RUN, {name: recorded[name] for name in asked}, asked)
    say(f"{folder}: finished already\n{result}")
    return True


def fingerprints(prepared, teacher: torch.nn.Module | None) -> dict[str, str]:
    """Of all from outside that decides a run's result (`prepared`: evaluate.Prepared)."""
    found = {"data_fingerprint": prepared.rows.fingerprint,
             "weights_fingerprint": state.fingerprint(prepared.model.state_dict()),
             "tokenizer_fingerprint": state.fingerprint({}, prepared.tokenizer.to_str()),
             "teacher_fingerprint": teacher and state.fingerprint(teacher.state_dict())}
    for split, (rows, _) in prepared.evaluated.items():
        found[f"dev{split}_fingerprint"] = rows.fingerprint
    return found


# --------------------------------------------------------------------------- a run under way


class Run:
    """Progress bar, log and checkpoints of a run, which only the main process shows and writes.

    A checkpoint holds weights, scores, masks, optimiser and the search for λ; rates, the order of
    the data and all noise follow from seed and step.

    Args:
        folder: the output folder.
        settings: those of the run, and all else that decides its result, by name; a checkpoint
            made with others is refused.
        pruner: tells the density for bar and log.
    """

    def __init__(self, folder: Path, settings: dict, pruner, resume: bool, overwrite: bool):
        new = folder / NEW
        beside = (folder / RESULT).exists() or new.exists() if overwrite else (new / RUN).exists()
        self.output, self.folder = folder, new if beside else folder
        self.pruner, self.resume = pruner, resume
        self.save_every, self.T = settings["save_every"], settings["steps"]
        self.settings = settings | {"device": settings["device"].split(":")[0],
                                    "processes": parallel.world()}
        self.t, self.smooth_loss, self.start = 0, None, None
        self.finished = False
        self.unread = []  # loss and norm of the gradient of the last steps, still on the device
        self.bar, self.lines, self.found, self.stopping = None, [], None, 0
        self.shown, self.measured = "", {}  # in the bar, and the last metrics there
        self.warn_if_nothing_is_learned = False  # by the step at which pruning begins
        self.checkpoint = self.folder / CHECKPOINT

    def __enter__(self):
        self.began = time.perf_counter()
        self.record = self.settings | origin.origin(self.settings["device"])
        parallel.check_alike(self.settings)
        if self.resume:
            self.read_checkpoint()
        elif parallel.is_main():
            self.write_record()
            clear(self.folder)
            if self.folder != self.output:
                say(f"the earlier result in {self.output} stays until this run is finished")
        self.handlers = {number: signal.signal(number, self.interrupt)
                         for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def write_record(self) -> None:
        files.write_json(self.folder / RUN, self.record | {"output": str(self.output)})

    def __exit__(self, kind, *_):
        # a reader of the output that goes away ends no step halfway, nor does a signal after the
        # last one: the state is sound
        sound = kind is BrokenPipeError or (kind is KeyboardInterrupt and self.t == self.T)
        if sound and self.t and not self.finished:
            self.save()
        self.end()

    def end(self) -> None:
        """No more steps: the clock stops, and Python handles signals again."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.seconds = self.elapsed()
        if self.bar is not None:
            self.bar.close()
            self.log.close()

    def elapsed(self) -> float:
        """Seconds of training, including those before an interruption."""
        return time.perf_counter() - self.began

    def interrupt(self, number: int, _) -> None:
        """The first Ctrl-C or SIGTERM ends the run after the current step, a second at once."""
        signal.signal(number, self.handlers[number])
        self.stopping = number

    def read_checkpoint(self) -> None:
        """Read what an earlier run left, before anything changes; UserError if it is damaged, or if
        that run had other settings."""
        path = self.folder / RUN
        if self.checkpoint.exists():
            path, self.found = self.checkpoint, state.read_checkpoint(self.checkpoint, DAMAGED)
            with reading(path, DAMAGED):
                check_same(path, self.found["record"], self.record)
        elif path.exists():
            check_same(path, read_json(path), self.record)

    def restore(self, parts: list, start: str) -> int:
        """Restore the checkpoint, if there is one → the step to begin with.

        parts: model, pruner, optimiser, scheduler; start: fingerprint of the matrices.
        """
        self.parts, self.start = parts, start
        if self.found:
            self.load()
            say(f"going on from step {self.t} of {self.T}")
        elif self.resume:
            say(f"{self.output}: no checkpoint yet, so the run starts from step 0")
        if parallel.is_main():
            files.remove_parts(self.folder)
            self.write_record()
            log = self.folder / "log.jsonl"
            write_atomically(log, "".join(self.lines))
            self.log = open(log, "ab", buffering=0)  # a line is in the file once it is written
            self.bar = Progress("step", self.T, "step", self.t)
        return self.t

    def state(self) -> dict:
        model, pruner, optimizer, _ = self.parts
        return {"t": self.t, "smooth_loss": self.smooth_loss or 0.0, "seconds": self.elapsed(),
                "model": model.state_dict(), "pruner": pruner.state_dict(),
                "moments": state.moments(optimizer), "log": "".join(self.lines),
                "record": self.record}

    def load(self) -> None:
        model, pruner, optimizer, scheduler = self.parts
        saved, self.found = self.found, None
        with reading(self.checkpoint, DAMAGED):
            if state.outline(saved) != state.outline(self.state()):
                raise ValueError("its names, shapes or types are not those of this run")
            self.t, self.smooth_loss = saved["t"], saved["smooth_loss"]
            if self.t not in range(1, self.T + 1):
                raise ValueError(f"step {self.t} of {self.T}")
            self.began -= saved["seconds"]
            self.lines = saved["log"].splitlines(keepends=True)
            [files.parse_json(line)["step"] for line in self.lines]
            model.load_state_dict(saved["model"])
            pruner.load_state_dict(saved["pruner"])
            optimizer.load_state_dict(optimizer.state_dict() | {
                "state": {int(i): values for i, values in saved["moments"].items()}})
            scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": self.t - 1})
            scheduler.step()  # to the rates of step t

    def save(self) -> None:
        """Write a checkpoint of the state after step t, complete or not at all."""
        if parallel.is_main():
            write_atomically(self.checkpoint, state.to_checkpoint(self.state()))

    def finish(self, summary: dict) -> None:
        """Write metrics.json, with which the run counts as finished and replaces an earlier one."""
        files.write_json(self.folder / RESULT, summary)
        self.checkpoint.unlink(missing_ok=True)
        files.write_sums(self.folder, {RUN, *FILES} - {files.SUMS, "evaluation.json"})
        self.finished = True
        finish_replacing(self.output)

    def step(self, t: int, loss: Tensor, norm: Tensor, rates: list[float], metrics: dict) -> None:
        """To be called after every optimiser step: bar, log, checkpoint, signals. `metrics`: what
        --eval-every measured after it, if anything."""
        self.t = t + 1
        self.unread.append(torch.stack([loss, norm]))
        stopping = parallel.largest(self.stopping, t)
        log_due = t % LOG_EVERY == 0 or self.t == self.T or metrics
        save_due = self.t % self.save_every == 0 and self.t < self.T
        if log_due or save_due or stopping:
            self.read()
        if self.bar is not None:
            if log_due:
                self.show(t, rates, metrics)
            self.bar.advance(1, self.shown)
        if save_due or stopping:
            self.save()
        if stopping:
            say(f"\nstopped after step {self.t}; go on with the same command and --resume "
                f"--output {self.output}")
            sys.exit(128 + stopping)

    def read(self) -> None:
        """Look at the losses since the last time, and at the scores; RunError where one is not a
        number.

        Only now and then, since a GPU has to finish its work first; but always before a checkpoint.
        """
        values, self.unread = torch.stack(self.unread).tolist(), []
        for t, (loss, norm) in enumerate(values, self.t - len(values)):
            if not math.isfinite(loss + norm):
                raise RunError(f"the loss is {loss} at step {t}, the norm of its gradient {norm}; "
                               "lower --lr, --score-lr or --penalty")
            self.loss = loss
            self.smooth_loss = (loss if self.smooth_loss is None
                                else 0.98 * self.smooth_loss + 0.02 * loss)
        scores = [m.S.detach() for m in self.pruner.matrices if m.S is not None]
        if not math.isfinite(sum(S.sum() for S in scores)):
            raise RunError(f"scores have become infinite or NaN by step {t}; lower --score-lr")

    def show(self, t: int, rates: list[float], metrics: dict) -> None:
        density = self.pruner.density()
        line = {"step": t, "loss": self.loss, "density": density, "penalty": self.pruner.penalty,
                "lr": rates[0], "score_lr": rates[-1] if len(rates) > 1 else None, **metrics}
        self.lines.append(json.dumps(line) + "\n")
        with files.naming(self.folder / "log.jsonl"):
            self.log.write(self.lines[-1].encode())
        if self.warn_if_nothing_is_learned and t - LOG_EVERY < self.pruner.schedule.t_i <= t:
            self.warn_if_nothing_is_learned = False  # once is enough
            self.check_learning(self.pruner.schedule.t_i)
        self.measured = metrics or self.measured
        self.shown = f"loss {self.smooth_loss:.3f} · density {density:.3f} · lr {rates[0]:.1e}"
        self.shown += "".join(f" · {name} {value:.1f}" for name, value in self.measured.items())

    def check_learning(self, t_i: int) -> None:
        """Warn if the loss has not fallen since the start, by the lines of the log so far."""
        losses = {line["step"]: line["loss"] for line in map(json.loads, self.lines)}
        first, last = ([losses[t] for t in losses if begin <= t < begin + 100]
                       for begin in (0, t_i - 100))
        if last and np.mean(last) > 0.9 * np.mean(first):
            say(f"WARNING: pruning begins at step {t_i}, but the loss has hardly fallen yet "
                f"({np.mean(first):.2f} in the first 100 steps, {np.mean(last):.2f} in the last): "
                "the scores know little, and the task may be lost; give a higher --hold")
