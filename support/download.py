"""Download what is not generated: GLUE's and SQuAD's official files, and models from the Hub.

    python train.py --task mnli --data download        the official archive, once, into the cache
    python train.py --model bert-base-uncased          a model id, into huggingface_hub's cache

A file is accepted only with its published length and SHA-256, so its contents need no further
check. A data folder is made under another name and then renamed: it is complete or absent. Tasks
go by the names of their official folders: MNLI, SST-2, SQuAD.

MOVEMENT_MIRROR is one address to use instead of the official ones: all files of official_files.tsv
lie under it by name. Proxies come from http_proxy, https_proxy and no_proxy. HF_ENDPOINT, HF_HOME,
HF_HUB_OFFLINE and HF_TOKEN are huggingface_hub's.
"""

import hashlib
import os
import re
import shutil
import sys
import time
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from support.files import UserError, cache_path, cached, naming, read_lines, write_atomically
from support.progress import Progress

# ------------------------------------------------------------------------- the official files
#
# Addresses: download_glue_data.py in github.com/nyu-mll/GLUE-baselines, which takes MRPC from
# SentEval because GLUE may not host it; SQuAD's own page.
#
# Lengths and SHA-256: datasets/glue/dataset_infos.json and datasets/squad/dataset_infos.json in
# github.com/huggingface/datasets (commit 040102f), recorded there for these addresses;
# tensorflow/datasets has the same for all but QQP-clean.
#
# The tests use a local server; they never contact the real addresses.

TABLE = Path(__file__).with_name("official_files.tsv")


class File(NamedTuple):
    base: str  # the address it lies under
    name: str
    size: int  # bytes
    sha256: str


def files_of(task: str) -> list[File]:
    """What is downloaded for a task."""
    rows = [line.split("\t") for line in TABLE.read_text().splitlines()[1:]]
    return [File(base, name, int(size), sha256)
            for folder, base, name, size, sha256 in rows if folder == task]


# -------------------------------------------------------------------------------- one file

TIMEOUT, SLOWEST = 30.0, 1_000  # seconds without a byte; bytes a second, from the first on


def url_of(file: File) -> str:
    """Where to download `file`: from the mirror, if there is one."""
    base = os.environ.get("MOVEMENT_MIRROR") or file.base
    if not re.fullmatch(r"https?://[^\s/@]+(/[^\s@]*)?", base):  # not shown: it may hold a password
        raise UserError("MOVEMENT_MIRROR: write http://HOST/FOLDER or https://…, without a login")
    return f"{base.rstrip('/')}/{file.name}"


def body(url: str):
    """The body of the reply in pieces. Errors of the caller, such as a full disk, pass through."""
    began, size = time.monotonic(), 0
    try:
        with urlopen(url, timeout=TIMEOUT) as reply:
            while chunk := reply.read1(1 << 16):
                yield chunk
                size += len(chunk)
                if time.monotonic() - began > TIMEOUT + size / SLOWEST:
                    raise OSError(f"slower than {SLOWEST:,} bytes a second")
    except (OSError, HTTPException, ValueError) as error:
        raise UserError(f"{url}: the download failed ({error})") from None


def fetch(file: File, path: Path) -> None:
    """Download `file` to `path`."""
    url, digest, size = url_of(file), hashlib.sha256(), 0
    print(f"downloading {url} ({file.size / 1e6:.1f} MB)", file=sys.stderr)
    with naming(path), open(path, "wb") as out, Progress(
            file.name, file.size, "B", lines_to=sys.stderr) as bar:
        for chunk in body(url):
            digest.update(chunk)
            out.write(chunk)
            size += len(chunk)
            bar.advance(len(chunk))
            if size > file.size:  # it may be endless
                break
    if size != file.size:
        which = "more than" if size > file.size else f"only {size:,} of"
        raise UserError(f"{url}: {which} the published {file.size:,} bytes came")
    if digest.hexdigest() != file.sha256:
        raise UserError(f"{url}: SHA-256 is {digest.hexdigest()}, but {file.sha256} is published")


# ------------------------------------------------------------------------ archive and folder


def convert_mrpc(downloads: Path, target: Path) -> None:
    """MRPC's text files → GLUE's tables: listed pairs of ids are dev, the others train."""
    dev_ids = set(read_lines(downloads / "mrpc_dev_ids.tsv"))
    header, *rows = filter(None, read_lines(downloads / "msr_paraphrase_train.txt"))
    tables = {"train": [header], "dev": [header], "test": [header.replace("Quality", "index")]}
    for row in rows:
        ids = "\t".join(row.split("\t")[1:3])
        tables["dev" if ids in dev_ids else "train"].append(row)
    _, *rows = filter(None, read_lines(downloads / "msr_paraphrase_test.txt"))
    for i, row in enumerate(rows):  # GLUE's test rows have a number in place of the label
        tables["test"].append("\t".join([str(i), *row.split("\t")[1:]]))
    for split, lines in tables.items():
        write_atomically(target / f"{split}.tsv", "\n".join(lines) + "\n")


def make(task: str, folder: Path) -> None:
    """Download the files of a task and unpack them into folder/TASK."""
    downloads, files = folder / "downloads", files_of(task)
    downloads.mkdir()
    try:
        for file in files:
            fetch(file, downloads / file.name)
    except UserError as error:
        raise UserError(f"{error}; try again, or put the official files into DIR/{task} "
                        "yourself and give --data DIR") from None
    if task == "SQuAD":
        downloads.rename(folder / task)
        return
    if task == "MRPC":
        convert_mrpc(downloads, folder / task)
    else:
        with naming(folder), zipfile.ZipFile(downloads / files[0].name) as archive:
            archive.extractall(folder, [  # no other member is opened
                name for name in archive.namelist()
                if re.fullmatch(rf"{task}/(train|dev|test)(_(mis)?matched)?\.tsv", name)])
    shutil.rmtree(downloads)


def name_and_key(task: str) -> tuple[str, str]:
    """For the cache. Raise the number when make() writes something else from the same files."""
    return f"official-{task}", " ".join(["1", *(file.sha256 for file in files_of(task))])


def is_there(task: str) -> bool:
    """Are the task's official files in the cache?"""
    return cache_path(*name_and_key(task)).exists()


def official_files(task: str) -> Path:
    """The folder that holds TASK/, such as MNLI/, with the official files, fetched on first use.

    UserError, with the address, if they cannot be fetched or are not the published ones.
    """
    return cached(*name_and_key(task), lambda folder: make(task, folder))


# --------------------------------------------------------------------------------- the Hub

MODEL_FILES = ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json",
               "special_tokens_map.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that exists is used


def model_folder(name: str, offline: bool = False) -> Path | None:
    """The folder of a model of the Hub, NAME or ORG/NAME, in huggingface_hub's cache.

    Fetches only the files that loading a model and its tokenizer reads. With offline=True, no
    server is asked, and None says that the cache lacks some of them. UserError, with the name, for
    a malformed id, an unknown or restricted model, and a failed download.
    """
    from huggingface_hub import errors, snapshot_download  # slow to import

    for weights in WEIGHTS:
        try:
            folder = Path(snapshot_download(name, allow_patterns=[*MODEL_FILES, weights],
                                            local_files_only=offline))
        except Exception as error:  # the library and those below it raise many kinds
            if offline and isinstance(error, errors.LocalEntryNotFoundError):
                return None
            why = str(error) or type(error).__name__
            raise UserError(f"--model {name}: no such folder, and not to be had from the Hub: "
                            f"{why}") from error
        if (folder / "config.json").exists() and (folder / weights).exists():
            return folder
    if offline:
        return None
    raise UserError(f"--model {name}: it needs config.json and {' or '.join(WEIGHTS)}, and lacks "
                    "one of them; give another model, or a folder")
