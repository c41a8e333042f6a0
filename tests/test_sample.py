"""The generated sample: deterministic, in the official layouts, and not solved by anything shallow.
"""

import csv
import statistics

import numpy as np
import pytest
import torch
from conftest import ROOT

import data
import train
from sample import generate as sample_data
from sample.nli import LINKS, Frame, label
from support import squad

TASKS = ("mnli", "qqp", "sst2")


@pytest.fixture(scope="module")
def folder(cache):
    return train.data_folder("sample", "mnli")


def splits(task):
    return ["train", *data.TASKS[task].dev]


@pytest.mark.parametrize("task", TASKS)
def test_sizes_and_balance(task, folder):
    for split, n in zip(splits(task), sample_data.SIZES[task].values()):
        rows = data.read(data.TASKS[task], folder, split)
        assert len(rows) == n
        shares = np.bincount(rows.labels) / n
        assert shares.max() - shares.min() < 0.02


@pytest.mark.parametrize("task", TASKS)
def test_no_evaluation_row_is_trained_or_pretrained_on(task, folder):
    rows = {split: data.read(data.TASKS[task], folder, split).texts for split in splits(task)}
    text = {first for first, *_ in sample_data.pretraining_text(5_000)}
    trained = set(rows.pop("train"))
    for texts in rows.values():
        assert not set(texts) & trained
        assert not {t[0] for t in texts} & {t[0] for t in trained}  # not even half of a pair
        assert not {t[0] for t in texts} & text


def test_mismatched_genres_are_absent_from_training(folder):
    def genres(name):
        with open(folder / "MNLI" / name, encoding="utf-8") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            return {row["genre"] for row in rows}

    assert not genres("train.tsv") & genres("dev_mismatched.tsv")
    assert genres("train.tsv") == genres("dev_matched.tsv")


def test_the_same_every_time(tmp_path, folder):
    sample_data.write_task("sst2", tmp_path)
    for path in (tmp_path / "SST-2").iterdir():
        assert path.read_bytes() == (folder / "SST-2" / path.name).read_bytes()


def test_labels_by_hand():
    def frame(quant, noun, verb, **more):
        return Frame("farm", quant, noun=noun, verb=verb, **more)

    cases = [
        (frame("every", "dog", "run"), frame("every", "poodle", "run"), "entailment"),
        (frame("every", "poodle", "run"), frame("every", "dog", "run"), "neutral"),
        (frame("no", "dog", "run"), frame("no", "poodle", "run"), "entailment"),
        (frame("no", "dog", "gallop"), frame("no", "dog", "run"), "neutral"),
        (frame("some", "dog", "gallop"), frame("some", "dog", "run"), "entailment"),
        (frame("every", "dog", "run"), frame("no", "dog", "run"), "contradiction"),
        (frame("every", "dog", "run"), frame("no", "poodle", "sleep"), "entailment"),
        (frame("every", "dog", "run"), frame("not every", "dog", "run"), "contradiction"),
        (frame("some", "dog", "run", place="barn"), frame("some", "dog", "run", place="village"),
         "entailment"),
    ]
    for premise, hypothesis, by_hand in cases:
        assert label(premise, hypothesis) == by_hand, (premise, hypothesis)


def test_pretraining_text_has_every_kind_of_document():
    text = [" ".join(document) for document in sample_data.pretraining_text(2_000)]
    assert len(set(text)) > 1_500
    for links in LINKS.values():
        assert any(f" {links[0]} " in t for t in text)
    assert any("is a kind of" in t for t in text) and any(t.endswith("it is good .") for t in text)


def test_squad_answers_stand_in_their_passages(folder):
    questions = squad.read(folder / "SQuAD" / "train-v1.1.json")
    assert questions.unfound == 0 and len(questions) > 5_000


def bag_of_words(task, folder):
    """Logistic regression on which words are in which text → accuracy on the first dev split."""
    words = {}
    sets = []
    for split in splits(task)[:2]:
        rows = data.read(data.TASKS[task], folder, split)
        index = [[words.setdefault((i, w), len(words)) for i, text in enumerate(texts)
                  for w in text.split()] for texts in rows.texts]
        sets.append((index, torch.from_numpy(rows.labels)))
    def counts(index):
        x = torch.zeros(len(index), len(words))
        for row, seen in zip(x, index):
            row[seen] = 1.0
        return x

    (x, y), (dev_x, dev_y) = ((counts(index), labels) for index, labels in sets)
    torch.manual_seed(0)
    model = torch.nn.Linear(len(words), int(y.max()) + 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return 100 * float((model(dev_x).argmax(1) == dev_y).float().mean())


@pytest.mark.parametrize("task, metric", [
    ("mnli", "accuracy_matched"), ("sst2", "accuracy"), ("qqp", "accuracy")])
def test_bag_of_words_stays_ten_points_under_dense_bert(task, metric, folder):
    with open(ROOT / "results" / "sample.csv", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file)
                if (r["task"], r["method"], r["model"]) == (task, "dense", "small")]
    dense = statistics.mean(float(r[metric]) for r in rows)
    assert bag_of_words(task, folder) <= dense - 10
