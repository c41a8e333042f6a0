"""λ: the paper's, the search for one, and the density that a run ends with."""

from argparse import Namespace

import pytest
import torch

import bert
import train
from masking import L0, Schedule, SoftMovement
from support import recipes, report
from support.penalty import PenaltySearch


@pytest.mark.parametrize("keep, taught, penalty", [
    (0.1, False, 200), (0.03, False, 400), (0.03, True, 900)])
def test_the_papers_penalty_nearest_to_keep(keep, taught, penalty):
    recipe = recipes.recipe_for("mnli", "soft_movement", small=False)
    assert recipes.choose_penalty("paper", recipe, keep, taught, True) == penalty


@pytest.mark.parametrize("method", [SoftMovement(), L0()])
def test_a_search_goes_on_in_the_cool_down_as_it_was(method):
    scores, schedule = [torch.linspace(-1, 1, 1000)], Schedule(10, 1, 4)
    search, twin = (PenaltySearch(method, 0.1, schedule, lambda t: 0.1) for _ in range(2))
    for t in range(7):
        before = search.update(t, scores, 1e-3)
    twin.load_state_dict(search.state_dict())
    assert twin.update(7, scores, 1e-3) == search.update(7, scores, 1e-3) == before > 0


def test_the_search_knows_the_scores_rate():
    model = bert.create(bert.Config(50, 8, 1, 2, 16, 32), "classification", 3)
    settings = train.Settings(method="l0", lr=3e-5, score_lr=1e-2, steps=10, warmup=0.1,
                              device="cpu")
    search = train.make_pruner(model, settings, Schedule(10, 1, 1)).search
    assert [search.score_lr(t) for t in (0, 1, 10)] == [0, 1e-2, 0]


def test_the_sample_of_scores_has_all_columns():
    """2^20 scores, of which every 8th would be read: the 1s are in every 8th column."""
    S = (torch.arange(1024) % 8 == 0).float().repeat(1024, 1)
    search = PenaltySearch(L0(), 0.25, Schedule(10, 0, 9), lambda t: 0.1)
    assert search.quantile([S]) == 0.0 and search.quantile([1 - S]) == 1.0


@pytest.mark.parametrize("keep, density, hit", [
    (0.1, 0.1049, True), (0.1, 0.0949, False), (0.03, 0.0319, True), (0.03, 0.0321, False)])
def test_a_missed_density_is_said(keep, density, hit, capsys):
    pruner, settings = Namespace(prunes=True, method=L0()), Namespace(
        keep=keep, penalty=None, method="l0")
    assert report.check_target(pruner, settings, density) is hit
    assert ("WARNING" in capsys.readouterr().out) is not hit
