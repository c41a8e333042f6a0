"""model.sparse: exact, small, suspicious; the exported folder: what Hugging Face's loader reads."""

import hashlib
import json
import math
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import bert
import compact
import export
import masking
from compact import Coded, decode, encode, load_sparse, pack
from support.files import UserError, write_json

SMALL = bert.Config(vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                    intermediate_size=256, max_position_embeddings=32)
MATRIX = "bert.encoder.layer.0.output.dense.weight"  # one of those that are pruned


def bits(x):
    return x.contiguous().view(torch.int32)


def there_and_back(x, values):
    return decode(encode(x, values))


def movement(model, keep, steps=20):
    """A few steps of movement pruning on random rows, so that the masks are a method's own."""
    torch.manual_seed(0)
    schedule = masking.Schedule(T=steps, t_i=0, t_f=5)
    matrices = masking.encoder_matrices(model)
    pruner = masking.Pruner(matrices, "movement", keep, schedule)
    optimizer = torch.optim.AdamW([{"params": pruner.weights(), "lr": 1e-3},
                                   {"params": pruner.scores(), "lr": 1e-2}])
    ids = torch.randint(1, 50, (8, 16))
    labels = (ids[:, 1] + ids[:, 2]) % 2
    for t in range(steps):
        pruner.refresh(t)
        F.cross_entropy(model(ids, torch.ones_like(ids), ids * 0), labels).backward()
        pruner.backward(t, 1e-2)
        optimizer.step()
        optimizer.zero_grad()
    pruner.refresh(steps, training=False)
    return model


def write_run(folder, task, keep=0.1):
    """A folder as train.py leaves it, as far as export.py looks → the model."""
    torch.manual_seed(0)
    head = "span" if task == "squad" else "classification"
    model = bert.create(SMALL, head, {"squad": 2, "mnli": 3}[task]).eval()
    for weight in masking.encoder_matrices(model).values():
        weight.data *= torch.rand_like(weight) < keep  # leaves −0.0 too
    labels = None if task == "squad" else ["contradiction", "entailment", "neutral"]
    bert.save(model, folder, labels)
    write_json(folder / "run.json", {"task": task})
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    return model


# -- the coding, by hand


def test_gaps_by_hand():
    stored = np.zeros(1000, bool)
    stored[[0, 3, 4, 259, 770]] = True
    # skip 0 | skip 2 | skip 0 | skip 254 | skip 510 = 255 + 255 + 0
    assert list(compact.to_gaps(stored)) == [0, 2, 0, 254, 255, 255, 0]
    assert (compact.from_gaps(bytes([0, 2, 0, 254, 255, 255, 0]), 1000) == stored).all()
    with pytest.raises(ValueError, match="outside"):
        compact.from_gaps(bytes([255, 255, 255, 235]), 1000)  # position 1000
    assert compact.from_gaps(bytes([255, 255, 255, 234]), 1000)[999]


def test_int8_by_hand():
    x = torch.tensor([[127.0, -64.0, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0]])
    codes, scales = compact.quantise(x)
    assert scales.tolist() == [1.0, 0.0] and codes.tolist() == [[127, -64, 0, 0], [0, 0, 0, 0]]
    assert there_and_back(x, "int8").tolist() == [[127.0, -64.0, 0.0, 0.0], [0.0] * 4]


def test_bound_by_hand():
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    H = 0.25 * 2 + 0.75 * math.log2(4 / 3)
    assert export.bound(MATRIX, x, "int8") == pytest.approx(8 * H / 8 + 2)
    assert export.bound("bert.pooler.dense.weight", x, "bf16") == 16
    assert export.bound(MATRIX, torch.ones(2, 2), "float32") == 16


# -- round trips


@pytest.mark.parametrize("keep", [0.0, 0.003, 0.03, 0.4, 0.9, 1.0])
def test_float32_comes_back_to_the_bit(keep):
    torch.manual_seed(0)
    x = torch.randn(37, 53) * (torch.rand(37, 53) < keep)
    x[0, :4] = torch.tensor([-0.0, 1e-45, -1e-39, 3.4e38])
    assert torch.equal(bits(there_and_back(x, "float32")), bits(x))


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 9), (9, 1), (300, 3)])
@pytest.mark.parametrize("values", ["float32", "bf16", "int8"])
def test_every_shape_comes_back(shape, values):
    x = torch.arange(math.prod(shape)).reshape(shape).float()
    back = there_and_back(x, values)
    assert back.shape == x.shape and (back - x).abs().max() <= x.max() / 127


def test_bf16_is_exact_for_rounded_values_and_int8_within_half_a_step():
    torch.manual_seed(0)
    x = torch.randn(64, 200) * (torch.rand(64, 200) < 0.1) * torch.logspace(-40, 3, 64)[:, None]
    assert torch.equal(bits(there_and_back(x, "bf16")), bits(x.bfloat16().float()))
    _, scales = compact.quantise(x)
    assert ((there_and_back(x, "int8") - x).abs() <= scales.float()[:, None] * 0.5001).all()
    # a scale is at most one bf16 step (2⁻⁷) above what its row needs
    needed, normal = x.abs().amax(1) / 127, x.abs().amax(1) > 1e-30
    assert (scales.float() >= needed).all()
    assert (scales.float() <= needed * (1 + 2**-7))[normal].all()


def test_each_coding_of_positions_is_used_where_it_is_smallest():
    torch.manual_seed(0)
    noise = torch.rand(200, 200)
    chosen = [encode((noise < v).float() * noise, "float32").positions for v in (0.03, 0.8, 2)]
    assert chosen == ["gaps", "bitmap", "all"]


# -- size


@pytest.mark.parametrize("keep", [0.1, 0.03, 0.01])
def test_size_is_within_a_tenth_of_the_bound(keep):
    torch.manual_seed(0)
    W = torch.randn(768, 768)
    at_random = {MATRIX: torch.where(torch.rand_like(W) < keep, W, 0.0)}
    weights = bert.hf_weights(movement(bert.create(SMALL, "classification"), keep))
    trained = {name: x + 0.0 for name, x in weights.items() if export.is_matrix(name)}
    assert len(trained) == 12
    for values in compact.KINDS:
        check_size(at_random, values)
        # a narrow row with one weight left pays for its scale all the same: count it as a value
        scales = sum(2 * len(x) for x in trained.values()) if values == "int8" else 0
        check_size(trained, values, scales)


def check_size(matrices, values, scales=0):
    size = sum(len(s) for x in matrices.values() for s in encode(x, values).streams)
    bound = sum(export.bound(name, x, values) for name, x in matrices.items()) + scales
    assert 0.5 * bound <= size <= 1.1 * bound


# -- a file is never trusted


def sealed(data):
    """With the checksum put right, so that what lies behind it is tested."""
    return data[:8] + hashlib.sha256(data[40:]).digest() + data[40:]


def trial_file():
    torch.manual_seed(0)
    x = torch.randn(40, 30) * (torch.rand(40, 30) < 0.2)
    return pack({"a": encode(x, "float32"), "b": encode(x, "int8"), "c": encode(x + 1, "bf16")})


@pytest.mark.parametrize("seal", [False, True])
def test_random_damage_is_a_user_error(tmp_path, seal):
    rng, good, path = random.Random(0), trial_file(), tmp_path / "model.sparse"
    refused = 0
    for _ in range(400):
        data = bytearray(good)
        kind = rng.randrange(4)
        at = rng.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            data[at : at + 8] = rng.randbytes(8)
        path.write_bytes(sealed(bytes(data)) if seal else data)
        try:
            weights = load_sparse(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:  # a value's own bits may differ, where the checksum was put right
            assert bytes(data) == good or seal
            assert {x.shape for x in weights.values()} == {(40, 30)}
    assert refused == 400 if not seal else refused > 200


def forged(change):
    """A whole, sealed file whose header went through `change`."""
    data = trial_file()
    length = struct.unpack_from("<I", data, 40)[0]
    records = json.loads(compact.unsqueeze(data[44 : 44 + length], 2**20))
    header = compact.squeeze(json.dumps(change(records)).encode())
    return sealed(data[:40] + struct.pack("<I", len(header)) + header + data[44 + length :])


def first(**fields):
    return lambda records: [records[0] | fields, *records[1:]]


@pytest.mark.parametrize("change, message", [
    (lambda r: {}, "no records"),
    (lambda r: [1], "no records"),
    (lambda r: r[:2], "wrong length"),
    (lambda r: [r[0], r[0], r[2]], "twice"),
    (first(name=3), "without a name"),
    (first(values="pickle"), "kind of values"),
    (first(positions=["gaps"]), "kind of positions"),
    (first(shape=[2**31, 2**31]), "too many entries"),
    (first(shape=[-1, 30]), "broken field 'shape'"),
    (first(shape=[40.0, 30]), "broken field 'shape'"),
    (first(shape=[True, 1200]), "broken field 'shape'"),
    (first(shape=[]), "broken field 'shape'"),
    (first(shape=[0, 30]), "broken field 'shape'"),
    (first(shape=[20, 30]), "outside its tensor|broken stream"),
    (first(bytes=[1, 2]), "broken field 'bytes'"),
    (first(bytes=[2**32, 0, 0]), "broken field 'bytes'"),
    (first(bytes=[10**6, 0, 0]), "wrong length"),
])
def test_a_forged_header_is_refused_for_what_is_wrong(tmp_path, change, message):
    (tmp_path / "f").write_bytes(forged(change))
    with pytest.raises(UserError, match=message):
        load_sparse(tmp_path / "f")


def test_bombs_and_deep_nesting_are_refused(tmp_path):
    bomb = compact.squeeze(bytes(10**7))
    with pytest.raises(ValueError, match="broken stream"):
        compact.unsqueeze(bomb, 1000)
    with pytest.raises(ValueError, match="broken stream"):
        decode(Coded([10, 10], "float32", "gaps", (bomb, compact.squeeze(b""), bomb)))
    header = zlib.compress(b"[" * 200_000)[2:-4]
    deep = trial_file()[:40] + struct.pack("<I", len(header)) + header
    (tmp_path / "f").write_bytes(sealed(deep))
    with pytest.raises(UserError):
        load_sparse(tmp_path / "f")
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=str(path)):
            load_sparse(path)


# -- the command


@pytest.fixture
def run_export(monkeypatch, capsys):
    """export.py in this process → what it printed."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["export.py", *map(str, words)])
        export.main()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("task", ["mnli", "squad"])
def test_transformers_reads_the_folder_and_agrees(tmp_path, run_export, task):
    transformers = pytest.importorskip("transformers")
    model = write_run(tmp_path, task)
    run_export(tmp_path)
    auto = (transformers.AutoModelForQuestionAnswering if task == "squad"
            else transformers.AutoModelForSequenceClassification)
    theirs, report = auto.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.randint(1, 50, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = mask[2, 3:] = 0
    types = (torch.arange(12) > 4).long().expand(3, 12)
    with torch.no_grad():
        ours = model(ids, mask, types)
        out = theirs.eval()(input_ids=ids, attention_mask=mask, token_type_ids=types)
    if task == "squad":
        real = mask.bool()
        found = torch.stack([out.start_logits, out.end_logits], 2)
        assert torch.allclose(found[real], ours[real], atol=1e-6)
    else:
        assert torch.allclose(out.logits, ours, atol=1e-6)
        assert theirs.config.id2label == {0: "contradiction", 1: "entailment", 2: "neutral"}


def test_the_command_writes_what_it_says(tmp_path, run_export):
    model = write_run(tmp_path / "run", "mnli")
    printed = run_export(tmp_path / "run")
    made = tmp_path / "run" / "export"
    assert sorted(p.name for p in made.iterdir()) == [
        "config.json", "model.safetensors", "model.sparse", "run.json", "sizes.json", "vocab.txt"]
    restored, plain = load_sparse(made / "model.sparse"), bert.read_weights(made)
    assert restored.keys() == plain.keys()
    assert all(torch.equal(bits(restored[name]), bits(plain[name])) for name in plain)
    for name, x in bert.hf_weights(model).items():
        assert torch.equal(plain[name], x)  # −0.0 equals 0.0
    sizes = json.loads((made / "sizes.json").read_text())
    whole = {name: row["whole model"] for name, row in sizes.items() if name != "unit"}
    assert whole["compact float32"] == (made / "model.sparse").stat().st_size
    assert whole["dense float32"] == 4 * sum(x.numel() for x in plain.values())
    assert whole["zeros in place: model.safetensors"] >= whole["dense float32"]
    assert whole["compact int8"] < whole["compact bf16"] < whole["compact float32"]
    masks = sizes["one task of many, weights frozen"]
    assert masks["whole model"] == masks["without embeddings"] > masks["encoder's matrices"] > 0
    assert masks["encoder's matrices"] < sizes["compact int8"]["encoder's matrices"]
    assert "Zeros in place make nothing smaller" in printed
    assert printed.splitlines()[-1] == f"next: python evaluate.py {made}"
    for row in whole:
        assert row in printed


def test_restore_writes_the_model_that_the_file_holds(tmp_path, run_export):
    model = write_run(tmp_path / "run", "mnli")
    words = tmp_path / "run", "--values", "int8", "--restore"
    run_export(*words, tmp_path / "back")
    back = bert.read_weights(tmp_path / "back")
    for name, x in bert.hf_weights(model).items():
        vector = x.ndim < 2 or name.startswith("classifier")
        expected = x if vector else there_and_back(x + 0.0, "int8")
        assert torch.equal(back[name], expected)
    assert (tmp_path / "back" / "run.json").exists()
    for taken in (tmp_path / "back", tmp_path / "run" / "export"):
        with pytest.raises(UserError, match="name a new folder"):
            run_export(*words, taken)


def test_what_is_not_a_run_is_refused(tmp_path, run_export, command):
    write_run(tmp_path / "run", "mnli")
    for task in ("mnlii", None, ["mnli"]):
        write_json(tmp_path / "run" / "run.json", {"task": task})
        with pytest.raises(UserError, match="no known task"):
            run_export(tmp_path / "run")
    write_json(tmp_path / "run" / "run.json", {"task": "squad"})  # but the head is another
    with pytest.raises(UserError, match="not fine-tuned"):
        run_export(tmp_path / "run")
    assert not (tmp_path / "run" / "export").exists()
    done = command("export.py", tmp_path / "nowhere")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_real_weights_come_back(real_model):
    weights = bert.read_weights(real_model)
    name = "encoder.layer.0.intermediate.dense.weight"
    W = weights[name]
    W = torch.where(W.abs() > W.abs().quantile(0.97), W, 0.0)
    check_size({"bert." + name: W}, "float32")
    check_size({"bert." + name: W}, "int8")
    assert torch.equal(bits(there_and_back(W, "float32")), bits(W))
