"""The generated sample: always the same, in the official layouts, and not solved by shallow means.
"""

import csv
import hashlib
import statistics

import numpy as np
import pytest
from conftest import ROOT
from tiny import learn_vocabulary

import data
import train
from sample import generate, lexicon
from sample.nli import Sentence, label
from support.files import UserError
from tools import words

# of a few rows of each task, and of some documents for pretraining
VERSION, FINGERPRINTS = 1, {
    "MNLI": "0beca98f", "QQP": "e5423ae7", "SST-2": "8912231a", "SQuAD": "3830069b",
    "text": "2ff0f26f"}


def read(task, split):
    return data.read(data.TASKS[task], generate.sample_folder(data.TASKS[task].folder), split)


def read_all(task):
    """All rows by split, "train" first."""
    return {split: read(task, split) for split in ("train", *dict(data.TASKS[task].dev))}


@pytest.fixture
def few_rows(monkeypatch, tmp_path):
    """200 rows of everything, in an empty cache."""
    monkeypatch.setenv("MOVEMENT_CACHE", str(tmp_path))
    monkeypatch.setattr(generate, "SIZES", {
        task: dict.fromkeys(sizes, 200) for task, sizes in generate.SIZES.items()})


@pytest.fixture(scope="module")
def fewer_rows(tmp_path_factory):
    """A quarter of the training rows, generated once for all tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOVEMENT_CACHE", str(tmp_path_factory.mktemp("sample")))
        patch.setattr(generate, "SIZES", {
            task: sizes | {"train": sizes["train"] // 4} for task, sizes in generate.SIZES.items()})
        learn_vocabulary("untrained")
        yield


def test_changed_text_has_a_new_version(few_rows):
    texts = {"text": repr(list(generate.pretraining_documents(1_000)))}
    for task in generate.SIZES:
        paths = sorted((generate.sample_folder(task) / task).iterdir())
        texts[task] = "".join(path.read_text(encoding="utf-8") for path in paths)
    found = {name: hashlib.sha256(text.encode()).hexdigest()[:8] for name, text in texts.items()}
    assert (generate.VERSION, found) == (VERSION, FINGERPRINTS), (
        f"the generated text has changed: raise VERSION in sample/generate.py above {VERSION}, "
        f"then copy it and these to this file: {found}")


def test_only_the_task_asked_for_is_generated_and_only_once(few_rows, monkeypatch):
    assert not generate.is_there("SST-2")
    folder = generate.sample_folder("SST-2")
    assert {path.name for path in folder.iterdir()} == {"SST-2", "SHA256SUMS"}
    assert [task for task in generate.SIZES if generate.is_there(task)] == ["SST-2"]
    assert len(read("sst2", "train")) == 200
    made = folder.stat().st_ino
    assert generate.sample_folder("SST-2") == folder and folder.stat().st_ino == made
    (folder / "SST-2" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"dev\.tsv: is gone or has changed"):
        generate.sample_folder("SST-2")
    monkeypatch.setattr(generate, "VERSION", 0)
    assert not generate.is_there("SST-2")
    with pytest.raises(UserError, match="there is no sample of WNLI; give --data DIR"):
        generate.is_there("WNLI")


@pytest.mark.parametrize("task", ["mnli", "qqp", "sst2"])
def test_rows_are_balanced_and_no_evaluation_row_is_trained_or_pretrained_on(task, fewer_rows):
    rows = read_all(task)
    sizes = generate.SIZES[data.TASKS[task].folder]
    assert [len(of_split) for of_split in rows.values()] == list(sizes.values())
    for of_split in rows.values():
        shares = np.bincount(of_split.labels) / len(of_split)
        assert shares.max() - shares.min() < 0.02
    known = {texts[0] for texts in rows.pop("train").texts}
    known |= {first for first, *_ in generate.pretraining_documents(5_000)}
    for of_split in rows.values():
        assert not {texts[0] for texts in of_split.texts} & known  # not even half of a pair


def test_mismatched_genres_are_absent_from_training(few_rows):
    def genres(name):
        lines = (generate.sample_folder("MNLI") / "MNLI" / name).read_text().splitlines()
        return {line.split("\t")[3] for line in lines[1:]}

    assert not genres("train.tsv") & genres("dev_mismatched.tsv")
    assert genres("train.tsv") == genres("dev_matched.tsv")


@pytest.mark.parametrize("premise, hypothesis, by_hand", [
    (("every", "dog", "run"), ("every", "poodle", "run"), "entailment"),
    (("every", "poodle", "run"), ("every", "dog", "run"), "neutral"),
    (("no", "dog", "run"), ("no", "poodle", "run"), "entailment"),
    (("no", "dog", "gallop"), ("no", "dog", "run"), "neutral"),
    (("some", "dog", "gallop"), ("some", "dog", "run"), "entailment"),
    (("every", "dog", "run"), ("no", "dog", "run"), "contradiction"),
    (("every", "dog", "run"), ("no", "poodle", "sleep"), "entailment"),
    (("every", "dog", "run"), ("not every", "dog", "run"), "contradiction"),
    (("some", "dog", "run", "barn"), ("some", "dog", "run", "village"), "entailment"),
])
def test_labels_by_hand(premise, hypothesis, by_hand):
    first, second = (Sentence("farm", **dict(zip(("quantifier", "noun", "verb", "place"), words)))
                     for words in (premise, hypothesis))
    assert label(first, second) == by_hand


def test_pretraining_text_has_every_kind_of_document():
    text = [" ".join(document) for document in generate.pretraining_documents(2_000)]
    assert len(set(text)) > 1_500
    for link in lexicon.TABLES["links"].values():
        assert any(f" {link[0]} " in t for t in text)
    assert any("is a kind of" in t for t in text) and any(t.endswith("it is good .") for t in text)


@pytest.mark.parametrize("task, metric", [
    ("mnli", "accuracy_matched"), ("sst2", "accuracy"), ("qqp", "accuracy")])
def test_words_alone_stay_ten_points_under_dense_bert(task, metric, fewer_rows):
    with open(ROOT / "results" / "sample.csv", encoding="utf-8") as file:
        dense = [float(row[metric]) for row in csv.DictReader(file)
                 if (row["task"], row["method"], row["model"]) == (task, "dense", "small")]
    flags = ["--task", task, "--model", "untrained", "--method", "dense"]
    found = words.measure(train.resolve(train.make_parser().parse_args(flags)))
    assert found[metric] <= statistics.mean(dense) - 10
