"""Fine-prune BERT: the one training loop and the command around it (Sanh, Wolf, Rush 2020).

    python train.py --task mnli --method movement       generated sample, small BERT
    python train.py --task mnli --method soft_movement --keep 0.03
    python train.py --task sst2 --method magnitude --data glue --model path/to/bert

Data flows one way: rows → features → batches → model (and masks) → loss → step → metrics → folder.
Recipes and flags are in settings.py.
"""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

import bert
import data
import masking
import pretrain
import runs
import sample_data
from files import RunError, UserError, cached, run_main, write_json
from settings import choose_precision, make_parser, make_schedule, settings

# ----------------------------------------------------------------- rows, features and model


def data_folder(name: str) -> Path:
    """The folder of GLUE's files; the generated sample is written on first use."""
    if name != "sample":
        if not Path(name).is_dir():
            raise UserError(f"--data {name}: no such folder (it should hold MNLI/, QQP/, …)")
        return Path(name)
    return cached("sample", sample_data.SOURCES, "", write_sample)


def write_sample(folder: Path) -> None:
    for task in sample_data.SIZES:
        sample_data.write_task(task, folder)


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
    torch.manual_seed(s["seed"])  # after pretraining, which draws numbers too
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
