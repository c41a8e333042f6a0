"""Fetching, against servers on this machine that also misbehave; the real ones are never asked."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
import zipfile

import pytest
from conftest import ROOT
from loopback import Server

import data
from support import download, squad
from support.files import UserError, cache_folder


@pytest.fixture
def server(tmp_path, monkeypatch):
    found = Server()
    monkeypatch.setenv("MOVEMENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for variable in download.BASES:
        monkeypatch.setenv(variable, found.url)
    monkeypatch.setattr(download, "PAUSE", 0.01)
    yield found
    found.stop()


# ---------------------------------------------------------- tiny files in the official layouts

HEADERS = {
    "MNLI": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
            "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "SST-2": "sentence\tlabel",
    "QNLI": "index\tquestion\tsentence\tlabel",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "WNLI": "index\tsentence1\tsentence2\tlabel",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\t"
             "score",
}
LABELS = {"MNLI": "neutral", "QNLI": "entailment", "RTE": "not_entailment", "STS-B": "2.5"}


def table(folder, n):
    """n rows; the last column is the label, and the others say where they stand."""
    rows = [HEADERS[folder]] if folder in HEADERS else []
    for i in range(n):
        if folder == "CoLA":
            rows.append(f"gj04\t1\t\tsentence {i}")
        else:
            names = HEADERS[folder].split("\t")[:-1]
            rows.append("\t".join([f"{name} {i}" for name in names] + [LABELS.get(folder, "1")]))
    return "\n".join(rows) + "\n"


def zipped(members):
    """members: name, or a ready ZipInfo, → text."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return out.getvalue()


def members(folder, train=3, dev=2):
    splits = ["dev_matched", "dev_mismatched"] if folder == "MNLI" else ["dev"]
    found = {f"{folder}/": "", f"{folder}/train.tsv": table(folder, train)}
    found |= {f"{folder}/{split}.tsv": table(folder, dev) for split in splits}
    found |= {f"{folder}/{split.replace('dev', 'test')}.tsv": "index\n" for split in splits}
    return found | {f"{folder}/original/notes.txt": "not wanted", f"{folder}/Icon\r": ""}


def publish(server, monkeypatch, task_name, bodies, rows=None):
    """Serve `bodies` (file name → bytes), and make the table of sources say just that."""
    source = download.SOURCES[task_name]
    published = []
    for file in source.files:
        body = bodies[file.name]
        server.files[f"/{file.name}"] = body
        digest = hashlib.sha256(body).hexdigest()
        published.append(file._replace(size=len(body), sha256=digest))
    rows = rows or {split: 3 if split == "train" else 2 for split in source.rows}
    monkeypatch.setitem(download.SOURCES, task_name, download.Source(tuple(published), rows))


def publish_cola(server, monkeypatch, archive=None, rows=None):
    bodies = {"CoLA.zip": archive or zipped(members("CoLA"))}
    publish(server, monkeypatch, "cola", bodies, rows)


def refusal(task_name="cola"):
    """data_folder's error; it is one line, and nothing is left that a later call would take."""
    with pytest.raises(UserError) as caught:
        download.data_folder(task_name)
    message = str(caught.value)
    assert "\n" not in message
    cache = cache_folder()
    assert all(path.name.endswith((".lock", ".part")) for path in cache.iterdir())
    return message


# ------------------------------------------------------------------------------ the table


def test_the_table_has_every_task_with_its_splits_and_plausible_files():
    assert download.SOURCES.keys() == data.TASKS.keys()
    for name, source in download.SOURCES.items():
        assert list(source.rows) == ["train", *data.TASKS[name].dev]
        for file in source.files:
            assert re.fullmatch("[0-9a-f]{64}", file.sha256) and file.size > 0
    digests = [file.sha256 for source in download.SOURCES.values() for file in source.files]
    assert len(set(digests)) == len(digests) == 13


def test_published_rows():
    rows = {name: tuple(source.rows.values()) for name, source in download.SOURCES.items()}
    assert rows == {"mnli": (392702, 9815, 9832), "qqp": (363846, 40430), "sst2": (67349, 872),
                    "qnli": (104743, 5463), "rte": (2490, 277), "wnli": (635, 71),
                    "mrpc": (3668, 408), "cola": (8551, 1043), "stsb": (5749, 1500),
                    "squad": (87599, 10570)}


def test_addresses_are_the_official_ones_unless_the_environment_says_otherwise(monkeypatch):
    for variable in download.BASES:
        monkeypatch.delenv(variable, raising=False)
    address = {f.name: f.address() for s in download.SOURCES.values() for f in s.files}
    assert address["QQP-clean.zip"] == "https://dl.fbaipublicfiles.com/glue/data/QQP-clean.zip"
    assert address["msr_paraphrase_train.txt"] == (
        "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_train.txt")
    assert address["dev-v1.1.json"] == (
        "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v1.1.json")
    monkeypatch.setenv("MOVEMENT_GLUE_URL", "http://mirror/glue/")
    assert download.SOURCES["cola"].files[0].address() == "http://mirror/glue/CoLA.zip"


@pytest.mark.parametrize("name", ["sst2", "rte", "cola", "wnli", "stsb"])
def test_real_files_have_the_published_rows(real_data, name):
    download.check_rows(data.TASKS[name], real_data, download.SOURCES[name].rows)


# ------------------------------------------------------------------------------ what works


@pytest.mark.parametrize("name", sorted(set(data.TASKS) - {"mrpc", "squad"}))
def test_archives_become_folders_that_data_reads(server, monkeypatch, name):
    task = data.TASKS[name]
    file = download.SOURCES[name].files[0].name
    publish(server, monkeypatch, name, {file: zipped(members(task.folder))})
    folder = download.data_folder(name)
    assert len(data.read(task, folder, "train")) == 3
    assert all(len(data.read(task, folder, split)) == 2 for split in task.dev)
    wanted = {"train.tsv", *task.dev.values()}
    wanted |= {name.replace("dev", "test") for name in wanted}
    assert {path.name for path in (folder / task.folder).iterdir()} == wanted
    assert [path.name for path in folder.iterdir()] == [task.folder]  # the archive is gone


def test_rows_without_a_gold_label_are_not_counted(server, monkeypatch):
    files = members("MNLI", dev=3)
    files["MNLI/dev_matched.tsv"] = files["MNLI/dev_matched.tsv"].replace("neutral", "-", 1)
    publish(server, monkeypatch, "mnli", {"MNLI.zip": zipped(files)},
            {"train": 3, "_matched": 2, "_mismatched": 3})
    assert len(data.read(data.TASKS["mnli"], download.data_folder("mnli"), "_matched")) == 2


def test_mrpc_is_made_of_its_text_files_and_the_list_of_held_out_rows(server, monkeypatch):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    rows = [f"{i % 2}\t{i}0\t{i}1\tone {i}\ttwo {i}\r\n" for i in range(5)]
    publish(server, monkeypatch, "mrpc", {
        "msr_paraphrase_train.txt": (header + "".join(rows)).encode(),
        "msr_paraphrase_test.txt": (header + "1\t70\t71\ta\tb\r\n").encode(),
        "mrpc_dev_ids.tsv": b"10\t11\n30\t31\n"})
    place = download.data_folder("mrpc") / "MRPC"
    assert (place / "train.tsv").read_text() == (
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
        "0\t00\t01\tone 0\ttwo 0\n0\t20\t21\tone 2\ttwo 2\n0\t40\t41\tone 4\ttwo 4\n")
    assert (place / "dev.tsv").read_text() == (
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
        "1\t10\t11\tone 1\ttwo 1\n1\t30\t31\tone 3\ttwo 3\n")
    assert (place / "test.tsv").read_text() == (
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t70\t71\ta\tb\n")
    assert [path.name for path in place.parent.iterdir()] == ["MRPC"]


def squad_file(n):
    qas = [{"id": str(i), "question": "?", "answers": [{"text": "b", "answer_start": 2}]}
           for i in range(n)]
    article = {"title": "t", "paragraphs": [{"context": "a b c", "qas": qas}]}
    return json.dumps({"version": "1.1", "data": [article]}).encode()


def test_squad(server, monkeypatch):
    bodies = {"train-v1.1.json": squad_file(3), "dev-v1.1.json": squad_file(2)}
    publish(server, monkeypatch, "squad", bodies)
    folder = download.data_folder("squad")
    assert len(squad.read(data.file_of(data.TASKS["squad"], folder, ""))) == 2
    publish(server, monkeypatch, "squad", bodies | {"dev-v1.1.json": squad_file(1)})
    with pytest.raises(UserError, match=r"dev-v1.1.json has 1 rows, but 2 are published"):
        download.data_folder("squad")


def test_a_second_call_asks_no_server(server, monkeypatch):
    publish_cola(server, monkeypatch)
    first = download.data_folder("cola")
    server.stop()
    assert download.data_folder("cola") == first and server.asked == ["/CoLA.zip"]


@pytest.mark.parametrize("mood", ["cut", "cut at once", "drop", "503", "no length"])
def test_one_failure_that_passes_is_no_error(server, monkeypatch, capsys, mood):
    publish_cola(server, monkeypatch)
    server.moods["/CoLA.zip"] = [mood]
    assert (download.data_folder("cola") / "CoLA" / "train.tsv").exists()
    tries = 1 if mood == "no length" else 2
    assert len(server.asked) == tries
    assert capsys.readouterr().err.count("trying again") == tries - 1


# ------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("mood, said", [
    ("cut", "cut after [0-9]+ of [0-9]+ bytes, and so 3 times"),
    ("drop", "the connection broke .*, and so 3 times"),
    ("500", "the server answers 500 .*, and so 3 times"),
])
def test_three_failures_are_an_error_with_address_and_mend(server, monkeypatch, mood, said):
    publish_cola(server, monkeypatch)
    server.moods["/CoLA.zip"] = [mood] * 3
    message = refusal()
    assert re.match(f"{server.url}/CoLA.zip: .*{said}", message)
    assert message.endswith("; try again, or put train.tsv and dev.tsv into DIR/CoLA by hand and "
                            "give --data DIR")
    assert len(server.asked) == 3
    assert download.data_folder("cola").exists()  # the next run begins afresh


@pytest.mark.parametrize("mood, said", [
    ("404", "the server answers 404 Not Found"),
    ("longer", "the server offers [0-9,]+ bytes, but [0-9,]+ are published"),
])
def test_what_would_fail_again_is_not_tried_again(server, monkeypatch, mood, said):
    publish_cola(server, monkeypatch)
    server.moods["/CoLA.zip"] = [mood]
    assert re.match(f"{server.url}/CoLA.zip: {said}; try again, or put", refusal())
    assert len(server.asked) == 1


def test_more_bytes_than_published_are_refused_without_a_length_too(server, monkeypatch):
    publish_cola(server, monkeypatch)
    server.files["/CoLA.zip"] += b"more"
    server.moods["/CoLA.zip"] = ["no length"]
    assert "more than the published" in refusal()


def test_no_server_and_no_address(server, monkeypatch):
    publish_cola(server, monkeypatch)
    server.stop()
    assert re.match(rf"{server.url}/CoLA.zip: no connection \(.*refused", refusal())
    monkeypatch.setenv("MOVEMENT_GLUE_URL", "mirror")
    assert refusal().startswith("MOVEMENT_GLUE_URL=mirror: not an address")
    monkeypatch.setenv("MOVEMENT_GLUE_URL", "http://my mirror")
    assert refusal().startswith("http://my mirror/CoLA.zip: not a usable address")


def test_other_bytes_of_the_same_length_are_refused(server, monkeypatch):
    publish_cola(server, monkeypatch)
    body = server.files["/CoLA.zip"]
    server.files["/CoLA.zip"] = body[:-1] + bytes([body[-1] ^ 1])
    assert re.search("SHA-256 is [0-9a-f]{64}, but [0-9a-f]{64} is published", refusal())


def test_a_truncated_archive(server, monkeypatch):
    publish_cola(server, monkeypatch, zipped(members("CoLA"))[:-30])
    assert f"{server.url}/CoLA.zip: broken archive (File is not a zip file)" in refusal()


def test_a_corrupted_member(server, monkeypatch):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:  # stored, so that one byte can be found and changed
        for name, text in members("CoLA").items():
            archive.writestr(name, text)
    body = out.getvalue().replace(b"sentence 1", b"sentence 7", 1)
    publish_cola(server, monkeypatch, body)
    assert "broken archive (Bad CRC-32 for file 'CoLA/train.tsv')" in refusal()


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize("member, shown, said", [
    ("../outside.txt", "'../outside.txt'", "would land outside its folder"),
    ("CoLA/../../outside.txt", "'CoLA/../../outside.txt'", "would land outside its folder"),
    ("/outside.txt", "'/outside.txt'", "would land outside its folder"),
    ("..\\outside.txt", r"'..\\outside.txt'", "would land outside its folder"),
    ("C:outside.txt", "'C:outside.txt'", "would land outside its folder"),
    (link("CoLA/train.tsv"), "'CoLA/train.tsv'", "is a link or a device"),
    (link("CoLA"), "'CoLA'", "is a link or a device"),
])
def test_a_member_that_leads_outside(server, monkeypatch, tmp_path, member, shown, said):
    # it comes last, and is of no use to the task: the whole archive is refused nevertheless
    files = members("CoLA")
    if isinstance(member, zipfile.ZipInfo):
        files.pop(member.filename, None)
    publish_cola(server, monkeypatch, zipped(files | {member: "/etc"}))
    assert f"{server.url}/CoLA.zip: {shown} in it {said}" in refusal()
    assert not list(tmp_path.rglob("outside*")) and not list(tmp_path.rglob("*.tsv"))


def test_a_member_that_declares_too_much(server, monkeypatch):
    publish_cola(server, monkeypatch)
    monkeypatch.setattr(download, "LARGEST", 20)
    assert "'CoLA/train.tsv' in it declares 57 bytes, more than" in refusal()


@pytest.mark.parametrize("changed, said", [
    ({"CoLA/train.tsv": "only one column\n"}, r"CoLA/train.tsv:1: 1 fields where 4 are expected"),
    ({"CoLA/dev.tsv": "gj04\t2\t\tx\n"}, r"CoLA/dev.tsv:1: label '2' is none of 0, 1"),
    ({"CoLA/dev.tsv": table("CoLA", 1)}, r"dev.tsv has 1 rows, but 2 are published"),
    ({"CoLA/dev.tsv": None}, r"CoLA/dev.tsv: No such file"),
])
def test_wrong_contents(server, monkeypatch, changed, said):
    files = {name: text for name, text in (members("CoLA") | changed).items() if text is not None}
    publish_cola(server, monkeypatch, zipped(files))
    message = refusal()
    assert message.startswith(f"{server.url}/CoLA.zip: ") and re.search(said, message)


# ----------------------------------------------------------------- more than one process

FETCH = """
import sys
sys.path.insert(0, {root!r})
from support import download
download.SOURCES["cola"] = download.Source((download.File(*{file!r}),), {rows!r})
print("ready", flush=True)
print(download.data_folder("cola"))
"""


def start_fetch():
    """data_folder("cola") with this process's table, in a process of its own."""
    file, = download.SOURCES["cola"].files
    rows = download.SOURCES["cola"].rows
    code = FETCH.format(root=str(ROOT), file=tuple(file), rows=rows)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def wait_until(condition, *processes):
    """Until it holds; at once when a process has ended, which is then for the caller to notice."""
    while not condition() and all(process.poll() is None for process in processes):
        time.sleep(0.02)


def test_an_interrupted_download_leaves_no_half_folder(server, monkeypatch):
    publish_cola(server, monkeypatch)
    server.moods["/CoLA.zip"] = ["hang"]
    process = start_fetch()
    wait_until(lambda: list(cache_folder().glob("*.part/CoLA.zip")), process)
    process.kill()
    process.communicate()
    assert all(path.name.endswith((".lock", ".part")) for path in cache_folder().iterdir())
    assert (download.data_folder("cola") / "CoLA" / "dev.tsv").exists()
    assert not list(cache_folder().glob("*.part"))


def test_a_second_process_waits_and_finds_the_folder(server, monkeypatch):
    publish_cola(server, monkeypatch)
    server.moods["/CoLA.zip"] = ["hang"]
    processes = [start_fetch(), start_fetch()]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    wait_until(lambda: server.asked, *processes)
    time.sleep(0.3)  # the other one comes to the lock
    server.released.set()
    first, second = (process.communicate()[0] for process in processes)
    assert first == second and first.startswith(os.environ["MOVEMENT_CACHE"])
    assert server.asked == ["/CoLA.zip"] * 2  # cut, and asked for again, by one process
