"""Killed at any moment, nothing is lost: earlier results whole, files complete or absent.

    KILLS=100 python -m pytest tests/test_kills.py      so many kills in each test, or twice as many

A kill is SIGKILL at a moment drawn with a seed, from the first file that a program writes to its
end. After it every file is read whole; then the same command goes on to the end.
"""

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
from conftest import argv
from tiny import TRAIN, check_same_bits, digests

import export
from support import files
from tools import rows

KILLS = int(os.environ.get("KILLS", 1))
HITS = []  # of each kill: was the program still at work?
SWEEP = ("tools.sweep", *TRAIN, "--methods", "movement,magnitude", "--csv", "rows.csv",
         "--keep-runs", "kept")
READERS = {  # suffix → what fails where the file is not whole
    ".json": files.read_json, ".safetensors": safetensors.torch.load_file, ".csv": rows.read,
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    Path(export.COMPACT).suffix: export.load_compact}


def read_whole(folder):
    """Every file below, under its final name, is complete."""
    for path in folder.rglob("[!.]*"):
        if path.is_file() and path.suffix in READERS:
            READERS[path.suffix](path)


def changed(path):
    """When the file or folder was last changed; None: it is not there."""
    return path.stat().st_mtime_ns if path.exists() else None


@pytest.fixture
def kill(place):
    """Kill a program at work in the folder of `place`, where no kill may change run/."""
    rng, earlier = random.Random(0), digests(Path("run"))

    def kill_within(seconds, path, *words):
        """SIGKILL it at most so many seconds after it first changes this path."""
        before = changed(path)
        process = subprocess.Popen(argv(*words), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and changed(path) == before:
            time.sleep(0.001)
        time.sleep(rng.random() ** 2 * seconds)
        HITS.append(process.poll() is None)
        process.kill()
        process.wait()
        read_whole(place.folder)
        assert digests(Path("run")) == earlier, "an earlier run has changed"

    return kill_within


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_train(precision, place, kill):
    """A run that is killed, resumed and killed again ends with the same bits as any other."""
    new, words = Path("new"), ("--precision", precision, "--save-every", 3)
    place.train(*words, output="whole").succeeded()
    shutil.copytree("run", new)
    for i in range(2 * KILLS):
        path = new / ".new" / ("run.json" if i % 2 else "checkpoint.safetensors")
        kill(0.4, path, "train.py", *TRAIN, *words, "--output", new,
             "--resume" if i else "--overwrite")
    place.train(*words, "--resume", output=new).succeeded()
    check_same_bits(new, Path("whole"))
    in_bf16 = digests(new)["model.safetensors"] != digests(Path("run"))["model.safetensors"]
    assert in_bf16 == (precision == "bf16"), "run/ is in fp32"
    assert not [path for path in new.rglob(".*") if path.suffix in (".part", ".lock")]


@pytest.mark.parametrize("again", [False, True])
def test_export(again, place, kill):
    """A killed export leaves the run as it was, and the next one is whole."""
    new, earlier = Path("new"), digests(Path("run"))
    shutil.copytree("run", "whole")
    place("export.py", "whole").succeeded()
    shutil.copytree("whole" if again else "run", new)
    for _ in range(KILLS):
        kill(0.25, new / "export" / "config.json", "export.py", new)
        assert digests(new) | earlier == digests(new)
    place("export.py", new).succeeded()
    assert digests(new) == digests(Path("whole"))


def in_use(lock):
    """Does a process hold it still, a moment after?"""
    time.sleep(0.2)
    try:
        with files.locked(lock, ""):
            pass
    except files.UserError:
        return True
    return False


def test_sweep(place, kill):
    """Each run of a killed sweep ends with it, and becomes one row when the sweep goes on."""
    def methods():
        return [row["method"] for row in rows.read(Path("rows.csv"))]

    for _ in range(KILLS):
        before = methods()
        kill(5, Path("kept"), *SWEEP)
        left = [path for path in Path("kept").glob("*/.lock") if in_use(path)]
        assert not left or sys.platform != "linux", "a run outlives its sweep"
        assert methods()[: len(before)] == before, "a row is gone"
    place(*SWEEP).succeeded()
    assert sorted(methods()) == ["magnitude", "movement"]



def test_most_kills_hit_a_program_at_work():
    assert sum(HITS) >= len(HITS) / 2
