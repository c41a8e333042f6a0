"""What goes wrong while running: one clear line, the right status, and nothing lost."""

import importlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from tiny import TINY, Trap, check_refused, digests

import train
from support import checkpoints, files


def alone(place, script, *words):
    """train.py in a process that may mount: `script` first; "$@" in it is the command."""
    command = [sys.executable, str(ROOT / "train.py"), "--data", "data", "--model", "model",
               "--max-length", "16", "--task", "sst2", *TINY, *words]
    found = subprocess.run(["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh",
                            *command], cwd=place.folder, capture_output=True, text=True)
    return found.returncode, found.stdout, found.stderr


@pytest.fixture(scope="module")
def mounts():
    """Skip where a process may not mount file systems of its own."""
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


@pytest.mark.parametrize("message, said", [
    ("CUDA out of memory. Tried to allocate 2 GiB", "a smaller --batch-size"),
    ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", "--grad-accum"),
    ("[gloo] Connection closed by peer [127.0.0.1]:1", "try --resume"),
])
def test_what_torch_says_in_a_page_is_one_line(message, said, capsys):
    def fails():
        raise RuntimeError(message)

    with pytest.raises(SystemExit) as end:
        files.run_main(fails)
    check_refused((end.value.code, *capsys.readouterr()), said, status=1)


def test_other_errors_of_torch_are_not_hidden():
    def fails():
        raise RuntimeError("a mistake in the program")

    with pytest.raises(RuntimeError, match="a mistake"):
        files.run_main(fails)


def test_evaluation_needs_no_training_rows(place):
    (place.folder / "data" / "SST-2" / "train.tsv").unlink()
    status, said, error = place("evaluate.py", "run")
    assert status == 0 and "accuracy" in said, error


def test_a_new_run_leaves_nothing_of_the_old_one(place):
    assert place("export.py", "run")[0] == 0
    assert place("evaluate.py", "run", "--predict", "data/SST-2/dev.tsv")[0] == 0
    assert (place.folder / "run" / "predictions-dev.tsv").exists()
    assert place.train("--overwrite", "--keep", "0.5")[0] == 0
    left = {p.name for p in (place.folder / "run").iterdir()}
    assert "metrics.json" in left and not left & {"export", "predictions-dev.tsv"}


CHECKPOINTS = {
    "empty": b"", "text": b"hello", "a pickle with code": pickle.dumps(Trap()),
    "other contents": {"settings": "{}", "t": 3}, "a list": [1, 2],
    "cut": None,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_broken_checkpoints(case, place, monkeypatch):
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
    choose = checkpoints.choose_folder

    def choose_then_lose(*arguments):  # the other one is done before this one has read its rows
        folder = choose(*arguments)
        shutil.copytree("run", folder)
        return folder

    monkeypatch.setattr(checkpoints, "choose_folder", choose_then_lose)
    check_refused(place.train(output="new"), "new: another run was there first")
    assert digests(place.folder / "new") == digests(place.folder / "run")


# ------------------------------------------------------------------------- the command lines

PROGRAMS = ("train.py", "evaluate.py", "export.py", "tools.sweep", "tools.figures",
            "tools.tables", "tools.sparse", "tools.benchmark", "tools.claims", "sample.pretrain")


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_a_screen(program, place):
    status, said, error = place(program, "--help")
    lines = said.splitlines()
    assert status == 0 and not error and len(lines) <= 50
    assert max(map(len, lines)) <= 106 and "\x1b" not in said and "\r" not in said
    assert said.startswith("usage: ") and program.split(".")[-2 if ".py" in program else -1] in said
    if program == "train.py":
        for group in ("what:", "data and model:", "training (", "machine and output:"):
            assert any(line.startswith(group) for line in lines)
        for flag, default in (("--keep", "0.1"), ("--task", "mnli"), ("--save-every", "500")):
            assert any(flag in line and f"(default {default})" in line for line in lines)
        assert all(len(line.split()) > 2 for line in lines if line.startswith("  --"))
    assert f"python {program}" in said or f"python -m {program}" in said


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_flag_is_one_line(program, place):
    folder = ["run"] * (program in ("evaluate.py", "export.py"))
    status, said, error = place(program, *folder, "--hepl")
    assert status == 2 and not said and "--hepl" in error and error.count("\n") == 1


@pytest.mark.parametrize("words", [
    ["evaluate.py", "run"], ["export.py", "run"], ["tools.sparse", "--quick"], ["tools.tables"],
    ["tools.benchmark", "--quick"], ["sample.pretrain"],
    ["tools.figures", "--results", "results", "--output", "pictures"],
], ids=lambda words: words[0])
def test_ctrl_c_is_one_line(words, place, monkeypatch):
    module = importlib.import_module(words[0].removesuffix(".py"))
    monkeypatch.setenv("MOVEMENT_CACHE", str(place.folder / "cache"))
    if words[0] == "tools.figures" and module.plt is None:
        pytest.skip("pictures need matplotlib")
    if words[0] in ("tools.tables", "tools.figures"):  # which could be over before the signal comes
        monkeypatch.setattr("tools.rows.read", lambda path: time.sleep(9))
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
