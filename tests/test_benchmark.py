"""The benchmark runs, and times the very steps that training takes."""

import json

import pytest
import torch

import masking
from tools import benchmark

TINY = benchmark.Size(2, 64, 8, 16)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(benchmark, "QUICK", TINY)


def test_quick_run(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["b", "--quick", "--json", str(tmp_path / "b.json")])
    benchmark.main()
    result, said = json.loads((tmp_path / "b.json").read_text()), capsys.readouterr().out
    assert set(result["ratios"]) == set(masking.METHODS) - {"dense"}
    assert result["machine"] in said and result["threads"] >= 1
    for row in result["rows"]:
        assert row["name"] in said and row["low"] <= row["ratio"] <= row["high"]
        assert sum(row["stages"].values()) == pytest.approx(row["ms"], rel=0.5)
    assert "theirs" in result["skipped"] or set(result["theirs"]) == {"dense", "movement"}
    assert {"methods", "original"} <= {row["part"] for row in result["rows"]}


def test_memory_is_measured_in_processes_of_their_own(monkeypatch):
    monkeypatch.setattr(masking, "METHODS", {"dense": masking.Dense})
    [row] = benchmark.Bench("cpu", (TINY,), rounds=1).memory()
    assert row["bytes"] > 1e7 and row["ratio"] == 1.0


def test_unknown_part_is_named(command):
    done = command("tools.benchmark", "--parts", "method")
    assert done.returncode == 2 and "did you mean methods?" in done.stderr


@pytest.mark.parametrize("method", masking.METHODS)
def test_steps_train(method):
    """Weights move, masks are those of the schedule, and every stage is timed."""
    trainee = benchmark.Trainee(TINY, method, "fp32", "cpu")
    before = [p.clone() for p in trainee.model.parameters() if p.requires_grad]
    stages = trainee.step(3)
    after = [p for p in trainee.model.parameters() if p.requires_grad]
    assert not any(torch.equal(a, b) for a, b in zip(before, after))
    assert set(stages) >= {"masks", "gradients", "optimiser"} and min(stages.values()) > 0
    if trainee.pruner.method.ranked:
        keep = benchmark.SCHEDULE.keep(benchmark.BEGIN + 2, 0.1)
        assert trainee.pruner.density() == pytest.approx(keep, abs=1e-3)


def test_the_originals_way_computes_the_same():
    """The same output and gradients as the Pruner's, for the same scores and density."""
    size = TINY
    trainee = benchmark.Trainee(size, "movement", "fp32", "cpu")
    torch.manual_seed(0)
    theirs = benchmark.as_the_original(size.config).eval()
    ours = trainee.model.eval()
    ours.load_state_dict({n: x for n, x in theirs.state_dict().items() if n[-2:] != ".S"})
    for m in trainee.pruner.matrices:
        m.W.data.copy_(theirs.get_parameter(m.name))
        m.S.data.copy_(theirs.get_parameter(m.name.replace(".weight", ".S")))
    trainee.pruner.set_masks(benchmark.BEGIN)
    ids = torch.arange(16).view(2, 8) + 1
    outputs = [model(ids, torch.ones_like(ids), ids * 0) for model in (ours, theirs)]
    assert torch.allclose(*outputs, atol=1e-6)
    for output in outputs:
        output.square().sum().backward()
    trainee.pruner.set_gradients(benchmark.BEGIN)
    for m in trainee.pruner.matrices:
        assert torch.allclose(m.W.grad, theirs.get_parameter(m.name).grad, atol=1e-6)
        S = theirs.get_parameter(m.name.replace(".weight", ".S"))
        assert torch.allclose(m.S.grad, S.grad, atol=1e-6)
