"""bert.py against transformers to 1e-5, every way in and out of a folder, and what is refused."""

import json
import os
import pickle

import pytest
import safetensors.torch
import torch

import bert
from support.files import UserError

ODD = bert.Config(  # nothing here is a power of two, or what BERT-base has
    vocab_size=1013, hidden_size=35, num_hidden_layers=3, num_attention_heads=5,
    intermediate_size=77, max_position_embeddings=51, type_vocab_size=3, hidden_act="gelu_new",
    layer_norm_eps=1e-6, initializer_range=0.2)


def odd_model(head="classification", num_labels=3):
    """Every parameter random, so that no mixed-up bias or LayerNorm passes unseen."""
    torch.manual_seed(1)
    model = bert.create(ODD, head, num_labels).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model


def batch(vocab_size, lengths=(17, 9, 1, 12), first=(7, 9, 1, 2)):
    """A padded batch with token types: (ids, mask, types), (4, 17) each."""
    torch.manual_seed(2)
    t = torch.arange(max(lengths))[None, :]
    mask = (t < torch.tensor(lengths)[:, None]).long()
    types = (t >= torch.tensor(first)[:, None]).long() * mask
    return torch.randint(5, vocab_size, mask.shape) * mask, mask, types


def folder_of(path, weights, config=None):
    """A Hugging Face folder written by hand."""
    path.mkdir(exist_ok=True)
    config = bert.asdict(ODD) | {"model_type": "bert"} if config is None else config
    (path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(weights, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def weights():
    return bert.hf_weights(odd_model())


# -------------------------------------------------------------- parity with transformers

NAMES = {"classification": "BertForSequenceClassification", "span": "BertForQuestionAnswering",
         "mlm": "BertForMaskedLM"}


def their_logits(output, head):
    return torch.stack([output.start_logits, output.end_logits], -1) if head == "span" else (
        output.logits)


@torch.no_grad()
def compare(ours, theirs, head):
    """Every layer's hidden states, the pooled output and the logits, padding included."""
    inputs = batch(ours.bert.config.vocab_size)
    hidden = []
    for layer in ours.bert.layers:
        layer.register_forward_hook(lambda module, args, output: hidden.append(output))
    logits = ours(*inputs)
    output = theirs(inputs[0], attention_mask=inputs[1], token_type_ids=inputs[2],
                    output_hidden_states=True)
    for x, y in zip([ours.bert.embeddings(inputs[0], inputs[2]), *hidden], output.hidden_states,
                    strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)
    assert hidden[-1].std() > 0.1  # there is something to compare
    torch.testing.assert_close(logits, their_logits(output, head), atol=1e-5, rtol=1e-6)
    if head == "classification":
        pooled = theirs.bert(inputs[0], attention_mask=inputs[1], token_type_ids=inputs[2])[1]
        torch.testing.assert_close(ours.pool(hidden[-1]), pooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", NAMES)
def test_equals_transformers_on_an_odd_configuration(head, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, NAMES[head])
    config = transformers.BertConfig(**bert.asdict(ODD), num_labels=2 if head == "span" else 3)
    torch.manual_seed(0)
    model = theirs(config).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    model.save_pretrained(tmp_path)
    ours, fresh = bert.load(tmp_path, head, num_labels=2 if head == "span" else 3)
    assert fresh == [] and ours.bert.config == ODD
    compare(ours.eval(), model, head)


@pytest.mark.parametrize("head", NAMES)
def test_equals_transformers_on_real_weights(head, real_model):
    transformers = pytest.importorskip("transformers")
    ours, fresh = bert.load(real_model, head, num_labels=2)
    assert fresh  # it has no task head; a pooler it has
    assert not any("pooler" in name for name in fresh)
    theirs = getattr(transformers, NAMES[head])(transformers.BertConfig.from_pretrained(real_model))
    left = theirs.load_state_dict(bert.hf_weights(ours), strict=False)
    assert not left.unexpected_keys
    assert all(name.startswith("cls.predictions.decoder.") for name in left.missing_keys)
    compare(ours.eval(), theirs.eval(), head)


@pytest.mark.parametrize("head", NAMES)
def test_transformers_reads_what_is_saved(head, tmp_path):
    transformers = pytest.importorskip("transformers")
    model, inputs = odd_model(head, 2), batch(ODD.vocab_size)
    bert.save(model, tmp_path, None if head != "classification" else ["no", "yes"])
    auto = {"classification": transformers.AutoModelForSequenceClassification,
            "span": transformers.AutoModelForQuestionAnswering,
            "mlm": transformers.AutoModelForMaskedLM}[head]
    theirs, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        output = theirs.eval()(inputs[0], attention_mask=inputs[1], token_type_ids=inputs[2])
        torch.testing.assert_close(model(*inputs), their_logits(output, head), atol=1e-5, rtol=1e-6)
    if head == "classification":
        assert theirs.config.id2label == {0: "no", 1: "yes"}


@torch.no_grad()
def test_padding_changes_nothing():
    model, (ids, mask, types) = odd_model(), batch(ODD.vocab_size)
    together = model(ids, mask, types)
    for i, n in enumerate(mask.sum(1)):
        alone = model(ids[i : i + 1, :n], mask[i : i + 1, :n], types[i : i + 1, :n])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


def test_fresh_weights_are_as_in_bert():
    model = bert.create(ODD, "classification", 3)
    words = model.bert.embeddings.words.weight
    assert abs(words.std() / 0.2 - 1) < 0.02 and abs(words.mean()) < 0.01
    assert not words[0].any() and words[1].all()  # padding's row
    assert not model.bert.layers[2].up.bias.any()
    assert model.bert.layers[2].output_norm.weight.eq(1).all()


# --------------------------------------------------------------------- out, and in again


@pytest.mark.parametrize("head", bert.HEADS)
def test_saved_and_loaded_bit_for_bit(head, tmp_path):
    model = odd_model(head, 2)
    bert.save(model, tmp_path)
    again, fresh = bert.load(tmp_path, head, 2)
    assert fresh == []
    assert again.bert.config == ODD
    for (name, x), y in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(x, y), name


def old_names(weights):
    return {n.replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta"): x for n, x in weights.items()}


WAYS = {
    "as they are": lambda w: w,
    "no prefix": lambda w: {n.removeprefix("bert."): x for n, x in w.items()},
    "gamma and beta": old_names,
    "position ids": lambda w: w | {"bert.embeddings.position_ids": torch.arange(51)[None]},
    "another head": lambda w: w | {"qa_outputs.weight": torch.ones(2, 35),
                                   "qa_outputs.bias": torch.ones(2)},
    "pretraining heads": lambda w: w | {
        "cls.predictions.bias": torch.ones(1013), "cls.predictions.decoder.weight":
        torch.ones(1013, 35), "cls.predictions.decoder.bias": torch.ones(1013),
        "cls.predictions.transform.dense.weight": torch.ones(35, 35),
        "cls.predictions.transform.LayerNorm.gamma": torch.ones(35),
        "cls.seq_relationship.weight": torch.ones(2, 35)},
    "double precision": lambda w: {n: x.double() for n, x in w.items()},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_accepted_names(way, file, weights, tmp_path):
    folder_of(tmp_path, WAYS[way](weights))
    if file == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(WAYS[way](weights), tmp_path / file)
    model, fresh = bert.load(tmp_path, "classification", 3)
    assert fresh == []
    for name, x in bert.hf_weights(model).items():
        assert torch.equal(x, weights[name]), name


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_single(kind, weights, tmp_path):
    folder_of(tmp_path, {n: x.to(kind) for n, x in weights.items()})
    model, _ = bert.load(tmp_path, "classification", 3)
    for name, x in bert.hf_weights(model).items():
        assert x.dtype == torch.float32 and torch.equal(x, weights[name].to(kind).float())


def test_a_missing_head_is_fresh_and_named(weights, tmp_path):
    body = {n: x for n, x in weights.items() if "classifier" not in n and "pooler" not in n}
    model, fresh = bert.load(folder_of(tmp_path, body), "classification", 3)
    assert fresh == ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias",
                     "classifier.weight"]
    assert torch.equal(bert.hf_weights(model)["bert.embeddings.LayerNorm.bias"],
                       weights["bert.embeddings.LayerNorm.bias"])
    assert abs(model.classifier.weight.std() / 0.2 - 1) < 0.3 and not model.classifier.bias.any()
    assert bert.load(tmp_path, "span")[1] == ["qa_outputs.bias", "qa_outputs.weight"]
    assert "cls.predictions.bias" in bert.load(tmp_path, "mlm")[1]


def test_a_head_with_another_number_of_labels_is_fresh(weights, tmp_path):
    model, fresh = bert.load(folder_of(tmp_path, weights), "classification", 2)
    assert fresh == ["classifier.bias", "classifier.weight"]
    assert model.classifier.weight.shape == (2, 35)
    assert torch.equal(model.pooler.weight, weights["bert.pooler.dense.weight"])


# ---------------------------------------------------------------------------- refused

UP = "bert.encoder.layer.1.intermediate.dense.weight"
BROKEN = {
    "missing": (lambda w: {n: x for n, x in w.items() if n != UP}, UP),
    "unknown": (lambda w: w | {"bert.encoder.layer.1.extra": torch.ones(1)}, "layer.1.extra"),
    "one layer more": (lambda w: w | {UP.replace("1", "3"): w[UP].clone()}, "layer.3.intermediate"),
    "unknown in the head": (lambda w: w | {"classifier.scale": torch.ones(1)}, "classifier.scale"),
    "transposed": (lambda w: w | {UP: w[UP].T.contiguous()}, f"{UP} is (35, 77)"),
    "head of another width": (lambda w: w | {"classifier.weight": torch.ones(3, 36)},
                              "classifier.weight is (3, 36)"),
    "a NaN": (lambda w: w | {UP: w[UP] * torch.nan}, UP),
    "one infinity": (lambda w: w | {UP: w[UP].index_fill(0, torch.tensor(5), torch.inf)}, UP),
    "whole numbers": (lambda w: w | {UP: w[UP].to(torch.int8)}, UP),
    "beyond float32": (lambda w: w | {UP: w[UP].double() * 1e300}, UP),
    "two names": (lambda w: w | {UP[5:]: w[UP].clone()}, "is there under two names"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_weights_are_named(case, weights, tmp_path):
    change, named = BROKEN[case]
    with pytest.raises(UserError) as error:
        bert.load(folder_of(tmp_path, change(weights)), "classification", 3)
    assert named in str(error.value) and "\n" not in str(error.value)


CONFIGS = {
    "roberta": ({"model_type": "roberta"}, "RoBERTa counts positions from 2"),
    "distilbert": ({"model_type": "distilbert"}, "no pooler"),
    "albert": ({"model_type": "albert"}, "ALBERT shares"),
    "gpt2": ({"model_type": "gpt2"}, "'gpt2'"),
    "a list for a type": ({"model_type": ["bert"]}, "['bert']"),
    "relative positions": ({"position_embedding_type": "relative_key"}, "relative_key"),
    "a decoder": ({"is_decoder": True}, "is_decoder"),
    "activation": ({"hidden_act": "snake"}, "snake"),
    "heads": ({"num_attention_heads": 4}, "35 is not a multiple"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads"),
    "text": ({"hidden_size": "35"}, "hidden_size is '35'"),
    "truth": ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    "negative": ({"vocab_size": -1}, "vocab_size is -1"),
    "absurd": ({"hidden_size": 10**12}, "hidden_size"),
    "more than memory": ({"intermediate_size": 900_000, "hidden_size": 500_000},
                         "the file has"),
    "dropout": ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
    "not a number": ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
    "padding": ({"pad_token_id": 1013}, "pad_token_id"),
    "a smaller vocabulary": ({"vocab_size": 1000}, "word_embeddings.weight is (1013, 35)"),
    "fewer layers": ({"num_hidden_layers": 2}, "encoder.layer.2."),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_refused_configurations(case, weights, tmp_path):
    change, said = CONFIGS[case]
    config = bert.asdict(ODD) | {"model_type": "bert"} | change
    with pytest.raises(UserError) as error:
        bert.load(folder_of(tmp_path, weights, config), "classification", 3)
    assert said in str(error.value) and str(tmp_path) in str(error.value)


def test_a_folder_from_before_model_type(weights, tmp_path):
    config = bert.asdict(ODD)
    assert bert.load(folder_of(tmp_path, weights, config), "classification", 3)[1] == []
    folder_of(tmp_path, weights, config | {"architectures": ["BertModel"]})
    assert bert.load(tmp_path, "classification", 3)[1] == []
    folder_of(tmp_path, weights, config | {"architectures": ["RobertaModel"]})
    with pytest.raises(UserError, match="RobertaModel"):
        bert.load(tmp_path, "classification", 3)


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_pickle_with_code_in_it_is_not_run(write, weights, tmp_path):
    folder_of(tmp_path, {})
    (tmp_path / "model.safetensors").unlink()
    path, sprung = tmp_path / "pytorch_model.bin", tmp_path / "sprung"
    write({**weights, "trap": Trap(sprung)}, path)
    with pytest.raises(UserError, match="not run"):
        bert.load(tmp_path, "classification", 3)
    assert not sprung.exists()
    with pytest.raises(FileExistsError):  # the trap itself does work
        pickle.loads(pickle.dumps(Trap(tmp_path)))


FILES = {
    "none": (None, "no model.safetensors"),
    "empty": (("model.safetensors", b""), "model.safetensors: not weights"),
    "text": (("model.safetensors", b"<html>not found</html>"), "not weights"),
    "a pointer": (("pytorch_model.bin", b"version https://git-lfs\noid sha256:1"), ".bin: "),
    "an empty pickle": (("pytorch_model.bin", b""), ".bin: not weights"),
    "a list": (("pytorch_model.bin", [torch.ones(1)]), ".bin: not weights"),
    "nested": (("pytorch_model.bin", {"model": {"a": torch.ones(1)}}), ".bin: not weights"),
    "sparse": (("pytorch_model.bin", {"a": torch.eye(3).to_sparse()}), "dense"),
    "numbered": (("pytorch_model.bin", {1: torch.ones(1)}), "name"),
    "split": (("model.safetensors.index.json", b"{}"), "several files"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_weights(case, tmp_path):
    content, said = FILES[case]
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    if content and isinstance(content[1], bytes):
        (tmp_path / content[0]).write_bytes(content[1])
    elif content:
        torch.save(content[1], tmp_path / content[0])
    with pytest.raises(UserError) as error:
        bert.load(tmp_path, "classification", 3)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_truncated_file(weights, tmp_path):
    path = folder_of(tmp_path, weights) / "model.safetensors"
    whole = path.read_bytes()
    for share in (0.001, 0.5, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="not weights"):
            bert.load(tmp_path, "classification", 3)


@pytest.mark.parametrize("id2label, labels", [
    ({"0": "no", "1": "yes"}, ["no", "yes"]),
    ({"2": "c", "0": "a", "1": "b"}, ["a", "b", "c"]),
    ({"0": 0, "1": 1}, ["0", "1"]),
    ({"0": "LABEL_0", "1": "LABEL_1"}, None),
    (None, None),
])
def test_labels(id2label, labels, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": id2label}))
    assert bert.read_labels(tmp_path) == labels


@pytest.mark.parametrize("id2label", [{"1": "no", "2": "yes"}, ["no", "yes"], 3, "no", True])
def test_labels_that_are_none(id2label, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": id2label}))
    with pytest.raises(UserError, match="id2label"):
        bert.read_labels(tmp_path)
