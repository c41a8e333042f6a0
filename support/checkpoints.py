"""The folder that a run leaves behind: where it is, what is in it, and how to go on after an
interruption.

    config.json model.safetensors tokenizer.json …   the pruned model, W ⊙ M, as Hugging Face has it
    pruning.safetensors    per matrix: mask bits, scores S, and W where it is pruned
    run.json metrics.json log.jsonl                  every setting; the result; a line each 10 steps
    checkpoint.pt          only while a run is unfinished: all that is needed to go on
"""

import hashlib
import io
import json
import platform
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors.torch
import tokenizers
import torch
from tqdm import tqdm

import bert
from support import parallel, report
from support.files import (
    UserError,
    check_writable,
    hold,
    naming,
    read_json,
    remove_parts,
    write_atomically,
    write_json,
)
from support.report import say

FILES = ("config.json", "model.safetensors", "pruning.safetensors", "run.json", "metrics.json",
         "log.jsonl", "checkpoint.pt", "predictions.json", "nbest_predictions.json",
         "evaluation.json", *bert.TOKENIZER_FILES)
LOG_EVERY = 10  # steps
UNFIXED = ("output", "save_every")  # settings that do not decide what a run does


# -------------------------------------------------------------------------------- the folder


def taken(folder: Path) -> bool:
    """Is anything in it, other than what a run leaves that was killed as it began?"""
    return folder.exists() and any(p.name[0] != "." for p in folder.iterdir())


def default_folder(s: dict, free: bool) -> Path:
    """runs/TASK-METHOD-KEEP-sSEED, or the first free -2, -3 …; with free=False the last taken. A λ
    given stands in place of a density."""
    aim = f"-{s['keep']:g}" if s["penalty"] is None else f"-penalty{s['penalty']:g}"
    aim = "" if s["method"] == "dense" else aim
    first = last = Path("runs") / f"{s['task']}-{s['method']}{aim}-s{s['seed']}"
    n = 1
    folder = first
    while taken(folder):
        last, n = folder, n + 1
        folder = first.with_name(f"{first.name}-{n}")
    return folder if free else last


def choose_folder(s: dict, overwrite: bool, resume: bool) -> Path:
    """The output folder, the same for every process; one that holds files is not touched unasked.
    """
    if not parallel.is_main():
        return parallel.same(None)
    if overwrite and resume:
        raise UserError("--overwrite starts anew, --resume goes on; give one of them")
    folder = Path(s["output"] or default_folder(s, free=not (overwrite or resume)))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --output names a folder")
    check_writable(folder)
    if taken(folder):
        if not (overwrite or resume):
            raise UserError(f"{folder}: holds files already; choose another --output, "
                            "or --resume, or --overwrite")
        if not (folder / "run.json").exists():
            raise UserError(f"{folder}: does not hold a run, so it is left alone; choose another "
                            "--output")
    return parallel.same(folder)


def check_same(path: Path, then: dict, now: dict) -> None:
    """UserError that names the settings in which two runs differ."""
    now = json.loads(json.dumps(now))  # as JSON gives them back
    other = [f"{k} was {then.get(k)}, is now {now.get(k)}"
             for k in sorted(then.keys() | now.keys()) if then.get(k) != now.get(k)]
    if other:
        raise UserError(f"{path}: of a run with other settings (" + "; ".join(other[:4])
                        + "; …" * (len(other) > 4) + "); give the same, or --overwrite")


def finished(folder: Path, s: dict) -> bool:
    """Prints the result of a run that is over; False if there is still something to do."""
    if not (folder / "metrics.json").exists():
        return False
    try:
        found = report.result(read_json(folder / "metrics.json"), folder)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{folder / 'metrics.json'}: not as train.py writes it; --overwrite starts "
                        "anew") from None
    run = read_json(folder / "run.json")
    left = {"steps": None, "precision": "auto"}  # values that leave it to the run
    asked = {k: v for k, v in s.items() if k in run and (k, v) not in left.items()
             and k not in (*UNFIXED, "device", "compile")}
    check_same(folder / "run.json", {k: run[k] for k in asked}, asked)
    say(f"{folder}: finished already\n{found}")
    return True


def versions() -> dict:
    return {"python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__, "tokenizers": tokenizers.__version__,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads()}


class Run:
    """A run under way: its bar, its log, its checkpoints. Only the main process shows or writes.

    A checkpoint holds weights, scores, masks, optimiser, schedule and λ's search; the order of the
    data and all noise follow from seed and step.
    """

    def __init__(self, folder: Path, s: dict, pruner, data_fingerprint: str, resume: bool,
                 overwrite: bool = False):
        self.folder, self.s, self.pruner, self.resume = folder, s, pruner, resume
        self.overwrite = overwrite
        self.fixed = {k: v for k, v in s.items() if k not in UNFIXED}
        self.fixed |= {"data_fingerprint": data_fingerprint, "device": s["device"].split(":")[0]}
        self.T, self.t, self.seconds, self.smooth = s["steps"], 0, 0.0, None
        self.bar, self.log, self.stopping, self.start = None, None, False, None
        self.state = self.read_checkpoint() if resume and self.checkpoint.exists() else None

    def __enter__(self):
        self.began = time.perf_counter()
        if parallel.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = hold(self.folder / ".lock", f"{self.folder}: another run is at work there")
            if taken(self.folder) and not (self.resume or self.overwrite):
                self.release()
                raise UserError(f"{self.folder}: another run was there first; choose another "
                                "--output")
            remove_parts(self.folder)
            if not self.resume:  # metrics.json first: what lacks a part is never called finished
                for name in ("metrics.json", *FILES):
                    (self.folder / name).unlink(missing_ok=True)
                for path in self.folder.glob("predictions-*"):  # and what was made of the old run
                    path.unlink()
                shutil.rmtree(self.folder / "export", ignore_errors=True)
            write_json(self.folder / "run.json", self.fixed | versions() | {
                "output": str(self.folder), "processes": parallel.world()})
        self.handler = signal.signal(signal.SIGINT, self.interrupt)
        return self

    def __exit__(self, *error):
        self.end()
        if parallel.is_main():
            self.release()

    def end(self):
        """No more steps: the clock stops, and Ctrl-C is Python's own again."""
        signal.signal(signal.SIGINT, self.handler)
        self.seconds, self.began = self.elapsed(), None
        if self.bar is not None:
            self.bar.close()
            self.log.close()

    def elapsed(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.seconds + (time.perf_counter() - self.began if self.began else 0)

    def release(self):
        self.lock.close()
        (self.folder / ".lock").unlink(missing_ok=True)

    def interrupt(self, *_):
        """Ctrl-C ends the run after the step under way; a second one at once."""
        signal.signal(signal.SIGINT, self.handler)
        self.stopping = True

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def restore(self, model, pruner, optimizer, scheduler) -> int:
        """Go on from the folder's checkpoint, if asked to; → the step to begin with."""
        self.parts = (model, pruner, optimizer, scheduler)
        if self.state:
            self.put_back()
            say(f"going on from step {self.t} of {self.T}")
        else:
            self.start = fingerprint({bert.to_hf_name(m.name): m.W for m in pruner.matrices})
            if self.resume:
                say(f"{self.folder}: no checkpoint there yet, so it starts from step 0")
        if parallel.is_main():
            self.open_log()
            self.bar = tqdm(total=self.T, initial=self.t, unit="step", mininterval=0.5,
                            disable=None)
        return self.t

    @contextmanager
    def reading(self):
        """Whatever goes wrong with the checkpoint means a file to do without."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # torch raises many kinds
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.checkpoint}: not a readable checkpoint ({why}); --overwrite "
                            "starts anew") from error

    def read_checkpoint(self) -> dict:
        """Before anything of the folder is changed: a run with other settings is refused."""
        with self.reading():
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            check_same(self.checkpoint, json.loads(state["settings"]), self.fixed)
        return state

    def put_back(self) -> None:
        with self.reading():
            state, self.state = self.state, None
            for part, saved in zip(self.parts, state["parts"], strict=True):
                part.load_state_dict(saved)
            self.t, self.seconds, self.smooth, self.start = (
                int(state["t"]), float(state["seconds"]), float(state["smooth"]),
                str(state["start"]))
            if not 0 < self.t <= self.T:
                raise ValueError(f"step {self.t} of {self.T}")

    def save(self) -> None:
        """A checkpoint of the state after step t, complete or not at all."""
        if not parallel.is_main():
            return
        buffer = io.BytesIO()
        torch.save({
            "settings": json.dumps(self.fixed), "t": self.t, "smooth": self.smooth,
            "start": self.start, "seconds": self.elapsed(),
            "parts": [part.state_dict() for part in self.parts],
        }, buffer)
        write_atomically(self.checkpoint, buffer.getbuffer())

    def forget(self) -> None:
        """The run is over: nothing is left to go on with."""
        self.checkpoint.unlink(missing_ok=True)

    def open_log(self) -> None:
        """log.jsonl, without lines from after the checkpoint."""
        path = self.folder / "log.jsonl"
        lines = path.read_text().splitlines() if self.t and path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < self.t]
        write_atomically(path, "".join(line + "\n" for line in kept))
        self.log = open(path, "ab", buffering=0)  # each line is there at once

    def step(self, t: int, loss: float, rates: list[float]) -> None:
        """Called after every optimiser step: bar, log, checkpoint, Ctrl-C."""
        self.t = t + 1
        self.smooth = loss if self.smooth is None else 0.98 * self.smooth + 0.02 * loss
        if self.bar is not None:
            self.show(t, loss, rates)
        if self.t % self.s["save_every"] == 0 and self.t < self.T:
            self.save()
        if self.stopping:
            self.save()
            say(f"\nstopped after step {self.t}; go on with the same command and --resume"
                + ("" if self.s["output"] else f" --output {self.folder}"))
            raise KeyboardInterrupt

    def show(self, t: int, loss: float, rates: list[float]) -> None:
        self.bar.update()
        if t % LOG_EVERY and self.t != self.T:
            return
        density = self.pruner.density()
        row = {"step": t, "loss": loss, "density": density, "penalty": self.pruner.penalty,
               "lr": rates[0], "score_lr": rates[-1] if len(rates) > 1 else None}
        with naming(self.folder / "log.jsonl"):
            self.log.write(json.dumps(row).encode() + b"\n")
        shown = f"loss {self.smooth:.3f} · density {density:.3f} · lr {rates[0]:.1e}"
        self.bar.set_postfix_str(shown, refresh=False)
        tenth = self.t * 10 // self.T
        if self.bar.disable and tenth > max(0, self.t - LOG_EVERY) * 10 // self.T:
            say(f"step {self.t}/{self.T} · {shown}")


def fingerprint(matrices: dict[str, torch.Tensor]) -> str:
    """Of matrices by name, in any order: tells whether weights are those that a run began with."""
    digest = hashlib.sha256()
    for name in sorted(matrices):
        digest.update(name.encode())
        digest.update(matrices[name].detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def pack(mask: torch.Tensor) -> torch.Tensor:
    """A 0/1 mask as bits: (n, m) → (⌈n·m / 8⌉) uint8."""
    return torch.from_numpy(np.packbits((mask != 0).cpu().numpy().ravel()))


def save_pruning(pruner, path: Path) -> None:
    """What the baked model no longer shows, per matrix: masks, scores, W where pruned."""
    tensors = {}
    for m in pruner.matrices if pruner.masked else []:
        name = bert.to_hf_name(m.name)
        tensors[f"{name}.mask"] = pack(m.M)
        tensors[f"{name}.ever_pruned"] = pack(m.ever_pruned)
        tensors[f"{name}.pruned"] = m.W.detach()[m.M == 0].cpu()
        if m.S is not None:
            tensors[f"{name}.scores"] = m.S.detach().cpu().contiguous()
    write_atomically(path, safetensors.torch.save(tensors))


def save(folder: Path, model, task, tokenizer, tokenizer_folder: Path, pruner) -> None:
    """The pruned model as a Hugging Face folder, and the pruning beside it."""
    for m in pruner.matrices:
        m.weight.data += 0.0  # W ⊙ M leaves −0.0 where W is negative; zeros should be one number
    labels = None if task.span else list(task.labels) or ["score"]
    bert.save(model, folder, labels, tokenizer, tokenizer_folder)
    save_pruning(pruner, folder / "pruning.safetensors")
