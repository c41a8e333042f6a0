"""What pruning left of a run's model, in numbers: where weights remain, how far they moved.

    python -m tools.figures --run runs/mnli-movement-0.1-s0 runs/mnli-magnitude-0.1-s0

W0 is a pretrained matrix, W the fine-tuned one (where it is pruned, too), M its mask, S its scores.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

import bert
import masking
import train
from sample import pretrain
from support import checkpoints as runs
from support.files import UserError, read_json
from tools.rows import method_name

MATRICES = {  # Hugging Face's name inside a layer → the paper's
    "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
    "attention.output.dense": "output", "intermediate.dense": "ffn in", "output.dense": "ffn out"}
NAME = re.compile(rf"bert\.encoder\.layer\.(\d+)\.({'|'.join(MATRICES)})\.weight")
COLUMNS = ("run", "layer", "matrix", "entries", "kept", "density", "moved_kept", "moved_pruned",
           "grown", "flipped", "came_back", "dead_heads", "dead_neurons")


@dataclass
class Part:
    """One matrix, all arrays (n, m). W0 is None where the starting weights are not to be had."""

    layer: int
    name: str
    W: np.ndarray
    M: np.ndarray  # bool
    W0: np.ndarray | None = None
    S: np.ndarray | None = None  # methods with scores
    ever: np.ndarray | None = None  # bool, true where it was pruned at any step


@dataclass
class Anatomy:
    label: str
    method: str
    parts: list[Part]
    heads: int  # of a layer
    note: str = ""

    @property
    def layers(self) -> int:
        return 1 + max(part.layer for part in self.parts)

    def get(self, layer: int, name: str) -> Part:
        return next(p for p in self.parts if (p.layer, p.name) == (layer, name))


# ------------------------------------------------------------------------------- reading it


def read(run: Path) -> Anatomy:
    """A finished run of train.py, and the weights that it started from."""
    metrics, made = read_json(run / "metrics.json"), read_json(run / "run.json")
    weights = bert.read_weights(run)
    try:
        pruning = safetensors.numpy.load_file(run / "pruning.safetensors")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{run / 'pruning.safetensors'}: not readable ({error})") from None
    try:
        return assemble(run, metrics, made, weights, pruning)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{run}: not a folder as train.py leaves it ({error!r}); train again with "
                        "--overwrite") from None


def assemble(run: Path, metrics: dict, made: dict, weights: dict, pruning: dict) -> Anatomy:
    """From the JSON files of a run's folder, and the tensors of its two others."""
    start, note = starting_weights(made["model"], metrics.get("start_fingerprint"))
    parts = []
    for name, tensor in weights.items():
        found = NAME.fullmatch(name)
        if found:
            W, M = tensor.float().numpy().copy(), np.ones(tensor.shape, bool)
            S, ever = (pruning.get(f"{name}.{part}") for part in ("scores", "ever_pruned"))
            if f"{name}.mask" in pruning:
                M = bits(pruning[f"{name}.mask"], M.shape)
                W[~M] = pruning[f"{name}.pruned"]
                if metrics["method"] == "l0":  # the model holds W times gates that are half open
                    W[M] /= masking.L0().mask(torch.from_numpy(S), 0, None)[0].numpy()[M]
            parts.append(Part(
                int(found[1]), MATRICES[found[2]], W, M, start.get(name),
                S, None if ever is None else bits(ever, M.shape)))
    if not parts:
        raise ValueError("no matrices of an encoder in it")
    parts.sort(key=lambda p: (p.layer, list(MATRICES.values()).index(p.name)))
    method, keep, everywhere = metrics["method"], metrics["density"], made.get("scope") == "global"
    label = f"{method_name(method)}, {100 * keep:.3g} %" + ", global" * everywhere
    heads = bert.read_config(run)[0].num_attention_heads
    return Anatomy(label, method, parts, heads, note)


def bits(packed: np.ndarray, shape) -> np.ndarray:
    return np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)


def starting_weights(model: str, known: str | None) -> tuple[dict[str, np.ndarray], str]:
    """The pretrained matrices by name, and why there are none; `known`: the run's fingerprint."""
    if pretrain.is_untrained(model):
        return {}, "it started from random weights: nothing to compare with"
    try:
        weights = bert.read_weights(train.model_folder(model))
    except UserError as error:
        return {}, f"without the starting weights ({error})"
    named = {bert.to_hf_name(bert.from_hf_name(name)): x for name, x in weights.items()}
    matrices = {name: x.float() for name, x in named.items() if NAME.fullmatch(name)}
    if known and known != runs.fingerprint(matrices):
        return {}, f"without the starting weights: {model} is not today what the run began with"
    return {name: x.numpy() for name, x in matrices.items()}, ""


# ------------------------------------------------------------------------------- measuring it


def totals(part: Part) -> dict[str, np.ndarray]:
    """Of one matrix, name → (sum, number of weights it is over):

    density, over all; how far weights moved, in standard deviations of W0, over the kept and over
    the pruned ones; how many of the kept grew in size or changed sign; how many of those pruned at
    any step came back.
    """
    W, M, W0 = part.W, part.M, part.W0
    found = {"density": (M.sum(), M.size)}
    if W0 is not None:
        moved = np.abs(W - W0) / W0.std()
        found |= {"moved_kept": (moved[M].sum(dtype=np.float64), M.sum()),
                  "moved_pruned": (moved[~M].sum(dtype=np.float64), (~M).sum()),
                  "grown": ((np.abs(W) > np.abs(W0))[M].sum(), M.sum()),
                  "flipped": ((W * W0 < 0)[M].sum(), M.sum())}
    if part.ever is not None:
        found["came_back"] = (M[part.ever].sum(), part.ever.sum())
    return {name: np.array(pair, np.float64) for name, pair in found.items()}


def row_of(layer, matrix: str, found: list[dict]) -> dict:
    """A row of the table from the totals of one matrix or of several."""
    sums = {name: sum(one[name] for one in found) for name in found[0]}
    kept, entries = map(int, sums["density"])
    return {"layer": layer, "matrix": matrix, "entries": entries, "kept": kept} | {
        name: float(total / count) for name, (total, count) in sums.items() if count}


def dead_units(a: Anatomy, layer: int) -> tuple[int, int]:
    """Attention heads and feed-forward neurons of a layer that can no longer say anything: all
    that makes their value, or all that carries it on, is pruned."""
    value, output, into, out = (a.get(layer, name).M
                                for name in ("value", "output", "ffn in", "ffn out"))
    per_head = value.any(1).reshape(a.heads, -1).any(1)  # value (H, H): a head is rows
    carried = output.any(0).reshape(a.heads, -1).any(1)  # output (H, H): a head is columns
    return int((~(per_head & carried)).sum()), int((~(into.any(1) & out.any(0))).sum())


def table(a: Anatomy) -> list[dict]:
    """A row for each matrix, then one for each layer, then one for all."""
    found = [totals(part) for part in a.parts]
    matrices = [row_of(p.layer + 1, p.name, [one]) for p, one in zip(a.parts, found)]
    layers = []
    for layer in range(a.layers):
        own = [one for p, one in zip(a.parts, found) if p.layer == layer]
        heads, neurons = dead_units(a, layer)
        layers.append(row_of(layer + 1, "all", own)
                      | {"dead_heads": heads, "dead_neurons": neurons})
    whole = row_of("all", "all", found) | {
        name: sum(row[name] for row in layers) for name in ("dead_heads", "dead_neurons")}
    return [{"run": a.label} | row for row in (*matrices, *layers, whole)]


def text(a: Anatomy, found: list[dict]) -> str:
    """The table to read: a line a layer, density of each matrix in %."""
    lines = [f"{a.label}" + (f" · {a.note}" if a.note else "")]
    lines.append("layer   " + "".join(f"{name:>9}" for name in MATRICES.values())
                 + "      all  dead heads  dead neurons")
    for layer in range(1, a.layers + 1):
        own = {row["matrix"]: row for row in found if row["layer"] == layer}
        lines.append(f"{layer:<8}" + "".join(
            f"{100 * own[name]['density']:8.2f}%" for name in (*MATRICES.values(), "all"))
            + f"{own['all']['dead_heads']:>12}{own['all']['dead_neurons']:>14}")
    whole = found[-1]
    heads, neurons = a.heads * a.layers, sum(p.M.shape[0] for p in a.parts if p.name == "ffn in")
    lines.append(f"in all {100 * whole['density']:.2f} % of {whole['entries']:,} weights; nothing "
                 f"left of {whole['dead_heads']} of {heads} heads and {whole['dead_neurons']} of "
                 f"{neurons} neurons")
    if "moved_kept" in whole:
        pruned = f", {whole['moved_pruned']:.3f} where pruned" if "moved_pruned" in whole else ""
        lines.append(f"moved by {whole['moved_kept']:.3f} standard deviations of the pretrained "
                     f"weights where kept{pruned}; of the kept {100 * whole['grown']:.1f} % grew "
                     f"in size, {100 * whole['flipped']:.2f} % changed sign")
    lines.append(f"{100 * whole['came_back']:.2f} % of the weights ever pruned came back"
                 if "came_back" in whole else "no record of which pruned weights came back")
    return "\n".join(lines)
