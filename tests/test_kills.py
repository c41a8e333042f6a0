"""Killed at any moment, nothing is lost: earlier results whole, files complete or absent.

    KILLS=100 python -m pytest tests/test_kills.py      so many kills in each test, or twice as many

A kill is SIGKILL at a moment drawn with a seed, from the first file that a program writes to its
end. After it every file is read whole; then the same command goes on to the end.
"""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import argv
from tiny import TRAIN, digests

import export
from support import files

KILLS = int(os.environ.get("KILLS", 1))
HITS = []  # of each kill: was the program still at work?
SWEEP = ("tools.sweep", *TRAIN, "--methods", "movement,magnitude", "--csv", "rows.csv",
         "--keep-runs", "kept")


def read_whole(folder):
    """Every file below, under its final name, is complete."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name[0] == "." or path.suffix == ".lock":
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)
        elif path.suffix == ".safetensors":
            safetensors.torch.load_file(path)
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.name == export.COMPACT:
            export.load_compact(path)
        elif path.suffix == ".csv":
            for row in csv.DictReader(path.open(newline="")):
                assert row["density"] and None not in row.values(), row


def written(path):
    """A question: has the file been written since?"""
    def time_of_writing():
        return path.stat().st_mtime_ns if path.exists() else None

    before = time_of_writing()
    return lambda: time_of_writing() != before


class Scene:
    """The folder of `place`, in which run/ is an earlier run that no kill may change."""

    def __init__(self, place):
        self.rng, self.place, self.earlier = random.Random(0), place, digests(Path("run"))

    def kill(self, *words, began, within):
        """SIGKILL a program at most so many seconds after began() is true."""
        process = subprocess.Popen(argv(*words), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not began():
            time.sleep(0.001)
        time.sleep(self.rng.random() ** 2 * within)
        HITS.append(process.poll() is None)
        process.kill()
        process.wait()
        read_whole(self.place.folder)
        assert digests(Path("run")) == self.earlier, "an earlier run has changed"


@pytest.fixture
def scene(place):
    return Scene(place)


def test_train(scene):
    """A run that is killed, resumed and killed again ends with the same bits as any other."""
    new, words = Path("new"), ("train.py", *TRAIN, "--save-every", 3, "--output", "new")
    shutil.copytree("run", new)
    for i in range(2 * KILLS):
        scene.kill(*words, "--resume" if i else "--overwrite", began=written(new / "run.json"),
                   within=0.4)
    scene.place(*words, "--resume").succeeded()
    for name in ("model.safetensors", "pruning.safetensors", "log.jsonl"):
        assert digests(new)[name] == scene.earlier[name], name
    assert not [path for path in new.rglob(".*") if path.suffix in (".part", ".lock")]


@pytest.mark.parametrize("again", [False, True])
def test_export(again, scene):
    """A killed export leaves the run as it was, and the next one is whole."""
    new = Path("new")
    shutil.copytree("run", "whole")
    scene.place("export.py", "whole").succeeded()
    shutil.copytree("whole" if again else "run", new)
    for _ in range(KILLS):
        scene.kill("export.py", "new", began=written(new / "export" / "config.json"), within=0.25)
        assert digests(new) | scene.earlier == digests(new)
    scene.place("export.py", "new").succeeded()
    assert digests(new) == digests(Path("whole"))


def in_use(lock):
    """Does a process hold it still, a moment after?"""
    time.sleep(0.2)
    try:
        files.let_go(files.hold(lock, ""))
    except files.UserError:
        return True
    return False


def test_sweep(scene):
    """Each run of a killed sweep ends with it, and becomes one row when the sweep goes on."""
    def methods():
        return [row["method"] for row in csv.DictReader(open("rows.csv"))]

    for _ in range(KILLS):
        before = methods() if Path("rows.csv").exists() else []
        scene.kill(*SWEEP, began=Path("kept").exists, within=5)
        left = [path for path in Path("kept").glob("*/.lock") if in_use(path)]
        assert not left or sys.platform != "linux", "a run outlives its sweep"
        if before:
            assert methods()[: len(before)] == before, "a row is gone"
    scene.place(*SWEEP).succeeded()
    assert sorted(methods()) == ["magnitude", "movement"]


def test_most_kills_hit_a_program_at_work():
    assert sum(HITS) >= len(HITS) / 2
