"""What a run reports: the block before training, its metrics.json, the table at the end."""

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import islice, pairwise
from pathlib import Path

import torch

from support import parallel, recipes
from support.files import UserError, read_json

HELD_OUT = "_held_out"  # the split of --held-out; it ends its metrics' names


def say(text: str) -> None:
    if parallel.is_main():
        print(text, flush=True)


# -------------------------------------------------------------------------- what is measured


def sizes(model, pruner) -> dict:
    """Counts of the finished model's parameters, and densities, each with its own denominator."""
    matrices = [m.weight.detach() for m in pruner.matrices]
    nonzero = sum(int(torch.count_nonzero(W)) for W in matrices)
    entries = sum(W.numel() for W in matrices)
    encoder = sum(p.numel() for p in model.bert.layers.parameters())
    return {
        "density": nonzero / entries,  # of the pruned matrices' entries
        "encoder_density": (nonzero + encoder - entries) / encoder,  # with biases and LayerNorms
        "nonzero_parameters": nonzero,  # in the encoder's matrices
        "nonzero_parameters_total": sum(int(torch.count_nonzero(p)) for p in model.parameters()),
        "total_parameters": sum(p.numel() for p in model.parameters()),
    }


def check_target(pruner, settings, density: float) -> bool:
    """Did a run with --keep end within 0.005 of it (0.002 below 0.05)?"""
    missed, tolerance = density - settings.keep, 0.002 if settings.keep < 0.05 else 0.005
    if not pruner.prunes or settings.penalty is not None or abs(missed) <= tolerance:
        return True
    if missed > 0 and settings.keep < pruner.method.floor:
        remedy = f"{settings.method} leaves at least {pruner.method.floor:g} of every matrix"
    else:
        change = "more --steps or a higher" if missed > 0 else "fewer --steps or a lower"
        remedy = f"{change} --score-lr may help"
    say(f"WARNING: density {density:.4f} missed --keep {settings.keep:g}; {remedy}")
    return False


def by_rows(metrics: dict) -> dict[str, dict]:
    """Those of the evaluation rows, and apart from them those of the rows held out."""
    held_out = [name for name in metrics if name.endswith(HELD_OUT)]
    return {
        "metrics": {name: value for name, value in metrics.items() if name not in held_out},
        "held_out_metrics": {name.removesuffix(HELD_OUT): metrics[name] for name in held_out},
    }


def summary(settings, prepared, pruner, metrics: dict, collapsed: bool, run) -> dict:
    """The contents of metrics.json. `prepared`: evaluate.Prepared, `run`: checkpoints.Run.

    metrics: by name, those of --held-out with a name that ends in HELD_OUT.
    """
    if collapsed:
        say("WARNING: the task is lost: the model does no better than one that has not read the "
            "text. A lower --lr, more --steps or a higher --hold, so that pruning begins later and "
            "goes slower, may prevent that")
    size = sizes(prepared.model, pruner)
    named = settings.data in ("sample", "download")
    return {
        "task": settings.task,
        "data": settings.data if named else Path(settings.data).resolve().name,
        "model": settings.model, "method": Path(settings.method).name,
        "score_lr": settings.score_lr if pruner.method.learned else None,
        "scope": settings.scope if pruner.method.ranked else "global",
        "keep": settings.keep if settings.penalty is None else None, **size,
        "penalty": pruner.penalty if pruner.method.penalised else None,
        "on_target": check_target(pruner, settings, size["density"]), "collapsed": collapsed,
        **by_rows(metrics),
        "train_rows": len(prepared.rows), "train_inputs": len(prepared.features),
        "eval_rows": sum(len(prepared.evaluated[split][0]) for split in prepared.task.dev),
        "steps": settings.steps, "train_seconds": run.seconds, "seed": settings.seed,
        "teacher": settings.teacher, "freeze": settings.freeze, "precision": settings.precision,
        "start_fingerprint": run.start,  # of the matrices before training
    }


# ------------------------------------------------------------------------------ what is said


def aim(settings, pruner) -> str:
    """The method, what it aims at, and its learning rates."""
    if settings.penalty is not None:
        text = f"λ fixed at {settings.penalty:g} (the density follows from it)"
    elif pruner.method.penalised:
        text = f"keep {settings.keep:g} of the weights, λ found while training"
    else:
        text = f"keep {settings.keep:g} of the weights" if pruner.prunes else "all weights stay"
    if pruner.method.ranked:
        text += f", {settings.scope} ranks"
    if settings.freeze:
        text += ", the weights themselves frozen"
    if settings.teacher:
        text += f" · teacher {settings.teacher}, α {settings.alpha:g}, T {settings.temperature:g}"
    rates = f"learning rate {settings.lr:g}"
    if pruner.method.learned:
        rates += f", scores {settings.score_lr:g}"
    return f"{settings.method} · {text} · {rates}"


def source(data: str) -> str:
    return {"sample": "generated sample; real rows: --data download or --data DIR",
            "download": "official files"}.get(data, data)


def evaluation_rows(evaluated: dict) -> str:
    """How many rows of each split are evaluated on. `evaluated`: split → (rows, features)."""
    counts = " + ".join(f"{len(rows):,}{split.replace('_', ' ')}"
                        for split, (rows, _) in evaluated.items())
    return f"{counts} evaluation rows"


def plan(pruner, keep: float) -> str:
    """What the schedule sets at a few steps."""
    schedule, T = pruner.schedule, pruner.schedule.T
    if pruner.method.ranked:
        name, value = "kept", lambda t: schedule.keep(t, keep)
    elif pruner.method.tau_f:
        name, value = "τ", lambda t: schedule.tau(t, pruner.method.tau_f)
    else:
        return f"{T} steps"
    steps = [0, schedule.t_i, (T + schedule.t_i - schedule.t_f) // 2, T - schedule.t_f, T]
    text = f"{name} @ step: " + " → ".join(f"{value(t):.3g} @ {t}" for t in steps)
    if pruner.method.ranked:
        speed = 100 * recipes.steepest_speed(schedule, keep)
        text += f" · at most {speed:.2f} % of the weights a step"
    return text


def warn_of_collapse(settings, schedule) -> None:
    """Say where hard movement is known to lose the task on real weights, and how to avoid it."""
    speed, t_i = recipes.steepest_speed(schedule, settings.keep), schedule.t_i
    reasons = []
    if speed > recipes.STEEPEST:
        reasons.append(f"it prunes up to {100 * speed:.2f} % of the weights a step, where "
                       f"{100 * recipes.STEEPEST:g} % or less is better (more --epochs)")
    if t_i < recipes.SHORTEST_HOLD:
        reasons.append(f"it begins at step {t_i}, where {recipes.SHORTEST_HOLD} or later is "
                       "better (a higher --hold, more --epochs)")
    if reasons and settings.lr >= 1e-4:  # it does no harm in runs that wait long and prune slowly
        reasons.append(f"and the learning rate is {settings.lr:g}, where 3e-5 forgets less")
    if reasons:
        say(f"WARNING: {settings.method} is known to lose the task in runs like this on real "
            f"weights: {'; '.join(reasons)}")


def notes(rows, evaluated: dict) -> str:
    """How many rows or answers are left out, if any."""
    skipped = sum(getattr(r, "skipped", 0) for r in (rows, *(r for r, _ in evaluated.values())))
    if skipped:
        return f"{skipped} rows without a label, or torn, are left out"
    if getattr(rows, "unfound", 0):
        return f"{rows.unfound} answers are not where the file says; not trained on"
    return ""


def describe(settings, prepared, pruner, folder: Path, weights: str, why: str) -> str:
    """The block that is printed before training.

    weights: a remark on the starting weights; why: the reason for the precision.
    """
    task, rows, features = prepared.task, prepared.rows, prepared.features
    kind = "spans" if task.span else f"{len(task.labels)} classes" if task.labels else "regression"
    entries = sum(m.W.numel() for m in pruner.matrices)
    parameters = sum(p.numel() for p in prepared.model.parameters())
    windows = f" in {len(features):,} windows" if task.span else ""
    pieces = f" in {settings.grad_accum} pieces" if settings.grad_accum > 1 else ""
    processes = f"{parallel.world()} processes · " if parallel.world() > 1 else ""
    lines = {
        "task": f"{settings.task} · {kind}",
        "data": f"{source(settings.data)} · {len(rows):,} training rows{windows} · "
                f"{evaluation_rows(prepared.evaluated)}",
        "model": f"{settings.model} · {parameters / 1e6:.1f} M parameters, {entries / 1e6:.1f} M "
                 f"of them in {len(pruner.matrices)} matrices to prune{weights}",
        "new": ", ".join(prepared.fresh) + " (randomly initialised)" if prepared.fresh
               else "nothing",
        "method": aim(settings, pruner),
        "schedule": f"{plan(pruner, settings.keep)} · batch {settings.batch_size}{pieces} · "
                    f"{settings.steps * settings.batch_size / len(features):.1f} epochs",
        "machine": f"{processes}{settings.device} · {torch.get_num_threads()} threads · "
                   f"{settings.precision} ({why})",
        "output": str(folder),
        "note": notes(rows, prepared.evaluated),
    }
    return "\n".join(f"{name:9} {text}" for name, text in lines.items() if text)


def dense_beside(metrics: dict, folder: Path) -> dict:
    """The metrics of a dense run of the same task, data, model and seed in the same parent folder,
    if there is one."""
    alike = ("task", "data", "model", "seed", "eval_rows")
    for path in sorted(folder.parent.glob("*/metrics.json")):
        with suppress(UserError):  # a damaged one
            other = read_json(path)
            if other.get("method") == "dense" != metrics["method"] and all(
                    other.get(name) == metrics.get(name) for name in alike):
                return other.get("metrics", {})
    return {}


def result(metrics: dict, folder: Path) -> str:
    """The table at the end of a run, and what to do next; `metrics`: its metrics.json."""
    held_out = {name + HELD_OUT: value
                for name, value in metrics.get("held_out_metrics", {}).items()}
    values = metrics["metrics"] | held_out | {"density": 100 * metrics["density"]}
    dense, width = dense_beside(metrics, folder), max(map(len, values))
    beside = {name: f"   {100 * values[name] / dense[name]:.0f} % of dense, {dense[name]:.1f}"
              for name in values if dense.get(name)}
    table = "\n".join(f"  {name:{width}}  {value:8.4g} %{beside.get(name, '')}"
                      for name, value in values.items())
    return (f"{table}\n  {metrics['nonzero_parameters']:,} non-zero parameters in the encoder's "
            f"matrices, {metrics['nonzero_parameters_total']:,} in the whole model\n"
            f"saved in {folder} · trained in {metrics['train_seconds']:.0f} s\n"
            f"next: python evaluate.py {folder}, or python export.py {folder}")


# ------------------------------------------------------------------------------ a dry run


def preparations(steps: list[str]) -> str:
    """What a dry run says where a run would first have to make its data or weights."""
    return (f"dry run   a run would first {', then '.join(steps)}; after that, a dry run says what "
            "the run itself would do. Nothing was made")


def fastest(steps: Iterator) -> float:
    """Seconds of the fastest of ten steps, or of as many as ten seconds allow: the first ones set
    things up, and others may have waited for another program.

    steps: what train.train yields. On all processes the same number of them is taken.
    """
    ends, began = [0.0], time.monotonic()
    for _, loss, *_ in islice(steps, 10):
        float(loss)  # waits for a GPU to finish the step
        ends.append(float(parallel.mean(loss.new_tensor(time.monotonic() - began))))
        if ends[-1] > 10:
            break
    return min(after - before for before, after in pairwise(ends))


def estimate(settings, features, model, pruner, steps: Iterator) -> str:
    """Memory and time of the run, from sizes and from a few of its steps, which train `model`."""
    c = model.bert.config
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    entries = sum(m.W.numel() for m in pruner.matrices)
    scores = sum(S.numel() for S in pruner.scores())
    tokens = settings.batch_size * float(features.lengths.mean())
    longest = int(features.lengths.max())
    piece = settings.batch_size / settings.grad_accum * longest
    fixed = 4 * sum(p.numel() for p in model.parameters()) + 12 * trained  # gradient, Adam's two
    fixed += 16 * scores + (8 * entries if pruner.prunes else 0)  # S and the same; W' and M
    # what the backward pass needs per token and layer: about 20 vectors of the model's width, and
    # the attention's weights and dropout mask
    activations = piece * c.num_hidden_layers * (
        c.hidden_size * 20 * 4 + c.num_attention_heads * longest * 8)
    needed = timedelta(seconds=round(settings.steps * fastest(steps)))
    return (f"dry run   {settings.steps:,} steps of {tokens:,.0f} tokens · memory about "
            f"{(fixed + activations) / 1e9:.1f} GB ({fixed / 1e9:.1f} for weights and optimiser)"
            f" · time about {needed} (h:mm:ss), by the fastest of a few steps"
            + ", without the teacher's own pass" * bool(settings.teacher) + " · nothing was saved")
