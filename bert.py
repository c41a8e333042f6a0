"""BERT from scratch (Devlin et al. 2018, arXiv 1810.04805), its classes named as in transformers.

    model, fresh = bert.load("path/or/folder", head="classification", num_labels=3)
    logits = model(input_ids, attention_mask, token_type_ids)

Shapes: B batch, T tokens, R tokens that are computed, H hidden, A heads, D = H / A,
I intermediate, V vocabulary, C classes.
"""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from support import files
from support.files import UserError, read_json, write_atomically, write_json
from support.noise import dropout

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass
class Config:
    """The part of config.json that decides the computation; the defaults are BERT-base."""
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


class BertEmbeddings(nn.Module):
    """The sum of what a token is, its position and its segment (Devlin et al., Figure 2)."""

    def __init__(self, config: Config):
        super().__init__()
        H = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, H, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, H)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, H)
        self.LayerNorm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.dropout_prob = config.hidden_dropout_prob

    def forward(self, input_ids, token_type_ids):  # (B, T), (B, T)
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T)
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = x + self.position_embeddings(position_ids)  # (B, T, H)
        return dropout(self.LayerNorm(x), self.dropout_prob, self.training)


class BertLayer(nn.Module):
    """One encoder layer, with LayerNorm after each residual sum ("post-LN")."""

    def __init__(self, config: Config):
        super().__init__()
        H, eps = config.hidden_size, config.layer_norm_eps
        self.num_attention_heads = config.num_attention_heads
        self.query = nn.Linear(H, H)
        self.key = nn.Linear(H, H)
        self.value = nn.Linear(H, H)
        self.attention_output = nn.Linear(H, H)
        self.attention_norm = nn.LayerNorm(H, eps=eps)
        self.intermediate = nn.Linear(H, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, H)
        self.output_norm = nn.LayerNorm(H, eps=eps)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.dropout_prob = config.hidden_dropout_prob
        self.attention_dropout_prob = config.attention_probs_dropout_prob

    def split_heads(self, x):  # (B, T, H)
        return x.unflatten(2, (self.num_attention_heads, -1)).transpose(1, 2)  # (B, A, T, D)

    def attention(self, x, queried, attention_mask):
        """Attention of the tokens `queried` (B, R, H) over all tokens x (B, T, H) → (B, R, H)."""
        Q = self.split_heads(self.query(queried))  # (B, A, R, D)
        K = self.split_heads(self.key(x))  # (B, A, T, D)
        V = self.split_heads(self.value(x))  # (B, A, T, D)
        p = self.attention_dropout_prob if self.training else 0.0
        # softmax(Q Kᵀ / √D) V, the softmax over the tokens that are not padding
        if p == 0.0 or x.device.type != "cpu":
            y = F.scaled_dot_product_attention(Q, K, V, attention_mask, p)  # (B, A, R, D)
        else:  # on a CPU, with dropout, this is twice as fast as the function
            scores = Q @ K.transpose(2, 3) / math.sqrt(K.shape[3])  # (B, A, R, T)
            if attention_mask is not None:
                scores = scores.masked_fill(~attention_mask, -math.inf)
            y = dropout(scores.softmax(3), p, self.training).to(V.dtype) @ V  # (B, A, R, D)
        return self.attention_output(y.transpose(1, 2).flatten(2))  # (B, R, H)

    def forward(self, x, attention_mask, positions=None):
        """x (B, T, H), mask (B, 1, 1, T) or None → (B, T, H); only at `positions` (B, R, H)."""
        queried = x if positions is None else at_positions(x, positions)  # (B, R, H)
        y = self.attention(x, queried, attention_mask)  # (B, R, H)
        x = self.attention_norm(queried + dropout(y, self.dropout_prob, self.training))
        # W₂ gelu(W₁ x + b₁) + b₂
        y = self.output(self.activation(self.intermediate(x)))  # (B, R, H), (B, R, I) inside
        return self.output_norm(x + dropout(y, self.dropout_prob, self.training))  # (B, R, H)


def at_positions(x, positions):
    """x (B, T, H) at the tokens `positions` (B, R) → (B, R, H)."""
    return x.gather(1, positions[:, :, None].expand(-1, -1, x.shape[2]))


class BertModel(nn.Module):
    """Embeddings and layers: from token ids to hidden states."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, input_ids, attention_mask, token_type_ids, positions=None):
        """(B, T) ids, (B, T) 1 at tokens and 0 at padding or None, (B, T) segments → (B, T, H).

        With `positions` (B, R), only the hidden states there, (B, R, H): the last layer then
        computes just keys and values of the other tokens."""
        if attention_mask is not None:
            attention_mask = attention_mask[:, None, None, :].bool()  # (B, 1, 1, T)
        x = self.embeddings(input_ids, token_type_ids)  # (B, T, H)
        for layer in self.layers[:-1]:
            x = layer(x, attention_mask)  # (B, T, H)
        return self.layers[-1](x, attention_mask, positions)  # (B, T, H) or (B, R, H)


class BertForSequenceClassification(nn.Module):
    """A sentence or a pair → (B, C) logits of the classes; with one class, a regression."""

    def __init__(self, config: Config, num_labels: int = 2):
        super().__init__()
        self.bert = BertModel(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, num_labels)

    def forward(self, input_ids, attention_mask, token_type_ids):
        first = torch.zeros_like(input_ids[:, :1])  # (B, 1), where [CLS] is
        hidden_states = self.bert(input_ids, attention_mask, token_type_ids, first)  # (B, 1, H)
        pooled = torch.tanh(self.pooler(hidden_states[:, 0]))  # (B, H)
        return self.classifier(self.dropout(pooled))  # (B, C)


class BertForQuestionAnswering(nn.Module):
    """A question and a passage → (B, T, 2) logits of the answer's start and end (SQuAD)."""

    def __init__(self, config: Config, num_labels: int = 2):
        super().__init__()
        self.bert = BertModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, num_labels)

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.qa_outputs(self.bert(input_ids, attention_mask, token_type_ids))  # (B, T, 2)


class BertForMaskedLM(nn.Module):
    """Masked tokens → (B, T, V) logits; the output matrix is the word embedding itself."""

    def __init__(self, config: Config, num_labels: int | None = None):
        super().__init__()
        self.bert = BertModel(config)
        self.mlm_dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.mlm_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlm_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.activation = ACTIVATIONS[config.hidden_act]

    def predict(self, hidden_states):  # (..., H)
        x = self.mlm_norm(self.activation(self.mlm_dense(hidden_states)))  # (..., H)
        return F.linear(x, self.bert.embeddings.word_embeddings.weight, self.mlm_bias)  # (..., V)

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.predict(self.bert(input_ids, attention_mask, token_type_ids))  # (B, T, V)


HEADS = {"classification": BertForSequenceClassification, "span": BertForQuestionAnswering,
         "mlm": BertForMaskedLM}


def create(config: Config, head: str, num_labels: int = 2) -> nn.Module:
    """An untrained model with one of HEADS: matrices from N(0, initializer_range²), biases 0."""
    model = HEADS[head](config, num_labels)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    model.bert.embeddings.word_embeddings.weight.data[config.pad_token_id] = 0.0
    return model


# ------------------------------------------------------------- writing a Hugging Face folder

# (our name, Hugging Face's) where they differ. Replaced from first to last when writing, from
# last to first when reading: .attention.output.dense. contains .output.dense.
HF_NAMES = (
    ("bert.layers.", "bert.encoder.layer."),
    (".query.", ".attention.self.query."),
    (".key.", ".attention.self.key."),
    (".value.", ".attention.self.value."),
    (".intermediate.", ".intermediate.dense."),
    (".output.", ".output.dense."),
    (".output_norm.", ".output.LayerNorm."),
    (".attention_output.", ".attention.output.dense."),
    (".attention_norm.", ".attention.output.LayerNorm."),
    ("pooler.", "bert.pooler.dense."),
    ("mlm_dense.", "cls.predictions.transform.dense."),
    ("mlm_norm.", "cls.predictions.transform.LayerNorm."),
    ("mlm_bias", "cls.predictions.bias"),
)
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json",
                   "special_tokens_map.json")


def to_hf_name(name: str) -> str:
    for ours, theirs in HF_NAMES:
        name = name.replace(ours, theirs)
    return name


def hf_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {to_hf_name(n): x.detach().cpu().contiguous() for n, x in model.state_dict().items()}


def save(model: nn.Module, folder: str | Path, labels: list[str] | None = None,
         tokenizer=None, tokenizer_source: Path | None = None) -> None:
    """Write a folder that any Hugging Face loader reads, each file atomically.

    labels: the classes' names in the order of the logits; a single one means regression.
    tokenizer: to be tokenizer.json; tokenizer_source: a folder whose TOKENIZER_FILES are copied.
    """
    config = {"architectures": [type(model).__name__], "model_type": "bert", "dtype": "float32",
              "position_embedding_type": "absolute", **asdict(model.bert.config)}
    if labels is not None:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
        if len(labels) == 1:
            config["problem_type"] = "regression"
    folder = Path(folder)
    write_json(folder / "config.json", config)
    tensors = safetensors.torch.save(hf_weights(model), metadata={"format": "pt"})
    write_atomically(folder / "model.safetensors", tensors)
    for name in TOKENIZER_FILES:
        if tokenizer_source is not None and (tokenizer_source / name).exists():
            write_atomically(folder / name, (tokenizer_source / name).read_bytes())
    if tokenizer is not None:
        write_atomically(folder / "tokenizer.json", tokenizer.to_str())


# ------------------------------------- reading a Hugging Face folder, which may hold anything

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # all become float32
HEAD_PARTS = ("pooler.", "classifier.", "qa_outputs.", "mlm_")  # by our names: all but bert.
IGNORED = ("position_ids", "cls.predictions.decoder.", "cls.seq_relationship.")  # in no model here
OTHER_MODELS = {  # model_type → why its weights do not fit this network
    "roberta": "RoBERTa counts positions from 2 and has no segments",
    "distilbert": "DistilBERT has no segments and no pooler",
    "albert": "ALBERT shares one layer's weights among all, and factorises its embeddings",
}


def load(folder: str | Path, head: str, num_labels: int = 2) -> tuple[nn.Module, list[str]]:
    """A model from a Hugging Face folder → model, and the names of those of the head's tensors that
    the folder lacks, which are initialised. UserError if any other is missing."""
    files.check_sums(Path(folder))
    config, _ = read_config(folder)
    weights = read_weights(folder)
    H, layers = config.hidden_size, config.num_hidden_layers
    embedded = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    needed = H * (embedded + layers * (4 * H + 2 * config.intermediate_size))
    stored = sum(tensor.numel() for tensor in weights.values())
    if needed > max(10**9, 2 * stored):  # refuse before allocating memory
        raise UserError(f"{folder}: config.json needs {needed:,} weights, the file has {stored:,}")
    model = create(config, head, num_labels)
    return model, load_weights(model, weights, str(folder))


def read_config(folder: str | Path) -> tuple[Config, dict]:
    """config.json as a Config, and as it stands; UserError if it is not a usable BERT's."""
    path = Path(folder) / "config.json"
    raw = read_json(path)
    config = Config(**{f.name: raw[f.name] for f in fields(Config) if raw.get(f.name) is not None})
    check_config(raw, config, path)
    return config, raw


def check_config(raw: dict, config: Config, path: Path) -> None:
    """Refuse other families of models, by name, and values that no BERT can have."""
    architectures = raw.get("architectures") or ["Bert"]  # where there is no model_type
    is_bert = isinstance(architectures, list) and str(architectures[0]).startswith("Bert")
    model_type = raw.get("model_type", "bert" if is_bert else architectures)
    if model_type != "bert":
        why = OTHER_MODELS.get(str(model_type), "that is another network")
        raise UserError(f"{path}: model_type is {model_type!r}, not 'bert': {why}; use a BERT, "
                        "such as bert-base-uncased")
    for name, supported in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        if (raw.get(name) or supported) != supported:
            raise UserError(f"{path}: {name} is {raw[name]!r}; only {supported!r} is supported")
    if str(config.hidden_act) not in ACTIVATIONS:
        raise UserError(f"{path}: hidden_act {config.hidden_act!r} is none of {[*ACTIVATIONS]}")
    for f in fields(config):
        value, limit = getattr(config, f.name), 1 if f.type is float else 1_000_000
        low = 0 if f.type is float or f.name == "pad_token_id" else 1
        if f.type is not str and (type(value) not in (int, f.type) or not low <= value < limit):
            raise UserError(f"{path}: {f.name} is {value!r}; {low} to below {limit} is expected")
    if config.hidden_size % config.num_attention_heads:
        raise UserError(f"{path}: hidden_size {config.hidden_size} is not a multiple of "
                        f"num_attention_heads {config.num_attention_heads}")
    if config.pad_token_id >= config.vocab_size:
        raise UserError(f"{path}: pad_token_id {config.pad_token_id} is not below vocab_size")


def read_labels(folder: str | Path) -> list[str]:
    """The classes' names in the order of the logits; LABEL_0, LABEL_1 if config.json has none."""
    id2label = read_config(folder)[1].get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    try:
        return [str(id2label[str(i)]) for i in range(len(id2label))]
    except (KeyError, TypeError):
        raise UserError(f"{folder}: id2label in config.json does not count from 0") from None


def read_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """Tensors under the file's names; UserError if unreadable. No code in a pickle (.bin) runs."""
    path, pickled = (Path(folder) / name for name in ("model.safetensors", "pytorch_model.bin"))
    if path.exists():
        return files.read_tensors(path)[0]
    if not pickled.exists():
        raise UserError(f"{folder}: no model.safetensors, and no pytorch_model.bin (weights in "
                        "several files are not supported)")
    with files.reading(pickled, "not weights; a pickle can hold any program, so it was not run"):
        weights = torch.load(pickled, map_location="cpu", weights_only=True)
        if not all(isinstance(name, str) and tensor.layout == torch.strided
                   for name, tensor in weights.items()):
            raise ValueError("it should hold dense tensors, each with a name")
        return weights


def from_hf_name(name: str) -> str:
    """Also takes names without `bert.`, and LayerNorm's old gamma and beta."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = "bert." + name
    for ours, theirs in reversed(HF_NAMES):
        name = name.replace(theirs, ours)
    return name


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], where: str) -> list[str]:
    """Copy `weights` into `model` → names of those missing; all names are Hugging Face's.

    Only parts of the head may be missing, or have another number of labels; they stay as they are.
    Raises UserError for any other missing tensor, and for an unknown, misshapen or NaN one.
    """
    parameters = model.state_dict()
    other_heads = tuple(p for p in HEAD_PARTS if not any(n.startswith(p) for n in parameters))
    missing = set(parameters)
    for hf_name, tensor in weights.items():
        name = from_hf_name(hf_name)
        if name.startswith(other_heads) or any(part in hf_name for part in IGNORED):
            continue
        if name not in parameters:
            raise UserError(f"{where}: {hf_name} is not part of this model")
        if name not in missing:
            raise UserError(f"{where}: {hf_name} appears under two names")
        shape, expected = tuple(tensor.shape), tuple(parameters[name].shape)
        if name.startswith("classifier.") and shape[1:] == expected[1:] and shape != expected:
            continue  # another number of labels
        if shape != expected:
            raise UserError(f"{where}: {hf_name} is {shape}, but config.json asks for {expected}")
        if tensor.dtype not in FLOATS or not torch.isfinite(tensor.float()).all():
            raise UserError(f"{where}: {hf_name} holds NaN, infinities, or no floats at all")
        parameters[name].copy_(tensor)
        missing.discard(name)
    for name in sorted(missing):
        if name.startswith("bert."):
            raise UserError(f"{where}: {to_hf_name(name)} is missing")
    return sorted(to_hf_name(name) for name in missing)
