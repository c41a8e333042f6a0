"""SQuAD v1.1 (Rajpurkar et al. 2016, arXiv 1606.05250): questions, windows, answers, EM and F1.

    questions = squad.read(Path("glue/SQuAD/dev-v1.1.json"))
    windows = data.SpanFeatures(**squad.encode(questions, tokenizer), pad=0)
    predictions, nbest = squad.decode(questions, windows, logits)
    squad.metrics(predictions, questions)                     → {"exact_match": …, "f1": …}

A passage that is longer than the model's input is split into overlapping windows, each a row of
its own: [CLS] question [SEP] part of the passage [SEP]. The rules for windows are those of BERT
(Devlin et al. 2018, arXiv 1810.04805, and its run_squad.py). An answer is never put together from
tokens: it is copied from the passage, by the characters that its tokens stand for.
"""

import re
import string
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from support.files import UserError, read_json, sha256, write_json

# ------------------------------------------------------------------------------- questions


class Question(NamedTuple):
    id: str
    question: str
    context: str  # the passage; one string object for all questions of a paragraph
    answers: list[str]
    starts: list[int]  # the character of the context at which each answer begins

    def answer_spans(self) -> list[tuple[int, int]]:
        """Characters [start, end) of each answer that is where the file says it is."""
        return [(start, start + len(text)) for text, start in zip(self.answers, self.starts)
                if text.strip() and self.context.startswith(text, start)]


@dataclass
class Questions:
    """The questions of one file, as rows."""

    rows: list[Question]
    fingerprint: str = ""  # SHA-256 of the file

    def __len__(self):
        return len(self.rows)

    def take(self, index) -> "Questions":
        return Questions([self.rows[i] for i in index], self.fingerprint)

    @property
    def unfound(self) -> int:
        """How many answers are not where the file says. They are not searched for elsewhere:
        training does without them; evaluation compares texts, and still counts them."""
        return sum(len(q.answers) - len(q.answer_spans()) for q in self.rows)


KINDS = {  # of a value: what it is called, and what must hold besides
    list: ("a list", lambda value: True),
    int: ("a whole number of at least 0", lambda value: value >= 0),
    # JSON may contain half a character, such as "\ud83d"
    str: ("a valid text", lambda value: not re.search("[\ud800-\udfff]", value)),
}


def get(node, key: str, kind: type, where: str):
    """node[key]; UserError unless node is an object and its value of that kind."""
    what, is_valid = KINDS[kind]
    value = node.get(key) if type(node) is dict else None
    if type(value) is not kind or not is_valid(value):
        raise UserError(f"{where}: no {key!r} that is {what}")
    return value


def children(node, key: str, where: str, joint: str = "."):
    """Each child of the list node[key], with its place in the file."""
    for i, child in enumerate(get(node, key, list, where)):
        yield child, f"{where}{joint}{key}[{i}]"


def read_question(qa, context: str, where: str) -> Question:
    question = Question(get(qa, "id", str, where), get(qa, "question", str, where), context, [], [])
    for answer, at_answer in children(qa, "answers", where):
        question.answers.append(get(answer, "text", str, at_answer))
        question.starts.append(get(answer, "answer_start", int, at_answer))
    if not question.answers:
        raise UserError(f"{where}: no answer in 'answers'; questions without one are SQuAD "
                        "v2.0's, and this reads v1.1")
    return question


def read(path: Path) -> Questions:
    """All questions of a file in the official layout, in order.

    UserError names the file and the place in it, such as data[0].paragraphs[3].qas[1].
    """
    questions = {}  # by id
    for article, at_article in children(read_json(path), "data", str(path), ": "):
        for paragraph, at_paragraph in children(article, "paragraphs", at_article):
            context = get(paragraph, "context", str, at_paragraph)
            for qa, at_qa in children(paragraph, "qas", at_paragraph):
                question = read_question(qa, context, at_qa)
                if question.id in questions:
                    raise UserError(f"{at_qa}: id {question.id!r} is there twice")
                questions[question.id] = question
    if not questions:
        raise UserError(f"{path}: no questions")
    return Questions(list(questions.values()), sha256(Path(path)))


# ---------------------------------------------------------------- windows and their labels


def tokenise(texts: list[str], tokenizer: Tokenizer) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each text's tokens (n,) and the characters [start, end) they stand for (n, 2), as int32."""
    tokens = []
    for at in range(0, len(texts), 1_000):  # in parts, since the library's objects are large
        for e in tokenizer.encode_batch(texts[at : at + 1_000], add_special_tokens=False):
            tokens.append((np.array(e.ids, np.int32), np.array(e.offsets, np.int32).reshape(-1, 2)))
    return tokens


def token_span(question: Question, offsets: np.ndarray) -> tuple[int, int] | None:
    """First and last token of the context that overlap the first answer that is in place.

    An answer that begins or ends inside a token, such as the 5 of "15", gets the whole token.
    """
    for start, end in question.answer_spans():
        first = int(np.searchsorted(offsets[:, 1], start, side="right"))  # first to end after it
        last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1  # last to begin in it
        if first <= last:  # false if the tokenizer drops all of the answer's characters
            return first, last
    return None


def split(tokens: int, room: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a context's windows of at most `room` tokens begin and end, (windows,) each."""
    begins = np.arange(0, max(0, tokens - room) + stride, stride)  # the last one reaches the end
    return begins, np.minimum(begins + room, tokens)


def home_windows(begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """For each token of one context, (T,), the window in which it has the most context.

    As in BERT's run_squad.py, a token's context is the smaller of its numbers of neighbours to the
    left and to the right, plus 0.01 for each token of the window; the first window wins a tie.
    """
    most, home = np.full(ends[-1], -np.inf), np.zeros(ends[-1], int)  # (T,) each
    for w, (begin, end) in enumerate(zip(begins, ends)):
        left = np.arange(end - begin)
        context = np.minimum(left, left[::-1]) + 0.01 * (end - begin)  # (tokens of the window,)
        better = np.flatnonzero(context > most[begin:end]) + begin
        most[better], home[better] = context[better - begin], w
    return home


def question_windows(query, context_ids, context_offsets, answer, room, stride, cls, sep):
    """The windows of one question, as (first, label, ids, offsets, home) of each.

    query, cls, sep: token ids, (…,) int32; context_ids, context_offsets: of all the context's
    tokens; answer: its first and last of them, or None; room: how many of them fit in a window.
    """
    first = len(query) + 2
    begins, ends = split(len(context_ids), room, stride)
    home = home_windows(begins, ends)
    for w, (begin, end) in enumerate(zip(begins, ends)):
        # A window without the whole answer points at its [CLS] and stays in training, as in BERT's
        # script: spans of different windows compete by their logits, so the model has to learn low
        # ones for where there is no answer.
        whole = answer is not None and begin <= answer[0] and answer[1] < end
        label = (answer[0] - begin + first, answer[1] - begin + first) if whole else (0, 0)
        ids = np.concatenate([cls, query, sep, context_ids[begin:end], sep])  # (n,)
        offsets = np.pad(context_offsets[begin:end], ((first, 1), (0, 0)), constant_values=-1)
        at_home = np.pad(home[begin:end] == w, (first, 1))  # (n,)
        yield first, label, ids, offsets, at_home  # offsets (n, 2)


def encode(questions: Questions, tokenizer: Tokenizer, max_length: int = 384,
           doc_stride: int = 128, max_query: int = 64, training: bool = False) -> dict:
    """Windows of at most max_length tokens, which begin doc_stride tokens of the context apart.

    Questions are shortened to max_query tokens. With training=True, those without an answer in
    place are left out. The tokenizer must not truncate (support/tokenizer.py).

    Returns the arrays of data.SpanFeatures by name; `first` counts [CLS] question [SEP].
    Raises UserError if max_length is too short, or if nothing is left to train on.
    """
    shortest = max_query + doc_stride + 3
    if max_length < shortest:
        raise UserError(f"--max-length {max_length} is too short: a question of {max_query} "
                        f"tokens, --doc-stride {doc_stride} and 3 separators need {shortest}; "
                        "raise it or lower --doc-stride")
    texts = list(dict.fromkeys(q.context for q in questions.rows))
    contexts = dict(zip(texts, tokenise(texts, tokenizer)))  # each is tokenised once
    queries = tokenise([q.question for q in questions.rows], tokenizer)
    cls, sep = (np.array([tokenizer.token_to_id(t)], np.int32) for t in ("[CLS]", "[SEP]"))
    windows = []
    for row, (question, (query, _)) in enumerate(zip(questions.rows, queries)):
        query, context = query[:max_query], contexts[question.context]
        answer = token_span(question, context[1])
        if answer or not training:
            room = max_length - 3 - len(query)
            windows += [(row, *window) for window in question_windows(
                query, *context, answer, room, doc_stride, cls, sep)]
    if not windows:
        raise UserError("SQuAD's training file: no answer is where its answer_start says, so there "
                        "is nothing to train on")
    row, first, labels, ids, offsets, home = zip(*windows)
    return {"ids": np.concatenate(ids), "starts": np.cumsum([0, *map(len, ids)]),
            "first": np.array(first), "labels": np.array(labels), "row": np.array(row),
            "offsets": np.concatenate(offsets), "home": np.concatenate(home)}


# ------------------------------------------------------------------------------- answers


def best_spans(start: np.ndarray, end: np.ndarray, home: np.ndarray, n_best: int,
               max_answer: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last tokens, (k,) each, of the k ≤ n_best best spans of one window, best first.

    start, end, home: (n,), logits and home of the context's tokens. A span has at most max_answer
    tokens, the first of them at home in this window; ties go to the earlier.
    """
    padded = np.append(end, np.full(max_answer, -np.inf))  # (n + max_answer,)
    ends = np.lib.stride_tricks.sliding_window_view(padded, max_answer)[:-1]  # (n, max_answer)
    scores = np.where(home[:, None], start[:, None] + ends, -np.inf).ravel()  # (n · max_answer,)
    least = np.partition(scores, -n_best)[-n_best] if len(scores) > n_best else -np.inf
    best = np.flatnonzero((scores >= least) & (scores > -np.inf))
    best = best[np.argsort(-scores[best], kind="stable")][:n_best]
    first, extra = np.divmod(best, max_answer)
    return first, first + extra


def copy_text(context: str, start: int, end: int) -> str:
    """Characters [start, end), and the combining accents that follow them: the tokenizer drops
    these (Unicode's class Mn), so they belong to no token."""
    while end < len(context) and unicodedata.category(context[end]) == "Mn":
        end += 1
    return context[start:end]


def decode(questions: Questions, windows, logits: list[np.ndarray],
           n_best: int = 20, max_answer: int = 30) -> tuple[dict, dict]:
    """Logits, (tokens, 2) per window → {id: text} and {id: [the n best answers, best first]}.

    windows: data.SpanFeatures of all these questions. The best spans of all windows of a question
    compete by the sum of their logits; ties go to the earlier. Each of the n best has "text",
    "start_logit", "end_logit" and "probability", the softmax over these n. The answer from a
    context without tokens is "".
    """
    candidates = [[] for _ in questions.rows]  # (score, start logit, end logit, start, end)
    for w, (row, z) in enumerate(zip(windows.row, logits)):
        context = slice(windows.starts[w] + windows.first[w], windows.starts[w + 1] - 1)
        z = z[windows.first[w] : -1].astype(np.float64)  # (context's tokens, 2)
        spans = best_spans(z[:, 0], z[:, 1], windows.home[context], n_best, max_answer)
        logit, offsets = z.tolist(), windows.offsets[context].tolist()
        for i, j in zip(*spans):
            start, end = logit[i][0], logit[j][1]
            candidates[row].append((start + end, start, end, offsets[i][0], offsets[j][1]))
    predictions, nbest = {}, {}
    for q, spans in zip(questions.rows, candidates):
        spans = sorted(spans, key=lambda span: -span[0])[:n_best]  # stable
        p = np.exp([span[0] - spans[0][0] for span in spans])  # (n,)
        nbest[q.id] = [
            {"text": copy_text(q.context, a, b), "probability": x, "start_logit": s, "end_logit": e}
            for (_, s, e, a, b), x in zip(spans, (p / p.sum()).tolist())]
        predictions[q.id] = nbest[q.id][0]["text"] if spans else ""
    return predictions, nbest


def write(folder: Path, predictions: dict, nbest: dict) -> None:
    """Write predictions.json and nbest_predictions.json, the files of BERT's run_squad.py."""
    write_json(Path(folder) / "predictions.json", predictions)
    write_json(Path(folder) / "nbest_predictions.json", nbest)


# -------------------------------------------------------------------------------- metrics


def normalise(text: str) -> str:
    """As in the official script: lower case, no ASCII punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(prediction: str, answer: str) -> float:
    """F1, 0 to 1, of two normalised texts as bags of words."""
    predicted, expected = prediction.split(), answer.split()
    same = sum((Counter(predicted) & Counter(expected)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def metrics(predictions: dict[str, str], questions: Questions) -> dict[str, float]:
    """Exact match and F1, 0 to 100, each with the best-matching answer of every question.

    Questions without a prediction count as wrong. Equal to the official v1.1 script to the last
    digit.
    """
    exact = total = 0.0
    for q in questions.rows:
        if q.id in predictions:
            prediction = normalise(predictions[q.id])
            answers = [normalise(answer) for answer in q.answers]
            exact += prediction in answers
            total += max(f1(prediction, answer) for answer in answers)  # sum() rounds differently
    return {"exact_match": 100.0 * exact / len(questions), "f1": 100.0 * total / len(questions)}
