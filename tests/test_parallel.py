"""Two processes on one machine: the same result as one, and a way on when one dies."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from support import checkpoints, parallel
from support.files import UserError

WORDS = ("--task", "mnli", "--method", "movement", "--model", "untrained:1x32", "--max-length", 32,
         "--max-train-rows", 331, "--max-eval-rows", 40, "--steps", 120, "--save-every", 10,
         "--grad-accum", 6)  # the last batch is 11 rows: 6 and 5 of two processes


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


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "r"
    running = torchrun("--output", folder)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert out.count("schedule ") == 1, "only the main process prints"
    assert "2 processes" in out
    return folder


def test_two_processes_do_what_one_does(one, two):
    logs = [[json.loads(line)["loss"] for line in (folder / "log.jsonl").open()]
            for folder in (one, two)]
    assert logs[0] == pytest.approx(logs[1], abs=1e-3)
    single, double = (load_file(folder / "model.safetensors") for folder in (one, two))
    same = [torch.equal(single[n] == 0, double[n] == 0) for n in single if "layer" in n]
    close = [torch.allclose(single[n], double[n], atol=1e-3) for n in single]
    assert sum(same) >= 0.8 * len(same) and sum(close) >= 0.8 * len(close)


def children(pid):
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(p) for p in out.stdout.split()]


def test_a_killed_process_ends_the_job_which_resumes_to_the_same_bits(two, tmp_path):
    running = torchrun("--output", tmp_path / "r")
    end = time.time() + 60
    while not (tmp_path / "r" / "checkpoint.pt").exists() and time.time() < end:
        time.sleep(0.02)
    os.kill(children(running.pid)[-1], signal.SIGKILL)
    _, err = running.communicate(timeout=90)
    assert running.returncode != 0
    assert "Signal 9" in err or "SIGKILL" in err
    assert not (tmp_path / "r" / "metrics.json").exists()
    running = torchrun("--output", tmp_path / "r", "--resume")
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0 and "going on from step" in out, err
    for name in ("model.safetensors", "pruning.safetensors"):
        assert (tmp_path / "r" / name).read_bytes() == (two / name).read_bytes()


def test_a_gpu_of_ones_own_is_no_other_setting(tmp_path):
    """cuda:0 and cuda:1 of one run, or cuda before and cuda:0 now, take the same checkpoint."""
    common = {"steps": 1, "save_every": 1, "output": None}
    settings = [checkpoints.Run(tmp_path, common | {"device": device}, None, True, False).settings
                for device in ("cuda", "cuda:0", "cuda:1")]
    assert settings[0] == settings[1] == settings[2]


@pytest.mark.parametrize("rows", [1, 2, 3, 11, 21, 32])
def test_the_pieces_of_all_processes_make_up_the_batch(rows, monkeypatch):
    batch = np.arange(rows)
    for world in (1, 2, 3):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        for wanted in (1, 4, 16):
            sizes, total = [], 0.0
            for rank in range(world):
                monkeypatch.setenv("RANK", str(rank))
                pieces = parallel.pieces_of(batch, wanted)
                assert all(len(piece) for piece, _ in pieces)
                sizes.append(len(pieces))
                total += sum(weight for _, weight in pieces)
            assert len(set(sizes)) == 1 and sizes[0] <= wanted
            assert total / world == pytest.approx(1.0)


def test_noise_follows_from_seed_step_and_process(monkeypatch):
    def noise(seed, t, rank=0):
        monkeypatch.setenv("RANK", str(rank))
        parallel.seed_dropout(seed, t)
        return torch.rand(4).tolist()

    first = noise(3, 5)
    torch.rand(7)
    assert noise(3, 5) == first
    assert len({tuple(noise(*at)) for at in ((3, 5), (3, 6), (4, 5), (3, 5, 1))}) == 4


@pytest.mark.parametrize("half", [
    {"RANK": "1"}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "0"}, {"RANK": "x"}])
def test_half_of_torchruns_variables_is_refused(half, monkeypatch):
    for name, value in half.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"RANK, WORLD_SIZE: .*; use torchrun, or unset both"):
        parallel.start("cpu")
