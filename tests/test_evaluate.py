"""evaluate.py: the same digits as train.py printed, from a run and from other programs' folders."""

import re
import shutil
from argparse import Namespace

import pytest
from tiny import check_refused

import data
import evaluate
import export
from support.files import read_json, write_json
from tools import rows


def test_same_metrics_as_training_said(sample_run, command):
    folder, _ = sample_run
    printed = command("evaluate.py", folder).succeeded()
    metrics = read_json(folder / "metrics.json")["metrics"]
    assert read_json(folder / "evaluation.json")["metrics"] == metrics
    assert re.search(r"accuracy_matched +\d", printed)
    assert "generated sample" in printed and "40 matched + 40 mismatched" in printed


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
