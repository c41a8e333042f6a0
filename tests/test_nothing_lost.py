"""Nothing lost, nothing wrong in silence: damage, kills, signals, races and what they leave.

`python tests/marathon.py` does the same at random, for hours.
"""

import contextlib
import itertools
import os
import pickle
import shutil
import signal
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from filelock import FileLock
from tiny import WORDS, Place, Trap, check_refused, digests

from support import checkpoints, files, state
from support.files import UserError

CHECKPOINT = Path("new/checkpoint.safetensors")


def tampered(change):
    """A checkpoint whose contents are changed, and whose digest is right."""
    def write(path):
        saved = state.read_checkpoint(path, "damaged")
        change(saved)
        path.write_bytes(state.to_checkpoint(saved))
    return write


def flip(path, at):
    whole = bytearray(path.read_bytes())
    whole[at] ^= 4
    path.write_bytes(whole)


CHECKPOINTS = {  # what happens to it
    "empty": lambda path: path.write_bytes(b""), "text": lambda path: path.write_bytes(b"hello"),
    "a pickle with code": lambda path: path.write_bytes(pickle.dumps(Trap())),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-500]),
    "a bit of a weight": lambda path: flip(path, -100),
    "a bit of a number": lambda path: flip(path, path.read_bytes().index(b"smooth_loss") + 18),
    "a moment of another shape": tampered(lambda saved: saved.update(
        {"moments.3.exp_avg": torch.zeros(7)})),
    "whole numbers for a moment": tampered(lambda saved: saved.update(
        {"moments.3.exp_avg": torch.zeros_like(saved["moments.3.exp_avg"], dtype=torch.int32)})),
    "a moment missing": tampered(lambda saved: saved.pop("moments.3.exp_avg")),
    "one more tensor": tampered(lambda saved: saved.update(extra=torch.zeros(1))),
    "a list for a step": tampered(lambda saved: saved.update(t=[1])),
    "a step too far": tampered(lambda saved: saved.update(t=41)),
    "a text for a number": tampered(lambda saved: saved.update(seconds="1")),
    "no scores": tampered(lambda saved: saved.update({"pruner.matrices.0.S": None})),
    "no log": tampered(lambda saved: saved.update(log="hello\n")),
    "other settings": tampered(lambda saved: saved.update(record="{}"))}


@pytest.fixture(scope="module")
def stopped(ready, tmp_path_factory):
    """A run that stopped after a checkpoint."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(ready, folder, dirs_exist_ok=True)
    with contextlib.chdir(folder), mock.patch.object(checkpoints.Run, "finish", stop):
        Place(folder).train("--save-every", "39", output="new")
    return folder / "new"


def stop(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_broken_checkpoints(case, stopped, place):
    shutil.copytree(stopped, "new")
    CHECKPOINTS[case](CHECKPOINT)
    before = digests(place.folder)
    check_refused(place.train("--resume", output="new"), f"{CHECKPOINT}: ")
    assert digests(place.folder) == before and not (place.folder / "sprung").exists()


def test_a_checkpoint_of_an_earlier_version(stopped, place):
    shutil.copytree(stopped, "new")
    CHECKPOINT.rename("new/checkpoint.pt")
    check_refused(place.train("--resume", output="new"), "earlier version")


def test_a_damaged_log_is_the_checkpoints_again(stopped, place):
    shutil.copytree(stopped, "new")
    Path("new/log.jsonl").write_bytes(b"\xff")
    place.train("--resume", output="new").succeeded()
    assert digests(Path("new"))["log.jsonl"] == digests(Path("run"))["log.jsonl"]


# ---------------------------------------------------------------- what a resumed run compares


def append(path, text):
    with open(path, "a") as file:
        file.write(text)


CHANGES = {  # after which the same command with --resume would give other bits → what is said
    "training rows": (lambda: append("data/SST-2/train.tsv", "a good b .\t1\n"), "data_finger"),
    "evaluation rows": (lambda: append("data/SST-2/dev.tsv", "a good b .\t1\n"), "dev_finger"),
    "tokenizer": (lambda: Path("model/vocab.txt").write_text("\n".join([*WORDS[:-1], "!"])),
                  "tokenizer_finger"),
    "weights": (lambda: flip(Path("model/model.safetensors"), -100), "weights_finger")}


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("case", CHANGES)
def test_what_decides_the_bits_is_compared(case, checkpoint, stopped, place):
    shutil.copytree(stopped, "new")
    if not checkpoint:
        CHECKPOINT.unlink()
    CHANGES[case][0]()
    before = digests(Path("new"))
    check_refused(place.train("--resume", output="new"), CHANGES[case][1])
    assert digests(Path("new")) == before


def test_other_threads_are_warned_of(stopped, place, monkeypatch):
    shutil.copytree(stopped, "new")
    monkeypatch.setattr(checkpoints, "versions", lambda: {"threads": 99})
    assert "WARNING: new/checkpoint" in place.train("--resume", output="new").succeeded()


# ----------------------------------------------------------------- signals, locks, overwriting


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves(number, place, change_loss):
    def send(loss):
        os.kill(os.getpid(), number)
        return loss

    change_loss(25, send)
    done = place.train(output="new")
    assert (done.returncode, done.stderr) == (128 + number, "")
    assert "stopped after step 26" in done.stdout
    assert state.read_checkpoint(CHECKPOINT, "damaged")["t"] == 26


def test_a_reader_that_goes_away_loses_no_steps(place, monkeypatch):
    def say(text):
        if text.startswith("step 31"):
            raise BrokenPipeError

    monkeypatch.setattr(checkpoints, "say", say)
    check_refused(place.train("--save-every", "1000", output="new"), "nothing reads", status=1)
    assert state.read_checkpoint(CHECKPOINT, "damaged")["t"] == 31


@pytest.mark.parametrize("words", [(), ("--overwrite",), ("--resume",)])
def test_two_runs_in_one_folder(words, place):
    Path("new").mkdir()
    files.hold(Path("new/.lock"))
    check_refused(place.train(*words, output="new"), "new: another run is at work there")


def test_a_lock_is_never_one_that_was_removed(tmp_path):
    """Who waits for a lock, while its holder removes the file, gets the file that is there."""
    path, got = tmp_path / "x" / ".lock", []
    first = files.hold(path)
    waiting = threading.Thread(
        target=lambda: got.append(FileLock(path, thread_local=False).acquire()))
    waiting.start()
    time.sleep(0.2)
    files.let_go(first)
    waiting.join()
    with pytest.raises(UserError):
        files.hold(path, "taken")


MOMENTS = {"in training": "train.task_loss", "at the end": "support.checkpoints.Run.finish",
           "once the old one is removed": "pathlib.Path.rename",
           "while the new one is moved": "pathlib.Path.replace"}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_overwritten_result_stays_until_the_new_one_is_whole(moment, place):
    """Stopped at any moment, --resume ends with the new result; until then the old one is there."""
    old, words = digests(Path("run")), ("--keep", "0.5")
    with mock.patch(MOMENTS[moment], stop_at_the_third(MOMENTS[moment])):
        assert place.train(*words, "--overwrite").returncode == 130
    if moment in ("in training", "at the end"):
        assert digests(Path("run")) | old == digests(Path("run"))
        place("evaluate.py", "run").succeeded()
    place.train(*words, "--resume").succeeded()
    place.train(*words, output="whole").succeeded()
    assert digests(Path("run"))["model.safetensors"] == digests(Path("whole"))["model.safetensors"]
    assert {path.name for path in Path("run").iterdir()} == {
        path.name for path in Path("whole").iterdir()}


def stop_at_the_third(name):
    """That function, which stops the program: moving files, when two are there."""
    calls, true = itertools.count(), Path.replace

    def replace(*arguments):
        return stop() if next(calls) == 2 else true(*arguments)

    return replace if name.endswith("replace") else stop


@pytest.mark.parametrize("words, said", [
    ("--output model/x", "is in"), ("--output model", "holds files already"),
    ("--output . --resume", "run"), ("--output run --teacher run --overwrite", "--teacher run"),
    ("--output run --model run --overwrite", "--model run"), ("--output data/x", "--data data")])
def test_a_run_writes_nowhere_where_it_reads(words, said, place):
    before = digests(place.folder)
    check_refused(place.train(*words.split()), said)
    assert digests(place.folder) == before
