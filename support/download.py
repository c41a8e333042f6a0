"""Fetch what is not generated: GLUE's and SQuAD's official files, and models from the Hub.

    python train.py --task mnli --data download        the official archive, once, into the cache
    python train.py --model bert-base-uncased          a model id, into huggingface_hub's cache

A file counts only if length, SHA-256, the archive's own checksums, columns and row counts are the
published ones; the folder is made aside and renamed, so it is there whole or not at all.

MOVEMENT_GLUE_URL, MOVEMENT_SENTEVAL_URL and MOVEMENT_SQUAD_URL replace the addresses in BASES, to
use a mirror with the same files. Proxies are taken from http_proxy, https_proxy and no_proxy. For
the Hub, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and HF_TOKEN mean what they mean to its library.
"""

import hashlib
import http.client
import os
import stat
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from tqdm import tqdm

import data
from support import squad
from support.files import UserError, cached, naming, write_atomically

# ------------------------------------------------------------------------------- sources
#
# Addresses: download_glue_data.py in github.com/nyu-mll/GLUE-baselines, which takes MRPC, that
# GLUE may not host, from SentEval; SQuAD's own page.
#
# Lengths, SHA-256 and row counts: datasets/glue/dataset_infos.json and
# datasets/squad/dataset_infos.json in github.com/huggingface/datasets (commit 040102f), recorded
# there for these same addresses; tensorflow/datasets has the same for all but QQP-clean.
#
# The real addresses have not been run by this project's tests, which use a server of their own.

BASES = {  # environment variable → official address
    "MOVEMENT_GLUE_URL": "https://dl.fbaipublicfiles.com/glue/data",
    "MOVEMENT_SENTEVAL_URL": "https://dl.fbaipublicfiles.com/senteval/senteval_data",
    "MOVEMENT_SQUAD_URL": "https://rajpurkar.github.io/SQuAD-explorer/dataset",
}


class File(NamedTuple):
    base: str  # one of BASES
    name: str
    size: int  # bytes
    sha256: str

    def address(self) -> str:
        base = os.environ.get(self.base) or BASES[self.base]
        if not base.startswith(("https://", "http://")):
            raise UserError(f"{self.base}={base}: not an address that begins with http:// or "
                            "https://")
        return f"{base.rstrip('/')}/{self.name}"


class Source(NamedTuple):
    files: tuple[File, ...]
    rows: dict[str, int]  # split, as in data.read → published number of rows with a label


def archive(name: str, size: int, rows: dict[str, int], sha256: str) -> Source:
    return Source((File("MOVEMENT_GLUE_URL", name, size, sha256),), rows)


SOURCES = {
    "mnli": archive("MNLI.zip", 312_783_507,
                    {"train": 392_702, "_matched": 9_815, "_mismatched": 9_832},
                    "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633"),
    "qqp": archive("QQP-clean.zip", 41_696_084, {"train": 363_846, "": 40_430},
                   "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0"),
    "sst2": archive("SST-2.zip", 7_439_277, {"train": 67_349, "": 872},
                    "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa"),
    "qnli": archive("QNLIv2.zip", 10_627_589, {"train": 104_743, "": 5_463},
                    "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5"),
    "rte": archive("RTE.zip", 697_150, {"train": 2_490, "": 277},
                   "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee"),
    "wnli": archive("WNLI.zip", 28_999, {"train": 635, "": 71},
                    "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46"),
    "cola": archive("CoLA.zip", 376_971, {"train": 8_551, "": 1_043},
                    "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff"),
    "stsb": archive("STS-B.zip", 802_872, {"train": 5_749, "": 1_500},
                    "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85"),
    "mrpc": Source((
        File("MOVEMENT_SENTEVAL_URL", "msr_paraphrase_train.txt", 1_047_044,
             "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89"),
        File("MOVEMENT_SENTEVAL_URL", "msr_paraphrase_test.txt", 441_275,
             "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784"),
        File("MOVEMENT_GLUE_URL", "mrpc_dev_ids.tsv", 6_222,
             "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7"),
    ), {"train": 3_668, "": 408}),
    "squad": Source((
        File("MOVEMENT_SQUAD_URL", "train-v1.1.json", 30_288_272,
             "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955"),
        File("MOVEMENT_SQUAD_URL", "dev-v1.1.json", 4_854_279,
             "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9"),
    ), {"train": 87_599, "": 10_570}),
}

# ------------------------------------------------------------------------------ one file

TIMEOUT = 30.0  # seconds without a byte
TRIES, PAUSE = 3, 1.0  # attempts at a file, and the seconds between two


class Cut(Exception):
    """The connection broke, or the server failed for now: worth another try."""


def open_address(url: str):
    """An HTTP reply; UserError where another try would end in the same way."""
    try:
        return urllib.request.urlopen(url, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        said = f"the server answers {error.code} {error.reason}"
        raise (Cut(said) if error.code >= 500 else UserError(f"{url}: {said}")) from None
    except urllib.error.URLError as error:
        raise UserError(f"{url}: no connection ({error.reason})") from None
    except (ValueError, http.client.InvalidURL) as error:
        raise UserError(f"{url}: not a usable address ({error})") from None
    except (OSError, http.client.HTTPException) as error:
        raise Cut(f"the connection broke ({error or type(error).__name__})") from None


def chunks(reply):
    """The body in pieces. Errors of the connection alone: those of the disk are not caught."""
    try:
        while chunk := reply.read(1 << 16):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise Cut(f"the connection broke ({error or type(error).__name__})") from None


def receive(url: str, file: File, path: Path) -> None:
    """One attempt to write `file` to `path`, from its first byte on."""
    digest, size = hashlib.sha256(), 0
    with open_address(url) as reply, naming(path), open(path, "wb") as out, tqdm(
            total=file.size, desc=file.name, unit="B", unit_scale=True, disable=None) as bar:
        if reply.length not in (None, file.size):
            raise UserError(f"{url}: the server offers {reply.length:,} bytes, but {file.size:,} "
                            "are published")
        for chunk in chunks(reply):
            size += len(chunk)
            if size > file.size:
                raise UserError(f"{url}: more than the published {file.size:,} bytes")
            digest.update(chunk)
            out.write(chunk)
            bar.update(len(chunk))
    if size < file.size:
        raise Cut(f"the connection was cut after {size:,} of {file.size:,} bytes")
    if digest.hexdigest() != file.sha256:
        raise UserError(f"{url}: SHA-256 is {digest.hexdigest()}, but {file.sha256} is published")


def fetch(file: File, path: Path) -> None:
    url = file.address()
    print(f"downloading {url} ({file.size / 1e6:.1f} MB)", file=sys.stderr, flush=True)
    for attempt in range(1, TRIES + 1):
        try:
            return receive(url, file, path)
        except Cut as cut:
            if attempt == TRIES:
                raise UserError(f"{url}: {cut}, and so {TRIES} times") from None
            print(f"note: {url}: {cut}; trying again", file=sys.stderr, flush=True)
            time.sleep(PAUSE)


# -------------------------------------------------------------------- archive and folder

LARGEST = 2 << 30  # bytes a member may hold; zipfile stops at the declared size, whatever comes


def check_member(info: zipfile.ZipInfo) -> None:
    """Refuse a member that could land outside the folder, or fill the disk."""
    path = PureWindowsPath(info.filename)  # takes / and \ as separators, and knows drives
    kind = stat.S_IFMT(info.external_attr >> 16)
    if path.drive or path.root or ".." in path.parts:
        raise UserError(f"{info.filename!r} in it would land outside its folder")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"{info.filename!r} in it is a link or a device, not a file")
    if info.file_size > LARGEST:
        raise UserError(f"{info.filename!r} in it declares {info.file_size:,} bytes, more than "
                        "any file of GLUE")


def extract(path: Path, task: data.Task, place: Path) -> None:
    """Write a task's train, dev and test files from an archive; nothing else is written.

    Reading a member to its end checks its CRC.
    """
    dev = [name for _, name in task.dev]
    wanted = ["train.tsv", *dev, *(name.replace("dev", "test") for name in dev)]
    try:
        with zipfile.ZipFile(path) as source:
            for info in source.infolist():
                check_member(info)
            for name in wanted:
                member, target = f"{task.folder}/{name}", place / name
                if member in source.namelist():
                    with source.open(member) as file, naming(target), open(target, "wb") as out:
                        while chunk := file.read(1 << 20):
                            out.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"broken archive ({error})") from None


def split_mrpc(folder: Path, place: Path) -> None:
    """MRPC's text files → GLUE's: rows whose two ids are in the list are dev, the rest train."""
    held = set(data.read_lines(folder / "mrpc_dev_ids.tsv"))
    lines = {part: [line for line in data.read_lines(folder / f"msr_paraphrase_{part}.txt")
                    if line] for part in ("train", "test")}
    header, *rows = lines["train"]
    found = {"train": [header], "dev": [header], "test": [header.replace("Quality", "index")]}
    for row in rows:
        ids = "\t".join(row.split("\t")[1:3])
        found["dev" if ids in held else "train"].append(row)
    for i, row in enumerate(lines["test"][1:]):  # GLUE's test rows have a number, and no label
        found["test"].append("\t".join([str(i), *row.split("\t")[1:]]))
    for part, text in found.items():
        write_atomically(place / f"{part}.tsv", "\n".join(text) + "\n")


def check_rows(task: data.Task, folder: Path, published: dict[str, int]) -> None:
    """Read every row, which checks columns and labels, and compare the number of rows.

    A published count is of usable rows: those without a gold label are in no one's count, and
    QQP-clean.zip has already lost the malformed ones of the first release.
    """
    for split, n in published.items():
        path = data.file_of(task, folder, split)
        rows = squad.read(path) if task.span else data.read_file(task, path)
        if len(rows) != n:
            raise UserError(f"{path.name} has {len(rows):,} rows, but {n:,} are published")


def make(task: data.Task, source: Source, folder: Path) -> None:
    """Fill `folder` with the task's own folder, in the official layout."""
    place = folder / task.folder
    place.mkdir()
    for file in source.files:
        fetch(file, (place if task.span else folder) / file.name)
    name = source.files[0].name
    try:
        if name.endswith(".zip"):
            extract(folder / name, task, place)
        elif not task.span:
            split_mrpc(folder, place)
        check_rows(task, folder, source.rows)
    except UserError as error:
        raise UserError(f"{source.files[0].address()}: {error}") from None
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()  # the archive and MRPC's texts have served


def data_folder(task_name: str) -> Path:
    """The folder that holds the task's official files, say MNLI/; fetched on the first call.

    UserError, with the address, when the files cannot be fetched or are not what is published.
    """
    task, source = data.TASKS[task_name], SOURCES[task_name]

    def make_or_tell(folder: Path) -> None:
        try:
            make(task, source, folder)
        except UserError as error:
            names = " and ".join(data.file_of(task, folder, split).name for split in source.rows)
            raise UserError(f"{error}; try again, or put {names} into DIR/{task.folder} by hand "
                            "and give --data DIR") from None

    return cached(f"official-{task_name}", repr(source), make_or_tell)


# ------------------------------------------------------------------------------- the Hub

HUB_FILES = ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json",
             "special_tokens_map.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there


def explain(name: str, error: Exception) -> str:
    """What went wrong at the Hub, and the mend, in one line."""
    from huggingface_hub import constants, errors

    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    hub = constants.ENDPOINT
    if isinstance(error, errors.HFValidationError):
        return "no such folder, and not a model id either, which has the form NAME or ORG/NAME"
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        return (f"HF_HUB_OFFLINE is set and {constants.HF_HUB_CACHE} does not hold the whole "
                "model; unset it, or give a folder")
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        return (f"access is restricted; ask for it at {hub}/{name}, then log in with "
                "`hf auth login` or set HF_TOKEN")
    if any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes):
        return (f"no such folder, and {hub} has no such model, or a private one; check the name, "
                "or set HF_TOKEN")
    said = str(causes[-1]).strip().splitlines() or [type(causes[-1]).__name__]
    return f"could not be fetched from {hub} ({said[0]}); try again, or give a folder"


def model_folder(name: str) -> Path:
    """The folder of a model of the Hub, NAME or ORG/NAME, in huggingface_hub's cache.

    Only the files that bert.load and data.load_tokenizer read are fetched. UserError, with the
    name, for a wrong form, an unknown or restricted model, and for failures on the way.
    """
    from huggingface_hub import snapshot_download  # slow to import, and needed here alone

    for weights in WEIGHTS:
        try:
            folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, weights]))
        except Exception as error:  # the library and those below it raise many kinds
            raise UserError(f"--model {name}: {explain(name, error)}") from error
        if (folder / "config.json").exists() and (folder / weights).exists():
            return folder
    raise UserError(f"--model {name}: it needs config.json and {' or '.join(WEIGHTS)}, and has "
                    "not both; give another model, or a folder")
