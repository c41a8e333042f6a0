"""The guide's pictures are drawn from the code's own numbers."""

import numpy as np
import pytest
from conftest import ROOT
from tiny import SAMPLE

pytest.importorskip("matplotlib")
from PIL import Image

from tools import pictures


@pytest.mark.parametrize("name, file", [
    ("step", "guide-step"), ("schedule", "guide-schedule"), ("gate", "guide-gate"),
    ("search", "guide-search"), ("growth", "benchmark-growth")])
def test_still_pictures(name, file, command, tmp_path):
    command("tools.pictures", "--only", name, "--output", tmp_path).succeeded()
    assert Image.open(tmp_path / f"{file}.png").width > 900


def test_an_unknown_picture_is_named(command, tmp_path):
    done = command("tools.pictures", "--only", "steps", "--output", tmp_path)
    assert done.returncode == 2 and "did you mean step?" in done.stderr


def test_q_travels_to_the_bar():
    search, seen = pictures.search_for_penalty()
    assert seen[0]["q"] == 0.0 and seen[-1]["density"] == pytest.approx(0.1, abs=0.01)
    assert seen[-1]["q"] == pytest.approx(search.method.kept_above, abs=0.1)
    half = (search.schedule.t_i + search.schedule.T - search.schedule.t_f) // 2
    assert search.method.kept_above < seen[half]["q"] < -0.5 and seen[half]["density"] > 0.4


def test_snapshots_are_of_the_whole_run(cache):
    film = pictures.snapshots(3, "--method", "magnitude", "--keep", "0.03", *SAMPLE)
    first, middle, last = (v for v, *_ in film)
    assert first == 1.0 > middle > last == pytest.approx(0.03, abs=1e-3)
    weights, kept = film[-1][1:]
    assert np.abs(weights[kept]).mean() > 2 * np.abs(weights[~kept]).mean()
    assert not np.array_equal(film[0][1], weights)


def test_the_film(tmp_path, monkeypatch):
    W = np.linspace(-0.2, 0.2, 100)
    monkeypatch.setattr(pictures, "snapshots", lambda count, *words: [
        (1 - t / count, W * (1 + t / 9), abs(W) >= 0.2 * t / count) for t in range(count)])
    pictures.draw_run(tmp_path, 3)
    film = Image.open(tmp_path / "guide-run.gif")
    film.seek(2)  # shown until the end
    assert film.n_frames == 3 and len(film.convert("RGB").getcolors(10_000)) > 10
    assert (tmp_path / "guide-run.png").exists()
    assert (ROOT / "figures" / "guide-run.gif").stat().st_size < 2_000_000
