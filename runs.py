"""The folder that a run leaves behind: where it is, what is in it, what is measured of it."""

import platform
import shutil
from pathlib import Path

import numpy as np
import safetensors.torch
import tokenizers
import torch

import bert
from files import UserError, write_atomically, write_json


def choose_folder(output: str | None, name: str, overwrite: bool) -> Path:
    """The output folder; a default name gets -2, -3 … when taken, a given one is refused."""
    if output is None:
        folder, n = Path("runs") / name, 2
        while folder.exists() and any(folder.iterdir()) and not overwrite:
            folder, n = Path("runs") / f"{name}-{n}", n + 1
        return folder
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --output names a folder")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"{folder}: holds files already; choose another --output, or --overwrite")
    return folder


def empty_folder(folder: Path) -> None:
    """Make the folder, removing what an overwritten run left there."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def versions() -> dict:
    return {"python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__, "tokenizers": tokenizers.__version__,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads()}


def pack(mask: torch.Tensor) -> torch.Tensor:
    """A 0/1 mask as bits: (n, m) → (⌈n·m / 8⌉) uint8."""
    return torch.from_numpy(np.packbits((mask != 0).cpu().numpy().ravel()))


def save_pruning(pruner, path: Path) -> None:
    """What the baked model no longer shows, per matrix: mask bits, scores, W where pruned."""
    tensors = {}
    for m in pruner.matrices if pruner.masked else []:
        name = bert.to_hf_name(m.name)
        tensors[f"{name}.mask"] = pack(m.M)
        tensors[f"{name}.pruned"] = m.W.detach()[m.M == 0].cpu()
        if m.S is not None:
            tensors[f"{name}.scores"] = m.S.detach().cpu().contiguous()
    write_atomically(path, safetensors.torch.save(tensors))


def save(folder: Path, model, labels, tokenizer, tokenizer_files: Path, pruner) -> None:
    """The pruned model as a Hugging Face folder, and the pruning beside it."""
    bert.save(model, folder, labels)
    save_pruning(pruner, folder / "pruning.safetensors")
    write_atomically(folder / "tokenizer.json", tokenizer.to_str())
    for name in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        if (tokenizer_files / name).exists():
            write_atomically(folder / name, (tokenizer_files / name).read_bytes())


def sizes(model, pruner) -> dict:
    """Counts and densities of the finished model, each with its own denominator."""
    matrices = [m.weight.detach() for m in pruner.matrices]
    left = sum(int(torch.count_nonzero(w)) for w in matrices)
    entries = sum(w.numel() for w in matrices)
    layers = sum(p.numel() for p in model.bert.layers.parameters())
    total = sum(p.numel() for p in model.parameters())
    nonzero = sum(int(torch.count_nonzero(p)) for p in model.parameters())
    return {
        "density": left / entries,  # of the pruned matrices' entries
        "encoder_density": (left + layers - entries) / layers,  # biases and LayerNorms counted
        "nonzero_parameters": left,  # in the encoder's matrices
        "nonzero_parameters_total": nonzero,  # embeddings and head too
        "total_parameters": total,
    }


def save_metrics(folder: Path, metrics: dict) -> None:
    write_json(folder / "metrics.json", metrics)
