"""The small BERT: its vocabulary, its masking, and that training it teaches it something."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bert
import data
from sample import generate as sample_data
from sample import pretrain
from support.files import UserError


@pytest.fixture(scope="module")
def text():
    return list(sample_data.pretraining_text(1_500))


@pytest.fixture(scope="module")
def tokenizer(text):
    return pretrain.train_tokenizer([" ".join(document) for document in text])


@pytest.fixture(scope="module")
def features(text, tokenizer):
    rows = data.Rows(text, np.zeros(len(text), dtype=np.int64))
    return data.encode_texts(rows, tokenizer, 64)


def test_vocabulary_is_berts_kind(tokenizer):
    assert [tokenizer.id_to_token(i) for i in range(5)] == pretrain.SPECIAL
    one = tokenizer.encode("Every dog runs .", "no DOG runs .")
    assert one.tokens[0] == "[CLS]" and one.tokens.count("[SEP]") == 2
    assert one.type_ids[0] == 0 and one.type_ids[-1] == 1
    assert "[UNK]" not in one.tokens


def test_vocabulary_is_the_same_in_every_run(text, tokenizer):
    texts = [" ".join(document) for document in text]
    for _ in range(3):
        assert pretrain.train_tokenizer(texts).to_str() == tokenizer.to_str()


def test_masking_shares(tokenizer):
    torch.manual_seed(0)
    ids = torch.full((200, 200), 7)
    ids[:, 0] = 2  # [CLS] is never chosen
    out, chosen = pretrain.mask_tokens({"input_ids": ids}, 1000, 4)
    assert not chosen[:, 0].any() and torch.equal(out[~chosen], ids[~chosen])
    assert chosen[:, 1:].float().mean() == pytest.approx(pretrain.MASKED, abs=0.01)
    assert (out[chosen] == 4).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (out[chosen] == 7).float().mean() == pytest.approx(0.1, abs=0.02)


def loss_of(model, features, tokenizer):
    torch.manual_seed(1)
    losses = []
    for index in itertools.islice(data.batches(features, 64, 0, 0), 5):
        batch = data.collate(features, index)
        ids, chosen = pretrain.mask_tokens(batch, tokenizer.get_vocab_size(), 4)
        logits = model(ids, batch["attention_mask"], batch["token_type_ids"])
        losses.append(F.cross_entropy(logits[chosen], batch["input_ids"][chosen]).item())
    return sum(losses) / len(losses)


def test_training_lowers_the_loss_and_repeats_to_the_bit(features, tokenizer, capsys):
    untrained, model, again = (pretrain.train(features, tokenizer, 1, 32, steps)
                               for steps in (0, 120, 120))
    assert loss_of(model, features, tokenizer) < loss_of(untrained, features, tokenizer) - 1.0
    for (name, a), b in zip(bert.hf_weights(model).items(), bert.hf_weights(again).values()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name, size", [("small", (4, 128)), ("small:2x64", (2, 64)),
                                        ("untrained:1x32", (1, 32))])
def test_sizes(name, size):
    assert pretrain.parse_size(name) == size


@pytest.mark.parametrize("name", ["small:0x64", "small:2x50", "small:2", "small:2x", "small2"])
def test_wrong_sizes_are_refused(name):
    with pytest.raises(UserError, match="--model"):
        pretrain.parse_size(name)


def test_a_folder_is_not_taken_for_the_small_bert():
    names = ("small", "small:2x64", "untrained", "untrained:2x64", "small-bert", "untrained-bert/")
    assert [pretrain.is_small(name) for name in names] == [True] * 4 + [False] * 2
    assert [pretrain.is_untrained(name) for name in names] == [False] * 2 + [True] * 2 + [False] * 2
