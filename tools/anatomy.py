"""What pruning left of a run's model, in numbers: where weights remain, and how far they moved.

    python -m tools.figures --run runs/mnli-movement-0.1-s0 runs/mnli-magnitude-0.1-s0

W0 is a pretrained matrix, W the fine-tuned one with its pruned entries, M its mask, S its scores.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

import bert
import evaluate
import masking
from sample import pretrain
from support import state
from support.files import UserError, read_json
from tools import rows

MATRICES = {  # name in a BertLayer → name in the tables
    "query": "query", "key": "key", "value": "value", "attention_output": "output",
    "intermediate": "ffn in", "output": "ffn out"}
COLUMNS = ("run", "layer", "matrix", "entries", "kept", "density", "moved_kept", "moved_pruned",
           "grown", "flipped", "came_back", "dead_heads", "dead_neurons")


@dataclass
class Part:
    """One matrix; all arrays have its shape."""

    layer: int
    name: str
    W: np.ndarray
    M: np.ndarray  # bool
    W0: np.ndarray | None = None  # None where the starting weights cannot be read
    S: np.ndarray | None = None  # only for methods with scores
    ever_pruned: np.ndarray | None = None  # bool: was the mask 0 at any step?


@dataclass
class Anatomy:
    """The matrices of a finished run, layer by layer, each layer's in the order of MATRICES."""

    label: str
    method: str
    parts: list[Part]
    heads: int  # in a layer
    layers: int
    metrics: dict  # its metrics.json
    note: str = ""  # why there are no starting weights

    def get(self, layer: int, name: str) -> Part:
        return next(p for p in self.parts if (p.layer, p.name) == (layer, name))


# ---------------------------------------------------------------------------------- reading


def read(run: Path) -> Anatomy:
    """The matrices of a finished run of train.py, and what they were before training."""
    try:
        return assemble(run, read_json(run / "metrics.json"), read_json(run / "run.json"),
                        safetensors.numpy.load_file(run / "pruning.safetensors"))
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{run / 'pruning.safetensors'}: not readable ({error})") from None
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{run}: not a folder as train.py leaves it ({error!r}); train again with "
                        "--overwrite") from None


def assemble(run: Path, metrics: dict, settings: dict, pruning: dict[str, np.ndarray]) -> Anatomy:
    """`pruning`: the arrays of pruning.safetensors."""
    weights, config, method = bert.read_weights(run), bert.read_config(run)[0], metrics["method"]
    start, note = starting_weights(settings["model"], metrics.get("start_fingerprint"))
    parts = []
    for name, (layer, kind) in matrix_names(config).items():
        W = weights[name].float().numpy().copy()
        M, S, ever_pruned = np.ones(W.shape, bool), pruning.get(f"{name}.scores"), None
        if f"{name}.mask" in pruning:
            M, ever_pruned = (unpack_bits(pruning[f"{name}.{mask}"], W.shape)
                              for mask in ("mask", "ever_pruned"))
            pruned = pruning[f"{name}.pruned"]  # where masks are gates, all of W
            W[~M | (pruned.size == W.size)] = pruned
        parts.append(Part(layer, kind, W, M, start.get(name), S, ever_pruned))
    label = f"{rows.method_name(method)}, {100 * metrics['density']:.3g} %"
    label += ", global" * (settings.get("scope") == "global")
    return Anatomy(label, method, parts, config.num_attention_heads, config.num_hidden_layers,
                   metrics, note)


def matrix_names(config: bert.Config) -> dict[str, tuple[int, str]]:
    """Hugging Face's name of each matrix that is pruned → its layer, its name in the tables."""
    with torch.device("meta"):  # names alone
        model = bert.create(config, "classification")
    places = {name: name.split(".")[2:4] for name in masking.encoder_matrices(model)}
    return {bert.to_hf_name(name): (int(layer), MATRICES[part])
            for name, (layer, part) in places.items()}


def unpack_bits(packed: np.ndarray, shape) -> np.ndarray:
    return np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)


def starting_weights(model: str, fingerprint: str | None) -> tuple[dict[str, np.ndarray], str]:
    """→ matrices before training by Hugging Face's names, or none, and why there are none.

    `fingerprint`: of the matrices that the run started from, if it recorded one.
    """
    if pretrain.is_untrained(model):
        return {}, "it started from random weights: nothing to compare with"
    try:
        folder = evaluate.model_folder(model)
        weights = {bert.to_hf_name(bert.from_hf_name(name)): tensor.float()
                   for name, tensor in bert.read_weights(folder).items()}
        matrices = {name: weights[name] for name in matrix_names(bert.read_config(folder)[0])}
    except (UserError, KeyError) as error:
        return {}, f"without the starting weights ({error})"
    if fingerprint and fingerprint != state.fingerprint(matrices):
        return {}, f"without the starting weights: {model} has changed since the run began"
    return {name: tensor.numpy() for name, tensor in matrices.items()}, ""


# -------------------------------------------------------------------------------- measuring


def flat(parts: list[Part], name: str) -> np.ndarray:
    """The entries of all these matrices' "W", "M", …, one after another."""
    return np.concatenate([getattr(part, name).ravel() for part in parts])


def row_of(layer, matrix: str, parts: list[Part]) -> dict:
    """A row of the table, over all these matrices.

    density; how far weights moved, in standard deviations of their W0, on average over the kept and
    over the pruned ones; shares of the kept ones that grew in size or changed sign; the share of
    those pruned at any step that came back.
    """
    M = flat(parts, "M")  # (entries,)
    means = {"density": M}
    if parts[0].W0 is not None:
        W, W0 = flat(parts, "W"), flat(parts, "W0")
        moved = np.concatenate([np.abs(p.W - p.W0).ravel() / p.W0.std() for p in parts])
        means |= {"moved_kept": moved[M], "moved_pruned": moved[~M],
                  "grown": (np.abs(W) > np.abs(W0))[M], "flipped": (W * W0 < 0)[M]}
    if parts[0].ever_pruned is not None:
        means["came_back"] = M[flat(parts, "ever_pruned")]
    row = {"layer": layer, "matrix": matrix, "entries": M.size, "kept": int(M.sum())}
    return row | {name: float(x.mean(dtype=np.float64)) for name, x in means.items() if x.size}


def moved_kept(run: Path) -> float | None:
    """How far the kept weights of a finished run moved, in standard deviations of its starting
    weights; None where these are not to be had."""
    try:
        return row_of("all", "all", read(run).parts).get("moved_kept")
    except UserError:
        return None


def dead_units(a: Anatomy, layer: int) -> dict[str, int]:
    """How many attention heads and feed-forward neurons of a layer have no effect: everything that
    leads into them, or everything that leads out, is pruned."""
    value, output, into, out = (a.get(layer, name).M
                                for name in ("value", "output", "ffn in", "ffn out"))
    alive_in = value.any(1).reshape(a.heads, -1).any(1)  # value (H, H): a head is rows
    alive_out = output.any(0).reshape(a.heads, -1).any(1)  # output (H, H): a head is columns
    return {"dead_heads": int((~(alive_in & alive_out)).sum()),
            "dead_neurons": int((~(into.any(1) & out.any(0))).sum())}


def table(a: Anatomy) -> list[dict]:
    """A row for each matrix, then one for each layer, then one for all."""
    matrices = [row_of(p.layer + 1, p.name, [p]) for p in a.parts]
    layers = [row_of(layer + 1, "all", [p for p in a.parts if p.layer == layer])
              | dead_units(a, layer) for layer in range(a.layers)]
    whole = row_of("all", "all", a.parts) | {
        name: sum(row[name] for row in layers) for name in ("dead_heads", "dead_neurons")}
    return [{"run": a.label} | row for row in (*matrices, *layers, whole)]


def layer_rows(found: list[dict]) -> list[dict]:
    """Those of a table's rows that are about a whole layer."""
    return [row for row in found if row["matrix"] == "all" and row["layer"] != "all"]


def text(a: Anatomy, found: list[dict]) -> str:
    """The run, and the numbers of the last row of its table."""
    numbers = [f"{name.replace('_', ' ')} {rows.as_text(found[-1][name])}"
               for name in COLUMNS[3:] if name in found[-1]]
    return f"{a.label}{a.note and f' · {a.note}'}\n{' · '.join(numbers)}"
