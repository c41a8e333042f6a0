"""Sweeps: which runs they make, that the CSV file stays whole, and what happens to failed runs."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny import TRAIN, wait_until

import data
from support import recipes
from support.files import UserError
from tools import rows, sweep

# stands in for train.py: writes what it writes, at once; fails at --lr 13, hangs at --lr 17, and at
# 19 whatever SIGTERM says; a dry run refuses --data damaged and a missing teacher, and hangs at
# --data slow
STAND_IN = """
import os, signal, sys, time
from support.files import write_json

words = [word for word in sys.argv[1:] if word not in ("--dry-run", "--resume")]
s = dict(zip((word[2:] for word in words[::2]), words[1::2]))
if "--dry-run" in sys.argv:
    if s.get("data") == "slow":
        open("slow.began", "w").close()
        time.sleep(60)
    wrong = s.get("data") == "damaged" or not os.path.isdir(s.get("teacher", "."))
    sys.exit(2 if wrong else 0)
if s.get("lr") == "13":
    sys.exit("error: the loss is nan at step 0")
if s.get("lr") in ("17", "19"):
    if s["lr"] == "19":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(s["output"] + ".began", "w").close()
    time.sleep(60)
keep, seed = float(s.get("keep", 1)), int(s["seed"])
write_json(s["output"] + "/run.json", dict(
    lr=float(s.get("lr", 3e-4)), score_lr=0.03, penalty=None, teacher=None, device="cpu",
    batch_size=64, date="2020-05-15"))
write_json(s["output"] + "/metrics.json", dict(
    task=s["task"], model=s["model"], method=s["method"], keep=keep, density=keep, steps=10,
    score_lr=None if s["method"] == "dense" else 0.03,
    penalty=None, on_target=True, train_inputs=320, train_seconds=1.5, seed=seed,
    metrics=dict(accuracy_matched=80.0 + seed, accuracy_mismatched=1 / 3)))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """sweep.main in this process, with the stand-in → the rows, or what it raised."""
    (tmp_path / "train.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "HERE", tmp_path)
    monkeypatch.setattr(sweep.signal, "signal", lambda *_: None)

    def run(*words):
        monkeypatch.setattr(
            sys, "argv", ["tools.sweep", *map(str, words), "--csv", str(tmp_path / "rows.csv")])
        try:
            sweep.main()
        except (Exception, SystemExit) as error:
            return error
        return rows.read(tmp_path / "rows.csv")

    return run


def planned(*words):
    return sweep.plan([words])


@pytest.mark.parametrize("words, expected", [
    ("--methods dense,magnitude --keep 0.5,0.1 --seeds 0,1", [  # dense once a seed
        "mnli-dense-s0", "mnli-magnitude-0.5-s0", "mnli-magnitude-0.1-s0",
        "mnli-dense-s1", "mnli-magnitude-0.5-s1", "mnli-magnitude-0.1-s1"]),
    ("--tasks sst2,qqp --methods l0 --models small:2x64", [
        "sst2-l0-0.1-s0", "qqp-l0-0.1-s0"]),
    ("--methods movement --lr=1e-3,3e-4 --score-lr 1e-2,3e-2", ["mnli-movement-0.1-s0"] * 4),
    ("--methods magnitude --lr=1e-3,3e-4 --score-lr 1e-2,3e-2",  # which has no scores to learn
     ["mnli-magnitude-0.1-s0"] * 2),
    ("--methods magnitude,l0 --scope local,global --train-embeddings", [  # L0 is always global
        "mnli-magnitude-0.1-s0", "mnli-magnitude-0.1-s0", "mnli-l0-0.1-s0"]),
    ("--methods magnitude,l0 --penalty 5,7 --keep 0.3,0.1", [
        "mnli-magnitude-0.3-s0", "mnli-magnitude-0.1-s0", "mnli-l0-penalty5-s0",
        "mnli-l0-penalty7-s0"]),
])
def test_runs_are_all_combinations_that_differ(words, expected):
    names = [run.name.rpartition("-")[0] for run in planned(*words.split())]  # without their keys
    assert names == expected


@pytest.mark.parametrize("words, message", [
    (("--methods", "movment"), "did you mean movement?"),
    (("--lrr", "3"), "did you mean --lr?"),
    (("--keep", "0.1,2"), "'2' is not a number"),
    (("--lr", "1", "2"), "unknown argument 2"),
    (("--output", "x"), "--output: a sweep sets it itself"),
    (("--job", "3"), "did you mean --jobs?"),
    (("--models", "/a/bert,/b/bert"), "--model /a/bert and /b/bert have the same last name"),
])
def test_wrong_flags_are_refused_before_anything_runs(words, message, capsys):
    with pytest.raises((SystemExit, UserError)) as error:
        planned(*words)
    assert message in str(error.value) + capsys.readouterr().err


def test_a_path_may_have_commas():
    [run] = planned("--methods", "movement", "--data", "a,b", "--teacher=c,d")
    assert (run.settings["data"], run.settings["teacher"]) == ("a,b", "c,d")


def test_data_weights_and_teacher_are_tried_before_anything_runs(stand_in, tmp_path):
    assert stand_in("--tasks", "mnli,sst2", "--data", "damaged").code == 2  # by the first dry run
    assert stand_in("--methods", "magnitude", "--teacher", "nowhere").code == 2
    assert not (tmp_path / "rows.csv").exists()


def test_a_key_follows_from_the_settings_that_decide_and_from_no_path():
    def key(*words):
        return sweep.make_run(["--seed", "0", *words]).key

    lr = recipes.recipe_for("mnli", "movement", small=True).lr  # the same run, given or not
    assert key() == key("--save-every", "7", "--alpha", "0.5") == key("--lr", str(lr))
    assert key("--data", "/a/glue") == key("--data", "../b/glue") != key("--data", "/a/other")
    assert key() == "e6ce93e0594c"  # as ever: earlier rows are found again
    different = ["", "--seed 1", "--lr 1", "--freeze weights", "--teacher t", "--held-out 0.1",
                 "--teacher t --alpha 0.5", "--keep 0.2", "--scope global"]
    assert len({key(*words.split()) for words in different}) == len(different)


def test_rows_are_appended_once_and_say_how_they_were_made(stand_in, tmp_path, capsys):
    words = ("--methods", "dense,movement", "--seeds", "0,1", "--data", "/somewhere/glue",
             "--batch-size", 64, "--jobs", 2)
    found = {(r["method"], r["seed"]): r for r in stand_in(*words)}
    assert len(found) == 4
    row = found["movement", "0"]
    assert list(row) == list(rows.COLUMNS)
    expected = {"keep": "0.1", "penalty": "", "lr": "0.0003", "score_lr": "0.03", "accuracy": "",
                "accuracy_mismatched": "0.3333333", "date": "2020-05-15",  # as its files say
                "epochs": "2",  # 10 steps of 64 of 320 rows
                "command": "python train.py --task mnli --method movement --keep 0.1 --data glue "
                           "--model small --batch-size 64 --seed 0"}
    assert row | expected == row and row["machine"].endswith("cores")
    assert found["dense", "0"]["score_lr"] == "" and found["dense", "1"]["accuracy_matched"] == "81"
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
    assert capsys.readouterr().out.count("exit status 1: error: the loss is nan at step 0 (") == 2
    logs = [path.read_text() for path in (tmp_path / "runs").iterdir()]  # nothing else is left
    assert logs == ["error: the loss is nan at step 0\n"] * 2
    assert [r["lr"] for r in rows.read(tmp_path / "rows.csv")] == ["0.001", "0.001"]


def test_cells_are_run_group_by_group(stand_in, tmp_path):
    cells = tmp_path / "cells.txt"
    cells.write_text("# magnitude first\n--methods magnitude --lr 1\n\n    --keep 0.1  # one\n"
                     "    --keep 0.1,0.3\n--methods l0 --keep 0.2\n  --lr 2,3\n")
    found = stand_in("--cells", cells, "--seeds", "4", "--keep-runs", tmp_path / "kept")
    assert [(r["method"], r["keep"], r["lr"], r["seed"]) for r in found] == [
        ("magnitude", "0.1", "1", "4"), ("magnitude", "0.3", "1", "4"), ("l0", "0.2", "2", "4"),
        ("l0", "0.2", "3", "4")]
    first = next((tmp_path / "kept").glob("mnli-magnitude-0.1-*"))
    cells.write_text(f"--methods magnitude\n  --keep 0.1\n--teacher {first.name}\n  --lr 5")
    assert stand_in("--cells", cells).code == 2  # no such teacher; only once its turn has come
    assert len(rows.read(tmp_path / "rows.csv")) == 5


@pytest.mark.parametrize("text, message", [
    ("# nothing\n", "no sweep there"), ("  --lr 1\n", "no sweep there"),
    ("--lr 1\n--lr 2\n  --keep 0.1\n", "no sweep there"),
    ("--methods l0 --csv=x.csv\n  --lr 1\n", "--csv belongs on the command line"),
    ("--methods magnitude\n  --lr 1\n--methods l0\n  --lrr 2\n", "did you mean --lr?"),
    ("--methods magnitude --jobs 2\n  --lr 1\n", "--jobs belongs on the command line"),
    ("--methods magnitude\n  --model /a/x\n  --model /b/x\n", "have the same last name"),
])
def test_cells_that_are_wrong_are_refused_before_anything_runs(text, message, stand_in, tmp_path,
                                                               capsys):
    (tmp_path / "cells.txt").write_text(text)
    error = stand_in("--cells", tmp_path / "cells.txt")
    assert message in str(error) + capsys.readouterr().err
    assert not (tmp_path / "rows.csv").exists()


def test_run_folders_stay_only_where_asked(stand_in, tmp_path):
    stand_in("--methods", "magnitude", "--keep-runs", tmp_path / "kept")
    (folder,) = (tmp_path / "kept").iterdir()
    assert folder.name.startswith("mnli-magnitude-0.1-s0-")
    assert (folder / "metrics.json").exists()


def test_a_run_that_another_sweep_has_made_is_not_repeated(stand_in, tmp_path, monkeypatch):
    words, true_start, started = ("--methods", "magnitude", "--lr", "1,2"), sweep.start, []
    _, second = planned(*words)

    def start(run, *rest):
        started.append(run)
        rows.append(tmp_path / "rows.csv", {"key": second.key, "task": "theirs"})
        return true_start(run, *rest)

    monkeypatch.setattr(sweep, "start", start)
    assert [row["task"] for row in stand_in(*words)] == ["theirs", "mnli"] and len(started) == 1


@pytest.mark.parametrize("words, made", [
    (("--lr", "1,17"), ["1"]),
    (("--lr", "1,19"), ["1"]),  # whose run has to be killed
    (("--data", "slow"), []),  # during the dry run
])
def test_ctrl_c_ends_the_children_and_leaves_the_rows(words, made, stand_in, tmp_path):
    program = f"""
import pathlib
from support import files
from tools import sweep
sweep.HERE, sweep.PATIENCE = pathlib.Path({str(tmp_path)!r}), 1
files.run_main(sweep.main)
"""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", program, "--methods", "magnitude", *words, "--csv",
         "rows.csv", "--keep-runs", "."], cwd=tmp_path, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: list(tmp_path.glob("*.began")), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    began = time.time()
    _, error = process.communicate(timeout=60)
    assert time.time() - began < 10, "it waited for the child instead of ending it"
    assert (process.returncode, error) == (130, "stopped by Ctrl-C\n")
    assert [r["lr"] for r in rows.read(tmp_path / "rows.csv")] == made


def test_several_writers_lose_no_row(tmp_path):
    path = tmp_path / "results" / "rows.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: rows.append(path, {"task": "a,b", "key": str(n % 20)}), range(40)))
    assert sorted(int(r["key"]) for r in rows.read(path)) == list(range(20))
    assert {r["task"] for r in rows.read(path)} == {"a,b"}


def test_a_file_without_a_last_newline_loses_no_row(tmp_path):
    path = tmp_path / "rows.csv"
    for key in "ab":
        rows.append(path, {"key": key})
    path.write_text(path.read_text().rstrip("\n"))
    rows.append(path, {"key": "c"})
    assert [row["key"] for row in rows.read(path)] == ["a", "b", "c"]


def test_older_files_keep_their_columns(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\ufeffkey,extra\n1,here\n", encoding="utf-8")  # as Excel writes it
    rows.append(path, {"key": "2", "task": "qqp"})
    assert [(r["key"], r["task"], r["extra"]) for r in rows.read(path)] == [
        ("1", "", "here"), ("2", "qqp", "")]


@pytest.mark.parametrize("text, complaint", [
    ("name,price\nx,1\n", "no column key"),
    ("key,task\n1\n", "rows.csv:2: not as many cells as the header; mend or remove this row"),
    ("key,f1\n1,x\n", "f1 'x' is not a number"),
    ("key\n\0\udcff\n", "not UTF-8 text"),
])
def test_other_files_are_left_alone(tmp_path, text, complaint):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=complaint):
        rows.append(path, {"key": "2"})
    assert path.read_bytes() == text.encode("utf-8", "surrogateescape")


def test_every_metric_has_a_column():
    y = np.array([0.0, 1.0, 1.0, 0.0])
    assert {"exact_match", "f1"} | {
        name + split for task in (*data.TASKS.values(), data.own_task("a", ["sentence"], "bc"))
        if not task.span
        for name in task.metrics(y, y) for split in task.dev} == set(rows.METRICS)


def test_a_real_run_fills_its_row(place):
    place("tools.sweep", *TRAIN, "--methods", "soft_movement", "--csv", "rows.csv").succeeded()
    (row,) = rows.read(place.folder / "rows.csv")
    blank = {name for name, value in row.items() if not value}
    assert blank <= {"penalty", "teacher", "alpha", "temperature", "freeze", "held_out", "git",
                     *rows.METRICS,
                     *(f"held_out_{name}" for name in rows.METRICS)}
    assert float(row["accuracy"]) > 0 and int(row["nonzero_parameters"]) > 0
    assert (row["steps"], row["train_rows"], row["eval_rows"]) == ("40", "40", "40")


@pytest.mark.parametrize("name", ["sweep", "figures", "tables", "claims", "benchmark", "sparse"])
def test_help_names_the_command_as_it_is_typed(name, command):
    assert command(f"tools.{name}", "--help").stdout.startswith(f"usage: python -m tools.{name} ")
