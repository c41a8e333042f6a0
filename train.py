"""Fine-prune BERT: the one training loop and the command around it (Sanh, Wolf, Rush 2020).

    python train.py --task mnli --method movement       generated sample, small BERT
    python train.py --task mnli --method soft_movement --keep 0.03
    python train.py --task squad --method magnitude --data DIR --model path/to/bert
    python train.py --task mnli --method movement --teacher runs/mnli-dense-s0

Data flows one way: rows → features → batches → model (and masks) → loss → step → metrics → folder.
Recipes and flags are in settings.py, what a run says and leaves behind is in runs.py.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import bert
import data
import distill
import masking
from sample import generate as sample_data
from sample import pretrain
from settings import choose_precision, make_parser, make_schedule, settings
from support import checkpoints as runs
from support import download, parallel, report, squad
from support.files import RunError, UserError, run_main, write_json

# ----------------------------------------------------------------- rows, features and model


def data_folder(name: str, task_name: str) -> Path:
    """The folder of the official files; sample and download are made on first use."""
    if name == "sample":
        return sample_data.sample_folder(data.TASKS[task_name].folder)
    if name == "download":
        return download.data_folder(task_name)
    if not Path(name).is_dir():
        raise UserError(f"--data {name}: no such folder (it should hold MNLI/, QQP/, SQuAD/, …)")
    return Path(name)


def read(task: data.Task, folder: Path, split: str):
    """Rows of GLUE, or questions of SQuAD; `split` as in data.read."""
    return squad.read(data.file_of(task, folder, split)) if task.span else data.read(
        task, folder, split)


def load_rows(s: dict, task: data.Task, training: bool = True):
    """Training rows (None if they are not wanted), and evaluation rows by split. All is read and
    checked before rows are drawn."""
    folder = data_folder(s["data"], s["task"])
    train = read(task, folder, "train") if training or s["held_out"] else None
    if s["held_out"]:
        order = np.random.default_rng(0).permutation(len(train))
        cut = max(1, round(s["held_out"] * len(train)))
        held = {"": train.take(np.sort(order[:cut]))}
        train = train.take(np.sort(order[cut:]))
    else:
        held = {split: read(task, folder, split) for split, _ in task.dev}
    train = data.draw(train, s["max_train_rows"]) if training else None
    return train, {split: data.draw(rows, s["max_eval_rows"]) for split, rows in held.items()}


def encode(task: data.Task, rows, tokenizer, s: dict, training: bool = False) -> data.Features:
    if task.span:
        return squad.encode(rows, tokenizer, s["max_length"], s["doc_stride"], training=training)
    return data.encode_cached(rows, tokenizer, s["max_length"])


def model_folder(name: str) -> Path:
    """Where the weights are: the small BERT's cache, a folder, or huggingface_hub's cache."""
    if pretrain.is_small(name):
        return pretrain.small_bert(name)
    if Path(name).is_dir():
        return Path(name)
    return download.model_folder(name)


def check_fits(config: bert.Config, tokenizer, folder: Path, task: data.Task, max_length: int):
    """Refuse tokens, segments and positions that the embeddings have no row for."""
    largest = max(tokenizer.get_vocab().values())  # numbers may have gaps
    if largest >= config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has token number {largest}, the embedding only "
                        f"{config.vocab_size}")
    if (task.span or len(task.columns) == 2) and config.type_vocab_size < 2:
        raise UserError(f"{folder}: it has no second segment, which pairs of texts need")
    if max_length > config.max_position_embeddings:
        raise UserError(f"--max-length {max_length}: {folder} has positions for "
                        f"{config.max_position_embeddings} tokens")


def load_model(s: dict, task: data.Task):
    """→ model, tokenizer, its folder, names of freshly initialised tensors."""
    folder = model_folder(s["model"])
    tokenizer = data.load_tokenizer(folder)
    config, _ = bert.read_config(folder)
    check_fits(config, tokenizer, folder, task, s["max_length"])
    head, outputs = ("span", 2) if task.span else ("classification", len(task.labels) or 1)
    torch.manual_seed(s["seed"])  # after pretraining, which draws numbers too
    if pretrain.is_untrained(s["model"]):
        model, fresh = bert.create(config, head, outputs), ["everything"]
    else:
        model, fresh = bert.load(folder, head, outputs)
    if not s["train_embeddings"]:
        model.bert.embeddings.requires_grad_(False)
    return model.to(s["device"]), tokenizer, folder, fresh


# ---------------------------------------------------------------------------------- the loop


def task_loss(logits, labels, real):
    """Cross-entropy, for spans the mean of start's and end's, for regression squared error.

    logits (B, C), (B, 1) or (B, T, 2); labels (B), for spans (B, 2); real (B, T) false at padding.
    """
    if logits.dim() == 3:
        logits = logits.masked_fill(~real[:, :, None], distill.NEVER)  # (B, T, 2)
        return sum(F.cross_entropy(logits[:, :, i], labels[:, i]) for i in (0, 1)) / 2
    if logits.shape[1] == 1:
        return F.mse_loss(logits.squeeze(1), labels)
    return F.cross_entropy(logits, labels)


def forward(model, batch, precision: str):
    """Logits in fp32; the matrix products inside in bf16 where the run says so."""
    with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, precision == "bf16"):
        logits = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    return logits.float()  # (B, C), for spans (B, T, 2)


def batch_loss(model, features, index, s, teacher=None):
    """Mean loss of the rows `index`; `teacher`: its outputs for every row, or None."""
    batch = data.collate(features, index, s["device"])
    logits, real = forward(model, batch, s["precision"]), batch["attention_mask"].bool()
    L = task_loss(logits, batch["labels"], real)
    if teacher is None:
        return L
    usable = real & batch["token_type_ids"].bool()  # the passage and its [SEP]; then [CLS]
    usable[:, 0] = True
    outputs = distill.batch_outputs(teacher, index, logits)
    return distill.combined(
        L, distill.teacher_loss(logits, outputs, usable, s["temperature"]), s["alpha"])


def rate(t: int, T: int, warmup: float) -> float:
    """Learning-rate factor at step t: up linearly over the warm-up, then down to 0 at T."""
    rise = max(1, round(warmup * T))
    return t / rise if t < rise else (T - t) / max(1, T - rise)


def make_optimizer(model, pruner, s):
    """AdamW with two groups: all weights that train, and the scores at a rate of their own."""
    pruned = {id(m.weight) for m in pruner.matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in pruned]
    weights = [] if s["freeze"] == "weights" else pruner.weights()
    groups = [{"params": weights + rest, "lr": s["lr"]}]
    if pruner.scores():
        groups.append({"params": pruner.scores(), "lr": s["score_lr"]})
    # weight decay 0: it moves weights and scores towards 0 though the loss did not ask for it;
    # soft movement and L0, whose cuts are below 0, would take pruned weights back
    return torch.optim.AdamW(groups, weight_decay=0.0, eps=1e-8, fused=s["device"] != "mps")


def batches_from(step: int, features, size: int, seed: int):
    """Row numbers of the batches of step, step + 1, …: a pure function of the seed."""
    per_epoch = math.ceil(len(features) / size)
    for epoch in itertools.count(step // per_epoch):
        skip = step % per_epoch if epoch == step // per_epoch else 0
        yield from itertools.islice(data.batches(features, size, seed, epoch), skip, None)


def train(model, pruner, features, schedule, s, run, teacher=None) -> None:
    """Fine-prune `model` in place.

    `run` is told of each step and keeps checkpoints (runs.Run); `teacher` as in batch_loss.
    """
    T = schedule.T
    optimizer = make_optimizer(model, pruner, s)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: rate(t, T, s["warmup"]))
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    begin = run.restore(model, pruner, optimizer, scheduler)
    net = parallel.wrap(torch.compile(model) if s["compile"] else model)
    net.train()
    for t, index in zip(range(begin, T), batches_from(begin, features, s["batch_size"], s["seed"])):
        pruner.refresh(t)
        parallel.seed(s["seed"], t)
        loss, (rows, factor) = 0.0, parallel.share(index)
        for piece in np.array_split(rows, parallel.pieces(index, s["grad_accum"])):
            L = batch_loss(net, features, piece, s, teacher) * (len(piece) / len(rows) * factor)
            L.backward()
            loss += L.item()
        loss = parallel.mean(loss)
        rates = scheduler.get_last_lr()
        pruner.backward(t, rates[-1])
        norm = float(torch.nn.utils.clip_grad_norm_(learned, 1.0))
        if not math.isfinite(loss + norm):  # before it reaches the weights, or a checkpoint
            raise RunError(f"the loss is {loss} at step {t}, the length of its gradient {norm}; "
                           "lower --lr or --score-lr")
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        parallel.check_equal(pruner, t)
        run.step(t, loss, rates)
    pruner.refresh(T, training=False)


@torch.no_grad()
def predict(model, features, s) -> list[np.ndarray]:
    """Logits in the rows' order: (C) each, for spans (tokens of the row, 2)."""
    model.eval()
    found = [None] * len(features)
    for index in data.batches_in_order(features, 2 * s["batch_size"]):
        logits = forward(model, data.collate(features, index, s["device"]), s["precision"])
        for i, row in zip(index, logits.cpu().numpy()):
            found[i] = row[: features.lengths[i]].copy() if row.ndim == 2 else row
    return found


def evaluate(model, task: data.Task, held: dict, s, order=()) -> tuple[dict, dict]:
    """`held`: split → (rows, features); `order`: of the model's classes (distill.label_order).

    → metrics, the split's name appended to each metric's, and by split what was predicted: class
    numbers or values (rows,); for spans (answers by question id, the n best of each).
    """
    metrics, predicted = {}, {}
    for split, (rows, features) in held.items():
        logits = distill.reorder(predict(model, features, s), order)
        if task.span:
            predicted[split] = squad.decode(rows, features, logits)
            found = squad.metrics(predicted[split][0], rows)
        else:
            out = np.stack(logits)  # (rows, C)
            predicted[split] = out.argmax(1) if task.labels else out[:, 0]
            found = task.metrics(predicted[split], features.labels)
        metrics |= {name + split: value for name, value in found.items()}
    return metrics, predicted


# ------------------------------------------------------------------------------ the command


def teacher_outputs(s, task, tokenizer, features):
    """The teacher's outputs for every training row, once: without dropout they never change."""
    if not s["teacher"]:
        return None
    folder = Path(s["teacher"])
    teacher, order = distill.load_teacher(folder, task, tokenizer)
    check_fits(teacher.bert.config, tokenizer, folder, task, s["max_length"])
    return distill.reorder(predict(teacher.to(s["device"]), features, s), order)


def prepare(s: dict):
    """Everything that a run needs → task, rows, features, held-out features, model parts."""
    task = data.TASKS[s["task"]]
    rows, splits = load_rows(s, task)
    model, tokenizer, folder, fresh = load_model(s, task)
    features = encode(task, rows, tokenizer, s, training=True)
    held = {k: (r, encode(task, r, tokenizer, s)) for k, r in splits.items()}
    return task, rows, features, held, model, tokenizer, folder, fresh


def main() -> None:
    args = make_parser().parse_args()
    s = settings(args)
    s["device"] = parallel.start(s["device"])
    folder = runs.choose_folder(s, args.overwrite, args.resume)
    if args.resume and runs.finished(folder, s):
        return
    task, rows, features, held, model, tokenizer, model_folder, fresh = prepare(s)
    schedule = make_schedule(s, len(features))
    s["precision"], why = choose_precision(
        s["precision"], s["device"], model.bert.config.hidden_size)
    pruner = masking.Pruner(masking.encoder_matrices(model), s["method"], s["keep"], schedule,
                            s["scope"], s["penalty"], s["seed"])
    report.say(report.describe(s, rows, features, held, model, pruner, fresh, folder, why))
    if args.dry_run:
        return report.say(report.estimate(s, features, model, pruner))
    run = runs.Run(folder, s, pruner, rows.fingerprint, args.resume, args.overwrite)
    teacher = teacher_outputs(s, task, tokenizer, features)
    with run:
        train(model, pruner, features, schedule, s, run, teacher)
        run.end()
        if not parallel.is_main():
            return
        runs.save(folder, model, task, tokenizer, model_folder, pruner)
        found, predicted = evaluate(model, task, held, s)
        report.warn_of_one_class(task, predicted)
        metrics = report.summary(s, model, pruner, found, rows, features, held, run)
        if task.span:
            squad.write(folder, *predicted[""])
        write_json(folder / "metrics.json", metrics)
        run.forget()
    report.say(report.result(metrics, folder))


if __name__ == "__main__":
    try:
        run_main(main)
    finally:
        parallel.stop()
