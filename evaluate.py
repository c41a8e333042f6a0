"""Metrics of a finished run, an exported folder, or any Hugging Face BERT fine-tuned for a task.

    python evaluate.py runs/mnli-movement-0.1-s0                      settings come from the folder
    python evaluate.py path/to/bert-mnli --task mnli --data download  somebody else's model
    python evaluate.py runs/sst2-movement-0.1-s0 --predict test.tsv   a file for GLUE's server
    python evaluate.py runs/mnli-movement-0.03-s0 --sparse            leave out the zeros
"""

import time
from pathlib import Path

import numpy as np

import data
import distill
import train
from settings import choose_device, choose_precision
from support import cli, report, squad
from support.files import UserError, read_json, run_main, write_atomically, write_json
from tools import sparse


def is_count(value) -> bool:
    return type(value) is int and 0 < value < 10**9


KEPT = {  # what is taken from run.json, and the values that train.py can have written
    "task": lambda v: v in list(data.TASKS), "data": lambda v: isinstance(v, str),
    "max_length": is_count, "doc_stride": is_count, "batch_size": is_count,
    "max_eval_rows": lambda v: v is None or is_count(v),
    "held_out": lambda v: v is None or (type(v) is float and 0 < v < 1),
    "precision": lambda v: v in ("auto", "fp32", "bf16")}


def make_parser() -> cli.Parser:
    p = cli.Parser(description=__doc__)
    p.add_argument("folder", type=Path, metavar="FOLDER", help="a run, its export, or any BERT")
    p.add_argument("--task", choices=list(data.TASKS), metavar="TASK",
                   help="only for another program's folder: " + ", ".join(data.TASKS))
    p.add_argument("--data", metavar="DIR", help="sample, download or a folder (default: as run)")
    p.add_argument("--predict", type=Path, metavar="FILE",
                   help="label this file's rows in place of measuring")
    p.add_argument("--sparse", action="store_true", help="sparse matrix products (CPU, fp32)")
    p.add_argument("--max-eval-rows", type=cli.count, metavar="N",
                   help="draw N rows of each file (default: as run)")
    p.add_argument("--batch-size", type=cli.count, metavar="ROWS", help="default: as run")
    p.add_argument("--precision", choices=["auto", "fp32", "bf16"], metavar="KIND",
                   help="auto, fp32 or bf16 (default: as run)")
    p.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
                   metavar="NAME", help="cpu, cuda, mps, or auto, the fastest there is")
    return p


def settings(args) -> dict:
    """Flags over the run's own settings over defaults."""
    s = {"data": "sample", "max_length": 384 if args.task == "squad" else 128, "doc_stride": 128,
         "batch_size": 32, "precision": "auto", "max_eval_rows": None, "held_out": None}
    for place in (args.folder, args.folder.parent):  # RUN/export belongs to RUN
        if (place / "run.json").exists():
            known = read_json(place / "run.json")
            s |= {k: known[k] for k in KEPT if k in known}
            for k, good in KEPT.items():
                if k in s and not good(s[k]):
                    raise UserError(f"{place / 'run.json'}: {k} is {s[k]!r}; not as train.py "
                                    "writes it")
            break
    s |= {k: v for k, v in vars(args).items() if k in KEPT and v is not None}
    if args.data is not None:  # the run held out a share of its own data
        s["held_out"] = None
    if "task" not in s:
        raise UserError(f"{args.folder}: no run.json says what it was trained for; give --task")
    s["device"] = choose_device(args.device)
    return s


def per_class(task: data.Task, predicted: np.ndarray, labels: np.ndarray) -> str:
    """Precision, recall and F1 of each class, in percent."""
    lines = [f"  {'class':16} {'rows':>7} {'precision':>9} {'recall':>7} {'f1':>6}"]
    for c, name in enumerate(task.labels):
        right = np.sum((predicted == c) & (labels == c))
        precision = 100 * right / max(1, np.sum(predicted == c))
        recall = 100 * right / max(1, np.sum(labels == c))
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        rows = np.sum(labels == c)
        lines.append(f"  {name:16} {rows:7,} {precision:9.1f} {recall:7.1f} {f1:6.1f}")
    return "\n".join(lines)


def write_predictions(args, model, task, tokenizer, s, order) -> None:
    """FOLDER/predictions-NAME: GLUE's submission layout (index, prediction), or SQuAD's JSON."""
    rows = data.read_file(task, args.predict, labelled=False)
    features = data.encode(task, rows, tokenizer, s["max_length"], s["doc_stride"])
    if task.span:
        out = args.folder / f"predictions-{args.predict.stem}.json"
        write_json(out, squad.decode(rows, features, train.predict(model, features, s))[0])
    else:
        logits = np.stack(distill.reorder(train.predict(model, features, s), order))  # (rows, C)
        said = ([task.labels[c] for c in logits.argmax(1)] if task.labels
                else [f"{v:.3f}" for v in logits[:, 0].clip(0, 5)])
        lines = ["index\tprediction", *(f"{i}\t{value}" for i, value in enumerate(said))]
        out = args.folder / f"predictions-{args.predict.stem}.tsv"
        write_atomically(out, "".join(line + "\n" for line in lines))
    print(f"{len(rows):,} rows → {out}")


def prepare(args):
    """→ settings, task, model, the order of its classes, tokenizer; all checked."""
    s = settings(args)
    task = data.TASKS[s["task"]]
    model, order = distill.load_fine_tuned(args.folder, task)
    model, tokenizer = model.to(s["device"]), data.load_tokenizer(args.folder)
    s["max_length"] = min(s["max_length"], model.bert.config.max_position_embeddings)
    train.check_fits(model.bert.config, tokenizer, args.folder, task, s["max_length"])
    s["precision"] = choose_precision(s["precision"], s["device"], model.bert.config.hidden_size)[0]
    return s, task, model, order, tokenizer


def held_rows(s: dict, task: data.Task, tokenizer) -> dict:
    """Evaluation split → (rows, features)."""
    _, splits = train.load_rows(s, task, training=False)
    return {k: (r, data.encode(task, r, tokenizer, s["max_length"], s["doc_stride"]))
            for k, r in splits.items()}


def main() -> None:
    args = make_parser().parse_args()
    s, task, model, order, tokenizer = prepare(args)
    if args.sparse:
        s["precision"], s["device"] = "fp32", "cpu"
        print(f"{sparse.sparsify(model.cpu())} matrices are multiplied sparsely; the others are "
              "too dense to gain")
    print(f"{args.folder} · {s['task']} · {s['device']}, {s['precision']}")
    if args.predict:
        return write_predictions(args, model, task, tokenizer, s, order)
    held = held_rows(s, task, tokenizer)
    print(f"{report.source(s)} · {report.evaluated(s, held)}")
    began = time.perf_counter()
    metrics, predicted = train.evaluate(model, task, held, s, order)
    seconds = time.perf_counter() - began
    for name, value in metrics.items():
        print(f"  {name:24} {value:8.4g}")
    for split, (_, features) in held.items():
        if task.labels:
            print(f"{split.strip('_') or 'all'} rows by class, in percent")
            print(per_class(task, predicted[split], features.labels))
    inputs = sum(len(f) for _, f in held.values())
    print(f"{inputs:,} inputs in {seconds:.1f} s ({inputs / seconds:.0f} a second)")
    write_json(args.folder / "evaluation.json", {
        "task": s["task"], "data": Path(s["data"]).name, "metrics": metrics, "inputs": inputs,
        "eval_rows": sum(len(r) for r, _ in held.values()), "held_out": s["held_out"],
        "precision": s["precision"], "sparse": args.sparse, "seconds": seconds})


if __name__ == "__main__":
    run_main(main)
