"""claims.py: what it counts, by hand; verdicts that turn with the numbers; and one whole run."""

from functools import partial

import numpy as np
import pytest

import masking
from tools import anatomy, claims

NAMES = list(anatomy.MATRICES.values())


def made(method, W, M, W0=None, S=None, densities=None, **metrics):
    """A finished run whose matrices are all alike; `densities`: of each layer, in place of M."""
    def part(layer, name):
        own = M if densities is None else np.arange(W.size).reshape(W.shape) < W.size * densities[
            layer]
        return anatomy.Part(layer, name, W, own, W if W0 is None else W0, S)

    parts = [part(layer, name) for layer in range(len(densities or [0])) for name in NAMES]
    return claims.Trained(anatomy.Anatomy(f"{method}", method, parts, heads=1), metrics)


def test_a_swap_by_hand():
    """One weight switched on and one off: to first order L changes by the sum of (dL/dW') W."""
    changed, first, true = claims.one_step(masking.Movement(), seed=0, rate=0.0)
    assert (changed, first, true) == (0, 0.0, 0.0)
    steps = [claims.one_step(masking.Movement(), seed, rate=0.5) for seed in range(100)]
    moved = [(first, true) for changed, first, true in steps if changed]
    assert len(moved) > 3 and all(changed % 2 == 0 for changed, _, _ in steps)  # one on, one off
    assert all(first < 0 for first, _ in moved)
    errors = [abs(true - first) for first, true in moved]
    assert np.median(errors) < np.median([abs(first) for first, _ in moved])


def test_swaps_by_absolute_scores_fail(monkeypatch):
    found = claims.swap(trials=60)
    assert found.holds
    monkeypatch.setitem(claims.MASKS, "S > τ", claims.Absolute())
    assert not claims.swap(trials=60).holds


W = np.linspace(-2, 2, 36, dtype=np.float32).reshape(6, 6)
LARGE = np.abs(W) > 1
ALL = np.ones(W.shape, bool)
V, HILL = np.abs(W), -np.abs(W)
run = partial(made, W=W, M=LARGE)


def score(accuracy, keep):
    return {"metrics": {"accuracy": accuracy}, "eval_rows": 1000, "density": keep, "steps": 9}


CASES = {  # claim: (the runs with which it holds, those with which it does not)
    "close": ([made("dense", W + 0.01, ALL, W)], [made("dense", W + 1, ALL, W)]),
    "early": ([run("magnitude", keep=0.5), made("movement", W, ~LARGE, keep=0.5)],
              [run("magnitude", keep=0.5), run("movement", keep=0.5)]),
    "crossover": ([run("magnitude", **score(90, 0.7)), run("movement", **score(80, 0.7)),
                   run("magnitude", **score(60, 0.03)), run("movement", **score(70, 0.03))],
                  [run("magnitude", **score(90, 0.7)), run("movement", **score(90, 0.7)),
                   run("magnitude", **score(60, 0.03)), run("movement", **score(70, 0.03))]),
    "shape": ([run("movement", S=V)], [run("movement", S=HILL)]),
    "layers": ([run("magnitude", densities=[0.5, 0.5]), run("movement", densities=[0.9, 0.1])],
               [run("magnitude", densities=[0.5, 0.5]), run("movement", densities=[0.5, 0.5])]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_follows_the_numbers(name):
    for runs, holds in zip(CASES[name], (True, False)):
        found = claims.CLAIMS[name].judge(*runs)
        assert found.holds is holds
        said = claims.report(name, found)
        assert ("does not hold here" in said) is not holds


def test_the_table_above_has_every_claim_that_looks_at_runs():
    assert set(CASES) == {name for name, claim in claims.CLAIMS.items() if claim.needs}
    assert all(len(CASES[name][0]) == len(claims.CLAIMS[name].needs) for name in CASES)


def test_foreseen_by_hand():
    """Of four weights kept in each of six matrices, three are among the four largest."""
    W0 = np.array([[4, 3, 2, 1], [0.1, 0.2, 0.3, 0.4]], np.float32)
    M = np.array([[1, 1, 1, 0], [0, 0, 0, 1]], bool)
    assert claims.foreseen(made("magnitude", W0, M).anatomy) == (18, 24)


def test_bands_by_hand():
    S = np.array([[2.0, 0.0, 0.0, 0.0, 2.0]], np.float32)
    a = made("movement", np.array([[-2, -1, 0, 1, 2]], np.float32), np.ones((1, 5), bool), S=S)
    assert claims.bands(a.anatomy) == pytest.approx(S[0] / S.std())


def test_runs_are_made_once_and_looked_at_again(command, tmp_path):
    flags = ("--max-train-rows", 64, "--max-eval-rows", 16, "--steps", 10, "--max-length", 32)
    start = tmp_path / "start"
    assert command("train.py", "--model", "untrained:1x32", *flags, "--output",
                   start).returncode == 0
    words = ("tools.claims", "--claims", "close,shape", "--output", tmp_path / "runs", *flags,
             "--model", start)
    first, again = command(*words), command(*words)
    assert first.returncode == again.returncode == 0, first.stderr
    assert "of 2 claims hold here" in first.stdout
    assert first.stderr.count("training ") == 2 and "training " not in again.stderr
    lines = [text.split(" · ")[0] for text in (first.stdout, again.stdout)]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("words, said", [
    (["--claims", "shap"], "shape"), (["--method", "l0"], "--method"), (["7"], "7")])
def test_wrong_words_are_refused(words, said, command, tmp_path):
    tiny = ("--max-train-rows", 32, "--max-eval-rows", 8, "--steps", 2, "--max-length", 32)
    done = command("tools.claims", *words, "--output", tmp_path / "runs", *tiny)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
