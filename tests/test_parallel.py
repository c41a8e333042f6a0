"""Two processes on one machine: the same result as one, and a clear end when one dies."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

WORDS = ("--task", "mnli", "--method", "movement", "--model", "untrained:1x32", "--max-length", 32,
         "--max-train-rows", 320, "--max-eval-rows", 40, "--steps", 120)


def torchrun(*words, **options):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
             ROOT / "train.py", *WORDS, *words]
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)


@pytest.fixture(scope="module")
def one(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "r"
    done = command("train.py", *WORDS, "--output", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_do_what_one_does(one, tmp_path):
    running = torchrun("--output", tmp_path / "r")
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert out.count("schedule ") == 1, "only the main process prints"
    assert "2 processes" in out
    logs = [[json.loads(line)["loss"] for line in (folder / "log.jsonl").open()]
            for folder in (one, tmp_path / "r")]
    assert logs[0] == pytest.approx(logs[1], abs=1e-3)
    single, double = (load_file(folder / "model.safetensors") for folder in (one, tmp_path / "r"))
    same = [torch.equal(single[n] == 0, double[n] == 0) for n in single if "layer" in n]
    close = [torch.allclose(single[n], double[n], atol=1e-3) for n in single]
    assert sum(same) >= 0.8 * len(same) and sum(close) >= 0.8 * len(close)


def children(pid):
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(p) for p in out.stdout.split()]


def test_a_killed_process_ends_the_job(one, tmp_path):
    running = torchrun("--output", tmp_path / "r", "--steps", 20_000)
    end = time.time() + 60
    while not (tmp_path / "r" / "log.jsonl").exists() and time.time() < end:
        time.sleep(0.1)
    os.kill(children(running.pid)[-1], signal.SIGKILL)
    _, err = running.communicate(timeout=90)
    assert running.returncode != 0
    assert "Signal 9" in err or "SIGKILL" in err
    assert not (tmp_path / "r" / "metrics.json").exists()
