"""Wrong input through the command line: one clear line, the right status, and nothing lost."""

import json
import pickle
import shutil

import pytest
import safetensors.torch
import torch
from tiny import COLA, RTE, SQUAD, SST2, STSB, WORDS, Trap, check_refused, digests, squad

from support import files

# ---------------------------------------------------------------------------------- the rows


def put(name, content):
    """A change to the folder: that file with this content (None: none at all)."""
    def change(folder):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if content is not None:
            content_ = content if isinstance(content, (str, bytes)) else json.dumps(content)
            files.write_atomically(path, content_)
    return change


DEV = "data/SST-2/dev.tsv"
ROWS = {  # task, change, what is said
    "no such folder": ("wnli", put("x", ""), "data/WNLI: no such folder; --data names"),
    "folder is a file": ("sst2", put("data/SST-2", "x"), "data/SST-2: no such folder"),
    "no dev file": ("sst2", put(DEV, None), "dev.tsv: No such file"),
    "no train file": ("sst2", put("data/SST-2/train.tsv", None), "train.tsv: No such file"),
    "empty": ("sst2", put(DEV, ""), "dev.tsv:1: no column 'sentence'; the columns are: none"),
    "header alone": ("sst2", put(DEV, "sentence\tlabel\n"), "dev.tsv: no labelled rows"),
    "no column": ("sst2", put(DEV, SST2.replace("label", "labels")), "dev.tsv:1: no column 'lab"),
    "few fields": ("sst2", put(DEV, SST2 + "b\n"), "dev.tsv:42: 1 fields where 2 are expected"),
    "few fields, no header": ("cola", put("data/CoLA/dev.tsv", COLA + "s\t1\n"), "dev.tsv:41: 2 f"),
    "unknown label": ("sst2", put(DEV, SST2 + "b\t2\n"), "dev.tsv:42: label '2' is none of 0, 1"),
    "label of another task": ("rte", put("data/RTE/dev.tsv", RTE + "2\ta\tb\tneutral\n"),
                              "dev.tsv:42: label 'neutral' is none of entailment, not_entail"),
    "score": ("stsb", put("data/STS-B/dev.tsv", STSB + "a\tb\t6\n"), "dev.tsv:42: score '6'"),
    "not UTF-8": ("sst2", put(DEV, SST2.encode() + b"caf\xe9\t1\n"), "dev.tsv:42: not UTF-8"),
    "UTF-16": ("sst2", put(DEV, SST2.encode("utf-16")), "dev.tsv:1: not UTF-8"),
    "JSON in two": ("squad", put("data/SQuAD/dev-v1.1.json", json.dumps(squad())[:99]),
                    "dev-v1.1.json:1: broken JSON"),
    "an empty JSON": ("squad", put("data/SQuAD/dev-v1.1.json", ""), "json:1: broken JSON"),
    "JSON, not UTF-8": ("squad", put("data/SQuAD/dev-v1.1.json", b'{"data": "\xe9"}'),
                        "dev-v1.1.json:1: not UTF-8"),
    "another JSON": ("squad", put("data/SQuAD/dev-v1.1.json", {"rows": []}), "no 'data'"),
    "no questions": ("squad", put("data/SQuAD/dev-v1.1.json", {"data": []}), "no questions"),
    "negative start": ("squad", put("data/SQuAD/train-v1.1.json", squad(answer_start=-1)),
                       "data[0].paragraphs[0].qas[0].answers[0]: 'answer_start' is negative"),
    "no answer is there": ("squad", put("data/SQuAD/train-v1.1.json", squad(text="z")),
                           "no answer is where"),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows(case, place):
    task, change, said = ROWS[case]
    change(place.folder)
    before = digests(place.folder / "run")
    more = SQUAD if task == "squad" else ()
    check_refused(place.train("--overwrite", *more, task=task), said)
    assert digests(place.folder / "run") == before


ACCEPTED = {
    "byte-order mark": "\ufeff" + SST2,
    "carriage returns": SST2.replace("\n", "\r\n"),
    "quotes": SST2 + '"a "good\t1\n' + '""b"\t0\n',
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_odd_rows_are_accepted(case, place):
    put(DEV, ACCEPTED[case])(place.folder)
    status, said, error = place.train("--dry-run", output="new")
    rows = 42 if case == "quotes" else 40
    assert status == 0 and f"{rows} evaluation rows" in said and not error


def test_answers_that_are_not_in_their_context_are_counted(place):
    rows = squad()
    for qa in rows["data"][0]["paragraphs"][0]["qas"][:3]:
        qa["answers"][0]["text"] = "zzz"
    put("data/SQuAD/train-v1.1.json", rows)(place.folder)
    status, said, _ = place.train("--dry-run", *SQUAD, task="squad", output="new")
    assert status == 0 and "3 answers are not where the file says; not trained on" in said


# --------------------------------------------------------------------- weights and tokenizers


def weights(edit):
    """A change to the model's tensors."""
    def change(folder):
        path = folder / "model" / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        edit(tensors)
        safetensors.torch.save_file(tensors, path)
    return change


def config(**changed):
    def change(folder):
        path = folder / "model" / "config.json"
        files.write_json(path, files.read_json(path) | changed)
    return change


def cut(share):
    def change(folder):
        path = folder / "model" / "model.safetensors"
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return change


def trapped(folder):
    (folder / "model" / "model.safetensors").unlink()
    (folder / "model" / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Trap()}))


def together(*changes):
    return lambda folder: [change(folder) for change in changes]


UP = "bert.encoder.layer.0.intermediate.dense.weight"
TENSOR = {"weight": torch.ones(2, 2)}
MODELS = {  # change, further words, what is said
    "no config": (put("model/config.json", None), "model/config.json: No such file"),
    "broken config": (put("model/config.json", '{"vocab_size": 11'), "config.json:1: broken JSON"),
    "config is a list": (put("model/config.json", "[]"), "config.json: not a JSON object"),
    "config is a folder": (together(put("model/config.json", None), put("model/config.json/x", "")),
                           "config.json: Is a directory"),
    "no weights": (put("model/model.safetensors", None), "no model.safetensors"),
    "empty weights": (put("model/model.safetensors", ""), "model.safetensors: not weights"),
    "cut in the header": (cut(0.01), "model.safetensors: not weights"),
    "cut in the middle": (cut(0.5), "model.safetensors: not weights"),
    "foreign safetensors": (put("model/model.safetensors", safetensors.torch.save(TENSOR)),
                            "weight is not part of this model"),
    "a pickle with code": (trapped, "so it was not run"),
    "NaN": (weights(lambda w: w[UP].fill_(torch.nan)), f"{UP} holds NaN"),
    "another shape": (weights(lambda w: w.update({UP: torch.ones(64, 31)})), "is (64, 31), but"),
    "a missing tensor": (weights(lambda w: w.pop(UP)), f"{UP} is missing"),
    "another family": (config(model_type="roberta"), "RoBERTa counts positions from 2"),
    "another network": (config(model_type="gpt2"), "model_type is 'gpt2'"),
    "larger vocabulary": (put("model/vocab.txt", "\n".join([*WORDS, "d", "e"])),
                          "token number 12, the embedding only 11"),
    "smaller vocabulary": (config(vocab_size=10), "token number 10, the embedding only 10"),
    "no vocabulary": (put("model/vocab.txt", None), "neither tokenizer.json nor vocab.txt"),
    "broken tokenizer": (put("model/tokenizer.json", "{}"), "model: not a tokenizer"),
    "no [PAD]": (put("model/vocab.txt", "\n".join(WORDS[1:])), "no [PAD]"),
    "few positions": (config(max_position_embeddings=8), "has positions for 8 tokens"),
}


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_models(case, place):
    change, said = MODELS[case]
    change(place.folder)
    before = digests(place.folder / "run")
    check_refused(place.train("--overwrite"), said)
    assert digests(place.folder / "run") == before and not (place.folder / "sprung").exists()


# ---------------------------------------------------------------------- flags and folders


def other_teacher(folder):
    shutil.copytree(folder / "model", folder / "teacher")


FLAGS = {  # words, what is said
    "keep 0": (["--keep", "0"], "'0' is not a number above 0 and at most 1"),
    "keep -0.1": (["--keep", "-0.1"], "'-0.1' is not a number above 0 and at most 1"),
    "keep 1.01": (["--keep", "1.01"], "'1.01' is not a number above 0 and at most 1"),
    "keep 10%": (["--keep", "10%"], "'10%' is not a number"),
    "keep nan": (["--keep", "nan"], "'nan' is not a number"),
    "lr inf": (["--lr", "inf"], "'inf' is not a number"),
    "epochs without end": (["--epochs", "1e999"], "'1e999' is not a number"),
    "steps beyond count": (["--steps", "1" * 400], "is not a whole number of at least 1"),
    "half a step": (["--steps", "2.5"], "'2.5' is not a whole number"),
    "seed": (["--seed", "-1"], "'-1' is not a whole number of at least 0"),
    "no value": (["--keep"], "expected one argument"),
    "a word too many": (["movement"], "unknown argument movement"),
    "one step": (["--steps", "1"], "1 steps cannot hold the schedule"),
    "no room for the ramp": (["--hold", "0.5", "--cooldown", "0.5"], "leaves 0 for the ramp"),
    "no cool-down": (["--cooldown", "0.001"], "cool-down 0.001 is 0"),
    "no room for tokens": (["--max-length", "2"], "--max-length 2"),
    "longer than positions": (["--max-length", "129"], "has positions for 128 tokens"),
    "a run in the folder": ([], "run: holds files already; choose another --output"),
    "a file for a folder": (["--output", "data/SST-2/dev.tsv"], "is a file; --output names a fol"),
    "below a file": (["--output", "data/SST-2/dev.tsv/run"], "dev.tsv is a file, not a folder"),
    "no run to replace": (["--output", "data", "--overwrite"], "does not hold a run"),
    "data is a file": (["--data", DEV], f"--data {DEV}: no such folder"),
    "teacher is nothing": (["--teacher", "none"], "none: no such folder"),
    "teacher not fine-tuned": (["--teacher", "unfinished"], "not fine-tuned"),
    "teacher of another task": (["--task", "rte", "--teacher", "run"],
                                "run: has the labels 0, 1, but no entailment"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags(case, place):
    words, said = FLAGS[case]
    if "unfinished" in words:
        shutil.copytree("model", "unfinished")
        tensors = safetensors.torch.load_file("model/model.safetensors")
        tensors.pop("classifier.weight")
        safetensors.torch.save_file(tensors, "unfinished/model.safetensors")
    before = digests(place.folder)
    output = "run" if case == "a run in the folder" else "new"
    check_refused(place.train(*words, output=output), said)
    assert digests(place.folder) == before


RUN = {  # command, change to run/, what is said
    "evaluate: broken run.json": (["evaluate.py", "run"], put("run/run.json", "{"), "broken JSON"),
    "evaluate: an odd task": (["evaluate.py", "run"], put("run/run.json", {"task": "mnly"}),
                              "run.json"),
    "evaluate: odd settings": (["evaluate.py", "run"], put("run/run.json", {
        "task": "sst2", "data": "data", "max_length": "long"}), "run.json"),
    "evaluate: no task": (["evaluate.py", "run"], put("run/run.json", None), "give --task"),
    "evaluate: cut weights": (["evaluate.py", "run"], put("run/model.safetensors", "x"), "not wei"),
    "evaluate: larger vocabulary": (["evaluate.py", "run"], together(
        put("run/tokenizer.json", None), put("run/vocab.txt", "\n".join([*WORDS, "d"]))),
        "token number 11, the embedding only 11"),
    "evaluate: rows moved away": (["evaluate.py", "run"], put("data/SST-2", None), "no such fold"),
    "evaluate: a file for a run": (["evaluate.py", DEV, "--task", "sst2"], put("x", ""),
                                   "no such folder"),
    "evaluate: wrong columns": (["evaluate.py", "run", "--predict", "x.tsv"],
                                put("x.tsv", "text\nb\n"), "x.tsv:1: no column 'sentence'"),
    "export: broken run.json": (["export.py", "run"], put("run/run.json", "[1]"), "a JSON object"),
    "export: cut weights": (["export.py", "run"], put("run/model.safetensors", "x"), "not weights"),
    "export: no run": (["export.py", "model"], put("x", ""), "model/run.json: No such file"),
    "resume: broken metrics": (["train.py", "--resume", "--output", "run"],
                               put("run/metrics.json", "{"), "metrics.json:1: broken JSON"),
    "resume: foreign metrics": (["train.py", "--resume", "--output", "run"],
                                put("run/metrics.json", {"accuracy": 1}), "metrics.json: "),
    "sweep: a CSV in two": (["tools.sweep", "--csv", "x.csv"], put("x.csv", "key,task\n1\n"),
                            "x.csv: row 1"),
    "sweep: not UTF-8": (["tools.sweep", "--csv", "x.csv"], put("x.csv", b"key\n\xff"), "x.csv: "),
    "sweep: a folder": (["tools.sweep", "--csv", "run"], put("x", ""), "run: "),
    "sweep: a file for a folder": (["tools.sweep", "--csv", DEV + "/x.csv"], put("x", ""), "dev.t"),
}


@pytest.mark.parametrize("case", RUN)
def test_folders_of_runs(case, place):
    words, change, said = RUN[case]
    change(place.folder)
    before = digests(place.folder)
    check_refused(place(*words), said)
    assert digests(place.folder) == before
