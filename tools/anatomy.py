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
from support import checkpoints
from support.files import UserError, read_json
from tools.rows import method_name

MATRICES = {  # Hugging Face's name inside a layer → name in the tables
    "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
    "attention.output.dense": "output", "intermediate.dense": "ffn in", "output.dense": "ffn out"}
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
    S: np.ndarray | None = None  # only of methods with scores
    ever_pruned: np.ndarray | None = None  # bool: was its mask 0 at any step?


@dataclass
class Anatomy:
    """The matrices of a finished run, layer by layer, each layer's in the order of MATRICES."""

    label: str
    method: str
    parts: list[Part]
    heads: int  # of a layer
    metrics: dict  # its metrics.json
    note: str = ""  # why there are no starting weights

    @property
    def layers(self) -> int:
        return 1 + max(part.layer for part in self.parts)

    def get(self, layer: int, name: str) -> Part:
        return next(p for p in self.parts if (p.layer, p.name) == (layer, name))


# ------------------------------------------------------------------------------- reading it


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
    weights, method = bert.read_weights(run), metrics["method"]
    start, note = starting_weights(settings["model"], metrics.get("start_fingerprint"))
    parts = []
    for name, (layer, kind) in matrix_names(run).items():
        W = weights[name].float().numpy().copy()
        M, S, ever_pruned = np.ones(W.shape, bool), pruning.get(f"{name}.scores"), None
        if method != "dense":
            M, ever_pruned = (unpack_bits(pruning[f"{name}.{mask}"], W.shape)
                              for mask in ("mask", "ever_pruned"))
            W[~M] = pruning[f"{name}.pruned"]
        if method == "l0":  # the model holds W times gates, which can be between 0 and 1
            W[M] /= masking.L0().mask(torch.from_numpy(S), 0, None)[0].numpy()[M]
        parts.append(Part(layer, kind, W, M, start.get(name), S, ever_pruned))
    label = f"{method_name(method)}, {100 * metrics['density']:.3g} %"
    label += ", global" * (settings.get("scope") == "global")
    heads = bert.read_config(run)[0].num_attention_heads
    return Anatomy(label, method, parts, heads, metrics, note)


def matrix_names(folder: Path) -> dict[str, tuple[int, str]]:
    """Hugging Face's name of each matrix that is pruned → its layer, its name in the tables."""
    with torch.device("meta"):  # names alone, no weights
        model = bert.create(bert.read_config(folder)[0], "classification")
    names = {}
    for name in map(bert.to_hf_name, masking.encoder_matrices(model)):
        # bert.encoder.layer.0.attention.self.query.weight
        layer, kind = name.removeprefix("bert.encoder.layer.").split(".", 1)
        names[name] = int(layer), MATRICES[kind.removesuffix(".weight")]
    return names


def unpack_bits(packed: np.ndarray, shape) -> np.ndarray:
    return np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)


def starting_weights(model: str, fingerprint: str | None) -> tuple[dict[str, np.ndarray], str]:
    """→ matrices before training by Hugging Face's names, and why there are none.

    `fingerprint`: of the matrices that the run started from, where it recorded one.
    """
    if pretrain.is_untrained(model):
        return {}, "it started from random weights: nothing to compare with"
    try:
        folder = evaluate.model_folder(model)
        weights = {bert.to_hf_name(bert.from_hf_name(name)): tensor.float()
                   for name, tensor in bert.read_weights(folder).items()}
        matrices = {name: weights[name] for name in matrix_names(folder)}
    except (UserError, KeyError) as error:
        return {}, f"without the starting weights ({error})"
    if fingerprint and fingerprint != checkpoints.fingerprint(matrices):
        return {}, f"without the starting weights: {model} has changed since the run began"
    return {name: tensor.numpy() for name, tensor in matrices.items()}, ""


# ------------------------------------------------------------------------------- measuring it


def totals(part: Part) -> dict[str, np.ndarray]:
    """Of one matrix, name → (sum, number of weights that it is over):

    density, over all; how far weights moved, in standard deviations of W0, over the kept and over
    the pruned ones; how many of the kept grew in size or changed sign; how many of those pruned at
    any step came back.
    """
    W, M, W0 = part.W, part.M, part.W0
    sums = {"density": (M.sum(), M.size)}
    if W0 is not None:
        moved = np.abs(W - W0) / W0.std()
        sums |= {"moved_kept": (moved[M].sum(dtype=np.float64), M.sum()),
                 "moved_pruned": (moved[~M].sum(dtype=np.float64), (~M).sum()),
                 "grown": ((np.abs(W) > np.abs(W0))[M].sum(), M.sum()),
                 "flipped": ((W * W0 < 0)[M].sum(), M.sum())}
    if part.ever_pruned is not None:
        sums["came_back"] = (M[part.ever_pruned].sum(), part.ever_pruned.sum())
    return {name: np.array(pair, np.float64) for name, pair in sums.items()}


def row_of(layer, matrix: str, parts: list[dict]) -> dict:
    """A row of the table; `parts`: the totals of each matrix that it is about."""
    sums = {name: sum(part[name] for part in parts) for name in parts[0]}
    kept, entries = map(int, sums["density"])
    return {"layer": layer, "matrix": matrix, "entries": entries, "kept": kept} | {
        name: float(total / count) for name, (total, count) in sums.items() if count}


def dead_units(a: Anatomy, layer: int) -> dict[str, int]:
    """Attention heads and feed-forward neurons of a layer without effect: everything that leads
    into them, or everything that leads out, is pruned."""
    value, output, into, out = (a.get(layer, name).M
                                for name in ("value", "output", "ffn in", "ffn out"))
    alive_in = value.any(1).reshape(a.heads, -1).any(1)  # value (H, H): a head is rows
    alive_out = output.any(0).reshape(a.heads, -1).any(1)  # output (H, H): a head is columns
    return {"dead_heads": int((~(alive_in & alive_out)).sum()),
            "dead_neurons": int((~(into.any(1) & out.any(0))).sum())}


def table(a: Anatomy) -> list[dict]:
    """A row for each matrix, then one for each layer, then one for all."""
    sums = [totals(part) for part in a.parts]
    matrices = [row_of(p.layer + 1, p.name, [s]) for p, s in zip(a.parts, sums)]
    layers = [row_of(layer + 1, "all", [s for p, s in zip(a.parts, sums) if p.layer == layer])
              | dead_units(a, layer) for layer in range(a.layers)]
    whole = row_of("all", "all", sums) | {
        name: sum(row[name] for row in layers) for name in ("dead_heads", "dead_neurons")}
    return [{"run": a.label} | row for row in (*matrices, *layers, whole)]


def text(a: Anatomy, rows: list[dict]) -> str:
    """The table for reading: one line for each layer, with the density of each matrix in %."""
    lines = [f"{a.label}" + (f" · {a.note}" if a.note else ""),
             "layer   " + "".join(f"{name:>9}" for name in MATRICES.values())
             + "      all  dead heads  dead neurons"]
    for layer in range(1, a.layers + 1):
        by_matrix = {row["matrix"]: row for row in rows if row["layer"] == layer}
        densities = [by_matrix[name]["density"] for name in (*MATRICES.values(), "all")]
        lines.append(f"{layer:<8}" + "".join(f"{100 * density:8.2f}%" for density in densities)
                     + "{dead_heads:>12}{dead_neurons:>14}".format(**by_matrix["all"]))
    whole = rows[-1]
    heads, neurons = a.heads * a.layers, sum(p.M.shape[0] for p in a.parts if p.name == "ffn in")
    lines.append(f"in all {100 * whole['density']:.2f} % of {whole['entries']:,} weights; nothing "
                 f"left of {whole['dead_heads']} of {heads} heads and {whole['dead_neurons']} of "
                 f"{neurons} neurons")
    if "moved_kept" in whole:
        pruned = f", {whole['moved_pruned']:.3f} where pruned" if "moved_pruned" in whole else ""
        lines.append(f"moved by {whole['moved_kept']:.3f} standard deviations of the pretrained "
                     f"weights where kept{pruned}; of the kept {100 * whole['grown']:.1f} % grew "
                     f"in size, {100 * whole['flipped']:.2f} % changed sign")
    if "came_back" in whole:
        lines.append(f"{100 * whole['came_back']:.2f} % of the weights ever pruned came back")
    return "\n".join(lines)
