"""Fine-prune BERT: the one training loop and the command around it (Sanh, Wolf, Rush 2020).

    python train.py --task mnli --method movement       generated sample, small BERT
    python train.py --task sst2 --teacher RUN --data download --model bert-base-uncased

Data flows one way: rows → features → batches → model (and masks) → loss → step → metrics → folder.
"""

import itertools
import math
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import bert
import data
import distill
import evaluate
import masking
from sample import pretrain
from support import checkpoints, cli, own, parallel, recipes, report, squad, state
from support.files import UserError, run_main, write_atomically
from support.penalty import PenaltySearch

# --------------------------------------------------------------------------------- settings


def flag(default, help: str, group: str | None = None, **options):
    """A field of Settings that is a flag too; `options` and `group` are argparse's."""
    options = {"action": "store_true"} if default is False else options
    return field(default=default, metadata={"group": group, "help": help, **options})


SHARE, COUNT = {"type": cli.share, "metavar": "SHARE"}, {"type": cli.count, "metavar": "N"}
TOKENS, RATE = COUNT | {"metavar": "TOKENS"}, {"type": cli.positive, "metavar": "RATE"}
SCOPES = {"choices": ["local", "global"], "metavar": "SCOPE"}
DEVICES = {"choices": ["auto", "cpu", "cuda", "mps"], "metavar": "NAME"}
PRECISIONS = {"choices": ["auto", "fp32", "bf16"], "metavar": "KIND"}


@dataclass(frozen=True)
class Settings:
    """Every setting of a run, with its flag; where None, the recipe or the data decides."""

    task: str = flag("mnli", ", ".join(data.TASKS) + ", or your own: a folder of --data with "
                     "train.tsv and dev.tsv", "what", metavar="TASK")
    method: str = flag("movement", ", ".join(masking.METHODS) + ", or your own, FILE.py:Class",
                       metavar="METHOD")
    keep: float = flag(0.1, "share of the pruned matrices' weights that remain, in (0, 1]",
                       type=cli.number(0, 1), metavar="V")
    penalty: float | None = flag(None, "soft_movement, l0: a fixed λ, or the word paper "
                                 "(default: found for --keep)", metavar="λ")
    scope: str = flag("local", "local: rank scores matrix by matrix; global: all together",
                      **SCOPES)

    data: str = flag("sample", "sample (generated, default), download, or a folder with MNLI/, "
                     "SQuAD/, …", "data and model", metavar="DIR")
    model: str = flag("small", "small (default), small:LxH, untrained, a folder, or "
                      "bert-base-uncased, …", metavar="DIR")
    max_train_rows: int | None = flag(None, "draw N training rows (default all)", **COUNT)
    max_eval_rows: int | None = flag(None, "draw N rows of each evaluation file (default all)",
                                     **COUNT)
    held_out: float | None = flag(None, "hold out this share of the training rows, and evaluate "
                                  "on it too", type=cli.number(0, 0.9), metavar="SHARE")
    max_length: int | None = flag(None, "longest input (default: the recipe)", **TOKENS)
    doc_stride: int | None = flag(None, "squad: tokens from window to window (default: the recipe)",
                                  **TOKENS)
    teacher: str | None = flag(None, "learn from this fine-tuned model too (a run's folder)",
                               metavar="RUN")
    alpha: float = flag(0.9, "the teacher's share of the loss", **SHARE)
    temperature: float = flag(2.0, "divides the logits of teacher and student",
                              type=cli.number(0, 1e4), metavar="T")

    epochs: float | None = flag(None, "passes over the training rows",
                                "training (defaults: the recipe of task and model)",
                                type=cli.number(0, 1e6), metavar="N")
    steps: int | None = flag(None, "optimiser steps, instead of --epochs", **COUNT)
    batch_size: int | None = flag(None, "rows of one optimiser step", type=cli.count,
                                  metavar="ROWS")
    grad_accum: int = flag(1, "work through a batch in N pieces, to save memory", **COUNT)
    lr: float | None = flag(None, "peak learning rate of the weights", **RATE)
    score_lr: float | None = flag(None, "peak learning rate of the scores", **RATE)
    warmup: float | None = flag(None, "share of the steps in which rates rise", **SHARE)
    hold: float | None = flag(None, "share of the steps before pruning (l0: λ) begins", **SHARE)
    cooldown: float | None = flag(None, "share of the steps at the final density (or τ)", **SHARE)
    freeze: str | None = flag(None, "the matrices stay as pretrained; scores, biases, LayerNorms "
                              "and head learn", choices=["weights"], metavar="weights")
    train_embeddings: bool = flag(False, "train these too (the paper freezes them)")
    seed: int = flag(0, "for new weights, masks, dropout and row order",
                     type=cli.seed, metavar="N")

    precision: str = flag("auto", "matrix products in fp32, bf16, or auto: bf16 where fast",
                          "machine and output", **PRECISIONS)
    device: str = flag("auto", "cpu, cuda, mps, or auto, the fastest there is", **DEVICES)
    compile: bool = flag(False, "torch.compile the model (needs a compiler)")
    output: str | None = flag(None, "default runs/TASK-METHOD-KEEP-sSEED", metavar="DIR")
    eval_every: int | None = flag(None, "measure on up to 1,000 evaluation rows every N steps",
                                  **COUNT)
    save_every: int = flag(500, "steps between checkpoints", type=cli.count, metavar="STEPS")


def make_parser() -> cli.Parser:
    p = cli.Parser(description=__doc__.rpartition("\n\n")[0], add_help=False,
                   usage="train.py [--task TASK] [--method METHOD] [--keep V] [more flags, below]")
    for setting in fields(Settings):
        options = dict(setting.metadata)
        if title := options.pop("group"):
            group = p.add_argument_group(title)
        group.add_argument("--" + setting.name.replace("_", "-"), default=setting.default,
                           **options)
    group.add_argument("--overwrite", action="store_true",
                       help="replace the run that the output folder holds")
    group.add_argument("--resume", action="store_true",
                       help="go on with an interrupted run (bit for bit on a CPU)")
    group.add_argument("--dry-run", action="store_true",
                       help="say what would be done, and how long it would take")
    group.add_argument("-h", "--help", action="help", help="show this")
    return p


def resolve(args: Namespace, inputs: int | None = None) -> Settings:
    """Flags override the recipe. `inputs`: number of training inputs, once that is known."""
    small, method = pretrain.is_small(args.model), masking.find_method(args.method)
    task, own_task = evaluate.find_task(args.task, args.data), args.task not in data.TASKS
    alike = "sst2" if len(task.columns) == 1 else "mnli"  # the built-in task most like an own one
    recipe = recipes.recipe_for(alike if own_task and small else args.task, args.method, small)
    values = {f.name: getattr(args, f.name) for f in fields(Settings)}
    if inputs and not small and args.method != "dense" and not (args.epochs or args.steps):
        given = {f.name: values[f.name] for f in fields(recipe) if values.get(f.name) is not None}
        recipe = recipes.for_few_rows(recipe, given, inputs, args.keep)
    values |= {name: value for name, value in asdict(recipe).items()
               if name in values and values[name] is None}
    values["penalty"] = recipes.choose_penalty(
        args.penalty, recipe, args.keep, bool(args.teacher), method.penalised)
    values["train_embeddings"] |= pretrain.is_untrained(args.model)  # nothing there worth keeping
    values["device"] = parallel.choose_device(args.device)
    if args.method == "dense":
        values["keep"] = 1.0
    return Settings(**values)


def make_schedule(settings: Settings, rows: int) -> masking.Schedule:
    """Shares → steps. UserError for a run whose ramp or cool-down rounds to nothing."""
    per_epoch = math.ceil(rows / settings.batch_size)
    T = settings.steps or max(1, round(settings.epochs * per_epoch))
    t_i, t_f = round(settings.hold * T), round(settings.cooldown * T)
    if settings.method != "dense" and (T - t_i - t_f < 1 or t_f < 1):
        raise UserError(
            f"{T} steps cannot hold the schedule: hold {settings.hold:g} is {t_i} steps, cool-down "
            f"{settings.cooldown:g} is {t_f}, the ramp {T - t_i - t_f}; give more --steps or "
            "--epochs, or other --hold and --cooldown")
    return masking.Schedule(T, t_i, t_f)


# --------------------------------------------------------------------------------- the loop


def task_loss(logits, labels, attention_mask):
    """Cross-entropy; for spans the mean of start's and end's, for regression squared error.

    logits (B, C), (B, 1) or (B, T, 2); labels (B), for spans (B, 2); attention_mask (B, T) or
    None.
    """
    if logits.dim() == 3:
        if attention_mask is not None:
            padding = attention_mask[:, :, None] == 0  # (B, T, 1)
            logits = logits.masked_fill(padding, distill.MASKED_LOGIT)  # (B, T, 2)
        return sum(F.cross_entropy(logits[:, :, i], labels[:, i]) for i in (0, 1)) / 2
    if logits.shape[1] == 1:
        return F.mse_loss(logits.squeeze(1), labels)
    return F.cross_entropy(logits, labels)


def batch_loss(model, features: data.Features, index: np.ndarray, settings: Settings,
               teacher: list[np.ndarray] | None) -> torch.Tensor:
    """Mean loss of the rows `index`; `teacher`: its outputs for every row, or None."""
    batch = data.collate(features, index, settings.device)
    logits = evaluate.forward(model, batch, settings.precision)
    L_task = task_loss(logits, batch["labels"], batch["attention_mask"])
    if teacher is None:
        return L_task
    answer_tokens = batch["token_type_ids"].bool()  # (B, T), false at padding
    answer_tokens[:, 0] = True  # [CLS]
    teacher_logits = distill.batch_outputs(teacher, index, settings.device)
    L_teacher = distill.distillation_loss(logits, teacher_logits, answer_tokens,
                                          settings.temperature)
    return distill.total_loss(L_task, L_teacher, settings.alpha)


def loss_and_gradients(model, features: data.Features, index: np.ndarray, settings: Settings,
                       teacher: list[np.ndarray] | None) -> torch.Tensor:
    """Forward and backward pass of a batch, in pieces, on each process its share → mean loss.

    Leaves dL/dW' in the model's weights, averaged over the processes.
    """
    loss, pieces = 0.0, parallel.pieces_of(index, settings.grad_accum)
    for i, (rows, weight) in enumerate(pieces, 1):
        with parallel.averaging(model, i == len(pieces)):
            L = batch_loss(model, features, rows, settings, teacher) * weight
            L.backward()
        loss = loss + L.detach()
    return parallel.mean(loss)


def rate(t: int, T: int, warmup: float) -> float:
    """Learning-rate factor at step t: up linearly over the warm-up, then down to 0 at T."""
    rise = max(1, round(warmup * T))
    return t / rise if t < rise else (T - t) / max(1, T - rise)


def make_optimizer(model, pruner: masking.Pruner, settings: Settings):
    """→ AdamW and its scheduler. All weights that train, and the scores at a rate of their own."""
    pruned = {id(m.weight) for m in pruner.matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in pruned]
    weights = [W for W in pruner.weights() if W.requires_grad]
    groups = [{"params": weights + others, "lr": settings.lr}]
    if pruner.scores():
        groups.append({"params": pruner.scores(), "lr": settings.score_lr})
    # No weight decay: it moves weights and scores towards 0 unasked. In soft movement and L0 a
    # score of 0 is far above `kept_above`, so pruned weights would come back.
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, eps=1e-8,
                                  fused=settings.device != "mps")
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: rate(t, settings.steps, settings.warmup))


def batches_from(step: int, features: data.Features, size: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of the batches of step, step + 1, …: a pure function of the seed."""
    per_epoch = math.ceil(len(features) / size)
    for epoch in itertools.count(step // per_epoch):
        skip = step % per_epoch if epoch == step // per_epoch else 0
        yield from itertools.islice(data.batches(features, size, seed, epoch), skip, None)


def train(model, pruner, optimizer, scheduler, features, settings, begin=0, teacher=None):
    """Fine-prune `model` in place, from step `begin` on.

    Yields step, loss, norm of the gradient and the groups' learning rates after every optimiser
    step. Loss and norm are tensors: to read one, Python has to wait for a GPU to finish the step.
    """
    T = settings.steps
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    net = parallel.wrap(torch.compile(model) if settings.compile else model)
    batches = batches_from(begin, features, settings.batch_size, settings.seed)
    for t, index in zip(range(begin, T), batches):
        net.train()  # whoever takes the last step's results may have evaluated
        parallel.seed_dropout(settings.seed, t)
        pruner.set_masks(t)  # M from S, and W' = W ⊙ M in the model: Eqs. (1), (4), (5)
        loss = loss_and_gradients(net, features, index, settings, teacher)  # dL/dW'
        pruner.set_gradients(t)  # dL/dW and dL/dS from dL/dW': Eq. (2)
        norm = torch.nn.utils.clip_grad_norm_(learned, 1.0)
        rates = scheduler.get_last_lr()
        optimizer.step()  # W, S and everything else
        scheduler.step()
        optimizer.zero_grad()
        parallel.check_equal(pruner, t)
        yield t, loss, norm, rates
    pruner.set_masks(T, training=False)  # the final masks, without noise, in full precision


# ------------------------------------------------------------------------------ the command


def make_pruner(model, settings: Settings, schedule: masking.Schedule) -> masking.Pruner:
    method, penalty = masking.find_method(settings.method)(), settings.penalty or 0.0
    if method.penalised and settings.penalty is None:
        penalty = PenaltySearch(
            method, settings.keep, schedule,
            lambda t: settings.score_lr * rate(t, schedule.T, settings.warmup))
    # gradients in bf16 lose too much when they are summed over pieces or averaged over processes
    one_backward = settings.grad_accum == parallel.world() == 1
    bf16 = settings.precision == "bf16" and one_backward
    pruner = masking.Pruner(masking.encoder_matrices(model), method, settings.keep, schedule,
                            settings.scope, penalty, settings.seed,
                            torch.bfloat16 if bf16 else None)
    for W in pruner.weights():
        W.requires_grad_(settings.freeze != "weights")
    return pruner


def load_teacher(settings: Settings, prepared: evaluate.Prepared):
    """→ the teacher and the order of its classes, checked; None without one."""
    if not settings.teacher:
        return None
    folder = Path(settings.teacher)
    teacher, order = distill.load_teacher(folder, prepared.task, prepared.tokenizer)
    evaluate.check_fits(teacher.bert.config, prepared.tokenizer, folder, prepared.task,
                        settings.max_length)
    return teacher, order


def teacher_outputs(teacher, order: list[int], settings: Settings, prepared: evaluate.Prepared):
    """Its outputs for every training row, once: without dropout they never change."""
    outputs = evaluate.predict(teacher.to(settings.device), prepared.features, settings)
    return [prepared.scale.standard(logits) for logits in distill.reorder(outputs, order)]


def save(folder: Path, prepared: evaluate.Prepared, pruner: masking.Pruner) -> None:
    """The pruned model as a Hugging Face folder, and the pruning beside it."""
    prepared.scale.undo(prepared.model)
    for m in pruner.matrices:
        m.weight.data += 0.0  # W ⊙ M leaves −0.0 where W is negative; zeros should be one number
    bert.save(prepared.model, folder, prepared.task.output_names, prepared.tokenizer,
              prepared.model_folder)
    matrices = pruner.matrices if pruner.prunes else []
    state.save_pruning({bert.to_hf_name(m.name): m for m in matrices},
                       folder / "pruning.safetensors")


def finish(settings: Settings, prepared: evaluate.Prepared, pruner, run: checkpoints.Run) -> dict:
    """Save the model, measure it, and save what was measured."""
    save(run.folder, prepared, pruner)
    metrics, predictions = evaluate.evaluate(
        prepared.model, prepared.task, prepared.evaluated, settings)
    collapsed = evaluate.has_collapsed(prepared.task, prepared.evaluated, metrics, predictions)
    summary = report.summary(settings, prepared, pruner, metrics, collapsed, run)
    if prepared.task.span:
        squad.write(run.folder, *predictions[""])
    run.finish(summary)
    return summary


def carry_out(settings: Settings, prepared: evaluate.Prepared, pruner, run: checkpoints.Run,
              teacher) -> dict:
    """Run the remaining steps → the contents of metrics.json, on the main process."""
    model, watched = prepared.model, evaluate.watched_rows(settings, prepared)
    optimizer, scheduler = make_optimizer(model, pruner, settings)
    start = state.fingerprint({bert.to_hf_name(m.name): m.W for m in pruner.matrices})
    begin = run.restore([model, pruner, optimizer, scheduler], start)
    for t, *step in train(
            model, pruner, optimizer, scheduler, prepared.features, settings, begin, teacher):
        metrics = {}
        if watched and (t + 1) % settings.eval_every == 0 and parallel.is_main():
            masks = [m.M for m in pruner.matrices]
            pruner.set_masks(t + 1, training=False)  # by the new scores, without noise
            metrics, _ = evaluate.evaluate(model, prepared.task, watched, settings)
            for m, M in zip(pruner.matrices, masks):
                m.M = M  # as it was: the log has its density
        run.step(t, *step, metrics)
    run.end()
    return finish(settings, prepared, pruner, run) if parallel.is_main() else {}


def steps_to_time(settings: Settings, prepared: evaluate.Prepared, pruner) -> Iterator:
    """For a dry run: the steps from the middle of the run on, when the method is at work."""
    return train(prepared.model, pruner, *make_optimizer(prepared.model, pruner, settings),
                 prepared.features, settings, begin=settings.steps // 2)


def main() -> None:
    args = make_parser().parse_args()
    settings = resolve(args)
    device = parallel.start(settings.device)
    settings = replace(settings, device=device)
    folder = checkpoints.choose_folder(settings, args.overwrite, args.resume, args.dry_run)
    given = {name: value for name, value in asdict(settings).items()  # the others follow from these
             if getattr(args, name) is not None or name in checkpoints.OPTIONAL}
    if args.resume and checkpoints.report_if_finished(folder, given):
        return
    task, code = evaluate.find_task(settings.task, settings.data), own.source(settings.method)
    if args.dry_run and (first := evaluate.missing_inputs(settings, task)):
        return report.say(report.preparations(first))
    prepared = evaluate.prepare_run(settings, task, offline=args.dry_run)
    settings = resolve(args, len(prepared.features))  # a recipe may depend on their number
    schedule = make_schedule(settings, len(prepared.features))
    precision, why = parallel.choose_precision(
        settings.precision, settings.device, prepared.model.bert.config.hidden_size)
    settings = replace(settings, device=device, steps=schedule.T, precision=precision)
    pruner = make_pruner(prepared.model, settings, schedule)
    report.say(report.describe(settings, prepared, pruner, folder,
                               pretrain.remark(settings.model), why))
    teacher = load_teacher(settings, prepared)
    fixed = asdict(settings) | checkpoints.fingerprints(prepared, teacher and teacher[0]) | {
        "method_digest": own.digest(settings.method),
        "own_task": None if settings.task in data.TASKS else
        {"columns": list(task.columns), "labels": list(task.labels)}}
    run = checkpoints.Run(folder, fixed, pruner, args.resume, args.overwrite)
    if not pretrain.is_small(settings.model) and pruner.method.ranked and pruner.method.learned:
        report.warn_of_collapse(settings, schedule)
        run.warn_if_nothing_is_learned = True
    if args.dry_run:
        return report.say(report.estimate(settings, prepared.features, prepared.model, pruner,
                                          steps_to_time(settings, prepared, pruner)))
    teacher = teacher and teacher_outputs(*teacher, settings, prepared)
    with run:
        if code and parallel.is_main():
            write_atomically(run.folder / "method.py", code)
        summary = carry_out(settings, prepared, pruner, run, teacher)
        if parallel.is_main():
            report.say(report.result(summary, folder))


if __name__ == "__main__":
    run_main(main)
    parallel.stop()  # only then: after an error on one GPU it would wait for the others, for ever
