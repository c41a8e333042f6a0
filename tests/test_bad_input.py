"""Wrong input through the command line: one clear line, the right status, and nothing lost.

What is wrong inside a file is tried one by one where files of its kind are read: test_readers.py,
test_squad.py, test_bert.py, test_data.py.
"""

import json
import shutil

import pytest
from tiny import SQUAD, SST2, TRAIN, WORDS, check_refused, digests, squad

from support import files

# ------------------------------------------------------------------------------------- files


def put(folder, changes):
    """Change files of a folder: name → its new content; None: it is gone."""
    for name, content in changes.items():
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if content is not None:
            text = content if isinstance(content, (str, bytes)) else json.dumps(content)
            files.write_atomically(path, text)


SST2_DEV, SQUAD_DEV = "data/SST-2/dev.tsv", "data/SQuAD/dev-v1.1.json"
SQUAD_TRAIN = "data/SQuAD/train-v1.1.json"
AGAIN = ("train.py", *TRAIN, "--output", "run", "--overwrite")
EVALUATE, EXPORT = ("evaluate.py", "run"), ("export.py", "run")
RESUME = ("train.py", "--resume", "--output", "run")
FILES = {  # command, changes to files, what is said
    "rows: no such folder": ((*AGAIN, "--task", "wnli"), {},
                             "data/WNLI: no such folder; --data names"),
    "rows: none left to train on": (
        (*AGAIN, "--held-out", "0.5"), {"data/SST-2/train.tsv": "sentence\tlabel\nb\t1\n"},
        "--held-out 0.5 leaves no training row"),
    "rows: a file for a folder": (AGAIN, {"data/SST-2": "x"}, "data/SST-2: no such folder"),
    "rows: no file": (AGAIN, {SST2_DEV: None}, "dev.tsv: No such file"),
    "rows: a folder for a file": (AGAIN, {SST2_DEV: None, f"{SST2_DEV}/x": ""},
                                  "dev.tsv: Is a directory"),
    "rows: unknown label": (AGAIN, {SST2_DEV: SST2 + "b\t2\n"},
                            "dev.tsv:42: label '2' is none of 0, 1"),
    "squad: not UTF-8": ((*AGAIN, *SQUAD), {SQUAD_DEV: b'{"data": "\xe9"}'},
                         "dev-v1.1.json:1: not UTF-8"),
    "squad: no answer is there": ((*AGAIN, *SQUAD), {SQUAD_TRAIN: squad(text="z")},
                                  "no answer is where"),

    "model: no config": (AGAIN, {"model/config.json": None}, "config.json: No such file"),
    "model: no weights": (AGAIN, {"model/model.safetensors": "x"}, "not weights"),
    "model: larger vocabulary": (AGAIN, {"model/vocab.txt": "\n".join([*WORDS, "d", "e"])},
                                 "token number 12, the embedding only 11"),
    "model: broken tokenizer": (AGAIN, {"model/tokenizer.json": "{}"}, "not a tokenizer"),

    "evaluate: broken run.json": (EVALUATE, {"run/run.json": "{"}, "broken JSON"),
    "evaluate: an odd task": (EVALUATE, {"run/run.json": {"task": "mnly"}}, "run.json"),
    "evaluate: no task": (EVALUATE, {"run/run.json": None}, "give --task"),
    "evaluate: no weights": (EVALUATE, {"run/model.safetensors": "x"}, "has changed since"),
    "evaluate: larger vocabulary": (
        EVALUATE, {"run/SHA256SUMS": None, "run/tokenizer.json": None,
                   "run/vocab.txt": "\n".join([*WORDS, "d"])},
        "token number 11, the embedding only 11"),
    "evaluate: rows moved away": (EVALUATE, {"data/SST-2": None}, "no such folder"),
    "evaluate: wrong columns": ((*EVALUATE, "--predict", "x.tsv"), {"x.tsv": "text\nb\n"},
                                "x.tsv:1: no column 'sentence'"),
    "export: broken run.json": (EXPORT, {"run/run.json": "[1]"}, "a JSON object"),
    "export: no weights": (
        EXPORT, {"run/SHA256SUMS": None, "run/model.safetensors": "x"}, "not weights"),
    "resume: broken metrics": (RESUME, {"run/metrics.json": "{"}, "json:1: broken JSON"),
    "resume: foreign metrics": (RESUME, {"run/metrics.json": {"accuracy": 1}}, "metrics.json: "),
    "overwrite: somebody else's folder": ((*AGAIN, "--output", "notes"), {"notes/a.txt": "x"},
                                          "notes: does not hold a run"),
    "resume: somebody else's folder": ((*RESUME[:2], *TRAIN, "--output", "notes"),
                                       {"notes/a.txt": "x"}, "notes: does not hold a run"),
    "sweep: a CSV in two": (("tools.sweep", "--csv", "x.csv"), {"x.csv": "key,task\n1\n"},
                            "mend or remove"),
    "sweep: somebody else's file": (("tools.sweep", "--csv", "x.csv"), {"x.csv": "Dear diary\n"},
                                    "x.csv: holds something else"),
    "export: somebody else's file": ((*EXPORT, "--csv", "x.csv"), {"x.csv": "Dear diary\n"},
                                     "x.csv: holds something else"),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case, place):
    words, changes, said = FILES[case]
    put(place.folder, changes)
    before = digests(place.folder)
    check_refused(place(*words), said)
    assert digests(place.folder) == before


def test_answers_that_are_not_in_their_context_are_counted(place):
    rows = squad()
    for qa in rows["data"][0]["paragraphs"][0]["qas"][:3]:
        qa["answers"][0]["text"] = "zzz"
    put(place.folder, {SQUAD_TRAIN: rows})
    done = place.train("--dry-run", *SQUAD, output="new")
    assert "3 answers are not where the file says; not trained on" in done.stdout, done.stderr


# ------------------------------------------------------------------------------------- flags

FLAGS = {  # flags of train.py: what is said
    "--keep 0": "'0' is not a number above 0 and at most 1",
    "--keep 1.01": "'1.01' is not a number above 0 and at most 1",
    "--keep 10%": "'10%' is not a number",
    "--keep 10": "10 % is 0.1",
    "--keep nan": "'nan' is not a number",
    "--lr inf": "'inf' is not a number",
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
    "--method l0 --penalty 1e308": "a number from 0 to 1e6, or paper",
    "--temperature 1e300": "at most 10000",
    "--steps 1": "1 steps cannot hold the schedule",
    "--task SST-2": "--task SST-2 is not known; did you mean sst2?",
    "--hold 0.5 --cooldown 0.5": "the ramp 0",
    "--cooldown 0.001": "cool-down 0.001 is 0",
    "--max-length 2": "--max-length 2",
    "--max-length 129": "has positions for 128 tokens",
    "--model ./nowhere": "nowhere",
    "--model small:3": "small:LAYERSxWIDTH",
    "--device mps": "has none",
    "--data nowhere": "--data nowhere: no such folder",
    "--data sample --task wnli": "there is no sample",
    "--teacher none": "none: no such folder",
    "--task squad --max-length 99 --doc-stride 9 --teacher run": "not fine-tuned",
    "--teacher run --task rte": "run: has the labels 0, 1, but no entailment",
    "--output run": "run: holds files already; choose another --output",
    f"--output {SST2_DEV}": "dev.tsv is a file, not a folder",
    f"--output {SST2_DEV}/run": "dev.tsv is a file, not a folder",
    "--output run --resume --overwrite": "give one of them",
}
OTHER_FLAGS = {  # the same of other programs
    "evaluate.py nowhere": "nowhere: no such folder",
    "evaluate.py run --text a b": "this task takes sentence",
    "evaluate.py run --text \udce9": "--text: not UTF-8",
    "evaluate.py run --text a --predict x.tsv": "not allowed with",
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
    before = digests(place.folder)
    if flags in FLAGS:
        check_refused(place.train(*flags.split(), output="new"), FLAGS[flags])
        check_refused(place.train(*flags.split(), "--dry-run", output="new"), FLAGS[flags])
    else:
        check_refused(place(*flags.split()), OTHER_FLAGS[flags])
    assert digests(place.folder) == before
