"""Files and errors: one line for the user, files that appear whole or not at all."""

import errno
import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Wrong input: the message names the thing and the mend; exit status 2."""


class RunError(Exception):
    """Failed while running: exit status 1."""


MENDS = {
    errno.ENOSPC: "make room, then start it again (train.py with --resume)",
    errno.EDQUOT: "make room, then start it again (train.py with --resume)",
    errno.EROFS: "name another place",
    errno.EACCES: "name another place, or change its permissions",
}

NO_MEMORY = ("out of memory; a smaller --batch-size, a shorter --max-length, or train.py's "
             "--grad-accum need less")
TORCH_ERRORS = {  # part of a message → what to say in its place
    "out of memory": NO_MEMORY, "not enough memory": NO_MEMORY, "allocate memory": NO_MEMORY,
    "onnection closed by peer": "another process of this run is gone; --resume goes on",
    "onnection reset by peer": "another process of this run is gone; --resume goes on",
    "NCCL": "another process of this run is gone, or cannot be reached; --resume goes on",
}


def run_main(main) -> None:
    """Run a command: one clear line on stderr in place of a traceback."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without λ gets a question mark
        stream.reconfigure(errors="replace")
    try:
        main()
        sys.stdout.flush()
    except (UserError, RunError) as error:
        fail(str(error), 2 if isinstance(error, UserError) else 1)
    except BrokenPipeError:  # such as python export.py RUN | head -3
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        fail("nobody reads the output any more", 1)
    except (RuntimeError, MemoryError) as error:  # torch has no kinds of its own for these
        known = next((said for sign, said in TORCH_ERRORS.items() if sign in str(error)), None)
        if known is None and not isinstance(error, MemoryError):
            raise
        fail(known or NO_MEMORY, 1)
    except OSError as error:
        mend = f"; {MENDS[error.errno]}" if error.errno in MENDS else ""
        fail(f"{error.filename or 'a file'}: {error.strerror or error}{mend}", 1)
    except KeyboardInterrupt:
        print("\n" * sys.stderr.isatty() + "stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)


def fail(message: str, status: int):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def check_writable(path: Path, file: bool = False) -> None:
    """UserError unless `path`, a folder or a file, could be made or written to; makes nothing."""
    if file and path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if there.is_file() and there != path.absolute():
        raise UserError(f"{path}: {there} is a file, not a folder; name another place")
    if not os.access(there, os.W_OK):
        raise UserError(f"{path}: {there} cannot be written to; name another place, or change its "
                        "permissions")


@contextmanager
def naming(path: Path):
    """An error while writing says where, which Python's own does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write beside `path`, flush to disk, then rename: a reader sees the old or the new file."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """What a killed process was writing there; only for one that has the folder to itself."""
    for part in folder.glob(".*.part"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


@contextmanager
def whole_folder(folder: Path):
    """A folder to fill beside `folder`, which then takes its place: complete or not at all."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    part.rename(folder)


def write_json(path: str | Path, value) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> dict:
    """A JSON object; a missing, broken or wrong file is a UserError that names it."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            value = json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON ({error.msg})") from None
    except (RecursionError, ValueError) as error:  # nested too deeply; thousands of digits
        raise UserError(f"{path}: broken JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is expected")
    return value


def cache_folder() -> Path:
    """$MOVEMENT_CACHE, default ~/.cache/movement-pruning."""
    return Path(os.environ.get("MOVEMENT_CACHE") or "~/.cache/movement-pruning").expanduser()


@contextmanager
def locked(folder: Path):
    """Hold `folder`.lock while making `folder`, so that a second process waits, then finds it."""
    check_writable(folder.parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except ImportError:  # Windows: no lock, so two processes should not begin there at once
            pass
        yield


def hold(path: Path, taken: str):
    """An open lock file that only one process can have; UserError(taken) for a second one."""
    file = open(path, "w")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows: no lock
        pass
    except OSError:
        file.close()
        raise UserError(taken) from None
    return file


def cache_path(name: str, key: str) -> Path:
    """The folder that cached(name, key, …) finds or makes, whether or not it exists yet."""
    return cache_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def cached(name: str, key: str, make) -> Path:
    """The folder cache_path(name, key), filled by `make(folder)` if it is not there yet.

    `key` holds everything that decides the content: sizes, seeds, steps, and a version number that
    goes up when code changes it. The folder appears complete or not at all; a second process
    waits for the first.
    """
    folder = cache_path(name, key)
    with locked(folder):
        if not folder.exists():
            with whole_folder(folder) as part:
                make(part)
    return folder
