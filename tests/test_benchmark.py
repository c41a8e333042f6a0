"""The benchmark runs, and times the very step that training does."""

import copy
import json

import numpy as np
import pytest
import torch

import masking
import train
from tools import benchmark


def test_quick_run(command, tmp_path):
    done = command("tools.benchmark", "--quick", "--json", tmp_path / "b.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "b.json").read_text())
    assert set(result["ratios"]) == set(masking.METHODS) - {"dense"}
    assert result["machine"] in done.stdout and result["threads"] >= 1
    for row in result["rows"]:
        assert row["ratio"] > 0 and row["name"] in done.stdout
        if row["part"] != "memory":
            assert row["low"] <= row["ratio"] <= row["high"]
            assert sum(row["stages"].values()) == pytest.approx(row["ms"], rel=0.5)
    # everything was measured, or it says why not
    assert {row["part"] for row in result["rows"]} | set(result["skipped"]) >= set(benchmark.PARTS)


def test_unknown_part_is_named(command):
    done = command("tools.benchmark", "--parts", "method")
    assert done.returncode == 2 and "did you mean methods?" in done.stderr


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("method", ["dense", *benchmark.METHODS])
def test_its_step_is_trainings_step(method):
    """Same model, same batches: train.train and the benchmark end with the same weights."""
    size = benchmark.TINY
    trainee = benchmark.Trainee(size, method, "fp32", "cpu")
    features = benchmark.random_rows(np.full(size.B, size.T), 500)
    trainee.net.eval().train = lambda: None  # without dropout
    model = copy.deepcopy(trainee.net)
    first = [p.clone() for p in model.parameters()]
    scores = [S.clone() for S in trainee.pruner.scores()]
    for _, index in zip(range(3), train.batches_from(400, features, size.B, 0)):
        trainee.step(benchmark.data.collate(features, index))

    class FromStep400:
        def restore(self, model, pruner, optimizer, scheduler):
            scheduler.last_epoch = 399
            scheduler.step()
            return 400

        def step(self, t, loss, rates):
            if t == 402:
                raise StopIteration

    matrices = {} if method == "dense" else masking.encoder_matrices(model)
    pruner = masking.Pruner(matrices, method, 0.1, trainee.pruner.schedule)
    for S, start in zip(pruner.scores(), scores):
        S.data.copy_(start)
    s = {"freeze": None, "lr": 3e-5, "score_lr": 1e-2, "device": "cpu", "warmup": 0.1, "seed": 0,
         "compile": False, "batch_size": size.B, "grad_accum": 1, "precision": "fp32"}
    with pytest.raises(StopIteration):
        train.train(model, pruner, features, pruner.schedule, s, FromStep400())
    for before, a, b in zip(first, trainee.net.parameters(), model.parameters()):
        assert torch.equal(a, b)
        assert not a.requires_grad or not torch.equal(before, a)
