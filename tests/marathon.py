"""Hours of bad luck: kills at any moment, flipped bits, mutated files. Not part of the suite.

    python tests/marathon.py                             250 kills, 50 bits a file, 10,000 files
    python tests/marathon.py --kills 20 --flips 5 --mutations 500 --commands 10 --seed 1

Each part works in a temporary folder with a tiny model and ends in an AssertionError that names
the seed's step, or in a line with its counts. tests/test_nothing_lost.py does a small share.
"""

import argparse
import contextlib
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import conftest
import numpy as np
from test_fuzz import damage
from tiny import TRAIN, Place, digests, write_data, write_model

import bert
import data
from support import checkpoints, squad
from support.files import UserError
from support.tokenizer import load_tokenizer
from tools import rows

METHODS = ("dense", "random", "magnitude", "l0", "movement", "soft_movement")
SAME = ("model.safetensors", "pruning.safetensors", "log.jsonl")  # in every run of a method
SWEEP = ("tools.sweep", *TRAIN, "--methods", "movement,magnitude", "--csv", "rows.csv")


@contextlib.contextmanager
def scene():
    """A folder with data/ and model/, in which the commands are at work."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_data(Path("data"))
        write_model(Path("model"))
        yield Place(Path(folder))


# ------------------------------------------------------------------------------------- kills


def kill(rng: random.Random, seconds: float, *words) -> bool:
    """SIGKILL a command at a moment of its first seconds → was it still at work?"""
    process = subprocess.Popen(conftest.argv(*words), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(rng.uniform(0.3, 1) * seconds)
    at_work = process.poll() is None
    process.kill()
    process.wait()
    return at_work


def time_of(*words) -> float:
    began = time.monotonic()
    subprocess.run(conftest.argv(*words), check=True, capture_output=True)
    return time.monotonic() - began


def kills(count: int, seed: int) -> None:
    """Every method's run, from scratch and over an earlier result, its export, and a sweep."""
    rng, hits = random.Random(seed), 0
    with scene() as place:
        for method in METHODS[:count]:
            place.train("--method", method, output=f"whole-{method}").succeeded()
            place("export.py", f"whole-{method}").succeeded()
        words = ("train.py", *TRAIN, "--save-every", 3)
        seconds = time_of(*words, "--output", "timed")
        for i in range(count):
            method, kind = METHODS[i % 6], ("new", "overwrite", "export", "sweep")[i // 6 % 4]
            whole, run = Path(f"whole-{method}"), Path("run")
            shutil.rmtree(run, ignore_errors=True)
            flags = (*words, "--method", method, "--output", run)
            if kind in ("overwrite", "export"):
                shutil.copytree(whole, run)
            earlier = digests(run)
            if kind == "sweep":
                hits += kill(rng, 3 * seconds, *SWEEP)
                before = rows.read(Path("rows.csv"))
                place(*SWEEP).succeeded()
                assert rows.read(Path("rows.csv"))[: len(before)] == before, i
                assert len(rows.read(Path("rows.csv"))) == 2, i
                Path("rows.csv").unlink()
                continue
            if kind == "export":
                hits += kill(rng, seconds, "export.py", run)
                place("export.py", run).succeeded()
            else:
                over = ["--overwrite"] * (kind == "overwrite")
                for _ in range(rng.randint(1, 3)):
                    hits += kill(rng, seconds, *flags, *over)
                    over = ["--resume"]
                    if kind == "overwrite" and not (run / ".whole").exists():
                        assert (run / "metrics.json").exists(), f"kill {i}: the result is gone"
                again = place(*flags, rng.choice(["--resume", "--overwrite"]))
                assert again.returncode == 0, f"kill {i}: {again.stderr}"
            found = digests(run)
            for name in SAME if kind != "export" else earlier:
                assert found[name] == digests(whole)[name], f"kill {i}: {kind}, {method}, {name}"
            assert not [path for path in run.rglob(".*") if path.name != ".lock"], f"kill {i}"
    print(f"{count} rounds of kills, {hits} of them at work: nothing lost, the same bits")


# ---------------------------------------------------------------------------------- one bit


def flips(count: int, seed: int) -> None:
    """A bit of every file that a run leaves, finished or not: refused, or proved harmless."""
    rng, outcome = random.Random(seed), Counter()
    with scene() as place:
        place.train(output="run").succeeded()
        place("export.py", "run").succeeded()
        result = {name: text for name, text in digests(Path("run")).items() if name in SAME}
        with mock.patch.object(checkpoints.Run, "finish", side_effect=KeyboardInterrupt):
            place.train("--save-every", 3, output="half")
        for path in [p for top in ("run", "half") for p in Path(top).rglob("*") if p.is_file()]:
            whole = path.read_bytes()
            for at in (rng.randrange(len(whole)) for _ in range(count if whole else 0)):
                flipped = bytearray(whole)
                flipped[at] ^= 1 << rng.randrange(8)
                outcome[use(place, path, flipped, result, f"{path}, byte {at}")] += 1
            assert use(place, path, whole, result, f"{path} as it was") == "harmless"
    print(f"one bit flipped: {dict(outcome)}")


def use(place, path: Path, content: bytes, result: dict, where: str) -> str:
    """Use a folder in which `path` has this content; AssertionError if damage goes unnoticed."""
    whole = content == path.read_bytes()
    shutil.rmtree("copy", ignore_errors=True)
    shutil.copytree(path.parts[0], "copy")
    Path("copy", *path.parts[1:]).write_bytes(content)
    if path.parts[0] == "half":
        done = place.train("--save-every", 3, "--resume", output="copy")
        same = done.returncode == 0 and result.items() <= digests(Path("copy")).items()
    elif path.name == "compact.safetensors.xz":
        done = place("evaluate.py", "copy/export")
        same = done.returncode == 0  # evaluate.py does not read it; its loader has a checksum
    else:
        inside = path.parts[1:-1]
        done = place("evaluate.py", Path("copy", *inside))
        same = done.returncode == 0 and (whole or path.name not in result)
    check_plain(done, where)
    assert done.returncode == 2 or same, f"{where}: unnoticed"
    return "refused" if done.returncode == 2 else "harmless"


# ---------------------------------------------------------------------------- mutated files


def readers() -> dict:
    """File → what reads it."""
    texts = data.Rows([("a b", "good")] * 4, np.zeros(4))

    def tokens():
        data.encode_texts(texts, load_tokenizer(Path("model")), 8)

    return {
        "data/SST-2/train.tsv": lambda: data.read(data.TASKS["sst2"], Path("data"), "train"),
        "data/STS-B/dev.tsv": lambda: data.read(data.TASKS["stsb"], Path("data"), ""),
        "data/SQuAD/dev-v1.1.json": lambda: squad.encode(
            squad.read(Path("data/SQuAD/dev-v1.1.json")), load_tokenizer(Path("model")), 20, 4, 8),
        "model/config.json": lambda: bert.load("model", "classification", 2),
        "model/model.safetensors": lambda: bert.load("model", "classification", 2),
        "model/vocab.txt": tokens, "model/tokenizer.json": tokens,
        "rows.csv": lambda: rows.read(Path("rows.csv"))}


def mutations(count: int, commands: int, seed: int) -> None:
    rng, outcome = random.Random(seed), Counter()
    with scene() as place, open(os.devnull, "w") as nowhere:
        load_tokenizer(Path("model")).save("model/tokenizer.json")
        rows.append(Path("rows.csv"), dict.fromkeys(rows.COLUMNS, "") | {"key": "1", "f1": "2"})
        found = readers()
        for i in range(count + commands):
            path = Path(rng.choice([*found]))
            whole = path.read_bytes()
            path.write_bytes(damage(whole, rng))
            if i >= count:
                words = ("--task", "squad", "--max-length", 99) if "SQuAD" in str(path) else ()
                done = (place("tools.sweep", "--csv", path, "--keep", "2") if path.suffix == ".csv"
                        else place.train(*words, "--steps", 8, output=f"new{i}"))
                check_plain(done, f"mutation {i} of {path}")
                outcome[done.returncode] += 1
            else:
                with contextlib.redirect_stderr(nowhere):
                    try:
                        found[str(path)]()
                        outcome["read"] += 1
                    except UserError as error:
                        assert len(str(error)) <= 400 and str(error).isprintable(), (i, path)
                        outcome["refused"] += 1
            path.write_bytes(whole)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    assert memory <= 4, f"{memory} GB"
    print(f"mutated files: {dict(outcome)}, at most {memory:.1f} GB")


def check_plain(done, where: str) -> None:
    """No traceback, no other status, no long message."""
    assert done.returncode in (0, 1, 2), f"{where}: {done}"
    assert "Traceback" not in done.stderr, f"{where}: {done.stderr}"
    if done.returncode:
        error = done.stderr.strip().splitlines()[-1]
        assert error.startswith("error: ") and len(error) <= 400, f"{where}: {error}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("kills", 250), ("flips", 50), ("mutations", 10_000), ("commands", 100),
                          ("seed", 0)):
        p.add_argument(f"--{name}", type=int, default=default)
    args = p.parse_args()
    mutations(args.mutations, args.commands, args.seed)
    flips(args.flips, args.seed)
    kills(args.kills, args.seed)


if __name__ == "__main__":
    main()
