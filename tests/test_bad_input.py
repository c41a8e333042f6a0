"""Wrong input through the command line: one clear line, the right status, and nothing lost."""

import hashlib
import importlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from conftest import ROOT

import bert
import files

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "good", "bad", "."]
CONFIG = bert.Config(vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=1,
                     num_attention_heads=2, intermediate_size=64, max_position_embeddings=128,
                     hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
TINY = ("--method", "movement", "--steps", "40", "--batch-size", "8", "--save-every", "10",
        "--lr", "1e-3")
SQUAD = ("--max-length", "99", "--doc-stride", "9")


def tsv(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


GOOD, BAD = ("a good b .", "1"), ("a bad c .", "0")
SST2 = tsv(("sentence", "label"), *[GOOD, BAD] * 20)
PAIRS = [("0", "a b", "a c", "entailment"), ("1", "a b", "b", "not_entailment")] * 20
RTE = tsv(("index", "sentence1", "sentence2", "label"), *PAIRS)
COLA = tsv(*[("s", "1", "", "a b ."), ("s", "0", "*", "b b a")] * 20)
STSB = tsv(("sentence1", "sentence2", "score"), *[("a b", "a", "2.5"), ("c", "b", "0.000")] * 20)


def squad(**change):
    answer = {"text": "good b", "answer_start": 2} | change
    return {"data": [{"title": "t", "paragraphs": [{"context": "a good b .", "qas": [
        {"id": str(i), "question": "a ?", "answers": [dict(answer)]} for i in range(40)]}]}]}


def write_data(folder):
    for place, text in (("SST-2", SST2), ("RTE", RTE), ("CoLA", COLA), ("STS-B", STSB)):
        files.write_atomically(folder / place / "train.tsv", text)
        files.write_atomically(folder / place / "dev.tsv", text)
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        files.write_json(folder / "SQuAD" / name, squad())


def write_model(folder):
    torch.manual_seed(0)
    bert.save(bert.create(CONFIG, "classification", 2), folder)
    files.write_atomically(folder / "vocab.txt", "".join(word + "\n" for word in WORDS))


def digests(folder):
    """name → digest of everything in a folder, but for what a running process keeps there."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


class Place:
    """A folder with data/, model/ and run/, and the commands at work in it."""

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys

    def __call__(self, program, *words):
        """Run a program's main() in this process → status, standard output, standard error."""
        self.monkeypatch.setattr(sys, "argv", [program, *map(str, words)])
        self.capsys.readouterr()
        try:
            files.run_main(importlib.import_module(program.removesuffix(".py")).main)
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *self.capsys.readouterr()

    def train(self, *words, task="sst2", output="run"):
        return self("train.py", "--data", "data", "--model", "model", "--max-length", "16",
                    "--task", task, *TINY, "--output", output, *words)


@pytest.fixture(scope="module")
def ready(tmp_path_factory, cache):
    """data/, model/ and run/, a finished run, to be copied by each test."""
    folder = tmp_path_factory.mktemp("ready")
    write_data(folder / "data")
    write_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [
            "train.py", "--data", "data", "--model", "model", "--task", "sst2", *TINY,
            "--max-length", "16", "--output", "run"])
        importlib.import_module("train").main()
    return folder


@pytest.fixture
def place(ready, tmp_path, monkeypatch, capsys):
    shutil.copytree(ready, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, monkeypatch, capsys)


def check_refused(found, said, status=2):
    code, _, error = found
    assert said in error and "Traceback" not in error, error
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 500, error
    assert code == status
    assert "\r" not in error and "\x1b" not in error


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
                        "dev-v1.1.json: not UTF-8"),
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


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def trapped(folder):
    (folder / "model" / "model.safetensors").unlink()
    (folder / "model" / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Trap()}))


def together(*changes):
    return lambda folder: [change(folder) for change in changes]


UP = "bert.encoder.layer.0.intermediate.dense.weight"
TENSOR = {"weight": torch.ones(2, 2)}
MODELS = {  # change, further words, what is said
    "no config": (put("model/config.json", None), "model/config.json: no such file"),
    "broken config": (put("model/config.json", '{"vocab_size": 11'), "config.json:1: broken JSON"),
    "config is a list": (put("model/config.json", "[]"), "config.json: a JSON object is"),
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
    "export: no run": (["export.py", "model"], put("x", ""), "model/run.json: no such file"),
    "resume: broken metrics": (["train.py", "--resume", "--output", "run"],
                               put("run/metrics.json", "{"), "metrics.json:1: broken JSON"),
    "resume: foreign metrics": (["train.py", "--resume", "--output", "run"],
                                put("run/metrics.json", {"accuracy": 1}), "metrics.json: "),
    "sweep: a CSV in two": (["sweep.py", "--csv", "x.csv"], put("x.csv", "key,task\n1\n"),
                            "x.csv: row 1"),
    "sweep: not UTF-8": (["sweep.py", "--csv", "x.csv"], put("x.csv", b"key\n\xff\n"), "x.csv: "),
    "sweep: a folder": (["sweep.py", "--csv", "run"], put("x", ""), "run: "),
    "sweep: a file for a folder": (["sweep.py", "--csv", DEV + "/x.csv"], put("x", ""), "dev.tsv"),
}


@pytest.mark.parametrize("case", RUN)
def test_folders_of_runs(case, place):
    words, change, said = RUN[case]
    change(place.folder)
    before = digests(place.folder)
    check_refused(place(*words), said)
    assert digests(place.folder) == before


# ------------------------------------------------------------- what goes wrong while running


def alone(place, script, *words):
    """train.py in a process that may mount: `script` first; "$@" in it is the command."""
    command = [sys.executable, str(ROOT / "train.py"), "--data", "data", "--model", "model",
               "--max-length", "16", "--task", "sst2", *TINY, *words]
    found = subprocess.run(["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh",
                            *command], cwd=place.folder, capture_output=True, text=True)
    return found.returncode, found.stdout, found.stderr


@pytest.fixture(scope="module")
def mounts():
    """Mounts of a process's own, gone with it; skip where the system does not let one have them."""
    try:
        subprocess.run(["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "tmpfs",
                        "/mnt"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a file system: {error}")


@pytest.mark.parametrize("room, file", [(2, "run.json"), (60, "checkpoint.pt"),
                                        (24, "model.safetensors")])
def test_a_full_disk(room, file, mounts, place):
    # the disk holds earlier/, and `room` kB more; 24 are enough for all that comes before the model
    words = ("--save-every", "1000") if file == "model.safetensors" else ()
    (place.folder / "disk").mkdir()
    status, _, error = found = alone(
        place, f"mount -t tmpfs -o size=64m tmpfs disk && cp -r run disk/earlier && "
        f"free=$(df -k --output=avail disk | tail -1) && "
        f"dd if=/dev/zero of=disk/fill bs=1k count=$((free - {room})) 2>/dev/null; "
        f'"$@"; status=$?; rm disk/fill; cp -r disk left; exit $status', *words,
        "--output", "disk/new")
    check_refused(found, f"disk/new/{file}: No space left on device; make room", status=1)
    assert digests(place.folder / "left" / "earlier") == digests(place.folder / "run")
    assert not (place.folder / "left" / "new" / file).exists()
    # with room again, it goes on and ends as if nothing had been
    status, _, error = place.train(*words, "--resume", output="left/new")
    assert status == 0, error
    assert ((place.folder / "run" / "model.safetensors").read_bytes()
            == (place.folder / "left" / "new" / "model.safetensors").read_bytes())


def test_a_read_only_folder(mounts, place):
    (place.folder / "disk").mkdir()
    script = 'mount -t tmpfs tmpfs disk && mount -o remount,ro disk && "$@"'
    check_refused(alone(place, script, "--output", "disk/new"), "disk cannot be written to")
    script = "export MOVEMENT_CACHE=disk/cache; " + script
    check_refused(alone(place, script, "--output", "new"), "disk cannot be written to")
    assert not (place.folder / "new").exists()


def test_a_loss_that_turns_nan_keeps_the_last_checkpoint(place, monkeypatch):
    import train

    true_loss, calls = train.task_loss, []

    def loss(*arguments):
        calls.append(0)
        return true_loss(*arguments) * (torch.nan if len(calls) == 26 else 1)

    monkeypatch.setattr(train, "task_loss", loss)
    check_refused(place.train(output="new"), "the loss is nan at step 25", status=1)
    state = torch.load("new/checkpoint.pt", weights_only=True)
    assert state["t"] == 20 and not (place.folder / "new" / "metrics.json").exists()
    assert all(x.isfinite().all() for x in state["parts"][0].values())
    status, said, _ = place.train("--resume", output="new")
    assert status == 0 and "going on from step 20 of 40" in said
    for name in ("model.safetensors", "pruning.safetensors"):
        assert (place.folder / "new" / name).read_bytes() == (
            place.folder / "run" / name).read_bytes()


def test_a_gradient_that_turns_infinite_never_reaches_a_checkpoint(place, monkeypatch):
    import train

    true_loss, calls = train.task_loss, []

    def loss(*arguments):  # finite itself
        calls.append(0)
        found = true_loss(*arguments)
        if len(calls) == 20:
            found.register_hook(lambda gradient: gradient * torch.inf)
        return found

    monkeypatch.setattr(train, "task_loss", loss)
    code, _, error = place.train(output="new")
    assert code == 1 and "step 19" in error and "gradient" in error, error
    assert torch.load("new/checkpoint.pt", weights_only=True)["t"] == 10


CHECKPOINTS = {
    "empty": b"", "text": b"hello", "a pickle with code": pickle.dumps(Trap()),
    "other contents": {"settings": "{}", "t": 3}, "a list": [1, 2],
    "cut": None,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_broken_checkpoints(case, place, monkeypatch):
    import train

    true_loss = train.task_loss
    monkeypatch.setattr(train, "task_loss", lambda *rest: true_loss(*rest) * torch.nan)
    path = place.folder / "new" / "checkpoint.pt"
    place.train(output="new")  # ends at once, so that all but a checkpoint is there
    content = CHECKPOINTS[case]
    if case == "cut":
        torch.save({"settings": "{}", "parts": [torch.ones(1000)]}, path)
        content = path.read_bytes()[:-500]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    before = path.read_bytes()
    check_refused(place.train("--resume", output="new"), "new/checkpoint.pt: ")
    assert path.read_bytes() == before and not (place.folder / "sprung").exists()


def test_two_runs_in_one_folder(place):
    words = [sys.executable, str(ROOT / "train.py"), "--data", "data", "--model", "model",
             "--max-length", "16", "--task", "sst2", *TINY, "--steps", "100000", "--output", "new"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        try:
            end = time.time() + 60
            while not (place.folder / "new" / "checkpoint.pt").exists():
                assert time.time() < end and first.poll() is None
                time.sleep(0.02)
            check_refused(place.train(output="new"), "new: holds files already")
            for flag in ("--overwrite", "--resume"):
                check_refused(place.train(flag, "--steps", "100000", output="new"),
                              "new: another run is at work there")
            assert first.poll() is None and (place.folder / "new" / "checkpoint.pt").exists()
        finally:
            first.kill()


def test_two_runs_that_began_with_the_folder_still_free(place, monkeypatch):
    import runs

    choose = runs.choose_folder

    def choose_then_lose(*arguments):  # the other one is done before this one has read its rows
        folder = choose(*arguments)
        shutil.copytree("run", folder)
        return folder

    monkeypatch.setattr(runs, "choose_folder", choose_then_lose)
    check_refused(place.train(output="new"), "new: another run was there first")
    assert digests(place.folder / "new") == digests(place.folder / "run")


# ------------------------------------------------------------------------- the command lines

PROGRAMS = ("train", "evaluate", "export", "sweep", "figures", "tables", "pretrain", "sparse",
            "benchmark")


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_a_screen(program, place):
    status, said, error = place(program, "--help")
    lines = said.splitlines()
    assert status == 0 and not error and len(lines) <= 50
    assert max(map(len, lines)) <= 106 and "\x1b" not in said and "\r" not in said
    assert said.startswith(f"usage: {program}")
    if program == "train":
        for group in ("what:", "data and model:", "training (", "machine and output:"):
            assert any(line.startswith(group) for line in lines)
        for flag, default in (("--keep", "0.1"), ("--task", "mnli"), ("--save-every", "500")):
            assert any(flag in line and f"(default {default})" in line for line in lines)
        assert all(len(line.split()) > 2 for line in lines if line.startswith("  --"))
    if program != "pretrain":
        assert f"python {program}.py" in said


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_flag_is_one_line(program, place):
    status, said, error = place(program, *["run"] * (program in ("evaluate", "export")), "--hepl")
    assert status == 2 and not said and "--hepl" in error
    if program != "pretrain":
        assert error.count("\n") == 1


@pytest.mark.parametrize("words", [
    ["evaluate.py", "run"], ["export.py", "run"], ["sparse.py", "--quick"], ["tables.py"],
    ["benchmark.py", "--quick"], ["pretrain.py"],
    ["figures.py", "--results", "results", "--output", "pictures"],
], ids=lambda words: words[0])
def test_ctrl_c_is_one_line(words, place, monkeypatch):
    module = importlib.import_module(words[0].removesuffix(".py"))
    monkeypatch.setenv("MOVEMENT_CACHE", str(place.folder / "cache"))
    if words[0] == "figures.py" and module.plt is None:
        pytest.skip("pictures need matplotlib")
    if words[0] in ("tables.py", "figures.py"):  # which could be over before the signal comes
        monkeypatch.setattr("rows.read", lambda path: time.sleep(9))
        files.write_atomically("results/a.csv", "")
    if words[0] in ("evaluate.py", "export.py"):
        monkeypatch.setattr("bert.read_weights", lambda folder: time.sleep(9))
    before, handler = digests(place.folder), signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        status, _, error = place(*words)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert status == 130 and error.endswith("stopped by Ctrl-C\n") and "Traceback" not in error
    assert error.count("\n") == 1
    changed = {name for name, digest in digests(place.folder).items() if before.get(name) != digest}
    assert all(name.startswith("cache/") for name in changed), changed


def test_output_is_plain_where_it_is_not_a_terminal(place, command):
    for words in (["train.py", "--data", "data", "--model", "model", "--max-length", "16",
                   "--task", "sst2", *TINY, "--output", "new"], ["evaluate.py", "new"],
                  ["export.py", "new"]):
        done = command(*words, cwd=place.folder)
        assert done.returncode == 0 and done.stdout and not done.stderr, done.stderr
        assert not set("\r\x1b\b") & set(done.stdout)


def test_a_terminal_without_greek_is_no_reason_to_stop(place, command):
    done = command("train.py", "--data", "data", "--model", "model", "--max-length", "16", "--task",
                   "sst2", *TINY, "--output", "new", "--dry-run", cwd=place.folder,
                   env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "task" in done.stdout, done.stderr
