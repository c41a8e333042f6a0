"""Models by their id, from a Hub on this machine that also misbehaves; the real one is never asked.

huggingface_hub reads the environment when it is imported, so each case is a process of its own.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import argv
from loopback import Server
from tiny import TRAIN, write_model

import bert
from support.tokenizer import load_tokenizer

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(Server):
    """Answers what huggingface_hub asks: for a revision, its tree, its files."""

    def answer(self, path):
        if match := re.fullmatch(r"/api/models/(.+)/revision/main", path):
            name = match[1]
            if name == "org/broken":
                return 500, {}, b""
            if not any(file.startswith(f"/{name}/") for file in self.files):
                return 404, {"X-Error-Code": "RepoNotFound"}, b""
            return 200, {}, json.dumps({"id": name, "sha": SHA, "siblings": []}).encode()
        if match := re.fullmatch(rf"/api/models/(.+)/tree/{SHA}", path):
            top = f"/{match[1]}/resolve/{SHA}/"
            tree = [{"type": "file", "path": name.removeprefix(top), "size": len(body),
                     "oid": hashlib.sha1(body).hexdigest()}
                    for name, body in self.files.items() if name.startswith(top)]
            return 200, {}, json.dumps(tree).encode()
        if path.startswith("/org/restricted/"):  # its files can be listed but not read
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        code, headers, body = super().answer(path)
        etag = hashlib.sha1(body).hexdigest()
        return code, headers | {"ETag": f'"{etag}"', "X-Repo-Commit": SHA}, body


FETCH = """
import json, socket, sys, time
connect, socket.socket.connect = socket.socket.connect, None  # importing must not connect
from support import download
from support.files import UserError
time.sleep = lambda seconds: None  # the library waits before it tries again
results = {}
for name in sys.argv[1:]:
    there, socket.socket.connect = None, None  # nor must looking into the cache
    try:
        there, socket.socket.connect = download.model_folder(name, offline=True), connect
        results[name] = bool(there), str(download.model_folder(name))
    except UserError as error:
        results[name] = bool(there), f"error: {error}"
print(json.dumps(results))
"""


def environment(home, endpoint):
    """The one in which a process finds this Hub and its cache."""
    clean = {k: v for k, v in os.environ.items()
             if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    return clean | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "no_proxy": "127.0.0.1"}


def fetch_models(home, endpoint, names, **more):
    """In a fresh process: name → [is it in the cache?, then the model_folder or "error: …"]."""
    done = subprocess.run([sys.executable, "-c", FETCH, *names],
                          env=environment(home, endpoint) | more,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


NO_FOLDER = "no such folder, and not to be had from the Hub: "
ERRORS = {  # name → what is said about it
    "org/always-cut": NO_FOLDER, "org/restricted": NO_FOLDER + ".*gated",
    "org/no-weights": "it needs config.json and model.safetensors or pytorch_model.bin",
    "org/unknown": NO_FOLDER + ".*Repository Not Found", "org/broken": NO_FOLDER + ".*500",
    **dict.fromkeys(("a/b/c", "./x", "org/", "two words", "a--b"), NO_FOLDER + ".*[Rr]epo"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with some models, the cache, and what became of fetching each (fetch_models)."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("tiny")
    write_model(folder)
    load_tokenizer(folder).save(str(folder / "tokenizer.json"))
    tiny = {path.name: path.read_bytes() for path in folder.iterdir()}
    rest = {name: body for name, body in tiny.items() if name != "model.safetensors"}
    extra = {"pytorch_model.bin": b"pickle", "onnx/model.safetensors": b"x", "README.md": b"x"}
    models = {"org/tiny": tiny | extra, "only-bin": rest | extra, "org/no-weights": rest,
              "org/cut-once": tiny, "org/always-cut": tiny, "org/restricted": tiny}
    server = Hub()
    server.files = {f"/{model}/resolve/{SHA}/{name}": body
                    for model, files in models.items() for name, body in files.items()}
    weights = f"resolve/{SHA}/model.safetensors"  # moods: the HEAD before the GET, then the GETs
    server.moods[f"/org/cut-once/{weights}"] = ["", "cut"]
    server.moods[f"/org/always-cut/{weights}"] = ["", *["cut at once"] * 50]
    found = fetch_models(home, server.url, ["org/tiny", "only-bin", "org/cut-once", *ERRORS])
    assert not any(there for there, _ in found.values())
    yield server, home, {name: text for name, (_, text) in found.items()}
    server.stop()


def test_a_model_comes_with_the_files_that_are_read_and_no_others(hub):
    _, home, found = hub
    folder = Path(found["org/tiny"])
    assert folder.is_relative_to(home)
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "vocab.txt", "tokenizer.json"}
    assert load_tokenizer(folder).token_to_id("b") == 6


@pytest.mark.parametrize("name", ["org/tiny", "org/cut-once"])
def test_weights_arrive_whole(hub, name):
    assert not bert.load(Path(hub[2][name]), "classification")[1]  # nothing newly initialised


def test_older_weights_are_taken_where_there_are_no_others(hub):
    names = {path.name for path in Path(hub[2]["only-bin"]).iterdir()}
    assert "pytorch_model.bin" in names and "model.safetensors" not in names


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_the_hub_are_one_line_with_name_and_advice(hub, name):
    message = hub[2][name]
    assert re.match(f"error: --model {re.escape(name)}: {ERRORS[name]}", message)
    assert "\n" not in message


def test_offline_only_models_in_the_cache_work(hub):
    server, home, online = hub
    asked = len(server.asked)
    names = ["org/tiny", "only-bin", "org/other", "org/always-cut"]
    found = fetch_models(home, server.url, names, HF_HUB_OFFLINE="1")
    assert all(found[name] == [True, online[name]] for name in names[:2])
    assert found["org/other"][1].endswith("set 'HF_HUB_OFFLINE=0' as environment variable.")
    assert re.match(f"error: --model org/always-cut: {NO_FOLDER}", found["org/always-cut"][1])
    assert not any(found[name][0] for name in names[2:]) and len(server.asked) == asked


def test_without_network_only_models_in_the_cache_work(hub):
    _, home, online = hub
    closed = Server()
    closed.stop()
    found = fetch_models(home, closed.url, ["org/tiny", "org/other"])
    assert found["org/tiny"] == [True, online["org/tiny"]]
    assert not found["org/other"][0] and re.match(
        f"error: --model org/other: {NO_FOLDER}.*refused", found["org/other"][1])


def test_a_dry_run_asks_no_server(hub, place):
    server, home, _ = hub
    asked = len(server.asked)
    for model, said in (("org/tiny", "nothing was saved"), ("org/other", "download org/other;")):
        words = argv("train.py", *TRAIN, "--model", model, "--output", "new", "--dry-run")
        done = subprocess.run(words, env=environment(home, server.url), capture_output=True,
                              text=True)
        assert said in done.stdout, done.stderr
    assert len(server.asked) == asked
