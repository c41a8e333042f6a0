"""Killed at any moment, nothing is lost: earlier results whole, files complete or absent.

    python tests/test_kills.py 100      so many kills of each program, and what they left

A kill is SIGKILL at a moment drawn with a seed, from the first file that a program writes to its
end. After it every file is read whole; then the same command goes on to the end.
"""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import argv
from tiny import digests, write_data, write_model

import export
from support import files

WORDS = ["--data", "data", "--model", "model", "--max-length", "16", "--task", "sst2",
         "--batch-size", "8", "--lr", "1e-3", "--save-every", "3"]
TRAIN = [*WORDS, "--method", "movement", "--steps", "60", "--output", "run"]
SWEEP = [*WORDS, "--methods", "movement,magnitude", "--steps", "20", "--csv", "rows.csv",
         "--keep-runs", "kept"]


def start(folder, program, *words):
    return subprocess.Popen(
        argv(program, *words), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True)


def finish(folder, program, *words):
    process = start(folder, program, *words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def kill(folder, program, *words, began, after):
    """SIGKILL so many seconds after `began()` is true → was it still running?"""
    process = start(folder, program, *words)
    while process.poll() is None and not began():
        time.sleep(0.001)
    time.sleep(after)
    running = process.poll() is None
    process.kill()
    process.communicate()
    return running


def read_whole(folder):
    """Every file below, under its final name, is complete."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name[0] == "." or path.suffix in (".lock", ".npz"):
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


def in_use(lock):
    """Does a process hold it still, a moment after?"""
    time.sleep(0.2)
    try:
        files.let_go(files.hold(lock, ""))
    except files.UserError:
        return True
    return False


def no_leftovers(folder):
    left = [p for p in folder.rglob(".*") if p.name.endswith((".part", ".lock"))]
    assert not left, left


class Scene:
    """data/, model/, earlier/ (a finished run), and whole/, what the commands end in unharmed."""

    def __init__(self, folder, seed=0):
        self.folder, self.rng, self.count = folder, random.Random(seed), Counter()
        write_data(folder / "data")
        write_model(folder / "model")
        finish(folder, "train.py", *TRAIN)
        (folder / "run").rename(folder / "earlier")
        shutil.copytree(folder / "earlier", folder / "exported")
        finish(folder, "export.py", "exported")
        self.earlier = digests(folder / "earlier")
        self.exported = digests(folder / "exported")

    def note(self, program, killed):
        self.count[f"{program}, killed" if killed else f"{program}, over before the kill"] += 1
        read_whole(self.folder)
        assert digests(self.folder / "earlier") == self.earlier, "an earlier run has changed"

    def train(self, kills, overwrite):
        """Kill a run several times, each time going on, until the last is let through."""
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        if overwrite:
            shutil.copytree(self.folder / "earlier", run)
        flags = ["--overwrite"] if overwrite else []
        for _ in range(kills):
            self.note("train.py", kill(
                self.folder, "train.py", *TRAIN, *flags, began=(run / ".lock").exists,
                after=self.rng.random() ** 2 * 0.7))
            flags = ["--resume"]
        finish(self.folder, "train.py", *TRAIN, "--resume")
        for name in ("model.safetensors", "pruning.safetensors", "log.jsonl"):
            assert digests(run)[name] == self.earlier[name], f"{name} is not as without a kill"
        no_leftovers(run)

    def export(self, kills, again):
        """The same of an export, into a new folder or over one that is there."""
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.folder / ("exported" if again else "earlier"), run)
        started = time.time()

        def began():
            config = run / "export" / "config.json"
            return config.exists() and config.stat().st_mtime >= started - 0.01

        for _ in range(kills):
            started = time.time()
            self.note("export.py", kill(self.folder, "export.py", "run", began=began,
                                        after=self.rng.random() ** 2 * 0.25))
            found = digests(run)
            assert {name: found[name] for name in self.earlier} == self.earlier
        finish(self.folder, "export.py", "run")
        assert digests(run) == self.exported

    def sweep(self, kills):
        """The same of a sweep of two runs: each row once, and the rows of before stay."""
        table, kept = self.folder / "rows.csv", self.folder / "kept"
        shutil.rmtree(kept, ignore_errors=True)
        table.unlink(missing_ok=True)
        before = []
        for _ in range(kills):
            self.note("tools.sweep", kill(self.folder, "tools.sweep", *SWEEP, began=kept.exists,
                                       after=self.rng.random() * 5))
            left = [p for p in kept.glob("*/.lock") if in_use(p)]
            assert not left or sys.platform != "linux", "a run outlives its sweep"
            rows = list(csv.DictReader(table.open(newline=""))) if table.exists() else []
            assert rows[: len(before)] == before, "a row is gone"
            before = rows
        finish(self.folder, "tools.sweep", *SWEEP)
        rows = list(csv.DictReader(table.open(newline="")))
        assert sorted(row["method"] for row in rows) == ["magnitude", "movement"]
        assert rows[: len(before)] == before


@pytest.fixture(scope="module")
def scene(tmp_path_factory, cache):
    return Scene(tmp_path_factory.mktemp("kills"))


def test_train(scene):
    scene.train(2, overwrite=True)


def test_export(scene):
    scene.export(1, again=False)
    scene.export(1, again=True)


def test_sweep(scene):
    scene.sweep(1)


def test_the_killed_were_at_work(scene):
    """The moments fit: most kills hit a running program."""
    hit = sum(n for name, n in scene.count.items() if name.endswith(", killed"))
    assert hit >= 0.5 * scene.count.total() > 0, scene.count


def main(kills: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="movement-kills-") as name:
        os.environ["MOVEMENT_CACHE"] = str(Path(name) / "cache")
        scene = Scene(Path(name), seed=kills)
        began = time.time()
        for i in range(-(-kills // 5)):
            scene.train(5, overwrite=bool(i % 2))
            scene.export(5, again=bool(i % 2))
            scene.sweep(5)
            print(f"{time.time() - began:5.0f} s · " + " · ".join(
                f"{name} {n}" for name, n in sorted(scene.count.items())), flush=True)
    print("every file whole, every earlier result as it was, every command went on to its end")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
