"""From rows to batches: the table of tasks, readers, tokens, bucketed batches.

    rows = data.read(data.TASKS["mnli"], Path("glue"), "train")
    features = data.encode(rows, tokenizer, max_length=128)
    for index in data.batches(features, 32, seed=0, epoch=0):
        batch = data.collate(features, index)

The files are GLUE's official ones (Wang et al. 2018), tab-separated, one folder a task. A task is
one line of TASKS. Shapes: B batch, T tokens of the longest row in the batch.
"""

import hashlib
import itertools
import shutil
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tqdm import tqdm

from support import metrics
from support.files import RunError, UserError, cached, read_json

# --------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """One benchmark task, as its official files have it.

    columns: the header names of the text, or of the pair of texts.
    labels: the label column's values in the order of the model's classes; none for regression.
    dev: evaluation split → file; its split names end the metrics' names.
    header: the column names, where the file has no header line.
    torn: the official file has a few rows that a line break inside a text has torn apart.
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
    torn: bool = False


YES_NO = ("0", "1")
NLI = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
MNLI_DEV = (("_matched", "dev_matched.tsv"), ("_mismatched", "dev_mismatched.tsv"))

TASKS = {
    "mnli": Task("MNLI", PAIR, "gold_label", ("contradiction", "entailment", "neutral"),
                 metrics.accuracy, MNLI_DEV, unlabelled="-"),
    "qqp": Task("QQP", ("question1", "question2"), "is_duplicate", YES_NO, metrics.accuracy_and_f1,
                torn=True),
    "sst2": Task("SST-2", ("sentence",), "label", YES_NO, metrics.accuracy),
    "qnli": Task("QNLI", ("question", "sentence"), "label", NLI, metrics.accuracy),
    "rte": Task("RTE", PAIR, "label", NLI, metrics.accuracy),
    "wnli": Task("WNLI", PAIR, "label", YES_NO, metrics.accuracy),
    "mrpc": Task("MRPC", ("#1 String", "#2 String"), "Quality", YES_NO, metrics.accuracy_and_f1),
    "cola": Task("CoLA", ("sentence",), "label", YES_NO, metrics.matthews,
                 header=("source", "label", "star", "sentence")),
    "stsb": Task("STS-B", PAIR, "score", (), metrics.pearson_and_spearman),
    "squad": Task("SQuAD", (), "", (), None, (("", "dev-v1.1.json"),), span=True),
}


# --------------------------------------------------------------------------------- readers


@dataclass
class Rows:
    """Texts as tuples of one or two strings; labels as class numbers or as floats."""

    texts: list[tuple[str, ...]]
    labels: np.ndarray  # (rows,) int64 or float32
    skipped: int = 0  # rows without a gold label, and torn ones
    fingerprint: str = ""  # SHA-256 of the file

    def __len__(self):
        return len(self.texts)

    def take(self, index) -> "Rows":
        texts = [self.texts[i] for i in index]
        return Rows(texts, self.labels[index], self.skipped, self.fingerprint)


def read_lines(path: Path, digest=None) -> Iterator[str]:
    """Lines of a UTF-8 file, without BOM and carriage returns; `digest` sees each byte."""
    try:
        # binary, since the texts hold other characters that text mode takes for line ends
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if digest:
                    digest.update(line)
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield text.removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}:{number}: not UTF-8 text") from None


def parse_label(task: Task, value: str, where: str):
    if task.labels:
        if value not in task.labels:
            raise UserError(f"{where}: label {value!r} is none of {', '.join(task.labels)}")
        return task.labels.index(value)
    try:
        number = float(value)
    except ValueError:
        number = np.nan
    if not 0 <= number <= 5:  # STS-B's scale
        raise UserError(f"{where}: {task.label} {value!r} is not a number from 0 to 5")
    return number


def open_table(task: Task, path: Path, wanted, digest):
    """→ names of the columns, and the lines below them with their numbers."""
    lines = enumerate(read_lines(path, digest), 1)
    first = next(lines, (1, ""))
    header = tuple(first[1].split("\t"))
    if task.header and not set(wanted) <= set(header):  # CoLA's test file alone has a header
        return task.header, itertools.chain([first], lines)
    for column in wanted:
        if column not in header:
            raise UserError(f"{path}:1: no column {column!r}; the columns are: "
                            + (", ".join(header) if first[1] else "none, the file is empty"))
    return header, lines


def read_file(task: Task, path: Path, labelled: bool = True) -> Rows:
    """All rows of one file; an unusable line is an error that names file and line.

    Fields end at tabs; quotes are characters like any other.
    """
    digest = hashlib.sha256()
    wanted = (*task.columns, task.label) if labelled else task.columns
    header, lines = open_table(task, path, wanted, digest)
    picked = [header.index(column) for column in wanted]
    texts, labels, torn, skipped = [], [], [], 0
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) <= max(picked):
            if line:
                torn.append(f"{path}:{number}: {len(fields)} fields where {len(header)} are "
                            "expected, separated by tabs")
            continue
        values = [fields[i] for i in picked]
        if labelled and values[-1] == task.unlabelled:
            skipped += 1
            continue
        labels.append(parse_label(task, values.pop(), f"{path}:{number}") if labelled else 0)
        texts.append(tuple(values))
    if len(torn) > (len(texts) / 10_000 if task.torn and labelled else 0):
        raise UserError(torn[0])
    if not texts:
        raise UserError(f"{path}: no {'labelled ' if labelled else ''}rows")
    kind = np.int64 if task.labels else np.float32
    return Rows(texts, np.array(labels, dtype=kind), skipped + len(torn), digest.hexdigest())


def read_unlabelled(task: Task, path: Path) -> Rows:
    """The rows of a test file in their order, every label 0; a label column is not looked at."""
    return read_file(task, path, labelled=False)


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


def from_vocabulary(folder: Path) -> Tokenizer:
    """vocab.txt as BERT's WordPiece, cased or not as tokenizer_config.json says.

    Where it does not say, a vocabulary with capitals is taken for cased: lower-cased text would
    never meet those words.
    """
    path = folder / "tokenizer_config.json"
    said = read_json(path) if path.exists() else {}
    words = read_lines(folder / "vocab.txt")
    cased = any(c in string.ascii_uppercase for w in words if w[:1] != "[" for c in w)
    return Tokenizer.from_str(BertWordPieceTokenizer(
        str(folder / "vocab.txt"), lowercase=said.get("do_lower_case", not cased),
        strip_accents=said.get("strip_accents"),
        handle_chinese_chars=said.get("tokenize_chinese_chars", True)).to_str())


def load_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json, or else vocab.txt; truncation and padding switched off."""
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.exists() and not (folder / "vocab.txt").exists():
        raise UserError(f"{folder}: neither tokenizer.json nor vocab.txt is there")
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.exists() else from_vocabulary(folder)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode("\u2603")  # fails without a token for what is unknown
        empty = tokenizer.encode("", "")
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{folder}: not a tokenizer ({error})") from None
    joint = [tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[SEP]")]
    if empty.ids != joint or empty.type_ids != [0, 0, 1]:
        raise UserError(f"{folder}: the tokenizer joins two texts as {empty.tokens}, not as BERT's "
                        "does, [CLS] … [SEP] … [SEP]")
    if tokenizer.token_to_id("[PAD]") is None:
        raise UserError(f"{folder}: the tokenizer has no [PAD], so it is not BERT's")
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

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


CHUNK = 10_000  # rows tokenised at once: enough for all threads, and little memory


def encode(rows: Rows, tokenizer: Tokenizer, max_length: int) -> Features:
    """[CLS] a [SEP] (b [SEP]), cut to max_length tokens, the longer text first.

    The library's threads share the work (TOKENIZERS_PARALLELISM, RAYON_NUM_THREADS).
    """
    if max_length < 3:
        raise UserError(f"--max-length {max_length}: [CLS] and two [SEP] alone are 3 tokens")
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    ids, lengths, first = [], [], []
    for at in tqdm(range(0, len(rows), CHUNK), "tokenising", unit_scale=CHUNK, unit=" rows",
                   delay=2, leave=False, disable=None):
        pairs = [t if len(t) == 2 else t[0] for t in rows.texts[at : at + CHUNK]]
        found = tokenizer.encode_batch_fast(pairs)
        lengths += [len(e) for e in found]
        first += [len(e) - sum(e.type_ids) for e in found]
        ids.append(np.fromiter(itertools.chain.from_iterable(e.ids for e in found), np.int32))
    tokenizer.no_truncation()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Features(np.concatenate(ids), starts, np.array(first), rows.labels,
                    tokenizer.token_to_id("[PAD]"))


def encode_cached(rows: Rows, tokenizer: Tokenizer, max_length: int) -> Features:
    """The same through the cache, under a fingerprint of the texts and the tokenizer.

    What cannot be read back whole (the archive has checksums) is made anew.
    """
    key = hashlib.sha256(f"{tokenizers.__version__} {max_length} {tokenizer.to_str()}".encode())
    for at in range(0, len(rows), CHUNK):
        key.update(repr(rows.texts[at : at + CHUNK]).encode())

    def make(folder: Path) -> None:
        f = encode(rows, tokenizer, max_length)
        np.savez(folder / "features.npz", ids=f.ids, starts=f.starts, first=f.first)

    for _ in range(2):
        folder = cached("features", f"1 {key.hexdigest()}", make)
        try:
            with np.load(folder / "features.npz", allow_pickle=False) as kept:
                return Features(**kept, labels=rows.labels, pad=tokenizer.token_to_id("[PAD]"))
        except Exception:  # a damaged archive raises many kinds
            shutil.rmtree(folder, ignore_errors=True)
    raise RunError(f"{folder}: cannot be read back; delete it")


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
    starts, first = features.starts[index], features.first[index]  # (B)
    lengths = features.starts[index + 1] - starts  # (B)
    B, T = len(index), int(lengths.max())
    t = np.arange(T)[None, :]  # (1, T)
    real = t < lengths[:, None]  # (B, T)
    ids = np.full((B, T), features.pad, dtype=np.int64)  # (B, T)
    ids[real] = features.ids[(starts[:, None] + t)[real]]
    types = (t >= first[:, None]) & real  # (B, T)
    arrays = {
        "input_ids": ids,
        "attention_mask": real.astype(np.int64),
        "token_type_ids": types.astype(np.int64),
        "labels": features.labels[index],
    }
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
