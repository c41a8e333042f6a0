"""Fetching from servers on this machine that also misbehave; the real ones are never asked."""

import hashlib
import io
import os
import re
import subprocess
import sys
import time
import zipfile

import pytest
from loopback import Server
from tiny import wait_until

import data
from support import download
from support.files import UserError, cache_folder


@pytest.fixture
def server(tmp_path, monkeypatch):
    mirror = Server()
    monkeypatch.setenv("MOVEMENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MOVEMENT_MIRROR", mirror.url)
    yield mirror
    mirror.stop()


@pytest.fixture
def publish(server, tmp_path, monkeypatch):
    """Serves the files of a task, name → bytes, and puts them into the table as published."""

    def publish(task, files):
        lines = ["folder\taddress\tfile\tbytes\tsha256"]
        for name, body in files.items():
            server.files[f"/{name}"] = body
            digest = hashlib.sha256(body).hexdigest()
            lines.append(f"{task}\thttp://official.invalid\t{name}\t{len(body)}\t{digest}")
        (tmp_path / "table.tsv").write_text("\n".join(lines) + "\n")
        monkeypatch.setattr(download, "TABLE", tmp_path / "table.tsv")

    return publish


def zipped(*members):
    """An archive of files that hold their own names; a member is a name or a ZipInfo."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            archive.writestr(member, getattr(member, "filename", member))
    return out.getvalue()


def archive(task):
    """An archive of GLUE's tables."""
    splits = ["_matched", "_mismatched"] if task == "MNLI" else [""]
    return zipped(f"{task}/train.tsv", *[f"{task}/{kind}{split}.tsv" for kind in ("dev", "test")
                                         for split in splits])


@pytest.fixture
def cola(server, publish):
    """The server, with CoLA published."""
    publish("CoLA", {"CoLA.zip": archive("CoLA")})
    return server


def refusal():
    """The error of fetching CoLA: one line, and nothing is left that a later call would take."""
    with pytest.raises(UserError) as caught:
        download.official_files("CoLA")
    message = str(caught.value)
    assert "\n" not in message and not download.is_there("CoLA")
    assert all(path.name.endswith((".lock", ".part")) for path in cache_folder().iterdir())
    return message


# ----------------------------------------------------------------------------- what works


def test_the_table_has_every_task_and_plausible_files():
    files = {task.folder: download.files_of(task.folder) for task in data.TASKS.values()}
    assert all(files.values())
    files = [file for of_task in files.values() for file in of_task]
    assert len({file.sha256 for file in files}) == len(files) == 13
    assert len(download.TABLE.read_text().splitlines()) == 14
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) and file.size > 0 for file in files)


@pytest.mark.parametrize("folder, official, mirrored", [
    ("QQP", "https://dl.fbaipublicfiles.com/glue/data/QQP-clean.zip", "QQP-clean.zip"),
    ("SQuAD", "https://rajpurkar.github.io/SQuAD-explorer/dataset/train-v1.1.json",
     "train-v1.1.json"),
])
def test_addresses_are_the_official_ones_unless_there_is_a_mirror(
        folder, official, mirrored, monkeypatch):
    monkeypatch.delenv("MOVEMENT_MIRROR", raising=False)
    file = download.files_of(folder)[0]
    assert download.url_of(file) == official
    monkeypatch.setenv("MOVEMENT_MIRROR", "http://mirror/all/")
    assert download.url_of(file) == f"http://mirror/all/{mirrored}"


@pytest.mark.parametrize("name", sorted(set(data.TASKS) - {"mrpc", "squad"}))
def test_archives_become_folders_as_data_reads_them(server, publish, name):
    task = data.TASKS[name]
    publish(task.folder, {"archive.zip": archive(task.folder)})
    folder = download.official_files(task.folder)
    wanted = {"train.tsv", *dict(task.dev).values()}
    wanted |= {table.replace("dev", "test") for table in wanted}
    assert {path.name for path in (folder / task.folder).iterdir()} == wanted
    for table in wanted:
        assert (folder / task.folder / table).read_text() == f"{task.folder}/{table}"
    assert [path.name for path in folder.iterdir()] == [task.folder]  # the archive was removed


def test_only_the_tables_of_an_archive_are_written(server, publish, tmp_path):
    link = zipfile.ZipInfo("CoLA/dev.tsv")
    link.external_attr = 0o120777 << 16
    publish("CoLA", {"CoLA.zip": zipped(
        "CoLA/train.tsv", link, "../outside.tsv", "CoLA/../../outside.tsv", "/outside.tsv",
        "..\\outside.tsv", "CoLA/original/train.tsv", "CoLA/outside.txt", "MNLI/train.tsv")})
    folder = download.official_files("CoLA")
    assert {path.name for path in (folder / "CoLA").iterdir()} == {"train.tsv", "dev.tsv"}
    assert not (folder / "CoLA" / "dev.tsv").is_symlink()
    assert [path.name for path in folder.iterdir()] == ["CoLA"]
    assert not list(tmp_path.rglob("outside*"))


def test_mrpc_is_made_of_its_text_files_and_the_list_of_dev_rows(server, publish):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    rows = [f"{i % 2}\t{i}0\t{i}1\tone\x85 {i}\ttwo {i}\r\n" for i in range(5)]
    publish("MRPC", {
        "msr_paraphrase_train.txt": (header + "".join(rows)).encode(),
        "msr_paraphrase_test.txt": (header + "1\t70\t71\ta\tb\r\n").encode(),
        "mrpc_dev_ids.tsv": b"10\t11\n30\t31\n"})
    folder = download.official_files("MRPC")
    header, rows = header[1:].replace("\r", ""), [row.replace("\r", "") for row in rows]
    assert (folder / "MRPC" / "train.tsv").read_text() == header + rows[0] + rows[2] + rows[4]
    assert (folder / "MRPC" / "dev.tsv").read_text() == header + rows[1] + rows[3]
    assert (folder / "MRPC" / "test.tsv").read_text() == (
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t70\t71\ta\tb\n")
    assert [path.name for path in folder.iterdir()] == ["MRPC"]


def test_squad(server, publish):
    publish("SQuAD", {"train-v1.1.json": b"train", "dev-v1.1.json": b"dev"})
    folder = download.official_files("SQuAD")
    for split, body in (("train", b"train"), ("", b"dev")):
        assert data.file_of(data.TASKS["squad"], folder, split).read_bytes() == body


def test_a_second_call_asks_no_server(cola):
    assert not download.is_there("CoLA") and not cola.asked
    first = download.official_files("CoLA")
    cola.stop()
    assert download.is_there("CoLA") and cola.asked == ["/CoLA.zip"]
    assert download.official_files("CoLA") == first


def test_a_length_need_not_be_announced(cola):
    cola.moods["/CoLA.zip"] = ["no length"]
    assert (download.official_files("CoLA") / "CoLA" / "train.tsv").exists()


# ------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("mood, message", [
    ("cut", "only [0-9]+ of the published [0-9]+ bytes came"),
    ("drop", r"the download failed \(.*\)"),
    ("503", r"the download failed \(HTTP Error 503.*\)"),
    ("longer", "more than the published [0-9]+ bytes came"),
    ("longer, no length", "more than the published [0-9]+ bytes came"),
    ("other", "SHA-256 is [0-9a-f]{64}, but [0-9a-f]{64} is published"),
])
def test_a_failure_is_an_error_with_address_and_advice(cola, mood, message):
    cola.moods["/CoLA.zip"] = [mood]
    assert re.fullmatch(f"{cola.url}/CoLA.zip: {message}; try again, or put the official files "
                        "into DIR/CoLA yourself and give --data DIR", refusal())
    assert download.official_files("CoLA").exists()  # the next call starts afresh


def test_no_server(cola):
    cola.stop()
    assert re.match(rf"{cola.url}/CoLA.zip: the download failed \(.*refused", refusal())


@pytest.mark.parametrize("mirror", [
    "mirror", "file:///secret", "http://user:secret@[::1", "http://user:not/the/secret@host",
    "http://user:secret@my mirror", "http://my secret mirror"])
def test_unusable_mirrors(cola, monkeypatch, mirror):
    monkeypatch.setenv("MOVEMENT_MIRROR", mirror)
    said = refusal()
    assert said.startswith("MOVEMENT_MIRROR: write http://HOST/FOLDER") and "secret" not in said


# ----------------------------------------------------------------- more than one process

FETCH = """
import sys
from pathlib import Path
from support import download
download.TABLE = Path(sys.argv[1])
print("ready", flush=True)
print(download.official_files("CoLA"))
"""


def start_fetch():
    """official_files("CoLA") in a process of its own, with this one's table."""
    return subprocess.Popen([sys.executable, "-c", FETCH, download.TABLE], stdout=subprocess.PIPE,
                            text=True)


def test_an_interrupted_download_leaves_no_half_folder(cola):
    cola.moods["/CoLA.zip"] = ["hang"]
    process = start_fetch()
    wait_until(lambda: cola.asked, process)
    process.kill()
    process.communicate()
    assert {path.suffix for path in cache_folder().iterdir()} == {".lock", ".part"}
    assert (download.official_files("CoLA") / "CoLA" / "dev.tsv").exists()
    assert not list(cache_folder().glob("*.part"))


def test_a_second_process_waits_and_finds_the_folder(cola):
    cola.moods["/CoLA.zip"] = ["hang"]
    processes = [start_fetch(), start_fetch()]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    wait_until(lambda: cola.asked, *processes)
    time.sleep(0.3)  # so that the other one reaches the lock
    cola.released.set()
    first, second = (process.communicate()[0] for process in processes)
    assert first == second and first.startswith(os.environ["MOVEMENT_CACHE"])
    assert cola.asked == ["/CoLA.zip"]
