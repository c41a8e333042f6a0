"""The paper's settings as this project's recipes, and the matrices that they prune."""

import math
from argparse import Namespace

import pytest
import torch

import bert
import masking
from support import recipes, report


def test_the_matrices_to_prune_are_the_papers():
    """Six of each of BERT-base's layers, 85 million weights, and nothing else."""
    with torch.device("meta"):
        model = bert.create(bert.Config(), "classification", 3)
    matrices = masking.encoder_matrices(model)
    assert len(matrices) == 72
    assert sum(W.numel() for W in matrices.values()) == 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert all(W.dim() == 2 for W in matrices.values())
    left = {name for name, _ in model.named_parameters()} - set(matrices)
    assert all("embeddings" in n or "pooler" in n or n.startswith("classifier")
               or n.endswith("bias") or "norm" in n.lower() for n in left), left


@pytest.mark.parametrize("task, method, batch, epochs, warm, lr, score_lr, hold, cooldown", [
    # steps of an epoch × epochs, and multiples of the warm-up, as the authors' sheet has them
    ("squad", "movement", 16, 10, 5_400 / 55_000, 3e-5, 1e-2, 1, 2),
    ("squad", "l0", 16, 10, 5_400 / 55_000, 3e-5, 1e-1, 1, 1),
    ("mnli", "soft_movement", 32, 6, 12_000 / 73_632, 3e-5, 1e-2, 1, 1),
    ("mnli", "l0", 32, 6, 12_000 / 73_632, 3e-5, 1e-1, 1, 1),
    ("qqp", "movement", 32, 10, 11_000 / 113_702, 3e-6, 1e-2, 2, 3),
    ("qqp", "l0", 32, 10, 11_000 / 113_702, 3e-5, 1e-2, 1, 1),
])
def test_the_papers_recipes(task, method, batch, epochs, warm, lr, score_lr, hold, cooldown):
    r = recipes.recipe_for(task, method, small=False)
    assert (r.batch_size, r.epochs, r.lr, r.score_lr) == (batch, epochs, lr, score_lr)
    assert (r.warmup, r.hold, r.cooldown) == pytest.approx(
        (warm, hold * warm, cooldown * warm), rel=0.03)
    assert (r.max_length, r.doc_stride) == ((384, 128) if task == "squad" else (128, 128))


@pytest.mark.parametrize("inputs", [635, 2_490, 67_349, 392_702])
def test_a_task_with_few_rows_is_pruned_late_and_slowly_enough(inputs):
    recipe = recipes.recipe_for("mnli", "movement", small=False)
    longer = recipes.for_few_rows(recipe, {}, inputs, keep=0.03)
    T = longer.epochs * math.ceil(inputs / longer.batch_size)
    schedule = masking.Schedule(T, round(longer.hold * T), round(longer.cooldown * T))
    assert schedule.t_i >= 800 and recipes.steepest_speed(schedule, 0.03) <= 0.0005
    assert (longer == recipe) == (inputs > 10_000)


@pytest.mark.parametrize("given", [
    {"batch_size": 128}, {"batch_size": 8}, {"hold": 0.5}, {"hold": 0.0, "cooldown": 0.4}])
def test_a_longer_run_goes_by_the_flags_that_are_given(given):
    recipe = recipes.recipe_for("rte", "movement", small=False)
    longer = recipes.for_few_rows(recipe, given, 2_490, keep=0.03)
    assert {name: getattr(longer, name) for name in given} == given
    T = longer.epochs * math.ceil(2_490 / longer.batch_size)
    schedule = masking.Schedule(T, round(longer.hold * T), round(longer.cooldown * T))
    assert 0.00045 < recipes.steepest_speed(schedule, 0.03) <= 0.0005
    assert schedule.t_i >= 800 or "hold" in given


def test_the_papers_penalties_are_those_of_its_tasks_alone():
    of_mnli, of_mine = (recipes.recipe_for(task, "soft_movement", small=False)
                        for task in ("mnli", "mine"))
    assert of_mnli.penalties and not of_mine.penalties and of_mine.lr == of_mnli.lr


@pytest.mark.parametrize("lr, steps, hold, warned", [
    (2e-4, 12_000, 0.2, ()), (2e-4, 9800, 0.2, ()), (5e-5, 2000, 0.2, ("0.24 %", "step 400")),
    (5e-5, 6000, 0.2, ("0.08 %",)), (1e-4, 2000, 0.5, ("0.48 %", "rate is 0.0001")),
    (2e-4, 8000, 0.05, ("step 400", "rate is 0.0002")), (5e-5, 8400, 0.0951, ("step 799",))])
def test_what_is_known_to_lose_the_task_is_announced(lr, steps, hold, warned, capsys):
    schedule = masking.Schedule(steps, round(hold * steps), round(0.2 * steps))
    report.warn_of_collapse(Namespace(method="movement", keep=0.03, lr=lr), schedule)
    said = capsys.readouterr().out
    assert all(reason in said for reason in warned)
    assert bool(said) == bool(warned) and said.count("; ") == max(0, len(warned) - 1)


def test_the_steepest_speed_is_that_of_the_schedule():
    schedule = masking.Schedule(1000, 200, 100)
    speeds = [schedule.keep(t, 0.03) - schedule.keep(t + 1, 0.03) for t in range(1000)]
    assert max(speeds) == pytest.approx(recipes.steepest_speed(schedule, 0.03), rel=0.01)
