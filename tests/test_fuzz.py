"""Thousands of damaged files, the same ones each time: each is read, or refused in one clear line.

    python tests/test_fuzz.py 30 7      30 seconds for each kind of file, from seed 7; with counts
"""

import json
import lzma
import os
import random
import sys
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import ROOT

import bert
import data
import evaluate
import export
import masking
import train
from support import checkpoints, squad
from support.files import UserError, write_json
from support.tokenizer import load_tokenizer
from tools import rows

SEED = int(os.environ.get("FUZZ_SEED", 0))
# for each kind of file; a slow machine tries fewer
SECONDS = float(os.environ.get("FUZZ_SECONDS", 1.2))
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


def attack(path, read, least: int, most: int = 3000, seal=lambda whole: whole):
    """Damage `path` again and again. `read` may only succeed, or refuse in one line.

    `seal` turns a damaged plain file into one that is whole as far as its checksums tell.
    """
    whole, rng, count = path.read_bytes(), random.Random(SEED), {"read": 0, "refused": 0}
    end, most = time.monotonic() + SECONDS, most if SECONDS < 5 else 10**9
    while sum(count.values()) < most and (sum(count.values()) < least or time.monotonic() < end):
        path.write_bytes(seal(damage(whole, rng)))
        try:
            read()
            count["read"] += 1
        except UserError as error:
            assert "\n" not in str(error) and str(path.parent) in str(error), error
            count["refused"] += 1
    path.write_bytes(seal(whole))
    read()
    print(f"{path.name}: {count}")
    assert min(count.values()) > 0, count  # both do happen


TEXTS = ["The cat sat.", 'Who said "no"?', "Zürich, 東京 and \U0001f600", "a b c d e f g"]
VALUES = {"label": "0", "score": "3.8", "gold_label": "neutral", "is_duplicate": "1",
          "Quality": "1"}


@pytest.mark.parametrize("name", [name for name, task in data.TASKS.items() if not task.span])
def test_rows(name, tmp_path):
    task = data.TASKS[name]
    header = task.header or ("index", *task.columns, task.label)
    label = "entailment" if task.labels and "entailment" in task.labels else VALUES[task.label]
    lines = ["\t".join(header)] * (not task.header)
    for i, text in enumerate(TEXTS * 3):
        row = {"index": i} | dict.fromkeys(task.columns, text) | {task.label: label}
        lines.append("\t".join(str(row.get(column, "")) for column in header))
    path = tmp_path / "rows.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    attack(path, lambda: data.read_file(task, path), 200, 500)
    attack(path, lambda: data.read_file(task, path, labelled=False), 100, 200)


TINY = bert.Config(vocab_size=11, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=6, max_position_embeddings=8)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    bert.save(bert.create(TINY, "classification", 2), tmp_path, ["no", "yes"])
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##c", "the", "cat", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
@pytest.mark.filterwarnings("ignore")
def test_models(name, folder):
    if name == "pytorch_model.bin":
        torch.save(bert.read_weights(folder), folder / name)
        (folder / "model.safetensors").unlink()

    def read():
        bert.load(folder, "classification", 2)
        bert.read_labels(folder)

    attack(folder / name, read, 100)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json", "tokenizer.json"])
def test_tokenizers(name, folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}))
    if name == "tokenizer.json":
        (folder / name).write_text(load_tokenizer(folder).to_str(pretty=True))
    rows = data.Rows([(text, text) for text in TEXTS], np.zeros(len(TEXTS)))

    def read():
        data.encode_texts(rows, load_tokenizer(folder), 8)

    attack(folder / name, read, 200)


def test_questions(folder):
    context = " ".join(TEXTS)
    qas = [{"id": str(i), "question": text, "answers": [{"text": text, "answer_start":
            context.index(text)}]} for i, text in enumerate(TEXTS)]
    path = folder / "questions.json"
    path.write_text(json.dumps({"version": "1.1", "data": [
        {"title": "T", "paragraphs": [{"context": context, "qas": qas}]}]}))
    tokenizer = load_tokenizer(folder)

    def read():
        squad.encode(squad.read(path), tokenizer, 20, 4, 8)

    attack(path, read, 200)


# --------------------------------------------------------------------- what runs leave behind


@pytest.fixture
def run(folder, monkeypatch):
    """A run under way in the folder, with its checkpoint, and run.json and metrics.json."""
    model, _ = bert.load(folder, "classification", 2)
    bert.save(model, folder, ["0", "1"])
    settings = train.Settings(
        task="sst2", steps=10, save_every=3, lr=1e-3, score_lr=1e-2, device="cpu", max_length=8,
        batch_size=4, doc_stride=128, precision="fp32", keep=0.5, model="untrained", warmup=0.1)
    pruner = train.make_pruner(model, settings, masking.Schedule(10, 1, 1))
    optimizer = train.make_optimizer(model, pruner, settings)
    pruner.set_masks(0)
    under_way = checkpoints.Run(folder, asdict(settings), pruner, resume=True, overwrite=False)
    under_way.parts = [model, pruner, optimizer, train.make_scheduler(optimizer, settings)]
    under_way.began, under_way.t, under_way.smooth_loss, under_way.start = 0.0, 3, 0.5, "f"
    under_way.save()
    checkpoints.save_pruning({m.name: m for m in pruner.matrices}, folder / "pruning.safetensors")
    write_json(folder / "run.json", asdict(settings))
    write_json(folder / "metrics.json", {
        "metrics": {"accuracy": 50.0}, "density": 0.5, "nonzero_parameters": 12,
        "nonzero_parameters_total": 120, "train_seconds": 1.0, "method": "movement"})
    return under_way


@pytest.mark.filterwarnings("ignore")
def test_checkpoints(run):
    def go_on():
        run.state = run.read_checkpoint()
        run.load_state()

    attack(run.checkpoint, go_on, 50)


def test_settings_of_a_run(run):
    args = evaluate.make_parser().parse_args([str(run.folder)])

    def read():
        s = evaluate.resolve(args)
        assert s.task in data.TASKS and s.batch_size > 0 and s.max_length > 0
        assert s.precision in ("auto", "fp32", "bf16")
        assert s.max_eval_rows is None or s.max_eval_rows > 0
        assert not s.held_out or 0 < s.held_out < 1

    attack(run.folder / "run.json", read, 200)


def test_results_of_a_run(run, monkeypatch):
    monkeypatch.setattr(checkpoints, "say", str)  # run_main makes a terminal take any text
    attack(run.folder / "metrics.json", lambda: checkpoints.report_if_finished(run.folder, {}), 200)


def test_compact_files(run):
    path = run.folder / export.COMPACT
    weights = bert.hf_weights(run.parts[0])
    pruned = {bert.to_hf_name(m.name) for m in run.pruner.matrices}
    path.write_bytes(lzma.decompress(export.pack(weights, pruned, "int8")))
    attack(path, lambda: export.load_compact(path), 100, 1500,
           lambda plain: lzma.compress(plain, filters=export.FILTERS))


def test_tables_of_rows(tmp_path):
    path = tmp_path / "rows.csv"
    for seed in range(3):
        for method in ("dense", "movement", "l0"):
            rows.append(path, dict.fromkeys(rows.COLUMNS, "") | {
                "task": "mnli", "data": "sample", "model": "small", "method": method,
                "keep": "0.1", "density": "0.1", "accuracy_matched": "80.5", "seed": str(seed),
                "key": f"{method}{seed}", "on_target": "True", "train_seconds": "3"})

    attack(path, lambda: {row.get("key") for row in rows.read(path)}, 200)


if __name__ == "__main__":
    os.environ["FUZZ_SECONDS"], os.environ["FUZZ_SEED"] = (*sys.argv[1:3], "30", "0")[:2]
    sys.exit(pytest.main([__file__, "-q", "-s", "--rootdir", str(ROOT)]))
