"""Wrong input through the command line: one clear line, the right status, and nothing lost.

What is wrong inside a file is tried one by one where files of its kind are read: test_readers.py,
test_squad.py, test_bert.py, test_data.py.
"""

import json
import pickle
import shutil

import pytest
import safetensors.torch
import torch
from tiny import RTE, SQUAD, SST2, TRAIN, WORDS, Trap, check_refused, digests, squad

from support import files

# ------------------------------------------------------------------------------------- files


def put(name, content):
    """A change to the folder: that file with this content (None: none at all)."""
    def change(folder):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if content is not None:
            text = content if isinstance(content, (str, bytes)) else json.dumps(content)
            files.write_atomically(path, text)
    return change


def together(*changes):
    return lambda folder: [change(folder) for change in changes]


def with_nan(folder):
    path = folder / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors[NAME].fill_(torch.nan)
    safetensors.torch.save_file(tensors, path)


def cut_weights(folder):
    path = folder / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


NAME = "bert.encoder.layer.0.intermediate.dense.weight"
TRAPPED = together(put("model/model.safetensors", None),
                   put("model/pytorch_model.bin", pickle.dumps({"a": Trap()})))
SST2_DEV, SQUAD_DEV = "data/SST-2/dev.tsv", "data/SQuAD/dev-v1.1.json"
AGAIN = ("train.py", *TRAIN, "--output", "run", "--overwrite")
EVALUATE, EXPORT = ("evaluate.py", "run"), ("export.py", "run")
RESUME = ("train.py", "--resume", "--output", "run")
FILES = {  # command, change to the folder, what is said
    "rows: no such folder": ((*AGAIN, "--task", "wnli"), put("x", ""),
                             "data/WNLI: no such folder; --data names"),
    "rows: none left to train on": (
        (*AGAIN, "--held-out", "0.5"), put("data/SST-2/train.tsv", "sentence\tlabel\nb\t1\n"),
        "--held-out 0.5 leaves no training row"),
    "rows: a file for a folder": (AGAIN, put("data/SST-2", "x"), "data/SST-2: no such folder"),
    "rows: no file": (AGAIN, put(SST2_DEV, None), "dev.tsv: No such file"),
    "rows: a folder for a file": (AGAIN, together(put(SST2_DEV, None), put(SST2_DEV + "/x", "")),
                                  "dev.tsv: Is a directory"),
    "rows: unknown label": (AGAIN, put(SST2_DEV, SST2 + "b\t2\n"),
                            "dev.tsv:42: label '2' is none of 0, 1"),
    "rows: label of another task": (
        (*AGAIN, "--task", "rte"), put("data/RTE/dev.tsv", RTE + "2\ta\tb\tneutral\n"),
        "dev.tsv:42: label 'neutral' is none of entailment, not_entail"),
    "squad: cut": ((*AGAIN, *SQUAD), put(SQUAD_DEV, json.dumps(squad())[:99]),
                   "dev-v1.1.json:1: broken JSON"),
    "squad: not UTF-8": ((*AGAIN, *SQUAD), put(SQUAD_DEV, b'{"data": "\xe9"}'),
                         "dev-v1.1.json:1: not UTF-8"),
    "squad: no answer is there": (
        (*AGAIN, *SQUAD), put("data/SQuAD/train-v1.1.json", squad(text="z")),
        "no answer is where"),

    "model: no config": (AGAIN, put("model/config.json", None), "config.json: No such file"),
    "model: broken config": (AGAIN, put("model/config.json", '{"vocab_size": 11'),
                             "config.json:1: broken JSON"),
    "model: config is a list": (AGAIN, put("model/config.json", "[]"), "not a JSON object"),
    "model: config is a folder": (
        AGAIN, together(put("model/config.json", None), put("model/config.json/x", "")),
        "config.json: Is a directory"),
    "model: cut weights": (AGAIN, cut_weights, "model.safetensors: not weights"),
    "model: a pickle with code": (AGAIN, TRAPPED, "so it was not run"),
    "model: NaN": (AGAIN, with_nan, f"{NAME} holds NaN"),
    "model: larger vocabulary": (AGAIN, put("model/vocab.txt", "\n".join([*WORDS, "d", "e"])),
                                 "token number 12, the embedding only 11"),
    "model: broken tokenizer": (AGAIN, put("model/tokenizer.json", "{}"), "not a tokenizer"),

    "evaluate: broken run.json": (EVALUATE, put("run/run.json", "{"), "broken JSON"),
    "evaluate: an odd task": (EVALUATE, put("run/run.json", {"task": "mnly"}), "run.json"),
    "evaluate: no task": (EVALUATE, put("run/run.json", None), "give --task"),
    "evaluate: cut weights": (EVALUATE, put("run/model.safetensors", "x"), "not weights"),
    "evaluate: larger vocabulary": (EVALUATE, together(
        put("run/tokenizer.json", None), put("run/vocab.txt", "\n".join([*WORDS, "d"]))),
        "token number 11, the embedding only 11"),
    "evaluate: rows moved away": (EVALUATE, put("data/SST-2", None), "no such folder"),
    "evaluate: wrong columns": ((*EVALUATE, "--predict", "x.tsv"), put("x.tsv", "text\nb\n"),
                                "x.tsv:1: no column 'sentence'"),
    "export: broken run.json": (EXPORT, put("run/run.json", "[1]"), "a JSON object"),
    "export: cut weights": (EXPORT, put("run/model.safetensors", "x"), "not weights"),
    "resume: broken metrics": (RESUME, put("run/metrics.json", "{"), "json:1: broken JSON"),
    "resume: foreign metrics": (RESUME, put("run/metrics.json", {"accuracy": 1}),
                                "metrics.json: "),
    "sweep: a CSV in two": (("tools.sweep", "--csv", "x.csv"), put("x.csv", "key,task\n1\n"),
                            "x.csv: row 1"),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.filterwarnings("ignore")
def test_files(case, place):
    words, change, said = FILES[case]
    change(place.folder)
    before = digests(place.folder)
    check_refused(place(*words), said)
    assert digests(place.folder) == before and not (place.folder / "sprung").exists()


def test_answers_that_are_not_in_their_context_are_counted(place):
    rows = squad()
    for qa in rows["data"][0]["paragraphs"][0]["qas"][:3]:
        qa["answers"][0]["text"] = "zzz"
    put("data/SQuAD/train-v1.1.json", rows)(place.folder)
    done = place.train("--dry-run", *SQUAD, output="new")
    assert "3 answers are not where the file says; not trained on" in done.stdout, done.stderr


# ------------------------------------------------------------------------------------- flags

FLAGS = {  # flags of train.py: what is said
    "--keep 0": "'0' is not a number above 0 and at most 1",
    "--keep -0.1": "'-0.1' is not a number above 0 and at most 1",
    "--keep 1.01": "'1.01' is not a number above 0 and at most 1",
    "--keep 10%": "'10%' is not a number",
    "--keep 10": "10 % is 0.1",
    "--keep nan": "'nan' is not a number",
    "--lr inf": "'inf' is not a number",
    "--epochs 1e999": "'1e999' is not a number",
    f"--steps {'1' * 400}": "is not a whole number of at least 1",
    "--steps 2.5": "'2.5' is not a whole number",
    "--seed -1": "'-1' is not a whole number of at least 0",
    "--keep": "expected one argument",
    "movement": "unknown argument movement",
    "--tusk mnli": "did you mean --task",
    "--task mnly": "did you mean mnli",
    "--method movment": "did you mean movement",
    "--penalty 3": "only soft_movement and l0",
    "--method l0 --penalty paper": "no λ for",
    "--steps 1": "1 steps cannot hold the schedule",
    "--hold 0.5 --cooldown 0.5": "leaves 0 for the ramp",
    "--cooldown 0.001": "cool-down 0.001 is 0",
    "--max-length 2": "--max-length 2",
    "--max-length 129": "has positions for 128 tokens",
    "--model ./nowhere": "nowhere",
    "--model small:3": "small:LAYERSxWIDTH",
    "--device mps": "has none",
    "--data nowhere": "--data nowhere: no such folder",
    f"--data {SST2_DEV}": f"--data {SST2_DEV}: no such folder",
    "--data sample --task wnli": "there is no sample",
    "--teacher none": "none: no such folder",
    "--dry-run --teacher none": "none: no such folder",
    "--teacher unfinished": "not fine-tuned",
    "--teacher run --task rte": "run: has the labels 0, 1, but no entailment",
    "--output run": "run: holds files already; choose another --output",
    f"--output {SST2_DEV}": "dev.tsv is a file, not a folder",
    f"--output {SST2_DEV}/run": "dev.tsv is a file, not a folder",
    "--output data --overwrite": "does not hold a run",
    "--output data --resume": "does not hold a run",
    "--output run --resume --overwrite": "give one of them",
}
OTHER_FLAGS = {  # the same of other programs
    "evaluate.py nowhere": "nowhere: no such folder",
    "evaluate.py run --text a b": "this task takes sentence",
    f"evaluate.py {SST2_DEV} --task sst2": "no such folder",
    "evaluate.py run --task mnli": "has 2 labels, the task 3",
    "evaluate.py run --data nowhere": "no such folder",
    "evaluate.py run --predict nowhere.tsv": "nowhere.tsv",
    "export.py model": "model/run.json: No such file",
    "tools.sweep --csv run": "run: ",
    f"tools.sweep --csv {SST2_DEV}/x.csv": "dev.tsv is a file, not a folder",
    "tools.claims --claims shap": "shape",
    "tools.claims --method lo": "did you mean l0",
    "tools.claims --keep 0.5": "--keep",
    "tools.claims --claims close 7": "7",
}


@pytest.mark.parametrize("flags", FLAGS | OTHER_FLAGS)
def test_flags(flags, place):
    if "unfinished" in flags:
        shutil.copytree("model", "unfinished")
        tensors = safetensors.torch.load_file("model/model.safetensors")
        tensors.pop("classifier.weight")
        safetensors.torch.save_file(tensors, "unfinished/model.safetensors")
    before = digests(place.folder)
    if flags in FLAGS:
        check_refused(place.train(*flags.split(), output="new"), FLAGS[flags])
    else:
        check_refused(place(*flags.split()), OTHER_FLAGS[flags])
    assert digests(place.folder) == before
