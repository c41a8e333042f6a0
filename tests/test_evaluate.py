"""evaluate.py: the same digits as train.py printed, from a run and from other programs' folders."""

import json

import numpy as np
import pytest
import torch

import data
import evaluate
import export
from tools import rows

TINY = ("--model", "untrained:1x32", "--max-train-rows", 320, "--max-eval-rows", 60,
        "--steps", 40, "--max-length", 48)


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "r"
    done = command("train.py", "--task", "mnli", "--method", "magnitude", *TINY, "--keep", 0.5,
                   "--output", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_same_metrics_as_training_said(run, command):
    done = command("evaluate.py", run)
    assert done.returncode == 0, done.stderr
    told = json.loads((run / "metrics.json").read_text())["metrics"]
    assert json.loads((run / "evaluation.json").read_text())["metrics"] == told
    assert "precision" in done.stdout and "entailment" in done.stdout
    assert "generated sample" in done.stdout and "60 matched + 60 mismatched" in done.stdout


def test_a_share_held_out_stays_with_the_runs_own_data(run):
    parse = evaluate.make_parser().parse_args
    known = json.loads((run / "run.json").read_text())
    try:
        (run / "run.json").write_text(json.dumps(known | {"held_out": 0.5}))
        assert evaluate.resolve(parse([str(run)])).held_out == 0.5
        assert evaluate.resolve(parse([str(run), "--data", "sample"])).held_out is None
    finally:
        (run / "run.json").write_text(json.dumps(known))


def test_export_measures_what_each_kind_of_file_costs(run, command, tmp_path):
    done = command("export.py", run, "--values", "int8", "--restore", tmp_path / "back",
                   "--csv", tmp_path / "sizes.csv")
    assert done.returncode == 0, done.stderr
    sizes = {row["file"]: row for row in rows.read(tmp_path / "sizes.csv")}
    exact = json.loads((run / "metrics.json").read_text())["metrics"]
    assert command("evaluate.py", tmp_path / "back").returncode == 0
    of_int8 = json.loads((tmp_path / "back" / "evaluation.json").read_text())["metrics"]
    for name in exact:
        assert float(sizes["compact float32"][name]) == pytest.approx(exact[name])
        assert float(sizes["compact int8"][name]) == pytest.approx(of_int8[name])
        assert sizes["dense float32"][name] == ""
    written = (run / "export" / export.COMPACT).stat().st_size
    assert int(sizes["compact int8"]["whole_model"]) == written
    assert float(sizes["bound of int8"]["density"]) == pytest.approx(0.5, abs=1e-3)
    recorded = json.loads((run / "run.json").read_text())
    assert {row["torch"] for row in sizes.values()} == {recorded["torch"]}


def test_metrics_agree_with_transformers(run):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run)
    settings = evaluate.resolve(evaluate.make_parser().parse_args([str(run)]))
    _, eval_rows = evaluate.load_rows(settings, data.TASKS["mnli"], training=False)
    for split, held in eval_rows.items():
        batch = tokenizer([a for a, _ in held.texts], [b for _, b in held.texts], padding=True,
                          truncation=True, max_length=48, return_tensors="pt")
        with torch.no_grad():
            predicted = model(**batch).logits.argmax(1).numpy()
        told = json.loads((run / "metrics.json").read_text())["metrics"][f"accuracy{split}"]
        assert 100 * float(np.mean(predicted == held.labels)) == pytest.approx(told)
    assert model.config.id2label[0] == "contradiction"


def test_predictions_in_glues_submission_layout(run, command, tmp_path):
    test = tmp_path / "test_matched.tsv"
    test.write_text("index\tsentence1\tsentence2\n"
                    "0\tevery dog is running .\tsome dogs are running .\n"
                    "1\tno dog is running .\ta dog is \"running\" .\n", encoding="utf-8")
    done = command("evaluate.py", run, "--predict", test)
    assert done.returncode == 0, done.stderr
    lines = (run / "predictions-test_matched.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 3
    assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "neutral",
                                                           "contradiction"}


@pytest.mark.parametrize("words, complaint", [
    (["nowhere"], "nowhere"),
    (["{run}", "--task", "sst2"], "has 3 labels, the task 2"),
    (["{run}", "--data", "nowhere"], "no such folder"),
    (["{run}", "--predict", "nowhere.tsv"], "nowhere.tsv"),
])
def test_refusals(words, complaint, run, command):
    done = command("evaluate.py", *[w.format(run=run) for w in words])
    assert done.returncode == 2 and complaint in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_folder_of_another_program_needs_its_task(run, command, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    done = command("evaluate.py", tmp_path)
    assert done.returncode == 2 and "--task" in done.stderr
    done = command("evaluate.py", tmp_path, "--task", "mnli", "--max-eval-rows", 20)
    assert done.returncode == 0, done.stderr
