"""Recipes: the settings of a run that its flags leave open, by task, method and model.

A run's run.json holds all resulting values; `python train.py … --dry-run` shows the main ones.
"""

import math
from argparse import ArgumentTypeError
from dataclasses import dataclass, replace

from support import cli
from support.files import UserError


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
    penalties: tuple[tuple[float, float], ...] = ()
    teacher_penalties: tuple[tuple[float, float], ...] = ()


# The paper's settings, from its authors' result sheet; one warm-up is about one epoch. Its dense
# models and teachers had 3 epochs at 3e-5.
MNLI = Recipe(6, 32, 3e-5, 1e-2, 128, warmup=0.163, hold=0.163, cooldown=0.163)
QQP = Recipe(10, 32, 3e-6, 1e-2, 128, warmup=0.097, hold=0.194, cooldown=0.291)
QQP_FAST = replace(QQP, lr=3e-5, hold=0.097, cooldown=0.097)
SQUAD = Recipe(10, 16, 3e-5, 1e-2, 384, warmup=0.098, hold=0.098, cooldown=0.196)
PAPER = {
    "mnli": {
        "dense": replace(MNLI, epochs=3),
        "soft_movement": replace(
            MNLI, penalties=((200, 0.128), (300, 0.059), (400, 0.031)),
            teacher_penalties=((450, 0.095), (600, 0.060), (900, 0.028))),
        "l0": replace(MNLI, score_lr=1e-1, penalties=((50, 0.084), (100, 0.038)),
                      teacher_penalties=((100, 0.104), (300, 0.031))),
        "": MNLI,
    },
    "qqp": {
        "dense": replace(QQP, lr=3e-5, epochs=3),
        "movement": QQP,
        "soft_movement": replace(
            QQP, penalties=((100, 0.131), (150, 0.076), (200, 0.049), (300, 0.027)),
            teacher_penalties=((200, 0.109), (300, 0.071), (600, 0.032))),
        "l0": replace(QQP_FAST, penalties=((75, 0.081), (150, 0.026)),
                      teacher_penalties=((150, 0.091), (300, 0.035))),
        "": replace(QQP, lr=3e-5),  # magnitude: the sheet says both 3e-5 and 3e-6
    },
    "squad": {
        "dense": replace(SQUAD, epochs=3),
        "soft_movement": replace(
            SQUAD, penalties=((500, 0.139), (800, 0.071), (1100, 0.040), (1400, 0.026)),
            teacher_penalties=((500, 0.127), (800, 0.084), (1100, 0.062), (2000, 0.031))),
        "l0": replace(SQUAD, score_lr=1e-1, cooldown=0.098,
                      penalties=((175, 0.098), (600, 0.029)),
                      teacher_penalties=((400, 0.090), (1200, 0.031))),
        "": SQUAD,
    },
}

# The small BERT on the sample: one grid of rates for every method, see results/README.md.
SMALL = Recipe(2, 32, 6e-4, 3e-2, 64, warmup=0.1, hold=0.2, cooldown=0.2)


def recipe_for(task: str, method: str, small: bool) -> Recipe:
    """`small`: is the model the small BERT, and not one with real pretrained weights?"""
    if small:
        recipe = SMALL if task == "mnli" else replace(
            SMALL, lr=3e-4, epochs=4 if task in ("sst2", "qqp") else 8)  # they have fewer rows
        if task == "sst2":  # its loss stands still for a third of the steps: scores are noise there
            recipe = replace(recipe, hold=0.4)
        return replace(recipe, max_length=128, doc_stride=48) if task == "squad" else recipe
    # the paper has three tasks; the others take MNLI's settings, except its λ
    by_method = PAPER.get(task, PAPER["mnli"])
    recipe = by_method.get(method, by_method[""])
    return recipe if task in PAPER else replace(recipe, penalties=(), teacher_penalties=())


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
            return cli.number(0, math.inf, open_low=False)(asked)
        except ArgumentTypeError:
            raise UserError(f"--penalty {asked}: a number of at least 0, or paper") from None
    known = recipe.teacher_penalties if with_teacher else recipe.penalties
    if not known:
        raise UserError("--penalty paper: the paper has no λ for this task and model; give a "
                        "number, or --keep alone")
    return min(known, key=lambda pair: abs(pair[1] - keep))[0]
