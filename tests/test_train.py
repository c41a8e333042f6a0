"""train.py as a user has it, with settings small enough for seconds."""

import itertools
import json
import math
import os
import re
import signal
import time
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import CONFIG, SQUAD, check_refused, check_same_bits, digests, features_of

import bert
import data
import distill
import evaluate
import masking
import train
from support import report
from support.files import read_json, write_json


def metrics_of(folder):
    return read_json(folder / "metrics.json")


def test_folder_holds_what_the_contract_says(sample_run):
    folder, said = sample_run
    names = {p.name for p in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "pruning.safetensors", "run.json",
                     "tokenizer.json", "log.jsonl", "metrics.json"}
    assert "checkpoint.safetensors" not in names and ".lock" not in names
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


def test_saved_weights_are_the_masked_ones_and_all_parts_are_kept(sample_run):
    folder, _ = sample_run
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


@pytest.mark.parametrize("seed, same", [(0, True), (1, False)])
def test_a_seed_decides_every_bit(seed, same, place):
    place.train("--seed", seed, output="again")
    run, again = (digests(place.folder / name) for name in ("run", "again"))
    assert (run["model.safetensors"] == again["model.safetensors"]) is same


@pytest.mark.parametrize("method", ["dense", "random", "magnitude", "l0", "soft_movement"])
def test_every_method_runs(method, place):
    printed = place.train("--method", method, output="new").succeeded()
    metrics = metrics_of(place.folder / "new")
    assert set(metrics["metrics"]) == {"accuracy"}
    if method == "dense":
        assert metrics["density"] == 1.0 and metrics["keep"] == 1.0
    elif method in ("random", "magnitude"):
        assert metrics["density"] == pytest.approx(0.1, abs=1e-3) and metrics["on_target"]
    elif not metrics["on_target"]:  # 40 steps may be too few, but then it says so
        assert "WARNING: density" in printed


def test_what_is_measured_on_the_way_changes_nothing(place):
    place.train("--method", "l0", "--eval-every", 20, output="new").succeeded()
    lines = [json.loads(line) for line in open("new/log.jsonl")]
    measured = [line["accuracy"] for line in lines if "accuracy" in line]
    assert measured[-1] == read_json("new/metrics.json")["metrics"]["accuracy"]
    assert len(measured) == 2
    place.train("--method", "l0", output="unwatched").succeeded()
    for name in ("model.safetensors", "pruning.safetensors"):
        assert digests(place.folder / "new")[name] == digests(place.folder / "unwatched")[name]
    seen = {line["step"]: line for line in lines}
    for line in map(json.loads, open("unwatched/log.jsonl")):
        assert line.items() <= seen[line["step"]].items()


def test_two_steps_are_enough_without_pruning(place):
    place.train("--method", "dense", "--steps", 2, output="new").succeeded()


def test_regression_with_a_fixed_penalty(place):
    done = place.train("--task", "stsb", "--method", "soft_movement", "--penalty", 3, output="new")
    assert "λ fixed at 3" in done.succeeded()
    metrics = metrics_of(place.folder / "new")
    assert metrics["penalty"] == 3 and set(metrics["metrics"]) == {"pearson", "spearman"}


def test_pairs_with_frozen_weights_and_global_ranks(place):
    place.train("--task", "rte", "--scope", "global", "--freeze", "weights",
                output="new").succeeded()
    assert metrics_of(place.folder / "new")["density"] == pytest.approx(0.1, abs=1e-3)


def test_squad_and_a_teacher(place):
    place.train(*SQUAD, "--method", "dense", output="teacher").succeeded()
    assert len(read_json(place.folder / "teacher" / "predictions.json")) == 40
    place.train(*SQUAD, "--teacher", "teacher", output="student").succeeded()
    assert set(metrics_of(place.folder / "student")["metrics"]) == {"exact_match", "f1"}


def test_a_finished_run_has_gates_without_noise(place):
    place.train("--method", "l0", output="new").succeeded()
    parts, bar = load_file("new/pruning.safetensors"), masking.L0().kept_above
    for name in [name for name in parts if name.endswith(".scores")]:
        scores, mask = parts[name], parts[name.replace(".scores", ".mask")]
        bits = np.unpackbits(mask.numpy())[: scores.numel()]
        assert np.array_equal(bits, (scores > bar).flatten().numpy())


def test_zeros_have_no_sign_and_the_authors_density_counts_what_they_count(sample_run):
    folder, _ = sample_run
    layers = [x for name, x in load_file(folder / "model.safetensors").items() if ".layer." in name]
    assert not any(x[x == 0].signbit().any() for x in layers)
    kept = sum(int(x.count_nonzero()) if x.dim() == 2 else x.numel() for x in layers)
    assert metrics_of(folder)["encoder_density"] == pytest.approx(
        kept / sum(x.numel() for x in layers))


def test_embeddings_stay_as_pretrained_unless_asked(place):
    place.train("--train-embeddings", output="new").succeeded()
    name = "bert.embeddings.word_embeddings.weight"
    before, frozen, trained = (load_file(f"{folder}/model.safetensors")[name]
                               for folder in ("model", "run", "new"))
    assert torch.equal(before, frozen) and not torch.equal(before, trained)


# -- interruptions


def test_dropout_goes_on_after_measuring_and_after_a_resume(place, change_loss):
    write_json("model/config.json",
               read_json("model/config.json") | {"hidden_dropout_prob": 0.3})
    place.train(output="whole").succeeded()
    place.train("--eval-every", 7, output="watched").succeeded()
    whole, watched = (digests(place.folder / name) for name in ("whole", "watched"))
    assert whole["model.safetensors"] == watched["model.safetensors"]
    change_loss(25, lambda loss: loss * torch.nan)
    place.train(output="new")
    change_loss(99, float)
    place.train("--resume", output="new").succeeded()
    check_same_bits(place.folder / "whole", place.folder / "new")


@pytest.mark.parametrize("method", ["movement", "l0", "soft_movement"])
def test_ctrl_c_saves_and_a_resumed_run_ends_with_the_same_bits(method, place, change_loss):
    def press_ctrl_c(loss):
        os.kill(os.getpid(), signal.SIGINT)
        return loss

    place.train("--method", method, output="whole").succeeded()
    change_loss(25, press_ctrl_c)
    done = place.train("--method", method, output="new")
    assert done.returncode == 130 and "--resume" in done.stdout and "Traceback" not in done.stderr
    stopped = digests(place.folder / "new")
    check_refused(place.train("--method", method, "--resume", "--lr", 1, output="new"), "lr was")
    assert digests(place.folder / "new") == stopped
    done = place.train("--method", method, "--resume", output="new")
    assert "going on from step 26 of 40" in done.succeeded()
    whole, new = place.folder / "whole", place.folder / "new"
    check_same_bits(whole, new)
    assert metrics_of(whole)["metrics"] == metrics_of(new)["metrics"]


def test_resume_of_nothing_and_of_a_finished_run(place):
    assert "starts from step 0" in place.train("--resume", output="new").succeeded()
    before = digests(place.folder / "run")
    assert "finished already" in place.train("--resume", "--eval-every", 7).succeeded()
    check_refused(place.train("--resume", "--lr", 1), "lr was")
    check_refused(place.train("--resume", "--freeze", "weights"), "freeze was None")
    assert digests(place.folder / "run") == before


# -- pieces


def test_the_loss_of_spans_by_hand():
    logits = torch.zeros(1, 4, 2)
    logits[0, 3] = 9.0  # padding
    labels, mask = torch.tensor([[0, 2]]), torch.tensor([[1, 1, 1, 0]])
    assert train.task_loss(logits, labels, mask).item() == pytest.approx(math.log(3))


def test_a_batchs_loss_goes_by_alpha_and_temperature(monkeypatch):
    student, teacher = torch.randn(2, 3), np.array([[3, 0, 1], [0, 2, 0]], np.float32)
    monkeypatch.setattr(evaluate, "forward", lambda *_: student)
    settings = Namespace(device="cpu", precision="fp32", alpha=0.75, temperature=3.0)
    L = train.batch_loss(None, features_of([4, 4]), np.array([1, 0]), settings, list(teacher))
    kl = distill.scaled_kl_divergence(student, torch.tensor(teacher[[1, 0]]), 3.0)
    hard = -student.log_softmax(1)[:, 0].mean()  # all labels are 0
    torch.testing.assert_close(L, 0.75 * kl + 0.25 * hard)


def test_gradients_are_clipped_to_a_norm_of_one():
    torch.manual_seed(0)
    model, features = bert.create(CONFIG, "classification", 2), features_of([3] * 4)
    model.classifier.weight.data *= 1000
    features.labels[::2] = 1  # half of them are wrong
    pruner = masking.Pruner({}, masking.Dense(), 1.0, masking.Schedule(1, 0, 0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).clone()
    settings = train.Settings(steps=1, batch_size=4, precision="fp32", device="cpu")
    [(_, _, norm, _)] = train.train(model, pruner, optimizer, scheduler, features, settings)
    moved = torch.nn.utils.parameters_to_vector(model.parameters()) - before
    assert norm > 2 and moved.norm().item() == pytest.approx(1, abs=1e-2)


def test_twenty_steps_with_recipe_defaults_are_never_refused():
    for task in ("mnli", "qqp", "squad", "sst2"):
        for method in ("movement", "soft_movement", "l0", "magnitude"):
            for model in ("small", "bert-base-uncased"):
                words = ["--task", task, "--method", method, "--model", model, "--steps", "20"]
                settings = train.resolve(train.make_parser().parse_args(words))
                assert train.make_schedule(settings, 1000).T == 20


def test_rate_rises_then_falls_to_zero():
    assert [train.rate(t, 100, 0.1) for t in (0, 5, 10, 55, 100)] == [0, 0.5, 1, 0.5, 0]


def test_batches_from_a_step_are_the_rest_of_the_batches():
    features = features_of(np.arange(1, 71))

    def take(step, n):
        return [i.tolist() for i, _ in zip(train.batches_from(step, features, 16, 0), range(n))]

    assert take(0, 20)[7:] == take(7, 13)


def test_scores_have_a_group_of_their_own_without_decay():
    model = bert.create(bert.Config(50, 8, 1, 2, 16, 32), "classification", 3)
    model.bert.embeddings.requires_grad_(False)
    settings = train.Settings(lr=3e-5, score_lr=1e-2, steps=10, warmup=0.1, device="cpu")
    pruner = train.make_pruner(model, settings, masking.Schedule(10, 1, 1))
    weights, scores = train.make_optimizer(model, pruner, settings)[0].param_groups
    assert (weights["initial_lr"], scores["initial_lr"]) == (3e-5, 1e-2)
    assert weights["weight_decay"] == scores["weight_decay"] == 0.0
    assert {id(p) for p in scores["params"]} == {id(m.S) for m in pruner.matrices}
    assert not {id(p) for p in model.bert.embeddings.parameters()} & {
        id(p) for p in weights["params"]}
    frozen = replace(settings, freeze="weights")
    pruner = train.make_pruner(model, frozen, masking.Schedule(10, 1, 1))
    weights, _ = train.make_optimizer(model, pruner, frozen)[0].param_groups
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
    assert not collapsed("sst2", np.ones(4), labels=labels[198:202])  # too few to tell


def test_a_held_out_share_is_measured_beside_the_evaluation_rows(place):
    printed = place.train("--held-out", 0.1, output="new").succeeded()
    metrics = metrics_of(place.folder / "new")
    assert set(metrics["metrics"]) == set(metrics["held_out_metrics"]) == {"accuracy"}
    assert (metrics["train_rows"], metrics["eval_rows"]) == (36, 40)
    assert "40 + 4 held out evaluation rows" in printed and "accuracy_held_out" in printed
    assert type(metrics["collapsed"]) is bool
    assert metrics["collapsed"] == ("WARNING: the task is lost" in printed)
    place("evaluate.py", "new").succeeded()
    again = json.loads((place.folder / "new" / "evaluation.json").read_text())
    for name in ("metrics", "held_out_metrics", "eval_rows"):
        assert again[name] == metrics[name]


def test_what_is_known_to_lose_the_task_is_said_beforehand(place):
    printed = place.train("--lr", "1e-9", output="new").succeeded()
    before, at_pruning = re.findall("WARNING: (?:movement is known|pruning begins).*", printed)
    # the recipe's shares of 40 steps: 0.163, 0.674 and 0.163
    assert "at most 10.38 % of the weights a step" in printed
    assert "prunes up to 10.38 %" in before and "begins at step 7" in before
    assert "learning rate" not in before
    assert "pruning begins at step 7, but the loss has hardly fallen" in at_pruning
    assert "learning rate is 0.01" in place.train("--dry-run", output="other").stdout
    for words in (("--method", "soft_movement"), ("--model", "untrained:1x32")):
        assert "known to lose" not in place.train(*words, "--dry-run", output="other").stdout


def test_a_dry_run_counts_with_the_fastest_of_ten_steps():
    taken = []

    def steps():
        for t in itertools.count():
            taken.append(t)
            time.sleep(0.05 if t == 3 else 0.1)
            yield t, torch.zeros(()), None, None

    assert 0.05 <= report.fastest(steps()) < 0.1
    assert len(taken) == 10
    assert report.fastest(itertools.islice(steps(), 1)) >= 0.1  # a run of one step
