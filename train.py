"""Fine-prune BERT: recipes and the one training loop (Sanh, Wolf, Rush 2020).

    python train.py --task mnli --method movement                      # generated sample, small BERT
    python train.py --task mnli --method soft_movement --keep 0.03
    python train.py --task sst2 --method magnitude --data glue --model path/to/bert

Data flows one way: rows → features → batches → model (and masks) → loss → step → metrics → folder.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

import bert
import cli
import data
import masking
import pretrain
import runs
import sample_data
from files import RunError, UserError, cache_folder, locked, run_main, write_json

# ------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Recipe:
    """Settings of a run. warmup, hold and cooldown are shares of all steps.

    penalties: the paper's λ → the share of weights that remained with it.
    """

    epochs: float
    batch_size: int
    lr: float
    score_lr: float
    max_length: int
    warmup: float
    hold: float
    cooldown: float
    penalties: tuple[tuple[float, float], ...] = ()


MNLI = Recipe(6, 32, 3e-5, 1e-2, 128, warmup=0.163, hold=0.163, cooldown=0.163)
QQP = Recipe(10, 32, 3e-6, 1e-2, 128, warmup=0.097, hold=0.194, cooldown=0.291)
PAPER = {  # (task, method): the paper's settings, from its authors' result sheet
    ("mnli", "soft_movement"): replace(MNLI, penalties=((200, 0.128), (300, 0.059), (400, 0.031))),
    ("mnli", "l0"): replace(MNLI, score_lr=1e-1, penalties=((50, 0.084), (100, 0.038))),
    ("mnli", "dense"): replace(MNLI, epochs=3),
    ("qqp", "soft_movement"): replace(
        QQP, penalties=((100, 0.131), (150, 0.076), (200, 0.049), (300, 0.027))),
    ("qqp", "l0"): replace(
        QQP, lr=3e-5, hold=0.097, cooldown=0.097, penalties=((75, 0.081), (150, 0.026))),
    ("qqp", "magnitude"): replace(QQP, lr=3e-5),
    ("qqp", "random"): replace(QQP, lr=3e-5),
    ("qqp", "movement"): QQP,
    ("qqp", "dense"): replace(QQP, lr=3e-5, epochs=3),
}

# The small BERT on the sample: one grid of rates for every method, see results/README.md.
SMALL = Recipe(4, 32, 1e-3, 3e-2, 64, warmup=0.1, hold=0.1, cooldown=0.2)
SMALL_RATES = {}  # method: (lr, score_lr)


def recipe_for(task: str, method: str, model: str) -> Recipe:
    if pretrain.is_small(model):
        lr, score_lr = SMALL_RATES.get(method, (SMALL.lr, SMALL.score_lr))
        return replace(SMALL, lr=lr, score_lr=score_lr)
    rates = {"l0": 1e-1}
    return PAPER.get((task, method), replace(MNLI, score_lr=rates.get(method, 1e-2)))


# ------------------------------------------------------------------- settings, before a run


def make_parser() -> cli.Parser:
    p = cli.Parser(description=__doc__)
    a = p.add_argument_group("what").add_argument
    a("--task", choices=list(data.TASKS), default="mnli", help="default mnli")
    a("--method", choices=list(masking.METHODS), default="movement", help="default movement")
    a("--keep", type=cli.number(0, 1), default=0.1, metavar="V",
      help="share of the encoder's weights that remains, 0 to 1 (default 0.1)")
    a("--penalty", metavar="λ", help="soft_movement, l0: a fixed λ in place of --keep's search; "
      "'paper' takes the paper's λ nearest to --keep")
    a("--scope", choices=["local", "global"], default="local",
      help="rank scores matrix by matrix (default), or all together")
    a = p.add_argument_group("data and model").add_argument
    a("--data", default="sample", metavar="DIR",
      help="sample (generated, default), or a folder with MNLI/, QQP/, SST-2/, … as GLUE has them")
    a("--model", default="small", metavar="DIR",
      help="small (4×128, pretrained once, default), small:2x64, a Hugging Face BERT folder, "
           "or untrained (small with random weights)")
    a("--max-train-rows", type=cli.count, metavar="N", help="draw N training rows (fixed seed)")
    a("--max-eval-rows", type=cli.count, metavar="N", help="draw N rows of each evaluation file")
    a("--held-out", type=cli.number(0, 0.9), metavar="SHARE",
      help="evaluate on this share of the training rows, kept from training: to choose settings")
    a("--max-length", type=cli.count, metavar="TOKENS", help="longest input in tokens")
    a = p.add_argument_group("training (defaults: the recipe of task and model)").add_argument
    a("--epochs", type=cli.positive, metavar="N")
    a("--steps", type=cli.count, metavar="N", help="optimiser steps, in place of --epochs")
    a("--batch-size", type=cli.count, metavar="ROWS", help="rows of one optimiser step")
    a("--grad-accum", type=cli.count, default=1, metavar="N",
      help="work through a batch in N pieces, to save memory")
    a("--lr", type=cli.positive, help="peak learning rate of the weights")
    a("--score-lr", type=cli.positive, metavar="LR", help="peak learning rate of the scores")
    a("--warmup", type=cli.share, metavar="SHARE", help="share of the run in which rates rise")
    a("--hold", type=cli.share, metavar="SHARE", help="share before pruning starts")
    a("--cooldown", type=cli.share, metavar="SHARE", help="share at the final density")
    a("--train-embeddings", action="store_true", help="they are frozen otherwise, as in the paper")
    a("--seed", type=cli.number(0, 2**32 - 1, int, open_low=False), default=0, help="default 0")
    a = p.add_argument_group("machine and output").add_argument
    a("--precision", choices=["auto", "fp32", "bf16"], default="auto",
      help="arithmetic of the matrix products; auto (default) takes bf16 where it is fast")
    a("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    a("--output", metavar="DIR", help="default runs/TASK-METHOD-KEEP-sSEED")
    a("--overwrite", action="store_true", help="replace what the output folder holds")
    a("--dry-run", action="store_true", help="print what would be done, then stop")
    return p


def settings(args) -> dict:
    """Flags over recipe: every setting of the run, by its flag's name."""
    recipe = recipe_for(args.task, args.method, args.model)
    s = {k: v for k, v in vars(args).items() if k not in ("overwrite", "dry_run")}
    for name, value in asdict(recipe).items():
        if name != "penalties" and s.get(name) is None:
            s[name] = value
    s["train_embeddings"] |= args.model.startswith("untrained")  # nothing there worth keeping
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
        except Exception:
            raise UserError(f"--penalty {args.penalty}: a number of at least 0, or paper") from None
    if not recipe.penalties:
        raise UserError(f"--penalty paper: the paper has no λ for --task {args.task} with this "
                        "model; give a number, or --keep alone")
    return min(recipe.penalties, key=lambda p: abs(p[1] - args.keep))[0]


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
    if device == "cuda":
        good = torch.cuda.is_bf16_supported()
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
    """Shares → steps; a run whose ramp or cool-down rounds to nothing is refused."""
    per_epoch = math.ceil(rows / s["batch_size"])
    T = s["steps"] or max(1, round(s["epochs"] * per_epoch))
    t_i, t_f = round(s["hold"] * T), round(s["cooldown"] * T)
    if T - t_i - t_f < 1 or t_f < 1:
        raise UserError(
            f"{T} steps cannot hold the schedule: hold {s['hold']:g} is {t_i} steps, cool-down "
            f"{s['cooldown']:g} is {t_f}, which leaves {T - t_i - t_f} for the ramp; give more "
            "--steps or --epochs, or other --hold and --cooldown")
    return masking.Schedule(T, t_i, t_f)


# ----------------------------------------------------------------- rows, features and model


def data_folder(name: str) -> Path:
    """The folder of GLUE's files; the generated sample is written on first use."""
    if name != "sample":
        if not Path(name).is_dir():
            raise UserError(f"--data {name}: no such folder (it should hold MNLI/, QQP/, …)")
        return Path(name)
    folder = cache_folder() / f"sample-{sample_data.fingerprint()}"
    with locked(folder):
        if not folder.exists():
            sample_data.write_all(folder)
    return folder


def load_rows(s: dict, task: data.Task) -> tuple[data.Rows, dict[str, data.Rows]]:
    """Training rows and evaluation rows by split. All files are checked before rows are drawn."""
    folder = data_folder(s["data"])
    if s["data"] == "sample" and not (folder / task.folder).is_dir():
        raise UserError(f"--task {s['task']}: there is no sample of it; give --data DIR with the "
                        f"official files in DIR/{task.folder}")
    train = data.read(task, folder, "train")
    if s["held_out"]:
        order = np.random.default_rng(0).permutation(len(train))
        cut = max(1, round(s["held_out"] * len(train)))
        held = {"": train.take(np.sort(order[:cut]))}
        train = train.take(np.sort(order[cut:]))
    else:
        held = {split: data.read(task, folder, split) for split, _ in task.dev}
    train = data.draw(train, s["max_train_rows"])
    return train, {split: data.draw(rows, s["max_eval_rows"]) for split, rows in held.items()}


def load_model(s: dict, task: data.Task):
    """→ model, tokenizer, its folder, names of freshly initialised tensors."""
    torch.manual_seed(s["seed"])
    if pretrain.is_small(s["model"]):
        folder = pretrain.small_bert(s["model"])
    else:
        folder = Path(s["model"])
        if not folder.is_dir():
            raise UserError(f"--model {folder}: no such folder (one with config.json and "
                            "model.safetensors is expected, or small)")
    tokenizer = data.load_tokenizer(folder)
    config, _ = bert.read_config(folder)
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the "
                        f"embedding only {config.vocab_size}")
    if s["max_length"] > config.max_position_embeddings:
        raise UserError(f"--max-length {s['max_length']}: {folder} has positions for "
                        f"{config.max_position_embeddings} tokens")
    classes = len(task.labels) or 1
    if s["model"].startswith("untrained"):
        model, fresh = bert.create(config, "classification", classes), ["everything"]
    else:
        model, fresh = bert.load(folder, "classification", classes)
    if not s["train_embeddings"]:
        model.bert.embeddings.requires_grad_(False)
    return model.to(s["device"]), tokenizer, folder, fresh


# ---------------------------------------------------------------------------------- the loop


def task_loss(logits, labels):  # (B, C), (B)
    if logits.shape[1] == 1:
        return F.mse_loss(logits.squeeze(1), labels)
    return F.cross_entropy(logits, labels)


def forward(model, batch, precision: str):
    """Logits in fp32; the matrix products inside in bf16 where the run says so."""
    with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, precision == "bf16"):
        logits = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    return logits.float()  # (B, C)


def rate(t: int, T: int, warmup: float) -> float:
    """Learning-rate factor at step t: up linearly over the warm-up, then down to 0 at T."""
    rise = max(1, round(warmup * T))
    return t / rise if t < rise else (T - t) / max(1, T - rise)


def make_optimizer(model, pruner, s):
    pruned = {id(m.weight) for m in pruner.matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in pruned]
    groups = [{"params": pruner.weights() + rest, "lr": s["lr"]}]
    if pruner.scores():
        groups.append({"params": pruner.scores(), "lr": s["score_lr"]})
    # weight decay 0: decay would pull scores to 0, that is, towards being kept
    return torch.optim.AdamW(groups, weight_decay=0.0, eps=1e-8, fused=s["device"] != "mps")


def train(model, pruner, features, schedule, s, progress) -> None:
    """Fine-prune `model` in place; `progress(t, loss, lr)` is told of each step."""
    T = schedule.T
    optimizer = make_optimizer(model, pruner, s)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: rate(t, T, s["warmup"]))
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    model.train()
    for t, index in zip(range(T), endless(features, s["batch_size"], s["seed"])):
        pruner.refresh(t)
        loss = 0.0
        for piece in np.array_split(index, min(s["grad_accum"], len(index))):
            batch = data.collate(features, piece, s["device"])
            L = task_loss(forward(model, batch, s["precision"]), batch["labels"])
            L = L * len(piece) / len(index)
            L.backward()
            loss += L.item()
        if not math.isfinite(loss):
            raise RunError(f"the loss is {loss} at step {t}; lower --lr or --score-lr")
        pruner.backward(t, scheduler.get_last_lr()[-1])
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        progress(t, loss, scheduler.get_last_lr())
    pruner.refresh(T, training=False)


def endless(features, batch_size, seed):
    epoch = 0
    while True:
        yield from data.batches(features, batch_size, seed, epoch)
        epoch += 1


@torch.no_grad()
def predict(model, features, s) -> np.ndarray:
    """Logits (rows, C) in the rows' order."""
    model.eval()
    logits = {}
    for index in data.batches_in_order(features, 2 * s["batch_size"]):
        out = forward(model, data.collate(features, index, s["device"]), s["precision"])
        logits.update(zip(index.tolist(), out.cpu().numpy()))
    return np.stack([logits[i] for i in range(len(features))])


def evaluate(model, task: data.Task, splits: dict, s) -> dict[str, float]:
    """Metrics of every evaluation split, the split's name appended to the metric's."""
    found = {}
    for split, features in splits.items():
        logits = predict(model, features, s)  # (rows, C)
        p = logits.argmax(1) if task.labels else logits[:, 0]
        found |= {name + split: v for name, v in task.metrics(p, features.labels).items()}
    return found


# ------------------------------------------------------------------------------ the command


class Progress:
    """The bar (loss, density, rate), or ten plain lines; and log.jsonl."""

    def __init__(self, folder: Path, pruner, T: int):
        self.pruner, self.T = pruner, T
        self.file = open(folder / "log.jsonl", "w")
        self.bar = tqdm(total=T, unit="step", mininterval=0.5, disable=None)
        self.smooth = None

    def __call__(self, t: int, loss: float, rates: list[float]) -> None:
        self.smooth = loss if self.smooth is None else 0.98 * self.smooth + 0.02 * loss
        self.bar.update()
        if t % 10 and t + 1 != self.T:
            return
        density = self.pruner.density()
        row = {"step": t, "loss": loss, "density": density, "penalty": self.pruner.penalty,
               "lr": rates[0], "score_lr": rates[-1] if len(rates) > 1 else None}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        shown = f"loss {self.smooth:.3f} · density {density:.3f} · lr {rates[0]:.1e}"
        self.bar.set_postfix_str(shown, refresh=False)
        if self.bar.disable and (t + 1) * 10 // self.T > max(0, t - 9) * 10 // self.T:
            print(f"step {t + 1}/{self.T} · {shown}", flush=True)

    def close(self):
        self.bar.close()
        self.file.close()


def describe(s, rows, splits, model, pruner, fresh, schedule, folder, why) -> str:
    """The block that says what will happen before it happens."""
    task, T = data.TASKS[s["task"]], schedule.T
    generated = "generated sample; real rows: --data DIR" if s["data"] == "sample" else s["data"]
    evaluated = " + ".join(f"{len(r):,}{k.replace('_', ' ')}" for k, r in splits.items())
    entries = sum(m.W.numel() for m in pruner.matrices)
    parameters = sum(p.numel() for p in model.parameters())
    kind = "generated text; real weights: --model DIR" if pretrain.is_small(s["model"]) else ""
    if s["penalty"] is not None:
        aim = f"λ fixed at {s['penalty']:g} (the density follows from it)"
    elif pruner.has_penalty:
        aim = f"keep {s['keep']:g} of the weights, λ found while training"
    else:
        aim = f"keep {s['keep']:g} of the weights" if pruner.masked else "all weights stay"
    if pruner.method.ranked:
        aim += f", {s['scope']} ranks"
    rates = f"learning rate {s['lr']:g}" + (
        f", scores {s['score_lr']:g}" if pruner.method.learned else "")
    at = [0, schedule.t_i, (T + schedule.t_i - schedule.t_f) // 2, T - schedule.t_f, T]
    plan = " → ".join(f"{schedule.keep(t, s['keep']):.3g} @ {t}" for t in at)
    lines = {
        "task": f"{s['task']} · {len(task.labels) or 'regression,'} "
                f"{'classes' if task.labels else 'one value'}",
        "data": f"{generated} · {len(rows):,} training rows · {evaluated} evaluation rows"
                + (" held out of training" if s["held_out"] else ""),
        "model": f"{s['model']} · {parameters / 1e6:.1f} M parameters, {entries / 1e6:.1f} M of "
                 f"them in {len(pruner.matrices)} matrices to prune" + (f" · {kind}" * bool(kind)),
        "new": ", ".join(fresh) + " (randomly initialised)" if fresh else "nothing",
        "method": f"{s['method']} · {aim} · {rates}",
        "schedule": (f"kept @ step: {plan}" if pruner.masked else f"{T} steps")
                    + f" · batch {s['batch_size']} · {T * s['batch_size'] / len(rows):.1f} epochs",
        "machine": f"{s['device']} · {torch.get_num_threads()} threads · {s['precision']} ({why})",
        "output": str(folder),
    }
    return "\n".join(f"{name:9} {text}" for name, text in lines.items())


def on_target(pruner, s, density: float) -> bool:
    """Did a run with --keep end within 0.005 of it (0.002 below 0.05)?"""
    if not pruner.masked or s["penalty"] is not None:
        return True
    good = abs(density - s["keep"]) <= (0.002 if s["keep"] < 0.05 else 0.005)
    if not good:
        print(f"WARNING: density {density:.4f} missed --keep {s['keep']:g}; more --steps or a "
              "higher --score-lr lets the scores travel further")
    return good


def report(metrics: dict, folder: Path) -> str:
    values = metrics["metrics"] | {"density": metrics["density"]}
    width = max(map(len, values))
    table = "\n".join(f"  {name:{width}}  {v:8.4g}" for name, v in values.items())
    return (f"{table}\n  {metrics['nonzero_parameters']:,} non-zero parameters in the encoder's "
            f"matrices, {metrics['nonzero_parameters_total']:,} in the whole model\n"
            f"saved in {folder} · trained in {metrics['train_seconds']:.0f} s")


def main() -> None:
    args = make_parser().parse_args()
    s = settings(args)
    task = data.TASKS[s["task"]]
    name = f"{s['task']}-{s['method']}-{s['keep']:g}-s{s['seed']}"
    folder = runs.choose_folder(args.output, name.replace("-1-s", "-s"), args.overwrite)
    rows, splits = load_rows(s, task)
    schedule = make_schedule(s, len(rows))
    model, tokenizer, model_folder, fresh = load_model(s, task)
    s["precision"], why = choose_precision(
        s["precision"], s["device"], model.bert.config.hidden_size)
    pruner = masking.Pruner(masking.encoder_matrices(model), s["method"], s["keep"], schedule,
                            s["scope"], s["penalty"], s["seed"])
    print(describe(s, rows, splits, model, pruner, fresh, schedule, folder, why), flush=True)
    if args.dry_run:
        return
    features = data.encode(rows, tokenizer, s["max_length"])
    held = {k: data.encode(r, tokenizer, s["max_length"]) for k, r in splits.items()}
    runs.empty_folder(folder)
    write_json(folder / "run.json", {
        **s, "steps": schedule.T, "data_fingerprint": rows.fingerprint, **runs.versions()})
    progress = Progress(folder, pruner, schedule.T)
    began = time.perf_counter()
    try:
        train(model, pruner, features, schedule, s, progress)
    finally:
        progress.close()
    seconds = time.perf_counter() - began
    found = evaluate(model, task, held, s)
    size = runs.sizes(model, pruner)
    metrics = {
        "task": s["task"], "data": s["data"] if s["data"] == "sample" else Path(s["data"]).name,
        "model": s["model"], "method": s["method"],
        "scope": s["scope"] if pruner.method.ranked else "global", "keep": s["keep"], **size,
        "penalty": pruner.penalty if pruner.has_penalty else None,
        "on_target": on_target(pruner, s, size["density"]), "metrics": found,
        "train_rows": len(rows), "eval_rows": sum(len(r) for r in splits.values()),
        "steps": schedule.T, "train_seconds": seconds, "seed": s["seed"],
    }
    labels = list(task.labels) or ["score"]
    runs.save(folder, model, labels, tokenizer, model_folder, pruner)
    write_json(folder / "metrics.json", metrics)
    print(report(metrics, folder))


if __name__ == "__main__":
    run_main(main)
