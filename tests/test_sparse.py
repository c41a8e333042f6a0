"""CSR layers give the dense layers' outputs, and the measurement says what it measured."""

import copy
import csv

import pytest
import torch
from tiny import check_refused

import bert
import masking
from support import csr
from tools import sparse

SMALL = bert.Config(vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                    intermediate_size=256, max_position_embeddings=150)


def pruned(head, density):
    torch.manual_seed(0)
    model = bert.create(SMALL, head).eval()
    sparse.prune_at_random(model, density)
    return model


def test_a_layer_by_hand():
    linear = torch.nn.Linear(3, 2)
    linear.weight.data = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])
    linear.bias.data = torch.tensor([10.0, 20.0])
    x = torch.tensor([[[1.0, 2.0, 3.0]], [[0.0, 1.0, 0.0]]])  # (2, 1, 3)
    assert csr.SparseLinear(linear)(x).tolist() == [[[14.0, 30.0]], [[12.0, 20.0]]]


@pytest.mark.parametrize("head", ["classification", "span"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 12), (2, 150)])  # 300 rows: more than one piece
def test_outputs_are_the_dense_models(head, shape):
    dense = pruned(head, 0.1)
    skipping = copy.deepcopy(dense)
    assert csr.sparsify(skipping, masking.encoder_matrices(skipping), densest=1.0) == 12
    ids = torch.randint(1, 50, shape)
    mask = torch.ones_like(ids)
    mask[-1, shape[1] // 2 + 1 :] = 0
    with torch.inference_mode():
        assert torch.allclose(skipping(ids, mask, ids * 0), dense(ids, mask, ids * 0), atol=1e-5)


def test_only_matrices_that_gain_are_replaced():
    model = pruned("classification", 0.05)
    model.bert.layers[0].intermediate.weight.data.fill_(1.0)
    model.bert.layers[1].key.weight.data.zero_()
    assert csr.sparsify(model, masking.encoder_matrices(model)) == 11
    assert isinstance(model.bert.layers[0].intermediate, torch.nn.Linear)
    assert isinstance(model.bert.layers[1].key, csr.SparseLinear)
    assert isinstance(model.pooler, torch.nn.Linear)


def test_the_command_writes_its_rows(command, tmp_path, monkeypatch):
    monkeypatch.setattr(sparse, "MODELS", {"MiniLM": SMALL})
    done = command("tools.sparse", "--quick", "--csv", tmp_path / "rows.csv")
    assert len(done.succeeded().splitlines()) == 4
    rows = list(csv.DictReader(open(tmp_path / "rows.csv")))
    assert [(r["batch"], r["density"]) for r in rows] == [
        ("1", "0.1"), ("1", "0.03"), ("32", "0.1"), ("32", "0.03")]
    for row in rows:
        assert float(row["difference"]) < 1e-5
        assert all(float(row[f"{run}_ms"]) > 0 for run in ("dense", "bf16", "csr"))


def test_another_file_is_not_overwritten(command, tmp_path):
    (tmp_path / "rows.csv").write_text('"key","method"\n')
    check_refused(command("tools.sparse", "--csv", tmp_path / "rows.csv"), "no column csr_ms")


def test_a_run_is_evaluated_without_its_zeros(place):
    done = place("evaluate.py", "run", "--sparse")
    assert "6 matrices are multiplied sparsely" in done.succeeded()
