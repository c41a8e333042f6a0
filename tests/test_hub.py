"""Models by their id, from a Hub on this machine that also misbehaves; the real one is never asked.

The environment is read when huggingface_hub is imported, so each case is a process of its own.
"""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from loopback import Server
from tokenizers import BertWordPieceTokenizer

import bert
import data

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(Server):
    """What huggingface_hub asks of a Hub: a revision, its tree, its files."""

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
        if path.startswith("/org/restricted/"):  # its files can be listed, but not read
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        code, headers, body = super().answer(path)
        etag = hashlib.sha1(body).hexdigest()
        return code, headers | {"ETag": f'"{etag}"', "X-Repo-Commit": SHA}, body


MODELS = """
import json, socket, sys, time
sys.path.insert(0, {root!r})
connect, socket.socket.connect = socket.socket.connect, None  # an import that connects would fail
from support import download
from support.files import UserError
socket.socket.connect = connect
time.sleep = lambda seconds: None  # the library waits before it tries again
found = {{}}
for name in {names!r}:
    try:
        found[name] = str(download.model_folder(name))
    except UserError as error:
        found[name] = f"error: {{error}}"
print(json.dumps(found))
"""


def fetch_models(home, endpoint, names, **environment):
    """model_folder of each name in a fresh process → its folder, or "error: …"."""
    clean = {k: v for k, v in os.environ.items()
             if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    environment = clean | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint,
                           "no_proxy": "127.0.0.1"} | environment
    code = MODELS.format(root=str(ROOT), names=names)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


NAMES = ["org/tiny", "only-bin", "org/cut-once", "org/always-cut", "org/no-weights", "org/unknown",
         "org/restricted", "org/broken", "a/b/c", "./x", "org/", "two words", "a--b"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with some models, what became of fetching NAMES from it, and its cache."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("tiny")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    config = bert.Config(vocab_size=len(words), hidden_size=8, num_hidden_layers=1,
                         num_attention_heads=2, intermediate_size=16, max_position_embeddings=16)
    bert.save(bert.create(config, "classification"), folder)
    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"))
    tokenizer.save(str(folder / "tokenizer.json"))
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
    found = fetch_models(home, server.url, NAMES)
    yield server, home, found
    server.stop()


def test_a_model_comes_with_the_files_that_are_read_and_no_others(hub):
    _, home, found = hub
    folder = ROOT / found["org/tiny"]
    assert folder.is_relative_to(home)
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "vocab.txt", "tokenizer.json"}
    model, fresh = bert.load(folder, "classification")
    assert not fresh and model.bert.config.hidden_size == 8
    assert data.load_tokenizer(folder).token_to_id("b") == 6


def test_older_weights_are_taken_where_there_are_no_others(hub):
    names = {path.name for path in (ROOT / hub[2]["only-bin"]).iterdir()}
    assert "pytorch_model.bin" in names and "model.safetensors" not in names


def test_a_model_cut_once_arrives_whole(hub):
    assert not bert.load(hub[2]["org/cut-once"], "classification")[1]


@pytest.mark.parametrize("name, said", [
    ("org/always-cut", r"could not be fetched from http://127.0.0.1:\d+ \(.*\); try again, or"),
    ("org/no-weights", r"it needs config.json and model.safetensors or pytorch_model.bin"),
    ("org/unknown", r"no such folder, and http://127.0.0.1:\d+ has no such model, or a private"),
    ("org/restricted", r"access is restricted; ask for it at http://127.0.0.1:\d+/org/restricted"),
    ("org/broken", r"could not be fetched from http://127.0.0.1:\d+ \(.*500.*\); try again, or"),
    ("a/b/c", "no such folder, and not a model id either"),
    ("./x", "no such folder, and not a model id either"),
    ("org/", "no such folder, and not a model id either"),
    ("two words", "no such folder, and not a model id either"),
    ("a--b", "no such folder, and not a model id either"),
])
def test_errors_of_the_hub_are_one_line_with_name_and_mend(hub, name, said):
    message = hub[2][name]
    assert re.match(f"error: --model {re.escape(name)}: {said}", message) and "\n" not in message


def test_offline_a_model_in_the_cache_works_and_another_does_not(hub):
    server, home, online = hub
    asked = len(server.asked)
    found = fetch_models(home, server.url, ["org/tiny", "only-bin", "org/other", "org/always-cut"],
                         HF_HUB_OFFLINE="1")
    assert found["org/tiny"] == online["org/tiny"] and found["only-bin"] == online["only-bin"]
    for name in ("org/other", "org/always-cut"):
        assert re.match(f"error: --model {name}: HF_HUB_OFFLINE is set and {home}/hub does not "
                        "hold the whole model; unset it, or give a folder", found[name])
    assert len(server.asked) == asked


def test_without_network_a_model_in_the_cache_works_and_another_does_not(hub):
    _, home, online = hub
    closed = Server()
    closed.stop()
    found = fetch_models(home, closed.url, ["org/tiny", "org/other"])
    assert found["org/tiny"] == online["org/tiny"]
    assert re.match(rf"error: --model org/other: could not be fetched from {closed.url} "
                    r"\(.*refused.*\); try again, or give a folder", found["org/other"])
