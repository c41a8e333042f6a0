"""Metrics of a finished run, an exported folder, or any Hugging Face BERT fine-tuned for a task.

    python evaluate.py runs/mnli-movement-0.1-s0                      settings come from the folder
    python evaluate.py path/to/bert-mnli --task mnli --data download  somebody else's model
    python evaluate.py runs/sst2-movement-0.1-s0 --predict test.tsv   a file for GLUE's server
    python evaluate.py runs/sst2-movement-0.1-s0 --text "a fine film" what it says of one text
    python evaluate.py runs/mnli-movement-0.03-s0 --sparse            skip the zeros in products
"""

import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

import bert
import data
import distill
import masking
from sample import generate, pretrain
from support import cli, csr, download, files, recorded, report, squad
from support.files import UserError, read_lines, run_main, write_atomically, write_json
from support.parallel import choose_device, choose_precision
from support.scale import Scale, standardise
from support.tokenizer import load_tokenizer

WATCHED = 1_000  # rows that --eval-every measures at most


@dataclass(frozen=True)
class Settings:
    """What an evaluation depends on; all but the last are in train.Settings too."""

    task: str
    data: str = "sample"
    max_length: int = 128
    doc_stride: int = 128
    batch_size: int = 32
    precision: str = "auto"
    device: str = "auto"
    max_eval_rows: int | None = None
    held_out: float | None = None
    own_task: dict | None = None  # arguments of data.own_task, but its name


# ------------------------------------------------------------------------- data and weights


def find_task(name: str, folder: str) -> data.Task:
    """A built-in task, or one's own: FOLDER/NAME with train.tsv and dev.tsv, which have a header:
    sentence, or sentence1 and sentence2, and label or score. The labels are those of train.tsv.

    UserError for any other name.
    """
    if name in data.TASKS:
        return data.TASKS[name]
    path, official = Path(folder, name, "train.tsv"), [task.folder for task in data.TASKS.values()]
    if name in official or Path(name).name != name or not path.is_file():
        raise cli.unknown("--task", name, [*data.TASKS, "a folder of --data DIR with train.tsv"])
    lines = read_lines(path)
    header = next(lines, "").split("\t")
    labels = set()
    if "label" in header:
        position = header.index("label")
        labels = {fields[position] for fields in (line.split("\t") for line in lines)
                  if len(fields) > position} - {""}  # read_file reports malformed lines
        if len(labels) < 2:
            raise UserError(f"{path}: needs two labels at least, but has "
                            + (", ".join(labels) or "none"))
    return data.own_task(name, ["sentence"] if "sentence" in header else data.PAIR, sorted(labels))


def data_folder(name: str, task: data.Task) -> Path:
    """The folder that holds the task's files; the sample and the downloads are made on first use.

    UserError where there is no such folder, or no sample of the task.
    """
    if name == "sample":
        return generate.sample_folder(task.folder)
    if name == "download":
        return download.official_files(task.folder)
    if not Path(name).is_dir():
        raise UserError(f"--data {name}: no such folder (it should hold MNLI/, QQP/, SQuAD/, …)")
    return Path(name)


def model_folder(name: str, offline: bool = False) -> Path | None:
    """Where the weights are: the small BERT's cache, a folder, or huggingface_hub's cache.

    With offline=True, the Hub is not asked; None if its cache lacks the model.
    """
    if pretrain.is_small(name):
        return pretrain.small_bert(name)
    if Path(name).exists():
        return Path(name)
    return download.model_folder(name, offline)


def missing_inputs(settings, task: data.Task) -> list[str]:
    """What a run (train.Settings) would have to generate, pretrain or download before it starts."""
    steps = []
    if settings.data == "sample" and not generate.is_there(task.folder):
        steps.append(f"generate the sample of {task.folder}")
    if settings.data == "download" and not download.is_there(task.folder):
        steps.append(f"download {task.folder}")
    if pretrain.is_small(settings.model):
        if not pretrain.is_there(settings.model):
            steps.append(f"learn a vocabulary for {settings.model} from generated text"
                         if pretrain.is_untrained(settings.model) else
                         f"pretrain {settings.model} on generated text (about two minutes)")
    elif not model_folder(settings.model, offline=True):
        steps.append(f"download {settings.model}")
    return steps


def load_rows(settings, task: data.Task, training: bool = True):
    """→ training rows (None if not `training`), and evaluation rows by split.

    With settings.held_out, that share of the training rows is left out of them, drawn with a fixed
    seed, and is one more split, report.HELD_OUT. All is read and checked before rows are drawn.
    """
    folder = data_folder(settings.data, task)
    train_rows = data.read(task, folder, "train") if training or settings.held_out else None
    eval_rows = {split: data.read(task, folder, split) for split in task.dev}
    if settings.held_out:
        order = np.random.default_rng(0).permutation(len(train_rows))
        count = max(1, round(settings.held_out * len(train_rows)))
        if count == len(train_rows):
            raise UserError(f"--held-out {settings.held_out:g} leaves no training row of {count}")
        eval_rows[report.HELD_OUT] = train_rows.take(np.sort(order[:count]))
        train_rows = train_rows.take(np.sort(order[count:]))
    train_rows = data.draw(train_rows, settings.max_train_rows) if training else None
    return train_rows, {split: data.draw(rows, settings.max_eval_rows)
                        for split, rows in eval_rows.items()}


def encode(task: data.Task, rows, tokenizer, settings, training: bool = False) -> data.Features:
    return data.encode(task, rows, tokenizer, settings.max_length, settings.doc_stride, training)


def encode_all(task: data.Task, eval_rows: dict, tokenizer, settings) -> dict:
    """Evaluation rows by split → (rows, features) by split."""
    return {split: (rows, encode(task, rows, tokenizer, settings))
            for split, rows in eval_rows.items()}


def watched_rows(settings, prepared: "Prepared") -> dict:
    """For --eval-every, a fixed part of the evaluation rows: 1,000 at most; else nothing."""
    task = prepared.task
    rows = {split: data.draw(prepared.evaluated[split][0], WATCHED // len(task.dev))
            for split in task.dev if settings.eval_every}
    return encode_all(task, rows, prepared.tokenizer, settings)


def check_fits(config: bert.Config, tokenizer, folder: Path, task: data.Task, max_length: int):
    """UserError for tokens, segments and positions that the embeddings have no row for."""
    largest = max(tokenizer.get_vocab().values())  # numbers may have gaps
    if largest >= config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has token number {largest}, the embedding only "
                        f"{config.vocab_size}")
    if (task.span or len(task.columns) == 2) and config.type_vocab_size < 2:
        raise UserError(f"{folder}: it has no second segment, which pairs of texts need")
    if max_length > config.max_position_embeddings:
        raise UserError(f"--max-length {max_length}: {folder} has positions for "
                        f"{config.max_position_embeddings} tokens")


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs before its first step."""

    task: data.Task
    rows: object  # training rows: data.Rows or squad.Questions
    features: data.Features
    evaluated: dict  # split → (rows, features)
    model: torch.nn.Module
    tokenizer: object
    model_folder: Path  # where the starting weights and the tokenizer came from
    fresh: list[str]  # names of freshly initialised tensors
    scale: Scale  # of the scores of an own task


def prepare_run(settings, task: data.Task, offline: bool = False) -> Prepared:
    """Read and check data and model; the sample, the small BERT and downloads are made first."""
    rows, eval_rows = load_rows(settings, task)
    folder = model_folder(settings.model, offline)
    tokenizer = load_tokenizer(folder)
    config, _ = bert.read_config(folder)
    check_fits(config, tokenizer, folder, task, settings.max_length)
    torch.manual_seed(settings.seed)  # after pretraining, which draws numbers too
    if pretrain.is_untrained(settings.model):
        model, fresh = bert.create(config, *task.head), ["everything"]
    else:
        model, fresh = bert.load(folder, *task.head)
    if not settings.train_embeddings:
        model.bert.embeddings.requires_grad_(False)
    features = encode(task, rows, tokenizer, settings, training=True)
    any_scores = not (task.labels or task.span or task.range)
    scale = standardise(features, model, bool(fresh)) if any_scores else Scale()
    return Prepared(task, rows, features, encode_all(task, eval_rows, tokenizer, settings),
                    model.to(settings.device), tokenizer, folder, fresh, scale)


# -------------------------------------------------------------------- predictions and metrics


def forward(model, batch: dict[str, torch.Tensor], precision: str) -> torch.Tensor:
    """Logits in fp32; the matrix products inside in bf16 where the run says so."""
    with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, precision == "bf16"):
        logits = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    return logits.float()  # (B, C), for spans (B, T, 2)


@torch.no_grad()
def predict(model, features: data.Features, settings) -> list[np.ndarray]:
    """Logits in the order of the rows: (C) each, for spans (tokens of the row, 2)."""
    model.eval()
    outputs = [None] * len(features)
    # twice the rows of a training batch fit, since nothing is kept for a backward pass
    for index in data.batches_in_order(features, 2 * settings.batch_size):
        batch = data.collate(features, index, settings.device)
        logits = forward(model, batch, settings.precision).cpu().numpy()
        if not np.isfinite(logits).all():
            raise files.RunError("the model's outputs are not numbers; its weights are too large")
        for i, row in zip(index, logits):
            outputs[i] = row[: features.lengths[i]].copy() if row.ndim == 2 else row
    return outputs


def evaluate(model, task: data.Task, evaluated: dict, settings, order=()) -> tuple[dict, dict]:
    """Metrics (0 to 100) and predictions of a model.

    Args:
        evaluated: split → (rows, features); a split's name is appended to its metrics' names.
        order: of the model's classes, from distill.label_order.

    Returns:
        metrics by name; and by split class numbers or values (rows,), for spans the pair
        (answers by question id, the n best of each).
    """
    metrics, predictions = {}, {}
    for split, (rows, features) in evaluated.items():
        logits = distill.reorder(predict(model, features, settings), order)
        if task.span:
            predictions[split] = squad.decode(rows, features, logits)
            values = squad.metrics(predictions[split][0], rows)
        else:
            stacked = np.stack(logits)  # (rows, C)
            predictions[split] = stacked.argmax(1) if task.labels else stacked[:, 0]
            values = task.metrics(predictions[split], features.labels)
        metrics |= {name + split: value for name, value in values.items()}
    return metrics, predictions


def has_collapsed(task: data.Task, evaluated: dict, metrics: dict, predictions: dict) -> bool:
    """Did the model lose its task? Judged on the evaluation rows, without those held out.

    For spans, F1 is below 15. For classes, every row got the same class, or the accuracy is at most
    two standard errors above that of always answering the commonest class. Never true of
    regression, nor of fewer than 20 rows, which are too few to tell.
    """
    labels = np.concatenate([evaluated[split][1].labels for split in task.dev])  # (rows, …)
    if len(labels) < 20 or not (task.span or task.labels):
        return False
    if task.span:
        return metrics["f1"] < 15
    classes = np.concatenate([predictions[split] for split in task.dev])  # (rows,)
    commonest = np.bincount(labels).max() / len(labels)
    error = np.sqrt(commonest * (1 - commonest) / len(labels))
    return bool(np.ptp(classes) == 0 or np.mean(classes == labels) <= commonest + 2 * error)


# -------------------------------------------------------------------------------- the command


def make_parser() -> cli.Parser:
    p = cli.Parser(description=__doc__)
    p.add_argument("folder", type=Path, metavar="FOLDER", help="a run, its export, or any BERT")
    p.add_argument("--task", metavar="TASK",
                   help="only for another program's folder: any --task of train.py")
    p.add_argument("--data", metavar="DIR", help="sample, download or a folder (default: as run)")
    other = p.add_mutually_exclusive_group()
    other.add_argument("--predict", type=Path, metavar="FILE",
                       help="label the rows of this file instead of measuring")
    other.add_argument("--text", nargs="+", metavar="TEXT",
                       help="classify this sentence, or these two, instead of measuring")
    p.add_argument("--sparse", action="store_true", help="sparse matrix products (CPU, fp32)")
    p.add_argument("--max-eval-rows", type=cli.count, metavar="N",
                   help="draw N rows of each file (default: as run)")
    p.add_argument("--batch-size", type=cli.count, metavar="ROWS",
                   help="of training; twice as many are evaluated at a time (default: as run)")
    p.add_argument("--precision", choices=["auto", "fp32", "bf16"], metavar="KIND",
                   help="auto, fp32 or bf16 (default: as run)")
    p.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
                   metavar="NAME", help="cpu, cuda, mps, or auto, the fastest there is")
    return p


def resolve(args) -> Settings:
    """Flags, else what the run recorded, else the defaults."""
    given = {f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)}
    given = {name: value for name, value in given.items() if value is not None}
    if not args.folder.is_dir():
        raise UserError(f"{args.folder}: no such folder (a run's, or another fine-tuned BERT's)")
    values = recorded.settings(args.folder, list(data.TASKS))
    if args.task not in (None, values.get("task")):
        values["own_task"] = None
    if args.data is not None:  # the run held out a share of its own data, not of this
        values["held_out"] = None
    values |= given | {"device": choose_device(args.device)}
    if "task" not in values:
        raise UserError(f"{args.folder}: no run.json says what it was trained for; give --task")
    if values["task"] == "squad":
        values.setdefault("max_length", 384)
    return Settings(**values)


def prepare(args):
    """→ settings, task, model, the order of its classes, tokenizer; all checked."""
    settings = resolve(args)
    task = (data.own_task(settings.task, **settings.own_task) if settings.own_task else
            find_task(settings.task, settings.data))
    model, order = distill.load_fine_tuned(args.folder, task)
    config, tokenizer = model.bert.config, load_tokenizer(args.folder)
    device = "cpu" if args.sparse else settings.device
    precision, _ = choose_precision("fp32" if args.sparse else settings.precision, device,
                                    config.hidden_size)
    settings = replace(settings, device=device, precision=precision, max_length=min(
        settings.max_length, config.max_position_embeddings))
    check_fits(config, tokenizer, args.folder, task, settings.max_length)
    return settings, task, model.to(device), order, tokenizer


def outputs_of(rows, task, model, tokenizer, settings, order) -> tuple[list, data.Features]:
    """→ logits of each row, the classes in the task's order, and features."""
    features = encode(task, rows, tokenizer, settings)
    return distill.reorder(predict(model, features, settings), order), features


def classify(texts: list[str], task: data.Task, *parts) -> None:
    """Print the classes of one sentence or pair with their probabilities, or its score."""
    if len(texts) != len(task.columns):
        raise UserError("--text: this task takes " + (", ".join(task.columns) or "--predict only"))
    if any("\udc80" <= letter <= "\udcff" for letter in "".join(texts)):
        raise UserError("--text: not UTF-8")
    [logits], _ = outputs_of(data.Rows([tuple(texts)], np.zeros(1)), task, *parts)
    values = torch.from_numpy(logits).softmax(0).tolist() if task.labels else logits.tolist()
    for name, value in zip(task.output_names, values):
        print(f"  {name:24} {value:8.4f}")


def write_predictions(args, model, task, tokenizer, settings, order) -> None:
    """FOLDER/predictions-NAME in the layout of GLUE's server (index, prediction), or SQuAD's."""
    out = args.folder / f"predictions-{args.predict.stem}.{'json' if task.span else 'tsv'}"
    rows = data.read_file(task, args.predict, labelled=False)
    logits, features = outputs_of(rows, task, model, tokenizer, settings, order)
    if task.span:
        write_json(out, squad.decode(rows, features, logits)[0])
    else:
        stacked = np.stack(logits)  # (rows, C)
        low, high = task.range or (-np.inf, np.inf)
        values = ([task.labels[c] for c in stacked.argmax(1)] if task.labels
                  else [f"{value:.6g}" for value in stacked[:, 0].clip(low, high)])
        lines = ["index\tprediction", *(f"{i}\t{value}" for i, value in enumerate(values))]
        write_atomically(out, "".join(line + "\n" for line in lines))
    print(f"{len(rows):,} rows → {out}")


def main() -> None:
    args = make_parser().parse_args()
    settings, task, model, order, tokenizer = prepare(args)
    if args.sparse:
        count = csr.sparsify(model, masking.encoder_matrices(model))
        print(f"{count} matrices are multiplied sparsely; the others are too dense to gain")
    print(f"{args.folder} · {settings.task} · {settings.device}, {settings.precision}")
    if args.text:
        return classify(args.text, task, model, tokenizer, settings, order)
    if args.predict:
        return write_predictions(args, model, task, tokenizer, settings, order)
    _, eval_rows = load_rows(settings, task, training=False)
    evaluated = encode_all(task, eval_rows, tokenizer, settings)
    print(f"{report.source(settings.data)} · {report.evaluation_rows(evaluated)}")
    began = time.perf_counter()
    metrics, _ = evaluate(model, task, evaluated, settings, order)
    seconds = time.perf_counter() - began
    for name, value in metrics.items():
        print(f"  {name:24} {value:8.4g}")
    inputs = sum(len(features) for _, features in evaluated.values())
    print(f"{inputs:,} inputs in {seconds:.1f} s ({inputs / seconds:.0f} a second)")
    write_json(args.folder / "evaluation.json", {
        "task": settings.task, "data": Path(settings.data).name, **report.by_rows(metrics),
        "eval_rows": sum(len(evaluated[split][0]) for split in task.dev), "inputs": inputs,
        "held_out": settings.held_out, "precision": settings.precision, "sparse": args.sparse,
        "seconds": seconds})


if __name__ == "__main__":
    run_main(main)
