"""From files to batches: the table of tasks, their rows, tokens, and batches of like length.

    task = data.TASKS["mnli"]
    rows = data.read(task, Path("glue"), "train")
    tokenizer = load_tokenizer(Path("bert-base-uncased"))        support/tokenizer.py
    features = data.encode(task, rows, tokenizer, max_length=128)
    for index in data.batches(features, size=32, seed=0, epoch=0):
        batch = data.collate(features, index)

The files are the official ones of GLUE (Wang et al. 2018, arXiv 1804.07461) and SQuAD v1.1
(Rajpurkar et al. 2016, arXiv 1606.05250), one folder per task. What only SQuAD needs is in
support/squad.py. Shapes: B rows in a batch, T tokens in the longest of them.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from support import metrics, squad
from support.files import UserError, read_lines, sha256

# --------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """One benchmark task, as its official files have it."""

    folder: str
    columns: tuple[str, ...] = ()  # headers of the text, or of the two texts
    label: str = "label"  # header of the label
    labels: tuple[str, ...] = ()  # the label's values in the order of the classes; () = regression
    aliases: tuple[str, ...] = ()  # what models on the Hugging Face Hub call these classes
    metrics: Callable | None = None  # predictions and labels, (rows,) each → {name: 0 to 100}
    train: str = "train.tsv"
    # Evaluation split → file. The split's name ends its metrics' names: accuracy_matched.
    dev: dict[str, str] = field(default_factory=lambda: {"": "dev.tsv"})
    header: tuple[str, ...] = ()  # the columns' names where the file has no header line
    # Rows with this label are left out: their annotators did not agree on one.
    unlabelled: str | None = None
    # A few rows of the official file are torn in two by a line break in a text, and left out.
    torn: bool = False
    range: tuple[float, float] | None = None  # of a regression's labels; None: any numbers
    span: bool = False  # the answer is a span of a passage (SQuAD)

    @property
    def head(self) -> tuple[str, int]:
        """What bert.create needs to know: the kind of head, and its number of outputs."""
        return ("span", 2) if self.span else ("classification", len(self.labels) or 1)

    @property
    def output_names(self) -> list[str] | None:
        """The classes' names for config.json."""
        return None if self.span else list(self.labels) or ["score"]


YES_NO = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")

TASKS = {
    "mnli": Task(folder="MNLI", columns=PAIR, label="gold_label", unlabelled="-",
                 labels=("contradiction", "entailment", "neutral"), metrics=metrics.accuracy,
                 dev={"_matched": "dev_matched.tsv", "_mismatched": "dev_mismatched.tsv"}),
    "qqp": Task(folder="QQP", columns=("question1", "question2"), label="is_duplicate",
                labels=YES_NO, aliases=("not_duplicate", "duplicate"),
                metrics=metrics.accuracy_and_f1, torn=True),
    "sst2": Task(folder="SST-2", columns=("sentence",), labels=YES_NO,
                 aliases=("negative", "positive"), metrics=metrics.accuracy),
    "qnli": Task(folder="QNLI", columns=("question", "sentence"), labels=ENTAILMENT,
                 metrics=metrics.accuracy),
    "rte": Task(folder="RTE", columns=PAIR, labels=ENTAILMENT, metrics=metrics.accuracy),
    "wnli": Task(folder="WNLI", columns=PAIR, labels=YES_NO,
                 aliases=("not_entailment", "entailment"), metrics=metrics.accuracy),
    "mrpc": Task(folder="MRPC", columns=("#1 String", "#2 String"), label="Quality",
                 labels=YES_NO, aliases=("not_equivalent", "equivalent"),
                 metrics=metrics.accuracy_and_f1),
    "cola": Task(folder="CoLA", columns=("sentence",), labels=YES_NO,
                 aliases=("unacceptable", "acceptable"), metrics=metrics.matthews,
                 header=("source", "label", "star", "sentence")),
    "stsb": Task(folder="STS-B", columns=PAIR, label="score", range=(0, 5),
                 metrics=metrics.pearson_and_spearman),
    "squad": Task(folder="SQuAD", train="train-v1.1.json", dev={"": "dev-v1.1.json"}, span=True),
}


def own_task(name: str, columns: list[str], labels: list[str]) -> Task:
    """A task of one's own, in a folder of its name: classes, or without labels a score."""
    return Task(folder=name, columns=tuple(columns), label="label" if labels else "score",
                labels=tuple(labels), metrics=(metrics.accuracy_and_macro_f1 if labels else
                                               metrics.pearson_and_spearman))


# ---------------------------------------------------------------------------------- rows


@dataclass
class Rows:
    """The rows of one of GLUE's files; those of SQuAD's are squad.Questions."""

    texts: list[tuple[str, ...]]  # one or two strings each
    labels: np.ndarray  # (rows,) classes as int64, or values as float32
    skipped: int = 0  # number of rows left out because they are unlabelled or torn
    fingerprint: str = ""  # SHA-256 of the file

    def __len__(self):
        return len(self.texts)

    def take(self, index) -> "Rows":
        texts = [self.texts[i] for i in index]
        return Rows(texts, self.labels[index], self.skipped, self.fingerprint)


def read(task: Task, folder: Path, split: str) -> Rows | squad.Questions:
    """All rows of one split: "train", or a name in task.dev ("", or "_matched" …).

    `folder` holds GLUE's folders and SQuAD/. Raises UserError as read_file does.
    """
    return read_file(task, file_of(task, folder, split))


def file_of(task: Task, folder: Path, split: str) -> Path:
    """The file of one split; UserError where the task has no folder."""
    if not (folder / task.folder).is_dir():
        raise UserError(f"{folder / task.folder}: no such folder; --data names the folder that "
                        "holds it")
    return folder / task.folder / (task.train if split == "train" else task.dev[split])


def read_file(task: Task, path: Path, labelled: bool = True) -> Rows | squad.Questions:
    """All rows of one file, in order. UserError names the file and line of what is wrong.

    With labelled=False, every row of a test file: all labels are 0, and a label column is ignored.
    (A file of SQuAD needs its answers in any case.)
    """
    if task.span:
        return squad.read(path)
    columns = (*task.columns, task.label) if labelled else task.columns
    header, lines = open_table(task, path, columns)
    positions = [header.index(column) for column in columns]
    texts, labels, torn, unlabelled = [], [], [], 0
    most = np.inf if task in TASKS.values() else len(header)  # fields of a line
    for number, line in lines:
        fields = line.split("\t")  # and at nothing else: quotes are characters like any other
        if not max(positions) < len(fields) <= most:
            if line:
                torn.append(f"{path}:{number}: {len(fields)} fields where {len(header)} are "
                            "expected, separated by tabs")
            continue
        values = [fields[position] for position in positions]
        label = values.pop() if labelled else None
        if labelled and label == task.unlabelled:
            unlabelled += 1
            continue
        labels.append(parse_label(task, label, f"{path}:{number}") if labelled else 0)
        texts.append(tuple(values))
    torn_allowed = len(texts) / 10_000 if task.torn and labelled else 0  # test rows are all needed
    if len(torn) > torn_allowed:
        raise UserError(torn[0])
    if not texts:
        raise UserError(f"{path}: no {'labelled ' if labelled else ''}rows")
    kind = np.int64 if task.labels else np.float32
    return Rows(texts, np.array(labels, dtype=kind), unlabelled + len(torn), sha256(path))


def open_table(task: Task, path: Path, columns: tuple[str, ...]):
    """→ the header's column names, and (number, line) of every line below it.

    UserError for a header without one of `columns`.
    """
    lines = enumerate(read_lines(path), 1)
    _, first = next(lines, (1, ""))
    header = tuple(first.split("\t"))
    if task.header and not set(columns) <= set(header):  # of CoLA's files, only test has a header
        return task.header, itertools.chain([(1, first)], lines)
    for column in columns:
        if column not in header:
            raise UserError(f"{path}:1: no column {column!r}; the columns are: "
                            + (", ".join(header) if first else "none, the file is empty"))
    return header, lines


def parse_label(task: Task, value: str, where: str) -> int | float:
    """The class number, or for regression the value."""
    if task.labels:
        if value not in task.labels:
            raise UserError(f"{where}: label {value!r} is none of {', '.join(task.labels)}")
        return task.labels.index(value)
    try:
        number = float(value)
    except ValueError:
        number = np.nan
    low, high = task.range or (-3e38, 3e38)
    if not low <= number <= high:
        raise UserError(f"{where}: {task.label} {value!r} is not a number from {low:g} to {high:g}")
    return number


def draw(rows: Rows | squad.Questions, n: int | None) -> Rows | squad.Questions:
    """n of the rows, drawn with a fixed seed and kept in order; all rows for None."""
    if n is None or n >= len(rows):
        return rows
    return rows.take(np.sort(np.random.default_rng(0).permutation(len(rows))[:n]))


# ---------------------------------------------------------------------------------- tokens


@dataclass
class Features:
    """The tokens of all rows, in one flat array: a million rows stay small."""

    ids: np.ndarray  # (tokens of all rows,) int32
    starts: np.ndarray  # (rows + 1,) where in `ids` each row begins
    first: np.ndarray  # (rows,) tokens in the first segment, counting [CLS] and [SEP]
    labels: np.ndarray  # (rows,)
    pad: int  # the number of [PAD]

    def __len__(self):
        return len(self.first)

    @cached_property
    def lengths(self) -> np.ndarray:  # (rows,)
        return np.diff(self.starts)


@dataclass
class SpanFeatures(Features):
    """For SQuAD, a row is a window of a question's passage (squad.encode)."""

    # labels are (windows, 2): first and last token of the answer; 0, 0 if it is not in the window
    row: np.ndarray  # (windows,) number of the question, ascending
    offsets: np.ndarray  # (tokens, 2) int32, characters of the passage; −1 outside it
    home: np.ndarray  # (tokens,) whether a span that begins here counts in this window


def encode(task: Task, rows: Rows | squad.Questions, tokenizer: Tokenizer, max_length: int,
           doc_stride: int = 128, training: bool = False) -> Features:
    """The tokens of a task's rows, at most max_length each; UserError if that is too short.

    SQuAD gets SpanFeatures: a passage that does not fit is split into windows that begin doc_stride
    tokens apart; with training=True, questions whose answer is not where the file says are left
    out, and UserError is raised if none remains. Other tasks ignore doc_stride and training.
    """
    if not task.span:
        return encode_texts(rows, tokenizer, max_length)
    arrays = squad.encode(rows, tokenizer, max_length, doc_stride, training=training)
    return SpanFeatures(**arrays, pad=tokenizer.token_to_id("[PAD]"))


CHUNK = 10_000  # texts tokenised at once: enough to keep all threads busy in little memory


def encode_texts(rows: Rows, tokenizer: Tokenizer, max_length: int) -> Features:
    """[CLS] text [SEP], or [CLS] text [SEP] text [SEP]; where that exceeds max_length tokens, the
    longer text is shortened first.

    The library spreads the work over threads (TOKENIZERS_PARALLELISM, RAYON_NUM_THREADS).
    """
    if max_length < 3:
        raise UserError(f"--max-length {max_length}: [CLS] and two [SEP] alone are 3 tokens")
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    ids, lengths, first = [], [], []
    for at in tqdm(range(0, len(rows), CHUNK), "tokenising", unit_scale=CHUNK, unit=" rows",
                   delay=2, leave=False, disable=None):
        inputs = [texts if len(texts) == 2 else texts[0] for texts in rows.texts[at : at + CHUNK]]
        encodings = tokenizer.encode_batch_fast(inputs)
        ids.append(np.fromiter(itertools.chain.from_iterable(e.ids for e in encodings), np.int32))
        lengths += [len(e) for e in encodings]
        first += [len(e) - sum(e.type_ids) for e in encodings]
    tokenizer.no_truncation()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Features(np.concatenate(ids), starts, np.array(first), rows.labels,
                    tokenizer.token_to_id("[PAD]"))


# ---------------------------------------------------------------------------------- batches


def batches(features: Features, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """The row numbers, (B,), of each batch of one epoch: rows of like length, in random order.

    Rows are shuffled, split into pools of 64 batches and sorted by length within each pool; then
    the batches are shuffled. The order depends on nothing but seed and epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(features))
    in_order = []
    for at in range(0, len(shuffled), 64 * size):
        pool = shuffled[at : at + 64 * size]
        pool = pool[np.argsort(features.lengths[pool], kind="stable")]
        in_order += [pool[i : i + size] for i in range(0, len(pool), size)]
    for i in rng.permutation(len(in_order)):
        yield in_order[i]


def batches_in_order(features: Features, size: int) -> Iterator[np.ndarray]:
    """The same for evaluation, longest rows first: if memory runs out, it does so at once."""
    order = np.argsort(-features.lengths, kind="stable")
    for at in range(0, len(order), size):
        yield order[at : at + size]


def collate(features: Features, index: np.ndarray, device="cpu") -> dict:
    """The rows `index`, (B,), padded to the longest of them.

    → input_ids, attention_mask and token_type_ids, (B, T) int64; labels, (B,), of spans (B, 2).
    Where nothing is padding, attention_mask is None, with which attention is faster.
    """
    begins, ends = features.starts[index, None], features.starts[index + 1, None]  # (B, 1)
    column = np.arange((ends - begins).max())  # (T)
    mask = column < ends - begins  # (B, T)
    ids = np.where(mask, features.ids[np.minimum(begins + column, ends - 1)], features.pad)
    types = mask & (column >= features.first[index, None])  # (B, T)
    arrays = {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64),
              "token_type_ids": types.astype(np.int64), "labels": features.labels[index]}
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if str(device).startswith("cuda"):  # from pinned memory, a copy goes on while Python does
        batch = {name: x.pin_memory() for name, x in batch.items()}
        batch = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
    batch = {name: x.to(device) for name, x in batch.items()}
    return batch | {"attention_mask": None} if mask.all() else batch
