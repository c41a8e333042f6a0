"""A folder with tiny data, a tiny model and a finished run of it, for tests that break them."""

import hashlib
import importlib
import os
import shutil
import sys

import pytest
import torch

import bert
from support import files

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "good", "bad", "."]
CONFIG = bert.Config(vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=1,
                     num_attention_heads=2, intermediate_size=64, max_position_embeddings=128,
                     hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
TINY = ("--method", "movement", "--steps", "40", "--batch-size", "8", "--save-every", "10",
        "--lr", "1e-3")
SQUAD = ("--max-length", "99", "--doc-stride", "9")


def tsv(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


GOOD, BAD = ("a good b .", "1"), ("a bad c .", "0")
SST2 = tsv(("sentence", "label"), *[GOOD, BAD] * 20)
PAIRS = [("0", "a b", "a c", "entailment"), ("1", "a b", "b", "not_entailment")] * 20
RTE = tsv(("index", "sentence1", "sentence2", "label"), *PAIRS)
COLA = tsv(*[("s", "1", "", "a b ."), ("s", "0", "*", "b b a")] * 20)
STSB = tsv(("sentence1", "sentence2", "score"), *[("a b", "a", "2.5"), ("c", "b", "0.000")] * 20)


def squad(**change):
    answer = {"text": "good b", "answer_start": 2} | change
    return {"data": [{"title": "t", "paragraphs": [{"context": "a good b .", "qas": [
        {"id": str(i), "question": "a ?", "answers": [dict(answer)]} for i in range(40)]}]}]}


def write_data(folder):
    for place, text in (("SST-2", SST2), ("RTE", RTE), ("CoLA", COLA), ("STS-B", STSB)):
        files.write_atomically(folder / place / "train.tsv", text)
        files.write_atomically(folder / place / "dev.tsv", text)
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        files.write_json(folder / "SQuAD" / name, squad())


def write_model(folder):
    torch.manual_seed(0)
    bert.save(bert.create(CONFIG, "classification", 2), folder)
    files.write_atomically(folder / "vocab.txt", "".join(word + "\n" for word in WORDS))


def digests(folder):
    """name → digest of everything in a folder, but for what a running process keeps there."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


class Trap:
    """Whoever unpickles it makes a folder sprung/."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


class Place:
    """A folder with data/, model/ and run/, and the commands at work in it."""

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys

    def __call__(self, program, *words):
        """Run a program's main() in this process → status, standard output, standard error."""
        self.monkeypatch.setattr(sys, "argv", [program, *map(str, words)])
        self.capsys.readouterr()
        try:
            files.run_main(importlib.import_module(program.removesuffix(".py")).main)
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *self.capsys.readouterr()

    def train(self, *words, task="sst2", output="run"):
        return self("train.py", "--data", "data", "--model", "model", "--max-length", "16",
                    "--task", task, *TINY, "--output", output, *words)


@pytest.fixture(scope="session")
def ready(tmp_path_factory, cache):
    """data/, model/ and run/, a finished run, to be copied by each test."""
    folder = tmp_path_factory.mktemp("ready")
    write_data(folder / "data")
    write_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [
            "train.py", "--data", "data", "--model", "model", "--task", "sst2", *TINY,
            "--max-length", "16", "--output", "run"])
        importlib.import_module("train").main()
    return folder


@pytest.fixture
def place(ready, tmp_path, monkeypatch, capsys):
    shutil.copytree(ready, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, monkeypatch, capsys)


def check_refused(found, said, status=2):
    code, _, error = found
    assert said in error and "Traceback" not in error, error
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 500, error
    assert code == status
    assert "\r" not in error and "\x1b" not in error
