"""SQuAD v1.1 (Rajpurkar et al. 2016): questions, windows of their passages, spans, EM and F1.

    questions = squad.read(Path("glue/SQuAD/dev-v1.1.json"))
    features = squad.encode(questions, tokenizer, training=False)
    predictions, nbest = squad.decode(questions, features, logits)
    squad.metrics(predictions, questions)            → {"exact_match": …, "f1": …}

A passage that is longer than the model's input is cut into overlapping windows, and each window
is a row of its own: [CLS] question [SEP] part of the passage [SEP]. Text is never put together
from tokens: a predicted span is cut out of the passage by the characters its tokens came from.
"""

import hashlib
import re
import string
import unicodedata
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

import data
from support.files import UserError, read_json, write_json

# ------------------------------------------------------------------------------- questions


class Question(NamedTuple):
    id: str
    question: str
    context: str  # one string for all questions of a paragraph
    answers: list[str]
    starts: list[int]  # the character of the context at which each answer begins

    def found(self) -> list[tuple[int, int]]:
        """Character spans (from, up to) of the answers that are where they claim to be."""
        return [(start, start + len(text)) for text, start in zip(self.answers, self.starts)
                if text.strip() and self.context.startswith(text, start)]


@dataclass
class Questions:
    """A row is a question."""

    rows: list[Question]
    fingerprint: str = ""  # SHA-256 of the file

    def __len__(self):
        return len(self.rows)

    def take(self, index) -> "Questions":
        return Questions([self.rows[i] for i in index], self.fingerprint)

    @property
    def unfound(self) -> int:
        """How many answers are not at their answer_start. Such an answer is looked for nowhere
        else: training does without it, and evaluation, which compares texts, still counts it."""
        return sum(len(q.answers) - len(q.found()) for q in self.rows)


KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def get(node, key: str, kind: type, where: str):
    """node[key], checked to be of that kind."""
    if type(node) is not dict:
        raise UserError(f"{where}: not an object")
    if key not in node:
        raise UserError(f"{where}: no {key!r}")
    value = node[key]
    if type(value) is not kind:
        raise UserError(f"{where}: {key!r} is not {KINDS[kind]}")
    if kind is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can hold halves of characters, such as "\ud83d"
            raise UserError(f"{where}: {key!r} is not valid Unicode") from None
    return value


def children(node, key: str, where: str, joint: str = "."):
    """(child, its place in the file) for each child of the list node[key]."""
    for i, child in enumerate(get(node, key, list, where)):
        yield child, f"{where}{joint}{key}[{i}]"


def read(path: Path) -> Questions:
    """All questions of a file in the official layout; an error names the file and the place."""
    rows, seen = [], set()
    for article, at_article in children(read_json(path), "data", str(path), ": "):
        for paragraph, at_paragraph in children(article, "paragraphs", at_article):
            context = get(paragraph, "context", str, at_paragraph)
            for qa, at_qa in children(paragraph, "qas", at_paragraph):
                row = Question(get(qa, "id", str, at_qa), get(qa, "question", str, at_qa),
                               context, [], [])
                for answer, at_answer in children(qa, "answers", at_qa):
                    row.answers.append(get(answer, "text", str, at_answer))
                    row.starts.append(get(answer, "answer_start", int, at_answer))
                    if row.starts[-1] < 0:
                        raise UserError(f"{at_answer}: 'answer_start' is negative")
                if not row.answers:
                    raise UserError(f"{at_qa}: no answer in 'answers'; questions without one are "
                                    "SQuAD v2.0's, and this reads v1.1")
                if row.id in seen:
                    raise UserError(f"{at_qa}: id {row.id!r} is there twice")
                seen.add(row.id)
                rows.append(row)
    if not rows:
        raise UserError(f"{path}: no questions")
    return Questions(rows, hashlib.sha256(Path(path).read_bytes()).hexdigest())


# ---------------------------------------------------------------- windows and their labels


@dataclass
class SpanFeatures(data.Features):
    """data.Features with a window as a row; labels (windows, 2) are its answer's first and last
    token, or 0, 0 where the window does not hold the answer."""

    row: np.ndarray  # (windows,) the number of the question; ascending
    offsets: np.ndarray  # (tokens, 2) int32 characters of the context; −1 elsewhere
    home: np.ndarray  # (tokens,) true where a context token is in the window it has most context in


def tokenise(texts: list[str], tokenizer: Tokenizer):
    """All texts' tokens, flat → ids (tokens,), characters (tokens, 2), starts (texts + 1,)."""
    ids, offsets, lengths = [], [], []
    for at in range(0, len(texts), 1_000):
        for e in tokenizer.encode_batch(texts[at : at + 1_000], add_special_tokens=False):
            ids.append(np.array(e.ids, dtype=np.int32))
            offsets.append(np.array(e.offsets, dtype=np.int32).reshape(-1, 2))
            lengths.append(len(e.ids))
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return np.concatenate(ids), np.concatenate(offsets), starts


def token_span(question: Question, offsets: np.ndarray) -> tuple[int, int]:
    """First and last token of the context that touch the first answer in place; −1, −1 if none.

    An answer that begins or ends inside a token, such as the 5 of "15", gets the whole token.
    """
    for start, end in question.found():
        first = int(np.searchsorted(offsets[:, 1], start, side="right"))  # first that ends after it
        last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1  # last that begins in it
        if first <= last:  # false for characters that the tokenizer drops
            return first, last
    return -1, -1


def home_tokens(begin: np.ndarray, length: np.ndarray) -> list[np.ndarray]:
    """For the windows of one context, which of their tokens have most context there.

    As in BERT's scripts: the fewer of a token's neighbours to the left and to the right count,
    plus a little for a long window; the first of equal windows wins.
    """
    t = np.arange(begin[-1] + length[-1])  # (T,)
    left, right = t - begin[:, None], (begin + length)[:, None] - 1 - t  # (W, T)
    context = np.minimum(left, right) + 0.01 * length[:, None]  # (W, T)
    best = np.where((left >= 0) & (right >= 0), context, -np.inf).argmax(axis=0)  # (T,)
    return [best[b : b + n] == w for w, (b, n) in enumerate(zip(begin, length))]


def cut(tokens: np.ndarray, room: np.ndarray, stride: int):
    """Contexts of so many tokens, with room for so many (both (questions,)), into windows.

    → question, first context token and number of context tokens of each window, (windows,) each.
    """
    windows = 1 + np.maximum(0, -(-(tokens - room) // stride))  # (questions,), rounded up
    row = np.repeat(np.arange(len(tokens)), windows)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(windows) - windows, windows)
    return row, nth * stride, np.minimum(room[row], tokens[row] - nth * stride)


def encode(questions: Questions, tokenizer: Tokenizer, max_length: int = 384,
           doc_stride: int = 128, max_query: int = 64, training: bool = False) -> SpanFeatures:
    """Windows of max_length tokens; each begins doc_stride context tokens after the one before.

    A question is cut to max_query tokens. With `training`, questions without an answer in place
    are left out. The tokenizer has to come without truncation, as from data.load_tokenizer.
    """
    if max_length < max_query + doc_stride + 3:
        raise UserError(f"--max-length {max_length} is too short: a question of {max_query} "
                        f"tokens, --doc-stride {doc_stride} and 3 separators need "
                        f"{max_query + doc_stride + 3}; raise it or lower --doc-stride")
    number = {text: i for i, text in enumerate({q.context: None for q in questions.rows})}
    context = np.array([number[q.context] for q in questions.rows])  # (questions,)
    c_ids, c_offsets, c_starts = tokenise(list(number), tokenizer)  # each context once
    q_ids, _, q_starts = tokenise([q.question for q in questions.rows], tokenizer)
    answer = np.array([token_span(q, c_offsets[c_starts[c] : c_starts[c + 1]])
                       for q, c in zip(questions.rows, context)])  # (questions, 2)

    query = np.minimum(np.diff(q_starts), max_query)  # (questions,)
    row, begin, length = cut(np.diff(c_starts)[context], max_length - 3 - query, doc_stride)
    if training:
        kept = answer[row, 0] >= 0
        if not kept.any():
            raise UserError("SQuAD's training file: no answer is where its answer_start says: "
                            "nothing to train on")
        row, begin, length = row[kept], begin[kept], length[kept]
    first = query[row] + 2
    starts = np.concatenate([[0], np.cumsum(first + length + 1)])

    # A window that misses its answer, or a part of it, points at [CLS] and stays in training, as
    # in BERT's scripts: spans of different windows compete by their logits, so a model has to
    # learn to score low where there is no answer, which windows with one cannot teach.
    inside = (answer[row, 0] >= begin) & (answer[row, 1] < begin + length)
    labels = np.where(inside[:, None], answer[row] + (first - begin)[:, None], 0)

    cls, sep, pad = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]"))
    ids = np.full(starts[-1], sep, dtype=np.int32)
    offsets = np.full((starts[-1], 2), -1, dtype=np.int32)
    home = np.zeros(starts[-1], dtype=bool)
    ids[starts[:-1]] = cls
    groups = np.append(np.flatnonzero(np.diff(row, prepend=-1)), len(row))  # by question
    for a, b in pairwise(groups):
        r = row[a]
        asked = q_ids[q_starts[r] : q_starts[r] + query[r]]
        for w, at_home in zip(range(a, b), home_tokens(begin[a:b], length[a:b])):
            there = c_starts[context[r]] + begin[w]
            here = slice(starts[w] + first[w], starts[w + 1] - 1)
            ids[starts[w] + 1 : here.start - 1] = asked
            ids[here] = c_ids[there : there + length[w]]
            offsets[here] = c_offsets[there : there + length[w]]
            home[here] = at_home
    return SpanFeatures(ids, starts, first, labels, pad, row, offsets, home)


# ---------------------------------------------------------------------------- predictions


def best_spans(s: np.ndarray, e: np.ndarray, home: np.ndarray, n_best: int, max_answer: int):
    """The n best spans of one window → [(sum, start logit, end logit, first token, last token)].

    s, e, home: (n,) for the context's tokens. All spans of at most max_answer tokens compete, but
    for those whose first token has more context in another window.
    """
    longer = np.append(e, np.full(max_answer, -np.inf))
    ends = np.lib.stride_tricks.sliding_window_view(longer, max_answer)[:-1]  # (n, max_answer)
    total = np.where(home[:, None], s[:, None] + ends, -np.inf).ravel()  # (n · max_answer,)
    if len(total) > n_best:  # ties: the first in the text
        least = np.partition(total, -n_best)[-n_best]
        above, equal = np.flatnonzero(total > least), np.flatnonzero(total == least)
        found = np.append(above, equal[: n_best - len(above)])
    else:
        found = np.arange(len(total))
    found = found[np.argsort(-total[found], kind="stable")]
    first, extra = np.divmod(found[total[found] > -np.inf], max_answer)
    return [(float(s[i] + e[j]), float(s[i]), float(e[j]), int(i), int(j))
            for i, j in zip(first, first + extra)]


def cut_out(context: str, start: int, end: int) -> str:
    """The text of a span, with the accents that follow its last letter as characters of their
    own: the tokenizer drops those (Unicode's class Mn), so that they belong to no token."""
    while end < len(context) and unicodedata.category(context[end]) == "Mn":
        end += 1
    return context[start:end]


def decode(questions: Questions, features: SpanFeatures, logits: list[np.ndarray],
           n_best: int = 20, max_answer: int = 30):
    """Logits (tokens, 2) of each window → ({id: text}, {id: [n best, best first]}).

    Each of the n best has its text, start and end logits, and its probability among the n. The
    best spans of a question's windows compete by the sum of their logits; ties go to the earlier.
    A context without a single token is answered by "".
    """
    found = [[] for _ in questions.rows]
    for w, (r, z) in enumerate(zip(features.row, logits)):
        here = slice(features.starts[w] + features.first[w], features.starts[w + 1] - 1)
        z = z[features.first[w] : -1].astype(np.float64)  # the context's tokens
        offsets = features.offsets[here]
        for *scores, i, j in best_spans(z[:, 0], z[:, 1], features.home[here], n_best, max_answer):
            found[r].append((*scores, int(offsets[i, 0]), int(offsets[j, 1])))
    predictions, nbest = {}, {}
    for q, spans in zip(questions.rows, found):
        spans = sorted(spans, key=lambda span: -span[0])[:n_best]  # stable
        p = np.exp([span[0] - spans[0][0] for span in spans])
        nbest[q.id] = [
            {"text": cut_out(q.context, a, b), "probability": x, "start_logit": s, "end_logit": e}
            for (_, s, e, a, b), x in zip(spans, (p / p.sum()).tolist())]
        predictions[q.id] = nbest[q.id][0]["text"] if spans else ""
    return predictions, nbest


def write(folder: Path, predictions: dict, nbest: dict) -> None:
    write_json(Path(folder) / "predictions.json", predictions)
    write_json(Path(folder) / "nbest_predictions.json", nbest)


# -------------------------------------------------------------------------------- metrics


def normalise(text: str) -> str:
    """As the official evaluation: lower case, no ASCII punctuation, no articles, single blanks."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(prediction: str, answer: str) -> float:
    """F1 of two normalised texts as bags of words, 0 to 1."""
    p, y = prediction.split(), answer.split()
    same = sum((Counter(p) & Counter(y)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(p), same / len(y)
    return 2 * precision * recall / (precision + recall)


def metrics(predictions: dict[str, str], questions: Questions) -> dict[str, float]:
    """Exact match and F1, 0 to 100, each against the answer that it agrees with most; a question
    without a prediction counts as wrong. Equal to the official v1.1 script to the last digit."""
    exact = total = 0.0
    for q in questions.rows:
        if q.id not in predictions:
            continue
        prediction = normalise(predictions[q.id])
        answers = [normalise(answer) for answer in q.answers]
        exact += prediction in answers
        total += max(f1(prediction, answer) for answer in answers)  # sum() would round differently
    return {"exact_match": 100.0 * exact / len(questions), "f1": 100.0 * total / len(questions)}
