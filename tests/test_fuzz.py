"""Thousands of damaged files, the same ones each time: each is read, or refused in one clear line.

    FUZZ_TRIES=9999 FUZZ_SEED=7 python -m pytest -s tests/test_fuzz.py      with counts
"""

import json
import lzma
import os
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from test_readers import LAYOUTS, table
from tiny import TRAIN

import bert
import data
import evaluate
import export
import masking
import train
from support import checkpoints, squad
from support.files import UserError
from support.tokenizer import load_tokenizer
from tools import rows

SEED = int(os.environ.get("FUZZ_SEED", 0))
TRIES = int(os.environ.get("FUZZ_TRIES", 200))  # for each kind of file
PIECES = [b"\t", b"\n", b"\r", b'"', b"\0", b"\xff", b"\xef\xbb\xbf", b"\\", b"\\ud800", b"NaN",
          b"null", b"true", b"-1", b"0", b"1e999", b"9" * 30, b"[", b"{", b"}", b"]", b",", b":",
          b"[" * 3000, b"[PAD]", b"bert", b"\xf0\x9f\x98\x80", "é".encode()]


def damage(whole: bytes, rng: random.Random) -> bytes:
    """One to three changes: bytes flipped, cut out, put in, doubled, or the end missing."""
    for _ in range(rng.randint(1, 3)):
        # the first bytes hold lengths and headers: hit them often
        at = rng.randrange(min(len(whole), rng.choice((16, 400, 10**9))) + 1)
        to = min(len(whole), at + rng.choice((1, 1, 4, 30, 400)))
        change = rng.randrange(6)
        if change == 0:
            whole = whole[:at] + bytes(b ^ 1 << rng.randrange(8) for b in whole[at:to]) + whole[to:]
        elif change == 1:
            whole = whole[:at] + whole[to:]
        elif change == 2:
            whole = whole[:at] + rng.choice(PIECES) + whole[at:]
        elif change == 3:
            whole = whole[:to] + whole[at:]
        elif change == 4:
            whole = whole[:at] + rng.choice(PIECES) + whole[to:]
        elif rng.random() < 0.3:
            whole = whole[:at]
    return whole


def attack(path, read, seal=lambda whole: whole, checksums=False):
    """Damage `path` again and again. `read` may only succeed, or refuse in one line; where the file
    has `checksums`, it must refuse.

    `seal` turns a damaged plain file into one that is whole as far as its checksums tell.
    """
    whole, rng, count = path.read_bytes(), random.Random(SEED), {"read": 0, "refused": 0}
    for _ in range(TRIES):
        damaged = damage(whole, rng)
        if damaged == whole:
            continue
        path.write_bytes(seal(damaged))
        try:
            read()
            count["read"] += 1
        except UserError as error:
            assert "\n" not in str(error) and str(path.parent) in str(error), error
            count["refused"] += 1
    path.write_bytes(seal(whole))
    read()
    print(f"{path.name}: {count}")
    assert count["refused"] and bool(count["read"]) != checksums, count


TEXTS = ["The cat sat.", 'Who said "no"?', "Zürich, 東京 and \U0001f600", "a b c d e f g"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows(name, tmp_path):
    task, path = data.TASKS[name], tmp_path / "rows.tsv"
    header, _, label, _ = LAYOUTS[name]
    path.write_text(table(task, header, label, TEXTS[1:]), encoding="utf-8")
    attack(path, lambda: data.read_file(task, path))
    attack(path, lambda: data.read_file(task, path, labelled=False))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
@pytest.mark.filterwarnings("ignore")
def test_models(name, place):
    path = Path("model", name)
    if name == "pytorch_model.bin":
        torch.save(bert.read_weights(Path("model")), path)
        Path("model/model.safetensors").unlink()

    def read():
        bert.load("model", "classification", 2)
        bert.read_labels(Path("model"))

    attack(path, read)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json", "tokenizer.json"])
def test_tokenizers(name, place):
    path, texts = Path("model", name), data.Rows([(text, text) for text in TEXTS], np.zeros(4))
    Path("model/tokenizer_config.json").write_text(json.dumps({
        "do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}))
    if name == "tokenizer.json":
        path.write_text(load_tokenizer(Path("model")).to_str(pretty=True))
    attack(path, lambda: data.encode_texts(texts, load_tokenizer(Path("model")), 8))


def test_questions(place):
    path, tokenizer = Path("data/SQuAD/dev-v1.1.json"), load_tokenizer(Path("model"))
    attack(path, lambda: squad.encode(squad.read(path), tokenizer, 20, 4, 8))


def test_tables_of_rows(tmp_path):
    path = tmp_path / "rows.csv"
    for key in "123456789":
        rows.append(path, dict.fromkeys(rows.COLUMNS, "") | {
            "task": "mnli", "method": "movement", "keep": "0.1", "density": "0.1", "key": key})
    attack(path, lambda: rows.read(path))


# --------------------------------------------------------------------- what runs leave behind


@pytest.mark.filterwarnings("ignore")
def test_checkpoints(place):
    model, _ = bert.load("model", "classification", 2)
    settings = train.resolve(train.make_parser().parse_args(TRAIN))
    pruner = train.make_pruner(model, settings, masking.Schedule(40, 8, 8))
    optimizer, scheduler = train.make_optimizer(model, pruner, settings)
    pruner.set_masks(0)
    run = checkpoints.Run(Path("new"), asdict(settings), pruner, resume=True, overwrite=False)
    run.parts = [model, pruner, optimizer, scheduler]
    run.record, run.began, run.t, run.smooth_loss = {"task": "sst2"}, 0.0, 3, 0.5
    run.save()

    def read():
        run.read_checkpoint()
        run.load()

    attack(run.checkpoint, read, checksums=True)


def test_settings_of_a_run(place):
    args = evaluate.make_parser().parse_args(["run"])

    def read():
        s = evaluate.resolve(args)
        assert s.task in data.TASKS and s.batch_size > 0 and s.max_length > 0
        assert s.precision in ("auto", "fp32", "bf16")
        assert s.max_eval_rows is None or s.max_eval_rows > 0
        assert not s.held_out or 0 < s.held_out < 1

    attack(Path("run/run.json"), read)


def test_results_of_a_run(place, monkeypatch):
    monkeypatch.setattr(checkpoints, "say", str)  # run_main makes a terminal take any text
    attack(Path("run/metrics.json"), lambda: checkpoints.report_if_finished(
        Path("run"), {"method": "movement"}), checksums=True)


def test_compact_files(place):
    place("export.py", "run", "--values", "int8").succeeded()
    path = Path("run/export", export.COMPACT)
    attack(path, lambda: export.load_compact(path), checksums=True)
    path.write_bytes(lzma.decompress(path.read_bytes()))
    attack(path, lambda: export.load_compact(path),
           lambda plain: lzma.compress(plain, filters=export.FILTERS))
