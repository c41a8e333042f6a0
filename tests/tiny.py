"""Tiny data, a tiny model and finished runs of it, and the programs at work on them."""

import contextlib
import functools
import hashlib
import importlib
import io
import itertools
import os
import shutil
import sys
import time
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch

import bert
import data
import train
from sample import generate, pretrain
from support import files

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "good", "bad", "."]
CONFIG = bert.Config(vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=1,
                     num_attention_heads=2, intermediate_size=64, max_position_embeddings=128,
                     hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
# a run on this data and model, and a short one on the generated sample
TRAIN = ("--data", "data", "--model", "model", "--task", "sst2", "--method", "movement",
         "--steps", "40", "--batch-size", "8", "--save-every", "10", "--lr", "1e-2",
         "--max-length", "16")
SAMPLE = ("--model", "untrained:1x32", "--steps", "40", "--max-train-rows", "320",
          "--max-eval-rows", "40", "--max-length", "32")
SQUAD = ("--task", "squad", "--max-length", "99", "--doc-stride", "9")


# ------------------------------------------------------------------------- data and weights


def tsv(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


SST2 = tsv(("sentence", "label"), *[("a good b .", "1"), ("a bad c .", "0")] * 20)
RTE = tsv(("index", "sentence1", "sentence2", "label"),
          *[("0", "a b", "a c", "entailment"), ("1", "a b", "b", "not_entailment")] * 20)
STSB = tsv(("sentence1", "sentence2", "score"), *[("a b", "a", "2.5"), ("c", "b", "0.000")] * 20)


def squad(**change):
    answer = {"text": "good b", "answer_start": 2} | change
    return {"data": [{"title": "t", "paragraphs": [{"context": "a good b .", "qas": [
        {"id": str(i), "question": "a ?", "answers": [dict(answer)]} for i in range(40)]}]}]}


def write_data(folder):
    for place, text in (("SST-2", SST2), ("RTE", RTE), ("STS-B", STSB)):
        files.write_atomically(folder / place / "train.tsv", text)
        files.write_atomically(folder / place / "dev.tsv", text)
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        files.write_json(folder / "SQuAD" / name, squad())


def write_model(folder):
    torch.manual_seed(0)
    bert.save(bert.create(CONFIG, "classification", 2), folder)
    files.write_atomically(folder / "vocab.txt", "".join(word + "\n" for word in WORDS))


def features_of(lengths):
    """Rows of these lengths, of padding alone."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return data.Features(np.zeros(starts[-1], np.int32), starts, np.asarray(lengths),
                         np.zeros(len(lengths), int), 0)


def digests(folder):
    """name → digest of every file in a folder."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


def check_same_bits(folder, other):
    """Two runs ended with the same bits."""
    for name in ("model.safetensors", "pruning.safetensors", "log.jsonl"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def batch(vocab_size, lengths=(17, 9, 1, 12), first=(7, 9, 1, 2)):
    """A padded batch: input_ids, attention_mask, token_type_ids, (4, 17) each."""
    torch.manual_seed(2)
    t = torch.arange(max(lengths))[None, :]
    mask = (t < torch.tensor(lengths)[:, None]).long()
    types = (t >= torch.tensor(first)[:, None]).long() * mask
    return torch.randint(5, vocab_size, mask.shape) * mask, mask, types


@torch.no_grad()
def compare_with_transformers(ours, theirs):
    """The hidden states of every layer and the logits agree, also at padding."""
    ids, mask, types = batch(ours.bert.config.vocab_size)
    hidden_states = []
    for module in (ours.bert.embeddings, *ours.bert.layers):
        module.register_forward_hook(lambda module, args, output: hidden_states.append(output))
    logits = ours.eval()(ids, mask, types)
    output = theirs.eval()(ids, attention_mask=mask, token_type_ids=types,
                           output_hidden_states=True)
    for x, y in zip(hidden_states, output.hidden_states, strict=True):
        y = y[:, : x.shape[1]]  # a classifier's last layer computes the first token alone
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)
    assert hidden_states[-1].std() > 0.1  # there is something to compare
    their_logits = output.logits if "logits" in output else torch.stack(
        [output.start_logits, output.end_logits], dim=2)
    torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=1e-6)


class Trap:
    """Whoever unpickles it makes a folder sprung/."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


# ----------------------------------------------------------------------------- the programs


class Done(NamedTuple):
    """What became of a command."""

    returncode: int
    stdout: str
    stderr: str

    def succeeded(self) -> str:
        """What it printed, if all went well."""
        assert self.returncode == 0, self.stderr
        return self.stdout


def run_here(program, *words) -> Done:
    """Run a program's main() in this process, which saves the seconds that importing takes."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (mock.patch.object(sys, "argv", [program, *map(str, words)]),
          contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
        try:
            files.run_main(importlib.import_module(program.removesuffix(".py")).main)
            status = 0
        except SystemExit as end:
            status = end.code
    return Done(status, *(stream.buffer.getvalue().decode() for stream in (out, err)))


def refusal(read, path, *more):
    """Why read(path, …) refuses the path: one line that names it."""
    with pytest.raises(files.UserError) as error:
        read(path, *more)
    said = str(error.value)
    assert str(path) in said and "\n" not in said
    return said


def check_refused(done, said, status=2):
    """One plain line that says it, and the right status."""
    error = done.stderr
    assert said in error and "Traceback" not in error, error
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 500, error
    assert done.returncode == status
    assert "\r" not in error and "\x1b" not in error


def wait_until(condition, *processes):
    """Wait until it holds, for a minute at most, while the processes run."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end and all(process.poll() is None for process in processes)
        time.sleep(0.02)


def learn_vocabulary(model):
    """Put this untrained model into the cache, its vocabulary learned from few documents."""
    documents = list(generate.pretraining_documents(1_000))
    with mock.patch.object(generate, "pretraining_documents", lambda count: documents):
        pretrain.small_bert(model)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache of the tests' own. In place of the whole sample and vocabulary, which would take half
    a minute, it holds smaller ones, which processes started by a test find too."""
    os.environ["MOVEMENT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    whole_mnli = generate.cache_entry("MNLI")
    with mock.patch.dict(generate.SIZES["MNLI"], train=1_000, dev_matched=100, dev_mismatched=100):
        files.cached(*whole_mnli, functools.partial(generate.write_task, "MNLI"))
    learn_vocabulary("untrained:1x32")


@pytest.fixture(scope="session")
def command(cache):
    """Run one of the programs → Done."""
    return run_here


class Place:
    """A folder with data/, model/ and run/, and the commands at work in it."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, program, *words):
        return run_here(program, *words)

    def train(self, *words, output="run"):
        return self("train.py", *TRAIN, "--output", output, *words)


@pytest.fixture(scope="session")
def ready(tmp_path_factory, cache):
    """data/, model/ and run/, a finished run, to be copied by each test."""
    folder = tmp_path_factory.mktemp("ready")
    write_data(folder / "data")
    write_model(folder / "model")
    with contextlib.chdir(folder):
        Place(folder).train().succeeded()
    return folder


@pytest.fixture
def place(ready, tmp_path, monkeypatch):
    shutil.copytree(ready, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)


@pytest.fixture(scope="session")
def sample_run(command, tmp_path_factory):
    """A short run on the generated MNLI → its folder and what it printed."""
    folder = tmp_path_factory.mktemp("sample") / "run"
    return folder, command("train.py", *SAMPLE, "--output", folder).succeeded()


@pytest.fixture
def change_loss(monkeypatch):
    """change_loss(t, change): the loss of step t becomes change(loss)."""
    def change_at(t, change):
        true_loss, steps = train.task_loss, itertools.count()

        def loss(*arguments):
            value = true_loss(*arguments)
            return change(value) if next(steps) == t else value

        monkeypatch.setattr(train, "task_loss", loss)

    return change_at
