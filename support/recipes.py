"""Recipes: the settings of a run that its flags leave open, by task, method and model.

They are in recipes.toml. A run's run.json holds all resulting values; `python train.py … --dry-run`
shows the main ones.
"""

import math
import tomllib
from argparse import ArgumentTypeError
from dataclasses import dataclass, replace
from pathlib import Path

from support import cli
from support.files import UserError

TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Recipe:
    """Settings of a run. warmup, hold and cooldown are shares of all steps.

    penalties: pairs of the paper's λ and the share of weights that remained with it.
    teacher_penalties: the same for its runs with a teacher.
    """

    epochs: float
    batch_size: int
    lr: float
    score_lr: float
    max_length: int
    warmup: float
    hold: float
    cooldown: float
    doc_stride: int = 128
    penalties: tuple = ()
    teacher_penalties: tuple = ()


# What hard movement needs on real weights, see results/README.md: when it loses the task.
SHORTEST_HOLD = 800  # steps before pruning begins
STEEPEST = 0.0005  # share of the weights that one step may prune


def steepest_speed(schedule, keep: float) -> float:
    """Largest share of the weights that a step prunes: Eq. (5) is steepest where it begins."""
    return 3 * (1 - keep) / (schedule.T - schedule.t_i - schedule.t_f)


def recipe_for(task: str, method: str, small: bool) -> Recipe:
    """`small`: is the model the small BERT, and not one with real pretrained weights?"""
    paper = TABLES["paper"]
    table, part = (TABLES["small"], task) if small else (paper.get(task, paper["mnli"]), method)
    values = table | table.get(part, {})
    recipe = Recipe(**{name: value for name, value in values.items() if type(value) is not dict})
    # the paper has three tasks; the others take MNLI's settings, except its λ
    return recipe if task in paper else replace(recipe, penalties=(), teacher_penalties=())


def for_few_rows(recipe: Recipe, given: dict, inputs: int, keep: float) -> Recipe:
    """The recipe, with more epochs and other shares where `inputs` training inputs would make its
    run too short to prune slowly and late enough. `given`: what flags decide in the recipe's place.
    """
    def steps_needed(recipe: Recipe) -> float:
        ramp = max(1e-3, 1 - recipe.hold - recipe.cooldown)  # a share of the steps
        slowly = 3 * (1 - keep) / STEEPEST / ramp
        return slowly if "hold" in given else max(slowly, SHORTEST_HOLD / recipe.hold)

    recipe = replace(recipe, **given)
    if recipe.epochs * inputs / recipe.batch_size >= steps_needed(recipe):
        return recipe
    recipe = replace(recipe, **{"warmup": 0.05, "hold": 0.2, "cooldown": 0.2} | given)
    return replace(recipe, epochs=math.ceil(steps_needed(recipe) * recipe.batch_size / inputs))


def choose_penalty(asked: str | None, recipe: Recipe, keep: float, with_teacher: bool,
                   penalised: bool) -> float | None:
    """The fixed λ that --penalty asks for, a number or "paper"; None where it gives none.

    keep, with_teacher: which of the paper's λ is meant; penalised: does the method have a penalty?
    """
    if asked is None:
        return None
    if not penalised:
        raise UserError("--penalty: only soft_movement and l0 have one; use --keep")
    if asked != "paper":
        try:
            return cli.number(0, 1e6, open_low=False)(asked)
        except ArgumentTypeError:
            raise UserError(f"--penalty {asked}: a number from 0 to 1e6, or paper") from None
    known = recipe.teacher_penalties if with_teacher else recipe.penalties
    if not known:
        raise UserError("--penalty paper: the paper has no λ for this task and model; give a "
                        "number, or --keep alone")
    return min(known, key=lambda pair: abs(pair[1] - keep))[0]
