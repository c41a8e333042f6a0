"""Errors as one line for the user, files that appear whole or not at all, locks, and the cache."""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


class UserError(Exception):
    """Wrong input: the message says what is wrong and how to fix it; exit status 2."""


class RunError(Exception):
    """A failure while running: exit status 1."""


ADVICE = {
    errno.ENOSPC: "make room, then run the command again (train.py with --resume)",
    errno.EACCES: "choose another place, or change its permissions",
}

NO_MEMORY = "out of memory; try a smaller --batch-size, a shorter --max-length or --grad-accum"
TORCH_ERRORS = {  # pattern in torch's message → what to say instead
    "(out of|not enough|allocate) memory": NO_MEMORY,
    "onnection (closed|reset) by peer|NCCL": "lost another process of this run; try --resume",
}


def run_main(main) -> None:
    """Run a command; an expected error becomes one clear line on stderr, not a traceback."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show λ shows ?
        stream.reconfigure(errors="replace")
    try:
        main()
        sys.stdout.flush()
    except (UserError, RunError) as error:
        fail(str(error), 2 if isinstance(error, UserError) else 1)
    except BrokenPipeError:  # for example python export.py RUN | head -3
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes as it exits
        fail("nothing reads the output any more", 1)
    except MemoryError:
        fail(NO_MEMORY, 1)
    except RuntimeError as error:  # torch has no exception classes for these
        for pattern, message in TORCH_ERRORS.items():
            if re.search(pattern, str(error)):
                fail(message, 1)
        raise
    except OSError as error:
        advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE else ""
        fail(f"{error.filename or 'a file'}: {error.strerror or error}{advice}", 1)
    except KeyboardInterrupt:
        print("\n" * sys.stderr.isatty() + "stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)


def fail(message: str, status: int):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


# ---------------------------------------------------------------------- reading and writing


def check_writable(path: Path, file: bool = False) -> None:
    """UserError if the folder `path`, or with `file` the file, could not be written.

    Creates nothing.
    """
    if file and path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    nearest = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if nearest.is_file() and not (file and nearest == path.absolute()):
        raise UserError(f"{path}: {nearest} is a file, not a folder; choose another place")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{path}: {nearest} cannot be written to; choose another place, or change "
                        "its permissions")


@contextmanager
def naming(path: Path):
    """Make errors name the file, as those of write() and flush() do not."""
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
    """Remove what a killed process left half written; only while no other is writing there."""
    for part in folder.glob(".*.part"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


@contextmanager
def whole_folder(folder: Path):
    """Yield a new folder to fill, then rename it to `folder`, which is complete or absent."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    part.rename(folder)


def write_json(path: str | Path, value) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file without line ends or byte-order mark; UserError if it is not one."""
    try:
        # in binary: text mode would also end lines at a lone carriage return within a text
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield text.removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}:{number}: not UTF-8 text") from None


def read_json(path: str | Path) -> dict:
    """A JSON object; a missing, broken or wrong file is a UserError that names it."""
    try:
        value = json.loads("\n".join(read_lines(path)))
    except (RecursionError, ValueError) as error:  # deep nesting; also numbers of 5,000 digits
        line = getattr(error, "lineno", 1)
        raise UserError(f"{path}:{line}: broken JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


@contextmanager
def reading(path: Path, problem: str):
    """Any error of a library while it reads `path` becomes a UserError: PATH: PROBLEM (WHY)."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch, tokenizers and others raise many kinds
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: {problem} ({why})") from error


# ------------------------------------------------------------------------ locks and the cache
#
# The operating system frees a lock when its process dies, so a killed process blocks no other.


@contextmanager
def locked(path: Path):
    """Wait for the lock on `path`, then hold it. PATH.lock and its folder are made, and stay."""
    check_writable(path.parent)
    with FileLock(f"{path}.lock"):
        yield


def hold(path: Path, taken: str) -> FileLock:
    """Lock the file `path`, made if need be with its folder, until let_go(lock).

    UserError(taken) if another process holds it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(taken) from None
    return lock


def let_go(lock: FileLock) -> None:
    """Release a lock from hold() and remove its file.

    The file goes first: once released, it may already be another process's lock.
    """
    with suppress(PermissionError):  # Windows: release() removes the file
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def cache_folder() -> Path:
    """$MOVEMENT_CACHE, default ~/.cache/movement-pruning."""
    return Path(os.environ.get("MOVEMENT_CACHE") or "~/.cache/movement-pruning").expanduser()


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
