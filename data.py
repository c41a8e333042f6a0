"""From rows to batches: the table of tasks, readers, tokens, bucketed batches, metrics.

    rows = data.read(data.TASKS["mnli"], Path("glue"), "train")
    features = data.encode(rows, tokenizer, max_length=128)
    for index in data.batches(features, 32, seed=0, epoch=0):
        batch = data.collate(features, index)

The files are GLUE's official ones (Wang et al. 2018), tab-separated, one folder a task. A task is
one line of TASKS. Shapes: B batch, T tokens of the longest row in the batch.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer

from files import UserError, read_json

# ------------------------------------------------------------------------------- metrics
#
# Each takes predictions and labels, both of shape (rows,), and gives values of 0 to 100.


def accuracy(p, y):
    return {"accuracy": 100 * float(np.mean(p == y))}


def f1(p, y):
    """F1 of the positive class, 1; zero where nothing is right."""
    right = np.sum((p == 1) & (y == 1))
    return {"f1": 100 * 2 * float(right) / max(1.0, float(np.sum(p == 1) + np.sum(y == 1)))}


def accuracy_and_f1(p, y):
    return accuracy(p, y) | f1(p, y)


def matthews(p, y):
    """Matthews' correlation, which is Pearson's for two binary variables."""
    return {"matthews_correlation": pearson(p, y)}


def pearson(p, y):
    p, y = p - np.mean(p, dtype=np.float64), y - np.mean(y, dtype=np.float64)
    scale = np.sqrt(np.sum(p * p) * np.sum(y * y))
    return 100 * float(np.sum(p * y) / scale) if scale > 0 else 0.0


def ranks(x):
    """Ranks from 1, ties sharing their mean rank."""
    _, where, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[where]


def pearson_and_spearman(p, y):
    return {"pearson": pearson(p, y), "spearman": pearson(ranks(p), ranks(y))}


# --------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """One benchmark task, as its official files have it.

    columns: the header names of the text, or of the pair of texts.
    labels: the label column's values in the order of the model's classes; none for regression.
    dev: evaluation split → file; its split names end the metrics' names.
    header: the column names, where the file has no header line.
    """

    folder: str
    columns: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: callable
    dev: tuple[tuple[str, str], ...] = (("", "dev.tsv"),)
    header: tuple[str, ...] | None = None
    span: bool = False  # answers are spans of a passage: squad.py reads and scores them
    unlabelled: str | None = None  # the value of rows on which the annotators did not agree


YES_NO = ("0", "1")
NLI = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
MNLI_DEV = (("_matched", "dev_matched.tsv"), ("_mismatched", "dev_mismatched.tsv"))

TASKS = {
    "mnli": Task("MNLI", PAIR, "gold_label", ("contradiction", "entailment", "neutral"),
                 accuracy, MNLI_DEV, unlabelled="-"),
    "qqp": Task("QQP", ("question1", "question2"), "is_duplicate", YES_NO, accuracy_and_f1),
    "sst2": Task("SST-2", ("sentence",), "label", YES_NO, accuracy),
    "qnli": Task("QNLI", ("question", "sentence"), "label", NLI, accuracy),
    "rte": Task("RTE", PAIR, "label", NLI, accuracy),
    "wnli": Task("WNLI", PAIR, "label", YES_NO, accuracy),
    "mrpc": Task("MRPC", ("#1 String", "#2 String"), "Quality", YES_NO, accuracy_and_f1),
    "cola": Task("CoLA", ("sentence",), "label", YES_NO, matthews,
                 header=("source", "label", "star", "sentence")),
    "stsb": Task("STS-B", PAIR, "score", (), pearson_and_spearman),
    "squad": Task("SQuAD", (), "", (), None, (("", "dev-v1.1.json"),), span=True),
}


# --------------------------------------------------------------------------------- readers


@dataclass
class Rows:
    """Texts as tuples of one or two strings; labels as class numbers or as floats."""

    texts: list[tuple[str, ...]]
    labels: np.ndarray  # (rows,) int64 or float32
    skipped: int = 0  # rows without a gold label
    fingerprint: str = ""  # SHA-256 of the file

    def __len__(self):
        return len(self.texts)

    def take(self, index) -> "Rows":
        texts = [self.texts[i] for i in index]
        return Rows(texts, self.labels[index], self.skipped, self.fingerprint)


def read_lines(path: Path) -> tuple[list[str], str]:
    """Lines of a UTF-8 file, without BOM and carriage returns, and the file's SHA-256."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 text") from None
    # split at \n alone: texts hold other characters that Python takes for line ends
    return [line.removesuffix("\r") for line in text.split("\n")], hashlib.sha256(raw).hexdigest()


def parse_label(task: Task, value: str, where: str):
    if task.labels:
        if value not in task.labels:
            raise UserError(f"{where}: label {value!r} is none of {', '.join(task.labels)}")
        return task.labels.index(value)
    try:
        number = float(value)
    except ValueError:
        raise UserError(f"{where}: {task.label} {value!r} is not a number") from None
    if not np.isfinite(number):
        raise UserError(f"{where}: {task.label} {value!r} is not a finite number")
    return number


def read_file(task: Task, path: Path) -> Rows:
    """All rows of one file; an unusable line is an error that names file and line."""
    lines, fingerprint = read_lines(path)
    header = task.header or tuple(lines[0].split("\t"))
    for column in (*task.columns, task.label):
        if column not in header:
            raise UserError(f"{path}:1: no column {column!r}; the columns are: "
                            + (", ".join(header) if lines[0] else "none, the file is empty"))
    picked = [header.index(column) for column in task.columns]
    label_at = header.index(task.label)
    rows = Rows([], np.empty(0), 0, fingerprint)
    labels = []
    start = 0 if task.header else 1
    for number, line in enumerate(lines[start:], start + 1):
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) <= max(label_at, *picked):
            raise UserError(f"{path}:{number}: {len(fields)} fields where {len(header)} are "
                            "expected, separated by tabs")
        if fields[label_at] == task.unlabelled:
            rows.skipped += 1
            continue
        rows.texts.append(tuple(fields[i] for i in picked))
        labels.append(parse_label(task, fields[label_at], f"{path}:{number}"))
    if not labels:
        raise UserError(f"{path}: no labelled rows")
    rows.labels = np.array(labels, dtype=np.int64 if task.labels else np.float32)
    return rows


def file_of(task: Task, folder: Path, split: str) -> Path:
    """`split` is "train" or one of the task's evaluation splits ("" or "_matched", …)."""
    train = "train-v1.1.json" if task.span else "train.tsv"
    place = folder / task.folder
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; --data names the folder that holds it")
    return place / (train if split == "train" else dict(task.dev)[split])


def read(task: Task, folder: Path, split: str) -> Rows:
    return read_file(task, file_of(task, folder, split))


def draw(rows: Rows, n: int | None) -> Rows:
    """`n` of the rows, drawn with a fixed seed and left in their order; all for None."""
    if n is None or n >= len(rows):
        return rows
    return rows.take(np.sort(np.random.default_rng(0).permutation(len(rows))[:n]))


# ---------------------------------------------------------------------------------- tokens


def load_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json, or vocab.txt as BERT's WordPiece; truncation and padding switched off."""
    folder = Path(folder)
    if (folder / "tokenizer.json").exists():
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{folder / 'tokenizer.json'}: not a tokenizer ({error})") from None
    elif (folder / "vocab.txt").exists():
        settings = folder / "tokenizer_config.json"
        lower = read_json(settings).get("do_lower_case", True) if settings.exists() else True
        tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lower)._tokenizer
    else:
        raise UserError(f"{folder}: neither tokenizer.json nor vocab.txt is there")
    for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
        if tokenizer.token_to_id(token) is None:
            raise UserError(f"{folder}: the tokenizer has no {token}, so it is not BERT's")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@dataclass
class Features:
    """All rows' tokens in one flat array, so that a million rows stay small."""

    ids: np.ndarray  # (tokens of all rows,) int32
    starts: np.ndarray  # (rows + 1,) where each row begins
    first: np.ndarray  # (rows,) tokens of the first segment, [CLS] and [SEP] counted
    labels: np.ndarray  # (rows,)
    pad: int

    def __len__(self):
        return len(self.first)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


def encode(rows: Rows, tokenizer: Tokenizer, max_length: int) -> Features:
    """[CLS] a [SEP] (b [SEP]), cut to max_length tokens, the longer text first."""
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    parts, lengths, first = [], [], []
    for at in range(0, len(rows), 10_000):
        chunk = rows.texts[at : at + 10_000]
        pairs = [t if len(t) == 2 else t[0] for t in chunk]
        for e in tokenizer.encode_batch(pairs):
            parts.append(np.array(e.ids, dtype=np.int32))
            lengths.append(len(e.ids))
            first.append(len(e.ids) - sum(e.type_ids))
    tokenizer.no_truncation()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Features(np.concatenate(parts), starts, np.array(first), rows.labels,
                    tokenizer.token_to_id("[PAD]"))


# ---------------------------------------------------------------------------------- batches


def batches(features: Features, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Row numbers of each batch of one epoch: shuffled, yet rows of a batch are of like length.

    Rows are shuffled, cut into pools of 64 batches, sorted by length within a pool, and the
    batches shuffled again. The order is a pure function of seed and epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(features))
    lengths = features.lengths
    found = []
    for at in range(0, len(order), 64 * size):
        pool = order[at : at + 64 * size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        found += [pool[i : i + size] for i in range(0, len(pool), size)]
    yield from (found[i] for i in rng.permutation(len(found)))


def batches_in_order(features: Features, size: int) -> Iterator[np.ndarray]:
    """For evaluation: longest first, so that memory runs out at once if it must."""
    order = np.argsort(-features.lengths, kind="stable")
    yield from (order[i : i + size] for i in range(0, len(order), size))


def collate(features: Features, index: np.ndarray, device="cpu") -> dict[str, torch.Tensor]:
    """Rows → padded tensors: input_ids, attention_mask, token_type_ids (B, T); labels (B)."""
    lengths = features.lengths[index]
    B, T = len(index), int(lengths.max())
    t = np.arange(T)[None, :]  # (1, T)
    real = t < lengths[:, None]  # (B, T)
    ids = np.full((B, T), features.pad, dtype=np.int64)  # (B, T)
    ids[real] = features.ids[(features.starts[index][:, None] + t)[real]]
    types = (t >= features.first[index][:, None]) & real  # (B, T)
    arrays = {
        "input_ids": ids,
        "attention_mask": real.astype(np.int64),
        "token_type_ids": types.astype(np.int64),
        "labels": features.labels[index],
    }
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
