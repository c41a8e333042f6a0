"""Files and errors: one line for the user, files that appear whole or not at all."""

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


def run_main(main) -> None:
    """Run a command: one clear line on stderr in place of a traceback."""
    try:
        main()
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write beside `path`, flush to disk, then rename: a reader sees the old or the new file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


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
    default = Path.home() / ".cache" / "movement-pruning"
    return Path(os.environ.get("MOVEMENT_CACHE") or default).expanduser()


@contextmanager
def locked(folder: Path):
    """Hold `folder`.lock while making `folder`, so that a second process waits, then finds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except ImportError:  # Windows: no lock, the atomic rename still keeps the folder whole
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


def cached(name: str, sources: list[str], settings: str, make) -> Path:
    """The cache folder NAME-KEY, made by `make(folder)` if it is not there yet.

    The key changes with the source files and settings that made it. The folder appears complete
    or not at all, and a second process waits for the first.
    """
    key = hashlib.sha256(settings.encode())
    for source in sources:
        key.update((Path(__file__).parent / source).read_bytes())
    folder = cache_folder() / f"{name}-{key.hexdigest()[:12]}"
    with locked(folder):
        if not folder.exists():
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder
