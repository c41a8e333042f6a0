"""sweep.py: which runs it makes, that the CSV stays whole, and what it does about failures."""

import csv
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import settings
from conftest import ROOT

import data
from support.files import UserError
from tools import rows, sweep

# in place of train.py: leaves what it leaves, at once; fails at --lr 13, hangs at --lr 17
STAND_IN = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from support.files import RunError, UserError, run_main, write_json

def main():
    dry = "--dry-run" in sys.argv
    words = [w for w in sys.argv[1:] if w not in ("--dry-run", "--resume")]
    s = dict(zip((w[2:].replace("-", "_") for w in words[::2]), words[1::2]))
    if s.get("data") == "nowhere":
        raise UserError("--data nowhere: no such folder")
    if dry:
        return
    if s.get("lr") == "17":
        open(s["output"] + ".began", "w").close()
        time.sleep(60)
    if s.get("lr") == "13":
        raise RunError("the loss is nan at step 0")
    keep = float(s.get("keep", 1))
    write_json(s["output"] + "/run.json", dict(
        lr=float(s.get("lr", 3e-4)), score_lr=0.03, penalty=None,
        batch_size=int(s.get("batch_size", 32)),
        teacher=None, device="cpu", threads=int(os.environ["OMP_NUM_THREADS"])))
    write_json(s["output"] + "/metrics.json", dict(
        task=s["task"], model=s["model"], method=s["method"], keep=keep, density=keep,
        penalty=None, on_target=True, steps=10, train_inputs=320, train_seconds=1.5,
        seed=int(s["seed"]),
        metrics=dict(accuracy_matched=80.0 + int(s["seed"]), accuracy_mismatched=1 / 3)))

run_main(main)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """sweep.main in this process, with the stand-in → what it raised, or None."""
    (tmp_path / "train.py").write_text(STAND_IN)
    monkeypatch.setattr(sweep, "HERE", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*words):
        words = ["tools.sweep", *map(str, words), "--csv", str(tmp_path / "rows.csv")]
        monkeypatch.setattr(sys, "argv", words)
        before = signal.getsignal(signal.SIGTERM)
        try:
            sweep.main()
        except (Exception, SystemExit) as error:
            return error
        finally:
            signal.signal(signal.SIGTERM, before)
        return rows.read(tmp_path / "rows.csv")

    return run


def names(*words):
    return [run.name for run in sweep.combinations(*sweep.make_parser().parse_known_args(words))]


def test_combinations_are_the_product_and_dense_is_run_once():
    assert names("--methods", "dense,magnitude", "--keep", "0.5,0.1", "--seeds", "0,1") == [
        "mnli-dense-1-s0", "mnli-magnitude-0.5-s0", "mnli-magnitude-0.1-s0",
        "mnli-dense-1-s1", "mnli-magnitude-0.5-s1", "mnli-magnitude-0.1-s1"]
    assert names("--tasks", "sst2,qqp", "--methods", "l0", "--models", "small,small:2x64") == [
        "sst2-l0-0.1-s0", "sst2-small-2x64-l0-0.1-s0",
        "qqp-l0-0.1-s0", "qqp-small-2x64-l0-0.1-s0"]


def test_lists_of_other_flags_multiply_only_where_they_matter():
    rates = ("--lr=1e-3,3e-4", "--score-lr", "1e-2,3e-2", "--train-embeddings")
    assert len(names("--methods", "movement", *rates)) == 4
    assert len(names("--methods", "magnitude", *rates)) == 2  # it has no scores to learn
    assert len(names("--methods", "magnitude,l0", "--scope", "local,global")) == 2 + 1
    assert names("--methods", "magnitude,l0", "--penalty", "5,7", "--keep", "0.3,0.1") == [
        "mnli-magnitude-0.3-s0", "mnli-magnitude-0.1-s0", "mnli-l0-λ5-s0", "mnli-l0-λ7-s0"]


@pytest.mark.parametrize("words, message", [
    (("--methods", "movment"), "did you mean movement?"),
    (("--lrr", "3"), "did you mean --lr?"),
    (("--keep", "0.1,2"), "'2' is not a number"),
    (("--lr", "1", "2"), "2: which flag does this belong to?"),
    (("--output", "x"), "--output: is the sweep's own affair"),
    (("--job", "3"), "did you mean --jobs?"),
    (("--models", "/a/bert,/b/bert"), "/a/bert and /b/bert end alike"),
])
def test_wrong_flags_are_refused_before_anything_runs(words, message, capsys):
    with pytest.raises((SystemExit, UserError)) as error:
        names(*words)
    assert message in str(error.value) + capsys.readouterr().err


def test_wrong_data_are_refused_before_anything_runs(stand_in, tmp_path):
    assert stand_in("--data", "nowhere").code == 2
    assert not (tmp_path / "rows.csv").exists()


def test_key_is_the_settings_that_decide_and_no_machine_path():
    def key(*words):
        return sweep.make_run(["--seed", "0", *words]).key

    lr = settings.recipe_for("mnli", "movement", "small").lr  # given or not, it is the same run
    assert key() == key("--save-every", "7", "--alpha", "0.5") == key("--lr", str(lr))
    assert key("--data", "/a/glue") == key("--data", "../b/glue") != key("--data", "/a/other")
    different = [key(), key("--seed", "1"), key("--lr", "1"), key("--freeze", "weights"),
                 key("--teacher", "t"), key("--teacher", "t", "--alpha", "0.5"),
                 key("--keep", "0.2"), key("--scope", "global"), key("--held-out", "0.1")]
    assert len(set(different)) == len(different)


def test_rows_are_appended_once_and_say_how_they_were_made(stand_in, tmp_path, capsys):
    words = ("--methods", "dense,movement", "--seeds", "0,1", "--data", "/somewhere/glue",
             "--batch-size", 64, "--jobs", 2)
    found = stand_in(*words)
    assert {(r["method"], r["seed"], r["accuracy_matched"]) for r in found} == {
        (method, seed, accuracy) for method in ("dense", "movement")
        for seed, accuracy in (("0", "80"), ("1", "81"))}
    row = next(r for r in found if r["method"] == "movement" and r["seed"] == "0")
    assert list(row) == list(rows.COLUMNS)
    assert (row["keep"], row["penalty"], row["lr"]) == ("0.1", "", "0.0003")
    assert {(r["method"], r["score_lr"]) for r in found} == {("dense", ""), ("movement", "0.03")}
    assert row["epochs"] == "2"  # 10 steps of 64 of 320 rows
    assert row["accuracy_mismatched"] == "0.3333333" and row["accuracy"] == ""
    assert row["command"] == ("python train.py --task mnli --method movement --model small "
                              "--seed 0 --keep 0.1 --data glue --batch-size 64")
    assert row["date"] == time.strftime("%Y-%m-%d") and row["machine"].endswith("cores")
    assert "somewhere" not in (tmp_path / "rows.csv").read_text()
    assert "[4/4]" in capsys.readouterr().out
    before = (tmp_path / "rows.csv").read_bytes()
    stand_in(*words)
    assert "4 of them in" in capsys.readouterr().out
    assert (tmp_path / "rows.csv").read_bytes() == before
    assert len(stand_in(*words, "--seeds", "0,1,2")) == 6


def test_a_failing_run_is_reported_and_the_rest_goes_on(stand_in, tmp_path, capsys):
    error = stand_in("--methods", "movement", "--lr", "13,1e-3", "--seeds", "0,1")
    assert "2 of 4 runs failed" in str(error)
    assert capsys.readouterr().out.count("exit status 1: error: the loss is nan at step 0") == 2
    assert [r["lr"] for r in rows.read(tmp_path / "rows.csv")] == ["0.001", "0.001"]


def test_run_folders_stay_only_where_asked(stand_in, tmp_path):
    stand_in("--methods", "magnitude", "--keep-runs", tmp_path / "kept")
    (folder,) = (tmp_path / "kept").iterdir()
    assert folder.name.startswith("mnli-magnitude-0.1-s0-")
    assert (folder / "metrics.json").exists()


def test_ctrl_c_ends_the_children_and_leaves_the_rows(stand_in, tmp_path):
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import pathlib, files, sweep
sweep.HERE = pathlib.Path({str(tmp_path)!r})
files.run_main(sweep.main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--methods", "magnitude", "--lr", "1,17", "--csv",
         tmp_path / "rows.csv", "--keep-runs", tmp_path], env=os.environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.time() + 120
    while not list(tmp_path.glob("*.began")) and time.time() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    began = time.time()
    _, error = process.communicate(timeout=60)
    assert time.time() - began < 18, "it waited for the child in place of ending it"
    assert process.returncode == 130 and "stopped by Ctrl-C" in error
    assert [r["lr"] for r in rows.read(tmp_path / "rows.csv")] == ["1"]


def test_several_writers_lose_no_row(tmp_path):
    path = tmp_path / "results" / "rows.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: rows.append(path, {"task": "a,b", "key": str(n % 20)}), range(40)))
    assert sorted(int(r["key"]) for r in rows.read(path)) == list(range(20))
    assert {r["task"] for r in rows.read(path)} == {"a,b"}


def test_older_files_keep_their_columns(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("key,extra\n1,here\n")
    rows.append(path, {"key": "2", "task": "mnli"})
    assert [(r["key"], r["task"], r["extra"]) for r in rows.read(path)] == [
        ("1", "", "here"), ("2", "mnli", "")]
    path.write_text("\ufeffkey,task\n1,mnli\n", encoding="utf-8")  # as Excel writes it
    rows.append(path, {"key": "2", "task": "qqp"})
    assert [(r["key"], r["task"]) for r in rows.read(path)] == [("1", "mnli"), ("2", "qqp")]
    path.write_text("name,price\nx,1\n")
    with pytest.raises(UserError, match="has no column key"):
        rows.append(path, {"key": "2"})
    path.write_text("key,task\n1\n")
    with pytest.raises(UserError, match="row 1 has not as many cells"):
        rows.read(path)


def test_every_metric_has_a_column():
    y = np.array([0.0, 1.0, 1.0, 0.0])
    names = {"exact_match", "f1"} | {
        name + split for task in data.TASKS.values() if not task.span
        for name in task.metrics(y, y) for split in task.dev}
    assert names == set(rows.METRICS)


def test_a_real_run_fills_its_row(command, tmp_path):
    done = command("tools.sweep", "--methods", "soft_movement", "--models", "untrained:1x32",
                   "--steps", 20, "--max-train-rows", 320, "--max-eval-rows", 40,
                   "--max-length", 32, "--csv", tmp_path / "rows.csv")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "rows.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    blank = {name for name, value in row.items() if not value}
    assert blank <= {"penalty", "teacher", "freeze", "held_out", "git"} | set(rows.METRICS)
    assert float(row["accuracy_matched"]) > 0 and int(row["nonzero_parameters"]) > 0
    assert (row["steps"], row["train_rows"], row["eval_rows"]) == ("20", "320", "80")
