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

import marathon
import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file
from tiny import SQUAD, WORDS, Place, Trap, check_refused, check_same_bits, digests

import train
from sample import pretrain
from support import checkpoints, files, progress, squad, state
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
    "a moment of another shape": tampered(lambda saved: saved["moments"]["3"].update(
        exp_avg=torch.zeros(7))),
    "whole numbers for a moment": tampered(lambda saved: saved["moments"]["3"].update(
        exp_avg=saved["moments"]["3"]["exp_avg"].int())),
    "a moment missing": tampered(lambda saved: saved["moments"]["3"].pop("exp_avg")),
    "one more tensor": tampered(lambda saved: saved.update(extra=torch.zeros(1))),
    "a list for a step": tampered(lambda saved: saved.update(t=[1])),
    "a step too far": tampered(lambda saved: saved.update(t=41)),
    "a text for a number": tampered(lambda saved: saved.update(seconds="1")),
    "half a step": tampered(lambda saved: saved.update(t=20.5)),
    "no scores": tampered(lambda saved: saved["pruner"]["matrices"][0].update(S=None)),
    "no log": tampered(lambda saved: saved.update(log="hello\n")),
    "other settings": tampered(lambda saved: saved.update(record={}))}


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
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
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


def send_sigterm(*_):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("words, where, left", [
    ((), "evaluate.predict", 40), (("--teacher", "run"), "evaluate.predict", None),
    (("--model", "small:1x32"), "sample.pretrain.masked_loss", None)])
def test_sigterm_outside_the_steps_is_one_line_and_loses_none(words, where, left, place,
                                                              monkeypatch):
    monkeypatch.setattr("sample.generate.pretraining_documents", lambda _: [("a b .",)] * 40)
    monkeypatch.setattr(pretrain, "THREADS", 1)  # it would leave this process with two
    with mock.patch(where, send_sigterm):
        done = place.train(*words, output="new")
    assert (done.returncode, done.stderr) == (143, "stopped by SIGTERM\n")
    assert CHECKPOINT.exists() == bool(left) == Path("new").exists()
    if left:
        assert state.read_checkpoint(CHECKPOINT, "damaged")["t"] == left
        assert "going on from step 40" in place.train("--resume", output="new").succeeded()
        check_same_bits(Path("new"), Path("run"))


def test_a_reader_that_goes_away_loses_no_steps(place, monkeypatch):
    def tell(text, **_):
        if text.startswith("step 32"):
            raise BrokenPipeError

    monkeypatch.setattr(progress, "print", tell, raising=False)
    check_refused(place.train("--save-every", "1000", output="new"), "nothing reads", status=1)
    assert state.read_checkpoint(CHECKPOINT, "damaged")["t"] == 32


@pytest.mark.parametrize("words", [(), ("--overwrite",), ("--resume",)])
def test_two_runs_in_one_folder(words, place):
    Path("new").mkdir()
    with files.locked(Path("new/.lock")):
        check_refused(place.train(*words, output="new"), "new: another run is at work there")


def test_a_lock_is_never_one_that_was_removed(tmp_path):
    """Who waits for a lock, while its holder removes the file, gets the file that is there."""
    path, got = tmp_path / "x" / ".lock", []
    with files.locked(path):
        waiting = threading.Thread(
            target=lambda: got.append(FileLock(path, thread_local=False).acquire()))
        waiting.start()
        time.sleep(0.2)
    waiting.join()
    with pytest.raises(UserError), files.locked(path, "taken"):
        pass


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
    ("--output model/x", "is in"), ("--output model", "--model model"),
    ("--output . --resume", "holds --model"), ("--output data/x", "--data data"),
    ("--output run --teacher run --overwrite", "--teacher run"),
    ("--output run --model run --overwrite", "--model run")])
def test_a_run_writes_nowhere_where_it_reads(words, said, place):
    before = digests(place.folder)
    check_refused(place.train(*words.split()), said)
    assert digests(place.folder) == before


# -------------------------------------------------------------- what is no number, no file, no end


def test_scores_that_are_no_numbers_are_no_result(place):
    check_refused(place.train("--score-lr", "1e38", output="new"), "lower --score-lr", status=1)
    assert not Path("new/metrics.json").exists()


def test_outputs_that_are_no_numbers_are_no_result(place):
    Path("run/SHA256SUMS").unlink()
    weights, _ = files.read_tensors("run/model.safetensors")
    weights["classifier.weight"].fill_(3e38)
    weights["classifier.bias"].fill_(3e38)
    save_file(weights, "run/model.safetensors")
    check_refused(place("evaluate.py", "run"), "outputs are not numbers", status=1)
    with pytest.raises(files.RunError, match="not a number"):
        files.write_json("x.json", {"accuracy": float("nan")})


PIPES = {"model/config.json": (), "model/model.safetensors": (), "model/vocab.txt": (),
         "data/SST-2/dev.tsv": (), "data/SQuAD/dev-v1.1.json": SQUAD}


@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(name, place):
    Path(name).unlink()
    os.mkfifo(name)
    check_refused(place.train(*PIPES[name], output="new"), f"{name}: neither a file nor a folder")


FOREIGN = {"a label of a megabyte": "x" * 10**6, "a label that moves the cursor": "\x1b[2J\x07\r",
           "a label that turns the text around": "\u202e01"}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_text_is_fit_for_a_terminal(case, place):
    append("data/SST-2/dev.tsv", f"a b\t{FOREIGN[case]}\n")
    done = place.train(output="new")
    check_refused(done, "dev.tsv:42: label '")
    assert done.stderr[:-1].isprintable() and len(done.stderr) <= 400


def test_passwords_are_not_shown():
    assert str(UserError("http://me:secret@host/x failed")) == "http://host/x failed"


@pytest.mark.parametrize("change", [
    {"num_hidden_layers": 0}, {"hidden_size": 0}, {"max_position_embeddings": 0},
    {"max_position_embeddings": 999_999, "hidden_size": 40_000}])
def test_absurd_sizes_are_refused_before_memory_is_taken(change, place):
    files.write_json("model/config.json", files.read_json("model/config.json") | change)
    check_refused(place.train(output="new"), "model")


def test_a_long_passage_takes_memory_by_its_length():
    """Three windows wide, one token in each: a table of windows × tokens would be 30 GB."""
    begins, ends = squad.split(500_000, 300, 64)
    home = squad.home_windows(begins, ends)
    assert home[0] == 0 and home[-1] == len(begins) - 1 and np.all(np.diff(home) >= 0)


@pytest.mark.parametrize("variables, said", [
    ({"MOVEMENT_CACHE": "x"}, "x is a file, not a folder"),
    ({"MOVEMENT_CACHE": "", "HOME": ""}, None)])
def test_odd_places_for_the_cache(variables, said, place, monkeypatch):
    Path("x").write_text("")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if said is None:
        monkeypatch.setattr(Path, "expanduser", mock.Mock(side_effect=RuntimeError))
        said = "set MOVEMENT_CACHE"
    check_refused(place.train("--data", "sample", "--task", "mnli", output="new"), said)


def test_a_cache_that_is_only_read_needs_no_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("MOVEMENT_CACHE", str(tmp_path))
    made = files.cached("x", "key", lambda folder: files.write_atomically(folder / "a", "b"))
    monkeypatch.setattr(files, "locked", None)
    assert files.cached("x", "key", None) == made
    (made / "a").write_text("c")
    with pytest.raises(UserError, match=r"x-.*/a: is gone or has changed since"):
        files.cached("x", "key", None)


def test_a_small_share_of_the_marathon():
    """The rest takes hours: python tests/marathon.py."""
    marathon.mutations(60, 2, seed=0)
    marathon.kills(1, seed=0)


def test_without_stdout(place, monkeypatch):
    with mock.patch("sys.stdout", None), mock.patch("sys.argv", ["train.py", "--lr", "x"]), \
            pytest.raises(SystemExit):
        files.run_main(train.main)
