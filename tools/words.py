"""How far do words alone go? A linear model of the word pieces of a text, in no order.

    python -m tools.words --task sst2 --data DIR --model DIR --csv results/words.csv

A pruned BERT that does no better has nothing left of what made it more than a list of words. Flags
that say what is read, such as --held-out, are train.py's; of the model, only the tokenizer is used.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import data
import evaluate
import train
from support import cli, report
from support.files import UserError, run_main
from support.tokenizer import load_tokenizer
from tools import rows

RIDGE = 1.0  # weight of ½ ‖W‖² beside the summed cross-entropy: one prior for every task


def pieces(features: data.Features, vocabulary: int) -> tuple[Tensor, Tensor]:
    """→ the number of every piece (tokens), and where each row begins (rows). Those of a pair's
    second text are numbered from `vocabulary` on."""
    row = np.repeat(np.arange(len(features)), features.lengths)  # (tokens)
    second = np.arange(len(row)) - features.starts[row] >= features.first[row]  # (tokens)
    return (torch.from_numpy(features.ids + second * vocabulary),
            torch.from_numpy(features.starts[:-1]))


def logits(W: Tensor, piece: Tensor, begin: Tensor) -> Tensor:
    """The sum of W's lines for the pieces of a row: W (2 V, C) → (rows, C). [CLS] is the bias."""
    return F.embedding_bag(piece, W, begin, mode="sum")


def fit(features: data.Features, vocabulary: int, classes: int) -> Tensor:
    """Logistic regression → W (2 · vocabulary, classes)."""
    W = torch.zeros(2 * vocabulary, classes, requires_grad=True)
    bags, labels = pieces(features, vocabulary), torch.from_numpy(features.labels)
    optimizer = torch.optim.LBFGS([W], max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        L = F.cross_entropy(logits(W, *bags), labels, reduction="sum")
        L = L + RIDGE / 2 * W.square().sum()
        L.backward()
        return L

    optimizer.step(loss)
    return W.detach()


def measure(settings: train.Settings) -> dict:
    """A row: the metrics of the linear model on all evaluation rows."""
    task = evaluate.find_task(settings.task, settings.data)
    if not task.labels:
        raise UserError(f"--task {settings.task}: has no classes, which the linear model needs")
    train_rows, eval_rows = evaluate.load_rows(settings, task)
    tokenizer = load_tokenizer(evaluate.model_folder(settings.model))
    vocabulary, metrics = max(tokenizer.get_vocab().values()) + 1, {}
    W = fit(evaluate.encode(task, train_rows, tokenizer, settings), vocabulary, len(task.labels))
    for split, (_, features) in evaluate.encode_all(task, eval_rows, tokenizer, settings).items():
        classes = logits(W, *pieces(features, vocabulary)).argmax(1).numpy()
        found = task.metrics(classes, features.labels)
        metrics |= {name + split: value for name, value in found.items()}
    return {"task": settings.task, "data": rows.place(settings.data),
            "model": rows.place(settings.model), "train_rows": len(train_rows),
            "eval_rows": sum(len(eval_rows[split]) for split in task.dev),
            **rows.metric_columns(report.by_rows(metrics))}


def main() -> None:
    p = cli.Parser(prog="python -m tools.words", description=__doc__)
    p.add_argument("--csv", type=Path, metavar="FILE", help="keep the result there, as a row")
    args, flags = p.parse_known_args()
    if args.csv:
        rows.check(args.csv, "eval_rows")
    settings = train.resolve(train.make_parser().parse_args([*flags, "--method", "dense"]))
    row = measure(settings)
    for name, value in row.items():
        print(f"  {name:24} {rows.as_text(value)}")
    if args.csv:
        rows.put(args.csv, row | rows.made_by("tools.words", flags),
                 ("task", "data", "model", "train_rows"))


if __name__ == "__main__":
    run_main(main)
