"""What goes wrong while running: one clear line, the right status, and nothing lost."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import argv
from tiny import TRAIN, Done, check_refused, check_same_bits, digests

from sample import pretrain
from support import files, state

CHECKPOINT = Path("new/checkpoint.safetensors")


def alone(place, script, *words):
    """train.py in a process that may mount: `script` first; "$@" in it is the command."""
    done = subprocess.run(["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh",
                           *argv("train.py", *TRAIN, *words)], capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def mounts():
    """Skip where a process may not mount file systems of its own."""
    try:
        subprocess.run(["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "tmpfs",
                        "/mnt"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a file system: {error}")


@pytest.mark.parametrize("room, file", [(2, "run.json"), (60, "checkpoint.safetensors"),
                                        (24, "model.safetensors")])
def test_a_full_disk(room, file, mounts, place):
    # the disk holds earlier/, and `room` kB more; 24 are enough for all that comes before the model
    words = ("--save-every", "1000") if file == "model.safetensors" else ()
    (place.folder / "disk").mkdir()
    done = alone(
        place, f"mount -t tmpfs -o size=64m tmpfs disk && cp -r run disk/earlier && "
        f"free=$(df -k --output=avail disk | tail -1) && "
        f"dd if=/dev/zero of=disk/fill bs=1k count=$((free - {room})) 2>/dev/null; "
        f'"$@"; status=$?; rm disk/fill; cp -r disk left; exit $status', *words,
        "--output", "disk/new")
    check_refused(done, f"disk/new/{file}: No space left on device; make room", status=1)
    run, left = place.folder / "run", place.folder / "left"
    assert digests(left / "earlier") == digests(run)
    assert not (left / "new" / file).exists()
    # with room again, it goes on and ends as if nothing had been
    place.train(*words, "--resume", output="left/new").succeeded()
    check_same_bits(left / "new", run)


@pytest.mark.parametrize("setting, words", [
    ("", ("--output", "disk/new")), ("MOVEMENT_CACHE=disk/cache", ("--data", "sample"))])
def test_a_read_only_folder(setting, words, mounts, place):
    (place.folder / "disk").mkdir()
    script = f'mount -t tmpfs tmpfs disk && mount -o remount,ro disk && {setting} "$@"'
    check_refused(alone(place, script, "--output", "new", *words), "disk cannot be written to")
    assert not (place.folder / "new").exists()


def test_a_loss_that_turns_nan_keeps_the_last_checkpoint(place, change_loss):
    change_loss(25, lambda loss: loss * torch.nan)
    check_refused(place.train(output="new"), "the loss is nan at step 25", status=1)
    saved = state.read_checkpoint(CHECKPOINT, "damaged")
    assert saved["t"] == 20 and not (place.folder / "new" / "metrics.json").exists()
    assert all(x.isfinite().all() for x in saved.values() if isinstance(x, torch.Tensor))
    assert "going on from step 20 of 40" in place.train("--resume", output="new").succeeded()
    check_same_bits(place.folder / "new", place.folder / "run")  # log.jsonl too


def test_a_gradient_that_turns_infinite_never_reaches_a_checkpoint(place, change_loss):
    def change(loss):  # finite itself
        loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss

    change_loss(19, change)
    done = place.train(output="new")
    assert done.returncode == 1 and "step 19" in done.stderr and "gradient" in done.stderr
    assert state.read_checkpoint(CHECKPOINT, "damaged")["t"] == 10


@pytest.mark.parametrize("message, said", [
    ("CUDA out of memory. Tried to allocate 2 GiB", "a smaller --batch-size"),
    ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", "--grad-accum"),
    ("InvalidCxxCompiler: No working C++ compiler found in torch", "--compile needs"),
    ("Failed to find C compiler. Please specify via CC", "--compile needs"),
    ("[gloo] Connection closed by peer [127.0.0.1]:1", "try --resume"),
])
def test_what_torch_says_in_a_page_is_one_line(message, said, capsys):
    def fails():
        raise RuntimeError(message)

    with pytest.raises(SystemExit) as end:
        files.run_main(fails)
    check_refused(Done(end.value.code, *capsys.readouterr()), said, status=1)


def test_other_errors_of_torch_are_not_hidden():
    def fails():
        raise RuntimeError("a mistake in the program")

    with pytest.raises(RuntimeError, match="a mistake"):
        files.run_main(fails)


def test_evaluation_needs_no_training_rows(place):
    (place.folder / "data" / "SST-2" / "train.tsv").unlink()
    assert "accuracy" in place("evaluate.py", "run").succeeded()


def test_a_new_run_leaves_nothing_of_the_old_one(place):
    place("export.py", "run").succeeded()
    place("evaluate.py", "run", "--predict", "data/SST-2/dev.tsv").succeeded()
    assert (place.folder / "run" / "predictions-dev.tsv").exists()
    place.train("--overwrite", "--keep", "0.5").succeeded()
    left = {p.name for p in (place.folder / "run").iterdir()}
    assert "metrics.json" in left and not left & {"export", "predictions-dev.tsv"}


# ------------------------------------------------------------------------- the command lines

PROGRAMS = ("train.py", "evaluate.py", "export.py", "tools.sweep", "tools.figures",
            "tools.tables", "tools.sparse", "tools.benchmark", "tools.claims", "sample.pretrain")


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_a_screen(program, place):
    printed = place(program, "--help").succeeded()
    lines = printed.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 106 and not set("\r\x1b") & set(printed)
    assert printed.startswith("usage: ")
    assert f"python {program}" in printed or f"python -m {program}" in printed


def test_help_of_training_has_groups_and_defaults(place):
    lines = place("train.py", "--help").succeeded().splitlines()
    for group in ("what:", "data and model:", "training (", "machine and output:"):
        assert any(line.startswith(group) for line in lines)
    for flag, default in (("--keep", "0.1"), ("--seed", "0"), ("--save-every", "500")):
        assert any(flag in line and f"(default {default})" in line for line in lines)
    assert all(len(line.split()) > 2 for line in lines if line.startswith("  --"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_flag_is_one_line(program, place):
    folder = ["run"] * (program in ("evaluate.py", "export.py"))
    done = place(program, *folder, "--hepl")
    check_refused(done, "--hepl")
    assert not done.stdout


@pytest.mark.parametrize("words, function", [
    ("evaluate.py run", "bert.read_weights"), ("export.py run", "bert.read_weights"),
    ("tools.sparse --quick", "tools.sparse.measure"), ("tools.tables", "tools.tables.fill"),
    ("tools.benchmark --quick", "tools.benchmark.in_turn"),
    ("tools.figures --results results", "tools.rows.read"),
    ("sample.pretrain", "sample.generate.pretraining_documents"),
])
def test_ctrl_c_is_one_line(words, function, place, monkeypatch):
    def press_ctrl_c(*_):
        raise KeyboardInterrupt

    if words.startswith("tools.figures"):
        pytest.importorskip("matplotlib")
    monkeypatch.setenv("MOVEMENT_CACHE", "cache")
    monkeypatch.setattr(pretrain, "THREADS", 1)  # it would leave this process with two
    monkeypatch.setattr(function, press_ctrl_c)
    files.write_atomically("results/a.csv", "")
    before = digests(place.folder)
    done = place(*words.split())
    assert (done.returncode, done.stderr) == (130, "stopped by Ctrl-C\n")
    assert before.items() >= {name: digest for name, digest in digests(place.folder).items()
                              if not name.startswith("cache/")}.items()


def test_output_is_plain_where_it_is_not_a_terminal(place):
    for done in (place.train(output="new"), place("evaluate.py", "new"), place("export.py", "new")):
        assert not done.stderr and not set("\r\x1b\b") & set(done.succeeded())


def test_a_terminal_without_greek_is_no_reason_to_stop(place):
    words = argv("train.py", *TRAIN, "--output", "new", "--dry-run")
    done = subprocess.run(words, capture_output=True, text=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "task" in done.stdout, done.stderr
