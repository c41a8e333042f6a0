"""evaluate.py: the same digits as train.py printed, from a run and from other programs' folders."""

import os
import re
import shutil
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIG, check_refused, features_of, tsv

import bert
import data
import evaluate
import export
from support.files import read_json, write_atomically, write_json
from tools import rows


def test_same_metrics_as_training_said(sample_run, command):
    folder, _ = sample_run
    printed = command("evaluate.py", folder).succeeded()
    metrics = read_json(folder / "metrics.json")["metrics"]
    assert read_json(folder / "evaluation.json")["metrics"] == metrics
    assert re.search(r"accuracy_matched +\d", printed)
    assert "generated sample" in printed and "40 matched + 40 mismatched" in printed


def test_nothing_is_dropped_in_predicting():
    model = bert.create(replace(CONFIG, hidden_dropout_prob=0.5), "classification", 2).train()
    settings = Namespace(batch_size=2, device="cpu", precision="fp32")
    first, again = (evaluate.predict(model, features_of([3, 5]), settings) for _ in range(2))
    assert np.array_equal(first, again)


def test_the_order_of_a_models_classes_decides_nothing(place):
    shutil.copytree("run", "turned")
    os.remove("turned/SHA256SUMS")
    save_file({name: x.flip(0) if name.startswith("classifier") else x
               for name, x in load_file("run/model.safetensors").items()},
              "turned/model.safetensors")
    config = read_json("run/config.json")
    write_json("turned/config.json", config | {"id2label": {"0": "1", "1": "0"}})
    for run in ("run", "turned"):
        place("evaluate.py", run).succeeded()
        assert read_json(f"{run}/evaluation.json")["metrics"]["accuracy"] > 90
        said = place("evaluate.py", run, "--text", "a good b .").succeeded()
        assert re.search(r"^ +1 +(1|0\.[6-9])", said, re.M), said
        place.train("--teacher", run, output=f"{run}-student").succeeded()
    torch.testing.assert_close(*(load_file(f"{run}-student/model.safetensors")
                                 for run in ("run", "turned")))


def test_rows_held_out_are_not_trained_on(tmp_path):
    body = tsv(("sentence", "label"), *[(f"text {i}", str(i % 2)) for i in range(50)])
    for name in ("train.tsv", "dev.tsv"):
        write_atomically(tmp_path / "SST-2" / name, body)
    settings = Namespace(data=str(tmp_path), held_out=0.3, max_train_rows=None,
                         max_eval_rows=None)
    rows, splits = evaluate.load_rows(settings, data.TASKS["sst2"])
    out = set(splits["_held_out"].texts)
    assert len(out) == 15 and len(out | set(rows.texts)) == 50 and not out & set(rows.texts)


def test_a_share_held_out_stays_with_the_runs_own_data(place):
    parse = evaluate.make_parser().parse_args
    write_json("run/run.json", read_json("run/run.json") | {"held_out": 0.5})
    assert evaluate.resolve(parse(["run"])).held_out == 0.5
    assert evaluate.resolve(parse(["run", "--data", "data"])).held_out is None


def test_export_measures_what_each_kind_of_file_costs(place):
    place("export.py", "run", "--values", "int8", "--restore", "back", "--csv",
          "sizes.csv").succeeded()
    sizes = {row["file"]: row for row in rows.read(place.folder / "sizes.csv")}
    place("evaluate.py", "back").succeeded()
    for file, folder in (("compact float32", "run/metrics"), ("compact int8", "back/evaluation")):
        metrics = read_json(f"{folder}.json")["metrics"]
        assert float(sizes[file]["accuracy"]) == pytest.approx(metrics["accuracy"])
    assert sizes["dense float32"]["accuracy"] == ""
    written = (place.folder / "run" / "export" / export.COMPACT).stat().st_size
    assert int(sizes["compact int8"]["whole_model"]) == written
    assert float(sizes["bound of int8"]["density"]) == pytest.approx(0.1, abs=1e-3)
    recorded = read_json("run/run.json")
    assert {row["torch"] for row in sizes.values()} == {recorded["torch"]}


def test_predictions_in_glues_submission_layout(place):
    (place.folder / "test.tsv").write_text(
        'index\tsentence\n0\ta good b .\n1\ta bad c .\n2\ta "good" b .\n')
    place("evaluate.py", "run", "--predict", "test.tsv").succeeded()
    assert (place.folder / "run" / "predictions-test.tsv").read_text() == (
        "index\tprediction\n0\t1\n1\t0\n2\t1\n")


def test_a_folder_of_another_program_needs_its_task(place):
    (place.folder / "other").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(place.folder / "run" / name, "other")
    check_refused(place("evaluate.py", "other"), "--task")
    done = place("evaluate.py", "other", "--task", "sst2", "--data", "data", "--max-eval-rows", 20)
    assert "20 evaluation rows" in done.succeeded()


def test_random_weights_are_not_called_pretrained(cache):
    for model, said in (("small:1x64", "pretrain small:1x64"), ("untrained:1x64", "a vocabulary")):
        settings = Namespace(data="data", model=model)
        [step] = evaluate.missing_inputs(settings, data.TASKS["sst2"])
        assert said in step and ("pretrain" in step) == model.startswith("small")
