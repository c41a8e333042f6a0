"""Every setting of a run: the recipes, the flags of train.py, and what follows from both.

    python train.py --help        shows the flags; a run's run.json holds all resulting values
"""

import math
import os
from argparse import ArgumentTypeError
from dataclasses import asdict, dataclass, replace

import torch

import data
import masking
from sample import pretrain
from support import cli
from support.files import UserError

# oneDNN keeps a program for each shape it has met: with batches of all lengths, hundreds. It reads
# this at its first product, so before there is any model.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

DESCRIPTION = """Fine-prune BERT (Sanh, Wolf, Rush 2020).

  python train.py                                      movement pruning to 10 % on generated NLI
  python train.py --task mnli --method soft_movement --keep 0.03
  python train.py --task sst2 --method magnitude --data download --model bert-base-uncased"""

# ------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Recipe:
    """Settings of a run. warmup, hold and cooldown are shares of all steps.

    penalties: the paper's λ → the share of weights that remained with it; taught: the same of
    its runs with a teacher.
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
    taught: tuple[tuple[float, float], ...] = ()


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
            taught=((450, 0.095), (600, 0.060), (900, 0.028))),
        "l0": replace(MNLI, score_lr=1e-1, penalties=((50, 0.084), (100, 0.038)),
                      taught=((100, 0.104), (300, 0.031))),
        "": MNLI,
    },
    "qqp": {
        "dense": replace(QQP, lr=3e-5, epochs=3),
        "movement": QQP,
        "soft_movement": replace(
            QQP, penalties=((100, 0.131), (150, 0.076), (200, 0.049), (300, 0.027)),
            taught=((200, 0.109), (300, 0.071), (600, 0.032))),
        "l0": replace(QQP_FAST, penalties=((75, 0.081), (150, 0.026)),
                      taught=((150, 0.091), (300, 0.035))),
        "": replace(QQP, lr=3e-5),  # magnitude: the sheet says both 3e-5 and 3e-6
    },
    "squad": {
        "dense": replace(SQUAD, epochs=3),
        "soft_movement": replace(
            SQUAD, penalties=((500, 0.139), (800, 0.071), (1100, 0.040), (1400, 0.026)),
            taught=((500, 0.127), (800, 0.084), (1100, 0.062), (2000, 0.031))),
        "l0": replace(SQUAD, score_lr=1e-1, cooldown=0.098,
                      penalties=((175, 0.098), (600, 0.029)),
                      taught=((400, 0.090), (1200, 0.031))),
        "": SQUAD,
    },
}

# The small BERT on the sample: one grid of rates for every method, see results/README.md.
SMALL = Recipe(2, 32, 6e-4, 3e-2, 64, warmup=0.1, hold=0.2, cooldown=0.2)


def recipe_for(task: str, method: str, model: str) -> Recipe:
    if pretrain.is_small(model):
        recipe = SMALL if task == "mnli" else replace(
            SMALL, lr=3e-4, epochs=4 if task in ("sst2", "qqp") else 8)  # of fewer rows
        if task == "sst2":  # the loss stands still for a third of the steps: scores are noise there
            recipe = replace(recipe, hold=0.4)
        return replace(recipe, max_length=128, doc_stride=48) if task == "squad" else recipe
    # the paper has three tasks; the others take MNLI's settings, all but its λ
    own = PAPER.get(task, PAPER["mnli"])
    recipe = own.get(method, own[""])
    return recipe if task in PAPER else replace(recipe, penalties=(), taught=())


# ------------------------------------------------------------------- settings, before a run


def make_parser() -> cli.Parser:
    p = cli.Parser(description=DESCRIPTION, usage="train.py [--task TASK] [--method METHOD] "
                   "[--keep V] [more flags, all below]", add_help=False)
    a = p.add_argument_group("what").add_argument
    a("--task", choices=list(data.TASKS), metavar="TASK", default="mnli",
      help=", ".join(data.TASKS))
    a("--method", choices=list(masking.METHODS), metavar="METHOD", default="movement",
      help=", ".join(masking.METHODS))
    a("--keep", type=cli.number(0, 1), default=0.1, metavar="V",
      help="share of the encoder's weights that remains, above 0 to 1")
    a("--penalty", metavar="λ", help="soft_movement, l0: fixed in place of searched for; paper: "
      "its λ near --keep")
    a("--scope", choices=["local", "global"], default="local", metavar="SCOPE",
      help="local: rank scores matrix by matrix; global: all together")
    a = p.add_argument_group("data and model").add_argument
    a("--data", default="sample", metavar="DIR",
      help="sample (generated, default), download, or a folder with MNLI/, SQuAD/, …")
    a("--model", default="small", metavar="DIR",
      help="small (default), small:2x64, untrained, a folder, or bert-base-uncased, …")
    a("--max-train-rows", type=cli.count, metavar="N", help="draw N training rows (default all)")
    a("--max-eval-rows", type=cli.count, metavar="N",
      help="draw N rows of each evaluation file (default all)")
    a("--held-out", type=cli.number(0, 0.9), metavar="SHARE",
      help="evaluate on this share of the training rows instead, to choose settings")
    a("--max-length", type=cli.count, metavar="TOKENS", help="longest input (default: the recipe)")
    a("--doc-stride", type=cli.count, metavar="TOKENS",
      help="squad: step from window to window (default: the recipe)")
    a("--teacher", metavar="RUN", help="learn from this fine-tuned model too (a run's folder)")
    a("--alpha", type=cli.share, default=0.9, metavar="SHARE",
      help="the teacher's share of the loss")
    a("--temperature", type=cli.positive, default=2.0, metavar="T",
      help="softens teacher and student")
    a = p.add_argument_group("training (defaults: the recipe of task and model)").add_argument
    a("--epochs", type=cli.number(0, 1e6), metavar="N", help="passes over the training rows")
    a("--steps", type=cli.count, metavar="N", help="optimiser steps, in place of --epochs")
    a("--batch-size", type=cli.count, metavar="ROWS", help="rows of one optimiser step")
    a("--grad-accum", type=cli.count, default=1, metavar="N",
      help="work through a batch in N pieces, to save memory")
    a("--lr", type=cli.positive, metavar="RATE", help="peak learning rate of the weights")
    a("--score-lr", type=cli.positive, metavar="RATE", help="peak learning rate of the scores")
    a("--warmup", type=cli.share, metavar="SHARE", help="share of the steps in which rates rise")
    a("--hold", type=cli.share, metavar="SHARE", help="share of the steps before pruning starts")
    a("--cooldown", type=cli.share, metavar="SHARE", help="share of the steps at the final density")
    a("--freeze", choices=["weights"], metavar="weights",
      help="the matrices stay as pretrained; scores, biases, LayerNorms and head learn")
    a("--train-embeddings", action="store_true", help="they are frozen otherwise, as in the paper")
    a("--seed", type=cli.number(0, 2**32 - 1, int, open_low=False), default=0, metavar="N",
      help="of weights, masks and batches")
    a = p.add_argument_group("machine and output").add_argument
    a("--precision", choices=["auto", "fp32", "bf16"], default="auto", metavar="KIND",
      help="of matrix products: fp32, bf16, or auto, bf16 where it is fast")
    a("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", metavar="NAME",
      help="cpu, cuda, mps, or auto, the fastest there is")
    a("--compile", action="store_true", help="torch.compile the model (needs a compiler)")
    a("--output", metavar="DIR", help="default runs/TASK-METHOD-KEEP-sSEED")
    a("--overwrite", action="store_true", help="replace the run that the output folder holds")
    a("--resume", action="store_true", help="go on with an interrupted run, bit for bit")
    a("--save-every", type=cli.count, default=500, metavar="STEPS",
      help="from checkpoint to checkpoint")
    a("--dry-run", action="store_true", help="print what would be done, then stop")
    a("-h", "--help", action="help", help="show this")
    return p


def settings(args) -> dict:
    """Flags over recipe: every setting of the run, by its flag's name."""
    recipe = recipe_for(args.task, args.method, args.model)
    s = {k: v for k, v in vars(args).items() if k not in ("overwrite", "resume", "dry_run")}
    for name, value in asdict(recipe).items():
        if name not in ("penalties", "taught") and s.get(name) is None:
            s[name] = value
    s["train_embeddings"] |= pretrain.is_untrained(args.model)  # nothing there worth keeping
    s["penalty"] = choose_penalty(args, recipe)
    s["device"] = choose_device(args.device)
    if args.method == "dense":
        s["keep"] = 1.0
    return s


def choose_penalty(args, recipe: Recipe) -> float | None:
    if args.penalty is None:
        return None
    if not hasattr(masking.METHODS[args.method], "penalty"):
        raise UserError(f"--penalty: {args.method} has none; use --keep")
    if args.penalty != "paper":
        try:
            return cli.number(0, math.inf, open_low=False)(args.penalty)
        except ArgumentTypeError:
            raise UserError(f"--penalty {args.penalty}: a number of at least 0, or paper") from None
    known = recipe.taught if args.teacher else recipe.penalties
    if not known:
        raise UserError(f"--penalty paper: the paper has no λ for --task {args.task} with this "
                        "model; give a number, or --keep alone")
    return min(known, key=lambda p: abs(p[1] - args.keep))[0]


def choose_device(wanted: str) -> str:
    there = {"cpu": True, "cuda": torch.cuda.is_available(),
             "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(d for d in ("cuda", "mps", "cpu") if there[d])
    if not there[wanted]:
        raise UserError(f"--device {wanted}: this machine (or this build of torch) has none")
    return wanted


def choose_precision(wanted: str, device: str, width: int) -> tuple[str, str]:
    """→ (fp32 or bf16, why). Narrow matrices lose more to conversions than bf16 saves."""
    if wanted != "auto":
        return wanted, "as asked"
    if device.startswith("cuda"):
        good = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "the GPU has it") if good else ("fp32", "the GPU has no bf16")
    if device == "cpu":
        has = torch.cpu.get_capabilities()
        if not (has.get("avx512_bf16") or has.get("amx_bf16")):
            return "fp32", "the processor has no bf16 instructions"
        if width < 256:
            return "fp32", f"at width {width} bf16 saves nothing"
        return "bf16", "the processor has bf16 instructions"
    return "fp32", "the default here"


def make_schedule(s: dict, rows: int) -> masking.Schedule:
    """Shares → steps, entered in `s` too; a run whose ramp or cool-down rounds to nothing is
    refused."""
    per_epoch = math.ceil(rows / s["batch_size"])
    T = s["steps"] or max(1, round(s["epochs"] * per_epoch))
    t_i, t_f = round(s["hold"] * T), round(s["cooldown"] * T)
    if T - t_i - t_f < 1 or t_f < 1:
        raise UserError(
            f"{T} steps cannot hold the schedule: hold {s['hold']:g} is {t_i} steps, cool-down "
            f"{s['cooldown']:g} is {t_f}, which leaves {T - t_i - t_f} for the ramp; give more "
            "--steps or --epochs, or other --hold and --cooldown")
    s["steps"] = T
    return masking.Schedule(T, t_i, t_f)
