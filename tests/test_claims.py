"""tools.claims: what it measures, by hand; verdicts that follow the numbers; one whole run."""

from functools import partial

import numpy as np
import pytest
from tiny import SAMPLE, check_refused

import masking
from support.files import UserError
from tools import anatomy, claims, rows


def made(method, W, M, W0=None, S=None, densities=(None,), **metrics):
    """A finished run whose matrices are all alike; `densities`: of each layer, instead of M."""
    def part(layer, name):
        share = densities[layer]
        mask = M if share is None else np.arange(W.size).reshape(W.shape) < W.size * share
        return anatomy.Part(layer, name, W, mask, W if W0 is None else W0, S)

    parts = [part(layer, name) for layer in range(len(densities))
             for name in anatomy.MATRICES.values()]
    return anatomy.Anatomy(method, method, parts, 1, len(densities), metrics)


def test_a_swap_by_hand():
    """One weight switched on and one off: to first order L changes by the sum of (dL/dW') W."""
    assert claims.one_step(masking.Movement(), seed=0, rate=0.0) == (0, 0.0, 0.0)
    steps = [claims.one_step(masking.Movement(), seed, rate=0.5) for seed in range(100)]
    assert all(changed % 2 == 0 for changed, _, _ in steps)  # one on, one off
    first, true = np.array([step[1:] for step in steps if step[0]]).T
    assert len(first) > 3 and (first < 0).all()
    assert np.median(abs(true - first)) < np.median(abs(first))


def test_swaps_by_absolute_scores_fail(monkeypatch):
    assert claims.swap(trials=60).holds
    monkeypatch.setitem(claims.METHODS, "S > τ", claims.Absolute())
    assert not claims.swap(trials=60).holds


W = np.linspace(-2, 2, 36, dtype=np.float32).reshape(6, 6)
LARGE, ALL = np.abs(W) > 1, np.ones(W.shape, bool)
run = partial(made, W=W, M=LARGE)


def at(keep, magnitude, movement):
    """The two methods' runs with these accuracies."""
    return [run(method, metrics={"accuracy": accuracy}, eval_rows=1000, density=keep, steps=9)
            for method, accuracy in (("magnitude", magnitude), ("movement", movement))]


CASES = {  # claim: (runs with which it holds, runs with which it does not)
    "close": ([made("dense", W + 0.01, ALL, W)], [made("dense", W + 1, ALL, W)]),
    "early": ([run("magnitude", keep=0.5), made("movement", W, ~LARGE, keep=0.5)],
              [run("magnitude", keep=0.5), run("movement", keep=0.5)]),
    "crossover": (at(0.7, 90, 80) + at(0.03, 60, 70), at(0.7, 90, 90) + at(0.03, 60, 70)),
    "shape": ([run("movement", S=np.abs(W))], [run("movement", S=-np.abs(W))]),
    "layers": ([run("magnitude", densities=[0.5, 0.5]), run("movement", densities=[0.9, 0.1])],
               [run("magnitude", densities=[0.5, 0.5]), run("movement", densities=[0.5, 0.5])]),
}


@pytest.mark.parametrize("name", [name for name, (_, needs) in claims.CLAIMS.items() if needs])
def test_the_verdict_follows_the_numbers(name):
    judge, needs = claims.CLAIMS[name]
    for runs, holds in zip(CASES[name], (True, False)):
        assert len(runs) == len(needs)
        verdict = judge(*runs)
        assert verdict.holds is holds
        text = claims.report(name, verdict)
        assert "Holds if" in text and ("does not hold here" in text) is not holds


def test_accuracies_are_compared_and_nothing_else():
    assert claims.accuracy(run("movement", metrics={"accuracy": 80, "f1": 40}, eval_rows=100)) == (
        80, pytest.approx(4))
    with pytest.raises(UserError, match="cola has none"):
        claims.accuracy(run("movement", metrics={"matthews_correlation": -3}, task="cola"))


def test_foreseen_by_hand():
    """Of four weights kept in each of six matrices, three are among the four largest."""
    W0 = np.array([[4, 3, 2, 1], [0.1, 0.2, 0.3, 0.4]], np.float32)
    M = np.array([[1, 1, 1, 0], [0, 0, 0, 1]], bool)
    assert claims.foreseen(made("magnitude", W0, M)) == (18, 24)


def test_bands_by_hand():
    S = np.array([[2.0, 0.0, 0.0, 0.0, 2.0]], np.float32)
    a = made("movement", np.array([[-2, -1, 0, 1, 2]], np.float32), np.ones((1, 5), bool), S=S)
    assert claims.bands(a) == pytest.approx(S[0] / S.std())


def test_runs_are_made_once_and_looked_at_again(sample_run, command, tmp_path):
    words = ("tools.claims", "--claims", "close,swap,shape", "--output", tmp_path, *SAMPLE,
             "--model", sample_run[0], "--csv", tmp_path / "claims.csv")
    first, again = command(*words), command(*words)
    assert "of 3 claims hold here" in first.succeeded()
    assert (first.stdout.count("[1/1] "), again.succeeded().count("[1/1] ")) == (2, 0)
    said = [line for line in first.stdout.splitlines() if not line.startswith("[1/1] ")]
    assert said[:-1] == again.stdout.splitlines()[:-1]  # without the seconds
    kept = rows.read(tmp_path / "claims.csv")
    assert len(kept) == 3 and kept[1]["where"] == "small random networks"
    assert kept[0]["where"].startswith("mnli, ") and kept[0]["where"].endswith(" steps")
    assert all(row["verdict"] in ("holds", "does not hold") for row in kept)
    assert kept[0]["measured"].split("; ")[0] in first.stdout
    assert all(row["measured"] for row in kept) and str(tmp_path) not in kept[0]["command"]


def test_verdicts_are_kept_beside_earlier_ones(command, tmp_path):
    path = tmp_path / "claims.csv"
    words = ("tools.claims", "--claims", "swap", "--csv", path)
    path.write_text("claim,where,extra\nmine,here,x\n")
    command(*words).succeeded()
    first, _ = rows.read(path)
    assert (first["claim"], first["extra"]) == ("mine", "x")
    path.write_text(path.read_text() + "damaged\n")
    check_refused(command(*words), "claims.csv:4: not as many cells as the header")


@pytest.mark.parametrize("words, steps, epochs", [
    ("", 600, 2), ("--steps 7", 7, 2), ("--epochs 3", None, 3), ("--epochs=3 --steps 7", 7, 3)])
def test_runs_are_as_long_as_asked(words, steps, epochs, command, monkeypatch, tmp_path):
    planned = []
    monkeypatch.setattr(claims.sweep, "carry_out", lambda runs, *_: planned.extend(runs) or 1)
    done = command("tools.claims", "--claims", "close", "--output", tmp_path, *words.split())
    check_refused(done, "1 of the runs that this claim needs failed", status=1)
    [run] = planned
    assert (run.settings["steps"], run.settings["epochs"]) == (steps, epochs)
