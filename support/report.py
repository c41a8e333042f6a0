"""What is measured of a run and what it says: the block before training, the table after it."""

import math
import time
from pathlib import Path

import torch

import data
from sample import pretrain
from support import parallel


def say(text: str) -> None:
    if parallel.is_main():
        print(text, flush=True)


# -------------------------------------------------------------------------- what is measured


def sizes(model, pruner) -> dict:
    """Counts and densities of the finished model, each with its own denominator."""
    matrices = [m.weight.detach() for m in pruner.matrices]
    left = sum(int(torch.count_nonzero(w)) for w in matrices)
    entries = sum(w.numel() for w in matrices)
    layers = sum(p.numel() for p in model.bert.layers.parameters())
    total = sum(p.numel() for p in model.parameters())
    nonzero = sum(int(torch.count_nonzero(p)) for p in model.parameters())
    return {
        "density": left / entries,  # of the pruned matrices' entries
        "encoder_density": (left + layers - entries) / layers,  # biases and LayerNorms counted
        "nonzero_parameters": left,  # in the encoder's matrices
        "nonzero_parameters_total": nonzero,  # embeddings and head too
        "total_parameters": total,
    }


def on_target(pruner, s, density: float) -> bool:
    """Did a run with --keep end within 0.005 of it (0.002 below 0.05)?"""
    if not pruner.masked or s["penalty"] is not None:
        return True
    good = abs(density - s["keep"]) <= (0.002 if s["keep"] < 0.05 else 0.005)
    if not good:
        floor = getattr(pruner.method, "floor", 0.0)
        if density < s["keep"]:
            mend = ("too many scores fell below the cut, though λ is near 0; fewer --steps or a "
                    "lower --score-lr keeps them above")
        elif s["keep"] < floor:
            mend = f"{s['method']} leaves at least {floor:g} of every matrix"
        else:
            mend = "more --steps or a higher --score-lr lets the scores travel further"
        say(f"WARNING: density {density:.4f} missed --keep {s['keep']:g}; {mend}")
    return good


def warn_of_one_class(task: data.Task, predicted: dict) -> None:
    """`predicted`: split → class numbers (rows,); what a collapsed run gives is one class."""
    if task.labels and len(set().union(*predicted.values())) == 1:
        say("WARNING: every row got the same class, so the model no longer tells rows apart; a "
            "lower --lr or a higher --hold, so that pruning begins later, may keep it from that")


def summary(s, model, pruner, found, rows, features, held, run) -> dict:
    """metrics.json."""
    size = sizes(model, pruner)
    named = s["data"] in ("sample", "download")
    return {
        "task": s["task"], "data": s["data"] if named else Path(s["data"]).resolve().name,
        "model": s["model"], "method": s["method"],
        "scope": s["scope"] if pruner.method.ranked else "global",
        "keep": s["keep"] if s["penalty"] is None else None, **size,
        "penalty": pruner.penalty if pruner.has_penalty else None,
        "on_target": on_target(pruner, s, size["density"]), "metrics": found,
        "train_rows": len(rows), "train_inputs": len(features),
        "eval_rows": sum(len(r) for r, _ in held.values()),
        "steps": s["steps"], "train_seconds": run.seconds, "seed": s["seed"],
        "teacher": s["teacher"], "freeze": s["freeze"], "precision": s["precision"],
        "start_fingerprint": run.start,  # of the matrices before training
    }


# ------------------------------------------------------------------------------ what is said


def describe(s, rows, features, held, model, pruner, fresh, folder, why) -> str:
    """The block that says what will happen before it happens."""
    task, T = data.TASKS[s["task"]], pruner.schedule.T
    kind = "spans" if task.span else f"{len(task.labels)} classes" if task.labels else "regression"
    entries = sum(m.W.numel() for m in pruner.matrices)
    parameters = sum(p.numel() for p in model.parameters())
    weights = ("random weights" if pretrain.is_untrained(s["model"]) else
               "pretrained on generated text; real weights: --model bert-base-uncased"
               if pretrain.is_small(s["model"]) else "")
    if s["penalty"] is not None:
        aim = f"λ fixed at {s['penalty']:g} (the density follows from it)"
    elif pruner.has_penalty:
        aim = f"keep {s['keep']:g} of the weights, λ found while training"
    else:
        aim = f"keep {s['keep']:g} of the weights" if pruner.masked else "all weights stay"
    if pruner.method.ranked:
        aim += f", {s['scope']} ranks"
    if s["freeze"]:
        aim += ", the weights themselves frozen"
    if s["teacher"]:
        aim += f" · teacher {s['teacher']}, α {s['alpha']:g}, T {s['temperature']:g}"
    rates = f"learning rate {s['lr']:g}" + (
        f", scores {s['score_lr']:g}" if pruner.method.learned else "")
    windows = f" in {len(features):,} windows" if task.span else ""
    batch = f"batch {s['batch_size']}" + (
        f" in {s['grad_accum']} pieces" if s["grad_accum"] > 1 else "")
    processes = f"{parallel.world()} processes · " if parallel.world() > 1 else ""
    lines = {
        "task": f"{s['task']} · {kind}",
        "data": f"{source(s)} · {len(rows):,} training rows{windows} · {evaluated(s, held)}",
        "model": f"{s['model']} · {parameters / 1e6:.1f} M parameters, {entries / 1e6:.1f} M of "
                 f"them in {len(pruner.matrices)} matrices to prune" + (f" · {weights}" if weights
                                                                        else ""),
        "new": ", ".join(fresh) + " (randomly initialised)" if fresh else "nothing",
        "method": f"{s['method']} · {aim} · {rates}",
        "schedule": f"{plan(pruner, s['keep'])} · {batch} · "
                    f"{T * s['batch_size'] / len(features):.1f} epochs",
        "machine": f"{processes}{s['device']} · {torch.get_num_threads()} threads · "
                   f"{s['precision']} ({why})",
        "output": str(folder),
    }
    left_out = sum(getattr(r, "skipped", 0) for r in (rows, *(r for r, _ in held.values())))
    if left_out:
        lines["note"] = f"{left_out} rows without a label, or torn, are left out"
    if getattr(rows, "unfound", 0):
        lines["note"] = f"{rows.unfound} answers are not where the file says; not trained on"
    return "\n".join(f"{name:9} {text}" for name, text in lines.items())


def source(s: dict) -> str:
    return {"sample": "generated sample; real rows: --data download or --data DIR",
            "download": "official files"}.get(s["data"], s["data"])


def evaluated(s: dict, held: dict) -> str:
    """How many rows are evaluated on, of each split."""
    counts = " + ".join(f"{len(r):,}{k.replace('_', ' ')}" for k, (r, _) in held.items())
    return f"{counts} evaluation rows" + " held out of training" * bool(s["held_out"])


def plan(pruner, keep: float) -> str:
    """What the schedule sets, at a few steps."""
    schedule, T = pruner.schedule, pruner.schedule.T
    if pruner.method.ranked:
        name, value = "kept", lambda t: schedule.keep(t, keep)
    elif hasattr(pruner.method, "tau_f"):
        name, value = "τ", lambda t: schedule.tau(t, pruner.method.tau_f)
    elif pruner.control:
        return (f"{T} steps, λ searched for from step {schedule.t_i}, found by "
                f"{T - schedule.t_f}")
    else:
        return f"{T} steps"
    at = [0, schedule.t_i, (T + schedule.t_i - schedule.t_f) // 2, T - schedule.t_f, T]
    return f"{name} @ step: " + " → ".join(f"{value(t):.3g} @ {t}" for t in at)


def result(metrics: dict, folder: Path) -> str:
    values = metrics["metrics"] | {"density": metrics["density"]}
    width = max(map(len, values))
    table = "\n".join(f"  {name:{width}}  {v:8.4g}" for name, v in values.items())
    return (f"{table}\n  {metrics['nonzero_parameters']:,} non-zero parameters in the encoder's "
            f"matrices, {metrics['nonzero_parameters_total']:,} in the whole model\n"
            f"saved in {folder} · trained in {metrics['train_seconds']:.0f} s\n"
            f"next: python evaluate.py {folder}, or python export.py {folder}")


# ------------------------------------------------------------------------------- a dry run


def matmul_speed(device: str, precision: str, tokens: int, width: int) -> float:
    """Floating-point operations a second of the run's typical matrix product."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.randn(tokens, width, device=device, dtype=kind)
    W = torch.randn(width, 4 * width, device=device, dtype=kind)
    x @ W  # warms up
    best, start = math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - start < 0.25:
        began = time.perf_counter()
        for _ in range(5):
            y = x @ W
        float(y[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - began)  # what else runs can only slow one down
    return 5 * 2 * tokens * width * 4 * width / best


def estimate(s, features, model, pruner) -> str:
    """Memory and time of the run, from sizes and a quarter of a second of matrix products."""
    c = model.bert.config
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    entries = sum(m.W.numel() for m in pruner.matrices)
    scores = sum(S.numel() for S in pruner.scores())
    tokens = s["batch_size"] * float(features.lengths.mean())
    longest = int(features.lengths.max())
    piece = s["batch_size"] / s["grad_accum"] * longest
    fixed = 4 * sum(p.numel() for p in model.parameters()) + 12 * trained  # gradient, Adam's two
    fixed += 16 * scores + (8 * entries if pruner.masked else 0)  # S and its own; W' and M
    # what the backward pass needs of a token and layer: about 20 vectors of the model's width, and
    # the attention's weights and dropout mask
    activations = piece * c.num_hidden_layers * (
        c.hidden_size * 20 * 4 + c.num_attention_heads * longest * 8)
    # two operations a weight and token forward, four backward; half of the peak speed is usual
    work = 6 * entries * tokens * s["steps"]
    seconds = work / (0.5 * matmul_speed(s["device"], s["precision"], int(tokens), c.hidden_size))
    return (f"dry run   {s['steps']:,} steps of {tokens:,.0f} tokens · memory about "
            f"{(fixed + activations) / 1e9:.1f} GB ({fixed / 1e9:.1f} for weights and optimiser)"
            f" · time about {duration(seconds)} on this machine · nothing was trained")


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
