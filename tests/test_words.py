"""tools.words: sums by hand, a fit that learns which words tell, and the rows of its file."""

import csv

import numpy as np
import pytest
import torch
from tiny import check_refused

import data
from tools import words

MODEL = ("--model", "model", "--data", "data")


def features(*texts, labels, second=()):
    """Rows of these token numbers; second: how many of the last ones are the second text's."""
    lengths = np.array([len(text) for text in texts])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    first = lengths - (np.array(second) if second else 0)
    return data.Features(np.concatenate(texts).astype(np.int32), starts, first,
                         np.array(labels), 0)


def test_a_row_is_the_sum_of_its_pieces_and_a_second_text_has_its_own_numbers():
    W = torch.tensor([[1.0, 0.0], [0.0, 2.0], [4.0, 0.0], [0.0, 8.0]])  # two pieces, two classes
    rows = features([0, 1, 1], [1, 0, 1], labels=[0, 1], second=[0, 2])
    assert words.logits(W, *words.pieces(rows, 2)).tolist() == [[1, 4], [4, 2 + 8]]


def test_the_fit_is_where_its_loss_is_least():
    torch.manual_seed(0)
    texts, labels = torch.randint(0, 6, (50, 4)).numpy(), torch.randint(0, 3, (50,)).numpy()
    rows = features(*texts, labels=labels)
    W = words.fit(rows, 6, 3).requires_grad_()
    outputs = words.logits(W, *words.pieces(rows, 6))
    L = torch.nn.functional.cross_entropy(outputs, torch.from_numpy(labels), reduction="sum")
    L = L + words.RIDGE / 2 * W.square().sum()
    L.backward()
    assert W.grad.abs().max() < 1e-2 and W.abs().max() > 0.1


def test_words_that_tell_are_learned_and_the_row_is_kept_once(place):
    asked = ("tools.words", *MODEL, "--task", "sst2", "--held-out", "0.25", "--csv", "words.csv")
    said = place(*asked).succeeded()
    assert "accuracy                 100" in said and "held_out_accuracy        100" in said
    place(*asked).succeeded()
    place("tools.words", *MODEL, "--task", "rte", "--csv", "words.csv").succeeded()
    first, second = csv.DictReader(open("words.csv"))
    assert (first["task"], first["train_rows"], first["eval_rows"]) == ("sst2", "30", "40")
    assert (first["data"], first["model"], first["held_out_accuracy"]) == ("data", "model", "100")
    assert first["command"] == ("python -m tools.words --model model --data data --task sst2 "
                                "--held-out 0.25")
    assert (second["task"], second["accuracy"]) == ("rte", "100")


@pytest.mark.parametrize("asked, complaint", [
    (("--task", "stsb"), "--task stsb: has no classes"),
    (("--task", "squad"), "--task squad: has no classes"),
    (("--task", "sst2", "--csv", "data/SST-2/train.tsv"), "no column eval_rows"),
    (("--task", "sst3"), "did you mean sst2"),
    (("--tusk", "sst2"), "did you mean --task"),
])
def test_wrong_requests_are_refused(place, asked, complaint):
    check_refused(place("tools.words", *MODEL, *asked), complaint)
