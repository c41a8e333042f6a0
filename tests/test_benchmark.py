"""The benchmark runs, and times the very step that training does."""

import copy
import json

import pytest
import torch

import benchmark
import masking
import train


def test_quick_run(command, tmp_path):
    done = command("benchmark.py", "--quick", "--json", tmp_path / "b.json")
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
    done = command("benchmark.py", "--parts", "method")
    assert done.returncode == 2 and "did you mean methods?" in done.stderr


@pytest.mark.parametrize("method", ["dense", *benchmark.METHODS])
def test_its_step_is_trainings_step(method, monkeypatch):
    """Same model, same batches: train.train and the benchmark end with the same weights."""
    size = benchmark.TINY
    trainee = benchmark.Trainee(size, method, "fp32", "cpu")
    features = benchmark.random_rows(torch.full((size.B,), size.T).numpy(), 500)
    trainee.net.eval().train = lambda: None  # without dropout
    model = copy.deepcopy(trainee.net)
    for _ in range(3):
        trainee.step(benchmark.data.collate(features, range(size.B)))

    class Silent:
        def restore(self, *parts):
            return 400

        def step(self, t, loss, rates):
            if t == 402:
                raise StopIteration

    matrices = {} if method == "dense" else masking.encoder_matrices(model)
    pruner = masking.Pruner(matrices, method, 0.1, trainee.pruner.schedule)
    s = {"freeze": None, "lr": 3e-5, "score_lr": 1e-2, "device": "cpu", "warmup": 0.1, "seed": 0,
         "compile": False, "batch_size": size.B, "grad_accum": 1, "precision": "fp32"}
    ours = [model.get_parameter(name) for name in dict(model.named_parameters())]
    with pytest.raises(StopIteration):
        train.train(model, pruner, features, pruner.schedule, s, Silent())
    for a, b in zip(trainee.net.parameters(), ours):
        assert torch.allclose(a, b, atol=1e-7)
