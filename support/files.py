"""Errors as one line, files that appear whole or not at all, checksums, locks, and the cache."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import signal
import stat
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import safetensors
from filelock import FileLock, Timeout


def printable(text: str) -> str:
    """Text from anywhere as one line for a terminal, without passwords and control characters. If
    it is long, the middle goes: a message begins with the place and ends with advice."""
    text = re.sub(r"(?<=://)[^/@\s]*@", "", text).replace("\n", " ")
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= 380 else f"{text[:190]} … {text[-187:]}"


class PlainError(Exception):
    """An error that ends a command with one line and an exit status."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class UserError(PlainError):
    """Wrong input: the message says what is wrong and how to fix it."""

    status = 2


class RunError(PlainError):
    """A failure while running."""

    status = 1


ADVICE = {
    errno.ENOSPC: "make room, then run the command again (train.py with --resume)",
    errno.EACCES: "choose another place, or change its permissions",
}

NO_MEMORY = "try a smaller --batch-size, a shorter --max-length or --grad-accum"
TORCH_ERRORS = {  # pattern in torch's message → what to say instead
    "(?i)(cuda|hip|mps).*out of memory": f"the GPU is out of memory; {NO_MEMORY}",
    "(out of|not enough|allocate) memory": f"the machine is out of memory; {NO_MEMORY}",
    "onnection (closed|reset) by peer|NCCL": "lost another process of this run; try --resume",
    "(?i)(no working|failed to find) C.* compiler": "--compile needs a C++ compiler; leave it out",
}
at_end = ExitStack()  # what is left to do when the command ends, such as to release its locks


def run_main(main) -> None:
    """Run a command; an expected error becomes one clear line on stderr, not a traceback."""
    for name in ("stdout", "stderr"):  # None: it was closed before the program began
        setattr(sys, name, getattr(sys, name) or open(os.devnull, "w"))
        getattr(sys, name).reconfigure(errors="replace")  # a terminal that cannot show λ shows ?
    signal.signal(signal.SIGTERM, interrupt)
    try:
        with at_end, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's, above our own line
            main()
        sys.stdout.flush()
    except PlainError as error:
        fail(str(error), error.status)
    except BrokenPipeError:  # for example python export.py RUN | head -3
        with suppress(OSError):  # Python flushes as it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        fail("nothing reads the output any more", 1)
    except MemoryError as error:
        fail(f"the machine is out of memory ({error}); {NO_MEMORY}", 1)
    except RuntimeError as error:  # torch has no exception classes for these
        for pattern, message in TORCH_ERRORS.items():
            if re.search(pattern, str(error)):
                fail(message, 1)
        raise
    except OSError as error:
        advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE else ""
        fail(f"{error.filename or 'a file'}: {error.strerror or error}{advice}", 1)
    except KeyboardInterrupt as error:
        by, status = error.args or ("Ctrl-C", 128 + signal.SIGINT)
        if os.environ.get("RANK", "0") == "0":  # the main process speaks for all
            print("\n" * sys.stderr.isatty() + f"stopped by {by}", file=sys.stderr)
        sys.exit(status)


def interrupt(number: int, _) -> None:
    """Handle SIGTERM, which clusters send before they take a machine, as Python does Ctrl-C."""
    raise KeyboardInterrupt(signal.Signals(number).name, 128 + number)


def fail(message: str, status: int):
    print(f"error: {printable(message)}", file=sys.stderr)
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


def check_table(path: Path, column: str) -> None:
    """UserError if the CSV file `path` could not be written, or is there but not one of ours, which
    have this column."""
    check_writable(path, file=True)
    header = next(read_lines(path), column) if path.exists() else column
    if column not in header.replace('"', "").split(","):
        raise UserError(f"{path}: holds something else (no column {column}), and is left alone; "
                        "name another file")


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


def remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def whole_folder(folder: Path):
    """Yield a new folder to fill, then rename it to `folder`, which is complete or absent."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path: str | Path, value) -> None:
    """RunError for NaN and infinity, which are never a result."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError:
        raise RunError(f"{path}: there is a result that is not a number: {value}") from None
    write_atomically(path, text + "\n")


# ------------------------------------------------- reading what comes from outside: one door


@contextmanager
def reading(path: str | Path, problem: str = "not readable"):
    """Whatever goes wrong while `path` is read becomes a UserError: PATH: PROBLEM (WHY).

    A device or a pipe in place of a file, which might never end, is not opened.
    """
    try:
        if not os.path.isdir(path):
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise UserError(f"{path}: neither a file nor a folder; name a file")
            open(path, "rb").close()  # libraries call a file missing that they may not read
        yield
    except (PlainError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except MemoryError:
        raise UserError(f"{path}: too large for this machine's memory") from None
    except BaseException as error:  # the libraries raise many kinds; Rust's are no Exception
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: {problem} ({why})") from None


def read_lines(path: str | Path) -> Iterator[str]:
    """Lines of a UTF-8 file without line ends or byte-order mark; UserError if it is not one."""
    # in binary: text mode would also end lines at a lone carriage return within a text
    with reading(path), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: not UTF-8 text") from None
            yield text.removesuffix("\n").removesuffix("\r")


def finite(text: str) -> float:
    """A JSON number, or NaN or Infinity, which Python would take."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is not a number")
    return value


def parse_json(text: str):
    """RecursionError or ValueError for what is no JSON, and for numbers that are not finite."""
    return json.loads(text, parse_float=finite, parse_constant=finite)


def read_json(path: str | Path) -> dict:
    """A JSON object; a missing, broken or wrong file is a UserError that names it."""
    try:
        value = parse_json("\n".join(read_lines(path)))
    except (RecursionError, ValueError) as error:  # deep nesting; also numbers of 5,000 digits
        line = getattr(error, "lineno", 1)
        raise UserError(f"{path}:{line}: broken JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def read_tensors(path: str | Path, problem: str = "not weights") -> tuple[dict, dict[str, str]]:
    """The tensors of a safetensors file by name, and what its header says besides."""
    with reading(path, problem), safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.offset_keys()}, file.metadata() or {}


# ------------------------------------------------------------------------------- checksums

SUMS = "SHA256SUMS"  # of a folder, as `sha256sum --check` reads it


def sha256(path: Path) -> str:
    with reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Write the digests of those of the files `names` that a folder holds."""
    write_atomically(folder / SUMS, "".join(
        f"{sha256(folder / name)}  {name}\n" for name in sorted(names) if (folder / name).exists()))


def check_sums(folder: Path) -> None:
    """UserError for a file that is gone or has changed since the folder's digests were written, if
    they were."""
    for line in read_lines(folder / SUMS) if (folder / SUMS).exists() else ():
        digest, _, name = line.partition(" ")
        name = name[1:]  # after a space, or an asterisk (sha256sum -b)
        if not (folder / name).is_file() or digest != sha256(folder / name):
            raise UserError(f"{folder / name}: is gone or has changed since it was written "
                            f"({folder / SUMS}); make the folder anew")


# ------------------------------------------------------------------------ locks and the cache
#
# The operating system frees a lock when its process dies, so a killed process blocks no other. A
# lock's file is removed by whoever holds it; filelock sees to it that nobody takes a removed one.


@contextmanager
def locked(lock: Path, taken: str | None = None):
    """Hold the file `lock`, made if need be with its folder. Where another process holds it:
    UserError(taken), or a wait if that is None."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=-1 if taken is None else 0)
    except Timeout:
        raise UserError(taken) from None
    try:
        yield
    finally:
        with suppress(PermissionError):  # Windows: release() removes the file
            lock.unlink(missing_ok=True)
        held.release()


def cache_folder() -> Path:
    """$MOVEMENT_CACHE, default ~/.cache/movement-pruning."""
    try:
        folder = os.environ.get("MOVEMENT_CACHE") or "~/.cache/movement-pruning"
        return Path(folder).expanduser()
    except RuntimeError:  # neither $HOME nor an entry for the user
        raise UserError("there is no home folder; set MOVEMENT_CACHE to a folder") from None


def cache_path(name: str, key: str) -> Path:
    """The folder that cached(name, key, …) finds, or makes; UserError if it could not."""
    folder = cache_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not folder.exists():
        check_writable(folder)
    return folder


def cached(name: str, key: str, make) -> Path:
    """The folder cache_path(name, key), filled by `make(folder)` if it is not there yet.

    `key` holds everything that decides the content: sizes, seeds, steps, and a version number that
    goes up when code changes it. The folder appears complete or not at all; a second process
    waits for the first.
    """
    folder = cache_path(name, key)
    if not folder.exists():  # a cache that is only read needs no lock, nor a place to write
        with locked(folder.with_name(f"{folder.name}.lock")):
            if not folder.exists():
                with whole_folder(folder) as part:
                    make(part)
                    write_sums(part, (path.relative_to(part).as_posix()
                                      for path in part.rglob("*") if path.is_file()))
    check_sums(folder)
    return folder
