"""What pruning leaves, as files: a plain Hugging Face folder, and a small file of the same model.

    python export.py RUN                              RUN/export, with the weights bit for bit
    python export.py RUN --values int8                one byte per weight, one scale per row
    python export.py RUN --values int8 --restore DIR  also write the model that the small file
                                                      holds, as a folder for evaluate.py
    python export.py RUN --csv FILE                   sizes, and the metrics of each kind of values

RUN/export holds config.json, model.safetensors, the tokenizer's files, a model card, run.json
(evaluate.py reads the task from it) and the small file, compact.safetensors.xz. It is a safetensors
file compressed by xz, so `xz -dc` opens it, but its tensors are not those of model.safetensors.
Under Hugging Face's names it holds

    NAME             a vector in float32; a matrix in the chosen kind of values; or, for each
                     matrix of the encoder, only its k non-zero weights, row by row: (k)
    NAME.mask        one bit per weight of such a matrix, 1 where not zero: (⌈rows·columns / 8⌉)
    NAME.shape       the rows and columns of such a matrix
    NAME.scales      if NAME is int8: what each row is to be multiplied by, in bf16: (rows)
"""

import csv
import gzip
import io
import lzma
import math
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

import bert
import evaluate
import masking
from support import card, cli, files

COMPACT = "compact.safetensors.xz"
VALUES = {"float32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
# No sequences repeat here, so a larger dictionary only costs time. What LZMA's adaptive arithmetic
# coder can use is how often each byte occurs. In a float32 that depends on the byte's place in
# the word (lp=2: the position modulo 4), not on the byte before (lc=0).
FILTERS = [{"id": lzma.FILTER_LZMA2, "lc": 0, "lp": 2, "dict_size": 4096}]
# The most that a file may unpack to. BERT-large with no zeros at all has 2**29.3 entries, the bits
# of its masks included, in 2**30.4 bytes.
MOST_BYTES, MOST_ENTRIES = 2**31, 2**30

# --------------------------------------------------------------------------- the compact file


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, columns) → int8 codes (rows, columns), bf16 scales (rows): x ≈ codes · scales."""
    scales = (x.abs().amax(1) / 127).bfloat16()  # (rows)
    # A scale that bf16 rounds down leaves the row's largest weight at up to 127.5 scales, and 127
    # is still within half a scale of it. A row of zeros divides 0 by 0.
    codes = (x / scales.float()[:, None]).nan_to_num(0).round().clamp(-127, 127)
    return codes.to(torch.int8), scales


def pack(weights: dict, pruned: set[str], values: str) -> bytes:
    """Float32 tensors → a compact file; `pruned` names the matrices stored without zeros."""
    packed = {}
    for name, x in weights.items():
        if x.ndim == 2 and values == "int8":
            x, packed[f"{name}.scales"] = quantise(x)
        elif x.ndim == 2:
            x = x.to(VALUES[values])
        if name in pruned:
            kept = (x != 0) | x.signbit()  # −0.0 comes back as −0.0
            packed[f"{name}.mask"] = torch.from_numpy(np.packbits(kept.numpy()))
            packed[f"{name}.shape"] = torch.tensor(x.shape)
            x = x[kept]  # (k)
        packed[name] = x
    return lzma.compress(safetensors.torch.save(packed), filters=FILTERS)


def need(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def take(packed: dict, name: str) -> torch.Tensor:
    """Remove a tensor and its parts from `packed` → float32, zeros filled in."""
    x = packed.pop(name)
    need(x.dtype in VALUES.values(), f"{name!r} is {x.dtype}")
    if f"{name}.mask" in packed:
        mask, shape = packed.pop(f"{name}.mask"), packed.pop(f"{name}.shape").tolist()
        n = math.prod(shape)
        need(mask.shape == (math.ceil(n / 8),), f"{name!r} has a mask of the wrong length")
        kept = torch.from_numpy(np.unpackbits(mask.numpy(), count=n)).bool()  # (n)
        need(x.shape == (int(kept.sum()),), f"{name!r} has more or fewer values than its mask")
        x = torch.zeros(n, dtype=x.dtype).masked_scatter_(kept, x).reshape(shape)
    if x.dtype == torch.int8:
        scales = packed.pop(f"{name}.scales")
        need(x.ndim == 2 and scales.shape == x.shape[:1] and scales.dtype == torch.bfloat16,
             f"{name!r} has scales that do not fit")
        x = x * scales.float()[:, None]
    return x.float()


def unpack(file: bytes) -> dict[str, torch.Tensor]:
    """Undo `pack`; what is damaged or too large raises ValueError, or an error of a library."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2**27)
    plain = decoder.decompress(file, MOST_BYTES)
    need(decoder.eof and not decoder.unused_data, "incomplete, too long or too large")
    packed = safetensors.torch.load(plain)
    entries = sum(x.numel() * (8 if name.endswith(".mask") else 1) for name, x in packed.items())
    need(entries <= MOST_ENTRIES, "too many entries")
    names = [name for name in packed if not name.endswith((".mask", ".shape", ".scales"))]
    weights = {name: take(packed, name) for name in names}
    need(not packed, f"{next(iter(packed), '')!r} belongs to no tensor")
    return weights


def load_compact(path: str | Path) -> dict[str, torch.Tensor]:
    """A compact file → float32 tensors under Hugging Face's names, zeros filled in.

    Nothing in the file is trusted: whatever is wrong with it is a UserError.
    """
    with files.reading(path, "not a whole compact file; write it again with python export.py RUN"):
        return unpack(Path(path).read_bytes())


# ---------------------------------------------------------------------------------- the sizes


def entropy_bound(name: str, x: torch.Tensor, pruned: set[str], values: str) -> float:
    """Bytes: n·H(k/n) bits tell which k of n weights are left, and these have their full width."""
    n = x.numel()
    k = int(x.count_nonzero()) if name in pruned else n
    v = k / n
    # H(v) = −v log2 v − (1 − v) log2 (1 − v)
    H = -sum(p * math.log2(p) for p in (v, 1 - v) if p > 0)
    return n * H / 8 + k * VALUES[values if x.ndim == 2 else "float32"].itemsize


def size_table(weights: dict, pruned: set[str], packed: dict[str, bytes]) -> dict[str, dict]:
    """column → row → bytes; `packed` holds all of `weights` in each kind of values."""
    parts = {"whole model": weights,
             "without embeddings": {n: x for n, x in weights.items() if ".embeddings." not in n},
             "encoder's matrices": {n: x for n, x in weights.items() if n in pruned}}
    table = {}
    for column, part in parts.items():
        in_place = safetensors.torch.save(part)
        sizes = table[column] = {"dense float32": sum(4 * x.numel() for x in part.values()),
                                 "zeros in place: model.safetensors": len(in_place),
                                 "the same, gzip": len(gzip.compress(in_place, 6))}
        for values, file in packed.items():
            size = len(file if part is weights else pack(part, pruned, values))
            bound = sum(entropy_bound(name, x, pruned, values) for name, x in part.items())
            sizes |= {f"compact {values}": size, f"bound of {values}": round(bound)}
    return table


def show(table: dict, left: int) -> str:
    """The size table as text; `left` weights of the encoder's matrices are not zero."""
    total, rest, entries = (sizes["dense float32"] // 4 for sizes in table.values())
    lines = [f"{total:,} parameters: {total - rest:,} in the embeddings, {entries:,} in the "
             f"encoder's matrices, of which {left:,} ({left / entries:.2%}) are not zero\n",
             f"{'MB (10⁶ bytes)':36}" + "".join(f"{column:>20}" for column in table)]
    lines += [f"{name:36}" + "".join(f"{sizes[name] / 1e6:20.3f}" for sizes in table.values())
              for name in table["whole model"]]
    return "\n".join(lines) + (
        "\nbound: entropy of the masks, and values uncompressed; compressed ones can be smaller\n\n"
        "Zeros in place make nothing smaller: a float32 zero takes 4 bytes like any other weight.\n"
        "Only leaving zeros out does. The embeddings are never pruned and stay whole.")


# -------------------------------------------------------------------------------- the command


def measure(settings, task, model, order, tokenizer, packed: dict[str, bytes]) -> dict[str, dict]:
    """The metrics of what each compact file holds: row of the size table → metrics."""
    _, rows = evaluate.load_rows(settings, task, training=False)
    evaluated, metrics = evaluate.encode_all(task, rows, tokenizer, settings), {}
    for values, file in packed.items():
        bert.load_weights(model, unpack(file), COMPACT)
        metrics[f"compact {values}"], _ = evaluate.evaluate(
            model, task, evaluated, settings, order)
    return metrics


def write_csv(path: Path, run: str, recorded: dict, left: int, table: dict, metrics: dict) -> None:
    """The size table with metrics beside it; `recorded`, a run.json, says where a run was made."""
    made = {name: recorded.get(name, "") for name in ("machine", "torch", "git", "date")}
    density = left / (table["encoder's matrices"]["dense float32"] // 4)
    rows = [{"run": run, "density": round(density, 8), "file": name,
             **{column.replace(" ", "_").replace("'", ""): sizes[name]
                for column, sizes in table.items()},
             **{metric: round(value, 5) for metric, value in metrics.get(name, {}).items()},
             **made} for name in table["whole model"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(max(rows, key=len)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_atomically(path, text.getvalue())


def write_folder(model, task, source: Path, target: Path) -> None:
    """The Hugging Face folder, with the tokenizer and run.json of `source`."""
    bert.save(model, target, task.output_names, tokenizer_source=source)
    files.write_atomically(target / "run.json", (source / "run.json").read_bytes())


def make_parser() -> cli.Parser:
    p = cli.Parser(description=__doc__)
    p.add_argument("run", type=Path, metavar="RUN", help="a folder that train.py wrote")
    p.add_argument("--values", choices=list(VALUES), default="float32",
                   help=f"number format of {COMPACT}")
    p.add_argument("--restore", type=Path, metavar="DIR", help="write that file's model to DIR")
    p.add_argument("--csv", type=Path, metavar="FILE", help="write sizes and metrics to FILE")
    return p


def main() -> None:
    args = make_parser().parse_args()
    folder = args.run / "export"
    target = args.restore or folder
    if args.restore and (target.exists() or target.resolve() == folder.resolve()):
        raise files.UserError(f"--restore {target}: name a new folder")
    recorded, measured = files.read_json(args.run / "run.json"), args.run / "metrics.json"
    prepared = evaluate.prepare(evaluate.make_parser().parse_args([str(args.run)]))
    _, task, model, _, _ = prepared
    for path in (folder, target):
        files.check_writable(path)
    if args.csv:
        files.check_table(args.csv, "file")
    files.at_end.enter_context(
        files.locked(args.run / ".lock", f"{args.run}: another program is at work there"))
    files.remove_parts(folder)
    write_folder(model, task, args.run, folder)
    weights = bert.hf_weights(model)
    pruned = {bert.to_hf_name(name) for name in masking.encoder_matrices(model)}
    packed = {values: pack(weights, pruned, values) for values in VALUES}
    files.write_atomically(folder / COMPACT, packed[args.values])
    table = size_table(weights, pruned, packed)
    left = sum(int(weights[name].count_nonzero()) for name in pruned)
    entries = sum(weights[name].numel() for name in pruned)
    metrics = files.read_json(measured) if measured.exists() else {}
    with files.reading(args.run, "its run.json or metrics.json is damaged"):
        text = card.card(recorded, metrics, type(model).__name__, left, entries)
    files.write_atomically(folder / "README.md", text)
    files.write_sums(folder, ("config.json", "model.safetensors", *bert.TOKENIZER_FILES,
                              "run.json", COMPACT))  # a model card may be edited
    print(show(table, left))
    print(f"\nwritten: {folder} (a Hugging Face folder) and, in it, {COMPACT} ({args.values})")
    if args.csv:
        write_csv(args.csv, args.run.name, recorded, left, table, measure(*prepared, packed))
    if args.restore:
        bert.load_weights(model, load_compact(folder / COMPACT), str(folder / COMPACT))
        with files.whole_folder(target) as part:
            write_folder(model, task, args.run, part)
        print(f"restored: {target} from {folder / COMPACT}")
    print(f"next: python evaluate.py {target}")


if __name__ == "__main__":
    files.run_main(main)
