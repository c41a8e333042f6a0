"""bert.py against transformers to 1e-5, folders written and read back, and what is refused."""

import json
import pickle

import pytest
import safetensors.torch
import tokenizers
import torch
from tiny import Trap, batch, compare_with_transformers, refusal

import bert
from support.noise import dropout

ODD = bert.Config(  # no power of two, and no value of BERT-base
    vocab_size=1013, hidden_size=35, num_hidden_layers=3, num_attention_heads=5,
    intermediate_size=77, max_position_embeddings=51, type_vocab_size=3, hidden_act="gelu_new",
    layer_norm_eps=1e-6, initializer_range=0.2)
NUM_LABELS = {"classification": 3, "span": 2, "mlm": 0}


def odd_model(head="classification"):
    """Every parameter is random, so that mixed-up biases or LayerNorms show."""
    torch.manual_seed(1)
    model = bert.create(ODD, head, NUM_LABELS[head]).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model


def write_folder(path, weights, **config):
    """A Hugging Face folder, written by hand."""
    (path / "config.json").write_text(json.dumps(bert.asdict(ODD) | config))
    safetensors.torch.save_file(weights, path / "model.safetensors")
    return path


def test_dropout_is_where_bert_has_it(monkeypatch):
    seen = []
    monkeypatch.setattr(bert, "dropout", lambda x, p, training: seen.append(p) or x)
    model = bert.create(bert.Config(50, 8, 2, 2, 16, 32, hidden_dropout_prob=0.1,
                                    attention_probs_dropout_prob=0.2), "classification").train()
    ids = torch.ones(2, 5, dtype=torch.long)
    model(ids, None, ids * 0)
    assert seen == [0.1] + 2 * [0.2, 0.1, 0.1] and model.dropout.p == 0.1


def check_loaded(folder, head, model):
    """A folder holds just this model, bit for bit."""
    loaded, fresh = bert.load(folder, head, NUM_LABELS[head])
    assert fresh == [] and loaded.bert.config == ODD
    for (name, x), y in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(x, y), name


@pytest.fixture(scope="module")
def weights():
    """Hugging Face's name → tensor, rounded so that every precision holds it exactly."""
    return {n: x.bfloat16().half().float() for n, x in bert.hf_weights(odd_model()).items()}


# -------------------------------------------------------------- parity with transformers


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-15)])
def test_the_last_layer_may_compute_only_what_is_read(dtype, tolerance):
    """The same hidden states and gradients as from the whole layer, at any positions."""
    model = odd_model("mlm").to(dtype).eval()
    ids, mask, types = batch(model.bert.config.vocab_size)
    positions = torch.tensor([[0, 3, 3], [1, 0, 2], [4, 2, 0], [0, 0, 1]])
    results = []
    for read in (lambda: model.bert(ids, mask, types, positions),
                 lambda: bert.at_positions(model.bert(ids, mask, types), positions)):
        model.zero_grad()
        hidden_states = read()
        hidden_states.square().mean().backward()
        gradients = [p.grad.clone() for p in model.bert.parameters()]
        results.append([hidden_states.detach(), *gradients])
    for part, whole in zip(*results):
        scale = max(1.0, float(whole.abs().max()))
        assert (part - whole).abs().max() <= tolerance * scale


def test_attention_with_dropout_is_the_same_formula():
    """With a dropout probability too small to drop anything, the two ways agree."""
    model = odd_model("span")
    ids, mask, types = batch(model.bert.config.vocab_size)
    for layer in model.bert.layers:
        layer.attention_dropout_prob, layer.dropout_prob = 1e-9, 0.0
    model.bert.embeddings.dropout_prob = 0.0
    written_out = model.train()(ids, mask, types)
    torch.testing.assert_close(written_out, model.eval()(ids, mask, types), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_the_share_asked_for(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(999, 1001, dtype=dtype, requires_grad=True)
    y = dropout(x, p, training=True)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=2e-3)
    assert set(y.unique().tolist()) == {0.0, (torch.ones(1, dtype=dtype) / (1 - p)).item()}
    for lane in range(4):  # each of the four numbers that are cut from one of 64 bits
        assert (y.flatten()[lane::4] == 0).float().mean().item() == pytest.approx(p, abs=3e-3)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # what was dropped has no gradient
    assert dropout(x, p, training=False) is x or torch.equal(dropout(x, p, False), x)


@pytest.mark.parametrize("head", bert.HEADS)
def test_transformers_reads_computes_and_writes_the_same(head, transformers, tmp_path):
    labels = ["no", "yes", "perhaps"] if head == "classification" else None
    ours = odd_model(head)
    bert.save(ours, tmp_path / "ours", labels)
    auto = getattr(transformers, "Auto" + bert.HEADS[head].__name__.replace("Bert", "Model"))
    theirs, report = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert labels is None or list(theirs.config.id2label.values()) == labels
    compare_with_transformers(ours, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    check_loaded(tmp_path / "theirs", head, ours)


@pytest.mark.parametrize("head", bert.HEADS)
def test_equals_transformers_on_real_weights(head, transformers, real_model):
    ours, fresh = bert.load(real_model, head, num_labels=2)
    assert fresh and not any("pooler" in name for name in fresh)  # it has a pooler but no head
    config = transformers.BertConfig.from_pretrained(real_model)
    theirs = getattr(transformers, bert.HEADS[head].__name__)(config)
    keys = theirs.load_state_dict(bert.hf_weights(ours), strict=False)
    assert not keys.unexpected_keys
    assert all(name.startswith("cls.predictions.decoder.") for name in keys.missing_keys)
    compare_with_transformers(ours, theirs)


@torch.no_grad()
def test_padding_changes_nothing():
    model, (ids, mask, types) = odd_model(), batch(ODD.vocab_size)
    together = model(ids, mask, types)
    for i, n in enumerate(mask.sum(1)):
        alone = model(ids[i : i + 1, :n], mask[i : i + 1, :n], types[i : i + 1, :n])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


def test_fresh_weights_are_as_in_bert():
    model = bert.create(ODD, "classification", 3)
    words, layer = model.bert.embeddings.word_embeddings.weight, model.bert.layers[2]
    assert abs(words.std() / 0.2 - 1) < 0.02 and abs(words.mean()) < 0.01
    assert not words[0].any() and words[1].all()  # row 0 is padding's
    assert not layer.intermediate.bias.any() and layer.output_norm.weight.eq(1).all()


# --------------------------------------------------------------------- written and read back


@pytest.mark.parametrize("head", bert.HEADS)
def test_saved_and_loaded_bit_for_bit(head, tmp_path):
    model = odd_model(head)
    bert.save(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    check_loaded(tmp_path, head, model)


def test_tokenizer_files_are_copied_or_written(tmp_path):
    for name in ("vocab.txt", "tokenizer.json", "other.txt"):
        (tmp_path / name).write_text(name)
    tokenizer, saved = tokenizers.BertWordPieceTokenizer(), tmp_path / "saved"
    for given, written in ((None, "tokenizer.json"), (tokenizer, tokenizer.to_str())):
        bert.save(odd_model(), saved, tokenizer=given, tokenizer_source=tmp_path)
        assert (saved / "tokenizer.json").read_text() == written
        assert (saved / "vocab.txt").read_text() == "vocab.txt"
        assert not (saved / "other.txt").exists()


VARIANTS = {
    "as they are": lambda w: w,
    "no prefix": lambda w: {n.removeprefix("bert."): x for n, x in w.items()},
    "gamma and beta": lambda w: {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"): x for n, x in w.items()},
    "position ids": lambda w: w | {"bert.embeddings.position_ids": torch.arange(51)[None]},
    "another head": lambda w: w | {"qa_outputs.weight": torch.ones(2, 35),
                                   "qa_outputs.bias": torch.ones(2)},
    "pretraining heads": lambda w: w | {
        "cls.predictions.bias": torch.ones(1013), "cls.predictions.decoder.weight":
        torch.ones(1013, 35), "cls.predictions.decoder.bias": torch.ones(1013),
        "cls.predictions.transform.dense.weight": torch.ones(35, 35),
        "cls.predictions.transform.LayerNorm.gamma": torch.ones(35),
        "cls.seq_relationship.weight": torch.ones(2, 35)},
    "float64": lambda w: {n: x.double() for n, x in w.items()},
    "float16": lambda w: {n: x.half() for n, x in w.items()},
    "bfloat16": lambda w: {n: x.bfloat16() for n, x in w.items()},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_accepted_names_and_precisions(variant, file, weights, tmp_path):
    write_folder(tmp_path, VARIANTS[variant](weights))
    if file == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(VARIANTS[variant](weights), tmp_path / file)
    model, fresh = bert.load(tmp_path, "classification", 3)
    assert fresh == []
    for name, x in bert.hf_weights(model).items():
        assert x.dtype == torch.float32 and torch.equal(x, weights[name]), name


def test_a_missing_head_is_fresh_and_named(weights, tmp_path):
    body = {n: x for n, x in weights.items() if "classifier" not in n and "pooler" not in n}
    model, fresh = bert.load(write_folder(tmp_path, body), "classification", 3)
    assert fresh == ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias",
                     "classifier.weight"]
    name = "bert.embeddings.LayerNorm.bias"
    assert torch.equal(bert.hf_weights(model)[name], weights[name])
    assert abs(model.classifier.weight.std() / 0.2 - 1) < 0.3 and not model.classifier.bias.any()
    assert bert.load(tmp_path, "span")[1] == ["qa_outputs.bias", "qa_outputs.weight"]
    assert "cls.predictions.bias" in bert.load(tmp_path, "mlm")[1]


def test_a_head_with_another_number_of_labels_is_fresh(weights, tmp_path):
    model, fresh = bert.load(write_folder(tmp_path, weights), "classification", 2)
    assert fresh == ["classifier.bias", "classifier.weight"]
    assert model.classifier.weight.shape == (2, 35)
    assert torch.equal(model.pooler.weight, weights["bert.pooler.dense.weight"])


# ---------------------------------------------------------------------------- refused


def refused(folder):
    return refusal(bert.load, folder, "classification", 3)


NAME = "bert.encoder.layer.1.intermediate.dense.weight"
BROKEN = {
    "missing": (lambda w: {n: x for n, x in w.items() if n != NAME}, f"{NAME} is missing"),
    "unknown": (lambda w: w | {"bert.encoder.layer.1.extra": torch.ones(1)}, "layer.1.extra"),
    "one layer more": (lambda w: w | {NAME.replace("1", "3"): w[NAME].clone()},
                       "layer.3.intermediate"),
    "unknown in the head": (lambda w: w | {"classifier.scale": torch.ones(1)}, "classifier.scale"),
    "transposed": (lambda w: w | {NAME: w[NAME].T.contiguous()}, f"{NAME} is (35, 77)"),
    "head of another width": (lambda w: w | {"classifier.weight": torch.ones(3, 36)},
                              "classifier.weight is (3, 36)"),
    "a NaN": (lambda w: w | {NAME: w[NAME] * torch.nan}, NAME),
    "one infinity": (lambda w: w | {NAME: w[NAME].index_fill(0, torch.tensor(5), torch.inf)}, NAME),
    "whole numbers": (lambda w: w | {NAME: w[NAME].to(torch.int8)}, NAME),
    "beyond float32": (lambda w: w | {NAME: w[NAME].double() * 1e300}, NAME),
    "two names": (lambda w: w | {NAME[5:]: w[NAME].clone()}, "appears under two names"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_weights_are_named(case, weights, tmp_path):
    change, said = BROKEN[case]
    assert said in refused(write_folder(tmp_path, change(weights)))


CONFIGS = {
    "roberta": ({"model_type": "roberta"}, "RoBERTa counts positions from 2"),
    "distilbert": ({"model_type": "distilbert"}, "no pooler"),
    "albert": ({"model_type": "albert"}, "ALBERT shares"),
    "gpt2": ({"model_type": "gpt2"}, "'gpt2'"),
    "a list for a type": ({"model_type": ["bert"]}, "['bert']"),
    "an old folder of another model": ({"architectures": ["RobertaModel"]}, "RobertaModel"),
    "no list of architectures": ({"architectures": 3}, "model_type is 3"),
    "relative positions": ({"position_embedding_type": "relative_key"}, "relative_key"),
    "a decoder": ({"is_decoder": True}, "is_decoder"),
    "activation": ({"hidden_act": "snake"}, "'snake' is none of ['gelu'"),
    "heads": ({"num_attention_heads": 4}, "35 is not a multiple"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads"),
    "text": ({"hidden_size": "35"}, "hidden_size is '35'"),
    "truth": ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    "negative": ({"vocab_size": -1}, "vocab_size is -1"),
    "absurd": ({"hidden_size": 10**12}, "hidden_size"),
    "more than memory": ({"intermediate_size": 900_000, "hidden_size": 500_000}, "the file has"),
    "dropout": ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
    "not a number": ({"layer_norm_eps": float("nan")}, "NaN is not a number"),
    "padding": ({"pad_token_id": 1013}, "pad_token_id"),
    "a smaller vocabulary": ({"vocab_size": 1000}, "word_embeddings.weight is (1013, 35)"),
    "fewer layers": ({"num_hidden_layers": 2}, "encoder.layer.2."),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_refused_configurations(case, weights, tmp_path):
    change, said = CONFIGS[case]
    assert said in refused(write_folder(tmp_path, weights, **change))


@pytest.mark.parametrize("config", [{}, {"model_type": "bert"}, {"architectures": ["BertModel"]}])
def test_accepted_model_types(config, weights, tmp_path):
    assert bert.load(write_folder(tmp_path, weights, **config), "classification", 3)[1] == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_pickle_with_code_in_it_is_not_run(write, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bert.save(odd_model(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write({**weights, "trap": Trap()}, tmp_path / "pytorch_model.bin")
    assert "not run" in refused(tmp_path)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "sprung").exists()  # the trap itself does work


FILES = {
    "none": (None, None, "no model.safetensors"),
    "empty": ("model.safetensors", b"", "model.safetensors: not weights"),
    "text": ("model.safetensors", b"<html>not found</html>", "not weights"),
    "a pointer": ("pytorch_model.bin", b"version https://git-lfs\noid sha256:1", ".bin: "),
    "an empty pickle": ("pytorch_model.bin", b"", ".bin: not weights"),
    "a list": ("pytorch_model.bin", [torch.ones(1)], ".bin: not weights"),
    "nested": ("pytorch_model.bin", {"model": {"a": torch.ones(1)}}, ".bin: not weights"),
    "sparse": ("pytorch_model.bin", {"a": torch.eye(3).to_sparse()}, "dense"),
    "numbered": ("pytorch_model.bin", {1: torch.ones(1)}, "name"),
    "split": ("model.safetensors.index.json", b"{}", "several files"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_weights(case, tmp_path):
    name, content, said = FILES[case]
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content:
        torch.save(content, tmp_path / name)
    assert said in refused(tmp_path)


@pytest.mark.parametrize("id2label, labels", [
    ({"0": "no", "1": "yes"}, ["no", "yes"]),
    ({"2": "c", "0": "a", "1": "b"}, ["a", "b", "c"]),
    ({"0": 0, "1": 1}, ["0", "1"]),
    (None, ["LABEL_0", "LABEL_1"]),
    *[(wrong, None) for wrong in ({"1": "no", "2": "yes"}, ["no", "yes"], 3, "no", True)],
])
def test_labels(id2label, labels, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": id2label}))
    if labels:
        assert bert.read_labels(tmp_path) == labels
    else:
        assert "id2label" in refusal(bert.read_labels, tmp_path)
