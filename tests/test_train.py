"""The command line, as a user has it, with settings small enough for seconds."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

import data
import evaluate
import train

TINY = ("--model", "untrained:1x32", "--max-train-rows", 320, "--max-eval-rows", 40,
        "--steps", 40, "--max-length", 32)


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
    """A tiny movement run → its folder and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = command("train.py", "--task", "mnli", "--method", "movement", *TINY, "--output", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_folder_holds_what_the_contract_says(run):
    folder, said = run
    names = {p.name for p in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "pruning.safetensors", "run.json",
                     "tokenizer.json", "log.jsonl", "metrics.json"}
    assert "checkpoint.pt" not in names and ".lock" not in names
    metrics = metrics_of(folder)
    assert set(metrics) >= {
        "task", "data", "model", "method", "scope", "keep", "density", "encoder_density",
        "nonzero_parameters", "nonzero_parameters_total", "total_parameters", "penalty",
        "on_target", "metrics", "train_rows", "eval_rows", "steps", "train_seconds", "seed"}
    assert set(metrics["metrics"]) == {"accuracy_matched", "accuracy_mismatched"}
    assert all(0 <= value <= 100 for value in metrics["metrics"].values())
    assert (metrics["steps"], metrics["train_rows"], metrics["eval_rows"]) == (40, 320, 80)
    lines = [json.loads(line) for line in (folder / "log.jsonl").open()]
    assert [line["step"] for line in lines] == [0, 10, 20, 30, 39]
    assert lines[0]["lr"] == 0 < lines[-1]["lr"], "the rate that the step itself had"
    for word in ("task", "data", "model", "method", "schedule", "output", "next:"):
        assert word in said


def test_saved_weights_are_the_masked_ones_and_all_parts_are_kept(run):
    folder, _ = run
    model, parts = (load_file(folder / name) for name in ("model.safetensors",
                                                          "pruning.safetensors"))
    kept = entries = 0
    for name in [n.removesuffix(".mask") for n in parts if n.endswith(".mask")]:
        W = model[name]
        bits = np.unpackbits(parts[f"{name}.mask"].numpy())[: W.numel()]
        M = torch.from_numpy(bits).bool().view(W.shape)
        assert int(M.sum()) == round(0.1 * W.numel())
        assert not W[~M].any() and parts[f"{name}.pruned"].numel() == int((~M).sum())
        assert parts[f"{name}.scores"].shape == W.shape
        ever = np.unpackbits(parts[f"{name}.ever_pruned"].numpy())[: W.numel()]
        assert np.all(ever >= 1 - bits) and ever.mean() < 1
        kept, entries = kept + int(torch.count_nonzero(W)), entries + W.numel()
    assert metrics_of(folder)["nonzero_parameters"] == kept
    assert metrics_of(folder)["density"] == pytest.approx(kept / entries)


def test_same_seed_same_bits(run, command, tmp_path):
    folder, _ = run
    for seed, same in ((0, True), (1, False)):
        command("train.py", "--task", "mnli", "--method", "movement", *TINY, "--seed", seed,
                "--output", tmp_path / str(seed))
        again = (tmp_path / str(seed) / "model.safetensors").read_bytes()
        assert (again == (folder / "model.safetensors").read_bytes()) is same


@pytest.mark.parametrize("method", ["dense", "random", "magnitude", "l0", "soft_movement"])
def test_every_method_runs(method, command, tmp_path):
    done = command("train.py", "--task", "sst2", "--method", method, *TINY,
                   "--output", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(tmp_path / "r")
    assert set(metrics["metrics"]) == {"accuracy"}
    if method == "dense":
        assert metrics["density"] == 1.0 and metrics["keep"] == 1.0
    elif method in ("random", "magnitude"):
        assert metrics["density"] == pytest.approx(0.1, abs=1e-3) and metrics["on_target"]
    elif not metrics["on_target"]:  # 40 steps may be too few, but then it says so
        assert "WARNING: density" in done.stdout


def test_fixed_penalty_and_freeze_and_scope(command, tmp_path):
    done = command("train.py", "--task", "qqp", "--method", "soft_movement", "--penalty", 3, *TINY,
                   "--output", tmp_path / "a")
    assert "λ fixed at 3" in done.stdout and metrics_of(tmp_path / "a")["penalty"] == 3
    done = command("train.py", "--task", "qqp", "--method", "movement", "--scope", "global",
                   "--freeze", "weights", *TINY, "--output", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert metrics_of(tmp_path / "b")["density"] == pytest.approx(0.1, abs=1e-3)


def test_squad_and_a_teacher(command, tmp_path):
    tiny = ("--task", "squad", *TINY, "--max-length", 128)
    done = command("train.py", "--method", "dense", *tiny, "--output", tmp_path / "teacher")
    assert done.returncode == 0, done.stderr
    answers = json.loads((tmp_path / "teacher" / "predictions.json").read_text())
    assert len(answers) == 40
    done = command("train.py", "--method", "movement", "--teacher", tmp_path / "teacher", *tiny,
                   "--output", tmp_path / "student")
    assert done.returncode == 0, done.stderr
    assert set(metrics_of(tmp_path / "student")["metrics"]) == {"exact_match", "f1"}


# -- interruptions


def start(*words):
    words = [sys.executable, str(ROOT / "train.py"), *map(str, words)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"PYTHONUNBUFFERED": "1"})


def wait_for(path, seconds=60):
    end = time.time() + seconds
    while not path.exists():
        assert time.time() < end, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize("method", ["movement", "l0", "soft_movement"])
def test_a_killed_run_resumes_to_the_same_bits(method, command, tmp_path, cache):
    words = ("--task", "mnli", "--method", method, *TINY, "--steps", 150, "--save-every", 10)
    whole = command("train.py", *words, "--output", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killed = start(*words, "--output", tmp_path / "killed")
    wait_for(tmp_path / "killed" / "checkpoint.pt")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "metrics.json").exists(), "finished before it was killed"
    done = command("train.py", *words, "--output", tmp_path / "killed", "--resume")
    assert done.returncode == 0 and "going on from step" in done.stdout, done.stderr
    for name in ("model.safetensors", "pruning.safetensors"):
        assert ((tmp_path / "killed" / name).read_bytes()
                == (tmp_path / "whole" / name).read_bytes())
    lines = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").open()]
    assert lines == [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").open()]
    assert metrics_of(tmp_path / "killed")["metrics"] == metrics_of(tmp_path / "whole")["metrics"]


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, command, cache):
    words = ("--task", "mnli", "--method", "movement", *TINY, "--steps", 2000,
             "--output", tmp_path / "r")
    running = start(*words)
    wait_for(tmp_path / "r" / "log.jsonl")
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and "--resume" in out and "Traceback" not in err
    before = (tmp_path / "r" / "run.json").read_bytes()
    other = command("train.py", *words, "--resume", "--lr", "1e-5")
    assert other.returncode == 2 and "lr was" in other.stderr
    assert (tmp_path / "r" / "run.json").read_bytes() == before


def test_resume_of_nothing_and_of_a_finished_run(run, command, tmp_path):
    words = ("--task", "mnli", "--method", "movement", *TINY)
    done = command("train.py", *words, "--resume", "--output", tmp_path / "new")
    assert done.returncode == 0 and "starts from step 0" in done.stdout
    folder, _ = run
    before = (folder / "model.safetensors").stat().st_mtime_ns
    done = command("train.py", *words, "--resume", "--output", folder)
    assert done.returncode == 0 and "finished already" in done.stdout
    other = command("train.py", *words, "--resume", "--output", folder, "--lr", "1e-5")
    assert other.returncode == 2 and "lr was" in other.stderr
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


# -- refusals


@pytest.mark.parametrize("words, complaint", [
    (["--steps", 1], "cannot hold the schedule"),
    (["--tusk", "mnli"], "did you mean --task"),
    (["--task", "mnly"], "did you mean mnli"),
    (["--method", "movment"], "did you mean movement"),
    (["--keep", 0], "above 0"),
    (["--keep", 1.5], "at most 1"),
    (["--keep", "ten"], "not a number"),
    (["--penalty", 3], "only soft_movement and l0"),
    (["--method", "l0", "--penalty", "paper"], "no λ for"),
    (["--data", "nowhere"], "no such folder"),
    (["--model", "./nowhere"], "nowhere"),
    (["--model", "small:3"], "small:LAYERSxWIDTH"),
    (["--task", "wnli"], "there is no sample"),
    (["--teacher", "nowhere"], "no such folder"),
    (["--max-length", 4000], "has positions for"),
    (["--device", "mps"], "has none"),
])
def test_wrong_usage_is_refused_in_one_line(words, complaint, command, tmp_path):
    done = command("train.py", *TINY, "--output", tmp_path / "r", *words)
    assert done.returncode == 2
    assert complaint in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_an_output_folder_in_use_is_left_alone(run, command, tmp_path):
    folder, _ = run
    before = (folder / "metrics.json").read_bytes()
    done = command("train.py", "--task", "mnli", *TINY, "--output", folder)
    assert done.returncode == 2 and "--overwrite" in done.stderr
    (tmp_path / "thesis.txt").write_text("years of work")
    done = command("train.py", "--task", "mnli", *TINY, "--output", tmp_path, "--overwrite")
    assert done.returncode == 2 and "does not hold a run" in done.stderr
    done = command("train.py", "--task", "mnli", *TINY, "--output", tmp_path, "--resume")
    assert done.returncode == 2 and "does not hold a run" in done.stderr
    done = command("train.py", "--task", "mnli", *TINY, "--output", folder, "--resume",
                   "--overwrite")
    assert done.returncode == 2 and "give one of them" in done.stderr
    assert (tmp_path / "thesis.txt").exists() and (folder / "metrics.json").read_bytes() == before


def test_twenty_steps_with_recipe_defaults_are_never_refused():
    for task in ("mnli", "qqp", "squad", "sst2"):
        for method in ("movement", "soft_movement", "l0", "magnitude"):
            for model in ("small", "bert-base-uncased"):
                words = ["--task", task, "--method", method, "--model", model, "--steps", "20"]
                settings = train.resolve(train.make_parser().parse_args(words))
                assert train.make_schedule(settings, 1000).T == 20


def test_a_loss_that_is_no_number_stops_the_run(command, tmp_path):
    done = command("train.py", "--method", "dense", *TINY, "--lr", 1e30, "--output", tmp_path / "r")
    assert done.returncode == 1 and "the loss is" in done.stderr and "step" in done.stderr


# -- pieces


def test_rate_rises_then_falls_to_zero():
    assert [train.rate(t, 100, 0.1) for t in (0, 5, 10, 55, 100)] == [0, 0.5, 1, 0.5, 0]


def test_batches_from_a_step_are_the_rest_of_the_batches():
    from data import Features

    lengths = np.arange(1, 71)
    features = Features(np.zeros(lengths.sum(), dtype=np.int32),
                        np.concatenate([[0], np.cumsum(lengths)]), lengths, lengths, 0)
    def take(step, n):
        return [i.tolist() for i, _ in zip(train.batches_from(step, features, 16, 0), range(n))]

    assert take(0, 20)[7:] == take(7, 13)
    epoch = [row for batch in take(0, 5) for row in batch]
    assert sorted(epoch) == list(range(70))  # every row once


def test_scores_have_a_group_of_their_own_without_decay():
    import bert
    import masking

    model = bert.create(bert.Config(50, 8, 1, 2, 16, 32), "classification", 3)
    model.bert.embeddings.requires_grad_(False)
    settings = train.Settings(lr=3e-5, score_lr=1e-2, device="cpu")
    pruner = train.make_pruner(model, settings, masking.Schedule(10, 1, 1))
    weights, scores = train.make_optimizer(model, pruner, settings).param_groups
    assert (weights["lr"], scores["lr"]) == (3e-5, 1e-2)
    assert weights["weight_decay"] == scores["weight_decay"] == 0.0
    assert {id(p) for p in scores["params"]} == {id(m.S) for m in pruner.matrices}
    assert not {id(p) for p in model.bert.embeddings.parameters()} & {
        id(p) for p in weights["params"]}
    frozen = replace(settings, freeze="weights")
    pruner = train.make_pruner(model, frozen, masking.Schedule(10, 1, 1))
    weights, _ = train.make_optimizer(model, pruner, frozen).param_groups
    assert not {id(m.W) for m in pruner.matrices} & {id(p) for p in weights["params"]}


def test_a_lost_task_is_recognised():
    """One class for all rows, or an accuracy no better than that: 2 errors of 400 rows are 5 %."""
    labels = np.repeat([0, 1], 200)

    def collapsed(task, predictions, labels=labels, **metrics):
        features = Namespace(labels=labels)
        splits = data.TASKS[task].dev
        return evaluate.has_collapsed(
            data.TASKS[task], dict.fromkeys(splits, (None, features)), metrics,
            dict.fromkeys(splits, np.asarray(predictions)))

    right_in_54, right_in_56 = (np.concatenate([labels[:n], 1 - labels[n:]]) for n in (216, 224))
    assert collapsed("sst2", np.ones(400)) and collapsed("sst2", right_in_54)
    assert not collapsed("sst2", right_in_56)
    assert collapsed("mrpc", np.ones(400), labels=np.repeat([1, 0], [399, 1]))  # 99.75 % right
    assert collapsed("squad", [], f1=14.9) and not collapsed("squad", [], f1=15.1)
    assert not collapsed("stsb", np.full(400, 2.5))


def test_a_held_out_share_is_measured_beside_the_evaluation_rows(command, tmp_path):
    done = command("train.py", "--task", "sst2", *TINY, "--max-train-rows", 200, "--held-out", 0.1,
                   "--max-eval-rows", 50, "--output", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(tmp_path / "r")
    assert set(metrics["metrics"]) == set(metrics["held_out_metrics"]) == {"accuracy"}
    assert (metrics["train_rows"], metrics["eval_rows"]) == (200, 50)
    assert "50 + 50 held out evaluation rows" in done.stdout and "accuracy_held_out" in done.stdout
    assert type(metrics["collapsed"]) is bool
    assert metrics["collapsed"] == ("WARNING: the task is lost" in done.stdout)
