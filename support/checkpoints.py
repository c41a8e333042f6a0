"""The folder that a run leaves behind, and how an interrupted run goes on.

    config.json model.safetensors tokenizer.json …   the pruned model, W ⊙ M, as Hugging Face has it
    pruning.safetensors    for each matrix: mask bits, scores S, and W where it is pruned
    run.json metrics.json log.jsonl                  every setting; the result; a line per 10 steps
    method.py              a copy of the user's own method, never run from here
    checkpoint.pt          all that is needed to go on, while a run is unfinished
"""

import hashlib
import io
import json
import math
import platform
import shutil
import signal
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import safetensors.torch
import tokenizers
import torch
from torch import Tensor
from tqdm import tqdm

from support import files, origin, parallel, report
from support.files import RunError, UserError, read_json, reading, write_atomically
from support.report import say

FILES = (  # metrics.json is removed first, so that a half-removed run does not look finished
    "metrics.json", "config.json", "model.safetensors", "pruning.safetensors", "run.json",
    "log.jsonl", "checkpoint.pt", "predictions.json", "nbest_predictions.json", "evaluation.json",
    "tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "method.py")
LOG_EVERY = 10  # steps
INCIDENTAL = ("output", "save_every")  # settings that have no effect on the result
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


def choose_folder(settings, overwrite: bool, resume: bool) -> Path:
    """The output folder, the same for every process. UserError for one that holds files already,
    unless `overwrite` or `resume` says what to do with them."""
    if not parallel.is_main():
        return parallel.from_main(None)
    if overwrite and resume:
        raise UserError("--overwrite starts anew, --resume goes on; give one of them")
    folder = Path(settings.output or default_folder(settings, free=not (overwrite or resume)))
    files.check_writable(folder)
    if is_taken(folder):
        if not (overwrite or resume):
            raise UserError(f"{folder}: holds files already; choose another --output, "
                            "or --resume, or --overwrite")
        if not (folder / "run.json").exists():
            raise UserError(f"{folder}: does not hold a run, so it is left alone; choose another "
                            "--output")
    return parallel.from_main(folder)


def clear(folder: Path) -> None:
    """Remove what an earlier run left, and what evaluate.py and export.py made of it."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("predictions-*"):
        path.unlink()
    shutil.rmtree(folder / "export", ignore_errors=True)


def check_same(path: Path, before: dict, now: dict) -> None:
    """UserError that names the settings in which two runs differ, if they do."""
    now = json.loads(json.dumps(now))  # tuples become lists, as in `before`
    changes = [f"{name} was {before.get(name)}, is now {now.get(name)}"
               for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if changes:
        raise UserError(f"{path}: belongs to a run with other settings ({'; '.join(changes[:4])}); "
                        "give the same ones, or --overwrite")


def report_if_finished(folder: Path, settings: dict) -> bool:
    """Print the result of a run that is over; False if there is still something to do."""
    path = folder / "metrics.json"
    if not path.exists():
        return False
    with reading(path, DAMAGED):
        result = report.result(read_json(path), folder)
    recorded = read_json(folder / "run.json")
    left_open = {"steps": None, "precision": "auto"}  # the run itself chose their values
    asked = {name: value for name, value in settings.items()
             if name in recorded and (name, value) not in left_open.items()
             and name not in (*INCIDENTAL, "device", "compile")}
    check_same(folder / "run.json", {name: recorded[name] for name in asked}, asked)
    say(f"{folder}: finished already\n{result}")
    return True


def versions() -> dict:
    """Besides what origin.origin says."""
    return {"python": platform.python_version(), "numpy": np.__version__,
            "tokenizers": tokenizers.__version__, "threads": torch.get_num_threads()}


def fingerprint(matrices: dict[str, torch.Tensor]) -> str:
    """SHA-256 of named matrices, in any order: are these the weights that a run started from?"""
    digest = hashlib.sha256()
    for name in sorted(matrices):
        digest.update(name.encode())
        digest.update(matrices[name].detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def pack_bits(mask: torch.Tensor) -> torch.Tensor:
    """A 0/1 mask as bits: (n, m) → (⌈n·m / 8⌉) uint8."""
    return torch.from_numpy(np.packbits((mask != 0).cpu().numpy().ravel()))


def save_pruning(matrices: dict, path: Path) -> None:
    """What the saved model does not show of its matrices (name → masking.Matrix): masks, scores,
    and W where it is pruned."""
    tensors = {}
    for name, m in matrices.items():
        tensors[f"{name}.mask"] = pack_bits(m.M)
        tensors[f"{name}.ever_pruned"] = pack_bits(m.ever_pruned)
        tensors[f"{name}.pruned"] = m.W.detach()[m.M == 0].cpu()
        if m.S is not None:
            tensors[f"{name}.scores"] = m.S.detach().cpu().contiguous()
    write_atomically(path, safetensors.torch.save(tensors))


# --------------------------------------------------------------------------- a run under way


class Run:
    """Progress bar, log and checkpoints of a run, which only the main process shows and writes.

    A checkpoint holds weights, scores, masks, optimiser, schedule and the search for λ; the order
    of the data and all noise follow from seed and step.

    Args:
        settings: those of the run, by name; a checkpoint made with others is refused.
        pruner: tells the density for bar and log.
    """

    def __init__(self, folder: Path, settings: dict, pruner, resume: bool, overwrite: bool):
        self.folder, self.pruner, self.resume, self.overwrite = folder, pruner, resume, overwrite
        self.save_every, self.T = settings["save_every"], settings["steps"]
        self.settings = {k: v for k, v in settings.items() if k not in INCIDENTAL}
        self.settings["device"] = settings["device"].split(":")[0]
        self.t, self.smooth_loss, self.start = 0, None, None
        self.unread = []  # loss and norm of the gradient of the last steps, still on the device
        self.bar, self.lines, self.stopping = None, [], False
        self.tenth, self.measured = 0, {}  # last tenth of the run that began, last metrics
        self.warn_if_nothing_is_learned = False  # by the step at which pruning begins
        self.checkpoint = folder / "checkpoint.pt"
        self.state = self.read_checkpoint() if resume and self.checkpoint.exists() else None

    def __enter__(self):
        self.began = time.perf_counter()
        if parallel.is_main():
            self.lock = files.hold(self.folder / ".lock",
                                   f"{self.folder}: another run is at work there")
            if is_taken(self.folder) and not (self.resume or self.overwrite):
                files.let_go(self.lock)
                raise UserError(f"{self.folder}: another run was there first; choose another "
                                "--output")
            files.remove_parts(self.folder)
            if not self.resume:
                clear(self.folder)
            files.write_json(self.folder / "run.json", {
                **self.settings, **versions(), **origin.origin(self.settings["device"]),
                "output": str(self.folder), "processes": parallel.world()})
        self.handler = signal.signal(signal.SIGINT, self.interrupt)
        return self

    def __exit__(self, *error):
        self.end()
        if parallel.is_main():
            files.let_go(self.lock)

    def end(self) -> None:
        """No more steps: the clock stops, and Python handles Ctrl-C again."""
        signal.signal(signal.SIGINT, self.handler)
        self.seconds = self.elapsed()
        if self.bar is not None:
            self.bar.close()
            self.log.close()

    def elapsed(self) -> float:
        """Seconds of training, including those before an interruption."""
        return time.perf_counter() - self.began

    def interrupt(self, *_) -> None:
        """The first Ctrl-C ends the run after the current step; a second one ends it at once."""
        signal.signal(signal.SIGINT, self.handler)
        self.stopping = True

    def restore(self, parts: list, start: str) -> int:
        """Restore the checkpoint, if there is one → the step to begin with.

        parts: objects with state_dict() and load_state_dict(); start: fingerprint of the matrices.
        """
        self.parts, self.start = parts, start
        if self.state:
            self.load_state()
            say(f"going on from step {self.t} of {self.T}")
        elif self.resume:
            say(f"{self.folder}: no checkpoint yet, so the run starts from step 0")
        if parallel.is_main():
            log = self.folder / "log.jsonl"
            write_atomically(log, "".join(self.lines))
            self.log = open(log, "ab", buffering=0)  # a line is in the file once it is written
            self.bar = tqdm(total=self.T, initial=self.t, unit="step", mininterval=0.5,
                            disable=None)
        return self.t

    def read_checkpoint(self) -> dict:
        """Before anything in the folder changes; UserError if it was made with other settings.

        Reads the log too, up to where the checkpoint was made.
        """
        with reading(self.checkpoint, DAMAGED):
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            check_same(self.checkpoint, json.loads(state["settings"]), self.settings)
            t = int(state["t"])
        log = self.folder / "log.jsonl"
        with reading(log, DAMAGED):
            lines = log.read_text().splitlines(keepends=True) if log.exists() else []
            self.lines = [line for line in lines
                          if line.endswith("}\n") and json.loads(line)["step"] < t]
        return state

    def load_state(self) -> None:
        with reading(self.checkpoint, DAMAGED):
            state, self.state = self.state, None
            for part, saved in zip(self.parts, state["parts"], strict=True):
                part.load_state_dict(saved)
            self.t, self.began = int(state["t"]), self.began - float(state["seconds"])
            self.smooth_loss, self.start = float(state["smooth_loss"]), str(state["start"])
            if not 0 < self.t <= self.T:
                raise ValueError(f"step {self.t} of {self.T}")

    def save(self) -> None:
        """Write a checkpoint of the state after step t, complete or not at all."""
        if not parallel.is_main():
            return
        buffer = io.BytesIO()
        torch.save({
            "settings": json.dumps(self.settings), "t": self.t, "smooth_loss": self.smooth_loss,
            "start": self.start, "seconds": self.elapsed(),
            "parts": [part.state_dict() for part in self.parts],
        }, buffer)
        write_atomically(self.checkpoint, buffer.getbuffer())

    def step(self, t: int, loss: Tensor, norm: Tensor, rates: list[float], metrics: dict) -> None:
        """To be called after every optimiser step: bar, log, checkpoint, Ctrl-C. `metrics`: what
        --eval-every measured after it, if anything."""
        self.t = t + 1
        self.unread.append(torch.stack([loss, norm]))
        log_due = t % LOG_EVERY == 0 or self.t == self.T or metrics
        save_due = self.t % self.save_every == 0 and self.t < self.T
        if log_due or save_due or self.stopping:
            self.read()
        if self.bar is not None:
            self.bar.update()
            if log_due:
                self.show(t, rates, metrics)
        if save_due or self.stopping:
            self.save()
        if self.stopping:
            say(f"\nstopped after step {self.t}; go on with the same command and --resume "
                f"--output {self.folder}")
            raise KeyboardInterrupt

    def read(self) -> None:
        """Look at the losses since the last time; RunError where one is not a number.

        Only now and then, since a GPU has to finish its work first; but always before a checkpoint.
        """
        values, self.unread = torch.stack(self.unread).tolist(), []
        for t, (loss, norm) in enumerate(values, self.t - len(values)):
            if not math.isfinite(loss + norm):
                raise RunError(f"the loss is {loss} at step {t}, the norm of its gradient {norm}; "
                               "lower --lr or --score-lr")
            self.loss = loss
            self.smooth_loss = (loss if self.smooth_loss is None
                                else 0.98 * self.smooth_loss + 0.02 * loss)

    def show(self, t: int, rates: list[float], metrics: dict) -> None:
        density = self.pruner.density()
        line = {"step": t, "loss": self.loss, "density": density, "penalty": self.pruner.penalty,
                "lr": rates[0], "score_lr": rates[-1] if len(rates) > 1 else None, **metrics}
        self.lines.append(json.dumps(line) + "\n")
        with files.naming(self.folder / "log.jsonl"):
            self.log.write(self.lines[-1].encode())
        if self.warn_if_nothing_is_learned and t - LOG_EVERY < self.pruner.schedule.t_i <= t:
            self.check_learning(self.pruner.schedule.t_i)
        shown = f"loss {self.smooth_loss:.3f} · density {density:.3f} · lr {rates[0]:.1e}"
        self.measured = metrics or self.measured
        shown += "".join(f" · {name} {value:.1f}" for name, value in self.measured.items())
        self.bar.set_postfix_str(shown, refresh=False)
        tenth = self.t * 10 // self.T
        if self.bar.disable and tenth > self.tenth:
            pace = self.t / self.elapsed()
            left = timedelta(seconds=round((self.T - self.t) / pace))
            say(f"step {self.t}/{self.T} · {shown} · {pace:.2g} steps a second · {left} left")
        self.tenth = tenth

    def check_learning(self, t_i: int) -> None:
        """Warn if the loss has not fallen since the start, by the lines of the log so far."""
        losses = {line["step"]: line["loss"] for line in map(json.loads, self.lines)}
        first, last = ([losses[t] for t in losses if begin <= t < begin + 100]
                       for begin in (0, t_i - 100))
        if last and np.mean(last) > 0.9 * np.mean(first):
            say(f"WARNING: pruning begins at step {t_i}, but the loss has hardly fallen yet "
                f"({np.mean(first):.2f} in the first 100 steps, {np.mean(last):.2f} in the last): "
                "the scores know little, and the task may be lost; give a higher --hold")
