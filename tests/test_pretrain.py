"""The small BERT: its vocabulary, its masking, and that training teaches it something."""

from pathlib import Path

import numpy as np
import pytest
import torch

import bert
import data
from sample import generate, pretrain
from support.files import UserError
from support.tokenizer import load_tokenizer

# tensors after five steps, each times numbers from -1 to 1
VERSION, FINGERPRINTS = 2, {
    "bert.embeddings.word_embeddings.weight": 8.98298, "cls.predictions.bias": -2.23081,
    "bert.encoder.layer.0.attention.output.dense.weight": -1.03398,
    "bert.encoder.layer.0.output.dense.weight": 0.81571}


@pytest.fixture(scope="module")
def documents():
    return list(generate.pretraining_documents(1_000))


@pytest.fixture(scope="module")
def tokenizer(documents):
    return pretrain.train_tokenizer([" ".join(document) for document in documents])


@pytest.fixture(scope="module")
def features(documents, tokenizer):
    return pretrain.encode(documents, tokenizer)


def test_the_vocabulary_is_like_berts_and_the_same_every_time(documents, tokenizer):
    assert [tokenizer.id_to_token(i) for i in range(5)] == pretrain.SPECIAL
    pair = tokenizer.encode("Every dog runs .", "no DOG runs .")
    assert pair.tokens[0] == "[CLS]" and pair.tokens.count("[SEP]") == 2
    assert pair.type_ids[0] == 0 and pair.type_ids[-1] == 1
    assert "[UNK]" not in pair.tokens
    again = pretrain.train_tokenizer([" ".join(document) for document in documents])
    assert again.to_str() == tokenizer.to_str()


def test_masking_shares(tokenizer):
    torch.manual_seed(0)
    ids = torch.full((200, 200), 7)
    ids[:, 0] = 2  # [CLS] is never chosen
    masked, chosen = pretrain.mask_tokens(ids, tokenizer)
    assert not chosen[:, 0].any() and torch.equal(masked[~chosen], ids[~chosen])
    assert chosen[:, 1:].float().mean() == pytest.approx(pretrain.MASKED, abs=0.01)
    assert (masked[chosen] == 4).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (masked[chosen] == 7).float().mean() == pytest.approx(0.1, abs=0.02)


def test_training_lowers_the_loss(features, tokenizer, monkeypatch):
    monkeypatch.setattr(pretrain, "STEPS", 40)
    batch, losses = data.collate(features, np.arange(300)), []
    for steps in (0, 40):
        model = pretrain.train(features, tokenizer, 1, 32, steps)
        torch.manual_seed(1)
        losses.append(pretrain.masked_loss(model, batch, tokenizer).item())
    assert losses[1] < losses[0] - 0.5


def test_changed_weights_have_a_new_version(features, tokenizer, monkeypatch):
    monkeypatch.setattr(pretrain, "STEPS", 25)  # so that the first step has the full rate
    monkeypatch.setattr(pretrain, "LR", 0.01)  # and five change much
    weights, again = (bert.hf_weights(pretrain.train(features, tokenizer, 1, 32, 5))
                      for _ in range(2))
    assert all(torch.equal(W, again[name]) for name, W in weights.items())
    found = {name: float(weights[name].flatten() @ torch.linspace(-1, 1, weights[name].numel()))
             for name in FINGERPRINTS}
    unchanged = found == pytest.approx(FINGERPRINTS, abs=1e-3)  # processors round differently
    assert unchanged and pretrain.VERSION == VERSION, (
        f"pretraining gives other weights: raise VERSION in sample/pretrain.py above {VERSION} "
        f"(unless only the text has changed), then copy it and these to this file: {found}")


def test_it_is_pretrained_once_and_logs_its_progress(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MOVEMENT_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["pretrain", "--model", "small:1x32"])
    monkeypatch.setattr(pretrain, "DOCUMENTS", 300)
    monkeypatch.setattr(pretrain, "THREADS", 1)
    monkeypatch.setattr(pretrain, "STEPS", 20)
    assert not pretrain.is_there("small:1x32")
    pretrain.main()
    first, *lines, last, folder = capsys.readouterr().out.splitlines()
    assert first.startswith("pretraining the small BERT once") and "perplexity" in last
    assert len(lines) == 10 and lines[4].startswith("pretraining step 10/20 · loss ")
    assert "steps a second" in lines[4] and lines[4].endswith(" left")
    assert bert.load(folder, "mlm") and load_tokenizer(Path(folder))
    others = ("small:1x64", "untrained:1x32")
    assert pretrain.is_there("small:1x32") and not any(map(pretrain.is_there, others))
    pretrain.main()
    assert capsys.readouterr().out.splitlines() == [folder]
    monkeypatch.setattr(pretrain, "STEPS", 21)
    assert not pretrain.is_there("small:1x32")


def test_names():
    sizes = {"small": (4, 128), "small:2x64": (2, 64), "untrained:1x32": (1, 32)}
    for name, size in sizes.items():
        assert pretrain.parse_size(name) == size and pretrain.is_small(name)
        assert pretrain.is_untrained(name) == name.startswith("untrained")
    for folder in ("small-bert", "untrained-bert/"):
        assert not pretrain.is_small(folder) and not pretrain.is_untrained(folder)


@pytest.mark.parametrize("name", ["small:0x64", "small:2x50", "small:2", "small:2x", "small2"])
def test_wrong_sizes_are_refused(name):
    with pytest.raises(UserError, match="--model"):
        pretrain.parse_size(name)
