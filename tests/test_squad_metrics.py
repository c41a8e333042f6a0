"""EM and F1: by hand, and equal to the official rules on the sample and on real rows."""

import collections
import json
import re
import string

import numpy as np
import pytest

from sample import squad as sample_squad
from support import squad


@pytest.mark.parametrize("text, expected", [
    ("The  Cat, an Ant & a\u00a0dog.", "cat ant dog"),
    ("theatre another a", "theatre another"),  # articles as whole words only
    ("a-b", "ab"), ("the-end", "theend"), ("A.", ""), ("U.S.", "us"),  # punctuation goes first
    ("\u201cthe\u201d end\u2014x", "\u201c \u201d end\u2014x"),  # only ASCII's
    ("\u00c9TAT", "\u00e9tat"), ("$5 / 10%", "5 10"),
])
def test_normalised(text, expected):
    assert squad.normalise(text) == expected


def test_metrics_by_hand():
    questions = squad.Questions([
        squad.Question("1", "", "", ["Paris", "the city of Paris"], [0, 0]),
        squad.Question("2", "", "", ["two red kites"], [0]),
        squad.Question("3", "", "", ["x"], [0]),
        squad.Question("4", "", "", ["the"], [0]),
    ])
    # 1: exact with the second answer; 2: same 2 of 2 and of 3, F1 0.8; 3: missing;
    # 4: both empty when normalised, which the official script calls exact with F1 0
    scores = squad.metrics({"1": "City of paris!", "2": "Red kites", "4": "a"}, questions)
    assert scores == {"exact_match": 50.0, "f1": 100 * 1.8 / 4}
    # a word that occurs twice counts as often as both have it: p = 1/2, r = 1
    assert squad.f1("x x", "x") == 2 * 0.5 / 1.5


def official_evaluation(questions, predictions):
    """The rules of the v1.1 evaluation."""
    def words(text):
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    def overlap(p, y):
        p, y = words(p), words(y)
        same = sum((collections.Counter(p) & collections.Counter(y)).values())
        if not same:
            return 0
        precision, recall = 1.0 * same / len(p), 1.0 * same / len(y)
        return (2 * precision * recall) / (precision + recall)

    answered = [(predictions[q.id], q.answers) for q in questions.rows if q.id in predictions]
    exact = sum(max(words(p) == words(y) for y in answers) for p, answers in answered)
    f1 = sum(max(overlap(p, y) for y in answers) for p, answers in answered)
    return {"exact_match": 100.0 * exact / len(questions), "f1": 100.0 * f1 / len(questions)}


def mutate(rng, question):
    """Something like one of the answers: cut, extended, dressed, or elsewhere."""
    text, start = question.answers[0], question.starts[0]
    context, kind = question.context, rng.integers(8)
    shift = int(rng.integers(1, 12))
    return (text, text.upper() + ".", f"the {text}", context[start : start + len(text) + shift],
            context[max(0, start - shift) : start + len(text)], text[shift:], "",
            context[shift * 5 : shift * 9])[kind]


def compare_with_official(path):
    questions = squad.read(path)
    rng = np.random.default_rng(0)
    predictions = {q.id: mutate(rng, q) for q in questions.rows if rng.random() < 0.98}
    scores = squad.metrics(predictions, questions)
    assert scores == official_evaluation(questions, predictions)  # to the last digit
    assert 5 < scores["exact_match"] < scores["f1"] < 95


def test_metrics_equal_the_official_ones_on_the_sample(tmp_path):
    path = tmp_path / "dev-v1.1.json"
    path.write_text(json.dumps(sample_squad.squad_json("dev", 400)))
    compare_with_official(path)


def test_metrics_equal_the_official_ones_on_real_rows(real_data):
    compare_with_official(real_data / "SQuAD" / "dev-v1.1.json")
