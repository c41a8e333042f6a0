"""What pruning leaves, as files: a plain Hugging Face folder, and a file as small as it should be.

    python export.py RUN                              RUN/export, exact
    python export.py RUN --values int8                weights in one byte each, with a scale a row
    python export.py RUN --values int8 --restore DIR  and the model that this file holds, as a
                                                      folder for evaluate.py
    python export.py RUN --csv FILE                   sizes, and what each way of storing costs

RUN/export holds the Hugging Face folder (config.json, model.safetensors, tokenizer files, and
run.json, from which evaluate.py knows the task), model.sparse (see compact.py) and the size table,
sizes.json. Everywhere here MB is 10⁶ bytes.
"""

import gzip
import math
from pathlib import Path

import safetensors.torch
import torch

import bert
import data
import distill
import evaluate
import masking
import train
from compact import KINDS, Coded, decode, encode, load_sparse, pack
from support import cli
from support.files import (
    UserError,
    check_writable,
    read_json,
    remove_parts,
    run_main,
    whole_folder,
    write_atomically,
    write_json,
)
from support.origin import origin
from tools import rows

# ---------------------------------------------------------------------------------- the sizes


def is_matrix(name: str) -> bool:
    """One of the encoder's matrices, which pruning makes sparse?"""
    return ".layer." in name and name.endswith(".weight") and "LayerNorm" not in name


def is_embedding(name: str) -> bool:
    return ".embeddings." in name


def kind_of(name: str, x: torch.Tensor, values: str, embeddings: str) -> str:
    """How a tensor is stored. Vectors and the task's last matrix are too small to save on."""
    if x.ndim < 2 or name.startswith(("classifier.", "qa_outputs.")):
        return "float32"
    return embeddings if is_embedding(name) else values


def bound(name: str, x: torch.Tensor, kind: str) -> float:
    """Bytes of a tensor: entropy of the mask, n·H(k/n) bits, and each value at its plain width.

    The entropy of which k of n entries are left; outside the encoder's matrices all n are stored.
    """
    n, k = x.numel(), int(torch.count_nonzero(x)) if is_matrix(name) else x.numel()
    v = k / n
    # H(v) = −v log2 v − (1 − v) log2 (1 − v)
    H = -sum(p * math.log2(p) for p in (v, 1 - v) if p > 0)
    return n * H / 8 + k * KINDS[kind].itemsize


# how the weights and how the embeddings are stored
VARIANTS = (*zip(KINDS, KINDS), ("int8", "float32"))
PARTS = {  # column of the table → which tensors it counts
    "whole model": lambda name: True,
    "without embeddings": lambda name: not is_embedding(name),
    "encoder's matrices": is_matrix,
}


def variant_name(values: str, embeddings: str) -> str:
    return values + (f", embeddings {embeddings}" if values != embeddings else "")


def choose(weights, coded, values: str, embeddings: str) -> dict[str, Coded]:
    """Of every tensor coded in every kind, those that make up one file."""
    return {name: coded[kind_of(name, x, values, embeddings)][name]
            for name, x in weights.items()}


def size_table(weights, coded) -> dict[str, dict[str, int]]:
    """The rows that export.py prints: row → column → bytes."""

    def row(measure, source=weights):
        return {column: round(measure({n: x for n, x in source.items() if counts(n)}))
                for column, counts in PARTS.items()}

    table = {
        "dense float32": row(lambda w: sum(4 * x.numel() for x in w.values())),
        "zeros in place: model.safetensors": row(lambda w: len(safetensors.torch.save(w))),
        "the same, gzip": row(lambda w: len(gzip.compress(safetensors.torch.save(w), 6))),
    }
    for values, embeddings in VARIANTS:
        name = variant_name(values, embeddings)
        kinds = {n: kind_of(n, x, values, embeddings) for n, x in weights.items()}
        table[f"compact {name}"] = row(
            lambda c: len(pack(c)), choose(weights, coded, values, embeddings))
        table[f"bound of {name}"] = row(
            lambda w, kinds=kinds: sum(bound(n, x, kinds[n]) for n, x in w.items()))
    # --freeze weights: many tasks share the matrices and embeddings, and have the rest each
    table["one task of many, weights frozen"] = row(
        lambda c: sum(len(x.streams[0]) if is_matrix(n) else sum(map(len, x.streams))
                      for n, x in c.items() if not is_embedding(n)), coded["float32"])
    return table


def remaining(weights: dict) -> tuple[int, int]:
    """Entries of the encoder's matrices that are not zero, and all of them."""
    matrices = [x for name, x in weights.items() if is_matrix(name)]
    return sum(int(x.count_nonzero()) for x in matrices), sum(x.numel() for x in matrices)


def show(table: dict, weights: dict) -> str:
    left, entries = remaining(weights)
    total = sum(x.numel() for x in weights.values())
    words = sum(x.numel() for name, x in weights.items() if is_embedding(name))
    lines = [f"{total:,} parameters: {words:,} in the embeddings, {entries:,} in the encoder's "
             f"matrices, of which {left:,} ({left / entries:.2%}) are not zero\n",
             "MB of the".ljust(36) + "".join(f"{column:>20}" for column in PARTS)]
    lines += [f"{name:36}" + "".join(f"{size / 1e6:20.3f}" for size in row.values())
              for name, row in table.items()]
    return "\n".join(lines) + (
        "\nbound: the entropy of the mask, n·H(k/n) bits a matrix, and the values uncompressed, "
        "which a file with compressed values can undercut"
        "\n\nZeros in place make nothing smaller: a float32 zero takes the same 4 bytes as any "
        "other weight.\nOnly a file that leaves zeros out is smaller, and the embeddings, which "
        "are never pruned, stay whole.")


def measured(run: Path, weights, coded) -> dict[str, dict]:
    """The metrics of what each compact file holds: its name in the size table → metrics."""
    s, task, model, order, tokenizer = evaluate.prepare(
        evaluate.make_parser().parse_args([str(run)]))
    held, found = evaluate.held_rows(s, task, tokenizer), {}
    for variant in VARIANTS:
        stored = choose(weights, coded, *variant)
        bert.load_weights(model, {name: decode(c) for name, c in stored.items()}, str(run))
        metrics, _ = train.evaluate(model, task, held, s, order)
        found[f"compact {variant_name(*variant)}"] = metrics
    return found


def write_csv(path: Path, run: Path, weights, table: dict, metrics: dict) -> None:
    """The size table with the metrics beside it, a row a file, in bytes."""
    left, entries = remaining(weights)
    here = origin("cpu")
    found = [{"run": run.name, "density": left / entries, "file": name,
              **{column.replace(" ", "_").replace("'", ""): size for column, size in row.items()},
              **metrics.get(name, {}), **here} for name, row in table.items()]
    rows.write(path, found, max(found, key=len))


# --------------------------------------------------------------------------------- the command


def load_run(run: Path) -> tuple[torch.nn.Module, data.Task]:
    task = data.TASKS.get(str(read_json(run / "run.json").get("task")))
    if task is None:
        raise UserError(f"{run}: run.json names no known task; a folder of train.py is expected")
    model, _ = distill.load_fine_tuned(run, task)
    for weight in masking.encoder_matrices(model).values():
        weight.data += 0.0  # W ⊙ M leaves −0.0 where W was negative: make it 0.0
    return model, task


def write_folder(model, task: data.Task, source: Path, target: Path) -> None:
    """The Hugging Face folder, with the tokenizer and run.json of `source`."""
    labels = None if task.span else list(task.labels) or ["score"]
    bert.save(model, target, labels, tokenizer_source=source)
    write_atomically(target / "run.json", (source / "run.json").read_bytes())


def make_parser() -> cli.Parser:
    p = cli.Parser(description=__doc__)
    p.add_argument("run", metavar="RUN", help="a folder that train.py wrote")
    p.add_argument("--values", choices=list(KINDS), default="float32", metavar="KIND",
                   help="of a weight in model.sparse: float32 (exact), bf16 or int8")
    p.add_argument("--embeddings", choices=list(KINDS), metavar="KIND",
                   help="the same for the embeddings (default: as --values)")
    p.add_argument("--csv", type=Path, metavar="FILE",
                   help="write the size table there, with the metrics of each compact file")
    p.add_argument("--restore", metavar="DIR",
                   help="write the model that model.sparse holds to DIR, a new folder")
    return p


def main() -> None:
    args = make_parser().parse_args()
    run, folder = Path(args.run), Path(args.run) / "export"
    target = Path(args.restore) if args.restore else folder
    if args.restore and (target.exists() or target.resolve() == folder.resolve()):
        raise UserError(f"--restore {target}: name a new folder")
    model, task = load_run(run)
    check_writable(folder)
    check_writable(target)
    if args.csv:
        check_writable(args.csv, file=True)
    remove_parts(folder)
    write_folder(model, task, run, folder)
    weights = bert.hf_weights(model)
    coded = {kind: {name: encode(x, kind) for name, x in weights.items()} for kind in KINDS}
    table = size_table(weights, coded)
    write_json(folder / "sizes.json", {"unit": "bytes", **table})
    path = folder / "model.sparse"
    write_atomically(path, pack(
        choose(weights, coded, args.values, args.embeddings or args.values)))
    print(show(table, weights))
    if args.csv:
        write_csv(args.csv, run, weights, table, measured(run, weights, coded))
    print(f"\nwritten: {folder} (a Hugging Face folder) and, beside its model.safetensors, "
          f"model.sparse ({args.values}, {path.stat().st_size / 1e6:.3f} MB)")
    if args.restore:
        bert.load_weights(model, load_sparse(path), str(path))
        with whole_folder(target) as part:
            write_folder(model, task, run, part)
        print(f"restored: {target} from {path}")
    print(f"next: python evaluate.py {target}")


if __name__ == "__main__":
    run_main(main)
