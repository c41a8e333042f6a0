"""BERT from scratch (Devlin et al. 2018), small enough to read in ten minutes.

    import bert
    model, notes = bert.load("path/or/folder", head="classification", num_labels=3)
    logits = model(input_ids, attention_mask, token_type_ids)

Knows nothing of pruning. Reads and writes the Hugging Face folder layout: config.json and
model.safetensors (or pytorch_model.bin), under Hugging Face's parameter names.

Shapes: B batch, T tokens, H hidden width, A attention heads, D = H / A, V vocabulary, C classes.
"""

import json
import pickle
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from support.files import UserError, read_json, write_atomically

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # all are read as float32


@dataclass
class Config:
    """The part of config.json that decides the computation, under its Hugging Face names."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int = 0


# ------------------------------------------------------------------------------- the network


class Embeddings(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.words = nn.Embedding(c.vocab_size, c.hidden_size, padding_idx=c.pad_token_id)
        self.positions = nn.Embedding(c.max_position_embeddings, c.hidden_size)
        self.types = nn.Embedding(c.type_vocab_size, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout = nn.Dropout(c.hidden_dropout_prob)

    def forward(self, input_ids, token_type_ids):  # (B, T), (B, T)
        t = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T)
        x = self.words(input_ids) + self.types(token_type_ids) + self.positions(t)  # (B, T, H)
        return self.dropout(self.norm(x))


class Layer(nn.Module):
    """One encoder layer, LayerNorm after each residual sum ("post-LN"), as in the first BERT.

    Its six matrices query, key, value, attention_out, up, down are what the paper prunes.
    """

    def __init__(self, c: Config):
        super().__init__()
        self.heads = c.num_attention_heads
        self.query = nn.Linear(c.hidden_size, c.hidden_size)
        self.key = nn.Linear(c.hidden_size, c.hidden_size)
        self.value = nn.Linear(c.hidden_size, c.hidden_size)
        self.attention_out = nn.Linear(c.hidden_size, c.hidden_size)
        self.attention_norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.up = nn.Linear(c.hidden_size, c.intermediate_size)
        self.down = nn.Linear(c.intermediate_size, c.hidden_size)
        self.output_norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.activation = ACTIVATIONS[c.hidden_act]
        self.dropout = nn.Dropout(c.hidden_dropout_prob)
        self.attention_dropout = c.attention_probs_dropout_prob

    def split(self, x):  # (B, T, H)
        B, T, H = x.shape
        return x.view(B, T, self.heads, H // self.heads).transpose(1, 2)  # (B, A, T, D)

    def attend(self, x, visible):  # (B, T, H), (B, 1, 1, T)
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        p = self.attention_dropout if self.training else 0.0
        # softmax(q kᵀ / √D) v, padding never looked at
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=p)  # (B, A, T, D)
        return self.attention_out(y.transpose(1, 2).flatten(2))  # (B, T, H)

    def forward(self, x, visible):  # (B, T, H), (B, 1, 1, T)
        x = self.attention_norm(x + self.dropout(self.attend(x, visible)))  # (B, T, H)
        y = self.down(self.activation(self.up(x)))  # (B, T, 4H) inside, (B, T, H) out
        return self.output_norm(x + self.dropout(y))  # (B, T, H)


class Encoder(nn.Module):
    """Embeddings and layers: token ids to hidden states."""

    def __init__(self, c: Config):
        super().__init__()
        self.config = c
        self.embeddings = Embeddings(c)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))

    def forward(self, input_ids, attention_mask, token_type_ids):
        """(B, T) ids, (B, T) 1 where real and 0 where padding, (B, T) segment → (B, T, H)."""
        visible = attention_mask[:, None, None, :].bool()  # (B, 1, 1, T)
        x = self.embeddings(input_ids, token_type_ids)  # (B, T, H)
        for layer in self.layers:
            x = layer(x, visible)  # (B, T, H)
        return x


class Classifier(nn.Module):
    """Sentence (pair) → class scores; with one class it is a regression."""

    architecture = "BertForSequenceClassification"
    new_parts = ("classifier.", "pooler.")  # may be missing from a checkpoint

    def __init__(self, c: Config, num_labels: int = 2):
        super().__init__()
        self.bert = Encoder(c)
        self.pooler = nn.Linear(c.hidden_size, c.hidden_size)
        self.dropout = nn.Dropout(c.hidden_dropout_prob)
        self.classifier = nn.Linear(c.hidden_size, num_labels)

    def pool(self, hidden):  # (B, T, H)
        return torch.tanh(self.pooler(hidden[:, 0]))  # (B, H), from the [CLS] position

    def forward(self, input_ids, attention_mask, token_type_ids):
        hidden = self.bert(input_ids, attention_mask, token_type_ids)  # (B, T, H)
        return self.classifier(self.dropout(self.pool(hidden)))  # (B, C)


class SpanReader(nn.Module):
    """Question and passage → a start and an end score at every token (SQuAD)."""

    architecture = "BertForQuestionAnswering"
    new_parts = ("span.",)

    def __init__(self, c: Config, num_labels: int = 2):
        super().__init__()
        self.bert = Encoder(c)
        self.span = nn.Linear(c.hidden_size, num_labels)

    def forward(self, input_ids, attention_mask, token_type_ids):
        hidden = self.bert(input_ids, attention_mask, token_type_ids)  # (B, T, H)
        return self.span(hidden)  # (B, T, 2)


class MaskedLM(nn.Module):
    """Fill in masked tokens; the output matrix is the word embedding itself."""

    architecture = "BertForMaskedLM"
    new_parts = ("mlm_",)

    def __init__(self, c: Config, num_labels: int | None = None):
        super().__init__()
        self.bert = Encoder(c)
        self.mlm_dense = nn.Linear(c.hidden_size, c.hidden_size)
        self.mlm_norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.mlm_bias = nn.Parameter(torch.zeros(c.vocab_size))
        self.activation = ACTIVATIONS[c.hidden_act]

    def predict(self, hidden):  # (..., H)
        y = self.mlm_norm(self.activation(self.mlm_dense(hidden)))  # (..., H)
        return F.linear(y, self.bert.embeddings.words.weight, self.mlm_bias)  # (..., V)

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.predict(self.bert(input_ids, attention_mask, token_type_ids))  # (B, T, V)


HEADS = {"classification": Classifier, "span": SpanReader, "mlm": MaskedLM}


def initialise(module: nn.Module, std: float) -> None:
    """BERT's initial weights: N(0, std²), biases zero, LayerNorm the identity."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.weight.data[part.padding_idx].zero_()
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)


def create(c: Config, head: str, num_labels: int = 2) -> nn.Module:
    """A fresh, untrained model; `head` is one of HEADS."""
    model = HEADS[head](c, num_labels)
    initialise(model, c.initializer_range)
    return model


# --------------------------------------------------------- Hugging Face's folder, in and out

HF_NAMES = (  # (ours, Hugging Face's): the whole of the renaming, longer names before shorter
    ("embeddings.words.", "embeddings.word_embeddings."),
    ("embeddings.positions.", "embeddings.position_embeddings."),
    ("embeddings.types.", "embeddings.token_type_embeddings."),
    ("embeddings.norm.", "embeddings.LayerNorm."),
    ("bert.layers.", "bert.encoder.layer."),
    (".query.", ".attention.self.query."),
    (".key.", ".attention.self.key."),
    (".value.", ".attention.self.value."),
    (".attention_out.", ".attention.output.dense."),
    (".attention_norm.", ".attention.output.LayerNorm."),
    (".up.", ".intermediate.dense."),
    (".down.", ".output.dense."),
    (".output_norm.", ".output.LayerNorm."),
    ("pooler.", "bert.pooler.dense."),
    ("span.", "qa_outputs."),
    ("mlm_dense.", "cls.predictions.transform.dense."),
    ("mlm_norm.", "cls.predictions.transform.LayerNorm."),
    ("mlm_bias", "cls.predictions.bias"),
)

# Parts that other tools leave in a checkpoint and that no model here has.
IGNORED = ("position_ids", "cls.predictions.decoder.", "cls.seq_relationship.")

FAMILIES = {  # model_type → why such weights are not for this network
    "roberta": "RoBERTa counts positions from 2 and has no segments",
    "distilbert": "DistilBERT has no segments and no pooler",
    "albert": "ALBERT shares one layer's weights among all, and factorises its embeddings",
}


def to_hf_name(name: str) -> str:
    for ours, theirs in HF_NAMES:
        name = name.replace(ours, theirs)
    return name


def from_hf_name(name: str) -> str:
    """Accepts names without the `bert.` prefix and LayerNorm's old gamma and beta."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = "bert." + name
    for ours, theirs in HF_NAMES:
        name = name.replace(theirs, ours)
    return name


def check_config(raw: dict, c: Config, path: Path) -> None:
    """Refuse other families, by name, and values that no BERT can have."""
    named = str(raw.get("architectures", "['Bert"))  # old folders have no model_type, but this
    kind = raw.get("model_type", "bert" if named.startswith("['Bert") else named)
    if kind != "bert":
        why = FAMILIES.get(str(kind), "that is another network")
        raise UserError(f"{path}: model_type is {kind!r}, not 'bert': {why}; use a BERT, such as "
                        "bert-base-uncased")
    for name, usual in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        if (raw.get(name) or usual) != usual:
            raise UserError(f"{path}: {name} is {raw[name]!r}; only {usual!r} is supported")
    if str(c.hidden_act) not in ACTIVATIONS:
        raise UserError(f"{path}: hidden_act {c.hidden_act!r} is unknown; known: "
                        + ", ".join(ACTIVATIONS))
    for f in fields(c):
        value, limit = getattr(c, f.name), 1 if f.type is float else 1_000_000
        if f.type is not str and (type(value) not in (int, f.type) or not 0 <= value < limit):
            raise UserError(f"{path}: {f.name} is {value!r}; from 0 to below {limit} is expected")
    if c.num_attention_heads == 0 or c.hidden_size % c.num_attention_heads:
        raise UserError(f"{path}: hidden_size {c.hidden_size} is not a multiple of "
                        f"num_attention_heads {c.num_attention_heads}")
    if c.pad_token_id >= c.vocab_size:
        raise UserError(f"{path}: pad_token_id {c.pad_token_id} is not below vocab_size")


def read_config(folder: str | Path) -> tuple[Config, dict]:
    """config.json as a Config and as the raw dict. What it leaves out is as in BERT-base."""
    path = Path(folder) / "config.json"
    raw = read_json(path)
    c = Config(**{f.name: raw[f.name] for f in fields(Config) if raw.get(f.name) is not None})
    check_config(raw, c, path)
    return c, raw


def read_labels(folder: str | Path) -> list[str] | None:
    """The classes' names in the order of the logits; None for none, or LABEL_0, LABEL_1, …"""
    names = read_config(folder)[1].get("id2label")
    try:
        labels = None if names is None else [str(names[str(i)]) for i in range(len(names))]
    except (KeyError, TypeError):
        raise UserError(f"{folder}: id2label in config.json does not count from 0") from None
    return None if labels and labels[0] == "LABEL_0" else labels


def read_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """Tensors under the file's own names; a .bin file is read weights-only, never unpickled."""
    path = Path(folder) / "model.safetensors"
    try:
        if path.exists():
            return safetensors.torch.load_file(path)
        path = Path(folder) / "pytorch_model.bin"
        weights = torch.load(path, map_location="cpu", weights_only=True)
        if all(isinstance(n, str) and x.layout == torch.strided for n, x in weights.items()):
            return weights
        why = "dense tensors with a name each are expected"
    except FileNotFoundError:
        why = "no such file, and no model.safetensors (weights in several files are not supported)"
    except pickle.UnpicklingError:
        why = "damaged, or more than weights; a pickle can hold any program, so it was not run"
    except Exception as error:  # the libraries raise many kinds; each means a file to replace
        why = "not weights: " + (str(error).strip() or type(error).__name__).splitlines()[0]
    raise UserError(f"{path}: {why}")


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], where: str) -> list[str]:
    """Copy `weights` (Hugging Face names) into `model`, checking every name and shape.

    Only parts of the task head may be missing: they keep their fresh values and are returned,
    by their Hugging Face names. Any other missing, unknown, misshapen or NaN tensor is an error.
    """
    own = model.state_dict()
    heads = {part for head in HEADS.values() for part in head.new_parts}
    ignored = tuple(heads - set(model.new_parts))
    fresh = set(own)
    for theirs, tensor in weights.items():
        name = from_hf_name(theirs)
        if name.startswith(ignored) or any(part in theirs for part in IGNORED):
            continue
        if name not in own:
            raise UserError(f"{where}: {theirs} is not part of this model")
        if name not in fresh:
            raise UserError(f"{where}: {theirs} is there under two names")
        shape, asked = tuple(tensor.shape), tuple(own[name].shape)
        if name.startswith("classifier.") and shape[1:] == asked[1:] and shape != asked:
            continue  # another number of labels
        if shape != asked:
            raise UserError(f"{where}: {theirs} is {shape}, but config.json asks for {asked}")
        if tensor.dtype not in FLOATS or not torch.isfinite(tensor.float()).all():
            raise UserError(f"{where}: {theirs} holds NaN, infinities, or no floats at all")
        own[name].copy_(tensor)
        fresh.discard(name)
    for name in sorted(fresh):
        if not name.startswith(model.new_parts):
            raise UserError(f"{where}: {to_hf_name(name)} is missing")
    return sorted(to_hf_name(name) for name in fresh)


def load(folder: str | Path, head: str, num_labels: int = 2) -> tuple[nn.Module, list[str]]:
    """A model from a Hugging Face folder → (model, names of newly initialised tensors)."""
    c, _ = read_config(folder)
    weights = read_weights(folder)
    H, held = c.hidden_size, sum(x.numel() for x in weights.values())
    asked = H * (c.vocab_size + c.num_hidden_layers * (4 * H + 2 * c.intermediate_size))
    if asked > max(10**9, 2 * held):  # before any memory is asked for
        raise UserError(f"{folder}: config.json asks for {asked:,} weights, the file has {held:,}")
    model = create(c, head, num_labels)
    return model, load_weights(model, weights, str(folder))


def hf_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {to_hf_name(n): p.detach().cpu().contiguous() for n, p in model.state_dict().items()}


def save(model: nn.Module, folder: str | Path, labels: list[str] | None = None) -> None:
    """Write config.json and model.safetensors, so that any Hugging Face loader reads them."""
    folder = Path(folder)
    config = {"architectures": [model.architecture], "model_type": "bert", "dtype": "float32",
              "position_embedding_type": "absolute", **asdict(model.bert.config)}
    if labels is not None:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    if labels is not None and len(labels) == 1:
        config["problem_type"] = "regression"
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
    data = safetensors.torch.save(hf_weights(model), metadata={"format": "pt"})
    write_atomically(folder / "model.safetensors", data)
