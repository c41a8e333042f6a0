"""The compact file is exact, small and never trusted; transformers reads the exported folder."""

import lzma
import math
import tracemalloc

import pytest
import safetensors.torch
import torch
from tiny import check_refused, compare_with_transformers, refusal

import bert
import export
import masking
from export import COMPACT, VALUES, load_compact, pack, unpack
from support.files import write_json

SMALL = bert.Config(vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                    intermediate_size=256, max_position_embeddings=32)
LABELS = ["contradiction", "entailment", "neutral"]
MATRIX = "bert.encoder.layer.0.output.dense.weight"  # one of those that are pruned


def bits(x):
    return x.contiguous().view(torch.int32)


def there_and_back(x, values):
    return unpack(pack({MATRIX: x}, {MATRIX}, values))[MATRIX]


def prune(model, keep):
    """Keep the largest weights of each matrix."""
    for W in masking.encoder_matrices(model).values():
        k = round((1 - keep) * W.numel())
        W.data[W.abs() <= W.abs().flatten().kthvalue(k).values] = 0
    return model


def write_run(folder, task):
    """A folder as train.py leaves it, as far as export.py looks → the model."""
    torch.manual_seed(0)
    head, num_labels = ("span", 2) if task == "squad" else ("classification", 3)
    model = prune(bert.create(SMALL, head, num_labels).eval(), keep=0.1)
    bert.save(model, folder, None if task == "squad" else LABELS)
    write_json(folder / "run.json", {"task": task})
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    return model


def test_an_export_can_be_evaluated_and_made_again(place):
    for program in ("export.py run", "evaluate.py run/export", "export.py run",
                    "evaluate.py run/export", "evaluate.py run/export"):
        place(*program.split()).succeeded()
    (place.folder / "run" / "export" / "model.safetensors").write_bytes(b"")
    check_refused(place("evaluate.py", "run/export"), "is gone or has changed")


# -- by hand


def test_the_file_is_a_safetensors_file_compressed_by_xz():
    x = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, -4.0, 1.0]])
    weights = {"vector": torch.ones(2), "plain": x, "pruned": x}
    for values, dtype in VALUES.items():
        tensors = safetensors.torch.load(lzma.decompress(pack(weights, {"pruned"}, values)))
        parts = {"vector", "plain", "pruned", "pruned.mask", "pruned.shape"}
        scales = {"plain.scales", "pruned.scales"} if values == "int8" else set()
        assert tensors.keys() == parts | scales
        assert tensors["pruned"].dtype == tensors["plain"].dtype == dtype
        assert tensors["vector"].dtype == torch.float32
        assert tensors["pruned.mask"].tolist() == [0b01000001, 0b10000000]
        assert tensors["pruned.shape"].tolist() == [3, 3]
        kept = [127, -127, 32] if values == "int8" else [2, -4, 1]
        assert tensors["pruned"].tolist() == kept


def test_int8_by_hand():
    x = torch.tensor([[127.0, -64.0, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0]])
    codes, scales = export.quantise(x)
    assert scales.tolist() == [1.0, 0.0] and codes.tolist() == [[127, -64, 0, 0], [0, 0, 0, 0]]
    assert there_and_back(x, "int8").tolist() == [[127.0, -64.0, 0.0, 0.0], [0.0] * 4]


def test_bound_by_hand():
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    H = 0.25 * 2 + 0.75 * math.log2(4 / 3)
    assert export.entropy_bound(MATRIX, x, {MATRIX}, "int8") == pytest.approx(8 * H / 8 + 2)
    assert export.entropy_bound("pooler", x, {MATRIX}, "bf16") == 16
    assert export.entropy_bound("bias", x[0], {MATRIX}, "int8") == 16
    assert export.entropy_bound(MATRIX, torch.ones(2, 2), {MATRIX}, "float32") == 16


# -- round trips


@pytest.mark.parametrize("keep", [0.0, 0.003, 0.4, 1.0])
def test_float32_comes_back_to_the_bit(keep):
    torch.manual_seed(0)
    x = torch.randn(37, 53) * (torch.rand(37, 53) < keep)
    x[0, :4] = torch.tensor([-0.0, 1e-45, -1e-39, 3.4e38])
    assert torch.equal(bits(there_and_back(x, "float32")), bits(x))


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 9), (9, 1), (300, 3)])
@pytest.mark.parametrize("values", list(VALUES))
@pytest.mark.parametrize("pruned", [set(), {"x"}])
def test_every_shape_comes_back(shape, values, pruned):
    x = torch.arange(math.prod(shape)).reshape(shape).float()
    back = unpack(pack({"x": x}, pruned, values))["x"]
    assert back.shape == x.shape and (back - x).abs().max() <= x.max() / 127


def test_bf16_is_exact_for_rounded_values_and_int8_within_half_a_scale():
    torch.manual_seed(0)
    x = torch.randn(64, 200) * (torch.rand(64, 200) < 0.1) * torch.logspace(-34, 3, 64)[:, None]
    assert torch.equal(bits(there_and_back(x, "bf16")), bits(x.bfloat16().float()))
    _, scales = export.quantise(x)
    assert ((there_and_back(x, "int8") - x).abs() <= scales.float()[:, None] * 0.5001).all()
    assert torch.allclose(scales.float(), x.abs().amax(1) / 127, rtol=2**-8, atol=0)


# -- size


def check_size(model, values):
    weights = bert.hf_weights(model)
    pruned = {bert.to_hf_name(name) for name in masking.encoder_matrices(model)}
    file = pack(weights, pruned, values)
    bound = sum(export.entropy_bound(name, x, pruned, values) for name, x in weights.items())
    assert 0.5 * bound <= len(file) <= 1.15 * bound
    back = unpack(file)
    assert back.keys() == weights.keys()
    if values == "float32":
        assert all(torch.equal(bits(back[name]), bits(weights[name])) for name in weights)


@pytest.mark.parametrize("keep", [0.1, 0.03, 0.01])
@pytest.mark.parametrize("values", list(VALUES))
def test_size_is_close_to_the_bound(keep, values):
    torch.manual_seed(0)
    config = bert.Config(vocab_size=1000, hidden_size=128, num_hidden_layers=2,
                         num_attention_heads=4, intermediate_size=512)
    check_size(prune(bert.create(config, "classification"), keep), values)


@pytest.mark.parametrize("keep, values", [(0.03, "int8")])
def test_size_is_close_to_the_bound_for_real_weights(real_model, keep, values):
    check_size(prune(bert.load(real_model, "classification")[0], keep), values)


# -- a file is never trusted


def trial_tensors(**change):
    """What a compact file of two matrices holds, some parts replaced or, if None, left out."""
    torch.manual_seed(0)
    x = torch.randn(40, 30) * (torch.rand(40, 30) < 0.2)
    tensors = safetensors.torch.load(lzma.decompress(pack({"a": x, "b": x + 1}, {"a"}, "int8")))
    return {name: x for name, x in (tensors | change).items() if x is not None}


def write(path, tensors):
    path.write_bytes(lzma.compress(safetensors.torch.save(tensors), filters=export.FILTERS))


def long(*numbers):
    return torch.tensor(numbers)


@pytest.mark.parametrize("change, message", [
    ({"a": None}, "belongs to no tensor"),
    ({"a": torch.zeros(3, dtype=torch.float64)}, "float64"),
    ({"a": torch.zeros(1, dtype=torch.int8)}, "more or fewer values"),
    ({"a.shape": None}, "a.shape"),
    ({"a.shape": long(2**31, 2**31)}, "mask of the wrong length"),
    ({"a.shape": long(2**62, 2**62)}, "mask of the wrong length"),
    ({"a.shape": long(20, 30)}, "mask of the wrong length"),
    ({"a.shape": long(-40, -30)}, "a"),
    ({"a.shape": long(1200)}, "scales that do not fit"),
    ({"a.shape": torch.tensor(1200)}, "not a whole"),
    ({"a.shape": torch.tensor([40.0, 30.0])}, "not a whole"),
    ({"a.mask": torch.zeros(150)}, "unsigned byte"),
    ({"a.mask": torch.full((150,), 255, dtype=torch.uint8)}, "more or fewer values"),
    ({"a.mask": torch.zeros(150, 1, dtype=torch.uint8)}, "mask of the wrong length"),
    ({"a.scales": None}, "a.scales"),
    ({"a.scales": torch.zeros(1).bfloat16()}, "scales that do not fit"),
    ({"a.scales": torch.zeros(40)}, "scales that do not fit"),
    ({"b": torch.zeros(40, dtype=torch.int8)}, "scales that do not fit"),
    ({"b": torch.zeros(40, 30)}, "'b.scales' belongs to no tensor"),
])
def test_parts_that_do_not_fit_are_refused(tmp_path, change, message):
    write(tmp_path / "f", trial_tensors(**change))
    assert message in refusal(load_compact, tmp_path / "f")


def test_bombs_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write(path, {"a": torch.zeros(10**7)})
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(export, "MOST_BYTES", 10**6)
    tracemalloc.start()
    assert "too large" in refusal(load_compact, path)
    assert tracemalloc.get_traced_memory()[1] < 4 * 10**6
    tracemalloc.stop()
    n = 8 * 10**5  # as bits, few bytes
    write(path, {"a": torch.zeros(0), "a.mask": torch.zeros(n // 8, dtype=torch.uint8),
                 "a.shape": long(n, 1)})
    assert load_compact(path)["a"].shape == (n, 1)
    monkeypatch.setattr(export, "MOST_ENTRIES", n - 1)
    assert "too many entries" in refusal(load_compact, path)
    greedy = {"id": lzma.FILTER_LZMA2, "dict_size": 2**27, "mf": lzma.MF_HC3, "nice_len": 4}
    path.write_bytes(lzma.compress(b"x", filters=[greedy]))
    assert "limit" in refusal(load_compact, path)


def test_bytes_after_the_end_are_refused(tmp_path):
    write(tmp_path / "f", trial_tensors())
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes() + bytes(4))
    assert "too long" in refusal(load_compact, tmp_path / "f")


@pytest.mark.parametrize("name", ["", "nothing"])
def test_folders_and_missing_files_are_named(tmp_path, name):
    refusal(load_compact, tmp_path / name)


# -- the command


@pytest.mark.parametrize("task, auto", [("mnli", "AutoModelForSequenceClassification"),
                                        ("squad", "AutoModelForQuestionAnswering")])
def test_transformers_reads_the_folder_and_agrees(task, auto, transformers, command, tmp_path):
    model = write_run(tmp_path, task)
    command("export.py", tmp_path).succeeded()
    theirs, report = getattr(transformers, auto).from_pretrained(
        tmp_path / "export", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    compare_with_transformers(model, theirs)
    assert task == "squad" or theirs.config.id2label == dict(enumerate(LABELS))


def test_the_command_writes_what_it_says(tmp_path, command):
    model = write_run(tmp_path / "run", "mnli")
    printed = command("export.py", tmp_path / "run").succeeded()
    folder = tmp_path / "run" / "export"
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "model.safetensors", COMPACT, "run.json", "vocab.txt", "README.md",
        "SHA256SUMS"}
    weights = bert.hf_weights(model)
    for written in (load_compact(folder / COMPACT), bert.read_weights(folder)):
        assert written.keys() == weights.keys()
        assert all(torch.equal(bits(written[name]), bits(weights[name])) for name in weights)
    assert "Zeros in place make nothing smaller" in printed
    assert printed.splitlines()[-1] == f"next: python evaluate.py {folder}"
    rows = {line[:36].strip(): [float(cell) for cell in line[36:].split()]
            for line in printed.splitlines() if line.endswith(tuple("0123456789"))}
    dense = 4 * sum(x.numel() for x in weights.values()) / 1e6
    assert rows["dense float32"][0] == pytest.approx(dense, abs=6e-4)
    assert rows["zeros in place: model.safetensors"][0] >= rows["dense float32"][0]
    size = (folder / COMPACT).stat().st_size / 1e6
    assert rows["compact float32"][0] == pytest.approx(size, abs=6e-4)
    for whole, rest, matrices in rows.values():
        assert whole > rest > matrices
    for sizes in zip(rows["compact int8"], rows["compact bf16"], rows["compact float32"]):
        assert list(sizes) == sorted(sizes)
    assert sum(name.startswith("bound of") for name in rows) == 3


def test_restore_writes_the_model_that_the_file_holds(tmp_path, command):
    model = write_run(tmp_path / "run", "mnli")
    words = "export.py", tmp_path / "run", "--values", "int8", "--restore"
    command(*words, tmp_path / "back").succeeded()
    back = bert.read_weights(tmp_path / "back")
    for name, x in bert.hf_weights(model).items():
        assert torch.equal(back[name], x if x.ndim < 2 else there_and_back(x, "int8"))
    assert (tmp_path / "back" / "run.json").exists()
    for taken in (tmp_path / "back", tmp_path / "run" / "export"):
        check_refused(command(*words, taken), "name a new folder")


def test_what_is_not_a_run_is_refused(tmp_path, command):
    write_run(tmp_path, "mnli")
    for task, said in (("mnlii", "task is"), (None, "task is"), (["mnli"], "task is"),
                       ("squad", "not fine-tuned")):  # the head is another
        write_json(tmp_path / "run.json", {"task": task})
        check_refused(command("export.py", tmp_path), said)
    assert not (tmp_path / "export").exists()
