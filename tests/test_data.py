"""Metrics against scikit-learn and scipy, tokens against transformers, batches by hand."""

import json

import numpy as np
import pytest
from tiny import features_of, refusal

import data
from support import metrics
from support.tokenizer import load_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "##x", "ab", "é", "e"]


def vocabulary(folder, words=WORDS, **config):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(word + "\n" for word in words), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(vocabulary(tmp_path / "tokenizer"))


def rows_of(*texts):
    return data.Rows([tuple(t.split("|")) for t in texts], np.arange(len(texts)))


# ------------------------------------------------------------------------------- metrics


def test_metrics_by_hand():
    p, y = np.array([1, 1, 0, 1]), np.array([1, 0, 0, 1])
    assert metrics.accuracy(p, y) == {"accuracy": 75.0}
    assert metrics.f1(p, y)["f1"] == pytest.approx(80.0)  # precision 2/3, recall 1
    assert metrics.matthews(p, y)["matthews_correlation"] == pytest.approx(100 / 3**0.5)
    assert metrics.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n", [2, 3, 40, 1043])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn_and_scipy(n, seed):
    theirs = pytest.importorskip("sklearn.metrics")
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng([n, seed])
    y, p = rng.integers(0, 2, n), rng.integers(0, 2, n)
    p[y == 1] |= rng.random(np.sum(y == 1)) < seed / 5
    assert metrics.accuracy(p, y)["accuracy"] == pytest.approx(100 * theirs.accuracy_score(y, p))
    assert metrics.f1(p, y)["f1"] == pytest.approx(100 * theirs.f1_score(y, p, zero_division=0))
    assert metrics.matthews(p, y)["matthews_correlation"] == pytest.approx(
        100 * theirs.matthews_corrcoef(y, p))
    # like STS-B: labels in steps of 0.2, and predictions near a constant; both with ties
    y = (rng.integers(0, 26, n) / 5).astype(np.float32)
    p = (2.5 + 1e-3 * (y - 2.5) + 1e-3 * rng.standard_normal(n).round(seed)).astype(np.float32)
    y[:2], p[:2] = (5.0, 1.0), (2.0, 2.5)
    pearson = stats.pearsonr(p.astype(float), y.astype(float)).statistic
    spearman = stats.spearmanr(p, y).statistic
    assert metrics.pearson_and_spearman(p, y) == pytest.approx(
        {"pearson": 100 * pearson, "spearman": 100 * spearman})


@pytest.mark.parametrize("p", [np.zeros(7, int), np.ones(7, int)])
def test_constant_predictions(p):
    y = np.array([0, 1, 1, 0, 1, 0, 0])
    assert metrics.matthews(p, y)["matthews_correlation"] == 0
    assert metrics.f1(p, y)["f1"] == pytest.approx(60.0 if p[0] else 0.0)  # 2 · 3 / (7 + 3)
    values = np.full(7, 0.1, np.float32)  # whose mean is not exactly 0.1
    assert metrics.pearson_and_spearman(values, values) == {"pearson": 0.0, "spearman": 0.0}


# -------------------------------------------------------------------------------- tokens


def test_tokens_by_hand(tokenizer):
    f = data.encode_texts(rows_of("A b|c", "abx", "a b c d|d c b a", "|"), tokenizer, 8)
    # [CLS] a b [SEP] c [SEP] | [CLS] ab ##x [SEP] | 4 and 4 tokens cut to 2 and 3 | two empty texts
    assert f.ids.tolist() == [2, 5, 6, 3, 7, 3, 2, 10, 9, 3, 2, 5, 6, 3, 8, 7, 6, 3, 2, 3, 3]
    assert f.starts.tolist() == [0, 6, 10, 18, 21]
    assert f.lengths.tolist() == [6, 4, 8, 3] and f.first.tolist() == [4, 4, 4, 2]
    assert f.pad == 0 and f.labels.tolist() == [0, 1, 2, 3] and f.ids.dtype == np.int32
    assert data.encode_texts(rows_of("a|b"), tokenizer, 3).ids.tolist() == [2, 3, 3]  # no room


def test_a_batch_by_hand(tokenizer):
    f = data.encode_texts(rows_of("a b|c", "d", "c c c|a"), tokenizer, 8)
    batch = data.collate(f, np.array([1, 0]))
    assert batch["input_ids"].tolist() == [[2, 8, 3, 0, 0, 0], [2, 5, 6, 3, 7, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch["token_type_ids"].tolist() == [[0] * 6, [0, 0, 0, 0, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]


def test_padding_is_the_tokenizers_own(tmp_path):
    words = ["a", "[CLS]", "[SEP]", "[UNK]", "[PAD]"]
    tokenizer = load_tokenizer(vocabulary(tmp_path / "v", words))
    f = data.encode_texts(rows_of("a", "a a"), tokenizer, 9)
    assert data.collate(f, np.array([0, 1]))["input_ids"].tolist() == [[1, 0, 2, 4], [1, 0, 0, 2]]


def test_the_tokenizer_is_left_as_it_was(tokenizer):
    before = tokenizer.to_str()
    data.encode_texts(rows_of("a b c|d"), tokenizer, 4)
    assert tokenizer.to_str() == before
    assert len(tokenizer.encode("a " * 600)) == 602


TEXT = "The Café in Zürich — naïve, isn't it? ABx 東京 #42"
PIECES = ["The", "the", "Café", "cafe", "Zürich", "zurich", "in", "naïve", "naive", "is", "isn",
          "##n", "'", "t", "it", "?", ",", "—", "A", "##B", "##x", "a", "##b", "東", "京", "#",
          "4", "##2"]


@pytest.mark.parametrize("config", [
    {"do_lower_case": True}, {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"do_lower_case": False, "tokenize_chinese_chars": False}])
def test_vocabulary_files_equal_transformers(config, transformers, tmp_path):
    folder = vocabulary(tmp_path / "v", WORDS[:5] + PIECES, **config)
    theirs = transformers.BertTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder).encode(TEXT, "the THE")
    expected = theirs(TEXT, "the THE")
    assert ours.ids == expected["input_ids"] and ours.type_ids == expected["token_type_ids"]
    theirs.save_pretrained(tmp_path / "again")  # which writes a tokenizer.json
    assert (tmp_path / "again" / "tokenizer.json").exists()
    assert load_tokenizer(tmp_path / "again").encode(TEXT, "the THE").ids == ours.ids


def test_a_vocabulary_with_capitals_is_cased_unless_the_config_says_otherwise(tmp_path):
    lower = [piece for piece in PIECES if piece == piece.lower()]
    for pieces, tokens in ((PIECES, ["The", "A", "##B", "##x", "Café"]),
                           (lower, ["the", "a", "##b", "##x", "cafe"])):
        tokenizer = load_tokenizer(vocabulary(tmp_path, WORDS[:5] + pieces))
        assert tokenizer.encode("The ABx Café").tokens[1:-1] == tokens


def test_real_tokenizer_equals_transformers(transformers, real_model, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(real_model)
    (tmp_path / "vocab.txt").write_bytes((real_model / "vocab.txt").read_bytes())
    a, b = [TEXT * 9, TEXT, "x"], ["A second text.", "", TEXT * 20]
    for folder in (real_model, tmp_path):  # tokenizer.json, which pads to 128; vocab.txt alone
        rows = data.Rows(list(zip(a, b)), np.zeros(3))
        f = data.encode_texts(rows, load_tokenizer(folder), 128)
        expected = theirs(a, b, truncation="longest_first", max_length=128)
        for i in range(3):
            batch = data.collate(f, np.array([i]))
            assert batch["input_ids"][0].tolist() == expected["input_ids"][i]
            assert batch["token_type_ids"][0].tolist() == expected["token_type_ids"][i]


REFUSED = {  # files, part of the message
    "nothing there": ({}, "neither tokenizer.json nor vocab.txt"),
    "no [PAD]": ({"vocab.txt": "[UNK]\n[CLS]\n[SEP]\na\n"}, "[PAD]"),
    "no [SEP]": ({"vocab.txt": "[PAD]\n[UNK]\n[CLS]\na\n"}, "not a tokenizer"),
    "no [UNK]": ({"vocab.txt": "[PAD]\n[CLS]\n[SEP]\na\n"}, "not a tokenizer"),
    "empty": ({"vocab.txt": ""}, "not a tokenizer"),
    "not JSON": ({"tokenizer.json": "{"}, "not a tokenizer"),
    "another JSON": ({"tokenizer.json": '{"version": "1.0"}'}, "not a tokenizer"),
    "no template": ({"tokenizer.json": json.dumps({"version": "1.0", "model": {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"[PAD]": 0, "[UNK]": 1}}})}, "not as BERT's"),
    "a word for a truth value": ({"vocab.txt": "\n".join(WORDS), "tokenizer_config.json":
                                  '{"do_lower_case": "no"}'}, "not a tokenizer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_tokenizers(case, tmp_path):
    files, message = REFUSED[case]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert message in refusal(load_tokenizer, tmp_path)


# ------------------------------------------------------------------------------- batches


def padding(features, batches):
    lengths = [features.lengths[index] for index in batches]
    return 1 - sum(n.sum() for n in lengths) / sum(len(n) * n.max() for n in lengths)


@pytest.mark.parametrize("rows, size", [(1, 4), (4, 4), (5, 4), (1000, 7), (9000, 16)])
def test_every_row_once_an_epoch(rows, size):
    f = features_of(np.random.default_rng(0).integers(3, 90, rows))
    for order in (data.batches(f, size, 0, 0), data.batches_in_order(f, size)):
        order = list(order)
        assert len(order) == -(-rows // size) and max(map(len, order)) <= size
        assert sorted(np.concatenate(order)) == list(range(rows))


def test_order_is_a_function_of_seed_and_epoch():
    f = features_of(np.random.default_rng(0).integers(3, 90, 500))
    order = {(s, e): np.concatenate(list(data.batches(f, 8, s, e))).tolist()
             for s in range(2) for e in range(3)}
    assert len({tuple(x) for x in order.values()}) == 6
    assert order[1, 2] == np.concatenate(list(data.batches(f, 8, 1, 2))).tolist()


@pytest.mark.parametrize("mean, spread, longest, rows", [  # like SST-2, MNLI and MRPC
    (10, 0.65, 66, 67349), (38, 0.5, 128, 40000), (50, 0.2, 128, 3668)])
def test_padding_stays_under_five_percent(mean, spread, longest, rows):
    rng = np.random.default_rng(0)
    f = features_of(np.clip(rng.lognormal(np.log(mean), spread, rows), 3, longest).astype(int))
    order = list(data.batches(f, 32, seed=0, epoch=0))
    assert padding(f, order) < 0.05
    assert padding(f, np.array_split(rng.permutation(rows), rows // 32)) > 0.25
    # still shuffled: neither lengths nor row numbers of successive batches are correlated
    for x in ([f.lengths[i].mean() for i in order], [i.mean() for i in order]):
        assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 4 / len(order) ** 0.5


def test_padding_on_real_rows(real_model, real_data):
    rows = data.draw(data.read(data.TASKS["sst2"], real_data, "train"), 20_000)
    f = data.encode_texts(rows, load_tokenizer(real_model), 128)
    assert padding(f, data.batches(f, 32, seed=0, epoch=0)) < 0.05


def test_rows_are_tokenised_in_chunks(tokenizer, monkeypatch):
    rows = rows_of("a|b", "c", "d d", "a b c", "b")
    whole = data.encode_texts(rows, tokenizer, 9)
    monkeypatch.setattr(data, "CHUNK", 2)
    parts = data.encode_texts(rows, tokenizer, 9)
    assert np.array_equal(whole.ids, parts.ids) and np.array_equal(whole.starts, parts.starts)
